"""SAELens' files, read and written: against a transcription of what SAELens computes, and against files that it saved.

The kept files under ``files/saelens`` were made by ``peers/saelens.py make``, cases of the same names.
B  tokens, d_in  width, d_out  width of a transcoder's output, d_sae  features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_dictionaries import D_IN, D_OUT, D_SAE, random_dictionary, random_tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

from saescope.dictionaries import Dictionary, architectures, save_dictionary
from saescope.dictionaries.normalization import ConstantNorm, LayerNorm, Whitening
from saescope.formats.dictionaries.saelens import SAELENS
from saescope.formats.dictionaries.saelens_legacy import is_legacy
from saescope.formats.foreign import Foreign
from saescope.formats.loading import format_of
from saescope.formats.source import LocalSource

KEPT = Path(__file__).parent / "files" / "saelens"
NEW = {"sae_lens_version": "6.54.12", "model_name": "tiny", "hook_name": "blocks.1.hook_mlp_out", "prepend_bos": False}
READ = (
    "standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit", "transcoder", "skip_transcoder",
    "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
WRITTEN = {
    "relu": "standard", "topk": "topk", "ordered": "topk", "abs_topk": "abstopk", "jumprelu": "jumprelu", "gated": "gated",
    "batch_topk": "jumprelu", "matryoshka": "jumprelu", "matching_pursuit": "matching_pursuit",
    "transcoder": "transcoder", "skip_transcoder": "skip_transcoder", "jumprelu_transcoder": "jumprelu_transcoder",
    "jumprelu_skip_transcoder": "jumprelu_skip_transcoder",
    "relu_archetypal": "standard", "topk_archetypal": "topk", "ordered_archetypal": "topk", "abs_topk_archetypal": "abstopk",
    "jumprelu_archetypal": "jumprelu", "gated_archetypal": "gated", "batch_topk_archetypal": "jumprelu",
    "matryoshka_archetypal": "jumprelu",
    "gated_transcoder": "jumprelu_transcoder", "gated_skip_transcoder": "jumprelu_skip_transcoder",
    "batch_topk_transcoder": "jumprelu_transcoder", "batch_topk_skip_transcoder": "jumprelu_skip_transcoder",
    "matryoshka_transcoder": "jumprelu_transcoder", "matryoshka_skip_transcoder": "jumprelu_skip_transcoder",
}  # fmt: skip


def as_saelens(config: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and output by SAELens' forward pass, written down once more."""
    kind, norm = config["architecture"], config["normalize_activations"]
    d = x.shape[-1]
    shift, factor, back = torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1]), torch.ones_like(x[:, :1])
    if norm == "layer_norm":
        shift, back = x.mean(-1, keepdim=True), (x - x.mean(-1, keepdim=True)).std(-1, keepdim=True)
        factor = 1 / (back + 1e-5)
    elif norm == "constant_norm_rescale":
        factor = d**0.5 / x.norm(dim=-1, keepdim=True)
        back = 1 / factor
    given = (x - shift) * factor
    if "transcoder" not in kind and config["apply_b_dec_to_input"]:
        given = given - w["b_dec"]
    norms = w["W_dec"].norm(dim=-1)
    if kind == "matching_pursuit":
        f = torch.stack([pursuit(config, w["W_dec"], row) for row in given])
        out = f @ w["W_dec"] + (w["b_dec"] if config["apply_b_dec_to_input"] else 0)
        return f, out * back + shift
    if kind == "gated":
        u = given @ w["W_enc"]
        f = (u + w["b_gate"] > 0) * (given @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
        return f, (f @ w["W_dec"] + w["b_dec"]) * back + shift
    pre = given @ w["W_enc"] + w["b_enc"]
    by_norm = config.get("rescale_acts_by_decoder_norm", False)
    pre = pre * norms if by_norm else pre
    if kind in ("topk", "abstopk"):
        order = pre.abs() if kind == "abstopk" else pre
        kept = torch.zeros_like(pre).scatter(-1, order.topk(config["k"]).indices, 1)
        f = kept * (pre if kind == "abstopk" else pre.relu())
    else:
        f = pre.relu() * (pre > w["threshold"]) if "jumprelu" in kind else pre.relu()
    out = (f / norms if by_norm else f) @ w["W_dec"] + w["b_dec"]
    if "transcoder" in kind:
        return f, out + x @ w["W_skip"].T if "W_skip" in w else out
    return f, out * back + shift


def pursuit(config: dict[str, Any], rows: Tensor, r: Tensor) -> Tensor:
    f = torch.zeros(len(rows), dtype=r.dtype)
    for _ in range(config["max_iterations"] or rows.shape[1]):
        i = int((rows @ r).relu().argmax())
        before = f != 0
        v = (rows[i] @ r).relu()
        f[i] += v
        r = r - v * rows[i]
        if config["stop_on_duplicate_support"] and ((f != 0) == before).all():
            break
        if config["residual_threshold"] > 0 and r.norm() < config["residual_threshold"]:
            break
    return f


def random_file(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[dict, dict]:
    """cfg.json and tensors of version 6, everything random."""
    crossing = "transcoder" in kind
    d_out = D_OUT if crossing else D_IN
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (D_SAE, d_out), "b_dec": (d_out,)}
    if kind != "matching_pursuit":
        shapes["W_enc"] = (D_IN, D_SAE)
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag") if kind == "gated" else ("b_enc",), (D_SAE,))
    if "jumprelu" in kind:
        shapes["threshold"] = (D_SAE,)
    if "skip" in kind:
        shapes["W_skip"] = (D_OUT, D_IN)
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    if kind == "matching_pursuit":
        tensors["W_dec"] /= tensors["W_dec"].norm(dim=-1, keepdim=True)
    else:
        tensors["W_dec"] *= torch.linspace(0.3, 2, D_SAE, dtype=torch.float64)[:, None]
    config: dict[str, Any] = {
        "architecture": kind, "d_in": D_IN, "d_sae": D_SAE, "dtype": str(dtype)[6:], "device": "cpu",
        "apply_b_dec_to_input": not crossing, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": dict(NEW),
    }  # fmt: skip
    if crossing:
        config["d_out"] = D_OUT
    elif kind in ("topk", "abstopk"):
        config |= {"k": 3, "rescale_acts_by_decoder_norm": False}
    elif kind == "matching_pursuit":
        config |= {"residual_threshold": 0.8, "max_iterations": 4, "stop_on_duplicate_support": True}
    return config | changes, {name: tensor.to(dtype) for name, tensor in tensors.items()}


def put(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "cfg.json").write_text(json.dumps(kept))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def read(folder: Path, *, lenient: bool = False, shapes_only: bool = False, **overrides: Any) -> Foreign:
    return SAELENS.read(LocalSource.of(folder, overrides=overrides, lenient=lenient, shapes_only=shapes_only))


def assert_same(found: Tensor, expected: Tensor, *, support: bool = False) -> None:
    bound = {torch.float64: 1e-10, torch.float32: 1e-5}[expected.dtype]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= bound * expected.abs().max()
    if support:
        assert ((found != 0) == (expected != 0)).all()
        assert 0 < (expected != 0).double().mean() < 1


def assert_computes(dictionary: Dictionary, f: Tensor, x_hat: Tensor, x: Tensor) -> None:
    with torch.no_grad():
        assert_same(dictionary.encode(x), f, support=True)
        assert_same(dictionary(x), x_hat)


# Files that SAELens saved


@pytest.mark.parametrize("name", sorted(path.name for path in KEPT.iterdir()))
def test_files_that_saelens_saved(name: str) -> None:
    expected = load_file(KEPT / name / "expected.safetensors")
    assert format_of(KEPT / name / "files").name == "saelens"
    foreign = read(KEPT / name / "files", **json.loads((KEPT / name / "case.json").read_text())["overrides"])
    assert_computes(foreign.build(), expected["f"], expected["x_hat"], expected["x"])
    assert foreign.metadata["model_name"] == "tiny"


def test_five_files_are_kept() -> None:
    assert len(list(KEPT.iterdir())) == 5


# Finished dictionaries of version 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", READ)
def test_reads_every_architecture(tmp_path: Path, kind: str, centred: bool, norm: str, dtype: torch.dtype) -> None:
    if ("transcoder" in kind and centred) or ("skip" in kind and norm != "none"):
        pytest.skip("SAELens has no such thing, or it is refused")
    config, tensors = random_file(kind, dtype=dtype, apply_b_dec_to_input=centred, normalize_activations=norm)
    x = random_tokens(dtype=dtype)
    foreign = read(put(tmp_path, config, tensors))
    assert foreign.normalization == norm
    assert_computes(foreign.build(), *as_saelens(config, tensors, x), x)
    assert_computes(foreign.build(share_memory=True), *as_saelens(config, tensors, x), x)


@pytest.mark.parametrize("kind", ["topk", "abstopk"])
def test_competition_by_decoder_norm_is_folded(tmp_path: Path, kind: str) -> None:
    config, tensors = random_file(kind, rescale_acts_by_decoder_norm=True)
    x = random_tokens(dtype=torch.float64)
    foreign = read(put(tmp_path, config, tensors))
    assert_computes(foreign.build(), *as_saelens(config, tensors, x), x)
    other = as_saelens(config | {"rescale_acts_by_decoder_norm": False}, tensors, x)[0]
    assert ((other != 0) != (foreign.build().encode(x) != 0)).any()  # it matters here
    assert any("decoder norm" in said for said in foreign.said)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_iterations": None},
        {"residual_threshold": 0.0},
        {"residual_threshold": -1.0, "stop_on_duplicate_support": False},
    ],
)
def test_limits_of_a_pursuit(tmp_path: Path, changes: dict[str, Any]) -> None:
    config, tensors = random_file("matching_pursuit", **changes)
    x = random_tokens(dtype=torch.float64)
    assert_computes(read(put(tmp_path, config, tensors)).build(), *as_saelens(config, tensors, x), x)


