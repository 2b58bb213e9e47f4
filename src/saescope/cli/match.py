"""``saescope match``: what two dictionaries have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from scipy import sparse

    from saescope.cli.setting import Setting
    from saescope.dictionaries import Dictionary

_NUM_EXAMPLES = 10


def match(
    a: Annotated[Path, typer.Argument(help="A dictionary's folder, or the folder of a run.")],
    b: Annotated[Path, typer.Argument(help="The dictionary whose features are told apart, compared with A.")],
    num_tokens: Annotated[
        int, typer.Option(min=0, metavar="N", help="Tokens on which both are read; 0 compares weights alone.")
    ] = 20_000,
    store: Annotated[
        str | None, typer.Option(help="File or database that holds B: tags, notes and numbers go there.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of B in the store. \\[default: the run's]")] = None,
    against: Annotated[str | None, typer.Option(help="What A is called in tags. \\[default: its run's name]")] = None,
    model: Annotated[str | None, typer.Option(help="Model, if not the one they were trained on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, if not the one of B's run.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set. \\[default: held_out]")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the text. \\[default: text]")] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where to write it all.")] = None,
) -> None:
    """Compare two dictionaries: which features of B are shared with A, split, absorbed or new."""
    from rich.console import Console

    from saescope.cli.opening import find_dictionary, metadata_of, open_dictionary
    from saescope.cli.plugin import load_plugins
    from saescope.cli.views.matching import match_view
    from saescope.evaluation.matching.activation_consistency import activation_consistency
    from saescope.evaluation.matching.consistency import consistency
    from saescope.evaluation.matching.relations import relations
    from saescope.evaluation.matching.relations_in_store import write_relations
    from saescope.store import Store

    load_plugins(plugin)
    console = Console()
    paths = [find_dictionary(path) for path in (a, b)]
    metadata = [metadata_of(path) for path in paths]
    names = [
        str((found["saescope"].get("run") or {}).get("name") or path.name)
        for found, path in zip(metadata, paths, strict=True)
    ]
    names = [against or names[0], name or names[1]]
    if names[0] == names[1] and not against:  # two seeds of one recipe: their folders tell them apart
        names = [_folder(a), _folder(b) if store is None and not name else names[1]]
    if names[0] == names[1]:
        raise ValueError(f"both dictionaries are called {names[0]}; say with --against what A is to be called")
    opened = [open_dictionary(path) for path in paths]
    if store is not None:  # before anything slow
        with Store.open(store, must_exist=True) as place:
            known = place.dictionary(names[1])
        if known.d_sae != opened[1].d_sae:
            raise ValueError(f"{names[1]} has {known.d_sae} features in the store, and {b} has {opened[1].d_sae}")

    codes = None
    if num_tokens:
        settings = _settings(paths, metadata, model=model, dataset=dataset, split=split, column=column)
        codes = _codes(opened, settings, num_tokens, console)
    with console.status("matching features"):
        known_of_codes: dict[str, Any] = {}
        if codes is not None:
            known_of_codes["densities"] = [found.astype(bool).sum(0) / found.shape[0] for found in codes]
            known_of_codes["l0"] = [found.count_nonzero() / found.shape[0] for found in codes]
        found = relations(opened[0], opened[1], codes=codes)
        studies = {"consistency": consistency(opened, names=names, **known_of_codes)}
        if codes is not None:
            studies["activation_consistency"] = activation_consistency(codes, names=names)
        studies["relations"] = found.study()

    rows = list(found.features())
    by_cosine = sorted(
        (row for row in rows if row["cosine"] is not None), key=lambda row: (-row["cosine"], row["feature"])
    )
    best = [row for row in by_cosine if row["kind"] == "shared"][:_NUM_EXAMPLES]
    table = studies["consistency"].tables["dictionaries"]
    document: dict[str, Any] = {
        "dictionaries": dict(zip("AB", table, strict=True)),
        "num_tokens": codes[0].shape[0] if codes is not None else 0,
        "bar": found.bar,
        "part_bar": found.part_bar,
        "studies": {key: study.as_dict() for key, study in studies.items()},
        "most_alike": best,
        "least_alike": by_cosine[::-1][:_NUM_EXAMPLES],
        "features": rows,
    }
    labels: dict[int, str] = {}
    if store is not None:
        with Store.open(store, must_exist=True) as place:
            write_relations(place, names[1], found, against=names[0])
            shown = {row["feature"] for key in ("most_alike", "least_alike") for row in document[key]}
            if place.analyses(names[1]):
                labels = place.labels(names[1], shown)
    console.print(match_view(document, labels))
    if store is not None:
        console.print(
            f"in the store: saescope features {names[1]} --tag 'new against {names[0]}'",
            highlight=False,
            soft_wrap=True,
        )
    if json_file is not None:
        _write(json_file, document)
        console.print(f"numbers: {json_file}", highlight=False, soft_wrap=True)


def _folder(path: Path) -> str:
    path = path.resolve()
    return path.parent.name if path.name == "dictionary" else path.name


def _settings(paths: list[Path], metadata: list[dict[str, Any]], **options: str | None) -> list[Setting]:
    """What both are read with.

    Raises:
        ValueError: their models differ, so that their codes are not of the same activations.
    """
    from saescope.cli.setting import setting_of

    settings = [setting_of(path, found, **options) for path, found in zip(paths, metadata, strict=True)]
    models = [setting.model.name for setting in settings]
    if models[0] != models[1]:
        raise ValueError(
            f"A was trained on {models[0]}, B on {models[1]}: name one with --model, or compare weights alone with "
            "--num-tokens 0"
        )
    if settings[1].held_out is None:
        raise ValueError(f"which split of {settings[1].dataset.name} is held out? Name it with --split")
    return settings


def _codes(
    opened: list[Dictionary], settings: list[Setting], num_tokens: int, console: Console
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Codes of both on the same tokens, of the text that B was not trained on."""
    from saescope.cli.progress import progress
    from saescope.cli.run import load_model, load_windows
    from saescope.evaluation.sample import encode_sample, read_sample

    assert settings[1].held_out is not None
    network = load_model(settings[1].model)
    windows = load_windows(network, settings[1].held_out, settings[1].windows, console)
    found = {}
    for reads in {setting.reads: None for setting in settings}:
        with progress(console, f"reading {', '.join(reads)}", "batches") as update:
            sample = read_sample(
                network, windows, reads, num_tokens=num_tokens, on_progress=lambda done, total: update(done, total, "")
            )
        for place, setting in enumerate(settings):
            if setting.reads == reads:
                with console.status("encoding"):
                    found[place] = encode_sample(opened[place], sample.x)
    return found[0], found[1]


def _write(path: Path, document: dict[str, Any]) -> None:
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    beside.replace(path)
