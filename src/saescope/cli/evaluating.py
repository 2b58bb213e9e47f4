"""Evaluating dictionaries as the commands do it: each with what it was trained on, results found again, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from saescope import __version__
from saescope.cli.opening import metadata_of, open_dictionary
from saescope.cli.progress import progress
from saescope.cli.run import as_records, load_model, load_windows, with_dead_share
from saescope.cli.setting import Setting
from saescope.dictionaries import Dictionary
from saescope.evaluation.bench import Bench, BenchConfig, Progress
from saescope.evaluation.kept_results import KeptResults
from saescope.evaluation.reporting.report import EvaluatedDictionary, EvaluationReport, write_report_json
from saescope.evaluation.sites import Sites
from saescope.evaluation.studies import CONSISTENCY, Study, run_consistency, run_controls, run_studies
from saescope.store import Store

_SPARSITIES = ("k", "target_l0", "l0_coefficient", "l1_coefficient", "sparsity_coefficient")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A dictionary that is to be evaluated."""

    name: str
    path: Path
    setting: Setting
    sparsity: str = ""  # "": what its recipe says
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> tuple[Any, ...]:
        """What dictionaries must share to be measured with the same activations."""
        s = self.setting
        return (s.model, s.reads, s.hook_point_out, s.held_out, s.windows)


def candidates(
    named: Mapping[str, tuple[Path, Setting]], sparsities: Mapping[str, str] | None = None
) -> list[Candidate]:
    """Dictionaries with what their files say of them.

    Raises:
        ValueError: one of them has no held-out text.
    """
    found = []
    for name, (path, setting) in named.items():
        if setting.held_out is None:
            raise ValueError(f"{name}: which split of {setting.dataset.name} is held out? Name it with --split")
        metadata = metadata_of(path)
        found.append(
            Candidate(
                name=name, path=path, setting=setting, sparsity=(sparsities or {}).get(name, ""), metadata=metadata
            )
        )
    return found


def evaluate_candidates(
    wanted: Sequence[Candidate],
    studies: Sequence[Study],
    console: Console,
    *,
    kept: KeptResults | None,
    config: BenchConfig | None = None,
    training_seconds: float | None = None,
    notes: Sequence[str] = (),
    advice: str = "",
) -> EvaluationReport:
    """Every study of every dictionary, as one report. Dictionaries at one place share text, baselines and activations."""
    started = time.perf_counter()
    found: dict[str, EvaluatedDictionary] = {}
    opened: dict[str, Dictionary] = {}
    for place in dict.fromkeys(candidate.place for candidate in wanted):
        group = [candidate for candidate in wanted if candidate.place == place]
        setting = group[0].setting
        assert setting.held_out is not None
        model = load_model(setting.model)
        windows = load_windows(model, setting.held_out, setting.windows, console)
        bench: Bench | None = None
        for number, candidate in enumerate(group, start=1):
            which = f"{candidate.name} ({number} of {len(group)})" if len(group) > 1 else candidate.name
            dictionary = open_dictionary(candidate.path)
            sites = Sites.of(
                dictionary,
                model,
                setting.reads[0] if len(setting.reads) == 1 else setting.reads,
                setting.hook_point_out or None,
            )
            if bench is None:
                bench = Bench(model, windows, sites, config or _bench_config(setting))
            with progress(console, which, "studies") as update:
                results = run_studies(dictionary, bench, studies, kept=kept, on_progress=_told(bench, update))
            if "core" in results and not results["core"].failure:
                results["core"] = with_dead_share(results["core"], candidate.metadata)
            failed = [name for name, result in results.items() if result.failure]
            seconds = sum(result.seconds for result in results.values())
            remark = f"; FAILED: {', '.join(failed)}" if failed else ""
            console.print(f"{which}: {len(results)} studies, {seconds:.0f} s{remark}", highlight=False, soft_wrap=True)
            opened[candidate.name] = dictionary
            found[candidate.name] = _evaluated(candidate, dictionary, results)
    _add_consistency(found, opened, wanted, kept, console)
    with progress(console, "checking studies on known truth", "studies") as update:
        unreliable = run_controls(studies, kept=kept, on_progress=lambda title, done, total: update(done, total, title))
    first = wanted[0].setting
    took = {} if training_seconds is None else {"training": training_seconds}
    took["studies"] = time.perf_counter() - started
    return EvaluationReport(
        dictionaries=tuple(found[candidate.name] for candidate in wanted),
        notes=tuple(notes),
        context={
            "model": first.model.name,
            "hook_point": ", ".join(first.reads),
            "held_out": vars(first.held_out) if first.held_out else None,
            "code_version": __version__,
        },
        unreliable=unreliable,
        seconds=took,
        advice=advice,
    )


def write_report(report: EvaluationReport, folder: Path) -> list[Path]:
    """``report.json``, ``report.html``, ``report.md`` and pictures in a folder."""
    from saescope.evaluation.reporting.plots import plot_report
    from saescope.evaluation.reporting.summary import summarise
    from saescope.web.evaluation_markdown import write_evaluation_markdown
    from saescope.web.evaluation_page import write_evaluation_page

    summary = summarise(report)
    written = write_report_json(report, folder / "report.json", summary=summary)
    drawn = plot_report(report, folder / "plots")
    page, text = folder / "report.html", folder / "report.md"
    pictures = [picture.as_dict() for picture in drawn]
    write_evaluation_page(page, report.as_dict(), summary, pictures=pictures)
    write_evaluation_markdown(text, report.as_dict(), summary, pictures=pictures)
    return [written, page, text, *[picture.path for picture in drawn]]


