"""One set of texts alone: what it has more of than the text on which the dictionary was analysed.

A store knows of every feature on which share of the tokens it fires (its density) and its mean activation there. Of a set of
texts the same is taken text by text, x_1 ... x_n, and compared with that one number mu (Student's test of one sample; texts
are what was drawn, tokens of a text are alike)::

    t = (mean(x) - mu) / (sd(x) / sqrt(n)),    effect size = (mean(x) - mu) / sd(x), with Hedges' factor

The background is much larger than the set, so that its own error is left aside. One half of the texts chooses features, the
other says how much more there is: the ratio of densities, over all its tokens, with an interval from drawing texts again.

n  texts, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse, stats

from saescope.analysis.contrast.pooling import pool_texts
from saescope.analysis.contrast.reading import Progress
from saescope.analysis.contrast.separation import adjusted, firing_features, small_sample_factor
from saescope.analysis.contrast.texts import num_measured
from saescope.interventions.site import Site

if TYPE_CHECKING:
    from saescope.store import Store

Measure = Literal["density", "mean"]


@dataclass(frozen=True, kw_only=True)
class Enriched:
    """A feature that a set of texts has more (or less) of than the background."""

    feature: int
    side: Literal["more", "less"]
    """Than the background, on the half that chose it."""
    effect_size: float | None
    """Standardised over texts, with Hedges' factor; None where all texts have the same."""
    p: float
    q: float
    """p after Benjamini and Hochberg, over all features that fire on the half that chose."""
    density: float
    """Share of the tokens of the other half on which it fires."""
    background_density: float
    ratio: float | None
    """Of the two; None where the feature never fired in the background."""
    ratio_low: float | None
    ratio_high: float | None
    """Ends of its 95 % interval, by drawing texts again."""
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Enrichment:
    """Features by how far a set of texts is from the background: those with q below the rate first."""

    features: tuple[Enriched, ...]
    measure: Measure
    num_texts: int
    """That chose."""
    num_test_texts: int
    """That measured."""
    num_tested: int
    num_significant: int
    false_discovery_rate: float
    background: str
    """Dictionary and analysis in the store."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def against_store(
    site: Site,
    texts: Sequence[str],
    store: Store,
    name: str,
    *,
    analysis: str | None = None,
    measure: Measure = "density",
    test_share: float = 0.5,
    top: int = 20,
    side: Literal["both", "more", "less"] = "more",
    false_discovery_rate: float = 0.05,
    context_size: int | None = None,
    batch_size_windows: int = 16,
    num_draws: int = 1000,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Enrichment:
    """Features that a set of texts has more of than the text of an analysis.

    Args:
        name, analysis: of the dictionary in the store.
        measure: what is tested: on how many tokens a feature fires, or its mean ``"mean"`` activation (sizes, if signed).
        side: give features that the texts have more of, less of, or both.
        others: as :func:`saescope.analysis.contrast.contrast`.

    Raises:
        ValueError: fewer than four different texts, another dictionary than the store's, or a measure that it lacks.
    """
    if measure not in ("density", "mean"):
        raise ValueError(f'measure is "density" or "mean", not {measure!r}')
    if side not in ("both", "more", "less"):
        raise ValueError(f'side is "both", "more" or "less", not {side!r}')
    different = list(dict.fromkeys(texts))
    if len(different) < 4:
        raise ValueError(
            f"{len(different)} different texts are too few: it takes two to choose features and two to measure them on"
        )
    num_test = num_measured(len(different), test_share)
    d_sae = site.dictionary.d_sae
    record = store.analysis(name, analysis)
    known = store.features(name, analysis=analysis, sort="index", descending=False, limit=d_sae + 1).features
    if len(known) != d_sae:
        raise ValueError(f"{name} has {len(known)} features in the store, and this dictionary has {d_sae}")
    background = np.array([row.density for row in known])
    means = [row.mean_activation for row in known]
    if measure == "mean" and any(mean is None for mean in means):
        raise ValueError(f'the analysis of {name} has no mean activations; use measure="density"')
    expected = background if measure == "density" else np.array(means, dtype=np.float64)

    order = np.random.default_rng(seed).permutation(len(different))
    ordered = [different[place] for place in order]
    pooled = pool_texts(
        site,
        ordered,
        pooling="mean",
        context_size=context_size,
        batch_size_windows=batch_size_windows,
        on_progress=on_progress,
    )
    shares = sparse.csr_array(pooled.firings.multiply(1 / pooled.num_tokens[:, None]))
    tested = abs(pooled.values) if measure == "mean" else shares
    fired, effect, p = one_sample(sparse.csr_array(tested)[num_test:], expected)
    q = adjusted(p)
    more = effect > 0
    ranks = np.lexsort((fired, -np.abs(effect), q > false_discovery_rate))
    if side != "both":
        ranks = ranks[more[ranks] == (side == "more")]
    ranks = ranks[:top]
    counts, tokens = pooled.firings[:num_test][:, fired[ranks]].toarray(), pooled.num_tokens[:num_test]
    drawn = np.random.default_rng(seed).integers(num_test, size=(num_draws, num_test))
    densities = np.stack([counts[rows].sum(0) / tokens[rows].sum() for rows in drawn])  # [draws, features]
    rows = []
    for place, column, draws in zip(ranks, counts.T, densities.T, strict=True):
        feature = int(fired[place])
        label = known[feature].label
        base, density = float(background[feature]), float(column.sum() / tokens.sum())
        low, high = np.quantile(draws, [0.025, 0.975]).tolist()
        rows.append(
            Enriched(
                feature=feature,
                side="more" if more[place] else "less",
                effect_size=float(effect[place]) if np.isfinite(effect[place]) else None,
                p=float(p[place]),
                q=float(q[place]),
                density=density,
                background_density=base,
                ratio=density / base if base else None,
                ratio_low=low / base if base else None,
                ratio_high=high / base if base else None,
                label=None if label is None else label.text,
            )
        )
    num_significant = int((q <= false_discovery_rate).sum())
    notes = []
    if len(different) < len(texts):
        notes.append(f"{len(texts) - len(different)} texts are there more than once; each counts once")
    if not num_significant:
        notes.append(
            f"nothing sets the texts apart: of {len(fired):,} features that fire, none has q <= {false_discovery_rate:g}"
        )
    if pooled.num_cut:
        notes.append(
            f"{pooled.num_cut} of {len(different)} texts are longer than a window and were read window by window"
        )
    return Enrichment(
        features=tuple(rows),
        measure=measure,
        num_texts=len(different) - num_test,
        num_test_texts=num_test,
        num_tested=len(fired),
        num_significant=num_significant,
        false_discovery_rate=false_discovery_rate,
        background=f"{name}, analysis {record.name}: {record.num_tokens:,} tokens of {record.dataset}",
        notes=tuple(notes),
    )


def one_sample(values: sparse.csr_array, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The features that fire in ``values [n, d_sae]``, and for each the effect size and p against ``expected [d_sae]``."""
    fired = firing_features(values)
    found = values[:, fired].toarray()
    n = len(found)
    difference, spread = found.mean(0) - expected[fired], found.std(0, ddof=1)
    flat = (found == found[0]).all(0)  # no spread at all: infinite, or nothing where it is just what was expected
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(flat, np.sign(difference) * np.inf, difference / spread * np.sqrt(n))
    t[flat & (difference == 0)] = 0.0
    return fired, t / np.sqrt(n) * small_sample_factor(n - 1), 2 * stats.t.sf(np.abs(t), n - 1)
