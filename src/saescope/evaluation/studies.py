"""Every study by name, and the runner: what was made before is found again, what fails is reported as failed.

A study looks at one dictionary on a :class:`Bench`. Studies that need nothing but activations and labels also run on
synthetic worlds whose truth is known, with the true dictionary and with a random one: a number that does not put the true
one first can not rank dictionaries, and is marked wherever it is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from saescope.dictionaries import Dictionary
from saescope.evaluation.absorption.first_letter import FirstLetterConfig, first_letter
from saescope.evaluation.absorption.splitting import SplittingConfig, splitting
from saescope.evaluation.absorption.study import AbsorptionConfig, Hierarchy, absorption
from saescope.evaluation.bench import Bench, Progress
from saescope.evaluation.concepts.concept_f1 import ConceptConfig, concept_f1
from saescope.evaluation.concepts.cones import ConeConfig, concept_cones
from saescope.evaluation.controls import controls, marks
from saescope.evaluation.core.study import evaluate, evaluate_activations
from saescope.evaluation.core.weights import require_finite
from saescope.evaluation.kept_results import KeptResults, digest_of_code, digest_of_tensors, key_of, source_of
from saescope.evaluation.l0.advice import judge_l0
from saescope.evaluation.matching.consistency import ConsistencyConfig, consistency
from saescope.evaluation.meta_structure import MetaStructureConfig, meta_structure
from saescope.evaluation.probing.studies import ProbingConfig, probe_features
from saescope.evaluation.removal.perturbation import tpp
from saescope.evaluation.removal.settings import RemovalConfig
from saescope.evaluation.removal.spurious import LEAST_IN_QUADRANT, pairs_with_quadrants, scr
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.world import World
from saescope.evaluation.world import world as draw_world

_MOST_PAIRS = 4  # of labels, in spurious correlation removal


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as the runner knows it."""

    name: str
    title: str
    run: Callable[[Dictionary, Bench], StudyResult]
    in_world: Callable[[Dictionary, World], StudyResult] | None = None
    """The same where the truth is known; None where it needs a model."""


def _core(dictionary: Dictionary, bench: Bench) -> StudyResult:
    reads, writes = bench.sites.reads, bench.sites.writes
    return evaluate(
        dictionary,
        bench.model,
        bench.windows,
        reads[0] if len(reads) == 1 else reads,
        hook_point_out=None if writes == reads else writes[0],
        baselines=bench.baselines,
        seed=bench.config.seed,
    )


def _absorption(dictionary: Dictionary, bench: Bench) -> StudyResult:
    labels, hierarchies = bench.hierarchies
    config = AbsorptionConfig(seed=bench.config.seed)
    return absorption(dictionary, bench.sample, labels, hierarchies, config)


def _absorption_in_world(dictionary: Dictionary, world: World) -> StudyResult:
    hierarchies = [Hierarchy(parent, children) for parent, children in world.children.items()]
    return absorption(dictionary, world.sample, world.labels, hierarchies)


def _scr(dictionary: Dictionary, bench: Bench) -> StudyResult:
    pairs = pairs_with_quadrants(bench.labels)[:_MOST_PAIRS]
    if not pairs:
        raise ValueError(
            f"no two labels have {LEAST_IN_QUADRANT} tokens of each kind (both, either alone, neither) in the sample; read "
            "more text"
        )
    return scr(dictionary, bench.sample, bench.labels, pairs, config=RemovalConfig(seed=bench.config.seed))


def _scr_in_world(dictionary: Dictionary, world: World) -> StudyResult:
    return scr(dictionary, world.sample, world.concepts, pairs_with_quadrants(world.concepts)[:_MOST_PAIRS])


def _cones(dictionary: Dictionary, bench: Bench) -> StudyResult:
    config = ConeConfig(seed=bench.config.seed)
    return concept_cones(dictionary, bench.sample, bench.labels, config, directions=bench.directions)