def test_thresholds_below_0_let_nothing_negative_pass(tmp_path: Path) -> None:
    config, tensors = random_file("jumprelu")
    assert (tensors["threshold"] < 0).any()
    assert (read(put(tmp_path, config, tensors)).build().encode(random_tokens(dtype=torch.float64)) >= 0).all()


def test_heads_lie_side_by_side(tmp_path: Path) -> None:
    config, tensors = random_file("standard", reshape_activations="hook_z")
    x = random_tokens(dtype=torch.float64)
    foreign = read(put(tmp_path, config, tensors))
    assert_computes(foreign.build(), *as_saelens(config, tensors, x), x)
    assert any("attn.hook_z" in said for said in foreign.said)


@pytest.mark.parametrize("named", ["bfloat16", "torch.bfloat16"])
def test_weights_keep_the_type_they_are_stored_in(tmp_path: Path, named: str) -> None:
    config, tensors = random_file("standard", dtype=torch.float32)
    foreign = read(put(tmp_path, config | {"dtype": named}, tensors))
    assert foreign.build().W_dec.dtype == torch.float32
    assert any(named in said and "float32" in said for said in foreign.said)
    same = read(put(tmp_path, config | {"dtype": "torch.float32"}, tensors))
    assert not any("float32" in said for said in same.said)


