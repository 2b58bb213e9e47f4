"""End-to-end training: the windows it sees, and its losses against logits computed by hand."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from saescope.activations import (
    ActivationStream,
    Document,
    EndToEndStream,
    StreamConfig,
    TokenWindows,
    WindowConfig,
    output_cross_entropy,
    output_divergence,
)
from saescope.activations.end_to_end import OutputContext
from saescope.dictionaries import Dictionary, ReLU, architecture
from saescope.dictionaries.base import DictionaryConfig
from saescope.evaluation import evaluate
from saescope.models import HookPointError, LanguageModel
from saescope.training import TrainingBatch, TrainingConfig, train
from saescope.training.losses import L1, OutputTerm, SumOfTerms

HOOK, BLOCK = "blocks.1.hook_resid_post", 1
D = 16


@pytest.fixture(scope="module")
def text(documents: Any, tokenizer: Any) -> TokenWindows:
    return TokenWindows.build(documents[:4], tokenizer, WindowConfig(context_size=12))


@pytest.fixture(scope="module", params=["concatenate", "separate"])
def packed(request: Any, documents: Any, tokenizer: Any) -> TokenWindows:
    """Some windows cross documents, or some are padded."""
    return TokenWindows.build(documents[:4], tokenizer, WindowConfig(context_size=12, packing=request.param))


def whole_windows(windows: TokenWindows) -> list[list[int]]:
    """Ids of the windows that hold nothing but text after their opening token, by hand."""
    found = []
    for start, length in zip(windows.starts.tolist(), windows.lengths.tolist(), strict=True):
        ids = windows.tokens[start : start + length].tolist()
        if length == windows.config.context_size - 1 and 0 not in ids:
            found.append([0, *ids])
    return found


def run(model: LanguageModel, ids: list[int], replaced: dict[int, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Activations and log-probabilities of one window, with rows ``replaced`` in the block's output, in float64."""
    module = copy.deepcopy(model.module).double()
    seen: list[Tensor] = []

    def hook(block: Any, args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        seen.append(value[0].detach().clone())
        rows = [(replaced or {}).get(place, value[0, place]) for place in range(len(ids))]
        new = torch.stack(rows)[None]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    module.transformer.h[BLOCK].register_forward_hook(hook)
    logits = module(torch.tensor([ids])).logits[0]
    return seen[0], logits - logits.exp().sum(-1, keepdim=True).log()


def take(stream: EndToEndStream, number: int) -> list[TrainingBatch]:
    return list(itertools.islice(stream, number))


def same(a: TrainingBatch, b: TrainingBatch) -> bool:
    return (
        torch.equal(a.x, b.x)
        and torch.equal(a.context.ids, b.context.ids)
        and torch.equal(a.context.keep, b.context.keep)
    )


def test_batches_hold_whole_windows_with_their_own_activations(tiny: LanguageModel, packed: TokenWindows) -> None:
    expected = whole_windows(packed)
    assert 4 <= len(expected) < len(packed)
    stream = EndToEndStream(tiny, packed, HOOK, batch_size_windows=4)
    assert stream.batch_size_tokens == 4 * 11
    for batch in take(stream, len(expected) // 4):
        assert batch.target is None
        assert batch.x.shape == (44, D)
        assert batch.x.dtype == torch.float32
        assert batch.context.ids.shape == batch.context.keep.shape == (4, 12)
        assert batch.context.keep.tolist() == 4 * [[False] + 11 * [True]]
        for row, x in zip(batch.context.ids.tolist(), batch.x.view(4, 11, D), strict=True):
            assert row in expected
            torch.testing.assert_close(x.double(), run(tiny, row)[0][1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_every_pass_visits_each_window_once_in_a_new_order(
    tiny: LanguageModel, packed: TokenWindows, size: int
) -> None:
    expected = Counter(map(tuple, whole_windows(packed)))
    per_pass = sum(expected.values()) // size
    stream = EndToEndStream(tiny, packed, HOOK, batch_size_windows=size)
    orders, unseen = [], []
    for _ in range(4):
        rows = [tuple(row) for batch in take(stream, per_pass) for row in batch.context.ids.tolist()]
        assert not Counter(rows) - expected  # none twice
        assert len(rows) == per_pass * size > sum(expected.values()) - size  # and none left out but for a rest
        orders.append(tuple(rows))
        unseen.append(frozenset((expected - Counter(rows)).elements()))
    assert len(set(orders)) == 4
    if sum(expected.values()) % size:
        assert len(set(unseen)) > 1  # the rest is not always the same


def test_the_seed_decides_the_order(tiny: LanguageModel, text: TokenWindows) -> None:
    def drawn(seed: int) -> list[TrainingBatch]:
        return take(EndToEndStream(tiny, text, HOOK, batch_size_windows=2, seed=seed), 6)

    assert all(same(a, b) for a, b in zip(drawn(3), drawn(3), strict=True))
    assert not all(same(a, b) for a, b in zip(drawn(3), drawn(4), strict=True))


def test_resumed_at_any_step_it_goes_on_bit_for_bit(tiny: LanguageModel, packed: TokenWindows) -> None:
    def stream() -> EndToEndStream:
        return EndToEndStream(tiny, packed, HOOK, batch_size_windows=3)

    whole, states, straight = stream(), [], []
    for _ in range(2 * len(packed) // 3 + 2):
        states.append(json.loads(json.dumps(whole.state_dict())))
        straight.append(next(whole))
    for step, state in enumerate(states):
        resumed = stream()
        next(resumed)  # whatever it did before is forgotten
        resumed.load_state_dict(state)
        assert all(same(next(resumed), batch) for batch in straight[step : step + 3])


def test_what_can_not_be_streamed_is_refused_in_words(tiny: LanguageModel, text: TokenWindows, tokenizer: Any) -> None:
    whole = len(whole_windows(text))
    for size in (0, -1, whole + 1):
        with pytest.raises(
            ValueError, match=f"batch_size_windows = {size} must be between 1 and the {whole} whole windows"
        ):
            EndToEndStream(tiny, text, HOOK, batch_size_windows=size)
    EndToEndStream(tiny, text, HOOK, batch_size_windows=whole)
    with pytest.raises(HookPointError, match=r"hook_resid_pst.*hook_resid_post"):
        EndToEndStream(tiny, text, "blocks.1.hook_resid_pst")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=32,
    )  # fmt: skip
    masked = LanguageModel(BertForMaskedLM(config), tokenizer, "tiny-bert")
    with pytest.raises(ValueError, match="training on the model's output needs a causal language model; tiny-bert"):
        EndToEndStream(masked, text, "bert.encoder.layer.0")


def random_context(windows: TokenWindows, number: int = 5) -> OutputContext:
    """The first windows as they are: some cross documents, so that a special token stands inside."""
    batch = windows.batch(range(number))
    return OutputContext(batch.ids, batch.keep)


def values_for(context: OutputContext, seed: int = 0) -> Tensor:
    return torch.randn(int(context.keep.sum()), D, generator=torch.Generator().manual_seed(seed))


def by_hand(model: LanguageModel, context: OutputContext, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    """KL and CE per token by loops over places, in float64; differentiable in ``x_hat``."""
    rows = iter(x_hat.double())
    kl, ce, tokens, predictions = torch.zeros(()), torch.zeros(()), 0, 0
    for ids, keep in zip(context.ids.tolist(), context.keep.tolist(), strict=True):
        replaced = {place: next(rows) for place, kept in enumerate(keep) if kept}
        clean, changed = run(model, ids)[1].detach(), run(model, ids, replaced)[1]
        for place in replaced:
            p = clean[place].exp()
            kl = kl + (p * (clean[place] - changed[place])).sum()
            tokens += 1
            if place + 1 < len(ids):
                ce = ce - changed[place, ids[place + 1]]
                predictions += 1
    assert next(rows, None) is None
    return kl / tokens, ce / predictions


@pytest.fixture(scope="module")
def crossing(documents: Any, tokenizer: Any) -> TokenWindows:
    """Windows with documents' separators inside, in some and in others not."""
    short = [Document(document.name, document.text[: 8 + 12 * i]) for i, document in enumerate(documents[:6])]
    windows = TokenWindows.build(short, tokenizer, WindowConfig(context_size=10))
    assert len(windows.batch(range(3)).keep.sum(-1).unique()) > 1
    return windows


def test_both_losses_against_logits_by_hand(tiny: LanguageModel, crossing: TokenWindows, packed: TokenWindows) -> None:
    stream = EndToEndStream(tiny, packed, HOOK, batch_size_windows=3)
    for context in (random_context(crossing), next(stream).context):
        for seed in range(2):
            x_hat = values_for(context, seed)
            kl, ce = by_hand(tiny, context, x_hat)
            assert float(kl) > 0.1
            assert float(output_divergence(tiny, HOOK)(x_hat, context)) == pytest.approx(float(kl), rel=1e-4)
            assert float(output_cross_entropy(tiny, HOOK)(x_hat, context)) == pytest.approx(float(ce), rel=1e-4)


def test_a_perfect_reconstruction_costs_nothing(tiny: LanguageModel, text: TokenWindows) -> None:
    batch = next(EndToEndStream(tiny, text, HOOK, batch_size_windows=4))
    assert float(output_divergence(tiny, HOOK)(batch.x, batch.context)) == pytest.approx(0, abs=1e-6)
    own = torch.cat(
        [
            -run(tiny, ids)[1][1:-1].gather(-1, torch.tensor(ids)[2:, None]).squeeze(-1)
            for ids in batch.context.ids.tolist()
        ]
    )
    loss = float(output_cross_entropy(tiny, HOOK)(batch.x, batch.context))
    assert loss == pytest.approx(float(own.mean()), rel=1e-5)


def test_special_tokens_keep_their_own_activations(tiny: LanguageModel, crossing: TokenWindows) -> None:
    """Rebuilding every kept token as itself is perfect whatever stands at the special ones."""
    context = random_context(crossing)
    x = tiny.read(context.ids, [HOOK])[HOOK][context.keep]
    assert float(output_divergence(tiny, HOOK)(x, context)) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_that_of_the_evaluation(tiny: LanguageModel, text: TokenWindows) -> None:
    """On windows that are whole, both speak of the same tokens."""
    whole = whole_windows(text)
    rows = [i for i, ids in enumerate(text.batch(range(len(text))).ids.tolist()) if ids in whole]
    part = dataclasses.replace(text, starts=text.starts[rows], lengths=text.lengths[rows])
    batch = next(EndToEndStream(tiny, part, HOOK, batch_size_windows=len(part)))
    dictionary = small()
    evaluation = evaluate(dictionary, tiny, part, HOOK)
    with torch.no_grad():
        ce = output_cross_entropy(tiny, HOOK)(dictionary(batch.x), batch.context)
    assert float(ce) == pytest.approx(evaluation["ce_loss_spliced"].value, rel=1e-5)


def test_padding_is_no_text_to_predict(tiny: LanguageModel, documents: Any, tokenizer: Any) -> None:
    """Documents shorter than a window: where none is full, the stream refuses, or the loss does not ask for padding."""
    short = [Document(d.name, d.text[:40]) for d in documents[:8]]
    windows = TokenWindows.build(short, tokenizer, WindowConfig(context_size=32, packing="separate"))
    assert not windows.batch(range(len(windows))).attention.all(-1).any()
    try:
        stream = EndToEndStream(tiny, windows, HOOK, batch_size_windows=1)
    except ValueError as refusal:
        assert "whole windows" in str(refusal)  # noqa: PT017
        return
    batch = next(stream)
    ids = batch.context.ids[0, : int(batch.context.keep.sum()) + 1].tolist()
    log = run(tiny, ids)[1]
    own = [-float(log[place, ids[place + 1]]) for place in range(1, len(ids) - 1)]
    loss = float(output_cross_entropy(tiny, HOOK)(batch.x, batch.context))
    assert loss == pytest.approx(float(np.mean(own)), rel=1e-5)


@pytest.mark.parametrize("kind", ["kl", "ce"])
def test_gradients_reach_the_reconstruction(tiny: LanguageModel, crossing: TokenWindows, kind: str) -> None:
    """Against autograd through the loops by hand, and against finite differences of them, in float64."""
    context = random_context(crossing, 3)
    make = output_divergence if kind == "kl" else output_cross_entropy
    at = values_for(context)
    x_hat = at.clone().requires_grad_()
    make(tiny, HOOK)(x_hat, context).backward()
    assert x_hat.grad is not None

    def value(x: Tensor) -> Tensor:
        return by_hand(tiny, context, x)[kind == "ce"]

    exact = at.double().requires_grad_()
    (expected,) = torch.autograd.grad(value(exact), exact)
    torch.testing.assert_close(x_hat.grad.double(), expected, rtol=1e-3, atol=1e-5)
    counted = [int(keep.sum()) for keep in context.keep]
    last = counted[0] - 1  # what stands at a window's last place has no word to predict, and no one after it to tell
    assert bool(x_hat.grad[last].any()) == (kind == "kl")
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(at.shape, generator=generator, dtype=torch.float64)
        step = 1e-4 * direction
        slope = float(value(at.double() + step) - value(at.double() - step)) / 2e-4
        assert float((x_hat.grad.double() * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_the_model_gets_no_gradient_and_stays_as_it_was(tiny: LanguageModel, text: TokenWindows) -> None:
    """Even where somebody has thawed its weights."""
    model = LanguageModel(copy.deepcopy(tiny.module), tiny.tokenizer, "thawed")
    before = {name: parameter.clone() for name, parameter in model.module.named_parameters()}
    model.module.requires_grad_(True)
    batch = next(EndToEndStream(model, text, HOOK, batch_size_windows=2))
    assert not batch.x.requires_grad
    for make in (output_divergence, output_cross_entropy):
        model.module.requires_grad_(True)
        x_hat = (batch.x + 0.1).requires_grad_()
        make(model, HOOK)(x_hat, batch.context).backward()
        assert x_hat.grad is not None
        assert x_hat.grad.any()
    for name, parameter in model.module.named_parameters():
        assert parameter.grad is None, name
        assert torch.equal(parameter, before[name]), name
    ids = batch.context.ids
    assert torch.equal(model.logits(ids), tiny.logits(ids))  # no edit stays behind


def small(name: str = "relu", **settings: Any) -> Dictionary:
    cls: type[Dictionary] = ReLU if name == "relu" else architecture(name)
    config = DictionaryConfig if name == "relu" else cls.Config
    return cls(config(d_in=D, d_sae=48, **settings), seed=0)


def config_for(stream: EndToEndStream, num_steps: int, **settings: Any) -> TrainingConfig:
    return TrainingConfig(
        **{
            "num_tokens": num_steps * stream.batch_size_tokens, "batch_size_tokens": stream.batch_size_tokens,
            "lr": 1e-2, "num_warmup_steps": 5, "normalization": "none", "log_every_n_steps": 5,
            "num_threshold_tokens": 0, **settings,
        }
    )  # fmt: skip


def kl_and_l1(model: LanguageModel) -> SumOfTerms:
    return SumOfTerms({"kl": (OutputTerm(output_divergence(model, HOOK)), 1.0), "l1": (L1(), 1e-4)})


@pytest.mark.parametrize(("name", "settings"), [("relu", {}), ("topk", {"k": 4}), ("batch_topk", {"k": 4})])
def test_training_end_to_end_lowers_the_divergence(
    tiny: LanguageModel, text: TokenWindows, name: str, settings: Any
) -> None:
    def kl_after(num_steps: int) -> float:
        stream = EndToEndStream(tiny, text, HOOK, batch_size_windows=4)
        dictionary = small(name, **settings)
        result = train(dictionary, stream, config_for(stream, num_steps), loss=kl_and_l1(tiny))
        assert result.last is None or {"kl", "l1", "mse"} <= result.last.parts.keys()
        seen = next(EndToEndStream(tiny, text, HOOK, batch_size_windows=12, seed=9))
        with torch.no_grad():
            f = dictionary.activate_in_training(dictionary.pre_activations(seen.x))
            return float(by_hand(tiny, seen.context, dictionary.decode(f, seen.x))[0])

    first, last = kl_after(1), kl_after(80)
    assert 0 < last < 0.5 * first


def test_training_resumes_to_the_same_weights(tiny: LanguageModel, text: TokenWindows, tmp_path: Any) -> None:
    def parts() -> tuple[Dictionary, EndToEndStream]:
        return small(), EndToEndStream(tiny, text, HOOK, batch_size_windows=3)

    whole, stream = parts()
    config = config_for(stream, 20, checkpoint_every_n_steps=7)
    train(whole, stream, config, loss=kl_and_l1(tiny))
    stopped, stream = parts()

    def stop(done: int, total: int) -> None:
        if done == 11:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(stopped, stream, config, loss=kl_and_l1(tiny), folder=tmp_path, on_step=stop)
    resumed, stream = parts()
    train(resumed, stream, config, loss=kl_and_l1(tiny), folder=tmp_path, resume=True)
    for parameter_name, parameter in whole.named_parameters():
        assert parameter.equal(resumed.get_parameter(parameter_name)), parameter_name


def test_a_shuffled_stream_is_refused_in_words(tiny: LanguageModel, text: TokenWindows) -> None:
    settings = StreamConfig(buffer_size_tokens=80)
    stream = ActivationStream(tiny, text, [HOOK], batch_size_tokens=44, config=settings)
    config = TrainingConfig(num_tokens=440, batch_size_tokens=44, normalization="none")
    with pytest.raises(ValueError, match="a loss on the model's output needs a stream that gives the context"):
        train(small(), stream.at(HOOK), config, loss=kl_and_l1(tiny))


def test_reconstructions_of_another_shape_are_refused(tiny: LanguageModel, text: TokenWindows) -> None:
    """As of a stream at one hook point and a loss at another: never laid over the model's activations as they come."""
    wide = "transformer.h.1.mlp.c_fc"
    batch = next(EndToEndStream(tiny, text, wide, batch_size_windows=2))
    assert batch.x.shape[1] == 64
    for make in (output_divergence, output_cross_entropy):
        with pytest.raises((ValueError, RuntimeError), match=r"64|shape|width"):
            make(tiny, HOOK)(batch.x, batch.context)


def test_the_model_gets_reconstructions_in_its_own_units_or_training_refuses(
    tiny: LanguageModel, text: TokenWindows
) -> None:
    """With the default normalisation the dictionary works on scaled activations, which the model can not go on from."""
    given: list[Tensor] = []

    def spy(x_hat: Tensor, context: OutputContext) -> Tensor:
        given.append(x_hat.detach())
        return output_divergence(tiny, HOOK)(x_hat, context)

    def first_given(normalization: str) -> Tensor:
        given.clear()
        stream = EndToEndStream(tiny, text, HOOK, batch_size_windows=4)
        config = config_for(stream, 1, normalization=normalization)
        train(exact(), stream, config, loss=SumOfTerms({"kl": (OutputTerm(spy), 1.0)}))
        return given[0]

    x = next(EndToEndStream(tiny, text, HOOK, batch_size_windows=4)).x
    torch.testing.assert_close(first_given("none"), x)
    for normalization in ("scale", "unit_scale", "layer_norm", "whitening"):
        try:
            found = first_given(normalization)
        except ValueError as refusal:
            assert "normalization" in str(refusal)  # noqa: PT017
        else:
            torch.testing.assert_close(found, x)


def exact() -> Dictionary:
    """x = ReLU(x) - ReLU(-x), with a bias that marks it as one to be trained further."""
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=2 * D))
    assert dictionary.encoder_rows is not None
    with torch.no_grad():
        for rows in (dictionary.encoder_rows, dictionary.W_dec):
            rows.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
        dictionary.b_dec.fill_(0.01)
    return dictionary
