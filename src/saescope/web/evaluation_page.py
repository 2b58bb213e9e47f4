"""An evaluation as one HTML file: what came out in a paragraph, every number with its interval, and all that stands behind.

The page is drawn from the plain values of the report and of its summary, as they stand in the JSON; nothing here computes
a number or needs torch. The file holds style, pictures and one small script, which sorts tables; a content policy in the
file allows that script and nothing else, and without it everything can still be read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from saescope import __version__
from saescope.web.estimates import NO_VALUE, estimate, minutes
from saescope.web.numbers import decimal, quantity
from saescope.web.one_file import data_uri, environment, replace_file, static

_MOST_ROWS = 4000  # of all the studies' tables together: a page that opens on a phone
_WIDE = 1000  # pixels from which a picture takes the whole width of the page
_BETTER = {"higher": "more is better", "lower": "less is better", "": ""}
_FACTS = {
    "architecture": "Architecture",
    "sparsity": "Sparsity",
    "seed": "Seed",
    "d_sae": "d_sae",
}
_WHOLE = ("seed", "d_sae")


def write_evaluation_page(
    path: Path, report: Mapping[str, Any], summary: Mapping[str, Any], *, pictures: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write a report to the HTML file `path`, replacing it only when all is well.

    Args:
        report: what `EvaluationReport.as_dict` of saescope.evaluation.reporting.report gave.
        summary: what `summarise` of saescope.evaluation.reporting.summary gave for it.
        pictures: `{"path", "caption", "alt"}` for each PNG file.

    Raises:
        ValueError: it is no report, or a picture is no PNG or has no words for those who can not see it.
    """
    if not report.get("dictionaries"):
        raise ValueError("this is no report of an evaluation: it has no dictionaries")
    pictured = [(picture, Path(picture["path"])) for picture in pictures]
    for picture in pictures:
        if not picture.get("alt"):
            raise ValueError(f"the picture {picture['path']} has no alt text; say in words what it shows")
    script = static("evaluation.js")
    templates = environment()
    templates.filters.update(minutes=minutes, code=_with_code)
    html = templates.get_template("evaluation.html").render(
        report=report,
        summary=summary,
        heading=_heading(report),
        table=_headline_table(report, summary),
        advice=_advice(summary["targets"]),
        contests=[row for row in summary["comparison"] if row["better"] and len(row["overall"]["means"]) > 1],
        architectures=list(dict.fromkeys(d["architecture"] for d in report["dictionaries"])),
        studies=_studies(report, summary),
        failures=[
            (d["name"], study, result["failure"])
            for d in report["dictionaries"]
            for study, result in d["studies"].items()
            if result["failure"]
        ],
        pictures=[{**picture, "uri": data_uri(path), "wide": _width(path) > _WIDE} for picture, path in pictured],
        style=static("look.css") + static("evaluation.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        cell=_cell,
        outcome=outcome,
        outcome_in_short=outcome_in_short,
        met_by=_met_by(summary["targets"]),
        better_words=_BETTER,
        version=__version__,
    )
    replace_file(Path(path), html)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: what is shown, what it is sorted by, and why there is nothing where there is nothing."""

    text: str
    interval: str = ""
    order: float | str | None = None
    reason: str = ""
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Column:
    """The head of a column."""

    title: str
    note: str = ""
    unreliable: str = ""
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns, and rows of which the first cell is the head."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study over all dictionaries."""

    name: str
    numbers: Table
    definitions: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    """A note, and of whom, where it is not of all."""
    tables: tuple[tuple[str, tuple[tuple[str, Table], ...]], ...]
    """The name of a table, and what stands under it for each dictionary."""
    failed: int
    seconds: float


def outcome_in_short(contest: Mapping[str, Any]) -> str:
    """Who is best, in a word or two."""
    return {"winner": contest["leader"], "one seed": "one seed", "alone": "no other"}.get(
        contest["verdict"], "equal" if contest["difference"] == 0 else "within noise"
    )


def outcome(contest: Mapping[str, Any], unreliable: str = "") -> str:
    """Who is best, in words."""
    close = ", ".join([contest["leader"], *contest["close"]])
    return {
        "winner": f"{contest['leader']} is best",
        "noise": "equal" if contest["difference"] == 0 else f"within seed noise: {close}",
        "one seed": f"{contest['leader']} leads, on one seed: no winner",
        "alone": "nothing to compare with",
        "no direction": NO_VALUE,
        "unreliable": f"not ranked: {unreliable}",
    }[contest["verdict"]]


def _heading(report: Mapping[str, Any]) -> str:
    dictionaries = report["dictionaries"]
    return dictionaries[0]["name"] if len(dictionaries) == 1 else f"Evaluation of {len(dictionaries)} dictionaries"


def _number(dictionary: Mapping[str, Any], key: str) -> dict[str, Any]:
    study, _, name = key.partition(".")
    result = dictionary["studies"].get(study)
    if result is None:
        return {"value": None, "reason": f"the study {study} was not made"}
    if result["failure"]:
        return {"value": None, "reason": f"the study {study} failed: {result['failure']}"}
    return result["numbers"].get(name) or {"value": None, "reason": f"{study} gave no such number"}


def _cell(number: Mapping[str, Any]) -> Cell:
    text, interval = estimate(number)
    return Cell(text=text, interval=interval, order=number["value"], reason=number.get("reason", ""))


def _facts(dictionary: Mapping[str, Any], fields: Sequence[str]) -> list[Cell]:
    cells = []
    for field in fields:
        value = dictionary[field]
        if value is None or value == "":
            cells.append(Cell(text=NO_VALUE, reason="it is not known", numeric=field in _WHOLE))
        else:
            numeric = isinstance(value, int)
            cells.append(Cell(text=quantity(value) if numeric else value, order=value, numeric=numeric))
    return cells


def _column(key: str, report: Mapping[str, Any], summary: Mapping[str, Any], *, with_study: bool) -> Column:
    title = summary["titles"].get(key, key)
    better = next((row["better"] for row in summary["comparison"] if row["key"] == key), "")
    note = ", ".join(filter(None, (key.partition(".")[0] if with_study else "", _BETTER[better])))
    return Column(title=title, note=note, unreliable=summary["unreliable"].get(key, ""))


def _headline_table(report: Mapping[str, Any], summary: Mapping[str, Any]) -> Table:
    """Name, main numbers, and then what the dictionary is: on a phone the numbers are to be seen first."""
    dictionaries, keys = report["dictionaries"], summary["headlines"]
    facts = [field for field in _FACTS if any(d[field] not in (None, "") for d in dictionaries)]
    return Table(
        columns=(
            Column(title="Dictionary", numeric=False),
            *(_column(key, report, summary, with_study=True) for key in keys),
            *(Column(title=_FACTS[field], numeric=field in _WHOLE) for field in facts),
        ),
        rows=tuple(
            (*_facts(d, ["name"]), *(_cell(_number(d, key)) for key in keys), *_facts(d, facts)) for d in dictionaries
        ),
    )


def _advice(targets: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[str], list[str]]]:
    """(target, who misses it, what to try), once for each target and each side on which it is missed."""
    missed: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, rows in targets.items():
        for row in rows:
            if row["met"] is False:
                missed.setdefault((f"{row['name']} {row['target']}", tuple(row["advice"])), []).append(name)
    return [(target, names, list(advice)) for (target, advice), names in missed.items()]