def test_headers_alone_give_the_same_settings(tmp_path: Path) -> None:
    for number, kind in enumerate(READ):
        more = {"rescale_acts_by_decoder_norm": True} if "topk" in kind else {}
        folder = put(tmp_path / str(number), *random_file(kind, **more))
        whole, headers = read(folder), read(folder, shapes_only=True)
        assert all(tensor.is_meta for tensor in headers.tensors.values())
        assert {n: t.shape for n, t in headers.tensors.items()} == {n: t.shape for n, t in whole.tensors.items()}
        for name in ("architecture", "settings", "normalization", "metadata", "said"):
            assert getattr(headers, name) == getattr(whole, name), (kind, name)
    for case in KEPT.iterdir():
        assert read(case / "files", shapes_only=True).settings == read(case / "files").settings


# A scale outside of the file


@pytest.mark.parametrize("given", [0.4, "0.4"])
@pytest.mark.parametrize("kind", ["standard", "topk", "gated", "jumprelu", "matching_pursuit", "skip_transcoder"])
def test_the_scale_that_the_user_says_is_folded(tmp_path: Path, kind: str, given: float | str) -> None:
    more = {"rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    config, tensors = random_file(kind, normalize_activations="expected_average_only_in", **more)
    x = random_tokens(dtype=torch.float64)
    f, out = as_saelens(config, tensors, 0.4 * x)
    if kind in ("topk", "matching_pursuit"):
        f = f / 0.4  # as SAELens' own folding gives them, in units of the raw activation
    foreign = read(put(tmp_path, config, tensors), norm_scaling_factor=given)
    assert_computes(foreign.build(), f, out / 0.4, x)
    assert any("scaled by 0.4" in said for said in foreign.said)


@pytest.mark.parametrize(
    ("kind", "overrides", "words"),
    [
        ("expected_average_only_in", {}, "scale is not in the file. Pass it as norm_scaling_factor"),
        ("expected_average_only_in", {"norm_scaling_factor": 0}, "should be a positive number, but is 0"),
        ("expected_average_only_in", {"norm_scaling_factor": "x"}, "norm_scaling_factor should be a number, got 'x'"),
        ("none", {"norm_scaling_factor": 2}, "is for files with normalize_activations = expected_average_only_in"),
        ("covariance_whitening", {}, "activation_whitening.safetensors of the checkpoint are needed"),
        ("constant_scalar_rescale", {}, "has normalize_activations = 'constant_scalar_rescale'; known are none"),
    ],
)
@pytest.mark.parametrize("architecture", ["standard", "matching_pursuit"])
def test_a_scale_that_is_nowhere_is_refused(
    tmp_path: Path, architecture: str, kind: str, overrides: dict[str, Any], words: str
) -> None:
    put(tmp_path, *random_file(architecture, normalize_activations=kind))
    with pytest.raises(ValueError, match=words):
        read(tmp_path, **overrides)


# Checkpoints of training


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("scale", [None, 0.4])
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_batch_topk_checkpoints_are_jumprelu(tmp_path: Path, kind: str, scale: float | None, by_norm: bool) -> None:
    norm = "none" if scale is None else "expected_average_only_in"
    config, tensors = random_file("standard", normalize_activations=norm)
    config |= {"architecture": kind, "k": 2.5, "rescale_acts_by_decoder_norm": by_norm, "topk_threshold_lr": 0.01}
    config |= {"matryoshka_widths": [3, 10], "decoder_init_norm": 0.1} if "matryoshka" in kind else {}
    put(tmp_path, config, tensors | {"topk_threshold": torch.tensor(0.9, dtype=torch.float64)})
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale, "has_whitening": False}))
    (tmp_path / "trainer_state.pt").write_bytes(b"never opened")
    (tmp_path / "sparsity.safetensors").write_bytes(b"never opened")
    x = random_tokens(dtype=torch.float64)
    s, norms = scale or 1, tensors["W_dec"].norm(dim=-1)
    pre = (s * x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    pre = pre * norms if by_norm else pre
    f = pre * (pre > 0.9)
    out = ((f / norms if by_norm else f) @ tensors["W_dec"] + tensors["b_dec"]) / s
    foreign = read(tmp_path)
    assert foreign.architecture == "jumprelu"
    assert_computes(foreign.build(), f / s if by_norm else f, out, x)
    assert any("learned in training" in said for said in foreign.said)
    assert any("2.5 features per token" in said for said in foreign.said)


def test_a_threshold_where_training_begins_is_said(tmp_path: Path) -> None:
    config, tensors = random_file("standard", architecture="batchtopk", k=2)
    put(tmp_path, config, tensors | {"topk_threshold": torch.tensor(0.0, dtype=torch.float64)})
    assert any("where training begins" in said for said in read(tmp_path).said)


def test_log_thresholds(tmp_path: Path) -> None:
    config, tensors = random_file("jumprelu", jumprelu_bandwidth=0.05, l0_coefficient=1.0)
    logarithms = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
    put(tmp_path, config, logarithms | {"log_threshold": tensors["threshold"]})
    x = random_tokens(dtype=torch.float64)
    expected = as_saelens(config, tensors | {"threshold": tensors["threshold"].exp()}, x)
    assert_computes(read(tmp_path).build(), *expected, x)


def whitened(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64) + 2 * torch.eye(
        D_IN, dtype=torch.float64
    )
    mean = torch.randn(D_IN, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix).contiguous()
    save_file({"mean": mean, "matrix": matrix, "inverse_matrix": inverse}, folder / "activation_whitening.safetensors")
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": None, "has_whitening": True}))
    return mean, matrix, inverse


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["standard", "topk", "gated", "jumprelu"])
def test_whitening_beside_a_checkpoint_is_folded(tmp_path: Path, kind: str, centred: bool) -> None:
    more = {"rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    config, tensors = random_file(
        kind, apply_b_dec_to_input=centred, normalize_activations="covariance_whitening", **more
    )
    mean, matrix, inverse = whitened(put(tmp_path, config, tensors))
    x = random_tokens(dtype=torch.float64)
    f, out = as_saelens(config, tensors, (x - mean) @ matrix)
    foreign = read(tmp_path)
    assert_computes(foreign.build(), f, out @ inverse + mean, x)
    assert any("whitened" in said for said in foreign.said)
    assert all(tensor.is_meta for tensor in read(tmp_path, shapes_only=True).tensors.values())


