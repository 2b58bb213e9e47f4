"""The bundled model as it is shipped: small enough, good enough, and what its card says."""

from __future__ import annotations

import pytest

from saescope.models import LanguageModel
from saescope.models.bundled.card import WEIGHTS, measure, read_card
from saescope.models.bundled.corpus import fingerprint, source_files


@pytest.fixture(scope="module")
def card():
    return read_card()


@pytest.fixture(scope="module")
def text_of_the_card(card) -> bool:
    """Whether this Python's standard library is the one that the card measured."""
    return fingerprint(source_files("held_out")) == card["held_out"]["files_sha256"]


def test_it_is_small_and_a_gpt2(card):
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 10e6
    model = LanguageModel.load("bundled")
    assert model.module.config.model_type == "gpt2"
    assert model.module.config.n_layer >= 4
    assert model.context_size >= 128
    assert sum(p.numel() for p in model.module.parameters()) == card["num_parameters"]
    assert len(model.tokenizer) == model.vocab_size == 4096
    text = "def f(x):\n\treturn 'é' + x  # 雪\n"
    assert model.tokenizer.decode(model.tokenizer(text)["input_ids"]) == text


def test_the_card_promises_enough(card):
    assert card["held_out"]["loss"] <= 2.5
    assert card["held_out"]["accuracy"] >= 0.51
    assert card["train"]["num_files"] > card["held_out"]["num_files"] > 10


def test_a_sample_of_held_out_text_is_predicted_about_as_well_as_the_card_says(card, text_of_the_card):
    found = measure(WEIGHTS, "held_out", max_windows=48)
    tolerance = 0.3 if text_of_the_card else 1.0  # another Python has other text, but it is Python all the same
    assert found.loss == pytest.approx(card["held_out"]["loss"], abs=tolerance)


@pytest.mark.slow
def test_the_card_is_what_one_measures(card, text_of_the_card):
    if not text_of_the_card:
        pytest.skip(f"this Python's standard library is not that of the card (Python {card['python']})")
    found = measure(WEIGHTS, "held_out")
    assert found.loss == pytest.approx(card["held_out"]["loss"], abs=1e-3)
    assert found.accuracy == pytest.approx(card["held_out"]["accuracy"], abs=1e-3)
    assert found.bits_per_byte == pytest.approx(card["held_out"]["bits_per_byte"], abs=1e-3)
