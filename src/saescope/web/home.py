"""The first page: every dictionary of the store at a glance, by series, and its JSON twin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response

from saescope.store import AnalysisRecord, DictionaryRecord, EvaluationResult, Summary
from saescope.web.drawing import Chart, chart
from saescope.web.numbers import decimal, percent, whole
from saescope.web.site import Site
from saescope.web.summaries import Summaries

_METRICS = {  # names that evaluations give a number, the first that is there counts
    "explained_variance": ("explained_variance",),
    "l0": ("l0",),
    "loss_recovered": ("ce_loss_recovered", "loss_recovered"),
}
_FIRST_STUDY = "core"  # whose numbers go before those of other studies made at the same time


@dataclass(frozen=True, kw_only=True)
class Glance:
    """A dictionary as the first page shows it."""

    dictionary: DictionaryRecord
    analyses: tuple[AnalysisRecord, ...]
    """The newest first."""
    summary: Summary | None
    """Of the newest analysis; None where there is none."""
    numbers: dict[str, EvaluationResult]
    """The newest number of each of `explained_variance`, `l0`, `loss_recovered`, as far as it was measured."""

    @property
    def chart(self) -> Chart | None:
        """Features that fire, by their density."""
        return None if self.summary is None else chart(self.summary.log_density, logarithmic=False, num_ticks=3)

    @property
    def chart_words(self) -> str:
        """The same for whoever does not see it."""
        assert self.summary is not None
        drawn = self.chart
        if drawn is None:
            return "No feature fires."
        median = dict(self.summary.density_quantiles)[0.5]
        firing = self.summary.num_features - self.summary.num_dead
        return (
            f"Histogram of the densities of the {whole(firing)} features that fire, on a logarithmic scale from "
            f"{density(drawn.ticks[0][1])} to {density(drawn.ticks[-1][1])} of the tokens; half of them fire on "
            f"at most {percent(median)}, the highest bar counts {whole(drawn.highest)}"
        )


def density(log10: float) -> str:
    """A density that is given by its logarithm: one significant digit is where an edge lies."""
    return percent(10**log10, 1)


def newest(evaluations: Iterable[EvaluationResult]) -> dict[str, EvaluationResult]:
    """Of each number on the first page the newest that has a value."""
    known = [result for result in evaluations if result.value is not None]

    def rank(result: EvaluationResult) -> tuple[str, bool]:
        return result.created_at, result.study == _FIRST_STUDY

    numbers = {}
    for name, metrics in _METRICS.items():
        for metric in metrics:
            found = [result for result in known if result.metric == metric]
            if found:
                numbers[name] = max(found, key=rank)
                break
    return numbers


def words_of(result: EvaluationResult) -> str:
    """What stands behind a number: its exact value, interval, study, definition and date."""
    parts = [f"{result.value}"]
    if result.low is not None and result.high is not None:
        parts[0] += f", interval {decimal(result.low, 6)} to {decimal(result.high, 6)}"
    parts.append(f"study {result.study}" + (f" ({result.variant})" if result.variant else ""))
    if result.created_at:
        parts.append(f"measured on {result.created_at[:10]}")
    return "; ".join(parts)


def glances(site: Site, summaries: Summaries) -> list[Glance]:
    """All dictionaries of the store, by name."""
    found = []
    with site.store.one_state():
        for dictionary in site.store.dictionaries():
            analyses = tuple(reversed(site.store.analyses(dictionary.name)))
            summary = summaries.get(dictionary.name) if analyses else None
            evaluations = site.store.evaluations(dictionary.name)
            found.append(Glance(dictionary=dictionary, analyses=analyses, summary=summary, numbers=newest(evaluations)))
    return found


def by_series(found: Iterable[Glance]) -> list[tuple[str, list[Glance]]]:
    """Series by name, those without one last."""
    groups: dict[str, list[Glance]] = {}
    for glance in found:
        groups.setdefault(glance.dictionary.series, []).append(glance)
    return sorted(groups.items(), key=lambda group: (not group[0], group[0]))


def _as_json(glance: Glance) -> dict[str, Any]:
    summary = None if glance.summary is None else asdict(glance.summary)
    for name in ("dictionary", "analysis", "evaluations", "runs"):  # said beside it, or long
        if summary is not None:
            del summary[name]
    return {
        "dictionary": asdict(glance.dictionary),
        "analyses": [asdict(analysis) for analysis in glance.analyses],
        "summary": summary,
        "numbers": {name: asdict(result) for name, result in glance.numbers.items()},
    }


def routes(site: Site) -> APIRouter:
    """The page and its JSON twin."""
    router = APIRouter()
    summaries = Summaries.of(site.store)

    @router.get("/", include_in_schema=False)
    def home() -> Response:
        groups = by_series(glances(site, summaries))
        return HTMLResponse(site.render("home.html", groups=groups, density=density, words_of=words_of))

    @router.get("/api/dictionaries", tags=["dictionaries"], summary="All dictionaries at a glance")
    def dictionaries() -> JSONResponse:
        return JSONResponse({"dictionaries": [_as_json(glance) for glance in glances(site, summaries)]})

    return router
