"""Metrics against plain arithmetic, row by row in float64."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from saescope.interventions.metrics import (
    Metric,
    PerPrompt,
    cross_entropy,
    log_probability,
    logit,
    logit_difference,
    token_id,
)
from saescope.models import LanguageModel

# three prompts of 5, 3 and 2 tokens in windows of 6, padded left, right, and on both sides
TOKENS = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).bool()
LAST = (5, 2, 3)
VOCAB = 11


@pytest.fixture
def logits():
    return 3 * torch.randn(3, 6, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def bert():
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    return LanguageModel(BertForMaskedLM(config), None, "tiny-bert")


def log_softmax(row):
    largest = max(row)
    total = math.log(sum(math.exp(value - largest) for value in row)) + largest
    return [value - total for value in row]


def test_logit_of_one_token_and_of_several(logits):
    one, several = logit(4)(logits, TOKENS), logit([4, 7, 1])(logits, TOKENS)
    for row, last in enumerate(LAST):
        found = logits[row, last].tolist()
        assert one[row] == pytest.approx(found[4], abs=1e-12)
        assert several[row] == pytest.approx((found[4] + found[7] + found[1]) / 3, abs=1e-12)


@pytest.mark.parametrize("position", [-1, -2])
def test_logit_difference_is_a_difference_of_means_at_the_position(logits, position):
    found = logit_difference([2, 5], [0, 3, 9], position=position)(logits, TOKENS)
    for row, last in enumerate(LAST):
        values = logits[row, last + position + 1].tolist()
        expected = (values[2] + values[5]) / 2 - (values[0] + values[3] + values[9]) / 3
        assert found[row] == pytest.approx(expected, abs=1e-12)


def test_log_probability_of_one_token_and_of_any_of_several(logits):
    one, several = log_probability(6)(logits, TOKENS), log_probability([6, 0, 10])(logits, TOKENS)
    for row, last in enumerate(LAST):
        logs = log_softmax(logits[row, last].tolist())
        assert one[row] == pytest.approx(logs[6], abs=1e-12)
        assert several[row] == pytest.approx(math.log(sum(math.exp(logs[i]) for i in (6, 0, 10))), abs=1e-12)


def test_cross_entropy_is_the_mean_over_the_prompts_own_next_tokens(logits):
    ids = torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(2))
    found = cross_entropy(ids)(logits, TOKENS)
    for row in range(3):
        places = TOKENS[row].nonzero().flatten().tolist()
        losses = [-log_softmax(logits[row, place].tolist())[ids[row, place + 1]] for place in places[:-1]]
        assert found[row] == pytest.approx(sum(losses) / len(losses), abs=1e-12)


def test_cross_entropy_is_the_models_own_loss(tiny):
    ids = torch.randint(1, 320, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        loss = float(tiny.module(input_ids=ids, labels=ids).loss)
        found = float(cross_entropy(ids)(tiny.logits(ids), torch.ones_like(ids)))
    assert found == pytest.approx(loss, rel=1e-5)


def test_targets_for_each_prompt(logits):
    a, b = PerPrompt([1, 2, 3]), PerPrompt([[4, 5], [6, 7], [8, 9]])
    found = logit_difference(a, b)(logits, TOKENS)
    for row, last in enumerate(LAST):
        values = logits[row, last].tolist()
        expected = values[1 + row] - (values[4 + 2 * row] + values[5 + 2 * row]) / 2
        assert found[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "metric",
    [
        logit(3),
        logit(PerPrompt([1, 2, 3])),
        logit_difference(PerPrompt([1, 2, 3]), 7, position=-2),
        log_probability(PerPrompt([[1, 4], [2, 5], [3, 6]])),
        cross_entropy(torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(2))),
    ],
    ids=str,
)
def test_rows_that_are_repeated_keep_their_own_targets(logits, metric):
    rows = torch.tensor([2, 0, 0, 1, 2])
    expected = metric(logits, TOKENS)[rows]
    torch.testing.assert_close(metric.of_rows(rows)(logits[rows], TOKENS[rows]), expected, rtol=0, atol=1e-12)
    assert len(set(expected.tolist())) == 3


def test_half_precision_is_computed_in_float32(logits):
    half = logits.bfloat16()
    for metric in (logit(3), logit_difference(1, 2), log_probability(3), cross_entropy(TOKENS.long())):
        found = metric(half, TOKENS)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, metric(half.float(), TOKENS), rtol=0, atol=0)
        assert metric(logits, TOKENS).dtype == torch.float64


@pytest.mark.parametrize("make", [logit, log_probability])
def test_gradients_flow(logits, make):
    tracked = logits.requires_grad_()
    make([3, 4])(tracked, TOKENS).sum().backward()
    reached = tracked.grad.abs().sum(-1) > 0
    assert reached.nonzero().tolist() == [[row, last] for row, last in enumerate(LAST)]


def test_a_token_by_its_text(tiny):
    ids = tiny.tokenizer.encode(" return", add_special_tokens=False)
    assert len(ids) == 1
    assert token_id(tiny, " return") == ids[0] == token_id(tiny, ids[0])
    assert torch.equal(logit(" return", model=tiny).a, torch.tensor([ids]))
    assert token_id(tiny, "<|endoftext|>") == 0


def test_a_text_of_several_tokens_is_refused_and_all_are_shown(tiny):
    pieces = tiny.tokenizer.encode(" xylophon", add_special_tokens=False)
    with pytest.raises(ValueError, match=r"' xylophon' is \d+ tokens here: ") as caught:
        token_id(tiny, " xylophon")
    for piece in pieces:
        assert f"{tiny.tokenizer.decode([piece])!r} {piece}" in str(caught.value)
    with pytest.raises(ValueError, match="tokens here"):
        logit_difference(" return", " xylophon", model=tiny)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (320, "not in the vocabulary of tiny, which has 0 to 319"),
        (-1, "not in the vocabulary"),
        (True, "by its id or its text"),
        (1.5, "by its id or its text"),
        ("", "is no token"),
    ],
)
def test_tokens_that_are_none(tiny, token, message):
    with pytest.raises(ValueError, match=message):
        token_id(tiny, token)


def test_texts_need_a_tokenizer(bert, tiny):
    with pytest.raises(ValueError, match="without a tokenizer"):
        token_id(bert, "a")
    with pytest.raises(ValueError, match="give the model too"):
        logit(" return")


def test_an_unknown_word_is_not_the_unknown_token():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "sun": 1}, unk_token="[UNK]")), unk_token="[UNK]"
    )
    config = BertConfig(
        vocab_size=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    model = LanguageModel(BertForMaskedLM(config), words, "words")
    assert token_id(model, "sun") == 1
    with pytest.raises(ValueError, match="'moon' is not in the vocabulary of words"):
        token_id(model, "moon")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: logit([]), "needs a target"),
        (lambda: logit(-3), "not in any vocabulary"),
        (lambda: logit(1, position=0), "counted from the end"),
        (lambda: logit(1, position=2), "counted from the end"),
        (lambda: logit(PerPrompt([[1], [2, 3]])), "different numbers of target tokens"),
        (lambda: logit_difference(PerPrompt([1, 2]), PerPrompt([1, 2, 3])), "2 prompts on one side and for 3"),
        (lambda: log_probability([4, 4]), "named twice"),
        (lambda: cross_entropy(torch.zeros(3)), "not of torch.float32"),
        (lambda: cross_entropy([1, 2]), "not of list"),
    ],
)
def test_metrics_that_can_not_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (logit(VOCAB), "for which there are 11 logits"),
        (logit(1, position=-3), "prompt 2 has 2 tokens"),
        (logit(PerPrompt([1, 2])), "targets for 2 prompts, and 3 prompts"),
        (cross_entropy(torch.zeros(3, 5, dtype=torch.long)), "give the ids that the model gets"),
    ],
)
def test_logits_that_do_not_fit(logits, metric, message):
    with pytest.raises(ValueError, match=message):
        metric(logits, TOKENS)


def test_prompts_without_a_token_are_refused(logits):
    empty = TOKENS.clone()
    empty[1] = False
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        logit(1)(logits, empty)
    empty[1, 2] = True
    with pytest.raises(ValueError, match="prompt 1 has fewer than two tokens"):
        cross_entropy(torch.zeros(3, 6, dtype=torch.long))(logits, empty)
    with pytest.raises(ValueError, match="these are"):
        logit(1)(logits[0], empty)


def test_masked_language_models_have_no_next_token(bert):
    with pytest.raises(ValueError, match="the metric logit of 3 needs a causal language model"):
        logit(3).require_fit(bert, 1)
    with pytest.raises(ValueError, match="the metric cross-entropy needs a causal language model"):
        cross_entropy(torch.zeros(1, 3, dtype=torch.long)).require_fit(bert, 1)


def test_what_does_not_fit_is_said_before_anything_runs(tiny):
    with pytest.raises(ValueError, match="token 320 is not in the vocabulary"):
        logit_difference(1, 320).require_fit(tiny, 2)
    with pytest.raises(ValueError, match="token 400 is not in the vocabulary"):
        log_probability([1, 400]).require_fit(tiny, 2)
    with pytest.raises(ValueError, match="targets for 3 prompts, and 2 prompts"):
        logit(PerPrompt([1, 2, 3])).require_fit(tiny, 2)


def test_a_metric_of_ones_own(logits):
    class Entropy(Metric):
        def __call__(self, logits, tokens):
            return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean(-1)

    metric = Entropy("entropy")
    assert str(metric) == "entropy"
    assert metric.of_rows(torch.tensor([1, 1])) is metric
    assert metric(logits, TOKENS).shape == (3,)
