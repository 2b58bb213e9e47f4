"""``saescope convert``: a dictionary in the format of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(help="Folder, file, or another reference of a dictionary.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="Format to write.")] = "saelens",
    from_format: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="Format of the source. \\[default: what it is]")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="What its files do not say, e.g. k=32.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, ... \\[default: the one that it is stored in]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier conversion.")] = False,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Let keys of configurations be that are not known here.")
    ] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
) -> None:
    """Write a dictionary in another format, and check that it is the same function.

    It is written beside the target, read again, and compared on random inputs; only then it takes its place. What a
    format can not hold is refused. Formats: docs/formats.md.
    """
    from rich.console import Console

    from saescope.cli.overrides import overrides_of
    from saescope.cli.plugin import load_plugins
    from saescope.formats.loading import convert as convert_dictionary

    load_plugins(plugin)
    said = convert_dictionary(
        source,
        target,
        to=to,
        overwrite=overwrite,
        format=from_format,
        dtype=dtype,
        lenient=lenient,
        **overrides_of(override),
    )
    console = Console()
    for line in [*said, f"written: {target}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
