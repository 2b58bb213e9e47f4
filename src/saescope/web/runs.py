"""Training runs: curves of one or several, live while they train, and what evaluations said of the dictionaries."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, StringConstraints

from saescope.store import DictionaryRecord
from saescope.store.errors import NotInStoreError
from saescope.web.evaluated import metric_words, plot_of, table_rows
from saescope.web.run_files import FoundRun, Metrics, find_runs, planned_tokens, seconds_since_written
from saescope.web.site import Site

MOST_SHOWN = 8  # runs at once: as many can be told apart
_FIRST_SHOWN = 4
_MOST_DICTIONARIES = 200  # of which evaluations are shown
_MOST_COLUMNS = 24  # of the table
_MOST_KEPT = 64  # files whose rows are kept in memory
_SEARCH_SECONDS = 5.0  # between two looks for runs
_LIVE_SECONDS = 120.0  # since the last line of a run that is taken to be training
_PLOTS = (("l0", "explained_variance"), ("l0", "ce_loss_recovered"))

RunId = Annotated[str, StringConstraints(max_length=12)]
RunIds = Annotated[list[RunId] | None, Query(max_length=MOST_SHOWN)]
_NAMES = {
    "loss": "Loss",
    "explained_variance": "Explained variance",
    "l0": "L0, features per token",
    "dead_share": "Dead share",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient",
    "tokens_per_second": "Tokens per second",
    "num_skipped_steps": "Steps skipped",
}


class RunState(BaseModel):
    """A training run and how far it is."""

    id: str
    name: str
    dictionaries: list[str]
    """In the store, that came out of it."""
    num_planned_tokens: int | None
    seconds_since_written: float | None
    is_live: bool


class RunCurve(BaseModel):
    """A title, and lists of one length; null for what is no finite number."""

    title: str
    step: list[float | None]
    num_tokens: list[float | None]
    value: list[float | None]


class RunMetrics(RunState):
    """Curves of a run."""

    version: str
    """Changes when points that were given before are no longer true."""
    num_rows: int
    """Lines read so far."""
    num_damaged: int
    """Lines that could not be read."""
    last: dict[str, float | None]
    curves: dict[str, RunCurve]


class Runs:
    """The runs of a site. Any thread may ask."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._found: list[FoundRun] = []
        self._looked_at = -float("inf")
        self._metrics: OrderedDict[str, Metrics] = OrderedDict()

    def all(self) -> list[FoundRun]:
        """Runs that are there now, or were some seconds ago."""
        with self._lock:
            if time.monotonic() - self._looked_at > _SEARCH_SECONDS:
                records = self._site.store.dictionaries()
                sources = [(record.name, record.details.get("source")) for record in records]
                named = [(name, source) for name, source in sources if isinstance(source, str)]
                self._found = find_runs(self._site.run_folders, named)
                self._looked_at = time.monotonic()
            return list(self._found)

    def chosen(self, ids: list[str]) -> list[FoundRun]:
        """Runs by their identities, in this order."""
        known = {run.id: run for run in self.all()}
        for identity in ids:
            if identity not in known:
                raise NotInStoreError(f"there is no training run {identity!r}; /runs lists those that were found")
        return [known[identity] for identity in dict.fromkeys(ids)]

    def newest(self) -> list[FoundRun]:
        """Some that were written last."""
        ages = [(seconds_since_written(run.file), run) for run in self.all()]
        there = sorted([pair for pair in ages if pair[0] is not None], key=lambda pair: (pair[0], pair[1].id))
        return sorted((run for _, run in there[:_FIRST_SHOWN]), key=lambda run: (run.name, run.id))

    def metrics(self, run: FoundRun) -> Metrics:
        """The numbers of a run, read as far as they are written."""
        with self._lock:
            metrics = self._metrics.pop(run.id, None) or Metrics(run.file)
            self._metrics[run.id] = metrics
            while len(self._metrics) > _MOST_KEPT:
                self._metrics.popitem(last=False)
        metrics.read()
        return metrics

    @staticmethod
    def state(run: FoundRun) -> RunState:
        """What is known without reading its numbers."""
        age = seconds_since_written(run.file)
        return RunState(
            id=run.id,
            name=run.name,
            dictionaries=list(run.dictionaries),
            num_planned_tokens=planned_tokens(run.folder),
            seconds_since_written=age,
            is_live=age is not None and age < _LIVE_SECONDS,
        )


