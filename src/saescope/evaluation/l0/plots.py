"""The picture of a sweep over L0: both measures, the snapshot before, and the recommended range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saescope.evaluation.l0.advice import L0Advice, SweepPoint
from saescope.evaluation.plots import BLUE, INK, ORANGE, new_figure, save

_SHADE = "#dcefe0"


def plot_l0(points: Sequence[SweepPoint], advice: L0Advice, target: Path) -> Path:
    """c_dec and the s_n judged by, against the measured L0: dots are dictionaries, lines go through the means over seeds,
    dashed lines through those of the snapshot before the end of training."""
    figure = new_figure(7.2, 6.0)
    axes = figure.subplots(2, 1, sharex=True)
    judged = [verdict.measure for verdict in advice.verdicts]
    for axis, colour, measure in zip(axes, (BLUE, ORANGE), (*judged, None), strict=False):
        if advice.low is not None and advice.high is not None:
            axis.axvspan(
                advice.low, advice.high, color=_SHADE, label=f"recommended: {advice.low:.3g} to {advice.high:.3g}"
            )
        if measure is None:
            axis.text(0.5, 0.5, "no n between L0 and half the features", transform=axis.transAxes, ha="center")
            continue
        _draw(axis, points, measure, colour)
        axis.set_ylabel(measure)
        axis.legend(fontsize=8, frameon=False)
    every = sorted({point.setting for point in points})
    axes[1].set_xscale("log")
    axes[1].set_xticks(every, [f"{l0:g}" for l0 in every])
    axes[1].minorticks_off()
    axes[1].set_xlabel("L0: features that fire on a token")
    title = "Lower is better" if advice.low is not None else f"No L0 is recommended ({advice.kind.replace('_', ' ')})"
    axes[0].set_title(title, loc="left", color=INK)
    return save(figure, axes, target)


def _draw(axis: Any, points: Sequence[SweepPoint], measure: str, colour: str) -> None:
    finals = [(point.setting, point.final.l0, point.final.value(measure)) for point in points]
    known = [(setting, l0, value) for setting, l0, value in finals if value is not None]
    axis.plot([l0 for _, l0, _ in known], [value for *_, value in known], "o", color=colour, alpha=0.6, markersize=4)
    axis.plot(*_means(known), color=colour, linewidth=1.8, label="mean over seeds")
    early = [(p.setting, p.early.l0, p.early.value(measure)) for p in points if p.early is not None]
    before = [(setting, l0, value) for setting, l0, value in early if value is not None]
    if before:
        axis.plot(
            *_means(before), color=colour, linewidth=1.0, linestyle="--", label="snapshot before the end of training"
        )


def _means(known: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[float]]:
    """Mean L0 and mean value of each setting, by rising L0."""
    groups = [[row for row in known if row[0] == setting] for setting in sorted({row[0] for row in known})]
    pairs = sorted((sum(r[1] for r in g) / len(g), sum(r[2] for r in g) / len(g)) for g in groups)
    return [x for x, _ in pairs], [y for _, y in pairs]