def test_whitening_does_not_fold_where_encoder_and_decoder_are_one(tmp_path: Path) -> None:
    whitened(put(tmp_path, *random_file("matching_pursuit", normalize_activations="covariance_whitening")))
    with pytest.raises(ValueError, match="can not be folded into a matching_pursuit"):
        read(tmp_path)


def test_a_checkpoint_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *random_file("standard"))
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.5, "has_whitening": false}')
    with pytest.raises(ValueError, match=r"scaled by 0\.5, but .* has normalize_activations = none"):
        read(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": null, "has_whitening": false, "other": 1}')
    with pytest.raises(ValueError, match=r"activation_scaler\.json has other, which is not known"):
        read(tmp_path)


# Before version 6


@pytest.mark.parametrize(
    ("values", "legacy"),
    [
        ({}, True),
        ({"metadata": {}}, True),
        ({"metadata": None}, True),
        ({"sae_lens_version": "5.10.7"}, True),
        ({"sae_lens_version": "3.9"}, True),
        ({"metadata": {"sae_lens_version": "5.0.0"}}, True),
        ({"metadata": {"sae_lens_version": "6.0.0-rc.0"}}, False),
        ({"metadata": {"sae_lens_version": "6.54.12"}}, False),
        ({"metadata": {"sae_lens_version": "10.0"}}, False),
    ],
)
def test_versions(values: dict[str, Any], legacy: bool) -> None:
    assert is_legacy(values) is legacy


def old(kind: str = "standard", **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """cfg.json as it was before version 6."""
    config, tensors = random_file(kind)
    kept = {key: config[key] for key in ("d_in", "d_sae", "dtype", "device")}
    return kept | {"hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "model_name": "m"} | changes, tensors


def test_defaults_and_names_of_old_files(tmp_path: Path) -> None:
    config, tensors = old(
        hook_point_head_index=None, context_size=128, lr=1e-3, dtype="torch.float64", use_ghost_grads=True
    )
    x = random_tokens(dtype=torch.float64)
    foreign = read(put(tmp_path, config, tensors))
    assert_computes(foreign.build(), *as_saelens(random_file("standard")[0], tensors, x), x)
    assert foreign.metadata == {
        "model_name": "m", "hook_name": "blocks.8.hook_resid_pre", "prepend_bos": True, "context_size": 128,
    }  # fmt: skip
    assert foreign.normalization == "none"
    assert any("before version 6" in said for said in foreign.said)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "architecture": "standard"}, {"k": 4}),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 4}, "apply_b_dec_to_input": False}, {"k": 4}),
    ],
)
def test_old_topk_files(tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any]) -> None:
    foreign = read(put(tmp_path, *old(**changes)))
    assert foreign.architecture == "topk"
    assert foreign.settings == {"apply_b_dec_to_input": changes.get("apply_b_dec_to_input", True), **settings}


