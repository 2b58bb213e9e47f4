"""One dictionary as one HTML file: what it is, how good it is, what its features mean.

The file holds everything it shows: style, pictures and text. It opens from disk or from an attachment, asks the network
for nothing (a content policy in the file forbids it), and runs no script. The feature card is a template of its own, so
that other pages can use it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saescope import __version__
from saescope.store import Store
from saescope.web.one_file import data_uri, environment, replace_file, static


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
        environment()
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
            plots={caption: data_uri(file) for caption, file in plots.items()},
            style=static("look.css"),
            version=__version__,
        )
    )
    replace_file(Path(path), html)


def _evaluation_row(row: Mapping[str, Any]) -> dict[str, Any]:
    if "name" not in row or "value" not in row:
        raise ValueError(f"an evaluation row needs a name and a value, got {dict(row)}")
    return {"target": None, "met": None, **row}
