"""The command: which studies, with how many processes, and where results and page go."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from reproductions.page import Outcome, bars_table, draw, outcome, page, results_table
from reproductions.running import ROOT, Store, code_hash, key, run_missing
from reproductions.study import Study

RESULTS = ROOT / "reproductions" / "results"
PAGE = ROOT / "docs" / "reproductions.md"


def main(studies: Sequence[Study], arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a bar or a run of the chosen studies failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m reproductions", description="Run small published results again.")
    parser.add_argument("numbers", nargs="*", type=int, help="studies, by number; all where left out")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--page-only", action="store_true", help="write page and pictures from stored results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    unknown = set(options.numbers) - {study.number for study in studies}
    if unknown or options.jobs < 1:
        known = ", ".join(str(study.number) for study in studies)
        parser.error(f"studies are {known}, and --jobs is at least 1")
    chosen = [study for study in studies if not options.numbers or study.number in options.numbers]
    if options.list:
        for study in chosen:
            print(f"{study.number}. {study.title}: {_to_run(study, options.results)} of {len(study.runs)} runs to make")
        return 0
    started = time.perf_counter()
    outcomes = []
    for study in chosen:
        outcomes.append(_one(study, options.results, options.jobs, compute=not options.page_only))
    write_page(studies, options.results, options.page)
    if not options.page_only:
        print(f"{time.perf_counter() - started:,.0f} s in all; the page is {options.page}")
    for o in outcomes:
        print(f"{o.study.number}. {o.study.title}: {o.word}")
    return 0 if all(o.holds for o in outcomes) else 1


def stored(study: Study, results: Path) -> Outcome:
    """The outcome of a study's results on disk."""
    return outcome(study, Store(results / f"{study.name}.json").of(study, code_hash(study.file)))


def write_page(studies: Sequence[Study], results: Path, target: Path) -> None:
    """The page of all studies, and a picture of each that has results."""
    outcomes = [stored(study, results) for study in studies]
    for o in outcomes:
        if o.results.results:
            draw(o, target.parent / target.stem / f"{o.study.name}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(outcomes, target.stem))


def _one(study: Study, results: Path, jobs: int, *, compute: bool) -> Outcome:
    print(f"{study.number}. {study.title}", flush=True)
    started = time.perf_counter()
    if compute:
        store = Store(results / f"{study.name}.json")
        run_missing(study, store, code_hash(study.file), jobs=jobs, say=lambda line: print(line, flush=True))
    o = stored(study, results)
    wall = time.perf_counter() - started
    print(f"\n{results_table(o)}\n{bars_table(o)}")
    print(f"{o.word}: {o.seconds:,.0f} CPU seconds for {len(study.runs)} runs, {wall:,.0f} s now\n", flush=True)
    return o


def _to_run(study: Study, results: Path) -> int:
    store, code = Store(results / f"{study.name}.json"), code_hash(study.file)
    known = (store.results.get(key(run, code)) for run in study.runs)
    return sum(result is None or bool(result.error) for result in known)
