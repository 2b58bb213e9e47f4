"""Evaluation where a dictionary writes elsewhere than it reads, or at several places: transcoders and crosscoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from saescope.activations import TokenWindows, WindowConfig
from saescope.dictionaries import Dictionary, architecture
from saescope.evaluation import evaluate
from saescope.models import HookPointError, LanguageModel

MLP_IN, MLP_OUT = "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
NORM, WIDE = "transformer.h.1.ln_2", "transformer.h.1.mlp.c_fc"  # 16 and 64 wide, with a linear map between
SOURCES = ("blocks.0.hook_mlp_out", WIDE, "blocks.2.hook_attn_out")
WIDTHS = (16, 64, 16)


@pytest.fixture(scope="module", params=["concatenate", "separate"])
def packed(request: Any, documents: Any, tokenizer: Any) -> TokenWindows:
    """Special tokens inside windows, or padding."""
    return TokenWindows.build(documents[:3], tokenizer, WindowConfig(context_size=12, packing=request.param))


@pytest.fixture(scope="module")
def text(documents: Any, tokenizer: Any) -> TokenWindows:
    return TokenWindows.build(documents[:3], tokenizer, WindowConfig(context_size=12, packing="separate"))


def random_dictionary(name: str, **settings: Any) -> Dictionary:
    """Every parameter drawn at random, a few features that never fire."""
    cls = architecture(name)
    dictionary = cls(cls.Config(d_sae=40, **settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in dictionary.named_parameters():
            scale = 1.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter_name == "threshold":
                parameter.abs_()
        assert dictionary.b_enc is not None
        dictionary.b_enc[3:7] = -1e3
    return dictionary


def features(dictionary: Dictionary, x: Tensor) -> Tensor:
    """One token's features: the encoder of this module's architectures by hand."""
    assert dictionary.b_enc is not None
    assert dictionary.encoder_rows is not None
    pre = dictionary.encoder_rows @ x + dictionary.b_enc
    if dictionary.config.apply_b_dec_to_input:
        pre = dictionary.encoder_rows @ (x - dictionary.b_dec) + dictionary.b_enc
    k = getattr(dictionary.config, "k", None)
    if hasattr(dictionary, "threshold"):
        return pre * (pre > dictionary.threshold)
    if k is not None:
        kept = torch.zeros_like(pre)
        for index in sorted(range(len(pre)), key=lambda i: -float(pre[i]))[:k]:
            kept[index] = pre[index].clamp_min(0)
        return kept
    return pre.clamp_min(0)


def floats(numbers: dict[str, float | None]) -> dict[str, float]:
    """NaN where a number is not defined."""
    return {name: math.nan if value is None else value for name, value in numbers.items()}


def answer(dictionary: Dictionary, x: Tensor) -> Tensor:
    y = features(dictionary, x) @ dictionary.W_dec + dictionary.b_dec
    if getattr(dictionary, "has_skip", False):
        y = y + dictionary.W_skip @ x
    return y


@torch.no_grad()
def by_hand(
    dictionary: Dictionary, model: LanguageModel, windows: TokenWindows, reads: Sequence[str], writes: Sequence[str]
) -> dict[str, float]:
    """Every number by loops over windows and places; each window is read and edited alone, without its padding."""
    texts = []
    for number in range(len(windows)):
        start, length = int(windows.starts[number]), int(windows.lengths[number])
        texts.append(torch.tensor([[0, *windows.tokens[start : start + length].tolist()]]))
    widths = [model.width(name) for name in writes]
    answers: list[dict[int, Tensor]] = []
    tokens: list[tuple[Tensor, Tensor, Tensor]] = []  # features, target, reconstruction
    for ids in texts:
        seen = model.read(ids, [*reads, *writes])
        answers.append({})
        for place in range(ids.shape[1]):
            if ids[0, place] == 0:
                continue
            x = torch.cat([seen[name][0, place] for name in reads])
            y = torch.cat([seen[name][0, place] for name in writes])
            answers[-1][place] = answer(dictionary, x)
            tokens.append((features(dictionary, x), y.double(), answers[-1][place].double()))
    n = len(tokens)
    mean = sum(y for _, y, _ in tokens) / n  # type: ignore[arg-type, operator]
    assert isinstance(mean, Tensor)
    error = sum(float((y - y_hat).square().sum()) for _, y, y_hat in tokens)
    spread = sum(float((y - mean).square().sum()) for _, y, _ in tokens)
    fired = sum((f > 0).double() for f, _, _ in tokens)
    assert isinstance(fired, Tensor)
    numbers = {
        "num_tokens": n,
        "explained_variance": 1 - error / spread,
        "mse": error / n,
        "cosine": sum(float(torch.cosine_similarity(y, y_hat, 0)) for _, y, y_hat in tokens) / n,
        "l2_ratio": sum(float(y_hat.norm() / y.norm()) for _, y, y_hat in tokens) / n,
        "l0": float(fired.sum()) / n,
        "silent_share": float((fired == 0).double().mean()),
        "dense_share": float((fired > 0.1 * n).double().mean()),
    }

    def edits(values: dict[int, Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
        def put(first: int, width: int) -> Callable[[Tensor], Tensor]:
            def edit(x: Tensor) -> Tensor:
                for place, value in values.items():
                    x[0, place] = value[first : first + width]
                return x

            return edit

        return {name: put(sum(widths[:i]), widths[i]) for i, name in enumerate(writes)}

    ce, kl, predictions = {}, {}, 0
    for ids, values in zip(texts, answers, strict=True):
        ways = {
            "clean": {},
            "spliced": values,
            "zero_ablation": dict.fromkeys(values, torch.zeros(sum(widths))),
            "mean_ablation": dict.fromkeys(values, mean.float()),
        }
        logs = {}
        for way, replaced in ways.items():
            with model.edit(edits(replaced)):
                logs[way] = model.logits(ids)[0].double().log_softmax(-1)
        for place in values:
            if place + 1 == ids.shape[1]:
                continue
            predictions += 1
            clean = logs["clean"][place]
            for way, log in logs.items():
                ce[way] = ce.get(way, 0.0) - float(log[place, ids[0, place + 1]])
                kl[way] = kl.get(way, 0.0) + float((clean.exp() * (clean - log[place])).sum())
    numbers |= {f"ce_loss_{way}": total / predictions for way, total in ce.items()}
    numbers |= {f"kl_{way}": total / predictions for way, total in kl.items() if way != "clean"}
    numbers["num_predictions"] = predictions
    for name, ablation in (("recovered", "zero_ablation"), ("recovered_mean", "mean_ablation")):
        damage = ce[ablation] - ce["clean"]
        numbers[f"ce_loss_{name}"] = (ce[ablation] - ce["spliced"]) / damage if damage > 0 else math.nan
        numbers[f"kl_{name}"] = 1 - kl["spliced"] / kl[ablation]
    return numbers


TRANSCODERS = [
    ("transcoder", MLP_IN, MLP_OUT, {"d_in": 16, "d_out": 16}),
    ("topk_skip_transcoder", MLP_IN, MLP_OUT, {"d_in": 16, "d_out": 16, "k": 5}),
    ("jumprelu_transcoder", "blocks.0.hook_resid_pre", WIDE, {"d_in": 16, "d_out": 64}),
    # written to before it is read: what is put there must not change what the dictionary reads
    ("topk_transcoder", "blocks.2.hook_mlp_in", MLP_OUT, {"d_in": 16, "d_out": 16, "k": 5}),
    ("skip_transcoder", WIDE, "blocks.0.hook_resid_post", {"d_in": 64, "d_out": 16}),
    # the place read is the very place written to
    ("transcoder", MLP_OUT, MLP_OUT, {"d_in": 16, "d_out": 16}),
]


@pytest.mark.parametrize(("name", "source", "target", "settings"), TRANSCODERS)
def test_every_number_of_a_transcoder_against_plain_loops(
    tiny: LanguageModel, packed: TokenWindows, name: str, source: str, target: str, settings: Any
) -> None:
    dictionary = random_dictionary(name, **settings)
    expected = by_hand(dictionary, tiny, packed, [source], [target])
    evaluation = evaluate(dictionary, tiny, packed, source, hook_point_out=target, batch_size_windows=4)
    got = evaluation.values()
    assert {name: floats(got)[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True)
    assert expected["kl_spliced"] > 0.01
    assert got["silent_share"] >= 4 / 40
    assert sum(evaluation.curves["features"]["density"]) == pytest.approx(got["l0"])


@pytest.mark.parametrize(("name", "settings"), [("relu_crosscoder", {}), ("topk_crosscoder", {"k": 5})])
def test_every_number_of_a_crosscoder_against_plain_loops(
    tiny: LanguageModel, packed: TokenWindows, name: str, settings: Any
) -> None:
    """All sources are replaced at once, by what the features of the untouched model say."""
    dictionary = random_dictionary(name, d_in=sum(WIDTHS), source_widths=WIDTHS, **settings)
    expected = by_hand(dictionary, tiny, packed, SOURCES, SOURCES)
    got = evaluate(dictionary, tiny, packed, SOURCES, batch_size_windows=4).values()
    assert {name: floats(got)[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True)
    assert evaluate(dictionary, tiny, packed, list(SOURCES)).values()["kl_spliced"] == pytest.approx(got["kl_spliced"])


def test_all_sources_matter(tiny: LanguageModel, text: TokenWindows) -> None:
    """A crosscoder that answers zero does the harm of three ablations, not of one."""
    dictionary = random_dictionary("relu_crosscoder", d_in=sum(WIDTHS), source_widths=WIDTHS)
    with torch.no_grad():
        dictionary.W_dec.zero_()
        dictionary.b_dec.zero_()
    loss = evaluate(dictionary, tiny, text, SOURCES).values()
    assert loss["ce_loss_spliced"] == loss["ce_loss_zero_ablation"]
    assert loss["kl_spliced"] == loss["kl_zero_ablation"]
    singles = []
    for name, width in zip(SOURCES, WIDTHS, strict=True):
        single = random_dictionary("relu", d_in=width)
        alone = evaluate(single, tiny, text, name).values()
        singles.append(alone["kl_zero_ablation"])
    assert all(loss["kl_zero_ablation"] != pytest.approx(single, rel=1e-3) for single in singles)


def test_an_exact_transcoder_recovers_everything(tiny: LanguageModel, text: TokenWindows) -> None:
    """The linear layer itself, as a skip connection without features."""
    cls = architecture("skip_transcoder")
    dictionary = cls(cls.Config(d_in=16, d_out=64, d_sae=8))
    layer: Any = tiny.module.transformer.h[1].mlp.c_fc
    with torch.no_grad():
        dictionary.W_dec.zero_()
        dictionary.W_skip.copy_(layer.weight.T)
        dictionary.b_dec.copy_(layer.bias)
    evaluation = evaluate(dictionary, tiny, text, NORM, hook_point_out=WIDE)
    loss = evaluation.values()
    assert evaluation["explained_variance"].value == pytest.approx(1, abs=1e-6)
    assert loss["ce_loss_spliced"] == pytest.approx(loss["ce_loss_clean"], abs=1e-5)
    assert loss["kl_spliced"] == pytest.approx(0, abs=1e-6)
    assert loss["kl_zero_ablation"] > 0.01
    assert loss["kl_recovered"] == pytest.approx(1, abs=1e-4)


def test_ablations_of_a_transcoder_are_those_of_its_output(tiny: LanguageModel, text: TokenWindows) -> None:
    """Whatever is read, the harm of ablating what is written is that of a dictionary there."""
    across = random_dictionary("transcoder", d_in=16, d_out=64)
    there = evaluate(random_dictionary("relu", d_in=64), tiny, text, WIDE).values()
    loss = evaluate(across, tiny, text, MLP_IN, hook_point_out=WIDE).values()
    for number in ("ce_loss_zero_ablation", "ce_loss_mean_ablation", "kl_zero_ablation", "kl_mean_ablation"):
        assert loss[number] == pytest.approx(there[number], rel=1e-6), number


def test_special_tokens_and_padding_keep_their_activations_at_every_source(
    tiny: LanguageModel, packed: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary = random_dictionary("relu_crosscoder", d_in=sum(WIDTHS), source_widths=WIDTHS)
    batch = packed.batch(range(len(packed)))
    content = batch.attention & (batch.ids != 0)
    assert not content.all()
    passes = []
    logits = tiny.logits

    def spy(ids: Tensor, *, attention_mask: Any = None, edits: Any = None) -> Tensor:
        passes.append({})
        for (name, edit), width in zip(edits.items(), WIDTHS, strict=True):
            x = torch.randn(*ids.shape, width, generator=torch.Generator().manual_seed(0))
            passes[-1][name] = (x, edit(x.clone()))
        return logits(ids, attention_mask=attention_mask, edits=edits)

    monkeypatch.setattr(tiny, "logits", spy)
    evaluate(dictionary, tiny, packed, SOURCES, batch_size_windows=1000)
    assert [list(edited) for edited in passes] == 6 * [list(SOURCES)]
    clean_of_baselines, *ablated, clean, spliced = passes
    for edited in (clean_of_baselines, clean):
        assert all(torch.equal(after, x) for x, after in edited.values())
    for edited in (*ablated, spliced):
        for x, after in edited.values():
            assert torch.equal(after[~content], x[~content])
            assert (after[content] != x[content]).any(-1).all()


def test_a_masked_model_is_measured_without_a_loss(documents: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    model = LanguageModel(BertForMaskedLM(config), tokenizer, "tiny-bert")
    windows = TokenWindows.build(documents[:3], tokenizer, WindowConfig(context_size=12))
    dictionary = random_dictionary("transcoder", d_in=16, d_out=16)
    evaluation = evaluate(
        dictionary, model, windows, "bert.encoder.layer.0", hook_point_out="bert.encoder.layer.1", batch_size_windows=3
    )
    assert evaluation["kl_spliced"].value is None
    batch = windows.batch(range(len(windows)))
    x, y = (model.read(batch.ids, [f"bert.encoder.layer.{i}"]).popitem()[1][batch.keep].double() for i in (0, 1))
    with torch.no_grad():
        error = sum(float((b - answer(dictionary, a.float())).square().sum()) for a, b in zip(x, y, strict=True))
    variance = float((y - y.mean(0)).square().sum())
    assert evaluation["explained_variance"].value == pytest.approx(1 - error / variance, rel=1e-4)


# what does not fit is refused in words


def test_a_transcoder_without_its_output_is_refused(tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary("transcoder", d_in=16, d_out=16)
    with pytest.raises(ValueError, match="a transcoder rebuilds another hook point than it reads; name it as hook_poi"):
        evaluate(dictionary, tiny, text, MLP_IN)


def test_widths_that_do_not_fit_are_refused(tiny: LanguageModel, text: TokenWindows) -> None:
    across = random_dictionary("transcoder", d_in=16, d_out=64)
    with pytest.raises(ValueError, match=r"d_out = 64, but blocks\.1\.hook_mlp_out of tiny has width 16; name the"):
        evaluate(across, tiny, text, MLP_IN, hook_point_out=MLP_OUT)
    with pytest.raises(ValueError, match=r"d_in = 16, but transformer\.h\.1\.mlp\.c_fc of tiny has width 64; name the"):
        evaluate(across, tiny, text, WIDE, hook_point_out=WIDE)
    with pytest.raises(HookPointError, match="hook_mlp_ot"):
        evaluate(across, tiny, text, MLP_IN, hook_point_out="blocks.1.hook_mlp_ot")


def test_sources_that_do_not_fit_are_refused(tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary("relu_crosscoder", d_in=sum(WIDTHS), source_widths=WIDTHS)
    for sources, width in ((SOURCES[:2], 80), ([*SOURCES, MLP_OUT], 112), ([], 0), (WIDE, 64)):
        with pytest.raises(ValueError, match=rf"d_in = 96, but .*has width {width}; name the"):
            evaluate(dictionary, tiny, text, sources)


def test_sources_in_another_order_are_refused(tiny: LanguageModel, text: TokenWindows) -> None:
    """Together they are as wide as they should be; each by itself is not."""
    dictionary = random_dictionary("relu_crosscoder", d_in=sum(WIDTHS), source_widths=WIDTHS)
    with pytest.raises(ValueError, match="64"):
        evaluate(dictionary, tiny, text, [WIDE, SOURCES[0], SOURCES[2]])


@pytest.mark.parametrize("name", ["relu", "relu_crosscoder"])
def test_only_transcoders_write_elsewhere(tiny: LanguageModel, text: TokenWindows, name: str) -> None:
    """What a dictionary rebuilds is what it reads; numbers against another place would mean nothing."""
    widths = {"source_widths": (8, 8)} if name == "relu_crosscoder" else {}
    dictionary = random_dictionary(name, d_in=16, **widths)
    with pytest.raises(ValueError, match="hook_point_out"):
        evaluate(dictionary, tiny, text, MLP_IN, hook_point_out=MLP_OUT)
