"""What every page that is a single file needs: the templates, pictures inside the page, and a safe way to write it."""

from __future__ import annotations

import base64
import os
from importlib.resources import files
from pathlib import Path
from tempfile import NamedTemporaryFile

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from saescope.web import bins, drawing, numbers
from saescope.web.further import further_numbers

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def environment() -> Environment:
    """The templates, with the filters that write numbers and what draws features."""
    made = Environment(
        loader=PackageLoader("saescope.web"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,  # the files of a package do not change
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        decimal=numbers.decimal,
        whole=numbers.whole,
        percent=numbers.percent,
        quantity=numbers.quantity,
        met_words=numbers.met_words,
        visible=drawing.visible,
    )
    made.globals.update(
        shade=drawing.shade,
        excerpt=drawing.excerpt,
        chart=drawing.chart,
        position_chart=drawing.position_chart,
        bands_of=bins.bands_of,
        reach=bins.reach,
        further_numbers=further_numbers,
    )
    return made


def static(name: str) -> Markup:
    """A style sheet or a script of the package, to stand in a page as it is."""
    return Markup((files("saescope.web") / "static" / name).read_text(encoding="utf-8"))


def data_uri(file: Path) -> str:
    """A PNG picture as an address that holds it."""
    content = Path(file).read_bytes()
    if not content.startswith(_PNG_SIGNATURE):
        raise ValueError(f"the plot {file} is not a PNG picture; save it as one")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def replace_file(path: Path, text: str) -> None:
    """Write a file beside its place, then put it there: whole or not at all."""
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
