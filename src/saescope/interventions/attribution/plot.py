"""An attribution as a picture: the features that contributed most, one bar each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from saescope.interventions.attribution.contributions import Contributions

_INK, _UP, _DOWN, _GRID = "#1f2933", "#2563a8", "#c2571a", "#d9dee3"
_LABEL_CHARACTERS = 44  # of a label beside its bar


def plot_contributions(
    contributions: Contributions,
    target: Path,
    *,
    title: str = "",
    tokens: Sequence[str] | None = None,
    labels: Mapping[int, str] | None = None,
    count: int = 20,
) -> Path:
    """Horizontal bars of the strongest contributions, the strongest on top, as a PNG file.

    Args:
        contributions: of one prompt, e.g. ``contributions.of_prompt(0)``.
        title: what was attributed.
        tokens: texts of the prompt's tokens, by column of the batch.
        labels: of features, by their number.
        count: bars at most.

    Raises:
        ValueError: contributions of several prompts, or none.
    """
    from matplotlib.figure import Figure

    if not len(contributions):
        raise ValueError("no feature is active on this prompt: there is nothing to draw")
    if len(contributions.prompt.unique()) > 1:
        raise ValueError("these contributions are of several prompts; draw one, e.g. contributions.of_prompt(0)")
    shown = contributions.strongest(count)
    values = shown.contribution.tolist()
    names = [
        _name(feature, position, activation, tokens, labels or {})
        for feature, position, activation in zip(
            shown.feature.tolist(), shown.position.tolist(), shown.activation.tolist(), strict=True
        )
    ]
    height = 1.1 + 0.27 * len(values)
    figure = Figure(figsize=(9.6, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    rows = range(len(values))
    axes.barh(rows, values, color=[_UP if value > 0 else _DOWN for value in values], height=0.72)
    axes.set_yticks(rows, names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.margins(y=0.01)
    axes.set_xlabel("contribution (in brackets: the feature's activation)")
    # dollar signs begin formulas, also in the text of a token
    figure.suptitle(_plain(title), x=0.01, ha="left", fontsize=10, color=_INK)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=_INK, left=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}.partial")
    figure.savefig(beside, format="png")
    beside.replace(target)
    return target


def _name(
    feature: int, position: int, activation: float, tokens: Sequence[str] | None, labels: Mapping[int, str]
) -> str:
    """What stands beside a bar: label, number, where, how strongly."""
    label = labels.get(feature, "")
    if len(label) > _LABEL_CHARACTERS:
        label = label[: _LABEL_CHARACTERS - 1] + "…"
    where = f"{position}" if tokens is None else f"{position} {tokens[position]!r}"
    return _plain("  ".join(part for part in (label, f"{feature}", f"at {where}", f"({activation:.3g})") if part))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")
