"""Pictures of a report: sparsity against quality, densities, probing, and every number with its interval; as PNG files.

Each picture comes with its caption and with words for whoever does not see it. An architecture has one colour and one
marker in all of them; dots are seeds, lines go through their means. What a report has nothing for is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log10, sqrt
from pathlib import Path
from typing import Any

from saescope.evaluation.plots import BLUE, INK, new_figure, save
from saescope.evaluation.reporting.report import EvaluatedDictionary, EvaluationReport
from saescope.evaluation.reporting.summary import headlines, title

# told apart by colour-blind readers and in grey: each with a marker of its own
_COLOURS = (BLUE, "#c2571a", "#1f8a5b", "#8b3fa0", "#b8860b", "#3d4a57", "#c43b6e", "#1995ad")
_MARKERS = "osD^vPX*"
_GREY = "#6b7680"
_BASELINES = (("f1_dimensions", "k dimensions of x", "--"), ("f1_dense", "all of x", ":"))  # of probes


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG file, its caption, and its content in words."""

    path: Path
    caption: str
    alt: str

    def as_dict(self) -> dict[str, str]:
        return {"path": str(self.path), "caption": self.caption, "alt": self.alt}


def plot_report(report: EvaluationReport, folder: Path) -> list[Picture]:
    """All pictures that the report has something for, in a folder. One dictionary alone has no curve of sparsities."""
    drawn = [
        *(
            plot_pareto(report, folder / f"pareto-{key.partition('.')[2].replace('_', '-')}.png", key)
            for key in ("core.explained_variance", "core.ce_loss_recovered")
            if len(report.dictionaries) > 1
        ),
        plot_numbers(report, folder / "numbers.png", headlines(report)),
        plot_density_histograms(report, folder / "densities.png"),
        plot_probing(report, folder / "probing.png"),
    ]
    return [picture for picture in drawn if picture is not None]


def plot_pareto(
    report: EvaluationReport, target: Path, key: str = "core.explained_variance", *, sparsity: str = "core.l0"
) -> Picture | None:
    """L0 (logarithmic) against a number: a dot for each seed, a line through the means of each architecture.

    None if no dictionary has both numbers, or none has an L0 above 0.
    """
    points: list[tuple[EvaluatedDictionary, float, float]] = []
    for dictionary in report.dictionaries:
        x, y = dictionary.number(sparsity).value, dictionary.number(key).value
        if x is not None and y is not None and x > 0:
            points.append((dictionary, x, y))
    if not points:
        return None
    figure = new_figure()
    axes = figure.subplots()
    said = []
    for architecture, (colour, marker) in _looks(report).items():
        own = [(d, x, y) for d, x, y in points if d.architecture == architecture]
        if not own:
            continue
        axes.plot([x for _, x, _ in own], [y for _, _, y in own], marker, color=colour, markersize=4.5, alpha=0.75)
        means = sorted(
            (_mean(x for _, x, _ in group), _mean(y for _, _, y in group)) for group in _by_setting(report, own)
        )
        axes.plot(
            [x for x, _ in means], [y for _, y in means], color=colour, marker=marker, markersize=0, linewidth=1.6
        )
        axes.plot([], [], color=colour, marker=marker, markersize=4.5, label=architecture)  # one key for both
        said.append(f"{architecture}: {', '.join(f'{y:.3g} at L0 {x:.3g}' for x, y in means)}")
    _log_axis(axes, [x for _, x, _ in points])
    axes.set_xlabel("L0: features per token (log scale)")
    name = title(key)
    axes.set_ylabel(name)
    caption = f"{_capital(name)} against sparsity"
    axes.set_title(caption, loc="left")
    if len(points) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    save(figure, [axes], target)
    return Picture(path=target, caption=f"{caption}: each dot a seed", alt=f"{caption}. {'; '.join(said)}.")


