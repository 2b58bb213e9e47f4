"""Llama Scope and its R1-Distill relative: an independent writer, and the forward pass by the published formulas.

d  width, s  features.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saescope.formats.dictionaries.llama_scope import LLAMA_SCOPE, LLAMA_SCOPE_R1
from saescope.formats.dictionaries.llamascopium import LLAMASCOPIUM
from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import LocalSource

D, S, K = 6, 12, 3
IN, OUT = "blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out"
NORMS = {"in": 5.0, "out": 0.7}
NORM = "dataset_average_activation_norm"


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def activations() -> Tensor:
    x = normal(60, D, seed=77) + 0.5
    return x * NORMS["in"] / x.norm(dim=-1).mean()


def linear_layers() -> dict[str, Tensor]:
    norms = torch.linspace(0.3, 2.5, S, dtype=torch.float64)
    return {
        "encoder.weight": normal(S, D, seed=1),
        "encoder.bias": normal(S, seed=2, scale=0.5),
        "decoder.weight": normal(D, S, seed=3) * norms,
        "decoder.bias": normal(D, seed=4),
    }


def forward(
    w: dict[str, Tensor], x_raw: Tensor, rule: str, theta: Tensor | None, *, by_norm: bool, s_in: float, s_out: float
) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction; ``theta`` in the units of the weights."""
    h = x_raw * s_in @ w["encoder.weight"].T + w["encoder.bias"]
    n = w["decoder.weight"].norm(dim=0)
    scores = h * n if by_norm else h
    if rule == "topk":
        chosen = torch.zeros_like(h).scatter(-1, scores.topk(K, dim=-1).indices, 1) * (h > 0)
    else:
        chosen = scores > (0 if theta is None else theta)
    f = h * chosen
    return f, (f @ w["decoder.weight"].T + w["decoder.bias"]) / s_out


def agree(foreign: Foreign, x: Tensor, f: Tensor, y: Tensor) -> None:
    dictionary = foreign.build(dtype=torch.float64)
    found = dictionary.encode(x)
    assert ((found != 0) == (f != 0)).all()
    assert 0 < (f != 0).double().mean() < 1
    assert (found - f).abs().max() <= 1e-10 * f.abs().max()
    assert (dictionary(x) - y).abs().max() <= 1e-10 * y.abs().max()


def read(which: Format, folder: Path, *, shapes_only: bool = False, **overrides: Any) -> Foreign:
    source = LocalSource.of(folder, overrides=overrides, shapes_only=shapes_only)
    assert [each for each in (LLAMASCOPIUM, LLAMA_SCOPE, LLAMA_SCOPE_R1) if each.recognise(source)] == [which]
    assert set(overrides) <= set(which.overrides)
    return which.read(source)


def scales(out: str) -> tuple[float, float]:
    s_in = math.sqrt(D) / NORMS["in"]
    return s_in, s_in if out == IN else math.sqrt(D) / NORMS["out"]


# Llama Scope


def hyperparams(out: str = IN, **more: Any) -> dict[str, Any]:
    return {
        "d_model": D, "d_sae": S, "expansion_factor": S / D, "hook_point_in": IN, "hook_point_out": out,
        "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "act_fn": "jumprelu",
        "jump_relu_threshold": 0.4, "norm_activation": "dataset-wise", "top_k": K, "l1_coefficient": 0.0,
        "dataset_average_activation_norm": {"in": NORMS["in"], "out": NORMS["in" if out == IN else "out"]},
        "init_encoder_with_decoder_transpose": True, "decoder_exactly_fixed_norm": False, "init_decoder_norm": 0.5,
        "sparsity_include_decoder_norm": True, "use_glu_encoder": False, **more,
    }  # fmt: skip


def write_v1(folder: Path, config: dict[str, Any], w: dict[str, Tensor]) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(config))
    save_file(w, folder / "checkpoints" / "final.safetensors")
    return folder


