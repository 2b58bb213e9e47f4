"""``saescope push``: bring a dictionary to the Hugging Face hub, with a card that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="The dictionary: a folder, the folder of a run, or any other.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="HF:ORG/REPO", help="Where to: hf:org/repo\\[/subfolder]\\[@branch].")
    ],
    private: Annotated[bool, typer.Option("--private", help="A repository that only you can see.")] = False,
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", metavar="FILE", help="Numbers for its card. \\[default: eval.json beside it]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dictionary that lies there.")] = False,
    lenient: Annotated[bool, typer.Option("--lenient", help="Let unknown keys of its configuration be.")] = False,
) -> None:
    """Write a dictionary to a repository of the Hugging Face hub, in the layout that SAELens and saescope open.

    A model card goes with it: what it is, how it is opened, and what was measured. The token is HF_TOKEN, or the one of hf
    auth login.
    """
    from saescope.formats.hub import Place
    from saescope.formats.hub_push import push as push_
    from saescope.formats.loading import read_foreign
    from saescope.formats.reference import resolve
    from saescope.formats.source import LocalSource
    from saescope.formats.tensor_files import read_json

    place = Place.parse(target)  # a mistake here is found before anything is read
    source = resolve(ref, lenient=lenient)
    folder = source.folder if isinstance(source, LocalSource) else None
    file = evaluation or (None if folder is None else _eval_beside(folder))
    numbers = None if file is None else read_json(file)
    dictionary = read_foreign(source).build()
    address = push_(dictionary, place, evaluation=numbers, private=private, overwrite=overwrite)
    said = f"with the numbers of {file}" if file else "without numbers: saescope eval makes them"
    typer.echo(f"{place}: {address}\nits card is {said}\nopen it: saescope.load({str(place)!r})")


def _eval_beside(folder: Path) -> Path | None:
    """What ``saescope eval`` wrote: in the dictionary's folder, or in that of its run."""
    homes = (folder, folder.parent) if folder.name == "dictionary" else (folder,)
    return next((home / "eval.json" for home in homes if (home / "eval.json").is_file()), None)