def plot_density_histograms(report: EvaluationReport, target: Path) -> Picture | None:
    """Features by log10 density, from the curve "density_histogram" of the study "core"; a panel for each group of seeds.

    None if no dictionary has the curve.
    """
    held = [(d, _curve(d, "core", "density_histogram", ("left", "right", "count"))) for d in report.dictionaries]
    panels: dict[tuple[str, str], list[tuple[EvaluatedDictionary, dict[str, list[float]]]]] = {}
    for dictionary, curve in held:
        if curve:
            panels.setdefault((report.setting_of(dictionary), dictionary.architecture), []).append((dictionary, curve))
    if not panels:
        return None
    looks = _looks(report)
    architectures = [architecture for architecture in looks if any(architecture == a for _, a in panels)]
    settings = [setting for setting in report.settings() if any(setting == s for s, _ in panels)]
    rows, columns, places = _grid(panels, settings, architectures)
    figure = new_figure(max(7.2, 2.3 * columns), max(4.2 if rows == 1 else 0.0, 1.55 * rows + 0.7))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for row, column in ((r, c) for r in range(rows) for c in range(columns)):
        axes[row][column].set_visible((row, column) in places.values())
    many = len(panels) > 1
    peaks: list[tuple[str, float | None]] = []
    for (setting, architecture), own in panels.items():
        panel = axes[places[setting, architecture][0]][places[setting, architecture][1]]
        for _, curve in own:
            edges = [*curve["left"], curve["right"][-1]]
            panel.stairs(curve["count"], edges, fill=True, alpha=0.75 / len(own) ** 0.5, color=looks[architecture][0])
        heading = ", ".join(filter(None, (architecture, setting))) if many else own[0][0].name
        panel.set_title(heading, loc="left", fontsize=8.5 if many else 12)
        peaks += [(architecture, _peak(curve)) for _, curve in own]
    xs = [x for own in panels.values() for _, curve in own for x in (curve["left"][0], curve["right"][-1])]
    axes[0][0].set_xlim(min(xs), max(xs))
    figure.supxlabel("density: share of tokens on which a feature fires (log10)", fontsize=10)
    figure.supylabel("features", fontsize=10)
    save(figure, [panel for line in axes for panel in line], target)
    caption = "Features by density" + (
        "; seeds over one another" if any(len(own) > 1 for own in panels.values()) else ""
    )
    return Picture(path=target, caption=caption, alt=f"Histograms of log10 density. They peak at: {_ranges(peaks)}.")


def plot_probing(report: EvaluationReport, target: Path) -> Picture | None:
    """F1 of probes on the k best features, beside the k best dimensions of the activations and all of them.

    From the curve "probing" of the study of that name; a panel for each sparsity, means over seeds. None if no dictionary
    has the curve.
    """
    curves = [(d, _curve(d, "probing", "probing", ("k", "f1_features"))) for d in report.dictionaries]
    held = [(dictionary, curve) for dictionary, curve in curves if curve]
    if not held:
        return None
    settings = [s for s in report.settings() if any(report.setting_of(d) == s for d, _ in held)]
    ticks = sorted({k for _, curve in held for k in curve["k"]})
    num_columns = min(3, len(settings))
    num_rows = ceil(len(settings) / num_columns)
    height = 4.2 if num_rows == 1 else 2.9 * num_rows + 0.6
    figure = new_figure(max(7.2, 3.4 * num_columns), height)
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    panels = [panel for line in grid for panel in line]
    reached: list[tuple[str, float | None]] = []
    for panel, setting in zip(panels, settings, strict=False):
        own = [(d, curve) for d, curve in held if report.setting_of(d) == setting]
        for architecture, (colour, marker) in _looks(report).items():
            ks, f1 = _mean_curve((curve for d, curve in own if d.architecture == architecture), "f1_features")
            if ks:
                panel.plot(ks, f1, color=colour, marker=marker, markersize=4, linewidth=1.5, label=architecture)
                reached += [(f"{architecture} with {k:g}", y) for k, y in zip(ks, f1, strict=True)]
        for name, label, style in _BASELINES:
            ks, f1 = _mean_curve((_curve(d, "probing", "probing", ("k", name)) for d, _ in own), name)
            if ks:
                panel.plot(ks, f1, color=_GREY, linestyle=style, linewidth=1.3, label=label)
                reached.append((label, f1[-1]))
        _log_axis(panel, ticks)
        panel.set_xticks(ticks)
        if len(settings) > 1:
            panel.set_title(setting or "no sparsity named", loc="left", fontsize=9.5)
    for panel in panels[len(settings) :]:
        panel.set_visible(False)
    panels[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    figure.supxlabel("k: features (or dimensions) that a probe may read", fontsize=10)
    figure.supylabel("F1 on test text", fontsize=10)
    save(figure, panels, target)
    return Picture(
        path=target,
        caption="Sparse probing: F1 by the number of features read",
        alt=f"F1 of sparse probes. {_ranges(reached)}.",
    )


def plot_numbers(report: EvaluationReport, target: Path, keys: Sequence[str]) -> Picture | None:
    """Numbers with their intervals: a line for each dictionary, a panel for each of at most 6 of the keys that have values.

    None if no key has a value.
    """
    keys = [key for key in keys if any(d.number(key).value is not None for d in report.dictionaries)][:6]
    if not keys:
        return None
    dictionaries = report.dictionaries[::-1]  # the first one at the top
    columns = min(len(keys), 3)
    rows = ceil(len(keys) / columns)
    figure = new_figure(max(7.2, 3.0 * columns + 1.6), rows * (0.9 + 0.17 * max(4, len(dictionaries))))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = [panel for line in grid for panel in line]
    looks = _looks(report)
    said = []
    for panel, key in zip(panels, keys, strict=False):
        for place, dictionary in enumerate(dictionaries):
            number = dictionary.number(key)
            colour, marker = looks[dictionary.architecture]
            if number.value is None:
                panel.annotate(
                    "–", (0.5, place), xycoords=("axes fraction", "data"), color=_GREY, ha="center", va="center"
                )
                continue
            if number.low is not None and number.high is not None:
                panel.plot([number.low, number.high], [place, place], color=colour, linewidth=1.6, alpha=0.6)
            panel.plot([number.value], [place], marker, color=colour, markersize=4)
        ranges = _ranges((d.architecture, d.number(key).value) for d in report.dictionaries)
        said.append(f"{title(key)}: {ranges}")
        panel.set_title(title(key) + _arrow(report.better(key)), loc="left", fontsize=9.5)
        panel.tick_params(axis="x", labelsize=8)
        panel.locator_params(axis="x", nbins=5)
    for panel in panels[len(keys) :]:
        panel.set_visible(False)
    for line in grid:  # the axis is shared, but not the size of its letters
        line[0].set_yticks(range(len(dictionaries)), [_cut(d.name) for d in dictionaries], fontsize=8)
    panels[0].set_ylim(-0.7, len(dictionaries) - 0.3)
    save(figure, panels, target)
    return Picture(
        path=target, caption="Numbers with 95 % intervals", alt=f"Numbers with intervals. {'; '.join(said)}."
    )


def _looks(report: EvaluationReport) -> dict[str, tuple[str, str]]:
    """Colour and marker of each architecture, in the order of the report."""
    architectures = dict.fromkeys(dictionary.architecture for dictionary in report.dictionaries)
    return {
        architecture: (_COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)])
        for place, architecture in enumerate(architectures)
    }


