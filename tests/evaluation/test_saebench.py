"""SAEBench's core by its own definitions: against plain loops in float64, at the cases whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import saescope.metrics
from saescope.activations import TokenWindows, WindowConfig
from saescope.dictionaries import Dictionary, ReLU, SparseCodes, TopK, TopKConfig, architecture
from saescope.dictionaries.base import DictionaryConfig
from saescope.evaluation.saebench.core import SaeBenchCore, SaeBenchCoreMeter, SaeBenchLosses
from saescope.evaluation.saebench.files import saebench_core, saebench_json
from saescope.evaluation.saebench.interface import FoldedWeights, folded_weights
from saescope.models import LanguageModel

HOOK = "blocks.1.hook_resid_post"
METRICS = {
    "model_behavior_preservation": {"kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"},
    "model_performance_preservation": {
        "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae",
    },
    "reconstruction_quality": {"explained_variance", "explained_variance_legacy", "mse", "cossim"},
    "shrinkage": {"l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"},
    "sparsity": {"l0", "l1"},
    "misc_metrics": {
        "frac_alive", "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent", "average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim",
    },
    "token_stats": {"total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"},
}  # fmt: skip
DETAILS = [
    "index", "feature_density", "consistent_activation_heuristic", "encoder_bias", "encoder_norm",
    "encoder_decoder_cosine_sim", "max_decoder_cosine_sim", "max_encoder_cosine_sim",
]  # fmt: skip
LOSSES = SaeBenchLosses(
    num_tokens=10, num_predictions=8, kl_with_sae=2.0, kl_with_ablation=5.0, ce_without_sae=16.0, ce_with_sae=20.0,
    ce_with_ablation=32.0,
)  # fmt: skip
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # x, x_hat, f, prompt


def random_weights(d_in: int, d_sae: int, seed: int = 0) -> FoldedWeights:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64), dim=-1)
    return FoldedWeights(
        norms=torch.ones(d_sae, dtype=torch.float64),
        W_enc=torch.randn(d_in, d_sae, generator=generator, dtype=torch.float64),
        W_dec=rows,
        b_enc=torch.randn(d_sae, generator=generator, dtype=torch.float64),
        b_mag=None,
        b_dec=torch.zeros(d_in, dtype=torch.float64),
    )


def measured(batches: Sequence[Batch], weights: FoldedWeights) -> SaeBenchCore:
    meter = SaeBenchCoreMeter(weights.W_dec.shape[0], compat=True)
    for x, x_hat, f, prompt in batches:
        meter.update(x, x_hat, SparseCodes.from_dense(f), prompt)
    meter.update_losses(LOSSES)
    return meter.result(weights, num_tokens_reconstruction=100, num_tokens_sparsity_variance=200)


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(p * q for p, q in zip(a, b, strict=True))


def norm(a: Sequence[float]) -> float:
    return math.sqrt(dot(a, a))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def by_hand(batches: Sequence[Batch], weights: FoldedWeights) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Every number that does not need the model, token by token and pair by pair."""
    per_token: dict[str, list[float]] = {}
    per_batch: dict[str, list[float]] = {}
    d_sae = weights.W_dec.shape[0]
    fires, prompts, num_tokens = [0] * d_sae, [0] * d_sae, 0
    for batch in batches:
        x, x_hat, f, prompt = (tensor.tolist() for tensor in batch)
        centre = [mean([row[j] for row in x]) for j in range(len(x[0]))]
        errors = []
        for row, answer, codes in zip(x, x_hat, f, strict=True):
            r = [a - b for a, b in zip(row, answer, strict=True)]
            away = [a - b for a, b in zip(row, centre, strict=True)]
            errors.append(dot(r, r))
            values = {
                "l2_norm_in": norm(row), "l2_norm_out": norm(answer),
                "l2_ratio": norm(answer) / (norm(row) if norm(row) >= 1e-4 else 1.0),
                "explained_variance_legacy": 1 - dot(r, r) / dot(away, away), "mse": dot(r, r) / len(x),
                "cossim": dot(row, answer) / (norm(row) * norm(answer)),
                "l0": float(sum(value != 0 for value in codes)), "l1": math.fsum(codes),
            }  # fmt: skip
            for key, value in values.items():
                per_token.setdefault(key, []).append(value)
        for key, value in {
            "error": mean(errors), "square": mean([dot(row, row) for row in x]),
            "m": mean([value**2 for row in x for value in row]),
            "relative_reconstruction_bias": mean([dot(a, a) for a in x_hat])
            / mean([dot(a, b) for a, b in zip(x, x_hat, strict=True)]),
        }.items():  # fmt: skip
            per_batch.setdefault(key, []).append(value)
        num_tokens += len(x)
        for i in range(d_sae):
            fires[i] += sum(codes[i] > 0 for codes in f)
            prompts[i] += len({p for p, codes in zip(prompt, f, strict=True) if codes[i] > 0})
    found = {key: mean(values) for key, values in per_token.items()}
    found["relative_reconstruction_bias"] = mean(per_batch["relative_reconstruction_bias"])
    found["explained_variance"] = 1 - mean(per_batch["error"]) / (mean(per_batch["square"]) - mean(per_batch["m"]) ** 2)

    encoder, decoder = weights.W_enc.T.tolist(), weights.W_dec.tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        return dot(a, b) / (norm(a) * norm(b))

    rows = [
        {
            "index": i,
            "feature_density": fires[i] / num_tokens,
            "consistent_activation_heuristic": fires[i] / prompts[i] if prompts[i] else -1.0,
            "encoder_bias": float(weights.b_enc[i]),
            "encoder_norm": norm(encoder[i]),
            "encoder_decoder_cosine_sim": cosine(encoder[i], decoder[i]),
            "max_decoder_cosine_sim": max(cosine(decoder[i], decoder[j]) for j in range(d_sae) if j != i),
            "max_encoder_cosine_sim": max(cosine(encoder[i], encoder[j]) for j in range(d_sae) if j != i),
        }
        for i in range(d_sae)
    ]
    density = [row["feature_density"] for row in rows]
    found["frac_alive"] = mean([float(value > 0) for value in density])
    for percent in (1, 10):
        dense = [value for value in density if value > percent / 100]
        found[f"freq_over_{percent}_percent"] = len(dense) / d_sae
        found[f"normalized_freq_over_{percent}_percent"] = math.fsum(dense) / math.fsum(density)
    for side in ("encoder", "decoder"):
        found[f"average_max_{side}_cosine_sim"] = mean([row[f"max_{side}_cosine_sim"] for row in rows])
    return found, rows


