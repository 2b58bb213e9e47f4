"""Writes ``pretrained.jsonl``, the index of published dictionaries, from the registry that SAELens installs:

    python -m saescope.formats.make_registry .venv-peers/lib/python3.11/site-packages/sae_lens/pretrained_saes.yaml

Without a file it takes the one of a SAELens beside this package, if there is one. Only facts are taken over: releases, ids,
repositories, paths, models, L0, Neuronpedia ids, scales, settings that change what a file computes. Links are not.

Most entries of a release differ in numbers alone: ``layer_12/width_16k/average_l0_82`` is 12, 16 and 82 in
``layer_{0}/width_{1}k/average_l0_{2}``. So entries are not written out. Those of a release with the same words form a group,
which has a template for each field, and columns of numbers: one for each number that is neither the same everywhere nor
equal to another column. `registry.entries_in` is the way back; what is written is read again and compared before it is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from saescope.formats.registry import FIELDS, REGISTRY_FILE, digest, entries_in, read_lines

_NUMBER = re.compile(r"\d+")
# SAELens' keys -> ours
_FIELD_OF = {"id": "id", "path": "path", "l0": "l0", "neuronpedia": "neuronpedia",
             "variance_explained": "variance_explained", "norm_scaling_factor": "norm_scaling_factor"}  # fmt: skip


def find_yaml() -> Path:
    """The registry of the SAELens that is installed beside this package; nothing of it is imported.

    Raises:
        FileNotFoundError: there is none.
    """
    found = importlib.util.find_spec("sae_lens")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("SAELens is not installed here; name its pretrained_saes.yaml")
    return Path(next(iter(found.submodule_search_locations))) / "pretrained_saes.yaml"


def releases_of(path: Path) -> dict[str, dict[str, Any]]:
    """What SAELens' file says, release by release: our fields, and entries with what is known of each.

    Raises:
        ValueError: a release without a repository or a model, an entry without an id or a path, or two of one id.
    """
    import yaml  # type: ignore[import-untyped]

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, dict[str, Any]] = {}
    for name, release in yaml.load(path.read_text(encoding="utf-8"), Loader=loader).items():
        entries = []
        for entry in release["saes"]:  # one of SAELens' entries holds a copy of its whole release: other keys are left
            kept = {ours: entry[theirs] for theirs, ours in _FIELD_OF.items() if entry.get(theirs) is not None}
            if not isinstance(kept.get("id"), str) or "path" not in kept:
                raise ValueError(f"{path}: an entry of {name} has no id or no path: {kept}")
            entries.append(kept | {"path": str(kept["path"])})
        if len({entry["id"] for entry in entries}) != len(entries):
            raise ValueError(f"{path}: {name} has two entries of one id")
        found[name] = {"repo": release["repo_id"], "model": release["model"], "entries": entries}
        if release.get("conversion_func"):
            found[name]["loader"] = release["conversion_func"]
        if release.get("config_overrides"):
            found[name]["overrides"] = release["config_overrides"]
    return found


def grouped(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries as groups of templates and columns."""
    alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for entry in entries:
        words = tuple(_NUMBER.sub("#", str(entry[name])) if isinstance(entry.get(name), str) else str(name in entry)
                      for name in FIELDS)  # fmt: skip
        alike.setdefault(words, []).append(entry)
    return [_group(rows) for rows in alike.values()]


def _group(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: [int(n) for n in _NUMBER.findall(row["id"])])
    columns: list[tuple[str, ...]] = []
    group: dict[str, Any] = {}
    for name in FIELDS:
        if name not in rows[0]:
            continue
        first = rows[0][name]
        text = isinstance(first, str)
        if text and re.search(r"[{}]", first):
            raise ValueError(f"{first!r} holds a brace, which templates are made of")
        numbers = zip(*(_NUMBER.findall(row[name]) if text else [repr(row[name])] for row in rows), strict=True)
        fillings = [_filling(column, columns) for column in numbers]
        words = _NUMBER.split(first) if text else ["", ""]
        template = words[0] + "".join(filling + word for filling, word in zip(fillings, words[1:], strict=True))
        group[name] = "{id}" if name == "path" and template == group["id"] else template
    group["columns"] = [squeezed(column) for column in columns]
    return group


