"""What no study may do with bad input: leave a number out, or make one up.

It fails in words, or a number says why it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from saescope.activations import TokenWindows, WindowConfig
from saescope.dictionaries import Dictionary, ReLU
from saescope.dictionaries.base import DictionaryConfig
from saescope.evaluation import StudyResult, TokenLabels, TokenSample
from saescope.evaluation.bench import Bench, BenchConfig
from saescope.evaluation.sites import Sites
from saescope.evaluation.studies import STUDIES, chosen_studies, run_studies

HOOK = "transformer.h.1"
ON_LABELS = ("probing", "concepts", "splitting", "cones", "tpp", "scr")


def dictionary(seed: int = 0, d_in: int = 16) -> Dictionary:
    made = ReLU(DictionaryConfig(d_in=d_in, d_sae=40), seed=seed)
    with torch.no_grad():
        made.b_enc.fill_(-0.5)
    return made


@pytest.fixture(scope="module")
def bench_of(tiny: Any, documents: Any, tokenizer: Any) -> Callable[..., Bench]:
    windows = TokenWindows.build(documents, tokenizer, WindowConfig(context_size=24))
    sites = Sites.of(dictionary(), tiny, HOOK)

    def make(labels: Callable[[TokenSample], TokenLabels] | None = None) -> Bench:
        return Bench(tiny, windows, sites, BenchConfig(num_tokens=1200, num_sample_tokens=1200), labels=labels)

    return make


def words_of(result: StudyResult) -> str:
    """All reasons of a result, having checked that it is honest."""
    if result.failure:
        assert not result.numbers
        # an error that a study did not foresee carries the name of its class
        assert result.failure.split(":")[0] not in {
            "KeyError",
            "IndexError",
            "AssertionError",
            "TypeError",
            "RuntimeError",
        }
        assert len(result.failure) > 20
        return result.failure
    assert result.numbers
    for number in result.numbers:  # finite or None with a reason, by construction; -1 would be a stand-in
        assert number.value != -1 or "cosine" in number.name or "rho" in number.name, number
    return " ".join(number.reason for number in result.numbers)


@pytest.mark.parametrize("name", STUDIES)
def test_a_dictionary_of_which_nothing_fires(name: str, bench_of: Callable[..., Bench]) -> None:
    dead = dictionary()
    with torch.no_grad():
        dead.b_enc.fill_(-1e6)
    (result,) = run_studies(dead, bench_of(), chosen_studies([name])).values()
    words = words_of(result)
    if name == "core":
        assert result["silent_share"].value == 1
        assert result["l0"].value == 0
    elif name not in (
        "meta_structure",
        "l0",
        "first_letter",
        "concepts",
        "cones",
    ):  # of weights, or 0 is the true answer
        assert words


@pytest.mark.parametrize("tensor", ["W_dec", "W_enc", "b_dec"])
@pytest.mark.parametrize("name", STUDIES)
def test_weights_that_are_no_numbers(name: str, tensor: str, bench_of: Callable[..., Bench]) -> None:
    broken = dictionary()
    with torch.no_grad():
        getattr(broken, tensor)[3] = torch.nan
    (result,) = run_studies(broken, bench_of(), chosen_studies([name])).values()
    assert f"of the dictionary's {tensor} are NaN or infinite" in words_of(result)


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in ("meta_structure", "first_letter")])
def test_a_dictionary_of_another_width(name: str, bench_of: Callable[..., Bench]) -> None:
    def labels(sample: TokenSample) -> TokenLabels:
        return TokenLabels(names=("a", "b"), values=np.random.default_rng(0).random((len(sample), 2)) < 0.5)

    (result,) = run_studies(dictionary(d_in=12), bench_of(labels), chosen_studies([name])).values()
    words_of(result)
    assert "12" in result.failure
    assert "16" in result.failure


@pytest.mark.parametrize("name", ON_LABELS)
@pytest.mark.parametrize("column", ["all", "none", "two"])
def test_a_label_of_one_class_or_with_hardly_a_positive(name: str, column: str, bench_of: Callable[..., Bench]) -> None:
    def labels(sample: TokenSample) -> TokenLabels:
        half = np.random.default_rng(0).random(len(sample)) < 0.5
        rare = np.full(len(sample), column == "all")
        if column == "two":
            rare[[5, 700]] = True
        return TokenLabels(names=("half", "rare"), values=np.stack([half, rare], axis=-1))

    (result,) = run_studies(dictionary(), bench_of(labels), chosen_studies([name])).values()
    words = words_of(result)
    rows = [row for table in result.tables.values() for row in table if "rare" in map(str, row.values())]
    assert rows or words  # it is named with its reason, not skipped
    assert words or any("reason" in row and row["reason"] for row in rows), (result.tables, words)


@pytest.mark.parametrize("name", ON_LABELS)
def test_labels_of_other_tokens(name: str, bench_of: Callable[..., Bench]) -> None:
    def labels(sample: TokenSample) -> TokenLabels:
        return TokenLabels(names=("half",), values=np.zeros((len(sample) - 1, 1), dtype=bool))

    (result,) = run_studies(dictionary(), bench_of(labels), chosen_studies([name])).values()
    assert "build both from the same windows" in result.failure