@pytest.mark.parametrize("out", [IN, OUT])
def test_llama_scope_is_read_as_saelens_does_with_a_scale_of_its_own_for_the_output(tmp_path: Path, out: str) -> None:
    w = linear_layers()
    foreign = read(LLAMA_SCOPE, write_v1(tmp_path, hyperparams(out), w))
    assert foreign.architecture == ("jumprelu" if out == IN else "jumprelu_transcoder")
    s_in, s_out = scales(out)
    theta = torch.full((S,), 0.4 * s_in, dtype=torch.float64)
    x = activations()
    agree(foreign, x, *forward(w, x, "jumprelu", theta, by_norm=False, s_in=s_in, s_out=s_out))
    assert any("gate=pre|norm|topk|topk_norm" in said and "as SAELens reads it" in said for said in foreign.said)
    # as SAELens' fold gives it, where input and output are one
    if out == IN:
        W_enc, W_dec = w["encoder.weight"].T * s_in, w["decoder.weight"].T / s_in
        pre = x @ W_enc + w["encoder.bias"]
        theirs = (pre * (pre > 0.4 * s_in)) @ W_dec + w["decoder.bias"] / s_in
        torch.testing.assert_close(foreign.build(dtype=torch.float64)(x), theirs)


@pytest.mark.parametrize("out", [IN, OUT])
@pytest.mark.parametrize("units", ["raw", "normalised"])
@pytest.mark.parametrize("gate", ["pre", "norm"])
def test_the_gate_and_its_units_can_be_chosen(tmp_path: Path, gate: str, units: str, out: str) -> None:
    w = linear_layers()
    foreign = read(LLAMA_SCOPE, write_v1(tmp_path, hyperparams(out), w), gate=gate, threshold_units=units)
    s_in, s_out = scales(out)
    factor = {"normalised": 1.0, "raw": s_out if gate == "norm" else s_in}[units]
    theta = torch.full((S,), 0.4 * factor, dtype=torch.float64)
    x = activations()
    agree(foreign, x, *forward(w, x, "jumprelu", theta, by_norm=gate == "norm", s_in=s_in, s_out=s_out))


@pytest.mark.parametrize("out", [IN, OUT])
@pytest.mark.parametrize("gate", ["topk", "topk_norm"])
def test_the_largest_can_fire_instead(tmp_path: Path, gate: str, out: str) -> None:
    w = linear_layers()
    s_in, s_out = scales(out)
    x = activations()
    by_norm = gate == "topk_norm"
    f, y = forward(w, x, "topk", None, by_norm=by_norm, s_in=s_in, s_out=s_out)
    if by_norm:
        f = f * w["decoder.weight"].norm(dim=0) / s_out
    write_v1(tmp_path, hyperparams(out), w)
    agree(read(LLAMA_SCOPE, tmp_path, gate=gate), x, f, y)
    # which is what a file says that is one of TopK
    write_v1(tmp_path, hyperparams(out, act_fn="topk", sparsity_include_decoder_norm=by_norm), w)
    foreign = read(LLAMA_SCOPE, tmp_path)
    assert foreign.settings["k"] == K
    agree(foreign, x, f, y)


def test_without_scaling_and_with_a_relu(tmp_path: Path) -> None:
    w = linear_layers()
    x = activations()
    write_v1(tmp_path, hyperparams(norm_activation="inference", act_fn="relu"), w)
    agree(read(LLAMA_SCOPE, tmp_path), x, *forward(w, x, "relu", None, by_norm=False, s_in=1, s_out=1))
    with pytest.raises(ValueError, match="no gate"):
        read(LLAMA_SCOPE, tmp_path, gate="pre")


def test_a_centred_input(tmp_path: Path) -> None:
    w = linear_layers()
    x = activations()
    s_in, _ = scales(IN)
    write_v1(tmp_path, hyperparams(apply_decoder_bias_to_pre_encoder=True), w)
    theta = torch.full((S,), 0.4 * s_in, dtype=torch.float64)
    moved = x - w["decoder.bias"] / s_in
    agree(read(LLAMA_SCOPE, tmp_path), x, *forward(w, moved, "jumprelu", theta, by_norm=False, s_in=s_in, s_out=s_in))


@pytest.mark.parametrize("out", [IN, OUT])
@pytest.mark.parametrize("gate", ["pre", "norm", "topk", "topk_norm"])
def test_headers_of_llama_scope(tmp_path: Path, gate: str, out: str) -> None:
    write_v1(tmp_path, hyperparams(out), linear_layers())
    shapes, full = (read(LLAMA_SCOPE, tmp_path, shapes_only=only, gate=gate) for only in (True, False))
    assert all(tensor.is_meta for tensor in shapes.tensors.values())
    assert (shapes.architecture, shapes.settings) == (full.architecture, full.settings)
    assert {key: t.shape for key, t in shapes.tensors.items()} == {key: t.shape for key, t in full.tensors.items()}


