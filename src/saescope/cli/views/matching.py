"""Two dictionaries compared, in the terminal: sizes, numbers beside their baselines, kinds of features, examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from saescope.cli.views.words import MUTED, plain_table, visible
from saescope.web.numbers import percent, quantity

_NUMBERS = {
    "pw_mcc": ("matched cosine, one-to-one", "pw_mcc_random"),
    "pw_mcc_alive": ("... of features that fire", "pw_mcc_alive_random"),
    "pw_mcc_encoder": ("... of encoder rows", "pw_mcc_encoder_random"),
    "mean_max_cosine": ("mean largest cosine, not one-to-one", "mean_max_cosine_random"),
    "order": ("order of matched features (Spearman)", None),
    "activation_mcc": ("matched correlation of activations", "activation_mcc_random"),
}
_WORDS = {
    "shared": "each other's nearest",
    "split": "with others, the parts of one feature of A",
    "absorbed": "fires in the place of a shared feature",
    "near": "a second copy of a feature of A",
    "new": "nothing alike in A",
    "dead": "never fires",
}


def match_view(document: Mapping[str, Any], labels: Mapping[int, str]) -> RenderableType:
    """The document of ``saescope match``, in 80 columns.

    Args:
        labels: of features of B.
    """
    parts: list[RenderableType] = [_dictionaries(document["dictionaries"]), "", _numbers(document["studies"])]
    parts += ["", _kinds(document["studies"]["relations"])]
    for key, title in (("most_alike", "most alike"), ("least_alike", "least alike")):
        if document[key]:
            parts += ["", Text(f"features of B that are {title}", style=MUTED), _examples(document[key], labels)]
    notes = dict.fromkeys(note for study in document["studies"].values() for note in study["notes"])
    return Group(*parts, *[Text(f"note: {note}", style=MUTED) for note in notes])


def _table(*columns: str) -> Table:
    table = plain_table()
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=bool(place))
    return table


def _dictionaries(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("dictionary", "architecture", "features", "alive", "L0")
    for letter, row in rows.items():
        table.add_row(
            Text(f"{letter}: {row['name']}"),
            row["architecture"],
            quantity(row["d_sae"]),
            quantity(row["num_alive"]),
            quantity(row["l0"]),
        )
    return table


def _numbers(studies: Mapping[str, Mapping[str, Any]]) -> Table:
    found = {name: number for study in studies.values() for name, number in study["numbers"].items()}
    table = _table("measure", "value", "95 % interval", "random")
    for name, (words, twin) in _NUMBERS.items():
        number = found.get(name)
        if number is None or number["value"] is None:
            continue
        ends = [quantity(number[end]) for end in ("low", "high") if number.get(end) is not None]
        random = found[twin]["value"] if twin else None
        table.add_row(words, quantity(number["value"]), " to ".join(ends), quantity(random))
    return table


def _kinds(study: Mapping[str, Any]) -> Table:
    table = plain_table()
    for name in ("features of B", "number", "of alive", "meaning"):
        table.add_column(name, justify="right" if name in ("number", "of alive") else "left")
    for row in study["tables"]["kinds"]:
        number = study["numbers"][f"num_{row['kind']}"]["value"]
        share = row["share_of_alive"]
        known = number is not None
        table.add_row(
            row["kind"],
            quantity(int(number)) if known else "unknown",
            percent(share) if known and share is not None else "",
            Text(_WORDS[row["kind"]], style=MUTED),
        )
    gone = int(study["numbers"]["num_gone"]["value"])
    table.add_row("(of A: gone)", quantity(gone), "", Text("nothing alike in B", style=MUTED))
    return table


def _examples(rows: Iterable[Mapping[str, Any]], labels: Mapping[int, str]) -> Table:
    table = _table("kind", "of B", "of A", "cosine")
    table.add_column("label of B", no_wrap=True, overflow="ellipsis")
    for row in rows:
        label = labels.get(row["feature"])
        table.add_row(
            row["kind"],
            str(row["feature"]),
            str(row["nearest"]),
            f"{row['cosine']:.3f}",
            Text(visible(label)) if label else "",
        )
    return table
