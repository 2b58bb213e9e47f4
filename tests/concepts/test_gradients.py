"""Gradients of outputs by concepts, against models that are split and run by hand in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from saescope.concepts.gradients import concept_output_gradient
from saescope.concepts.splitting import ActivationGranularity as Unit
from saescope.concepts.splitting import GranularityAggregationStrategy as Strategy
from saescope.concepts.splitting import ModelWithSplitPoints

TEXTS = ["def alpha(x, beta):", "return x", "def gamma(delta): return delta + 12"]
SENTENCES = ["the cats run", "a cat", "the dogs and a cat running far"]
NUM_CONCEPTS = 24


class Concepts:
    """Linear concepts with a ReLU, as an explainer shows itself: codes relu(a E + b), reconstruction codes D."""

    has_differentiable_concept_decoder = True
    is_fitted = True
    device = torch.device("cpu")

    def __init__(self, model, split_point, num_concepts=NUM_CONCEPTS, identity=False):
        self.model_with_split_points, self.split_point = model, split_point
        width = 16
        torch.manual_seed(7)
        self.E = torch.randn(width, num_concepts, dtype=torch.float64) / 4
        self.b = torch.randn(num_concepts, dtype=torch.float64) / 4
        self.D = torch.randn(num_concepts, width, dtype=torch.float64) / 3
        self.identity = identity

    def encode_activations(self, a):
        return a if self.identity else F.relu(a @ self.E.to(a) + self.b.to(a))

    def decode_concepts(self, codes):
        return codes if self.identity else codes @ self.D.to(codes)

    def get_dictionary(self):
        return self.D


@pytest.fixture(scope="module")
def wordpiece():
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "a", "cat", "dog", "##s", "run", "##n", "##ing", "and", "far"]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=32,
    )  # fmt: skip


@pytest.fixture(scope="module")
def decoder(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return ModelWithSplitPoints(
        GPT2LMHeadModel(config).double(), ["transformer.h.1"], tokenizer=tokenizer, batch_size=2
    )


def bert(kind, **settings):
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=14, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, num_labels=4, initializer_range=0.4, **settings,
    )  # fmt: skip
    return kind(config).double()


@pytest.fixture(scope="module")
def encoder(wordpiece):
    from transformers import BertForSequenceClassification

    module = bert(BertForSequenceClassification)
    return ModelWithSplitPoints(module, ["bert.encoder.layer.1"], tokenizer=wordpiece, batch_size=2)


@pytest.fixture(scope="module")
def classifying_decoder(tokenizer):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, num_labels=3,
        initializer_range=0.3,
    )  # fmt: skip
    module = GPT2ForSequenceClassification(config).double()
    return ModelWithSplitPoints(module, ["transformer.h.0"], tokenizer=tokenizer, batch_size=2)


# the two halves of each model, by hand, for one text [l] without padding


def attention(q, k, v, num_heads, causal):
    length, width = q.shape
    q, k, v = (each.view(length, num_heads, -1).transpose(0, 1) for each in (q, k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(width // num_heads)
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, width)


def normed(x, norm, eps):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias


def gpt2_block(block, x):
    h = normed(x, block.ln_1, 1e-5)
    q, k, v = (h @ block.attn.c_attn.weight + block.attn.c_attn.bias).split(16, -1)
    x = x + attention(q, k, v, 2, causal=True) @ block.attn.c_proj.weight + block.attn.c_proj.bias
    h = normed(x, block.ln_2, 1e-5) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
    return x + F.gelu(h, approximate="tanh") @ block.mlp.c_proj.weight + block.mlp.c_proj.bias


def gpt2_first(module, ids):
    t = module.transformer
    x = t.wte.weight[ids] + t.wpe.weight[: len(ids)]
    return gpt2_block(t.h[1], gpt2_block(t.h[0], x))


def gpt2_second(module, x):
    t = module.transformer
    return normed(gpt2_block(t.h[2], x), t.ln_f, 1e-5) @ module.lm_head.weight.T


def affine(x, linear):
    return x @ linear.weight.T + linear.bias


def bert_layer(layer, x):
    own, out = layer.attention.self, layer.attention.output
    mixed = attention(affine(x, own.query), affine(x, own.key), affine(x, own.value), 2, causal=False)
    x = normed(x + affine(mixed, out.dense), out.LayerNorm, 1e-12)
    h = F.gelu(affine(x, layer.intermediate.dense))
    return normed(x + affine(h, layer.output.dense), layer.output.LayerNorm, 1e-12)


def bert_first(module, ids):
    e = module.bert.embeddings
    x = e.word_embeddings.weight[ids] + e.position_embeddings.weight[: len(ids)] + e.token_type_embeddings.weight[0]
    x = normed(x, e.LayerNorm, 1e-12)
    return bert_layer(module.bert.encoder.layer[1], bert_layer(module.bert.encoder.layer[0], x))


def bert_second(module, x):
    x = bert_layer(module.bert.encoder.layer[2], x)
    return affine(torch.tanh(affine(x[0], module.bert.pooler.dense)), module.classifier)


def by_hand(concepts, ids, units, goals, halves, *, times=True, normalize=True, error=False, aggregate="mean"):
    """Gradients [t, g, c] of one text; ``goals`` makes its targets from its logits, units are places of its tokens."""
    first, second = halves
    module = concepts.model_with_split_points.model
    with torch.no_grad():
        A = first(module, ids)
        rows = torch.stack([A[unit].mean(0) if aggregate == "mean" else A[unit].sum(0) for unit in units])
        codes = concepts.encode_activations(rows)
    C = codes.clone().requires_grad_()
    decoded = concepts.decode_concepts(C)
    rebuilt = A.clone()
    for number, unit in enumerate(units):
        rebuilt[unit] = decoded[number] if aggregate == "mean" else decoded[number] / len(unit)
    if error:
        rebuilt = rebuilt + (A - rebuilt).detach()
    L = goals(second(module, rebuilt))
    G = torch.stack([torch.autograd.grad(each, C, retain_graph=True)[0] for each in L])
    G = G * codes if times else G
    return G / G.abs().sum((1, 2), keepdim=True) if normalize else G


def real_ids(tokenizer, text):
    return torch.tensor(tokenizer(text)["input_ids"])


def units_of_tokens(tokenizer, ids):
    return [[place] for place, each in enumerate(ids.tolist()) if each not in tokenizer.all_special_ids]


def close(found, expected, bar=1e-9):
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert mine.shape == other.shape
        assert mine.device.type == "cpu"
        assert not mine.requires_grad
        assert float((mine - other).abs().max()) < bar * max(1.0, float(other.abs().max()))


SETTINGS = pytest.mark.parametrize(
    ("times", "normalize", "error"),
    [(True, True, False), (False, False, False), (True, False, True), (False, True, True)],
)


@SETTINGS
def test_a_decoder_split_by_hand(decoder, tokenizer, times, normalize, error):
    """With the largest logit at each position of each text, and with logits of chosen tokens."""
    concepts = Concepts(decoder, "transformer.h.1")
    settings = {"concepts_x_gradients": times, "normalization": normalize, "error_term": error}
    pairs = [(-1, 5), (-2, 300), (-1, 7)]
    for targets, goals in (
        (None, lambda logits: logits.max(-1).values),
        (pairs, lambda logits: torch.stack([logits[place, token] for place, token in pairs])),
        (lambda logits: logits.logsumexp(-1)[-2:], lambda logits: logits[-2:].exp().sum(-1).log()),
    ):
        found = concept_output_gradient(concepts, TEXTS, targets, **settings)
        expected = []
        for text in TEXTS:
            ids = real_ids(tokenizer, text)
            units = units_of_tokens(tokenizer, ids)
            made = {"times": times, "normalize": normalize, "error": error}
            expected.append(by_hand(concepts, ids, units, goals, (gpt2_first, gpt2_second), **made))
        close(found, expected)
        assert found[0].shape[0] == (len(real_ids(tokenizer, TEXTS[0])) if targets is None else len(expected[0]))


@SETTINGS
def test_an_encoder_split_by_hand(encoder, wordpiece, times, normalize, error):
    concepts = Concepts(encoder, "bert.encoder.layer.1")
    settings = {"concepts_x_gradients": times, "normalization": normalize, "error_term": error}
    made = {"times": times, "normalize": normalize, "error": error}
    for targets, goals in (
        (None, lambda logits: logits),
        ([2, 0], lambda logits: logits[[2, 0]]),
        (lambda logits: logits[1] - logits[3], lambda logits: logits[1:2] - logits[3:]),
    ):
        found = concept_output_gradient(concepts, SENTENCES, targets, **settings)
        ids = [real_ids(wordpiece, text) for text in SENTENCES]
        expected = [
            by_hand(concepts, each, units_of_tokens(wordpiece, each), goals, (bert_first, bert_second), **made)
            for each in ids
        ]
        close(found, expected)


@pytest.mark.parametrize(("strategy", "how"), [(Strategy.MEAN, "mean"), (Strategy.SUM, "sum")])
@pytest.mark.parametrize("error", [False, True])
def test_words_and_their_aggregation(encoder, wordpiece, strategy, how, error):
    concepts = Concepts(encoder, "bert.encoder.layer.1")
    found = concept_output_gradient(concepts, SENTENCES, None, None, Unit.WORD, strategy, error_term=error)
    expected = []
    for text in SENTENCES:
        words = wordpiece(text).word_ids()
        units = [[p for p, word in enumerate(words) if word == w] for w in sorted({w for w in words if w is not None})]
        expected.append(
            by_hand(
                concepts, real_ids(wordpiece, text), units, lambda logits: logits, (bert_first, bert_second),
                error=error, aggregate=how,
            )
        )  # fmt: skip
    close(found, expected)
    assert [each.shape[1] for each in found] == [len(text.split()) for text in SENTENCES]


def test_every_granularity_but_sample(encoder):
    concepts = Concepts(encoder, "bert.encoder.layer.1")
    units = {
        Unit.CLS_TOKEN: [1, 1, 1], Unit.TOKEN: [4, 2, 10], Unit.ALL_TOKENS: [6, 4, 12],
        Unit.WORD: [3, 2, 7], Unit.SENTENCE: [1, 1, 1],
    }  # fmt: skip
    for granularity, counts in units.items():
        found = concept_output_gradient(concepts, SENTENCES, activation_granularity=granularity)
        assert [tuple(each.shape) for each in found] == [(4, count, NUM_CONCEPTS) for count in counts]
        for each in found:
            assert torch.allclose(each.abs().sum((1, 2)), torch.ones(4, dtype=torch.float64), atol=1e-12)
    with pytest.raises(ValueError, match="SAMPLE"):
        concept_output_gradient(concepts, SENTENCES, activation_granularity=Unit.SAMPLE)


def test_absolute_values_sum_to_one_over_units_and_concepts(decoder, encoder):
    for model, texts in ((decoder, TEXTS), (encoder, SENTENCES)):
        concepts = Concepts(model, model.split_points[0])
        for error in (False, True):
            for each in concept_output_gradient(concepts, texts, error_term=error):
                sums = each.abs().sum((1, 2))
                assert torch.allclose(sums, torch.ones_like(sums), atol=1e-12)
                assert len(sums) > 1


def test_no_gradient_at_all_is_zeros(decoder, encoder):
    for model, texts in ((decoder, TEXTS), (encoder, SENTENCES)):
        concepts = Concepts(model, model.split_points[0])
        concepts.D.zero_()
        for each in concept_output_gradient(concepts, texts):
            assert bool((each == 0).all())
    constant = concept_output_gradient(Concepts(encoder, encoder.split_points[0]), SENTENCES, lambda _: torch.ones(2))
    assert [tuple(each.shape[:2]) for each in constant] == [(2, 4), (2, 2), (2, 10)]
    assert all(bool((each == 0).all()) for each in constant)


def test_a_nan_is_not_taken_for_no_gradient(encoder):
    concepts = Concepts(encoder, encoder.split_points[0])
    concepts.D[0, 0] = torch.nan
    assert all(bool(each.isnan().any()) for each in concept_output_gradient(concepts, SENTENCES))


def test_the_gradient_under_a_linear_head_is_the_dictionary_times_its_rows(decoder, wordpiece, tokenizer):
    """dL/dC = D W^T, at the unit whose logit it is; 0 at the others."""
    from transformers import BertForTokenClassification

    plain = {"concepts_x_gradients": False, "normalization": False}
    tagger = ModelWithSplitPoints(
        bert(BertForTokenClassification), ["bert.encoder.layer.2"], tokenizer=wordpiece, batch_size=3
    )
    concepts = Concepts(tagger, "bert.encoder.layer.2")
    found = concept_output_gradient(concepts, SENTENCES, [(-2, label) for label in range(4)], **plain)
    expected = concepts.D @ tagger.model.classifier.weight.detach().T  # [c, K]
    for each in found:
        assert torch.allclose(each[:, -1], expected.T, atol=1e-12)  # the last unit is the one before [SEP]
        assert bool((each[:, :-1] == 0).all())

    split = ModelWithSplitPoints(decoder.model, ["transformer.ln_f"], tokenizer=tokenizer, batch_size=3)
    concepts = Concepts(split, "transformer.ln_f")
    found = concept_output_gradient(concepts, TEXTS, [(-1, 17), (-1, 200)], error_term=True, **plain)
    expected = decoder.model.lm_head.weight.detach()[[17, 200]] @ concepts.D.T
    for each in found:
        assert torch.allclose(each[:, -1], expected, atol=1e-12)
        assert bool((each[:, :-1] == 0).all())


@pytest.mark.parametrize("error", [False, True])
def test_identity_concepts_give_the_ordinary_gradient_of_activations(decoder, encoder, error):
    for model, texts, tokenizer in ((decoder, TEXTS, None), (encoder, SENTENCES, None)):
        tokenizer = model.tokenizer
        concepts = Concepts(model, model.split_points[0], identity=True)
        found = concept_output_gradient(
            concepts, texts, lambda logits: logits.reshape(-1)[-3:], concepts_x_gradients=False, normalization=False,
            error_term=error,
        )  # fmt: skip
        times = concept_output_gradient(
            concepts, texts, lambda logits: logits.reshape(-1)[-3:], normalization=False, error_term=error
        )
        for text, mine, signed in zip(texts, found, times, strict=True):
            ids = real_ids(tokenizer, text)
            held = []

            def keep(_module, _args, output, held=held):
                value = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
                held.append(value)
                return (value, *output[1:]) if isinstance(output, tuple) else value

            handle = model.model.get_submodule(model.split_points[0]).register_forward_hook(keep)
            was = model.model.training
            logits = model.model.eval()(ids[None]).logits[0]
            model.model.train(was)
            handle.remove()
            places = [place for (place,) in units_of_tokens(tokenizer, ids)]
            for row, each in zip(mine, logits.reshape(-1)[-3:], strict=True):
                (expected,) = torch.autograd.grad(each, held[0], retain_graph=True)
                assert torch.allclose(row, expected[0, places], atol=1e-10)
            assert torch.allclose(signed, mine * held[0][0, places], atol=1e-10)  # also where activations are negative


def test_with_the_error_term_logits_are_those_of_the_plain_model(decoder, encoder):
    for model, texts in ((decoder, TEXTS), (encoder, SENTENCES)):
        concepts = Concepts(model, model.split_points[0])
        for granularity in (Unit.TOKEN, Unit.WORD):
            seen = {True: [], False: []}
            for error in (True, False):
                concept_output_gradient(
                    concepts, texts, lambda logits, kept=seen[error]: kept.append(logits.detach()) or logits.max(),
                    activation_granularity=granularity, error_term=error, batch_size=1,
                )  # fmt: skip
            with torch.no_grad():
                was = model.model.training
                model.model.eval()
                plain = [model.model(real_ids(model.tokenizer, text)[None]).logits[0] for text in texts]
                model.model.train(was)
            assert all(torch.equal(mine, other) for mine, other in zip(seen[True], plain, strict=True))
            assert not any(torch.allclose(mine, other) for mine, other in zip(seen[False], plain, strict=True))


def test_results_do_not_depend_on_the_batch(decoder, encoder, classifying_decoder):
    for model, texts in ((decoder, TEXTS), (encoder, SENTENCES), (classifying_decoder, TEXTS)):
        concepts = Concepts(model, model.split_points[0])
        alone = [concept_output_gradient(concepts, [text], error_term=True)[0] for text in texts]
        assert all(float(each.abs().max()) > 0 for each in alone)
        for order in ([0, 1, 2], [2, 0, 1], [1, 2], [2, 1, 0, 1]):
            for size in (1, 2, 4):
                found = concept_output_gradient(concepts, [texts[i] for i in order], batch_size=size, error_term=True)
                close(found, [alone[i] for i in order])


def test_any_form_of_inputs(encoder, wordpiece):
    concepts = Concepts(encoder, encoder.split_points[0])
    expected = concept_output_gradient(concepts, SENTENCES)
    close(concept_output_gradient(concepts, wordpiece(SENTENCES, padding=True, return_tensors="pt")), expected)
    ids = real_ids(wordpiece, SENTENCES[0])[None]
    (found,) = concept_output_gradient(concepts, ids, activation_granularity=Unit.ALL_TOKENS)
    close([found], concept_output_gradient(concepts, SENTENCES[:1], activation_granularity=Unit.ALL_TOKENS))


def test_targets_together_and_one_by_one(decoder, encoder):
    for model, texts in ((decoder, TEXTS), (encoder, SENTENCES)):
        concepts = Concepts(model, model.split_points[0])
        one = concept_output_gradient(concepts, texts, targets_at_once=1)
        for at_once in (2, 3, None):
            close(concept_output_gradient(concepts, texts, targets_at_once=at_once), one, 1e-12)


def test_as_many_targets_as_fit(decoder, monkeypatch):
    from saescope.concepts import gradients

    concepts = Concepts(decoder, "transformer.h.1")
    sizes = []
    backward = gradients._backward
    monkeypatch.setattr(gradients, "_backward", lambda some, codes: sizes.append(len(some)) or backward(some, codes))
    expected = concept_output_gradient(concepts, TEXTS[:1])
    length = len(expected[0])
    assert sizes == [length]
    monkeypatch.setattr(gradients, "_NUMBERS_AT_ONCE", 3 * length * 320 + 5)  # three times the logits
    close(concept_output_gradient(concepts, TEXTS[:1]), expected, 1e-12)
    assert sizes[1:] == [3] * (length // 3) + [length % 3] * (length % 3 > 0)


def test_in_half_precision(encoder, wordpiece):
    """Logits are still exactly those of the plain model with the error term."""
    from copy import deepcopy

    half = ModelWithSplitPoints(deepcopy(encoder.model).bfloat16().eval(), 1, tokenizer=wordpiece, batch_size=1)
    seen = []
    found = concept_output_gradient(
        Concepts(half, half.split_points[0]), SENTENCES, lambda logits: seen.append(logits.detach()) or logits,
        error_term=True,
    )  # fmt: skip
    with torch.no_grad():
        plain = [half.model(real_ids(wordpiece, text)[None]).logits[0] for text in SENTENCES]
    assert all(torch.equal(mine, other) for mine, other in zip(seen, plain, strict=True))
    exact = concept_output_gradient(Concepts(encoder, encoder.split_points[0]), SENTENCES, error_term=True)
    for mine, other in zip(found, exact, strict=True):
        assert torch.allclose(mine.abs().sum((1, 2)), torch.ones(4), atol=1e-5)
        assert torch.cosine_similarity(mine.flatten().double(), other.flatten(), 0) > 0.99


def test_in_single_precision(decoder, tokenizer):
    from copy import deepcopy

    single = ModelWithSplitPoints(
        deepcopy(decoder.model).float(), ["transformer.h.1"], tokenizer=tokenizer, batch_size=3
    )
    concepts = Concepts(single, "transformer.h.1")
    expected = concept_output_gradient(Concepts(decoder, "transformer.h.1"), TEXTS)
    found = concept_output_gradient(concepts, TEXTS)
    one = concept_output_gradient(concepts, TEXTS, targets_at_once=1)
    for mine, loop, exact in zip(found, one, expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.allclose(mine, loop, atol=1e-6)
        assert torch.allclose(mine.double(), exact, atol=1e-4)


class Unvectorised(torch.autograd.Function):
    """An operation whose gradient can be taken for one target at a time only."""

    passes = 0

    @staticmethod
    def forward(ctx, x):
        return x * 3

    @staticmethod
    def backward(ctx, gradient):
        Unvectorised.passes += 1
        return gradient * float(gradient.sum() / gradient.sum()) * 3  # a number is asked for: vmap refuses


def test_operations_that_can_not_be_vectorised(encoder):
    concepts = Concepts(encoder, encoder.split_points[0])
    close(
        concept_output_gradient(concepts, SENTENCES, Unvectorised.apply), concept_output_gradient(concepts, SENTENCES)
    )
    assert Unvectorised.passes >= 4


def test_positions_of_the_padded_batch_on_request(decoder, tokenizer):
    """As in interpreto: one number is another position of each text, and the result depends on the batch."""
    concepts = Concepts(decoder, "transformer.h.1")
    lengths = [len(real_ids(tokenizer, text)) for text in TEXTS]
    longest = max(lengths)
    expected = concept_output_gradient(concepts, TEXTS)
    found = concept_output_gradient(concepts, TEXTS, [longest - 1, longest - 2], padded_positions=True, batch_size=3)
    close(found, [each[[-1, -2]] for each in expected])  # padding is on the left
    every = concept_output_gradient(concepts, TEXTS, padded_positions=True, batch_size=3)
    assert [len(each) for each in every] == [longest] * 3
    close([each[-n:] for each, n in zip(every, lengths, strict=True)], expected)
    short = concept_output_gradient(concepts, TEXTS[1:2], padded_positions=True)
    assert len(short[0]) == lengths[1] < longest


def test_nothing_is_left_behind(decoder):
    model, concepts = decoder.model, Concepts(decoder, "transformer.h.1")
    model.train()
    model.requires_grad_(True)
    decoder.tokenizer.padding_side = "right"
    try:
        with torch.no_grad():
            found = concept_output_gradient(concepts, TEXTS, error_term=True)
        assert model.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert decoder.tokenizer.padding_side == "right"

        def fails(logits):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            concept_output_gradient(concepts, TEXTS, fails)
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())
    finally:
        model.eval()
        model.requires_grad_(False)
        decoder.tokenizer.padding_side = "left"
    close(concept_output_gradient(concepts, TEXTS, error_term=True), found)


def test_progress_is_shown_on_request(encoder, capsys):
    concepts = Concepts(encoder, encoder.split_points[0])
    close(concept_output_gradient(concepts, SENTENCES, tqdm_bar=True), concept_output_gradient(concepts, SENTENCES))
    assert "Concept gradients" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("of", "settings", "words"),
    [
        ("decoder", {"targets": [3]}, r"pair \(position from the end, token id\).*padded_positions"),
        ("decoder", {"targets": [(0, 3)]}, "counted from the end"),
        ("decoder", {"targets": [(-40, 3)]}, "counted from the end"),
        ("decoder", {"targets": [(-1, 320)]}, "token ids go from 0 to 319"),
        ("decoder", {"targets": [(-1, 2, 3)]}, "pair"),
        ("decoder", {"targets": ["return"]}, "pair"),
        ("decoder", {"targets": "return"}, "targets are a list"),
        ("decoder", {"targets": [99], "padded_positions": True}, "targets go from 0"),
        ("decoder", {"targets": lambda logits: logits}, r"row of numbers \[t\]"),
        ("decoder", {"targets": lambda logits: 3}, "row of numbers"),
        ("encoder", {"targets": [4]}, "classes from 0 to 3, not 4"),
        ("encoder", {"targets": [True]}, "classes from 0 to 3"),
        ("encoder", {"targets": [(-1, 2)]}, "classes from 0 to 3"),
        ("encoder", {"targets": []}, "no targets"),
        ("encoder", {"padded_positions": True}, "logits at each token"),
        ("encoder", {"split_point": "bert.encoder.layer.0"}, "can not be taken at 'bert.encoder.layer.0'"),
        ("encoder", {"batch_size": 0}, "batch_size"),
        ("encoder", {"targets_at_once": 0}, "targets_at_once"),
        ("encoder", {"activation_granularity": "paragraph"}, "paragraph"),
    ],
)
def test_mistakes_are_said_in_words(request, of, settings, words):
    model = request.getfixturevalue(of)
    texts = TEXTS if of == "decoder" else SENTENCES
    with pytest.raises(ValueError, match=words):
        concept_output_gradient(Concepts(model, model.split_points[0]), texts, **settings)


def test_explainers_without_gradients_or_fit(encoder):
    concepts = Concepts(encoder, encoder.split_points[0])
    concepts.is_fitted = False
    with pytest.raises(RuntimeError, match="fit"):
        concept_output_gradient(concepts, SENTENCES)
    concepts.is_fitted, concepts.has_differentiable_concept_decoder = True, False
    with pytest.raises(ValueError, match="no gradients"):
        concept_output_gradient(concepts, SENTENCES)


@pytest.mark.parametrize("name", ["VanillaSAE", "TopKSAE", "BatchTopKSAE", "JumpReLUSAE", "MpSAE"])
def test_all_five_classes(encoder, name):
    from saescope import concepts

    explainer = getattr(concepts, name)(encoder, nb_concepts=12)
    explainer.fit(encoder.get_activations(SENTENCES), nb_epochs=3, batch_size=8)
    found = explainer.concept_output_gradient(SENTENCES, error_term=True, activation_granularity=Unit.WORD)
    for text, each in zip(SENTENCES, found, strict=True):
        assert each.shape == (4, len(text.split()), 12)
        sums = each.abs().sum((1, 2))
        assert bool((((sums - 1).abs() < 1e-5) | (sums == 0)).all())
    assert any(bool(each.any()) for each in found)


def test_the_method_of_an_explainer(encoder):
    """With a real dictionary: the function, with its own split point by default, and by hand."""
    from saescope.concepts.explainers import TopKSAEConcepts

    explainer = TopKSAEConcepts(encoder, nb_concepts=20, top_k=4)
    activations = encoder.get_activations(SENTENCES, Unit.TOKEN)
    explainer.fit(activations, nb_epochs=2, batch_size=8)
    explainer.concept_model.double()
    found = explainer.concept_output_gradient(SENTENCES, targets=[1], error_term=True)
    ids = [real_ids(encoder.tokenizer, text) for text in SENTENCES]
    expected = [
        by_hand(
            explainer, each, units_of_tokens(encoder.tokenizer, each), lambda logits: logits[1:2],
            (bert_first, bert_second), error=True,
        )
        for each in ids
    ]  # fmt: skip
    close(found, expected)
    assert all(float(mine.abs().sum()) == pytest.approx(1) for mine in found)
