"""An evaluation as Markdown, to be pasted into an issue or kept among documents: the outcome, the table, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saescope.web.estimates import minutes, written
from saescope.web.one_file import replace_file


def write_evaluation_markdown(
    path: Path, report: Mapping[str, Any], summary: Mapping[str, Any], *, pictures: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write a report to a Markdown file, replacing it only when all is well.

    Args:
        report, summary, pictures: as of :func:`saescope.web.evaluation_page.write_evaluation_page`. Pictures are referred to
            by their places relative to the file; they have to lie below its folder.
    """
    shown = [(pic, Path(pic["path"]).resolve().relative_to(path.resolve().parent).as_posix()) for pic in pictures]
    replace_file(path, evaluation_markdown(report, summary, [{**pic, "path": place} for pic, place in shown]))


def evaluation_markdown(
    report: Mapping[str, Any], summary: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The text: paragraph, times, a table of the headlines, the usual targets, what can not be ranked by, pictures."""
    dictionaries = report["dictionaries"]
    took = ", ".join(f"{what} {minutes(seconds)}" for what, seconds in report["seconds"].items())
    parts = [_plain(summary["paragraph"]), f"Time: {took}." if took else ""]
    keys = summary["headlines"]
    titles = [summary["titles"][key] + ("\\*" if key in summary["unreliable"] else "") for key in keys]
    rows = [[d["name"], *(written(_number(d, key)) for key in keys)] for d in dictionaries]
    parts.append(_table(["dictionary", *titles], rows))
    if any(key in summary["unreliable"] for key in keys):
        parts.append(
            "\\* does not tell a true dictionary from a random one on data whose truth is known: not to rank by."
        )
    met = [
        [f"{rows[0]['name']} {rows[0]['target']}", f"{sum(row['met'] is True for row in rows)} of {len(rows)}"]
        for rows in zip(*(summary["targets"][d["name"]] for d in dictionaries), strict=True)
    ]
    parts.append(_table(["usual target", "met by"], met))
    failures = [(d["name"], study, result["failure"]) for d in dictionaries for study, result in d["studies"].items()]
    parts += [f"- {_plain(name)}: {study} failed: {_plain(why)}" for name, study, why in failures if why]
    parts += [_plain(note) for note in report["notes"]]
    parts += [f"![{_plain(pic['alt'])}]({pic['path']})\n\n{_plain(pic['caption'])}" for pic in pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(dictionary: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    study, _, name = key.partition(".")
    found: Mapping[str, Any] | None = dictionary["studies"].get(study, {}).get("numbers", {}).get(name)
    return found


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """On one line, no column of its own and no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