@pytest.mark.parametrize(("value", "refused"), [(True, True), (False, False), (None, False), ("none", False)])
def test_old_normalizations(tmp_path: Path, value: Any, refused: bool) -> None:
    put(tmp_path, *old(normalize_activations=value))
    if refused:
        with pytest.raises(ValueError, match="normalize_activations = expected_average_only_in"):
            read(tmp_path)
    else:
        assert read(tmp_path).normalization == "none"


def test_old_files_at_heads(tmp_path: Path) -> None:
    assert any("attn.hook_z" in s for s in read(put(tmp_path, *old(hook_point="blocks.0.attn.hook_z"))).said)
    config = old(hook_point="blocks.0.attn.hook_z", reshape_activations="none")
    assert not any("attn.hook_z" in s for s in read(put(tmp_path, *config)).said)


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_factors_of_finetuning(tmp_path: Path, name: str) -> None:
    config, tensors = old(finetuning_scaling_factor=True)
    x = random_tokens(dtype=torch.float64)
    put(tmp_path, config, tensors | {name: torch.ones(D_SAE)})
    assert_computes(read(tmp_path).build(), *as_saelens(random_file("standard")[0], tensors, x), x)
    put(tmp_path, config, tensors | {name: torch.linspace(1, 1.1, D_SAE)})
    with pytest.raises(ValueError, match=f"{name} holds factors other than 1"):
        read(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"activation_fn_str": "tanh-relu"}, {"activation_fn": "topk", "activation_fn_kwargs": {}}]
)
def test_activations_that_saelens_gave_up_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    put(tmp_path, *old(**changes))
    with pytest.raises(ValueError, match="which SAELens has not computed since version 6"):
        read(tmp_path)