def test_the_model_stands_in_the_name(tmp_path: Path) -> None:
    named = write_v1(tmp_path / "Llama3_1-8B-Base-L8TC-8x", hyperparams(OUT), linear_layers())
    foreign = read(LLAMA_SCOPE, named)
    assert foreign.metadata["model_name"] == "meta-llama/Llama-3.1-8B"
    assert (foreign.metadata["hook_name"], foreign.metadata["hook_name_out"]) == (IN, OUT)
    assert any("from the name" in said for said in foreign.said)
    other = write_v1(tmp_path / "my-Llama3_1-8B-Base-L8TC-8x", hyperparams(OUT), linear_layers())
    assert "model_name" not in read(LLAMA_SCOPE, other).metadata


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset_average_activation_norm": {"in": 0.0, "out": 1.0}}, "never set"),
        ({"dataset_average_activation_norm": {"in": 1.0}}, "should have the data set's norms"),
        ({"dataset_average_activation_norm": None}, "should have the data set's norms"),
        ({"norm_activation": "token-wise"}, "'token-wise'"),
        ({"act_fn": "batchtopk"}, "'batchtopk'"),
        ({"use_glu_encoder": True}, "sigmoid"),
        ({"jump_relu_threshold": -0.5}, "should not be negative"),
        ({"jump_relu_threshold": None}, "no jump_relu_threshold"),
        ({"d_sae": S + 1}, r"decoder.weight should have shape \[6, 13\]"),
        ({"hook_point_out": OUT, "apply_decoder_bias_to_pre_encoder": True}, "the output's"),
        ({"mystery": 1}, "mystery"),
    ],
)
def test_what_is_refused_of_llama_scope(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_v1(tmp_path, hyperparams(**change), linear_layers())
    with pytest.raises(ValueError, match=words):
        read(LLAMA_SCOPE, tmp_path)


def test_choices_are_checked_and_tensors_all_used(tmp_path: Path) -> None:
    write_v1(tmp_path, hyperparams(), {**linear_layers(), "extra": torch.zeros(2)})
    with pytest.raises(ValueError, match="gate should be one of pre, norm, topk, topk_norm"):
        read(LLAMA_SCOPE, tmp_path, gate="both")
    with pytest.raises(ValueError, match="threshold_units should be one of"):
        read(LLAMA_SCOPE, tmp_path, threshold_units="miles")
    with pytest.raises(ValueError, match="holds extra"):
        read(LLAMA_SCOPE, tmp_path)


# R1-Distill


def r1_config(**more: Any) -> dict[str, Any]:
    return {"d_model": D, "expansion_factor": S // D, "hook_point_in": IN, **more}


def write_r1(folder: Path, config: dict[str, Any], *, norms: dict[str, float] | None = None) -> dict[str, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    w = {**linear_layers(), "log_jumprelu_threshold": normal(S, seed=5, scale=0.4)}
    for hook_point, norm in (norms or {}).items():
        w[f"{NORM}.{hook_point}"] = torch.tensor(norm, dtype=torch.float64)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(w, folder / "sae_weights.safetensors")
    return w


FULL = {
    "sae_type": "sae", "hook_point_out": IN, "act_fn": "jumprelu", "norm_activation": "dataset-wise", "top_k": K,
    "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "use_glu_encoder": False,
}  # fmt: skip


@pytest.mark.parametrize("config", [r1_config(), r1_config(**FULL)])
@pytest.mark.parametrize("said", [True, False])
def test_r1_distill(tmp_path: Path, config: dict[str, Any], said: bool) -> None:
    s_in = 2.5 if said else scales(IN)[0]
    w = write_r1(tmp_path, config, norms={IN: NORMS["in"]})
    foreign = read(LLAMA_SCOPE_R1, tmp_path, **({"norm_scaling_factor": "2.5"} if said else {}))
    assert foreign.architecture == "jumprelu"
    x = activations()
    theta = w["log_jumprelu_threshold"].exp()  # in the units of the weights: not scaled
    agree(foreign, x, *forward(w, x, "jumprelu", theta, by_norm=False, s_in=s_in, s_out=s_in))


@pytest.mark.parametrize("stored", [True, False, None])
@pytest.mark.parametrize("gate", ["pre", "norm", None])
def test_the_gate_of_r1_distill(tmp_path: Path, gate: str | None, stored: bool | None) -> None:
    w = write_r1(tmp_path, r1_config(sparsity_include_decoder_norm=stored), norms={IN: NORMS["in"]})
    foreign = read(LLAMA_SCOPE_R1, tmp_path, gate=gate)
    by_norm = gate == "norm" if gate else bool(stored)
    assert any("gate=pre|norm" in said for said in foreign.said)
    x = activations()
    theta, s_in = w["log_jumprelu_threshold"].exp(), scales(IN)[0]
    agree(foreign, x, *forward(w, x, "jumprelu", theta, by_norm=by_norm, s_in=s_in, s_out=s_in))


@pytest.mark.parametrize("rule", ["relu", "topk"])
def test_other_activations_of_that_version(tmp_path: Path, rule: str) -> None:
    w = write_r1(tmp_path, r1_config(act_fn=rule, top_k=K, hook_point_out=OUT, sparsity_include_decoder_norm=True))
    del w["log_jumprelu_threshold"]
    for side, hook_point in (("in", IN), ("out", OUT)):
        w[f"{NORM}.{hook_point}"] = torch.tensor(NORMS[side], dtype=torch.float64)
    save_file(w, tmp_path / "sae_weights.safetensors")
    foreign = read(LLAMA_SCOPE_R1, tmp_path)
    assert foreign.architecture == ("transcoder" if rule == "relu" else "topk_transcoder")
    s_in, s_out = scales(OUT)
    x = activations()
    f, y = forward(w, x, rule, None, by_norm=rule == "topk", s_in=s_in, s_out=s_out)
    agree(foreign, x, f * w["decoder.weight"].norm(dim=0) / s_out if rule == "topk" else f, y)
    shapes = read(LLAMA_SCOPE_R1, tmp_path, shapes_only=True)
    assert (shapes.architecture, shapes.settings) == (foreign.architecture, foreign.settings)


def test_r1_distill_needs_a_scale_that_is_one(tmp_path: Path) -> None:
    write_r1(tmp_path, r1_config())
    with pytest.raises(ValueError, match="norm_scaling_factor=NUMBER"):
        read(LLAMA_SCOPE_R1, tmp_path)
    for wrong in (0, "x", True):
        with pytest.raises(ValueError, match="positive number"):
            read(LLAMA_SCOPE_R1, tmp_path, norm_scaling_factor=wrong)
    write_r1(tmp_path, r1_config(), norms={IN: math.nan})
    with pytest.raises(ValueError, match="never set"):
        read(LLAMA_SCOPE_R1, tmp_path)
    # nothing is scaled in inference mode, and the norm is not looked at
    w = write_r1(tmp_path, r1_config(norm_activation="inference"), norms={IN: math.nan})
    x = activations()
    theta = w["log_jumprelu_threshold"].exp()
    agree(read(LLAMA_SCOPE_R1, tmp_path), x, *forward(w, x, "jumprelu", theta, by_norm=False, s_in=1, s_out=1))


def test_headers_and_name_of_r1_distill(tmp_path: Path) -> None:
    folder = tmp_path / "400M-Slimpajama-400M-OpenR1-Math-220k" / "L15R"
    write_r1(folder, r1_config(), norms={IN: NORMS["in"]})
    shapes, full = (read(LLAMA_SCOPE_R1, folder, shapes_only=only) for only in (True, False))
    assert all(tensor.is_meta for tensor in shapes.tensors.values())
    assert (shapes.architecture, shapes.settings, shapes.metadata) == (full.architecture, full.settings, full.metadata)
    assert full.metadata["model_name"] == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    write_r1(tmp_path / "L15R", r1_config(), norms={IN: NORMS["in"]})
    assert "model_name" not in read(LLAMA_SCOPE_R1, tmp_path / "L15R").metadata


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "batchtopk"}, "'batchtopk'"),
        ({"norm_activation": "batch-wise"}, "'batch-wise'"),
        ({"use_glu_encoder": True}, "sigmoid"),
        ({"expansion_factor": 3}, r"decoder.weight should have shape \[6, 18\]"),
        ({"act_fn": "relu"}, "holds log_jumprelu_threshold"),
        ({"mystery": 1}, "mystery"),
    ],
)
def test_what_is_refused_of_r1_distill(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_r1(tmp_path, r1_config(**change), norms={IN: NORMS["in"]})
    with pytest.raises(ValueError, match=words):
        read(LLAMA_SCOPE_R1, tmp_path)
