"""Evaluation: every number against plain loops in float64, and what must hold whatever the dictionary."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from saescope.activations import ActivationStream, Document, StreamConfig, TokenWindows, WindowConfig
from saescope.dictionaries import Dictionary, ReLU, TopK
from saescope.dictionaries.base import DictionaryConfig
from saescope.dictionaries.topk import TopKConfig
from saescope.evaluation import Evaluation, ModelLoss, evaluate
from saescope.models import LanguageModel

HOOK = "transformer.h.1"
D = 16


@pytest.fixture(scope="module", params=["concatenate", "separate"])
def text(request: Any, documents: Any, tokenizer: Any) -> TokenWindows:
    config = WindowConfig(context_size=12, packing=request.param)
    windows = TokenWindows.build(documents[:3], tokenizer, config)
    padded = not windows.batch(range(len(windows))).attention.all()
    assert padded == (request.param == "separate")
    return windows


def random_dictionary(kind: str) -> Dictionary:
    dictionary: Dictionary
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=40)) if kind == "relu" else TopK(TopKConfig(d_in=D, d_sae=40, k=5))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        dictionary.b_enc.copy_(0.5 * torch.randn(40, generator=generator) - 0.3)
        dictionary.b_enc[3:7] = -1e3  # never fire
        dictionary.b_dec.copy_(0.2 * torch.randn(D, generator=generator))
    return dictionary


def constant_dictionary(answer: Tensor) -> Dictionary:
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=8))
    with torch.no_grad():
        dictionary.W_dec.zero_()
        dictionary.b_dec.copy_(answer)
    return dictionary


def exact_dictionary() -> Dictionary:
    """x = ReLU(x) - ReLU(-x)."""
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=2 * D))
    with torch.no_grad():
        for rows in (dictionary.encoder_rows, dictionary.W_dec):
            rows.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
    return dictionary


@contextmanager
def hooked(block: nn.Module, act: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (act(output[0]), *output[1:])
        return act(output)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def by_hand(dictionary: Dictionary, model: LanguageModel, windows: TokenWindows, batch_size: int) -> dict[str, float]:
    """Every number by loops over windows and positions, in float64, each window alone and without its padding."""
    module = copy.deepcopy(model.module).double()
    dictionary = copy.deepcopy(dictionary).double()
    block = module.transformer.h[1]

    def ids_of(number: int) -> list[int]:
        start, length = int(windows.starts[number]), int(windows.lengths[number])
        return [0, *windows.tokens[start : start + length].tolist()]

    def run(ids: list[int], act: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad(), hooked(block, act):
            return module(torch.tensor([ids])).logits[0].log_softmax(-1)

    activations: list[dict[int, Tensor]] = []  # of each window, by kept place
    for number in range(len(windows)):
        ids = ids_of(number)
        seen = torch.zeros(len(ids), D, dtype=torch.float64)
        run(ids, lambda x, seen=seen: seen.copy_(x[0])[None])  # type: ignore[misc]
        activations.append({place: seen[place] for place, i in enumerate(ids) if i != 0})

    tokens = [x for window in activations for x in window.values()]
    mean = torch.stack(tokens).mean(0)
    with torch.no_grad():
        codes = [dictionary.encode(x[None])[0] for x in tokens]
        answers = [f @ dictionary.W_dec + dictionary.b_dec for f in codes]
    errors = [float((x - y).square().sum()) for x, y in zip(tokens, answers, strict=True)]
    legacy, place = [], 0
    for first in range(0, len(windows), batch_size):
        group = [x for window in activations[first : first + batch_size] for x in window.values()]
        centre = torch.stack(group).mean(0)
        for x in group:
            legacy.append(1 - errors[place] / float((x - centre).square().sum()))
            place += 1
    n = len(tokens)
    fired = torch.stack([f > 0 for f in codes])
    share = fired.double().mean(0)
    numbers = {
        "num_tokens": n,
        "explained_variance": 1 - sum(errors) / sum(float((x - mean).square().sum()) for x in tokens),
        "explained_variance_legacy": sum(legacy) / n,
        "cosine": sum(float(torch.cosine_similarity(x, y, 0)) for x, y in zip(tokens, answers, strict=True)) / n,
        "mse": sum(errors) / n,
        "l2_ratio": sum(float(y.norm() / x.norm()) for x, y in zip(tokens, answers, strict=True)) / n,
        "l0": float(fired.sum()) / n,
        "silent_share": float((share == 0).double().mean()),
        "dense_share": float((share > 0.1).double().mean()),
    }

    def replace(value: Callable[[Tensor], Tensor], kept: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
        def act(x: Tensor) -> Tensor:
            out = x.clone()
            for place in kept:
                out[0, place] = value(x[0, place])
            return out

        return act

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "clean": lambda x: x,
        "spliced": lambda x: dictionary(x[None])[0],
        "zero_ablation": torch.zeros_like,
        "mean_ablation": lambda x: mean,
    }
    ce, kl, predictions = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0), 0
    for number, kept in enumerate(activations):
        ids = ids_of(number)
        logs = {way: run(ids, replace(value, kept)) for way, value in ways.items()}
        for place in kept:
            if place + 1 == len(ids):
                continue
            predictions += 1
            p = logs["clean"][place]
            for way, log in logs.items():
                ce[way] -= float(log[place, ids[place + 1]])
                kl[way] += float((p.exp() * (p - log[place])).sum())
    numbers |= {f"ce_loss_{way}": total / predictions for way, total in ce.items()}
    numbers |= {f"kl_{way}": total / predictions for way, total in kl.items() if way != "clean"}
    ce_clean, ce_spliced, ce_zero, ce_mean = ce.values()
    numbers |= {
        "num_predictions": predictions,
        "ce_loss_recovered": (ce_zero - ce_spliced) / (ce_zero - ce_clean) if ce_zero > ce_clean else math.nan,
        "ce_loss_recovered_mean": (ce_mean - ce_spliced) / (ce_mean - ce_clean) if ce_mean > ce_clean else math.nan,
        "kl_recovered": 1 - kl["spliced"] / kl["zero_ablation"],
        "kl_recovered_mean": 1 - kl["spliced"] / kl["mean_ablation"],
    }
    return numbers


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_every_number_against_plain_loops(kind: str, tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary(kind)
    expected = by_hand(dictionary, tiny, text, batch_size=4)
    evaluation = evaluate(dictionary, tiny, text, HOOK, batch_size_windows=4)
    got = evaluation.numbers()
    assert got == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True)
    assert got["silent_share"] >= 4 / 40
    assert got["num_tokens"] == text.num_tokens
    with torch.no_grad():
        codes = [
            dictionary.encode(tiny.read(b.ids, [HOOK], attention_mask=b.attention)[HOOK][b.keep])
            for b in text.in_order(3)
        ]
    torch.testing.assert_close(
        evaluation.density, (torch.cat(codes) > 0).double().mean(0), rtol=0, atol=2.1 / len(codes[0])
    )
    assert float(evaluation.density.sum()) == pytest.approx(got["l0"])


def test_batches_do_not_matter(tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary("relu")
    one, many = (evaluate(dictionary, tiny, text, HOOK, batch_size_windows=size).numbers() for size in (1, 1000))
    for numbers in (one, many):
        del numbers["explained_variance_legacy"]  # the field's old figure does depend on them
    assert one == pytest.approx(many, rel=1e-4, abs=1e-6, nan_ok=True)


def test_a_dictionary_that_answers_zero_recovers_exactly_nothing(tiny: LanguageModel, text: TokenWindows) -> None:
    loss = evaluate(constant_dictionary(torch.zeros(D)), tiny, text, HOOK).model_loss
    assert loss is not None
    assert loss.ce_loss_spliced == loss.ce_loss_zero_ablation
    assert loss.kl_spliced == loss.kl_zero_ablation > 0.01
    assert loss.kl_recovered == 0
    assert loss.ce_loss_recovered == 0


def test_a_dictionary_that_answers_the_mean_recovers_nothing_of_mean_ablation(
    tiny: LanguageModel, text: TokenWindows
) -> None:
    batch = text.batch(range(len(text)))
    x = tiny.read(batch.ids, [HOOK], attention_mask=batch.attention)[HOOK][batch.keep]
    evaluation = evaluate(constant_dictionary(x.double().mean(0)), tiny, text, HOOK)
    loss = evaluation.model_loss
    assert loss is not None
    assert evaluation.reconstruction.explained_variance == pytest.approx(0, abs=1e-6)
    assert loss.kl_mean_ablation > 0.01
    assert loss.kl_recovered_mean == pytest.approx(0, abs=1e-5)
    assert loss.ce_loss_spliced == pytest.approx(loss.ce_loss_mean_ablation, rel=1e-6)
    assert loss.kl_spliced != pytest.approx(loss.kl_zero_ablation, rel=1e-2)  # the other ablation


def test_an_exact_dictionary_recovers_everything(tiny: LanguageModel, text: TokenWindows) -> None:
    evaluation = evaluate(exact_dictionary(), tiny, text, HOOK)
    loss = evaluation.model_loss
    assert loss is not None
    assert loss.ce_loss_spliced == loss.ce_loss_clean
    assert loss.kl_spliced == 0
    assert loss.kl_recovered == loss.kl_recovered_mean == 1
    assert loss.ce_loss_recovered == 1
    assert evaluation.reconstruction.explained_variance == 1
    assert evaluation.reconstruction.cosine == pytest.approx(1)
    assert (evaluation.sparsity.l0, evaluation.reconstruction.mse) == (D, 0)


def test_recovered_shares_by_hand() -> None:
    loss = ModelLoss(
        num_predictions=10, ce_loss_clean=2.0, ce_loss_spliced=2.5, ce_loss_zero_ablation=12.0,
        ce_loss_mean_ablation=4.0, kl_spliced=0.5, kl_zero_ablation=5.0, kl_mean_ablation=2.0,
    )  # fmt: skip
    assert loss.ce_loss_recovered == pytest.approx(0.95)
    assert loss.ce_loss_recovered_mean == pytest.approx(0.75)
    assert loss.kl_recovered == pytest.approx(0.9)
    assert loss.kl_recovered_mean == pytest.approx(0.75)


def test_special_tokens_and_padding_keep_their_activations_in_every_pass(
    tiny: LanguageModel, text: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asks each edit that the model is given what it does to an activation."""
    dictionary = random_dictionary("relu")
    batch = text.batch(range(len(text)))
    x = torch.randn(*batch.ids.shape, D, generator=torch.Generator().manual_seed(0))
    changed: list[Tensor] = []
    logits = tiny.logits

    def spy(ids: Tensor, *, attention_mask: Any = None, edits: Any = None) -> Tensor:
        assert torch.equal(ids, batch.ids)
        assert torch.equal(attention_mask, batch.attention)
        if edits:
            (edit,) = edits.values()
            assert list(edits) == [HOOK]
            given = x.clone()
            changed.append(edit(given))
            assert torch.equal(given, x)
        return logits(ids, attention_mask=attention_mask, edits=edits)

    monkeypatch.setattr(tiny, "logits", spy)
    evaluate(dictionary, tiny, text, HOOK, batch_size_windows=1000)
    content = batch.attention & (batch.ids != 0)
    assert not content.all()
    clean, spliced, zero, mean = changed
    assert torch.equal(clean, x)  # the clean pass is only looked at
    for values in (spliced, zero, mean):
        assert torch.equal(values[~content], x[~content])
        assert (values[content] != x[content]).any(-1).all()
    own = tiny.read(batch.ids, [HOOK], attention_mask=batch.attention)[HOOK]
    with torch.no_grad():
        torch.testing.assert_close(spliced[content], dictionary(own[content]))
    assert not zero[content].any()
    assert (mean[content] == mean[content][0]).all()


