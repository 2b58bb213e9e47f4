"""The runner: what is found again, what is reported as failed, and which numbers are marked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saescope.activations import Document, TokenWindows, WindowConfig
from saescope.dictionaries import Dictionary, ReLU, TopK
from saescope.dictionaries.base import DictionaryConfig
from saescope.dictionaries.topk import TopKConfig
from saescope.evaluation import Number, StudyResult
from saescope.evaluation.bench import Bench, BenchConfig
from saescope.evaluation.kept_results import KeptResults
from saescope.evaluation.sites import Sites
from saescope.evaluation.studies import STUDIES, Study, chosen_studies, run_consistency, run_controls, run_studies
from saescope.evaluation.world import World
from saescope.models import LanguageModel

HOOK = "transformer.h.1"


@pytest.fixture
def bench(tiny: LanguageModel, documents: Any, tokenizer: Any) -> Bench:
    windows = TokenWindows.build(documents[:4], tokenizer, WindowConfig(context_size=12))
    sites = Sites.of(small(), tiny, HOOK)
    return Bench(tiny, windows, sites, BenchConfig(num_tokens=None, num_sample_tokens=None))


def small(seed: int = 0) -> Dictionary:
    return TopK(TopKConfig(d_in=16, d_sae=40, k=5), seed=seed)


def test_known_names() -> None:
    assert [study.name for study in chosen_studies(["probing", "core"])] == ["core", "probing"]
    assert chosen_studies(["all"]) == list(STUDIES.values())
    with pytest.raises(ValueError, match="no study is named 'probes'; there are all, core, l0, probing"):
        chosen_studies(["probes"])


def test_what_was_made_is_found_and_what_changes_is_made_again(bench: Bench, tmp_path: Path) -> None:
    calls = []

    def study(dictionary: Dictionary, bench: Bench) -> StudyResult:
        calls.append(1)
        return StudyResult(study="counted", numbers=(Number(name="calls", value=len(calls)),))

    studies = [Study(name="counted", title="Counted", run=study)]
    kept = KeptResults(tmp_path)
    dictionary = small()
    first = run_studies(dictionary, bench, studies, kept=kept)["counted"]
    assert run_studies(small(), bench, studies, kept=kept)["counted"] == first
    assert len(calls) == 1
    with torch.no_grad():
        dictionary.b_dec[3] += 1e-6
    assert run_studies(dictionary, bench, studies, kept=kept)["counted"]["calls"].value == 2
    fewer = TopK(replace(dictionary.config, k=4), seed=0)  # the same weights, and another rule
    assert run_studies(fewer, bench, studies, kept=kept)["counted"]["calls"].value == 3
    other = Bench(bench.model, bench.windows, bench.sites, BenchConfig(num_tokens=100))
    assert run_studies(small(), other, studies, kept=kept)["counted"]["calls"].value == 4
    assert run_studies(small(), bench, studies)["counted"]["calls"].value == 5  # nothing kept, nothing found
    assert run_studies(small(), bench, studies, kept=kept)["counted"] == first


def test_a_class_of_ones_own_is_part_of_the_key(bench: Bench, tmp_path: Path) -> None:
    study = Study(name="mine", title="Mine", run=lambda d, b: StudyResult(study="mine", seconds=1.0))
    kept = KeptResults(tmp_path)
    names: dict[str, Any] = {"TopK": TopK}
    exec("class Typed(TopK):\n    pass", names)  # without a file

    class Written(TopK):
        pass

    for cls, count in ((TopK, 1), (Written, 2), (names["Typed"], 2)):
        run_studies(cls(TopKConfig(d_in=16, d_sae=40, k=5), seed=0), bench, [study], kept=kept)
        assert len(list(tmp_path.rglob("*.json"))) == count


def test_one_failing_study_is_reported_and_the_others_go_on(bench: Bench, tmp_path: Path) -> None:
    def fails(dictionary: Dictionary, bench: Bench) -> StudyResult:
        raise ValueError("too few positives")

    def breaks(dictionary: Dictionary, bench: Bench) -> StudyResult:
        raise ZeroDivisionError("division by zero")

    told = []
    studies = [
        Study(name="fails", title="Fails", run=fails),
        Study(name="breaks", title="Breaks", run=breaks),
        STUDIES["l0"],
    ]
    results = run_studies(
        small(), bench, studies, kept=KeptResults(tmp_path), on_progress=lambda *call: told.append(call)
    )
    assert results["fails"].failure == "too few positives"
    assert results["breaks"].failure == "ZeroDivisionError: division by zero"
    assert results["l0"]["l0"].value == 5
    assert len(list(tmp_path.rglob("*.json"))) == 1  # failures are tried again
    assert told[0] == ("Fails", 0, 3)
    assert told[-1][1:] == (3, 3)


def test_studies_that_need_python_say_so_elsewhere(tiny: LanguageModel, tokenizer: Any) -> None:
    prose = [Document("letter.txt", "dear reader, this is no code at all " * 9)]
    windows = TokenWindows.build(prose, tokenizer, WindowConfig(context_size=12))
    bench = Bench(tiny, windows, Sites.of(small(), tiny, HOOK))
    for name in ("probing", "absorption"):
        failure = run_studies(small(), bench, [STUDIES[name]])[name].failure
        assert "saescope knows for Python source alone" in failure


def test_upside_down_numbers_are_marked(tmp_path: Path) -> None:
    def inverted(dictionary: Dictionary, world: World) -> StudyResult:
        with torch.no_grad():
            error = float((dictionary(world.sample.x) - world.sample.x).square().mean())
        numbers = (
            Number(name="right", value=error, better="lower"),
            Number(name="inverted", value=error, better="higher"),
            Number(name="without_direction", value=error),
        )
        return StudyResult(study="mine", numbers=numbers)

    studies = [Study(name="mine", title="Mine", run=lambda d, b: StudyResult(study="mine"), in_world=inverted)]
    kept = KeptResults(tmp_path)
    found = run_controls(studies, kept=kept)
    assert list(found) == ["mine.inverted"]
    assert "ranks a random dictionary" in found["mine.inverted"]
    assert run_controls(studies, kept=kept) == found


def test_seeds_are_compared(tmp_path: Path) -> None:
    named = {"a": small(0), "b": small(0), "c": small(1)}
    kept = KeptResults(tmp_path)
    same = run_consistency({name: named[name] for name in "ab"}, [], kept=kept)
    different = run_consistency({name: named[name] for name in "ac"}, [], kept=kept)
    assert same.study == different.study == "consistency"
    assert same["pw_mcc"].value == pytest.approx(1)
    assert different["pw_mcc"].value < 0.9


def test_the_core_study_is_evaluate(bench: Bench) -> None:
    dictionary = ReLU(DictionaryConfig(d_in=16, d_sae=40))
    result = run_studies(dictionary, bench, [STUDIES["core"]])["core"]
    assert result.study == "core"
    assert result["num_tokens"].value == bench.windows.num_tokens
