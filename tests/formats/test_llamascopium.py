"""Llamascopium's files: an independent writer, its forward pass by the published formulas in float64, and every trap.

H  hook points of a crosscoder, d  width, s  features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saescope.dictionaries import TopK, save_dictionary
from saescope.formats.dictionaries.llama_scope import LLAMA_SCOPE, LLAMA_SCOPE_R1
from saescope.formats.dictionaries.llamascopium import LLAMASCOPIUM, folding_check
from saescope.formats.dictionaries.saelens import SAELENS
from saescope.formats.foreign import Foreign
from saescope.formats.source import LocalSource

D, S, K = 6, 12, 3
IN, OUT = "blocks.3.hook_resid_post", "blocks.3.hook_mlp_out"
NORMS = {IN: 5.0, OUT: 0.7}
THRESHOLD = "activation_function.log_jumprelu_threshold"
ACTS = ["relu", "jumprelu", "topk"]


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def activations(number: int = 40, width: int = D, *, norm: float = NORMS[IN]) -> Tensor:
    x = normal(number, width, seed=77) + 0.5
    return x * norm / x.norm(dim=-1).mean()


def config(**more: Any) -> dict[str, Any]:
    return {
        "sae_type": "sae", "d_model": D, "expansion_factor": S / D, "use_decoder_bias": True, "act_fn": "relu",
        "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "top_k": K,
        "use_triton_kernel": False, "sparsity_threshold_for_triton_spmm_kernel": 0.996, "jumprelu_threshold_window": 2.0,
        "hook_point_in": IN, "hook_point_out": IN, "use_glu_encoder": False, **more,
    }  # fmt: skip


def weights(cfg: dict[str, Any], *, norms: dict[str, float] | None = None) -> dict[str, Tensor]:
    made = {
        "W_E": normal(D, S, seed=1),
        "b_E": normal(S, seed=2, scale=0.5),
        "W_D": normal(S, D, seed=3) * torch.linspace(0.3, 2.5, S, dtype=torch.float64)[:, None],
    }
    if cfg["use_decoder_bias"]:
        made["b_D"] = normal(D, seed=4)
    if cfg["act_fn"] == "jumprelu":
        made[THRESHOLD] = normal(S, seed=5, scale=0.4)
    for hook_point in {cfg["hook_point_in"], cfg["hook_point_out"]}:
        norm = (NORMS if norms is None else norms)[hook_point]
        made[f"dataset_average_activation_norm.{hook_point}"] = torch.tensor(norm, dtype=torch.float64)
    return made


def act(name: str, g: Tensor, theta: Tensor | None) -> Tensor:
    """``g`` where a feature is chosen, else 0."""
    if name == "relu":
        return g * (g > 0)
    if name == "jumprelu":
        assert theta is not None
        return g * (g > theta)
    positive = g * (g > 0)
    kept = positive.topk(K, dim=-1)
    return torch.zeros_like(g).scatter(-1, kept.indices, kept.values)


def theirs(cfg: dict[str, Any], w: dict[str, Tensor], x_raw: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction, both by the library's forward pass between scaling and its undoing."""
    scale_in, scale_out = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    if cfg["norm_activation"] == "dataset-wise":
        key = "dataset_average_activation_norm."
        scale_in, scale_out = (math.sqrt(D) / w[key + cfg[f"hook_point_{side}"]] for side in ("in", "out"))
    if cfg["norm_activation"] == "token-wise":
        scale_in = scale_out = math.sqrt(D) / x_raw.norm(dim=-1, keepdim=True)
    x = x_raw * scale_in
    if cfg.get("apply_decoder_bias_to_pre_encoder"):
        x = x - w["b_D"]
    h = x @ w["W_E"] + w["b_E"]
    norm = w["W_D"].norm(dim=1) if cfg["sparsity_include_decoder_norm"] else torch.ones(S, dtype=torch.float64)
    theta = w[THRESHOLD].exp() if THRESHOLD in w else None
    f = act(cfg["act_fn"], h * norm, theta) / norm
    y = f @ w["W_D"] + w.get("b_D", torch.zeros(D, dtype=torch.float64))
    return f, y / scale_out