def write_saebench_core(wanted: Sequence[Candidate], console: Console, folder: Path, config: BenchConfig) -> list[Path]:
    """Core results by SAEBench's definitions, in its format, a file for each dictionary."""
    from saescope.evaluation.saebench.files import saebench_core, saebench_json, write_saebench

    written = []
    for candidate in wanted:
        setting = candidate.setting
        assert setting.held_out is not None
        model = load_model(setting.model)
        windows = load_windows(model, setting.held_out, setting.windows, console)
        with progress(console, f"{candidate.name} as SAEBench measures", "batches") as update:
            found = saebench_core(
                open_dictionary(candidate.path),
                model,
                windows,
                setting.reads[0],
                compat=True,
                num_tokens=config.num_tokens or windows.num_tokens,
                num_tokens_reconstruction=config.num_tokens or windows.num_tokens,
                dataset=setting.held_out.name,
                on_progress=lambda done, total: update(done, total, ""),
            )
        sae_cfg = {key: value for key, value in candidate.metadata.items() if key != "saescope"}
        envelope = saebench_json("core", **found, release=candidate.name, sae_cfg=sae_cfg)
        written.append(write_saebench(folder, envelope, overwrite=True))
    return written


def write_to_store(report: EvaluationReport, address: str) -> list[str]:
    """Every number to the dictionaries of these names in a store; what was done, in words.

    Raises:
        ValueError: the store has none of them.
    """
    with Store.open(address) as store:
        known = {record.name for record in store.dictionaries()}
        present = [evaluated for evaluated in report.dictionaries if evaluated.name in known]
        if not present:
            names = ", ".join(evaluated.name for evaluated in report.dictionaries)
            raise ValueError(f"{address} has no dictionary named {names}; analyze one into it first: saescope analyze")
        said = []
        for evaluated in present:
            results = [record for result in evaluated.studies.values() for record in as_records(result)]
            store.add_evaluations(evaluated.name, results)
            said.append(f"{len(results)} numbers of {evaluated.name} written to {address}")
        absent = [evaluated.name for evaluated in report.dictionaries if evaluated.name not in known]
        return [*said, *(f"{name} is not in {address}; analyze it first: saescope analyze" for name in absent)]


def sparsity_of(metadata: Mapping[str, Any]) -> str:
    """The setting of sparsity in words, from the recipe that a dictionary was trained by; "" where none is known."""
    run = metadata.get("saescope", {}).get("run") or {}
    settings = {**run.get("loss", {}), **run.get("dictionary", {})}
    return next((f"{name} = {settings[name]:g}" for name in _SPARSITIES if settings.get(name) is not None), "")


def _told(bench: Bench, update: Callable[[int, int, str], None]) -> Progress:
    """Progress over studies, with the study in hand, and the part of the bench that it waits for, as the remark."""
    at = [0, 1]

    def of_study(title: str, done: int, total: int) -> None:
        at[:] = done, total
        update(done, total, title)

    bench.on_progress = lambda what, done, total: update(at[0], at[1], f"{what} {100 * done // total} %")
    return of_study


def _bench_config(setting: Setting) -> BenchConfig:
    return replace(BenchConfig(), num_tokens=setting.evaluation.num_tokens)


def _evaluated(candidate: Candidate, dictionary: Dictionary, results: Mapping[str, Any]) -> EvaluatedDictionary:
    run = candidate.metadata.get("saescope", {}).get("run") or {}
    return EvaluatedDictionary(
        name=candidate.name,
        architecture=dictionary.architecture,
        d_sae=dictionary.d_sae,
        seed=run.get("dictionary", {}).get("seed", run.get("seed")),
        sparsity=candidate.sparsity or sparsity_of(candidate.metadata),
        studies=results,
    )


def _add_consistency(
    found: dict[str, EvaluatedDictionary],
    opened: Mapping[str, Dictionary],
    wanted: Sequence[Candidate],
    kept: KeptResults | None,
    console: Console,
) -> None:
    """Compare dictionaries that differ by their seed alone with each other; each of them shows the result."""
    groups: dict[Any, list[str]] = {}
    for candidate in wanted:
        about = found[candidate.name]
        groups.setdefault((candidate.place, about.architecture, about.d_sae, about.sparsity), []).append(candidate.name)
    for names in groups.values():
        seeds = {found[name].seed for name in names}
        if len(names) < 2 or None in seeds or len(seeds) < len(names):
            continue
        cores = [found[name].studies["core"] for name in names if "core" in found[name].studies]
        result = run_consistency({name: opened[name] for name in names}, cores, kept=kept)
        for name in names:
            found[name] = replace(found[name], studies={**found[name].studies, CONSISTENCY: result})
    if any(CONSISTENCY in about.studies for about in found.values()):
        console.print("seeds compared with each other", highlight=False)