def test_the_model_and_the_training_stream_do_not_notice(tiny: LanguageModel, text: TokenWindows) -> None:
    def stream() -> ActivationStream:
        config = StreamConfig(buffer_size_tokens=60)
        return ActivationStream(tiny, text, [HOOK], batch_size_tokens=20, config=config)

    def num_hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.module.modules())

    dictionary = random_dictionary("topk").train()
    weights = copy.deepcopy(dictionary.state_dict())
    ids = text.batch([0]).ids
    before = tiny.logits(ids)
    hooks, random_state = num_hooks(), torch.get_rng_state()
    undisturbed = stream()
    expected = [next(undisturbed) for _ in range(12)]
    disturbed, got = stream(), []
    for step in range(12):
        if step in (0, 3, 7):
            evaluate(dictionary, tiny, text, HOOK, num_tokens=60)
        got.append(next(disturbed))
    assert all(
        torch.equal(a.values[HOOK], b.values[HOOK]) and torch.equal(a.positions, b.positions)
        for a, b in zip(got, expected, strict=True)
    )
    assert num_hooks() == hooks
    assert torch.equal(tiny.logits(ids), before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(weights[name], value) for name, value in dictionary.state_dict().items())
    assert dictionary.training


def test_num_tokens_and_progress(tiny: LanguageModel, text: TokenWindows) -> None:
    calls: list[tuple[int, int]] = []
    evaluation = evaluate(
        random_dictionary("relu"), tiny, text, HOOK, num_tokens=100, batch_size_windows=2,
        on_progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert 60 < evaluation.reconstruction.num_tokens <= 100
    assert evaluation.sparsity.num_tokens == evaluation.reconstruction.num_tokens
    total = calls[0][1]
    assert calls == [(done, total) for done in range(1, total + 1)]
    with pytest.raises(ValueError, match="num_tokens = 3 is less than what one window holds"):
        evaluate(random_dictionary("relu"), tiny, text, HOOK, num_tokens=3)


def test_another_width_is_refused(tiny: LanguageModel, text: TokenWindows) -> None:
    with pytest.raises(ValueError, match=r"d_in = 16, but transformer\.h\.1\.mlp\.c_fc of tiny has width 64; name the"):
        evaluate(random_dictionary("relu"), tiny, text, "transformer.h.1.mlp.c_fc")


def test_an_ablation_without_harm_leaves_no_number(tiny: LanguageModel, text: TokenWindows) -> None:
    """An MLP that writes nothing: to replace it by nothing costs nothing, and there is nothing to recover."""
    module = copy.deepcopy(tiny.module)
    with torch.no_grad():
        for parameter in module.transformer.h[1].mlp.c_proj.parameters():
            parameter.zero_()
    model = LanguageModel(module, tiny.tokenizer, "silent")
    evaluation = evaluate(random_dictionary("relu"), model, text, "transformer.h.1.mlp")
    assert evaluation.model_loss is not None
    with pytest.raises(ValueError, match="the ablation does not raise the loss"):
        _ = evaluation.model_loss.kl_recovered
    numbers = evaluation.numbers()
    for name in ("ce_loss_recovered", "ce_loss_recovered_mean", "kl_recovered", "kl_recovered_mean"):
        assert math.isnan(numbers[name])
    assert numbers["kl_zero_ablation"] == 0
    assert numbers["kl_spliced"] > 0


def test_batches_of_special_tokens_alone_are_harmless(tiny: LanguageModel, documents: Any, tokenizer: Any) -> None:
    ends = Document("ends", "<|endoftext|>" * 70)
    windows = TokenWindows.build([documents[0], ends, documents[1]], tokenizer, WindowConfig(context_size=8))
    kept = windows.batch(range(len(windows))).keep.sum(-1)
    assert (kept == 0).sum() > 5
    for kind in ("relu", "topk"):
        with_ends = evaluate(random_dictionary(kind), tiny, windows, HOOK, batch_size_windows=2)
        at_once = evaluate(random_dictionary(kind), tiny, windows, HOOK, batch_size_windows=1000)
        assert with_ends.reconstruction.num_tokens == windows.num_tokens
        assert with_ends.model_loss is not None
        assert at_once.model_loss is not None
        assert with_ends.model_loss.kl_spliced == pytest.approx(at_once.model_loss.kl_spliced, rel=1e-4)
    ends_only = TokenWindows.build([ends], tokenizer, WindowConfig(context_size=8))
    with pytest.raises(ValueError, match="no tokens were measured"):
        evaluate(random_dictionary("relu"), tiny, ends_only, HOOK)


def test_windows_of_one_token_predict_nothing(tiny: LanguageModel, tokenizer: Any) -> None:
    config = WindowConfig(context_size=8, packing="separate")
    windows = TokenWindows.build([Document("a", "("), Document("b", ")")], tokenizer, config)
    with pytest.raises(ValueError, match="no predictions to measure"):
        evaluate(random_dictionary("relu"), tiny, windows, HOOK)


def test_a_masked_model_has_no_next_token_loss(documents: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    model = LanguageModel(BertForMaskedLM(config), tokenizer, "tiny-bert")
    windows = TokenWindows.build(documents[:4], tokenizer, WindowConfig(context_size=16, packing="separate"))
    calls: list[tuple[int, int]] = []
    dictionary, hook = random_dictionary("relu"), "bert.encoder.layer.0"
    evaluation: Evaluation = evaluate(
        dictionary, model, windows, hook, batch_size_windows=5, on_progress=lambda *call: calls.append(call)
    )
    assert evaluation.model_loss is None
    assert calls[-1] == (len(calls), len(calls))
    assert not any("loss" in name or "kl" in name for name in evaluation.numbers())
    # a model that sees both sides must not see the padding
    tokens = []
    for number in range(len(windows)):
        batch = windows.batch([number])
        length = int(batch.attention.sum())
        tokens.append(model.read(batch.ids[:, :length], [hook])[hook][0, batch.keep[0, :length]])
    x = torch.cat(tokens).double()
    with torch.no_grad():
        error = (x - dictionary(x.float())).square().sum(-1).mean()
    assert evaluation.reconstruction.num_tokens == len(x) == windows.num_tokens
    assert evaluation.reconstruction.mse == pytest.approx(float(error), rel=1e-4)
    variance = (x - x.mean(0)).square().sum(-1).mean()
    assert evaluation.reconstruction.explained_variance == pytest.approx(float(1 - error / variance), rel=1e-4)
