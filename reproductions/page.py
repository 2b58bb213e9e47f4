"""Writes docs/reproductions.md and its pictures from stored results; it computes nothing that they do not hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproductions.study import DATA_SEEDS, Bar, Result, Results, Study

# colours that the colour-blind tell apart (Okabe and Ito), each with a marker of its own
STYLES = (
    {"color": "#0072B2", "marker": "o"},
    {"color": "#D55E00", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "D"},
    {"color": "#E69F00", "marker": "v"},
)
GREY = "#6b7280"

_HEAD = """# Reproductions

Small published results, run again with saescope on two cores: `python -m reproductions`, or `python -m reproductions 4 7`
for some of them. Written by that command from the results in `reproductions/results/`; not by hand.

Each number is a mean over seeds of the dictionaries, on three data sets: *mean (lowest to highest data set)*. A bar must
hold on each data set. Cosines stand beside those of random dictionaries.
"""


@dataclass(frozen=True)
class Verdict:
    """A bar with its number on each data seed."""

    bar: Bar
    values: tuple[float, ...]

    @property
    def holds(self) -> bool:
        return all(self.bar.holds(value) for value in self.values)


@dataclass(frozen=True)
class Outcome:
    """What became of a study."""

    study: Study
    results: Results
    verdicts: tuple[Verdict, ...]
    errors: tuple[Result, ...]
    num_missing: int
    seconds: float
    codes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.errors and not self.num_missing and all(verdict.holds for verdict in self.verdicts)

    @property
    def word(self) -> str:
        return "holds" if self.holds else "failed"


def outcome(study: Study, results: Sequence[Result]) -> Outcome:
    """Judge the results of a study."""
    known = Results(results)
    seeds = sorted({run.data_seed for run in study.runs})
    verdicts = tuple(Verdict(bar, tuple(bar.measured(known, seed) for seed in seeds)) for bar in study.bars)
    return Outcome(
        study,
        known,
        verdicts,
        errors=tuple(result for result in results if result.error),
        num_missing=len(study.runs) - len(results),
        seconds=sum(result.seconds for result in results),
        codes=tuple(sorted({result.code for result in results})),
    )


def page(outcomes: Sequence[Outcome], pictures: str = "reproductions") -> str:
    """The whole page."""
    rows = [
        [f"{o.study.number}", o.study.title, o.word, f"{sum(v.holds for v in o.verdicts)} of {len(o.verdicts)}",
         f"{o.seconds:,.0f}"]
        for o in outcomes
    ]  # fmt: skip
    parts = [_HEAD, table(["study", "", "verdict", "bars that hold", "CPU seconds"], rows)]
    parts += [section(o, pictures) for o in outcomes]
    return "\n".join(parts)


def section(o: Outcome, pictures: str) -> str:
    study = o.study
    parts = [
        f"## {study.number}. {study.title}\n",
        f"**Published.** {study.paper}. {study.published}\n",
        f"**Set-up.** {study.setup}\n",
        f"{results_table(o)}",
        bars_table(o),
    ]
    parts += [f"**Failed run.** {error.run.method}, data {error.run.data_seed}: {error.error}\n" for error in o.errors]
    if o.num_missing:
        parts.append(f"**Missing.** {o.num_missing} of {len(study.runs)} runs have not been made.\n")
    parts += [
        f"Bars set {study.bars_set}.\n",
        f"**Where it differs, and why.** {study.remarks}\n",
        f"![{study.caption}]({pictures}/{study.name}.png)\n",
        f"*{study.caption}*\n",
        f"{len(study.runs)} runs, {o.seconds:,.0f} CPU seconds; code {' and '.join(o.codes) or 'unknown'}.\n",
    ]
    return "\n".join(parts)


def results_table(o: Outcome) -> str:
    """Methods (and settings) down, quantities across."""
    rows = []
    for method in o.study.methods():
        settings: list[float | None] = [*o.results.settings(method)] or [None]
        for setting in settings:
            cells = []
            for column in o.study.columns:
                fields: dict[str, Any] = {"method": method}
                if setting is not None:
                    fields["setting"] = setting
                means = [o.results.mean(column.name, data_seed=seed, **fields) for seed in DATA_SEEDS]
                cells.append(spread([value for value in means if not math.isnan(value)], column.digits))
            rows.append([method, *([] if not o.study.setting else ["" if setting is None else f"{setting:g}"]), *cells])
    heads = ["method", *([o.study.setting] if o.study.setting else []), *(c.header for c in o.study.columns)]
    return table(heads, rows)


def bars_table(o: Outcome) -> str:
    """Claims down, data seeds across."""
    rows = []
    for verdict in o.verdicts:
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in (("≥", verdict.bar.at_least), ("≤", verdict.bar.at_most))
            if bound is not None
        ]
        values = [number(value) for value in verdict.values]
        rows.append([verdict.bar.claim, " and ".join(bounds), *values, "holds" if verdict.holds else "**failed**"])
    seeds = sorted({run.data_seed for run in o.study.runs})
    return table(["bar", "", *(f"data {seed}" for seed in seeds), ""], rows)


def spread(means: Sequence[float], digits: int) -> str:
    """Mean (lowest to highest)."""
    if not means:
        return ""
    low, mean, high = (number(value, digits) for value in (min(means), sum(means) / len(means), max(means)))
    return mean if low == high else f"{mean} ({low} to {high})"


def number(value: float, digits: int = 3) -> str:
    """A number as the page has it; tiny ones by their power of ten."""
    if math.isnan(value):
        return "not measured"
    if 0 < abs(value) < 10**-digits / 2:
        return f"{value:.1e}"
    return f"{value + 0.0:.{digits}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, rows)]) + "\n"


def draw(o: Outcome, target: Path) -> None:
    """The study's picture as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.9), dpi=110, layout="constrained")
    o.study.draw(o.results, figure)
    for axes in figure.axes:
        axes.grid(color="#d9dee3", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Software": None})