def _by_setting(
    report: EvaluationReport, points: Iterable[tuple[EvaluatedDictionary, Any, Any]]
) -> Iterable[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for point in points:
        groups.setdefault(report.setting_of(point[0]), []).append(point)
    return groups.values()


def _curve(
    dictionary: EvaluatedDictionary, study: str, name: str, columns: Sequence[str]
) -> dict[str, list[float]] | None:
    """Columns of a curve, without the rows in which one has no value; None if there are none left."""
    curve = dictionary.studies[study].curves.get(name) if study in dictionary.studies else None
    if not curve or any(column not in curve for column in columns):
        return None
    rows = [row for row in zip(*(curve[column] for column in columns), strict=True) if None not in row]
    return {column: [row[i] for row in rows] for i, column in enumerate(columns)} if rows else None


def _mean_curve(curves: Iterable[dict[str, list[float]] | None], name: str) -> tuple[list[float], list[float]]:
    """The mean of a column at each k, over the curves that have it."""
    found: dict[float, list[float]] = {}
    for curve in curves:
        for k, value in zip(curve["k"], curve[name], strict=True) if curve else ():
            found.setdefault(k, []).append(value)
    ks = sorted(found)
    return ks, [_mean(found[k]) for k in ks]


def _grid(
    panels: Iterable[tuple[str, str]], settings: Sequence[str], architectures: Sequence[str]
) -> tuple[int, int, dict[tuple[str, str], tuple[int, int]]]:
    """Rows, columns and the place of each panel: architectures by settings where most places are taken, else in turn."""
    panels = list(panels)
    if 1 < len(settings) <= 6 and len(settings) * len(architectures) <= 1.5 * len(panels):
        places = {(s, a): (architectures.index(a), settings.index(s)) for s, a in panels}
        return len(architectures), len(settings), places
    columns = min(len(panels), 5, ceil(sqrt(len(panels)) + 0.5))
    return (
        ceil(len(panels) / columns),
        columns,
        {panel: (place // columns, place % columns) for place, panel in enumerate(panels)},
    )


def _log_axis(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, at least a factor of four wide where all is within two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = min(values), max(values)
    if high < 2 * low:
        low, high = sqrt(low * high) / 2, sqrt(low * high) * 2
    axes.set_xscale("log")
    axes.set_xlim(low / 1.12, high * 1.12)
    close = log10(high / low) < 1.2
    axes.xaxis.set_major_locator(LogLocator(base=2.0) if close else LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _peak(curve: dict[str, list[float]]) -> float | None:
    """The middle of the highest bin; None where no feature fired."""
    if not any(curve["count"]):
        return None
    place = max(range(len(curve["count"])), key=lambda at: curve["count"][at])
    return (curve["left"][place] + curve["right"][place]) / 2


def _ranges(values: Iterable[tuple[str, float | None]]) -> str:
    """In words, from where to where the values of each architecture reach."""
    found: dict[str, list[float]] = {}
    for architecture, value in values:
        found.setdefault(architecture, []).extend([] if value is None else [value])
    return ", ".join(f"{architecture} {_range(own)}" for architecture, own in found.items())


def _range(values: list[float]) -> str:
    if not values:
        return "nowhere (no value)"
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held)


def _arrow(better: str) -> str:
    return {"higher": " (more is better)", "lower": " (less is better)"}.get(better, "")


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _cut(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