def _met_by(targets: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, int, int]]:
    """(target, how many meet it, of how many that have the number)."""
    columns = zip(*targets.values(), strict=True)
    return [
        (
            f"{rows[0]['name']} {rows[0]['target']}",
            sum(row["met"] is True for row in rows),
            sum(row["met"] is not None for row in rows),
        )
        for rows in columns
    ]


def _studies(report: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Study]:
    names = dict.fromkeys(study for d in report["dictionaries"] for study in d["studies"])
    num_tables = sum(len(r["tables"]) for d in report["dictionaries"] for r in d["studies"].values())
    most = max(5, min(200, _MOST_ROWS // max(1, num_tables)))
    return [_study(name, report, summary, most) for name in names]


def _study(name: str, report: Mapping[str, Any], summary: Mapping[str, Any], most_rows: int) -> Study:
    made = {d["name"]: d["studies"][name] for d in report["dictionaries"] if name in d["studies"]}
    keys = [key for key in summary["titles"] if key.partition(".")[0] == name]
    notes: dict[str, list[str]] = {}
    of_title: dict[str, list[tuple[str, Table]]] = {}
    definitions: dict[str, str] = {}
    for dictionary, result in made.items():
        for note in result["notes"]:
            notes.setdefault(note, []).append(dictionary)
        for title, rows in result["tables"].items():
            if rows:
                of_title.setdefault(title, []).append((dictionary, _plain_table(rows, most_rows)))
        for number, values in result["numbers"].items():
            if values.get("variant"):
                definitions.setdefault(summary["titles"].get(f"{name}.{number}", number), values["variant"])
    return Study(
        name=name,
        numbers=_numbers_of_one(report, summary, keys)
        if len(made) == 1
        else _numbers_of_many(report, summary, keys, made),
        definitions=tuple(definitions.items()),
        notes=tuple((note, "" if len(of) == len(made) else _some(of)) for note, of in notes.items()),
        tables=tuple((title, tuple(tables)) for title, tables in of_title.items()),
        failed=sum(bool(result["failure"]) for result in made.values()),
        seconds=sum(result["seconds"] for result in made.values()),
    )


def _numbers_of_many(
    report: Mapping[str, Any], summary: Mapping[str, Any], keys: Sequence[str], made: Mapping[str, Any]
) -> Table:
    return Table(
        columns=(
            Column(title="Dictionary", numeric=False),
            *(_column(key, report, summary, with_study=False) for key in keys),
        ),
        rows=tuple(
            (*_facts(d, ("name",)), *(_cell(_number(d, key)) for key in keys))
            for d in report["dictionaries"]
            if d["name"] in made
        ),
    )


def _numbers_of_one(report: Mapping[str, Any], summary: Mapping[str, Any], keys: Sequence[str]) -> Table:
    """One number a row."""
    study = keys[0].partition(".")[0] if keys else ""
    rows = []
    for key in keys:
        (dictionary,) = (d for d in report["dictionaries"] if study in d["studies"])
        column = _column(key, report, summary, with_study=False)
        notes = filter(None, (column.note, f"unreliable: {column.unreliable}" if column.unreliable else ""))
        name = Cell(text=column.title, order=column.title, numeric=False)
        rows.append((name, _cell(_number(dictionary, key)), Cell(text="; ".join(notes), numeric=False)))
    titles = ("Number", "Value", "Which way is good")
    return Table(columns=tuple(Column(title=title, numeric=title == "Value") for title in titles), rows=tuple(rows))


def _plain_table(rows: Sequence[Mapping[str, Any]], most: int) -> Table:
    """Rows of plain values; what is missing is a dash with the row's reason, and no column is lost."""
    names = dict.fromkeys(name for row in rows for name in row)
    numeric = {name: all(_is_number(row.get(name)) for row in rows) for name in names}
    return Table(
        columns=tuple(Column(title=name.replace("_", " "), numeric=numeric[name]) for name in names),
        rows=tuple(tuple(_value(row, name, numeric[name]) for name in names) for row in rows[:most]),
        num_left_out=max(0, len(rows) - most),
    )


def _value(row: Mapping[str, Any], name: str, numeric: bool) -> Cell:
    value = row.get(name)
    if value is None:
        reason = row.get("reason") or "it is not defined"
        return (
            Cell(text="", numeric=numeric) if name == "reason" else Cell(text=NO_VALUE, reason=reason, numeric=numeric)
        )
    if isinstance(value, list | tuple):
        text = ", ".join(quantity(part) for part in value)
        return Cell(text=text, order=text, numeric=False)
    text = decimal(value) if isinstance(value, float) else quantity(value)
    return Cell(text=text, order=value, numeric=numeric)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def _with_code(sentence: str) -> Markup:
    """A sentence as HTML, with what stands between backquotes as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part)
        for at, part in enumerate(sentence.split("`"))
    ]
    return Markup("").join(parts)


def _width(file: Path) -> int:
    """The width of a PNG picture, which stands at a fixed place in the file."""
    with open(file, "rb") as opened:
        return int.from_bytes(opened.read(20)[16:20], "big")