def _first_letter(dictionary: Dictionary, bench: Bench) -> StudyResult:
    elsewhere = bench.sites.writes if bench.sites.writes != bench.sites.reads else ()
    config = FirstLetterConfig()
    seed = bench.config.seed
    config = replace(
        config, prompting=replace(config.prompting, seed=seed), absorption=replace(config.absorption, seed=seed)
    )
    return first_letter(dictionary, bench.model, bench.sites.reads, config, writes=elsewhere)


STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        Study(
            name="core",
            title="Reconstruction, sparsity, and what the model loses",
            run=_core,
            in_world=lambda d, world: evaluate_activations(d, world.sample),
        ),
        Study(
            name="l0",
            title="Is the L0 right? (decoder overlap and projections)",
            run=lambda d, bench: judge_l0(d, bench.sample),
            in_world=lambda d, world: judge_l0(d, world.sample),
        ),
        Study(
            name="probing",
            title="k-sparse probing for true labels",
            run=lambda d, bench: probe_features(d, bench.sample, bench.labels, ProbingConfig(seed=bench.config.seed)),
            in_world=lambda d, world: probe_features(d, world.sample, world.concepts),
        ),
        Study(
            name="concepts",
            title="Single features against true labels",
            run=lambda d, bench: concept_f1(d, bench.sample, bench.labels, ConceptConfig(seed=bench.config.seed)),
            in_world=lambda d, world: concept_f1(d, world.sample, world.labels),
        ),
        Study(
            name="splitting",
            title="How many features a label is split into",
            run=lambda d, bench: splitting(d, bench.sample, bench.labels, SplittingConfig(seed=bench.config.seed)),
            in_world=lambda d, world: splitting(d, world.sample, world.concepts),
        ),
        Study(
            name="absorption",
            title="Absorption on known hierarchies",
            run=_absorption,
            in_world=_absorption_in_world,
        ),
        Study(
            name="cones",
            title="Concept directions in the cone of the decoder",
            run=_cones,
            in_world=lambda d, world: concept_cones(d, world.sample, world.labels),
        ),
        Study(
            name="tpp",
            title="Targeted probe perturbation",
            run=lambda d, bench: tpp(d, bench.sample, bench.labels, config=RemovalConfig(seed=bench.config.seed)),
            in_world=lambda d, world: tpp(d, world.sample, world.concepts),
        ),
        Study(name="scr", title="Spurious correlation removal", run=_scr, in_world=_scr_in_world),
        Study(
            name="meta_structure",
            title="Are features made of smaller ones?",
            run=lambda d, bench: meta_structure(d, config=MetaStructureConfig(seed=bench.config.seed)),
            in_world=lambda d, world: meta_structure(d),
        ),
        Study(name="first_letter", title="Absorption of first letters", run=_first_letter),
    )
}
CONSISTENCY = "consistency"
"""The study of several seeds together; see :func:`run_consistency`."""


def chosen_studies(names: Sequence[str]) -> list[Study]:
    """Studies by name, in their own order; all of them for "all".

    Raises:
        ValueError: an unknown name; the known ones are listed.
    """
    for name in names:
        if name not in (*STUDIES, "all"):
            raise ValueError(f"no study is named {name!r}; there are all, {', '.join(STUDIES)}")
    return [study for study in STUDIES.values() if study.name in names or "all" in names]


def run_studies(
    dictionary: Dictionary,
    bench: Bench,
    studies: Sequence[Study],
    *,
    kept: KeptResults | None = None,
    on_progress: Progress | None = None,
) -> dict[str, StudyResult]:
    """Every study of one dictionary, by name: found among the kept results, or made and kept.

    A study that fails gives a result that says so; it is not kept, and the others go on.

    Args:
        on_progress: called with (title, studies done, studies in all).
    """
    found = {}
    weights = digest_of_tensors(dictionary.state_dict().items())
    source = source_of(type(dictionary))  # of a class of one's own
    kept = kept if source is not None else None
    about = (dictionary.architecture, dictionary.settings(), source)
    for done, study in enumerate(studies):
        if on_progress:
            on_progress(study.title, done, len(studies))
        key = key_of("study", study.name, weights, about, bench.digest, digest_of_code())
        found[study.name] = _found_or_made(study.name, key, kept, partial(_run, study, dictionary, bench))
    if on_progress and studies:
        on_progress(studies[-1].title, len(studies), len(studies))
    return found