def random_batches(sizes: Sequence[int], d_in: int, d_sae: int, seed: int) -> list[Batch]:
    """Signed codes, feature 0 dead, feature 1 never positive, the others of all densities; some very short activations."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        x = torch.randn(size, d_in, generator=generator, dtype=torch.float64) + 0.7
        x[:: 1 + size // 2] *= 1e-6
        f = torch.randn(size, d_sae, generator=generator, dtype=torch.float64)
        share = torch.linspace(0, 0.6, d_sae, dtype=torch.float64)
        f *= torch.rand(size, d_sae, generator=generator, dtype=torch.float64) < share
        f[:, 1] = -f[:, 1].abs()
        x_hat = 0.8 * x + 0.3 * torch.randn(size, d_in, generator=generator, dtype=torch.float64)
        prompt = torch.randint(0, 3, (size,), generator=generator)
        batches.append((x, x_hat, f, prompt))
    return batches


@given(
    sizes=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    d_in=st.integers(2, 5),
    d_sae=st.integers(3, 12),
    seed=st.integers(0, 10_000),
)
def test_every_definition_against_plain_loops(sizes: list[int], d_in: int, d_sae: int, seed: int) -> None:
    weights = random_weights(d_in, d_sae, seed)
    batches = random_batches(sizes, d_in, d_sae, seed)
    if not any((f > 0).any() for _, _, f, _ in batches):
        return  # densities are all 0: the dead dictionary below
    found = measured(batches, weights)
    numbers, rows = by_hand(batches, weights)
    flat = {key: value for part in found.metrics.values() for key, value in part.items()}
    for key, value in numbers.items():
        assert flat[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key
    for row, wanted in zip(found.details, rows, strict=True):
        assert list(row) == DETAILS
        for key, value in wanted.items():
            assert row[key] == pytest.approx(value, abs=6e-11), key  # 10 decimals
            assert row[key] == round(row[key], 10)
    assert flat["kl_div_score"] == pytest.approx((5 - 2) / 5)
    assert flat["ce_loss_score"] == pytest.approx((32 - 20) / (32 - 16))
    assert (flat["kl_div_with_sae"], flat["kl_div_with_ablation"]) == (pytest.approx(0.2), pytest.approx(0.5))
    assert [flat[f"ce_loss_{kind}"] for kind in ("without_sae", "with_sae", "with_ablation")] == [2.0, 2.5, 4.0]
    assert (flat["total_tokens_eval_reconstruction"], flat["total_tokens_eval_sparsity_variance"]) == (100, 200)
    assert {category: set(part) for category, part in found.metrics.items()} == METRICS


def offset_case(sigma: float, offset: float, batches: int = 4, size: int = 2048) -> tuple[dict[str, float], float]:
    """d = 768, every dimension N(offset, sigma), errors of half that spread: the true explained variance is 0.75."""
    d, generator = 768, torch.Generator().manual_seed(0)
    meter = SaeBenchCoreMeter(2, compat=True)
    right = saescope.metrics.ReconstructionMeter()
    nothing = SparseCodes(torch.zeros(size, 1, dtype=torch.int64), torch.zeros(size, 1), 2)
    for _ in range(batches):
        noise = sigma * torch.randn(size, d, generator=generator)
        error = 0.5 * sigma * torch.randn(size, d, generator=generator)
        meter.update(offset + noise, offset + noise - error, nothing, torch.zeros(size))
        right.update(offset + noise, offset + noise - error)
    meter.update_losses(LOSSES)
    found = meter.result(random_weights(d, 2), num_tokens_reconstruction=1, num_tokens_sparsity_variance=1)
    return found.metrics["reconstruction_quality"], right.result().explained_variance


def test_the_offset_case() -> None:
    found, true = offset_case(sigma=1, offset=3)
    assert true == pytest.approx(0.750, abs=0.002)
    assert found["explained_variance"] == pytest.approx(0.975, abs=0.003)
    assert found["explained_variance_legacy"] == pytest.approx(0.749, abs=0.002)
    # large activations: the denominator turns negative
    found, true = offset_case(sigma=30, offset=0, batches=2)
    q = 900.0
    assert found["explained_variance"] == pytest.approx(1 - 0.25 * q * 768 / (q * (768 - q)), abs=0.03)
    assert found["explained_variance"] == pytest.approx(2.44, abs=0.03)
    assert true == pytest.approx(0.75, abs=0.002)


def test_the_wrong_definitions_have_to_be_asked_for(tiny: LanguageModel, windows: TokenWindows) -> None:
    for compat in ({}, {"compat": False}, {"compat": "yes"}):
        with pytest.raises(ValueError, match="compat=True"):
            SaeBenchCoreMeter(3, **compat)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compat=True"):
        saebench_core(random_dictionary("topk"), tiny, windows, HOOK, compat=False)  # type: ignore[arg-type]


def test_batches_matter_as_they_do_there() -> None:
    """Two batches are not one of both: a quotient of means is taken in each."""
    weights, (first, second) = random_weights(4, 6), random_batches([9, 5], 4, 6, seed=3)
    joined = tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    apart, together = measured([first, second], weights), measured([joined], weights)  # type: ignore[list-item]
    for category, key in (
        ("shrinkage", "relative_reconstruction_bias"),
        ("reconstruction_quality", "mse"),
        ("reconstruction_quality", "explained_variance_legacy"),
        ("reconstruction_quality", "explained_variance"),
    ):
        assert apart.metrics[category][key] != pytest.approx(together.metrics[category][key], rel=1e-3), key
    assert apart.metrics["sparsity"]["l0"] == pytest.approx(together.metrics["sparsity"]["l0"])


def test_a_dead_dictionary_has_minus_one_where_saebench_has() -> None:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = random_weights(5, 4)
    weights.W_enc[:, 2] = 0
    weights.W_dec[1] = 0
    found = measured([(x, torch.zeros_like(x), torch.zeros(20, 4), torch.arange(20) // 5)], weights)
    minus = {
        "reconstruction_quality.cossim", "shrinkage.relative_reconstruction_bias",
        "details.consistent_activation_heuristic", "details.encoder_decoder_cosine_sim",
    }  # fmt: skip
    assert set(found.undefined) == minus
    assert found.metrics["reconstruction_quality"]["cossim"] == -1
    assert found.metrics["shrinkage"] | {"l2_norm_in": 0} == {
        "l2_norm_in": 0, "l2_norm_out": 0, "l2_ratio": 0, "relative_reconstruction_bias": -1,
    }  # fmt: skip
    misc = found.metrics["misc_metrics"]
    assert [misc[key] for key in sorted(misc) if "cosine" not in key] == [0.0] * 5
    assert [row["consistent_activation_heuristic"] for row in found.details] == [-1] * 4
    assert [row["encoder_decoder_cosine_sim"] == -1 for row in found.details] == [False, True, True, False]
    assert found.details[1]["max_decoder_cosine_sim"] == 0  # a row of zeros, beside any other
    assert found.undefined["details.encoder_decoder_cosine_sim"] == "2 of 4 features"


def test_a_gated_bias_is_that_of_the_magnitude() -> None:
    gated = architecture("gated")(DictionaryConfig(d_in=4, d_sae=3))
    with torch.no_grad():
        gated.b_mag.copy_(torch.tensor([1.0, 2.0, 3.0]))
        gated.W_dec *= 2
    found = measured(random_batches([6], 4, 3, seed=0), folded_weights(gated))
    assert [row["encoder_bias"] for row in found.details] == pytest.approx([2.0, 4.0, 6.0])


@pytest.mark.parametrize(
    ("x", "x_hat", "codes", "prompts", "message"),
    [
        ((4, 3), (4, 2), (4, 5), 4, r"one shape \[N, d_in\]"),
        ((4, 3), (4, 3), (3, 5), 4, "codes and prompts of as many tokens"),
        ((4, 3), (4, 3), (4, 5), 2, "codes and prompts of as many tokens"),
        ((4, 3), (4, 3), (4, 6), 4, "counts 5 features, the codes have 6"),
    ],
)
def test_what_does_not_fit_is_refused(x: Any, x_hat: Any, codes: Any, prompts: int, message: str) -> None:
    meter = SaeBenchCoreMeter(5, compat=True)
    with pytest.raises(ValueError, match=message):
        meter.update(torch.ones(x), torch.ones(x_hat), SparseCodes.from_dense(torch.ones(codes)), torch.zeros(prompts))
    with pytest.raises(ValueError, match="two phases"):
        meter.result(random_weights(3, 5), num_tokens_reconstruction=1, num_tokens_sparsity_variance=1)


# The model and the dictionary together


def random_dictionary(name: str, d_in: int = 16) -> Dictionary:
    cls = architecture(name)
    extra: dict[str, Any] = {"k": 5} if issubclass(cls, TopK) else {}
    dictionary = cls(cls.Config(d_in=d_in, d_sae=24, **extra))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return dictionary


@torch.no_grad()
def run_by_hand(
    dictionary: Dictionary, model: LanguageModel, windows: TokenWindows, batch_size: int, excluded: bool
) -> dict[str, float]:
    """Both phases over all windows, which fill the batches, with the model in float64 and hooks of this test's own."""
    import copy

    module, exact = copy.deepcopy(model.module).double(), copy.deepcopy(dictionary).double()
    norms = exact.W_dec.norm(dim=-1)
    block, special = module.transformer.h[1], {0}
    totals: dict[str, list[float]] = {key: [] for key in ("kl_sae", "kl_zero", "clean", "sae", "zero")}
    batches: list[Batch] = []
    ids = windows.batch(range(len(windows))).ids
    for first in range(0, len(ids), batch_size):
        parts: list[tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]] = []
        for number, window in enumerate(ids[first : first + batch_size]):
            kept = [place for place, token in enumerate(window.tolist()) if token not in special]

            def run(window: Tensor, change: Any = None) -> Tensor:
                def hook(_: Any, __: Any, output: Any) -> Any:
                    hidden = output[0] if isinstance(output, tuple) else output
                    hidden = hidden if change is None else change(hidden.clone())
                    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

                handle = block.register_forward_hook(hook)
                try:
                    return module(window[None]).logits[0]
                finally:
                    handle.remove()

            seen: list[Tensor] = []

            def look(hidden: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(hidden[0].clone())
                return hidden

            def splice(hidden: Tensor, kept: list[int] = kept) -> Tensor:
                for place in kept if excluded else range(hidden.shape[1]):
                    hidden[0, place] = exact(hidden[0, place][None])[0]
                return hidden

            logs = [torch.log_softmax(run(window, change), -1) for change in (look, splice, torch.zeros_like)]
            for place in kept:
                for key, log in (("kl_sae", logs[1]), ("kl_zero", logs[2])):
                    p = logs[0][place].exp()
                    totals[key].append(float((p * (logs[0][place] - log[place])).sum()))
                if place + 1 < len(window):
                    for key, log in zip(("clean", "sae", "zero"), logs, strict=True):
                        totals[key].append(-float(log[place, window[place + 1]]))
            x = seen[0][kept]
            f = exact.encode(x)
            parts.append((list(x), list(exact.decode(f, x)), list(f * norms), [number] * len(kept)))
        x, x_hat, f = (torch.stack([row for part in parts for row in part[i]]) for i in range(3))
        batches.append((x, x_hat, f, torch.tensor([p for part in parts for p in part[3]])))
    found, _ = by_hand(batches, folded_weights(exact))
    kl_sae, kl_zero, clean, sae, zero = (mean(values) for values in totals.values())
    return found | {
        "kl_div_with_sae": kl_sae, "kl_div_with_ablation": kl_zero, "kl_div_score": (kl_zero - kl_sae) / kl_zero,
        "ce_loss_without_sae": clean, "ce_loss_with_sae": sae, "ce_loss_with_ablation": zero,
        "ce_loss_score": (zero - sae) / (zero - clean),
        "total_tokens_eval_reconstruction": ids.numel(), "total_tokens_eval_sparsity_variance": ids.numel(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def text(documents: Any, tokenizer: Any) -> TokenWindows:
    """Eight windows with special tokens inside."""
    whole = TokenWindows.build(documents[:4], tokenizer, WindowConfig(context_size=12))
    import dataclasses

    return dataclasses.replace(whole, starts=whole.starts[:8], lengths=whole.lengths[:8])


@pytest.mark.parametrize(("name", "excluded"), [("topk", True), ("relu", False), ("gated", True), ("abs_topk", True)])
def test_the_whole_run_against_plain_loops(name: str, excluded: bool, tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary(name)
    seen: list[tuple[int, int]] = []
    found = saebench_core(
        dictionary, tiny, text, HOOK, compat=True, batch_size_windows=4,
        exclude_special_tokens_from_reconstruction=excluded, on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    wanted = run_by_hand(dictionary, tiny, text, 4, excluded)
    flat = {key: value for part in found["metrics"].values() for key, value in part.items()}
    assert flat.keys() == wanted.keys()
    for key, value in wanted.items():
        assert flat[key] == pytest.approx(value, rel=2e-4, abs=2e-5), key
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    config = found["config"]
    assert (config["n_eval_reconstruction_batches"], config["n_eval_sparsity_variance_batches"]) == (2, 2)
    assert (config["context_size"], config["batch_size_prompts"]) == (12, 4)
    envelope = saebench_json("core", **found, release="run")
    assert envelope["eval_config"]["compat"] is True
    assert {category: set(part) for category, part in envelope["eval_result_metrics"].items()} == METRICS
    assert [list(row) for row in envelope["eval_result_details"]] == [DETAILS] * 24


def test_norms_of_decoder_rows_change_nothing(tiny: LanguageModel, text: TokenWindows) -> None:
    """The same function with longer rows and smaller activations has the same numbers."""
    dictionary, other = random_dictionary("relu"), random_dictionary("relu")
    with torch.no_grad():
        factors = torch.linspace(0.5, 2, 24)
        other.W_dec *= factors[:, None]
        assert other.encoder_rows is not None
        assert other.b_enc is not None
        other.encoder_rows /= factors[:, None]
        other.b_enc /= factors
    found, again = (saebench_core(d, tiny, text, HOOK, compat=True) for d in (dictionary, other))
    for category, part in found["metrics"].items():
        assert again["metrics"][category] == pytest.approx(part, rel=1e-4, abs=1e-6)
    for one, two in zip(found["details"], again["details"], strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_perfect_and_empty_dictionaries(tiny: LanguageModel, text: TokenWindows) -> None:
    exact, empty = (ReLU(DictionaryConfig(d_in=16, d_sae=32)) for _ in range(2))
    with torch.no_grad():
        for rows in (exact.encoder_rows, exact.W_dec):
            assert rows is not None
            rows.copy_(torch.cat([torch.eye(16), -torch.eye(16)]))
        empty.W_dec.zero_()
    found = saebench_core(exact, tiny, text, HOOK, compat=True)["metrics"]
    for category, key in (
        ("model_behavior_preservation", "kl_div_score"), ("model_performance_preservation", "ce_loss_score"),
        ("reconstruction_quality", "explained_variance"), ("reconstruction_quality", "explained_variance_legacy"),
        ("reconstruction_quality", "cossim"), ("shrinkage", "l2_ratio"), ("shrinkage", "relative_reconstruction_bias"),
    ):  # fmt: skip
        assert found[category][key] == pytest.approx(1, abs=1e-5), key
    assert found["sparsity"]["l0"] == pytest.approx(16)
    # zero at kept tokens is not SAEBench's ablation, which also takes the special ones: the score is not 0 ...
    found = saebench_core(empty, tiny, text, HOOK, compat=True)["metrics"]
    assert abs(found["model_behavior_preservation"]["kl_div_score"]) > 1e-3
    # ... unless reconstructions stand there too
    same = saebench_core(empty, tiny, text, HOOK, compat=True, exclude_special_tokens_from_reconstruction=False)
    assert same["metrics"]["model_behavior_preservation"]["kl_div_score"] == pytest.approx(0, abs=1e-9)
    assert same["metrics"]["model_performance_preservation"]["ce_loss_score"] == pytest.approx(0, abs=1e-9)


def test_whole_batches_from_the_first_window(tiny: LanguageModel, text: TokenWindows) -> None:
    dictionary = random_dictionary("topk")

    def tokens(**settings: Any) -> tuple[int, int]:
        found = saebench_core(dictionary, tiny, text, HOOK, compat=True, batch_size_windows=3, **settings)
        stats = found["metrics"]["token_stats"]
        return stats["total_tokens_eval_reconstruction"], stats["total_tokens_eval_sparsity_variance"]

    assert tokens() == (6 * 12, 6 * 12)  # two of the eight windows fill no batch
    assert tokens(num_tokens=71, num_tokens_reconstruction=29) == (2 * 12, 3 * 12)
    with pytest.raises(ValueError, match="11 tokens are less than one window of 12"):
        tokens(num_tokens=11)


def test_bad_input(tiny: LanguageModel, text: TokenWindows) -> None:
    with pytest.raises(ValueError, match="d_in = 8"):
        saebench_core(random_dictionary("topk", d_in=8), tiny, text, HOOK, compat=True)
    with pytest.raises(ValueError, match="batch_size_windows must be at least 1"):
        saebench_core(random_dictionary("topk"), tiny, text, HOOK, compat=True, batch_size_windows=0)
    broken = TopK(TopKConfig(d_in=16, d_sae=24, k=3))
    with torch.no_grad():
        broken.W_dec[3, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        saebench_core(broken, tiny, text, HOOK, compat=True)
    transcoder = architecture("topk_transcoder")
    with pytest.raises(ValueError, match="another hook point than it reads"):
        saebench_core(transcoder(transcoder.Config(d_in=16, d_out=16, d_sae=24, k=3)), tiny, text, HOOK, compat=True)
