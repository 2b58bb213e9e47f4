"""One dictionary as one HTML file: what it is, how good it is, what its features mean.

The file holds everything it shows: style, pictures and text. It opens from disk or from an attachment, asks the network
for nothing (a content policy in the file forbids it), and runs no script. The feature card is a template of its own, so
that other pages can use it too.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from saescope import __version__
from saescope.store import Store
from saescope.web import bins, drawing, numbers
from saescope.web.further import further_numbers

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_report(
    store: Store,
    name: str | None,
    indices: Sequence[int],
    path: Path,
    *,
    evaluation: Mapping[str, Any] | None = None,
    plots: Mapping[str, Path] = {},
    analysis: str | None = None,
) -> None:
    """Write features `indices` of dictionary `name` to the HTML file `path`, replacing it only when all is well.

    They are shown as `analysis` found them, by default the one written last.

    `evaluation` is `{"rows": [{"name", "value", "target", "met"}, ...]}`, where value and target are numbers or words
    and target and met may be `None`; `plots` gives a PNG file for each caption. Raises `ValueError` for a dictionary or
    a feature that the store does not hold, and for a plot that is no PNG.
    """
    record = store.dictionary(name)
    pages = [store.page(record.name, index, analysis=analysis) for index in indices]
    html = (
        _environment()
        .get_template("report.html")
        .render(
            record=record,
            analysis=store.analysis(record.name, analysis),
            pages=pages,
            linked={page.feature.index for page in pages},
            labels={page.feature.index: page.feature.label.text for page in pages if page.feature.label},
            signed=any(page.feature.negative_share for page in pages),
            evaluations=store.evaluations(record.name),
            rows=[_evaluation_row(row) for row in (evaluation or {}).get("rows", [])],
            plots={caption: _data_uri(file) for caption, file in plots.items()},
            style=Markup((files("saescope.web") / "static" / "report.css").read_text(encoding="utf-8")),
            version=__version__,
        )
    )
    _replace(Path(path), html)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("saescope.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        decimal=numbers.decimal,
        whole=numbers.whole,
        percent=numbers.percent,
        quantity=numbers.quantity,
        met_words=numbers.met_words,
        visible=drawing.visible,
    )
    environment.globals.update(
        shade=drawing.shade,
        excerpt=drawing.excerpt,
        chart=drawing.chart,
        position_chart=drawing.position_chart,
        bands_of=bins.bands_of,
        reach=bins.reach,
        further_numbers=further_numbers,
    )
    return environment


def _evaluation_row(row: Mapping[str, Any]) -> dict[str, Any]:
    if "name" not in row or "value" not in row:
        raise ValueError(f"an evaluation row needs a name and a value, got {dict(row)}")
    return {"target": None, "met": None, **row}


def _data_uri(file: Path) -> str:
    content = Path(file).read_bytes()
    if not content.startswith(_PNG_SIGNATURE):
        raise ValueError(f"the plot {file} is not a PNG picture; save it as one")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False) as beside:
        try:
            beside.write(text)
            beside.flush()
            os.fsync(beside.fileno())
            os.chmod(beside.name, 0o644)  # a temporary file is private; a report is to be shared
            os.replace(beside.name, path)
        except BaseException:
            os.unlink(beside.name)
            raise