def routes(site: Site) -> APIRouter:
    """``/runs``, a dictionary's ``training``, their twins, and the curves of a run."""
    router, runs = APIRouter(), Runs(site)

    @router.get("/api/runs/metrics", tags=["runs"])
    def api_metrics(
        run: Annotated[RunId, Query()],
        after: Annotated[float | None, Query(ge=-(2**53), le=2**53, allow_inf_nan=False)] = None,
    ) -> RunMetrics:
        """The curves of a run: about 1,000 points of each, or with `after` all points beyond that step."""
        (found,) = runs.chosen([run])
        metrics = runs.metrics(found)
        points = metrics.curves(after)
        curves = {
            name: RunCurve.model_validate({"title": curve_title(name), **points[name]})
            for name in curve_names(list(points))
        }
        return RunMetrics(
            **runs.state(found).model_dump(),
            version=metrics.version,
            num_rows=metrics.num_rows,
            num_damaged=metrics.num_damaged,
            last=_finite(metrics.last()),
            curves=curves,
        )

    @router.get("/api/runs", tags=["runs"])
    def api_runs(run: RunIds = None) -> dict[str, Any]:
        """Training runs that were found, those shown with their last numbers, and evaluations of all dictionaries."""
        return _as_json(_page(runs, _selected(runs, run), runs.all(), _evaluations(site)))

    @router.get("/runs", response_class=HTMLResponse, include_in_schema=False)
    def page_runs(run: RunIds = None) -> str:
        page = _page(runs, _selected(runs, run), runs.all(), _evaluations(site))
        return site.render("runs.html", **page)

    @router.get("/api/d/{name:path}/training", tags=["runs"])
    def api_training(name: str) -> dict[str, Any]:
        """How a dictionary was trained, with which curves, and what evaluations said of it."""
        record = site.store.dictionary(name)
        return _as_json(_training(site, runs, record))

    @router.get("/d/{name:path}/training", response_class=HTMLResponse, include_in_schema=False)
    def page_training(name: str) -> str:
        record = site.store.dictionary(name)
        return site.render("training.html", dictionary=record, **_training(site, runs, record))

    return router


def _selected(runs: Runs, ids: list[str] | None) -> list[FoundRun]:
    """Those asked for; an empty identity stands for none, none at all for the newest."""
    return runs.newest() if ids is None else runs.chosen([identity for identity in ids if identity])


def _training(site: Site, runs: Runs, record: DictionaryRecord) -> dict[str, Any]:
    own = [run for run in runs.all() if record.name in run.dictionaries][:MOST_SHOWN]
    page = _page(runs, own, own, _evaluations(site), of=record.name)
    trained = site.store.runs(record.name)
    return {**page, "trained": [{**asdict(run), "flat": _flat(run.settings)} for run in trained]}


def _page(
    runs: Runs, selected: list[FoundRun], found: list[FoundRun], evaluations: dict[str, Any], of: str | None = None
) -> dict[str, Any]:
    """What both pages show, as the template needs it; `of` is the dictionary that the table is about, None for all."""
    read = [(run, runs.metrics(run)) for run in selected]
    names = curve_names([name for _, metrics in read for name in metrics.names])
    results = evaluations["results"]
    shown = {of: results.get(of, [])} if of is not None else dict(list(results.items())[:_MOST_COLUMNS])
    return {
        "runs": [runs.state(run) for run in found],
        "selected": [run.id for run, _ in read],
        "curves": [(name, curve_title(name), [metrics.last().get(name) for _, metrics in read]) for name in names],
        "progress": [(run.name, metrics.last(), metrics.num_rows, metrics.num_damaged) for run, metrics in read],
        "evaluated": shown,
        "rows": table_rows(shown),
        "plots": [plot for x, y in _PLOTS if (plot := plot_of(results, x, y)) is not None],
        "num_evaluated": len(results),
        "num_left_out": evaluations["num_left_out"],
        "of": of,
        "known": {run.id: {"name": run.name} for run in found},
        "most_shown": MOST_SHOWN,
        "metric_words": metric_words,
    }


def _evaluations(site: Site) -> dict[str, Any]:
    """Of the dictionaries that have any."""
    with site.store.one_state():
        names = [record.name for record in site.store.dictionaries()]
        found = {name: site.store.evaluations(name) for name in names[:_MOST_DICTIONARIES]}
    return {
        "results": {name: results for name, results in found.items() if results},
        "num_left_out": max(0, len(names) - _MOST_DICTIONARIES),
    }


def _as_json(page: dict[str, Any]) -> dict[str, Any]:
    """The page as JSON values; numbers as they are, None for what is not finite."""
    made = {
        "runs": [run.model_dump() for run in page["runs"]],
        "selected": page["selected"],
        "last": {identity: last for identity, (_, last, _, _) in zip(page["selected"], page["progress"], strict=True)},
        "evaluations": {name: [asdict(result) for result in results] for name, results in page["evaluated"].items()},
        "plots": [
            {
                "x": plot.x,
                "y": plot.y,
                "points": [{"dictionary": p.name, "x": p.x.value, "y": p.y.value} for p in plot.points],
            }
            for plot in page["plots"]
        ],
    }
    if "trained" in page:
        made["trained"] = [{key: value for key, value in run.items() if key != "flat"} for run in page["trained"]]
    return made


def curve_names(names: list[str]) -> list[str]:
    """Each once: those of every run in their order, then what else there is as it comes."""
    known = [name for name in _NAMES if name in names]
    return known + [name for name in dict.fromkeys(names) if name not in _NAMES]


def curve_title(name: str) -> str:
    """A curve's name in words."""
    if name.startswith("parts."):
        return f"Part of the loss: {name.removeprefix('parts.')}"
    return _NAMES.get(name, name.replace("_", " "))


def _flat(settings: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Settings inside settings under names with dots; what is empty is left out."""
    flat: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{before}{name}.")
        elif value not in (None, "", []):
            flat.append((before + name, value))
    return flat


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """None for what JSON can not say; older versions of FastAPI fail there."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