def folded_by_the_library(cfg: dict[str, Any], w: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the runner saves: biases and decoder are divided, thresholds and the norms themselves stay."""
    s_in, s_out = (math.sqrt(D) / NORMS[cfg[f"hook_point_{side}"]] for side in ("in", "out"))
    return {**w, "b_E": w["b_E"] / s_in, "b_D": w["b_D"] / s_out, "W_D": w["W_D"] * s_in / s_out}


def write(
    folder: Path,
    cfg: dict[str, Any],
    w: dict[str, Tensor],
    *,
    name: str = "sae_weights.safetensors",
    version: str = "1.0.0",
) -> Path:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(cfg, indent=4))
    w = {key: tensor.contiguous() for key, tensor in w.items()}
    if name.endswith(".pt"):
        torch.save({"sae": w, "version": version}, target)
    else:
        save_file(w, target, {"version": version})
    return folder


def read(folder: Path, *, shapes_only: bool = False, lenient: bool = False, **overrides: Any) -> Foreign:
    source = LocalSource.of(folder, overrides=overrides, shapes_only=shapes_only, lenient=lenient)
    assert LLAMASCOPIUM.recognise(source)
    assert set(overrides) <= set(LLAMASCOPIUM.overrides)
    return LLAMASCOPIUM.read(source)


def agree(foreign: Foreign, x: Tensor, f: Tensor, y: Tensor, *, tolerance: float = 1e-10) -> None:
    dictionary = foreign.build(dtype=x.dtype)
    found = dictionary.encode(x)
    assert ((found != 0) == (f != 0)).all()
    assert (found - f).abs().max() <= tolerance * f.abs().max()
    assert (dictionary(x) - y).abs().max() <= tolerance * y.abs().max()
    assert 0 < (f != 0).double().mean() < 1  # the gate decides something


def codes_are(cfg: dict[str, Any], f: Tensor, w: dict[str, Tensor], scale_out: float) -> Tensor:
    """Ours: those of TopK with the norm are multiplied by the norms of the folded decoder."""
    if cfg["act_fn"] == "topk" and cfg["sparsity_include_decoder_norm"]:
        return f * w["W_D"].norm(dim=1) / scale_out
    return f


@pytest.mark.parametrize("out", [IN, OUT])
@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("name", ACTS)
def test_dataset_wise_dictionaries_compute_what_the_library_does(
    tmp_path: Path, name: str, by_norm: bool, out: str
) -> None:
    cfg = config(act_fn=name, sparsity_include_decoder_norm=by_norm, hook_point_out=out)
    w = weights(cfg)
    foreign = read(write(tmp_path, cfg, w))
    base = name if out == IN else ("transcoder" if name == "relu" else f"{name}_transcoder")
    assert foreign.architecture == base
    assert foreign.metadata["hook_name"] == IN
    assert foreign.metadata.get("hook_name_out") == (None if out == IN else OUT)
    x = activations()
    f, y = theirs(cfg, w, x)
    agree(foreign, x, codes_are(cfg, f, w, math.sqrt(D) / NORMS[out]), y)
    assert "folded into the weights here" in foreign.said[0]


@pytest.mark.parametrize("name", ACTS)
def test_float32_files(tmp_path: Path, name: str) -> None:
    cfg = config(act_fn=name, hook_point_out=OUT)
    w = {key: tensor.float() for key, tensor in weights(cfg).items()}
    exact = {key: tensor.double() for key, tensor in w.items()}
    x = activations().float()
    f, y = theirs(cfg, exact, x.double())
    foreign = read(write(tmp_path, cfg, w))
    assert foreign.dtype == torch.float32
    agree(foreign, x, codes_are(cfg, f, exact, math.sqrt(D) / NORMS[OUT]).float(), y.float(), tolerance=1e-5)


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("name", ACTS)
def test_in_inference_mode_nothing_is_scaled_and_norms_are_not_looked_at(
    tmp_path: Path, name: str, by_norm: bool
) -> None:
    cfg = config(act_fn=name, norm_activation="inference", sparsity_include_decoder_norm=by_norm)
    w = weights(cfg, norms={IN: math.nan})  # memory that was never written to
    x = activations()
    f, y = theirs(cfg, w, x)
    agree(read(write(tmp_path, cfg, w)), x, codes_are(cfg, f, w, 1), y)


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("name", ACTS)
def test_token_wise_scaling(tmp_path: Path, name: str, by_norm: bool) -> None:
    cfg = config(act_fn=name, norm_activation="token-wise", sparsity_include_decoder_norm=by_norm)
    w = weights(cfg, norms={IN: -1.0})
    foreign = read(write(tmp_path, cfg, w))
    assert foreign.normalization == "constant_norm_rescale"
    x = activations() * torch.linspace(0.2, 4, 40, dtype=torch.float64)[:, None]
    f, y = theirs(cfg, w, x)
    agree(foreign, x, codes_are(cfg, f, w, 1), y)


def test_without_a_decoder_bias(tmp_path: Path) -> None:
    cfg = config(use_decoder_bias=False, act_fn="jumprelu")
    w = weights(cfg)
    x = activations()
    agree(read(write(tmp_path, cfg, w)), x, *theirs(cfg, w, x))


def test_older_versions_could_centre_the_input(tmp_path: Path) -> None:
    cfg = config(act_fn="jumprelu", apply_decoder_bias_to_pre_encoder=True)
    w = weights(cfg)
    x = activations()
    agree(read(write(tmp_path, cfg, w)), x, *theirs(cfg, w, x))
    cfg["hook_point_out"] = OUT
    with pytest.raises(ValueError, match="the output's"):
        read(write(tmp_path, cfg, weights(cfg)))


def test_a_matryoshka_is_one_by_its_loss_alone(tmp_path: Path) -> None:
    cfg = config(
        sae_type="matryoshka_sae", act_fn="topk", matryoshka_widths=[4, 12], matryoshka_loss_weights=[1.0, 1.0],
        use_matryoshka_aux_loss=False,
    )  # fmt: skip
    w = weights(cfg)
    x = activations()
    f, y = theirs(cfg, w, x)
    agree(read(write(tmp_path, cfg, w)), x, codes_are(cfg, f, w, math.sqrt(D) / NORMS[IN]), y)


def test_features_without_a_decoder_never_fire(tmp_path: Path) -> None:
    cfg = config(act_fn="jumprelu")
    w = weights(cfg)
    w["W_D"][2] = 0
    w[THRESHOLD][3] = 1000.0  # its exponential is infinite
    w[THRESHOLD][2] = -math.inf
    x = activations()
    dictionary = read(write(tmp_path, cfg, w)).build(dtype=torch.float64)
    f, _ = theirs(cfg, {**w, THRESHOLD: w[THRESHOLD].clamp(-700, 700)}, x)
    f[:, 2] = 0  # 0 / 0 there
    assert not f[:, 3].any()
    assert (dictionary.encode(x) - f).abs().max() < 1e-10
    assert dictionary(x).isfinite().all()


# Thresholds of BatchTopK


@pytest.mark.parametrize("by_norm", [True, False])
def test_batch_topk_needs_a_threshold_and_is_a_jumprelu_with_it(tmp_path: Path, by_norm: bool) -> None:
    cfg = config(act_fn="batchtopk", hook_point_out=OUT, sparsity_include_decoder_norm=by_norm)
    w = weights(cfg)
    write(tmp_path, cfg, w)
    with pytest.raises(ValueError, match="threshold=NUMBER"):
        read(tmp_path)
    x = activations()
    jump = {**cfg, "act_fn": "jumprelu"}
    theta = torch.full((S,), 0.8, dtype=torch.float64)
    for value in (0.8, "0.8"):  # as from Python, and from the command line
        foreign = read(tmp_path, threshold=value)
        assert foreign.architecture == "jumprelu_transcoder"
        agree(foreign, x, *theirs(jump, {**w, THRESHOLD: theta.log()}, x))
    for wrong in (0, -1.0, "many", True, math.nan):
        with pytest.raises(ValueError, match="positive number"):
            read(tmp_path, threshold=wrong)
    write(tmp_path, config(), weights(config()))
    with pytest.raises(ValueError, match="BatchTopK alone"):
        read(tmp_path, threshold=0.8)


# The double fold


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("out", [IN, OUT])
@pytest.mark.parametrize("name", ACTS)
def test_weights_that_were_folded_already_are_not_folded_again(
    tmp_path: Path, name: str, out: str, by_norm: bool
) -> None:
    cfg = config(act_fn=name, hook_point_out=out, sparsity_include_decoder_norm=by_norm)
    w = weights(cfg)
    x = activations()
    f, y = theirs(cfg, w, x)  # the trained function, whatever the file says
    s_in, s_out = math.sqrt(D) / NORMS[IN], math.sqrt(D) / NORMS[out]
    write(tmp_path, cfg, folded_by_the_library(cfg, w))
    codes = codes_are(cfg, f, w, s_out) if name == "topk" and by_norm else f / s_in
    for said in (True, "true"):
        agree(read(tmp_path, already_folded=said), x, codes, y)
    # by default too, where the version is one whose configuration does not tell
    write(tmp_path, cfg, folded_by_the_library(cfg, w), version="2.0.0b34")
    foreign = read(tmp_path)
    assert "already_folded=false" in foreign.said[0]
    assert "2.0.0b34" in foreign.said[0]
    agree(foreign, x, codes, y)
    # and the mistake is seen: the scale would count twice
    twice = read(tmp_path, already_folded=False).build(dtype=torch.float64)(x)
    assert (twice - y).abs().max() > 0.1 * y.abs().max()


@pytest.mark.parametrize("by_norm", [True, False])
def test_thresholds_that_were_folded_too(tmp_path: Path, by_norm: bool) -> None:
    cfg = config(act_fn="jumprelu", hook_point_out=OUT, sparsity_include_decoder_norm=by_norm)
    w = weights(cfg)
    x = activations()
    f, y = theirs(cfg, w, x)
    s_in, s_out = math.sqrt(D) / NORMS[IN], math.sqrt(D) / NORMS[OUT]
    folded = folded_by_the_library(cfg, w)
    folded[THRESHOLD] = folded[THRESHOLD] - math.log(s_out if by_norm else s_in)
    write(tmp_path, cfg, folded)
    agree(read(tmp_path, already_folded=True, threshold_folded=True), x, f / s_in, y)
    without = read(tmp_path, already_folded=True).build(dtype=torch.float64).encode(x)
    assert ((without != 0) != (f != 0)).any()


def test_norms_of_an_inference_file_are_used_when_the_user_says_so(tmp_path: Path) -> None:
    cfg = config(act_fn="jumprelu", hook_point_out=OUT)
    w = weights(cfg)
    x = activations()
    f, y = theirs(cfg, w, x)
    write(tmp_path, {**cfg, "norm_activation": "inference"}, folded_by_the_library(cfg, w))
    agree(read(tmp_path, already_folded=True), x, f / (math.sqrt(D) / NORMS[IN]), y)
    as_it_stands = read(tmp_path).build(dtype=torch.float64).encode(x)
    assert ((as_it_stands != 0) != (f != 0)).any()  # thresholds are still those of training
    with pytest.raises(ValueError, match="no scale to be folded"):
        read(tmp_path, already_folded=False)


@pytest.mark.parametrize(
    ("version", "folded"),
    [
        ("2.0.0b21", False), ("2.0.0b22", True), ("2.0.0", True), ("2.1.0b1", True), ("1.9.9", False), ("odd", False),
        ("", False),
    ],
)  # fmt: skip
def test_the_version_decides_where_nobody_says(tmp_path: Path, version: str, folded: bool) -> None:
    write(tmp_path, config(), weights(config()), version=version)
    assert ("already_folded=false" in read(tmp_path).said[0]) == folded
    (tmp_path / "trainer.pt").write_bytes(b"not opened")
    foreign = read(tmp_path)
    assert "already_folded=true" in foreign.said[0]  # a checkpoint of a run is never folded
    assert "trainer.pt" in foreign.said[0]


def test_a_checkpoint_is_known_by_its_folders_name(tmp_path: Path) -> None:
    step, other = tmp_path / "step_500", tmp_path / "my_step_500"
    for folder in (step, other):
        write(folder, config(), weights(config()), version="2.0.0b34")
    assert "by its name" in read(step).said[0]
    assert "2.0.0b34 folds" in read(other).said[0]


@pytest.mark.parametrize("norm", [0.0, -2.0, math.nan, math.inf])
def test_norms_that_were_never_set_are_refused(tmp_path: Path, norm: float) -> None:
    write(tmp_path, config(), weights(config(), norms={IN: norm}))
    for folded in (None, True, False):
        with pytest.raises(ValueError, match="never set"):
            read(tmp_path, already_folded=folded)


def test_missing_norms_are_refused(tmp_path: Path) -> None:
    cfg = config(hook_point_out=OUT)
    w = weights(cfg)
    del w[f"dataset_average_activation_norm.{OUT}"]
    write(tmp_path, cfg, w)
    with pytest.raises(ValueError, match="hook_mlp_out, though activations were scaled"):
        read(tmp_path)


def fitted(name: str, out: str) -> tuple[dict[str, Any], dict[str, Tensor], Tensor, Tensor]:
    """A dictionary that rebuilds well, half from its features and half from its bias, and activations far from 0."""
    cfg = config(act_fn=name, hook_point_out=out)
    w = weights(cfg)
    eye = torch.eye(D, dtype=torch.float64)
    w["W_E"], w["b_E"] = torch.cat([eye, -eye], dim=1) / 2, torch.zeros(S, dtype=torch.float64)
    w["W_D"] = torch.cat([eye, -eye])
    if name == "jumprelu":
        w[THRESHOLD] = torch.full((S,), math.log(0.1), dtype=torch.float64)
    x = normal(300, D, seed=21) + 3
    x *= NORMS[IN] / x.norm(dim=-1).mean()
    scaled = x * math.sqrt(D) / NORMS[IN]
    w["b_D"] = scaled.mean(0) / 2
    return cfg, w, x, scaled * NORMS[out] / math.sqrt(D)


@pytest.mark.parametrize("out", [IN, OUT])
@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_the_check_tells_which_reading_is_right(tmp_path: Path, name: str, out: str) -> None:
    cfg, w, x, y = fitted(name, out)
    for folded in (False, True):
        held = folded_by_the_library(cfg, w) if folded else w
        source = LocalSource.of(write(tmp_path, cfg, held, version="2.0.0b34"))
        found = folding_check(source, x, None if out == IN else y)
        right, wrong = ("already_folded", "folded_here") if folded else ("folded_here", "already_folded")
        assert found["better"] == right
        assert found["in_force"] == "already_folded"
        assert found[f"explained_variance_{right}"] > found[f"explained_variance_{wrong}"] + 0.1
        assert found[f"explained_variance_{right}"] > 0.7
        assert 0 < found[f"l0_{right}"] < S
        said = LocalSource.of(tmp_path, overrides={"already_folded": False})
        assert folding_check(said, x, None if out == IN else y)["in_force"] == "folded_here"


def test_the_check_says_nothing_where_nothing_is_folded(tmp_path: Path) -> None:
    cfg = config(norm_activation="inference")
    write(tmp_path, cfg, weights(cfg))
    assert folding_check(LocalSource.of(tmp_path), activations()) == {}
    cfg = config(hook_point_out=OUT)
    write(tmp_path, cfg, weights(cfg))
    with pytest.raises(ValueError, match="at its output"):
        folding_check(LocalSource.of(tmp_path), activations())


# Files


def test_the_file_that_the_library_would_open_is_opened(tmp_path: Path) -> None:
    cfg = config(act_fn="jumprelu")
    x = activations()
    order = [
        f"{stem}.{kind}"
        for stem in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
        for kind in ("safetensors", "pt")
    ]
    for number, name in reversed(list(enumerate(order))):
        w = weights(cfg)
        w["b_D"] = w["b_D"] + number
        write(tmp_path, cfg, w, name=name)
        agree(read(tmp_path), x, *theirs(cfg, w, x))
    # one that was named, and one that is not among the usual
    w["b_D"] = w["b_D"] - 7
    write(tmp_path, cfg, w, name="checkpoints/9000.safetensors")
    agree(read(tmp_path, weights="checkpoints/9000.safetensors"), x, *theirs(cfg, w, x))
    write(tmp_path, cfg, w, name="mine.safetensors")
    agree(read(tmp_path / "mine.safetensors"), x, *theirs(cfg, w, x))


def test_the_version_in_a_pt_file_counts(tmp_path: Path) -> None:
    write(tmp_path, config(), weights(config()), name="sae_weights.pt", version="2.0.0b30")
    assert "2.0.0b30 folds" in read(tmp_path).said[0]


def test_distributed_checkpoints_are_refused(tmp_path: Path) -> None:
    write(tmp_path, config(), weights(config()), name="checkpoints/final.safetensors")
    for folder in ("sae_weights.dcp", "checkpoints/pruned.dcp"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".metadata").write_bytes(b"\x80\x04.")
        with pytest.raises(ValueError, match=r"pickle.*save_pretrained"):
            read(tmp_path)
        (tmp_path / folder / ".metadata").unlink()
        (tmp_path / folder).rmdir()
    read(tmp_path)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    with pytest.raises(FileNotFoundError, match=r"checkpoints/final\.safetensors"):
        read(tmp_path)


def test_what_a_folder_says_of_its_model(tmp_path: Path) -> None:
    write(tmp_path, config(), weights(config()))
    (tmp_path / "lm_config.json").write_text(json.dumps({"model_name": "a/model", "prepend_bos": False, "d_model": D}))
    assert read(tmp_path).metadata == {"hook_name": IN, "model_name": "a/model", "prepend_bos": False}


@pytest.mark.parametrize("name", [*ACTS, "batchtopk"])
def test_headers_alone_give_the_same(tmp_path: Path, name: str) -> None:
    cfg = config(act_fn=name, hook_point_out=OUT)
    write(tmp_path, cfg, weights(cfg))
    more = {"threshold": 0.5} if name == "batchtopk" else {}
    for folded in (True, False):
        shapes, full = (read(tmp_path, shapes_only=only, already_folded=folded, **more) for only in (True, False))
        assert all(tensor.is_meta for tensor in shapes.tensors.values())
        assert (shapes.architecture, shapes.settings) == (full.architecture, full.settings)
        assert shapes.metadata == full.metadata
        assert {key: t.shape for key, t in shapes.tensors.items()} == {key: t.shape for key, t in full.tensors.items()}


# Refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sae_type": "clt"}, "cross-layer transcoder"),
        ({"sae_type": "lorsa"}, "sparse attention"),
        ({"sae_type": "molt"}, "low-rank maps"),
        ({"sae_type": "other"}, "'other'; opened are sae"),
        ({"use_glu_encoder": True}, "sigmoid"),
        ({"norm_activation": "batch-wise"}, "other tokens of its batch"),
        ({"norm_activation": "mystery"}, "'mystery'; known are"),
        ({"norm_activation": "token-wise", "hook_point_out": OUT}, "several hook points"),
        ({"act_fn": "layertopk"}, "layertopk"),
        ({"expansion_factor": 2.05}, "whole number"),
        ({"expansion_factor": math.nan}, "whole number"),
        ({"expansion_factor": math.inf}, "whole number"),
        ({"d_model": -D, "expansion_factor": -2.0}, "whole number"),
        ({"expansion_factor": 3}, r"W_D should have shape \[18, 6\]"),
        ({"new_key": 1}, "new_key"),
        ({"hook_point_in": None}, "no hook_point_in"),
    ],
)
def test_what_can_not_be_opened_is_refused_in_words(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    cfg = config(**change)
    write(tmp_path, cfg, weights({**cfg, "hook_point_in": IN}))
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_unknown_keys_pass_when_the_user_says_so(tmp_path: Path) -> None:
    write(tmp_path, config(new_key=1), weights(config()))
    read(tmp_path, lenient=True)


@pytest.mark.parametrize("extra", ["W_skip", "W_E_glu", THRESHOLD])
def test_tensors_that_are_left_over_are_refused(tmp_path: Path, extra: str) -> None:
    w = weights(config())
    write(tmp_path, config(), {**w, extra: w["b_E"].clone()})
    with pytest.raises(ValueError, match=f"{extra}, which this format does not have"):
        read(tmp_path)


@pytest.mark.parametrize("gone", ["W_E", "b_E", "W_D", "b_D", THRESHOLD])
def test_missing_tensors_are_named(tmp_path: Path, gone: str) -> None:
    cfg = config(act_fn="jumprelu")
    w = weights(cfg)
    del w[gone]
    write(tmp_path, cfg, w)
    with pytest.raises(ValueError, match=f"no tensor '{gone}'"):
        read(tmp_path)


def test_overrides_are_checked(tmp_path: Path) -> None:
    write(tmp_path, config(), weights(config()))
    with pytest.raises(ValueError, match="already_folded should be true or false"):
        read(tmp_path, already_folded="maybe")
    cfg = config(norm_activation="token-wise")
    write(tmp_path, cfg, weights(cfg))
    with pytest.raises(ValueError, match="can not be folded"):
        read(tmp_path, already_folded=True)


# Detection


def other_folders(root: Path) -> Iterator[Path]:
    """A folder of every other format that has a configuration by such a name."""
    tensors = {"W_enc": torch.zeros(D, S), "W_dec": torch.zeros(S, D), "b_enc": torch.zeros(S), "b_dec": torch.zeros(D)}
    linear = {"encoder.weight": torch.zeros(S, D), "encoder.bias": torch.zeros(S), "decoder.weight": torch.zeros(D, S)}
    made: dict[str, tuple[str, dict[str, Any], str, dict[str, Tensor]]] = {
        "dictionary_learning": ("config.json", {"trainer": {}, "buffer": {}}, "ae.pt", linear),
        "gemma_scope_2": (
            "config.json",
            {"architecture": "jump_relu", "model_name": "m"},
            "params.safetensors",
            tensors,
        ),
        "sparsify": ("cfg.json", {"d_in": D, "num_latents": S}, "sae.safetensors", linear),
        "transformers": ("config.json", {"d_model": D, "model_type": "t5"}, "model.safetensors", linear),
    }
    for name, (config_file, cfg, weights_file, held) in made.items():
        folder = root / name
        folder.mkdir()
        (folder / config_file).write_text(json.dumps(cfg))
        if weights_file.endswith(".pt"):
            torch.save(held, folder / weights_file)
        else:
            save_file(held, folder / weights_file)
        yield folder
    save_dictionary(TopK(TopK.Config(d_in=D, d_sae=S, k=K)), root / "saelens")
    yield root / "saelens"
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    yield root / "broken"
    (root / "empty").mkdir()
    yield root / "empty"


def test_other_folders_are_not_taken_for_these(tmp_path: Path) -> None:
    for folder in other_folders(tmp_path):
        source = LocalSource.of(folder)
        for each in (LLAMASCOPIUM, LLAMA_SCOPE, LLAMA_SCOPE_R1):
            assert not each.recognise(source), (folder.name, each.name)


def test_these_are_not_taken_for_others(tmp_path: Path) -> None:
    source = LocalSource.of(write(tmp_path, config(), weights(config())))
    assert LLAMASCOPIUM.recognise(source)
    assert not any(each.recognise(source) for each in (LLAMA_SCOPE, LLAMA_SCOPE_R1, SAELENS))


# Crosscoders

H = 3
HOOKS = [f"blocks.{layer}.hook_resid_post" for layer in range(H)]
HEAD_NORMS = [2.0, 5.0, 0.8]


def crosscoder(name: str = "relu", *, equal: bool = False, **more: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    cfg = config(sae_type="crosscoder", act_fn=name, hook_points=HOOKS, **more)
    del cfg["hook_point_in"], cfg["hook_point_out"]
    W_D = normal(H, S, D, seed=13)
    if equal:
        W_D = W_D / W_D.norm(dim=-1, keepdim=True) * torch.linspace(0.3, 2.5, S, dtype=torch.float64)[:, None]
    w = {"W_E": normal(H, D, S, seed=11), "b_E": normal(H, S, seed=12), "W_D": W_D, "b_D": normal(H, D, seed=14)}
    if name == "jumprelu":
        w[THRESHOLD] = normal(S, seed=15, scale=0.4)
    for hook_point, norm in zip(HOOKS, HEAD_NORMS, strict=True):
        w[f"dataset_average_activation_norm.{hook_point}"] = torch.tensor(norm, dtype=torch.float64)
    return cfg, w


def their_crosscoder(cfg: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``[B, H, s]`` and reconstructions ``[B, H, d]`` of ``x [B, H, d]``."""
    scales = torch.ones(H, dtype=torch.float64)
    if cfg["norm_activation"] == "dataset-wise":
        scales = math.sqrt(D) / torch.stack([w[f"dataset_average_activation_norm.{each}"] for each in HOOKS])
    hidden = sum((x[:, h] * scales[h]) @ w["W_E"][h] + w["b_E"][h] for h in range(H))
    assert isinstance(hidden, Tensor)
    codes, outputs = [], []
    for h in range(H):
        norm = w["W_D"][h].norm(dim=-1)
        theta = w[THRESHOLD].exp() if THRESHOLD in w else None
        codes.append(act(cfg["act_fn"], hidden * norm, theta) / norm)
        outputs.append((codes[-1] @ w["W_D"][h] + w["b_D"][h]) / scales[h])
    return torch.stack(codes, 1), torch.stack(outputs, 1)


def head_activations() -> Tensor:
    return torch.stack([activations(norm=norm).roll(h, 0) for h, norm in enumerate(HEAD_NORMS)], 1)


@pytest.mark.parametrize("kind", ["dataset-wise", "inference"])
@pytest.mark.parametrize(("name", "equal"), [("relu", False), ("jumprelu", True), ("topk", True)])
def test_crosscoders_with_one_code_for_all_heads(tmp_path: Path, name: str, equal: bool, kind: str) -> None:
    cfg, w = crosscoder(name, equal=equal, norm_activation=kind)
    foreign = read(write(tmp_path, cfg, w))
    assert foreign.architecture == f"{name}_crosscoder"
    assert foreign.settings["source_widths"] == (D,) * H
    assert foreign.metadata["hook_name"] == ", ".join(HOOKS)
    x = head_activations()
    f, y = their_crosscoder(cfg, w, x)
    torch.testing.assert_close(f.amax(1), f.amin(1))
    codes = f[:, 0] * w["W_D"][0].norm(dim=-1) if name == "topk" else f[:, 0]
    agree(foreign, x.flatten(1), codes, y.flatten(1))


@pytest.mark.parametrize(("name", "equal"), [("relu", False), ("jumprelu", True), ("topk", True)])
def test_the_librarys_folding_of_crosscoders_is_made_whole(tmp_path: Path, name: str, equal: bool) -> None:
    cfg, w = crosscoder(name, equal=equal)
    x = head_activations()
    f, y = their_crosscoder(cfg, w, x)
    scales = math.sqrt(D) / torch.tensor(HEAD_NORMS, dtype=torch.float64)[:, None]
    write(tmp_path, cfg, {**w, "b_E": w["b_E"] / scales, "b_D": w["b_D"] / scales}, version="2.0.0b34")
    codes = f[:, 0] * w["W_D"][0].norm(dim=-1) if name == "topk" else f[:, 0]
    agree(read(tmp_path), x.flatten(1), codes, y.flatten(1))
    agree(read(tmp_path, already_folded=True), x.flatten(1), codes, y.flatten(1))


@pytest.mark.parametrize("name", ["jumprelu", "batchtopk"])
def test_heads_that_are_gated_differently_are_refused_or_split(tmp_path: Path, name: str) -> None:
    cfg, w = crosscoder(name)
    more = {"threshold": 1.1} if name == "batchtopk" else {}
    write(tmp_path, cfg, w)
    with pytest.raises(ValueError, match=r"norms differ between heads.*split_heads"):
        read(tmp_path, **more)
    if name == "batchtopk":
        w[THRESHOLD] = torch.full((S,), math.log(1.1), dtype=torch.float64)
    x = head_activations()
    f, y = their_crosscoder({**cfg, "act_fn": "jumprelu"}, w, x)
    assert ((f != 0).any(1) != (f != 0).all(1)).any()  # they do fire for some heads alone
    foreign = read(tmp_path, split_heads=True, **more)
    assert foreign.d_sae == H * S
    agree(foreign, x.flatten(1), f.flatten(1), y.flatten(1))


def test_competition_within_heads_is_refused(tmp_path: Path) -> None:
    cfg, w = crosscoder("topk")
    write(tmp_path, cfg, w)
    with pytest.raises(ValueError, match="compete apart"):
        read(tmp_path)
    with pytest.raises(ValueError, match="split_heads is for"):
        read(tmp_path, split_heads=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hook_points": []}, "list of names"),
        ({"hook_points": [1, 2, 3]}, "list of names"),
        ({"sparsity_include_decoder_norm": False}, "does not exist"),
        ({"hook_points": HOOKS[:2]}, r"shape \[2, 6, 12\]"),
        ({"norm_activation": "token-wise"}, "several hook points"),
        ({"norm_activation": "batch-wise"}, "other tokens"),
    ],
)
def test_crosscoders_that_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    cfg, w = crosscoder()
    write(tmp_path, {**cfg, **change}, w)
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", ["relu", "jumprelu", "topk"])
def test_headers_of_crosscoders(tmp_path: Path, name: str, split: bool) -> None:
    if split and name != "jumprelu":
        pytest.skip("nothing to split")
    cfg, w = crosscoder(name, equal=True)
    write(tmp_path, cfg, w)
    shapes, full = (read(tmp_path, shapes_only=only, split_heads=split) for only in (True, False))
    assert all(tensor.is_meta for tensor in shapes.tensors.values())
    assert (shapes.architecture, shapes.settings) == (full.architecture, full.settings)
    assert {key: t.shape for key, t in shapes.tensors.items()} == {key: t.shape for key, t in full.tensors.items()}