def _filling(column: tuple[str, ...], columns: list[tuple[str, ...]]) -> str:
    """What stands in a template for one of its numbers: the number itself if it is always the same, else a column."""
    if len(set(column)) == 1:
        return column[0]
    if column not in columns:
        columns.append(column)
    return f"{{{columns.index(column)}}}"


def squeezed(column: Sequence[str]) -> str:
    """A column as words: ``3-7`` for numbers that follow one another, ``5*4`` for four fives, ``...*4`` in front of a column
    that is what follows, four times over."""
    for period in range(1, len(column) // 2 + 1):
        if len(column) % period == 0 and all(here == column[i % period] for i, here in enumerate(column)):
            return f"...*{len(column) // period} {squeezed(column[:period])}"
    words: list[str] = []
    rest = list(column)
    while rest:
        same = next((n for n, here in enumerate(rest) if here != rest[0]), len(rest))
        rising = _rising(rest)
        words.append(f"{rest[0]}-{rest[rising - 1]}" if rising > 2 else f"{rest[0]}*{same}" if same > 1 else rest[0])
        rest = rest[rising if rising > 2 else same :]
    return " ".join(words)


def _rising(column: Sequence[str]) -> int:
    """How many of the first numbers follow one another, as they would be written."""
    if not column[0].isdigit():
        return 1
    expected = (str(n) for n in itertools.count(int(column[0])))
    return next(
        (n for n, (here, wanted) in enumerate(zip(column, expected, strict=False)) if here != wanted), len(column)
    )


def _version_beside(path: Path) -> str:
    folder = path.resolve().parent.parent
    found = [each.version for each in distributions(path=[str(folder)]) if each.metadata["Name"] == "sae-lens"]
    return f"sae-lens {found[0]}" if found else "sae-lens"


def write_registry(source: Path, target: Path) -> dict[str, Any]:
    """Write the index of what ``source`` says to ``target``; its first line, which says what it is made of.

    Raises:
        ValueError: what would be written does not give back what was read.
    """
    releases = releases_of(source)
    lines = []
    for name, release in releases.items():
        entries = release.pop("entries")
        lines.append({"release": name, **release, "groups": grouped(entries)})
        release["entries"] = entries
    found = {name: {entry["id"]: entry for entry in release["entries"]} for name, release in releases.items()}
    for line in lines:
        given_back = {entry["id"]: entry for entry in entries_in(line)}
        if given_back != found[line["release"]]:
            raise ValueError(f"the index of {line['release']} does not give back its entries")
    head = {
        "made_by": "python -m saescope.formats.make_registry",
        "made_from": _version_beside(source),
        "releases": len(lines),
        "dictionaries": sum(map(len, found.values())),
        "digest": digest(lines),
    }
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (head, *lines))
    beside = target.with_name(target.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    if read_lines(beside)[1] != lines:
        raise ValueError(f"{beside} does not read as it was written")
    beside.replace(target)
    return head


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m saescope.formats.make_registry", description=__doc__.split(":")[0])
    parser.add_argument("file", nargs="?", type=Path, help="SAELens' pretrained_saes.yaml (default: of the one beside)")
    parser.add_argument("--output", type=Path, default=REGISTRY_FILE, help="where to write")
    chosen = parser.parse_args(arguments)
    try:
        head = write_registry(chosen.file or find_yaml(), chosen.output)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    size = chosen.output.stat().st_size
    print(f"{chosen.output}: {head['dictionaries']:,} dictionaries of {head['releases']} releases, {size:,} bytes")


if __name__ == "__main__":
    main()