def test_metadata_of_both_layouts_have_the_same_names(tmp_path: Path) -> None:
    known = {"model_name": "m", "hook_name": "blocks.8.hook_resid_pre", "context_size": 64, "prepend_bos": False,
             "dataset_path": "d", "neuronpedia_id": "m/8-x", "sae_lens_version": "5.1.0"}  # fmt: skip
    assert read(put(tmp_path, *old(**{k: v for k, v in known.items() if k != "hook_name"}))).metadata == known
    config, tensors = random_file("standard", metadata=known | {"sae_lens_version": "6.1.0", "l0": 3.5})
    assert read(put(tmp_path, config, tensors)).metadata == known | {"sae_lens_version": "6.1.0", "l0": 3.5}


# What is refused


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("standard", {"architecture": "temporal", "n_attn_layers": 1, "bottleneck_factor": 0}, "do not fit d_sae = 10"),
        ("standard", {"architecture": "saescope/group_max"}, "open it with format='saescope'"),
        ("standard", {"architecture": "vanilla"}, "architecture 'vanilla', which is not opened here; known are standard"),
        ("standard", {"architecture": ...}, "has no architecture"),
        ("standard", {"d_in": ...}, "has no d_in"),
        ("standard", {"d_sae": 11}, r"W_enc should have shape \[6, 11\], but has \[6, 10\]"),
        ("standard", {"d_in": "6"}, "d_in should be int, but is '6'"),
        ("standard", {"dtype": "int8"}, "has dtype = 'int8'; known are float32"),
        ("standard", {"reshape_activations": "heads"}, "reshape_activations = 'heads'; known are none and hook_z"),
        ("standard", {"apply_b_dec_to_inptu": False}, "has apply_b_dec_to_inptu, which is not known here"),
        ("standard", {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm, which is not known here"),
        ("standard", {"k": 3}, "has k, which is not known here"),
        ("topk", {"k": ...}, r"has no k; pass it \(k=\.\.\.\)"),
        ("topk", {"k": 2.5}, "k should be a whole number of at least 1, got 2.5"),
        ("topk", {"k": 0}, "k should be a whole number of at least 1, got 0"),
        ("transcoder", {"d_out": ...}, "has no d_out"),
        ("transcoder", {"d_out": 6}, r"W_dec should have shape \[10, 6\]"),
        ("transcoder", {"apply_b_dec_to_input": True}, "b_dec belongs to its output"),
        ("skip_transcoder", {"normalize_activations": "layer_norm"}, "W_skip with the activation as it was before"),
        ("jumprelu", {"architecture": "standard"}, "holds threshold, which this format does not have"),
        ("standard", {"architecture": "jumprelu"}, "has no tensor 'threshold'"),
        ("standard", {"architecture": "batchtopk"}, "has no tensor 'topk_threshold'"),
        ("matching_pursuit", {"max_iterations": "many"}, "max_iterations should be int"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, kind: str, changes: dict[str, Any], words: str) -> None:
    config, tensors = random_file(kind)
    put(tmp_path, config | changes, tensors)
    with pytest.raises(ValueError, match=words):
        read(tmp_path).build()


def test_an_unknown_key_may_be_let_be(tmp_path: Path) -> None:
    config, tensors = random_file("standard", colour="red")
    x = random_tokens(dtype=torch.float64)
    assert_computes(read(put(tmp_path, config, tensors), lenient=True).build(), *as_saelens(config, tensors, x), x)


def test_k_may_be_said(tmp_path: Path) -> None:
    config, tensors = random_file("topk", k=...)
    put(tmp_path, config, tensors)
    assert read(tmp_path, k="2").settings["k"] == 2
    with pytest.raises(ValueError, match="got 'two'"):
        read(tmp_path, k="two")
    with pytest.raises(ValueError, match="k = 3 is for topk and abstopk files"):
        read(put(tmp_path, *random_file("standard")), k=3)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    config, tensors = random_file("jumprelu")
    tensors["threshold"][3] = torch.nan
    with pytest.raises(ValueError, match="threshold holds NaN"):
        read(put(tmp_path, config, tensors)).build()


def test_a_missing_file_is_no_saelens_folder(tmp_path: Path) -> None:
    put(tmp_path, *random_file("standard"))
    (tmp_path / "sae_weights.safetensors").unlink()
    assert not SAELENS.recognise(LocalSource.of(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"sae_weights\.safetensors"):
        read(tmp_path)


def test_which_folders_it_is(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", *random_file("standard"))
    assert format_of(folder).name == "saelens"
    assert format_of(folder / "sae_weights.safetensors").name == "saelens"
    save_dictionary(random_dictionary("relu"), tmp_path / "b")
    assert format_of(tmp_path / "b").name == "saescope"
    (folder / "cfg.json").write_text("{damaged")
    assert SAELENS.recognise(LocalSource.of(folder))
    with pytest.raises(ValueError, match="is not valid JSON"):
        read(folder)


# Writing


def write(dictionary: Dictionary, folder: Path, **metadata: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    assert SAELENS.write is not None
    SAELENS.write(dictionary, folder, metadata)
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    return json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")


@pytest.mark.parametrize("norm", [None, LayerNorm, ConstantNorm])
@pytest.mark.parametrize("name", WRITTEN)
def test_writes_what_saelens_computes(tmp_path: Path, name: str, norm: Callable[[], Any] | None) -> None:
    if norm is not None and "skip" in name:
        pytest.skip("refused, below")
    for dtype in (torch.float32, torch.float64):
        for centred in (False,) if "transcoder" in name else (True, False):
            dictionary = random_dictionary(name, dtype=dtype, apply_b_dec_to_input=centred)
            if norm is not None:
                dictionary.input_normalization = norm()
            x = random_tokens(dtype=dtype)
            folder = tmp_path / f"{str(dtype)[6:]}-{centred}"
            config, tensors = write(dictionary, folder, model_name="tiny")
            assert config["architecture"] == WRITTEN[name]
            assert all(tensor.dtype == dtype for tensor in tensors.values())
            with torch.no_grad():
                expected = dictionary.encode(x), dictionary(x)
            f, out = as_saelens(config, tensors, x)
            assert_same(f, expected[0], support=True)
            assert_same(out, expected[1])
            back = read(folder)
            assert_computes(back.build(), *expected, x)
            again = tmp_path / f"{folder.name}-again"
            write(back.build(), again, **back.metadata)
            for file in ("cfg.json", "sae_weights.safetensors"):
                assert (again / file).read_bytes() == (folder / file).read_bytes(), file


@pytest.mark.parametrize("name", sorted(set(architectures()) - set(WRITTEN)))
def test_what_saelens_does_not_compute_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"nothing that computes what a {name} dictionary does; .*--to saescope"):
        write(random_dictionary(name), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_only_keys_that_saelens_has(tmp_path: Path) -> None:
    shared = {
        "architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations",
        "reshape_activations", "metadata",
    }  # fmt: skip
    more = {
        "topk": {"k", "rescale_acts_by_decoder_norm"},
        "matching_pursuit": {"max_iterations", "residual_threshold", "stop_on_duplicate_support"},
        "topk_archetypal": {"k", "rescale_acts_by_decoder_norm"},
        "batch_topk": set(), "jumprelu": set(), "matryoshka_transcoder": {"d_out"},
    }  # fmt: skip
    for name, keys in more.items():
        config, _ = write(random_dictionary(name), tmp_path / name, model_name="m", saescope={"architecture": name})
        assert set(config) == shared | keys
        assert config["metadata"] == {"model_name": "m", "sae_lens_version": "6.0.0", "sae_lens_training_version": None}
        assert format_of(tmp_path / name).name == "saelens"


@pytest.mark.parametrize(("version", "written"), [("5.2.0", "6.0.0"), ("6.54.12", "6.54.12"), (None, "6.0.0")])
def test_the_version_is_one_of_this_layout(tmp_path: Path, version: str | None, written: str) -> None:
    config, _ = write(
        random_dictionary("relu"), tmp_path / "d", sae_lens_version=version, sae_lens_training_version="4.0"
    )
    assert config["metadata"] == {"sae_lens_version": written, "sae_lens_training_version": "4.0"}


@pytest.mark.parametrize(
    ("name", "metadata", "reshape"),
    [
        ("relu", {"hook_name": "blocks.1.attn.hook_z"}, "hook_z"),
        ("relu", {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 3}, "none"),
        ("relu", {"hook_name": "blocks.1.hook_resid_pre"}, "none"),
        ("relu", {}, "none"),
        ("transcoder", {"hook_name": "blocks.1.attn.hook_z"}, "none"),
    ],
)
def test_saelens_lays_heads_side_by_side_itself(
    tmp_path: Path, name: str, metadata: dict[str, Any], reshape: str
) -> None:
    assert write(random_dictionary(name), tmp_path / "d", **metadata)[0]["reshape_activations"] == reshape


def test_the_gate_of_a_gated_transcoder_becomes_a_threshold(tmp_path: Path) -> None:
    dictionary = random_dictionary("gated_transcoder", dtype=torch.float64)
    _, tensors = write(dictionary, tmp_path / "d")
    gate = dictionary.b_mag - dictionary.r_mag.exp() * dictionary.b_gate
    assert (gate < 0).any()  # where the magnitude's own ReLU comes first
    assert (gate > 0).any()
    assert_same(tensors["threshold"], gate.clamp(min=0))


def test_functions_that_saelens_can_not_hold_are_refused(tmp_path: Path) -> None:
    pursuit = random_dictionary("matching_pursuit")
    pursuit.input_normalization = Whitening(torch.zeros(D_IN), torch.eye(D_IN), torch.eye(D_IN))
    skip = random_dictionary("jumprelu_skip_transcoder")
    skip.input_normalization = LayerNorm()
    empty, below = random_dictionary("batch_topk"), random_dictionary("jumprelu")
    empty.threshold.fill_(torch.nan)
    below.threshold[2] = -0.1
    for dictionary, words in (
        (pursuit, "no whitening of the input that stays outside of the weights"),
        (skip, "gives W_skip the activation as it is"),
        (empty, "has no threshold yet"),
        (below, "has a threshold below 0"),
    ):
        with pytest.raises(ValueError, match=words):
            write(dictionary, tmp_path / "d")
        assert not (tmp_path / "d").exists()


def test_a_folded_pursuit_has_its_threshold_in_raw_units(tmp_path: Path) -> None:
    dictionary = random_dictionary("matching_pursuit", dtype=torch.float64)
    dictionary.fold_scale(0.25)
    assert write(dictionary, tmp_path / "d")[0]["residual_threshold"] == pytest.approx(3.2)
