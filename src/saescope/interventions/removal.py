"""Many experiments in one forward pass: every row of the batch is a prompt with its own features taken out.

To take a feature out is to give it its baseline at the tokens in question, 0 as a rule, while all else of the activation
stays: ``x + (baseline_i - f_i) d_i``. With a baseline of 0 that is :class:`Ablate`. Features of later places are read
anew, of what the earlier removals made of the model. With ``error_term=False`` the model goes on from reconstructions in
every pass, that with nothing removed included.

Shapes: ``P`` prompts, ``T`` tokens, ``R`` rows of a pass, ``d_sae`` features of one dictionary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from saescope.dictionaries.codes import SparseCodes
from saescope.interventions.changes import Splice
from saescope.interventions.intervention import Intervention
from saescope.interventions.metrics import Metric
from saescope.interventions.reading import read_features
from saescope.interventions.site import Site

if TYPE_CHECKING:
    from saescope.models import LanguageModel

Baseline: TypeAlias = Literal["zero", "mean"] | Tensor | Sequence[Tensor]
"""What a removed feature is set to: 0, its mean over the tokens in question, or values ``[d_sae]`` for each site."""


@dataclass(frozen=True)
class Node:
    """A feature at its place."""

    site: Site
    feature: int

    def __str__(self) -> str:
        return f"feature {self.feature} at {self.site}"


Named: TypeAlias = Sequence[int] | Sequence[Node] | Tensor
"""Features: numbers where there is one site, otherwise :class:`Node`."""


@dataclass(frozen=True)
class Removed:
    """Features that are taken out, by the number of their site; or, with ``all_but``, all others."""

    features: Mapping[int, Sequence[int]]
    all_but: bool = False

    @classmethod
    def of(cls, nodes: Iterable[tuple[int, int]], *, all_but: bool = False) -> Removed:
        """Those of (number of the site, feature)."""
        by_site: dict[int, list[int]] = {}
        for site, feature in nodes:
            by_site.setdefault(site, []).append(feature)
        return cls(by_site, all_but)

    def touches(self, site: int) -> bool:
        return self.all_but or bool(self.features.get(site))

    def mask(self, site: int, d_sae: int) -> Tensor:
        """Which are taken out, bool ``[d_sae]``."""
        named = torch.zeros(d_sae, dtype=torch.bool)
        named[list(self.features.get(site, ()))] = True
        return ~named if self.all_but else named


@dataclass(frozen=True, eq=False)
class Active:
    """Which features of a dictionary fire on which prompts, and how strongly on the whole."""

    prompt: Tensor  # [N], with ``feature`` the pairs of which there is a firing, in order
    feature: Tensor  # [N]
    mean: Tensor  # over the tokens in question, those without a firing counted; float64, [d_sae]


class Experiment:
    """Prompts, dictionaries and a metric, with what is the same in all passes."""

    def __init__(
        self,
        sites: Site | Sequence[Site],
        ids: Tensor,
        metric: Metric,
        *,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        special_tokens: bool,
        error_term: bool,
        baseline: Baseline,
        batch_size: int,
    ) -> None:
        """Checks all, runs the prompts as they are, and reads their features.

        Raises:
            ValueError: no site, sites of different models, ids, masks, baselines or a metric that do not fit.
        """
        self.sites = (sites,) if isinstance(sites, Site) else tuple(sites)
        self.model = _the_model(self.sites)
        self.metric = _fitting(metric, self.model, ids)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is how many rows run at once, at least 1, not {batch_size!r}")
        if not isinstance(error_term, bool):
            raise ValueError(f"error_term is True or False in these studies, not {error_term!r}")
        self.error_term, self.batch_size = error_term, batch_size
        device = self.model.device
        self.ids = ids.to(device)
        self.tokens = _tokens(ids, attention_mask).to(device)
        self._attention = None if attention_mask is None else attention_mask.to(device)
        self.chosen = _chosen(self.tokens, positions)
        if not special_tokens and self.model.special_token_ids:
            special = torch.tensor(sorted(self.model.special_token_ids), device=device)
            self.chosen &= ~torch.isin(self.ids, special)
        self._baselines = [torch.zeros(site.dictionary.d_sae, dtype=torch.float64) for site in self.sites]
        nothing = [(prompt, Removed({})) for prompt in range(self.num_prompts)]
        self.before = self.measure(nothing)  # float64, [P]
        self.active = self._read()
        self._baselines = self._values_of(baseline)
        self.baseline = baseline if isinstance(baseline, str) else "given"

    @property
    def num_prompts(self) -> int:
        return len(self.ids)

    @property
    def conditions(self) -> str:
        """What was done, for people."""
        kept = "the error term kept" if self.error_term else "without the error term, in all passes"
        value = {"zero": "0", "mean": "their mean over these prompts"}.get(self.baseline, "values that were given")
        return f"removed features are set to {value}, {kept}"

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Whether the means of a metric ``[P]`` under two conditions differ by no more than rounding makes them."""
        scale = max(1.0, float(a.abs().max()), float(b.abs().max()))
        eps = torch.finfo(torch.promote_types(self.model.dtype, torch.float32)).eps
        return abs(float(a.mean() - b.mean())) <= 16 * eps * scale

    def baseline_of(self, site: int) -> Tensor:
        """Of every feature of a site, float64 ``[d_sae]``."""
        return self._baselines[site]

    def nodes(self, named: Named | None) -> list[tuple[int, int]]:
        """Features as (number of the site, feature); all that are active by default, in order.

        Raises:
            ValueError: a feature that is none, at no site of these, or named twice.
        """
        if named is None:
            return [(i, feature) for i, each in enumerate(self.active) for feature in each.feature.unique().tolist()]
        entries = named.tolist() if isinstance(named, Tensor) else list(named)
        found = [self._node(entry) for entry in entries]
        twice = [node for node, count in Counter(found).items() if count > 1]
        if twice:
            raise ValueError(f"{self.node(twice[0])} is named twice")
        return found

    def _node(self, entry: object) -> tuple[int, int]:
        if isinstance(entry, Node):
            if entry.site not in self.sites:
                raise ValueError(f"{entry} is at none of the sites that are studied: {', '.join(map(str, self.sites))}")
            number, feature = self.sites.index(entry.site), entry.feature
        elif len(self.sites) > 1:
            raise ValueError(
                f"there are {len(self.sites)} sites: name features as Node(site, feature), not as {entry!r}"
            )
        else:
            number, feature = 0, entry  # type: ignore[assignment]
        return number, self.sites[number].check_feature(feature)

    def node(self, found: tuple[int, int]) -> Node:
        return Node(self.sites[found[0]], found[1])

    @torch.no_grad()
    def measure(self, jobs: Iterable[tuple[int, Removed]]) -> Tensor:
        """The metric of each job, a prompt with what is removed; float64 ``[number of jobs]``, ``batch_size`` at a time.

        Raises:
            ValueError: the metric is no finite number.
        """
        found, jobs = [torch.zeros(0, dtype=torch.float64)], list(jobs)
        for first in range(0, len(jobs), self.batch_size):
            found.append(self._pass(jobs[first : first + self.batch_size]))
        return torch.cat(found)

    def _pass(self, jobs: Sequence[tuple[int, Removed]]) -> Tensor:
        rows = torch.tensor([prompt for prompt, _ in jobs], device=self.ids.device)  # [R]
        changes = []
        for number, site in enumerate(self.sites):
            codes = None
            if any(removed.touches(number) for _, removed in jobs):
                masks = torch.stack([removed.mask(number, site.dictionary.d_sae) for _, removed in jobs])
                codes = partial(_without, masks.to(self.ids.device)[:, None], self._baselines[number])
            if codes is not None or not self.error_term:
                changes.append(self._splice(site, rows, codes))
        with Intervention(changes) if changes else nullcontext():
            logits = self._logits(rows)
        values = self.metric.of_rows(rows)(logits, self.tokens[rows])
        if values.shape != rows.shape:
            raise ValueError(
                f"the metric {self.metric} gives {tuple(values.shape)} for {len(rows)} prompts, not one each"
            )
        wrong = ~torch.isfinite(values)
        if bool(wrong.any()):
            job = int(wrong.nonzero()[0])
            removed = "nothing is" if jobs[job][1] == Removed({}) else "features are"
            raise ValueError(
                f"the metric {self.metric} is {float(values[job])} for prompt {jobs[job][0]} when {removed} removed; "
                "a model, a dictionary or a baseline makes numbers that are none"
            )
        return values.double().cpu()

    def _splice(self, site: Site, rows: Tensor, codes: partial[Tensor] | None) -> Splice:
        return Splice(
            site, error_term=self.error_term, codes=codes, positions=self.chosen[rows], special_tokens=True
        )  # ``chosen`` has special tokens only where they are wanted

    def _logits(self, rows: Tensor) -> Tensor:
        return self.model.logits(
            self.ids[rows], attention_mask=None if self._attention is None else self._attention[rows]
        )

    @torch.no_grad()
    def _read(self) -> list[Active]:
        """The features of the pass with nothing removed."""
        pairs: list[list[Tensor]] = [[] for _ in self.sites]
        sums = [torch.zeros(site.dictionary.d_sae, dtype=torch.float64) for site in self.sites]
        for rows in torch.arange(self.num_prompts, device=self.ids.device).split(self.batch_size):
            prompt = rows[:, None].expand_as(self.chosen[rows])[self.chosen[rows]]  # of each token in question
            for number, codes in enumerate(self._codes(rows)):
                firings = codes.firings()
                keys = prompt[firings.token] * codes.d_sae + firings.feature
                pairs[number].append(keys.unique().cpu())
                sums[number].index_add_(0, firings.feature.cpu(), firings.value.cpu().double())
        count = max(1, int(self.chosen.sum()))
        active = []
        for site, keys, total in zip(self.sites, map(torch.cat, pairs), sums, strict=True):
            d_sae = site.dictionary.d_sae
            active.append(Active(keys // d_sae, keys % d_sae, total / count))
        return active

    def _codes(self, rows: Tensor) -> list[SparseCodes]:
        """Of each site, at the tokens in question."""
        chosen = self.chosen[rows]
        if self.error_term:
            attention = None if self._attention is None else self._attention[rows]
            readings = read_features(self.sites, self.ids[rows], attention_mask=attention, special_tokens=True)
            kept = [(reading.codes, chosen[reading.tokens]) for reading in readings]
            return [SparseCodes(codes.indices[keep], codes.values[keep], codes.d_sae) for codes, keep in kept]
        seen: dict[int, Tensor] = {}  # what is read depends on the splices before it
        with Intervention(
            [self._splice(site, rows, partial(_noted, seen, number)) for number, site in enumerate(self.sites)]
        ):
            self._logits(rows)
        return [SparseCodes.from_dense(seen[number][chosen]) for number in range(len(self.sites))]

    def _values_of(self, baseline: Baseline) -> list[Tensor]:
        if isinstance(baseline, str):
            if baseline not in ("zero", "mean"):
                raise ValueError(f'baseline is "zero", "mean", or values for each feature, not {baseline!r}')
            return [each.mean if baseline == "mean" else torch.zeros_like(each.mean) for each in self.active]
        given = [baseline] if isinstance(baseline, Tensor) else list(baseline)
        if len(given) != len(self.sites):
            raise ValueError(f"there are baselines for {len(given)} sites, and {len(self.sites)} sites")
        for site, values in zip(self.sites, given, strict=True):
            if values.shape != (site.dictionary.d_sae,) or not bool(torch.isfinite(values).all()):
                raise ValueError(
                    f"the baseline at {site} is one finite number for each of its {site.dictionary.d_sae} features, not "
                    f"{tuple(values.shape)}" + ("" if torch.isfinite(values).all() else " with numbers that are none")
                )
        return [values.detach().double().cpu() for values in given]


def _without(masks: Tensor, baseline: Tensor, f: Tensor) -> Tensor:
    return torch.where(masks, baseline.to(f.device).to(f.dtype), f)  # [R, T, d_sae]


def _noted(seen: dict[int, Tensor], number: int, f: Tensor) -> Tensor:
    seen[number] = f
    return f


def _the_model(sites: tuple[Site, ...]) -> LanguageModel:
    if not sites or not all(isinstance(site, Site) for site in sites):
        raise ValueError("features are removed at sites: give one Site or several")
    if len(set(sites)) < len(sites):
        raise ValueError("a site is named twice; name it once")
    if any(site.model is not sites[0].model for site in sites):
        raise ValueError("features of different models can not be removed together; study one model at a time")
    return sites[0].model


def _fitting(metric: Metric, model: LanguageModel, ids: Tensor) -> Metric:
    if not isinstance(metric, Metric):
        raise ValueError(
            f"a metric such as logit(token) or cross_entropy(ids) is needed, not {type(metric).__name__}; your own is a "
            "subclass of Metric"
        )
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        shown = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"prompts are token ids [prompts, tokens], at least one, not {shown}")
    metric.require_fit(model, len(ids))
    return metric


def _tokens(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if attention_mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, the prompts have {tuple(ids.shape)}; they must "
            "agree"
        )
    return attention_mask.bool()


def _chosen(tokens: Tensor, positions: Tensor | None) -> Tensor:
    if positions is None:
        return tokens.clone()
    fits = isinstance(positions, Tensor) and positions.dtype == torch.bool
    if not fits or positions.shape not in (tokens.shape, tokens.shape[1:], (1, tokens.shape[1])):
        shown = f"{positions.dtype} {tuple(positions.shape)}" if isinstance(positions, Tensor) else repr(positions)
        raise ValueError(
            f"positions are a bool mask [tokens] or [prompts, tokens] over prompts of shape {tuple(tokens.shape)}, or None "
            f"for all tokens; not {shown}"
        )
    return tokens & positions.to(tokens.device)
