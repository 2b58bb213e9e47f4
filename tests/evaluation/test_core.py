"""Evaluation: every number against plain loops in float64, and what must hold whatever the dictionary."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from saescope.activations import ActivationStream, Document, StreamConfig, TokenWindows, WindowConfig
from saescope.dictionaries import Dictionary, ReLU, TopK
from saescope.dictionaries.base import DictionaryConfig
from saescope.dictionaries.codes import SparseCodes
from saescope.dictionaries.topk import TopKConfig
from saescope.evaluation import (
    Baselines,
    StudyResult,
    TokenSample,
    evaluate,
    evaluate_activations,
    read_sample,
)
from saescope.evaluation.core.splicing import CleanPass
from saescope.evaluation.core.study import _REBUILT_NUMBERS, _Core
from saescope.evaluation.sites import Sites
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


def floats(numbers: dict[str, float | None]) -> dict[str, float]:
    """NaN where a number is not defined."""
    return {name: math.nan if value is None else value for name, value in numbers.items()}


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


def by_hand(dictionary: Dictionary, model: LanguageModel, windows: TokenWindows) -> dict[str, float]:
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
    legacy = [1 - error / float((x - mean).square().sum()) for error, x in zip(errors, tokens, strict=True)]
    n = len(tokens)
    # resampling: a pool spread evenly over the tokens, and a row of it for each
    pool = [tokens[i] for i in sorted({round(i * (n - 1) / (min(n, 4096) - 1)) for i in range(min(n, 4096))})]
    rows = np.random.default_rng(0).integers(len(pool), size=n)
    fired = torch.stack([f > 0 for f in codes])
    share = fired.double().mean(0)
    numbers = {
        "num_tokens": n,
        "explained_variance": 1 - sum(errors) / sum(float((x - mean).square().sum()) for x in tokens),
        "explained_variance_legacy": sum(legacy) / n,
        "cosine": sum(float(torch.cosine_similarity(x, y, 0)) for x, y in zip(tokens, answers, strict=True)) / n,
        "mse": sum(errors) / n,
        "l2_ratio": sum(float(y.norm() / x.norm()) for x, y in zip(tokens, answers, strict=True)) / n,
        "l2_norm_in": sum(float(x.norm()) for x in tokens) / n,
        "l2_norm_out": sum(float(y.norm()) for y in answers) / n,
        "relative_reconstruction_bias": sum(float(y @ y) for y in answers)
        / sum(float(x @ y) for x, y in zip(tokens, answers, strict=True)),
        "l1": sum(float(f.abs().sum()) for f in codes) / n,
        "over_1_percent_share": float((share > 0.01).double().mean()),
        "dense_firings_share": float(share[share > 0.1].sum() / share.sum()),
        "l0": float(fired.sum()) / n,
        "silent_share": float((share == 0).double().mean()),
        "dense_share": float((share > 0.1).double().mean()),
    }

    def replace(value: Callable[[Tensor, int], Tensor], kept: dict[int, Tensor], before: int) -> Callable[..., Tensor]:
        def act(x: Tensor) -> Tensor:
            out = x.clone()
            for number, place in enumerate(kept, start=before):
                out[0, place] = value(x[0, place], number)
            return out

        return act

    ways: dict[str, Callable[[Tensor, int], Tensor]] = {
        "clean": lambda x, _: x,
        "spliced": lambda x, _: dictionary(x[None])[0],
        "zero_ablation": lambda x, _: torch.zeros_like(x),
        "mean_ablation": lambda x, _: mean,
        "resample_ablation": lambda x, number: pool[rows[number]],
    }
    before = 0
    ce, kl, predictions = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0), 0
    for number, kept in enumerate(activations):
        ids = ids_of(number)
        logs = {way: run(ids, replace(value, kept, before)) for way, value in ways.items()}
        before += len(kept)
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
    numbers["num_predictions"] = predictions
    for name, way in (("", "zero"), ("_mean", "mean"), ("_resample", "resample")):
        for loss, found in (("ce_loss", ce), ("kl", kl)):
            ablated, damage = found[f"{way}_ablation"], found[f"{way}_ablation"] - found["clean"]
            numbers[f"{loss}_recovered{name}"] = (ablated - found["spliced"]) / damage if damage > 0 else math.nan
    rows_of = {"decoder": dictionary.W_dec.detach(), "encoder": dictionary.W_enc.T.detach()}
    for which, matrix in rows_of.items():
        best = [
            max(float(torch.cosine_similarity(a, b, 0)) for j, b in enumerate(matrix) if j != i)
            for i, a in enumerate(matrix)
        ]
        numbers[f"mean_max_{which}_cosine"] = sum(best) / len(best)
    alike = [float(torch.cosine_similarity(a, b, 0)) for a, b in zip(*rows_of.values(), strict=True)]
    numbers["encoder_decoder_cosine"] = sum(alike) / len(alike)
    numbers["num_documents"] = len({windows.document_of(int(p))[0].name for p in _kept_positions(windows)})
    return numbers


def _kept_positions(windows: TokenWindows) -> Tensor:
    batch = windows.batch(range(len(windows)))
    return batch.positions[batch.keep]


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_every_number_against_plain_loops(kind: str, tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary(kind)
    expected = by_hand(dictionary, tiny, text)
    evaluation = evaluate(dictionary, tiny, text, HOOK, batch_size_windows=4)
    got = evaluation.values()
    assert floats(got) == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True)
    assert got["silent_share"] >= 4 / 40
    assert got["num_tokens"] == text.num_tokens
    with torch.no_grad():
        codes = [
            dictionary.encode(tiny.read(b.ids, [HOOK], attention_mask=b.attention)[HOOK][b.keep])
            for b in text.in_order(3)
        ]
    density = evaluation.curves["features"]["density"]
    torch.testing.assert_close(
        torch.tensor(density), (torch.cat(codes) > 0).float().mean(0), rtol=0, atol=2.1 / len(codes[0])
    )
    assert sum(density) == pytest.approx(got["l0"])


def test_batches_do_not_matter(tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary("relu")
    one, many = (evaluate(dictionary, tiny, text, HOOK, batch_size_windows=size).values() for size in (1, 1000))
    assert floats(one) == pytest.approx(floats(many), nan_ok=True, rel=1e-4, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_a_dictionary_that_answers_like_an_ablation_recovers_exactly_nothing_of_it(
    tiny: LanguageModel, text: TokenWindows, ablation: str
) -> None:
    dictionary = random_dictionary("relu")
    sites = Sites.of(dictionary, tiny, HOOK)
    baselines = Baselines.measure(tiny, text, sites, batch_size_windows=3)
    core = _Core.on(
        dictionary, baselines, answer=lambda x, tokens: baselines.replacement(ablation, tokens).expand_as(x)
    )
    for batch, tokens in baselines.batches():
        core.add(CleanPass.run(tiny, sites, batch), tokens)
    numbers = core.result(0, 0.0).values()
    end = {"zero": "", "mean": "_mean", "resample": "_resample"}[ablation]
    assert numbers[f"ce_loss_recovered{end}"] in (0, None)
    assert numbers[f"kl_recovered{end}"] == 0
    assert numbers["kl_spliced"] == numbers[f"kl_{ablation}_ablation"] > 0.01
    assert numbers["ce_loss_spliced"] == numbers[f"ce_loss_{ablation}_ablation"]
    others = {"", "_mean", "_resample"} - {end}
    assert all(abs(numbers[f"kl_recovered{other}"]) > 1e-3 for other in others)


def test_constant_dictionaries_score_zero_through_the_front_door(tiny: LanguageModel, text: TokenWindows) -> None:
    zero = evaluate(constant_dictionary(torch.zeros(D)), tiny, text, HOOK).values()
    assert zero["kl_recovered"] == 0
    assert zero["cosine"] == 0
    assert zero["l2_norm_out"] == 0
    baselines = Baselines.measure(tiny, text, Sites.of(random_dictionary("relu"), tiny, HOOK))
    mean = evaluate(constant_dictionary(baselines.mean.float()), tiny, text, HOOK).values()
    assert mean["kl_recovered_mean"] == 0
    assert mean["explained_variance"] == pytest.approx(0, abs=1e-6)


def test_an_exact_dictionary_recovers_everything(tiny: LanguageModel, text: TokenWindows) -> None:
    evaluation = evaluate(exact_dictionary(), tiny, text, HOOK)
    numbers = evaluation.values()
    assert numbers["ce_loss_spliced"] == numbers["ce_loss_clean"]
    assert numbers["kl_spliced"] == 0
    for end in ("", "_mean", "_resample"):
        assert numbers[f"ce_loss_recovered{end}"] in (1, None)
        assert numbers[f"kl_recovered{end}"] == 1
        assert (evaluation[f"kl_recovered{end}"].low, evaluation[f"kl_recovered{end}"].high) == (1, 1)
    assert numbers["explained_variance"] == numbers["explained_variance_legacy"] == 1
    assert numbers["cosine"] == pytest.approx(1)
    assert numbers["relative_reconstruction_bias"] == pytest.approx(1)
    assert (numbers["l0"], numbers["mse"]) == (D, 0)


def test_the_offset_case_has_its_true_explained_variance() -> None:
    """d = 768, offset 3, sigma 1, a quarter of the variance missing: SAEBench 0.6 says 0.975 of this."""
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(4000, 768, generator=generator)
    x_hat = x + 0.5 * torch.randn(4000, 768, generator=generator)
    found = rebuilt_numbers(x, x_hat)
    assert found["explained_variance"] == pytest.approx(0.750, abs=0.002)
    assert found["explained_variance_legacy"] == pytest.approx(0.749, abs=0.002)


def rebuilt_numbers(x: Tensor, x_hat: Tensor) -> dict[str, float]:
    """Formulas of the core study on given activations, without a model."""
    core = object.__new__(_Core)
    core.mean = x.double().mean(0)
    columns = core._rebuilt(x.double(), x_hat.double(), SparseCodes.from_dense(torch.zeros(len(x), 1)))
    sums = {name: column.sum(keepdims=True) for name, column in columns.items()}
    return {name: float(formula(sums)[0]) for name, formula, *_ in _REBUILT_NUMBERS}


def test_bare_activations_give_the_numbers_that_need_no_model(tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary("topk")
    with_model = evaluate(dictionary, tiny, text, HOOK)
    sample = read_sample(tiny, text, [HOOK])
    alone = evaluate_activations(dictionary, sample)
    for number in alone.numbers:
        expected = with_model[number.name]
        if number.value is None:
            assert number.reason == "these are activations without a model to lose anything"
            assert "loss" in number.name or "kl" in number.name
        else:
            assert number.value == pytest.approx(expected.value, rel=1e-5), number.name
            assert (number.low or 0) == pytest.approx(expected.low or 0, rel=1e-4, abs=1e-5), number.name
    assert alone.tables == {}
    assert alone.curves["density_histogram"] == with_model.curves["density_histogram"]
    with pytest.raises(ValueError, match="d_in = 16 and d_out = 16, but the activations have width 15 and 15"):
        evaluate_activations(dictionary, TokenSample.of_activations(torch.randn(9, 15)))


def test_intervals_hold_the_number_and_shrink_with_documents(
    tiny: LanguageModel, documents: Any, tokenizer: Any
) -> None:
    def width(count: int) -> float:
        windows = TokenWindows.build(documents[:count], tokenizer, WindowConfig(context_size=12))
        number = evaluate(random_dictionary("relu"), tiny, windows, HOOK)["kl_spliced"]
        assert number.low is not None
        assert number.high is not None
        assert number.low <= number.value <= number.high
        return number.high - number.low

    assert width(len(documents)) < width(3)


def test_breakdowns_are_parts_of_the_whole(tiny: LanguageModel, text: TokenWindows) -> None:
    evaluation = evaluate(random_dictionary("relu"), tiny, text, HOOK)
    kept = text.batch(range(len(text)))
    places = kept.keep.nonzero()[:, 1]
    for name, rows in evaluation.tables.items():
        assert sum(row["num_tokens"] for row in rows) == evaluation["num_tokens"].value, name
        l0 = sum(row["l0"] * row["num_tokens"] for row in rows) / len(places)
        assert l0 == pytest.approx(evaluation["l0"].value)
    found = {row["position"]: row["num_tokens"] for row in evaluation.tables["by position"]}
    assert found["1 to 2"] == int(((places == 1) | (places == 2)).sum())
    assert found["3 to 6"] == int(((places >= 3) & (places <= 6)).sum())
    ids = kept.ids[kept.keep].tolist()
    common = {token for token, _ in sorted(Counter(ids).items(), key=lambda pair: (-pair[1], pair[0]))[:10]}
    (first, *_) = evaluation.tables["by token frequency"]
    assert first["num_tokens"] == sum(token in common for token in ids)


def test_a_dead_dictionary_and_one_with_nan_weights(tiny: LanguageModel, text: TokenWindows) -> None:
    dead = random_dictionary("relu")
    with torch.no_grad():
        dead.b_enc.fill_(-1e6)
    evaluation = evaluate(dead, tiny, text, HOOK)
    assert evaluation["silent_share"].value == 1
    assert evaluation["dense_firings_share"].value is None
    assert evaluation["dense_firings_share"].reason == "no feature fired"
    assert any("dead" in note for note in evaluation.notes)
    with torch.no_grad():
        dead.W_dec[3, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of the 640 values of the dictionary's W_dec are NaN or infinite"):
        evaluate(dead, tiny, text, HOOK)


def test_baselines_serve_many_dictionaries_and_refuse_other_places(tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary("topk")
    shared = Baselines.measure(tiny, text, Sites.of(dictionary, tiny, HOOK))
    alone = evaluate(dictionary, tiny, text, HOOK)
    assert evaluate(dictionary, tiny, text, HOOK, baselines=shared).values() == alone.values()
    with pytest.raises(ValueError, match=r"measured at transformer\.h\.1, not transformer\.h\.0"):
        evaluate(dictionary, tiny, text, "transformer.h.0", baselines=shared)


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
    _, zero, mean, resampled, clean, spliced = changed
    assert torch.equal(clean, x)  # the clean pass is only looked at
    for values in (spliced, zero, mean, resampled):
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
    assert 60 < evaluation["num_tokens"].value <= 100
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
    numbers = evaluation.values()
    for name in ("ce_loss_recovered", "kl_recovered"):
        assert numbers[name] is None
        assert "the ablation does not raise the loss" in evaluation[name].reason
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
        assert with_ends["num_tokens"].value == windows.num_tokens
        assert with_ends["kl_spliced"].value == pytest.approx(at_once["kl_spliced"].value, rel=1e-4)
    ends_only = TokenWindows.build([ends], tokenizer, WindowConfig(context_size=8))
    with pytest.raises(ValueError, match="nothing but special tokens"):
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
    evaluation: StudyResult = evaluate(
        dictionary, model, windows, hook, batch_size_windows=5, on_progress=lambda *call: calls.append(call)
    )
    assert calls[-1] == (len(calls), len(calls))
    for number in evaluation.numbers:
        if "loss" in number.name or number.name.startswith("kl"):
            assert number.value is None
            assert "predicts no next token" in number.reason
    # a model that sees both sides must not see the padding
    tokens = []
    for number in range(len(windows)):
        batch = windows.batch([number])
        length = int(batch.attention.sum())
        tokens.append(model.read(batch.ids[:, :length], [hook])[hook][0, batch.keep[0, :length]])
    x = torch.cat(tokens).double()
    with torch.no_grad():
        error = (x - dictionary(x.float())).square().sum(-1).mean()
    assert evaluation["num_tokens"].value == len(x) == windows.num_tokens
    assert evaluation["mse"].value == pytest.approx(float(error), rel=1e-4)
    variance = (x - x.mean(0)).square().sum(-1).mean()
    assert evaluation["explained_variance"].value == pytest.approx(float(1 - error / variance), rel=1e-4)