def _run(study: Study, dictionary: Dictionary, bench: Bench) -> StudyResult:
    require_finite(dictionary)  # also by studies that read some of the weights alone
    return study.run(dictionary, bench)


def run_consistency(
    dictionaries: Mapping[str, Dictionary],
    cores: Sequence[StudyResult],
    *,
    kept: KeptResults | None = None,
    seed: int = 0,
) -> StudyResult:
    """How alike dictionaries are that differ by their seed alone.

    Args:
        cores: their core results, for densities and L0.
    """
    digests = [digest_of_tensors(dictionary.state_dict().items()) for dictionary in dictionaries.values()]
    measured = [core for core in cores if not core.failure]
    densities = [np.array(core.curves["features"]["density"], dtype=np.float64) for core in measured]
    if len(measured) < len(dictionaries):
        densities = []
    key = key_of("consistency", digests, seed, [density.tolist() for density in densities], digest_of_code())
    return _found_or_made(
        CONSISTENCY,
        key,
        kept,
        lambda: consistency(
            list(dictionaries.values()),
            names=list(dictionaries),
            densities=densities or None,
            l0=[float(core["l0"].value or 0) for core in measured] if densities else None,
            config=ConsistencyConfig(seed=seed),
        ),
    )


def run_controls(
    studies: Sequence[Study], *, kept: KeptResults | None = None, on_progress: Progress | None = None
) -> dict[str, str]:
    """Which numbers do not tell a true dictionary from a random one, and why, by ``study.number``."""
    found: dict[str, str] = {}
    worlds = {}

    def world_of(seed: int) -> World:
        if seed not in worlds:
            worlds[seed] = draw_world(seed)
        return worlds[seed]

    for done, study in enumerate(studies):
        if on_progress:
            on_progress(study.title, done, len(studies))
        if study.in_world is None:
            continue
        key = key_of("control", study.name, digest_of_code())
        made = partial(_controlled, study.name, study.in_world, world_of)
        record = _found_or_made(study.name, key, kept, made)
        found |= {row["number"]: row["why"] for row in record.tables.get("unreliable", [])}
        if record.failure:
            found[f"{study.name}."] = f"unreliable: it could not be checked on known truth: {record.failure}"
    if on_progress and studies:
        on_progress(studies[-1].title, len(studies), len(studies))
    return found


def _controlled(
    name: str, study: Callable[[Dictionary, World], StudyResult], make: Callable[[int], World]
) -> StudyResult:
    """Controls in the form in which results are kept."""
    found = controls(study, make=make)
    rows = [{"number": number, "why": why} for number, why in marks(found).items()]
    checked = [
        {"number": c.number, "oracle": c.oracle, "random": c.random, "verdict": c.verdict, "reason": c.reason}
        for c in found
    ]
    return StudyResult(
        study=name,
        numbers=(Number(name="num_unreliable", value=len(rows)),),
        tables={"unreliable": rows, "controls": checked},
    )


def _found_or_made(name: str, key: str, kept: KeptResults | None, make: Callable[[], StudyResult]) -> StudyResult:
    before = kept.find(key) if kept else None
    if before is not None:
        return before
    started = time.perf_counter()
    try:
        result = make()
    except Exception as error:
        return StudyResult.failed(name, error, time.perf_counter() - started)
    result = replace(result, study=name, seconds=time.perf_counter() - started)
    if kept and not result.failure:
        kept.keep(key, result)
    return result
