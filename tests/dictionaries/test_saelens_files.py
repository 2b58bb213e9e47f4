"""What SAELens >= 6 sees in our files, and that it computes the same from them.

The readers here follow the field's description of the format, with numpy on the raw tensors and no class of ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saescope.dictionaries import (
    Dictionary,
    JumpReLU,
    TopK,
    architectures,
    load_dictionary,
    read_metadata,
    save_dictionary,
)
from saescope.dictionaries.normalization import LayerNorm

D_IN, D_SAE, D_OUT = 6, 10, 5
STANDARD = {"W_enc": [D_IN, D_SAE], "W_dec": [D_SAE, D_IN], "b_enc": [D_SAE], "b_dec": [D_IN]}
CROSSING = STANDARD | {"W_dec": [D_SAE, D_OUT], "b_dec": [D_OUT]}
THRESHOLD, SKIP = {"threshold": [D_SAE]}, {"W_skip": [D_OUT, D_IN]}
TOPK_KEYS = {"k": 3, "rescale_acts_by_decoder_norm": False}
JUMP_KEYS = {"initial_threshold": 0.01, "bandwidth": 0.05}

# ours -> the name in cfg.json, tensors, further keys of cfg.json
FILES: dict[str, tuple[str, dict[str, list[int]], dict[str, Any]]] = {
    "relu": ("standard", STANDARD, {}),
    "gated": (
        "gated",
        {key: STANDARD[key] for key in ("W_enc", "W_dec", "b_dec")}
        | {key: [D_SAE] for key in ("b_gate", "b_mag", "r_mag")},
        {},
    ),
    "jumprelu": ("jumprelu", STANDARD | THRESHOLD, JUMP_KEYS),
    "topk": ("topk", STANDARD, TOPK_KEYS),
    "abs_topk": ("abstopk", STANDARD, TOPK_KEYS),
    "ordered": ("topk", STANDARD, TOPK_KEYS),
    "batch_topk": ("jumprelu", STANDARD | THRESHOLD, {"k": 3}),
    "matryoshka": ("jumprelu", STANDARD | THRESHOLD, {"k": 3, "widths": [3, 5, 10]}),
    "matching_pursuit": (
        "matching_pursuit",
        {"W_dec": [D_SAE, D_IN], "b_dec": [D_IN]},
        {"max_iterations": 3, "residual_threshold": 0.25, "stop_on_duplicate_support": True},
    ),
    "transcoder": ("transcoder", CROSSING, {"d_out": D_OUT}),
    "skip_transcoder": ("skip_transcoder", CROSSING | SKIP, {"d_out": D_OUT}),
    "jumprelu_transcoder": ("jumprelu_transcoder", CROSSING | THRESHOLD, {"d_out": D_OUT, **JUMP_KEYS}),
    "jumprelu_skip_transcoder": (
        "jumprelu_skip_transcoder", CROSSING | THRESHOLD | SKIP, {"d_out": D_OUT, **JUMP_KEYS},
    ),
}  # fmt: skip


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = json.loads((folder / "cfg.json").read_text())
    return config, {name: tensor.numpy() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}


@pytest.mark.parametrize("name", FILES)
def test_names_tensors_and_keys(make, tmp_path, name):
    dictionary = make(name, dtype=torch.float32)
    save_dictionary(dictionary, tmp_path / "d")
    config, tensors = _read(tmp_path / "d")
    on_disk, shapes, own = FILES[name]
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == shapes
    metadata = config.pop("metadata")
    assert metadata["saescope"] == {"architecture": name}
    assert int(metadata["sae_lens_version"].split(".")[0]) >= 6
    assert config == {
        "architecture": on_disk,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": "transcoder" not in name,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **own,
    }
    if "threshold" in shapes and "jumprelu" not in name:
        assert (tensors["threshold"] == dictionary.threshold.item()).all()


@pytest.mark.parametrize("name", sorted(set(architectures()) - set(FILES)))
def test_what_saelens_does_not_know_has_a_name_that_it_refuses(make, tmp_path, name):
    save_dictionary(make(name), tmp_path / "d")
    assert _read(tmp_path / "d")[0]["architecture"] == f"saescope/{name}"
    _edit(tmp_path / "d", metadata={})
    assert type(load_dictionary(tmp_path / "d")) is architectures()[name]  # the name is enough


def _as_saelens(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and output by the format's description."""
    config, w = _read(folder)
    kind = config["architecture"]
    mean, spread, eps = np.zeros((len(x), 1)), np.ones((len(x), 1)), 0.0
    if config["normalize_activations"] == "layer_norm":
        mean = x.mean(1, keepdims=True)
        spread, eps = x.std(1, keepdims=True, ddof=1), 1e-5  # only the way in has 1e-5: checked against SAELens 6.54.12
    raw, x = x, (x - mean) / (spread + eps)
    centred = x - w["b_dec"] if config["apply_b_dec_to_input"] else x
    if kind == "matching_pursuit":
        f = np.zeros((len(x), D_SAE))
        for b, r in enumerate(centred):
            for _ in range(config["max_iterations"]):
                i = int(np.argmax(w["W_dec"] @ r))
                v = max(w["W_dec"][i] @ r, 0.0)
                known = f[b, i] != 0 or v == 0
                f[b, i] += v
                r = r - v * w["W_dec"][i]
                if np.linalg.norm(r) < config["residual_threshold"] or (known and config["stop_on_duplicate_support"]):
                    break
        out = f @ w["W_dec"] + (w["b_dec"] if config["apply_b_dec_to_input"] else 0)
        return f, out * spread + mean
    h = centred @ w["W_enc"]
    if kind == "gated":
        f = (h + w["b_gate"] > 0) * np.maximum(np.exp(w["r_mag"]) * h + w["b_mag"], 0)
    else:
        h = h + w["b_enc"]
        if kind.startswith("jumprelu"):
            f = np.maximum(h, 0) * (h > w["threshold"])
        elif kind in ("topk", "abstopk"):
            rank = np.abs(h) if kind == "abstopk" else h
            kept = rank >= np.sort(rank, axis=1)[:, [-config["k"]]]
            f = kept * (h if kind == "abstopk" else np.maximum(h, 0))
        else:
            f = np.maximum(h, 0)
    out = f @ w["W_dec"] + w["b_dec"]
    if "W_skip" in w:
        out = out + raw @ w["W_skip"].T
    return f, out if "transcoder" in kind else out * spread + mean


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_the_file_computes_what_the_dictionary_does(make, tokens, tmp_path, name, centred, folded):
    dictionary = make(name, apply_b_dec_to_input=centred and "transcoder" not in name)
    if folded:
        dictionary.fold_scale(0.4, 3.0 if "transcoder" in name else None)
    x = tokens(40)
    save_dictionary(dictionary, tmp_path / "d")
    f, out = _as_saelens(tmp_path / "d", x.numpy())
    torch.testing.assert_close(dictionary.encode(x), torch.tensor(f), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(dictionary(x), torch.tensor(out), rtol=1e-11, atol=1e-11)
    assert (f != 0).any()


@pytest.mark.parametrize("name", [name for name in FILES if "skip" not in name])
def test_layer_norm_is_a_key_of_the_file(make, tokens, tmp_path, name):
    from saescope.dictionaries.normalization import LayerNorm

    dictionary = make(name)
    dictionary.input_normalization = LayerNorm()
    save_dictionary(dictionary, tmp_path / "d")
    config, tensors = _read(tmp_path / "d")
    assert config["normalize_activations"] == "layer_norm"
    assert set(tensors) == set(FILES[name][1])
    x = 3 * tokens(40) + 5
    f, out = _as_saelens(tmp_path / "d", x.numpy())
    torch.testing.assert_close(dictionary.encode(x), torch.tensor(f), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(dictionary(x), torch.tensor(out), rtol=1e-10, atol=1e-10)


def test_a_kept_linear_map_is_nothing_that_saelens_would_open(make, tmp_path):
    from saescope.dictionaries.normalization import Whitening

    dictionary = make("matching_pursuit")
    dictionary.input_normalization = Whitening(torch.zeros(6), torch.eye(6), torch.eye(6)).double()
    save_dictionary(dictionary, tmp_path / "d")
    config, tensors = _read(tmp_path / "d")
    assert config["architecture"] == "saescope/matching_pursuit"
    assert config["normalize_activations"] == "saescope/whitening"
    assert tensors["input_normalization.matrix"].shape == (6, 6)


def _edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_without_our_note_it_is_a_jumprelu_of_the_same_function(make, tokens, tmp_path, name):
    dictionary = make(name)
    save_dictionary(dictionary, tmp_path / "d")
    assert type(load_dictionary(tmp_path / "d")) is type(dictionary)
    _edit(tmp_path / "d", metadata={"model_name": "m"}, k=..., widths=...)
    opened = load_dictionary(tmp_path / "d")
    assert type(opened) is JumpReLU
    assert opened.threshold.shape == (10,)
    x = tokens(40)
    assert opened.encode(x).equal(dictionary.encode(x))
    assert opened(x).equal(dictionary(x))


def test_without_our_note_an_ordered_one_is_a_topk(make, tokens, tmp_path):
    dictionary = make("ordered")
    save_dictionary(dictionary, tmp_path / "d")
    _edit(tmp_path / "d", metadata={})
    opened = load_dictionary(tmp_path / "d")
    assert type(opened) is TopK
    assert opened(tokens()).equal(dictionary(tokens()))


@pytest.mark.parametrize("noted", ["relu", "nobody's", "batch_topk_transcoder", None])
def test_a_note_that_does_not_fit_the_name_is_not_followed(make, tmp_path, noted):
    save_dictionary(make("topk"), tmp_path / "d")
    _edit(tmp_path / "d", metadata={"saescope": {"architecture": noted}})
    assert type(load_dictionary(tmp_path / "d")) is TopK


def test_our_own_summary_may_stand_beside_the_note(make, tmp_path):
    save_dictionary(make("matryoshka"), tmp_path / "d", saescope={"version": "0.1", "training": {"steps": 3}})
    assert read_metadata(tmp_path / "d")["saescope"] == {
        "architecture": "matryoshka", "version": "0.1", "training": {"steps": 3},
    }  # fmt: skip
    assert type(load_dictionary(tmp_path / "d")) is architectures()["matryoshka"]


def _rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_a_batch_topk_with_several_thresholds_is_refused(make, tmp_path, name):
    save_dictionary(make(name), tmp_path / "d")
    _rewrite(tmp_path / "d", threshold=torch.linspace(0.1, 0.2, 10, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"d: a BatchTopK dictionary has one threshold for all features"):
        load_dictionary(tmp_path / "d")
    half_nan = torch.full((10,), 0.5, dtype=torch.float64)
    half_nan[3:] = torch.nan
    _rewrite(tmp_path / "d", threshold=half_nan)
    with pytest.raises(ValueError, match=r"one threshold for all features"):
        load_dictionary(tmp_path / "d")


def test_a_batch_topk_that_was_never_trained_stays_without_a_threshold(make, tokens, tmp_path):
    cls = type(make("batch_topk"))
    save_dictionary(cls(cls.Config(d_in=6, d_sae=10, k=2)), tmp_path / "d")
    with pytest.raises(ValueError, match="no threshold yet"):
        load_dictionary(tmp_path / "d").encode(tokens().float())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("jumprelu", "threshold"), ("gated", "r_mag"), ("skip_transcoder", "W_skip"), ("topk_archetypal", "points"),
     ("batch_topk", "threshold")],
)  # fmt: skip
def test_a_missing_tensor_is_refused(make, tmp_path, name, tensor):
    save_dictionary(make(name), tmp_path / "d")
    _rewrite(tmp_path / "d", **{tensor: None})
    with pytest.raises(ValueError, match=rf"sae_weights\.safetensors should hold .*{tensor}.*but holds"):
        load_dictionary(tmp_path / "d")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("matching_pursuit", {"k": 3}, r"not understood \['k'\]"),
        ("matching_pursuit", {"max_iterations": 0}, "cfg.json can not be used: k must be"),
        ("transcoder", {"d_out": ...}, r"missing \['d_out'\]"),
        ("transcoder", {"apply_b_dec_to_input": True}, "cfg.json can not be used: b_dec of a transcoder"),
        ("batch_topk", {"k": ...}, r"missing \['k'\]"),
        ("batch_topk", {"k": 11}, "cfg.json can not be used: k must be above 0 and at most d_sae = 10, got 11"),
        ("matryoshka", {"widths": [2, 4]}, "cfg.json can not be used: widths must rise"),
        ("matryoshka", {"widths": 4}, "cfg.json can not be used: "),
        ("relu_crosscoder", {"source_widths": [2, 2]}, "cfg.json can not be used: source_widths must"),
        ("topk_archetypal", {"num_points": 3}, "cfg.json can not be used: num_points must be at least d_sae = 10"),
        ("jumprelu", {"bandwidth": -1}, "cfg.json can not be used: .*bandwidth must be positive"),
        ("jumprelu", {"bandwidth": "wide"}, "cfg.json can not be used: "),
        ("topk", {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm"),
        ("gated", {"normalize_activations": "covariance_whitening"}, "can not be opened so far"),
        ("gated", {"normalize_activations": "expected_average_only_in"}, "can not be opened so far"),
    ],
)
def test_what_would_be_another_function_is_refused(make, tmp_path, name, changes, words):
    save_dictionary(make(name), tmp_path / "d")
    _edit(tmp_path / "d", **changes)
    with pytest.raises(ValueError, match=words) as error:
        load_dictionary(tmp_path / "d")
    assert str(tmp_path / "d") in str(error.value)


def test_saelens_own_file_has_no_note_and_no_keys_of_ours(make, tokens, tmp_path):
    """A JumpReLU file as SAELens writes it: no bandwidth, and a matching pursuit without a cap."""
    jumprelu: Dictionary = make("jumprelu")
    save_dictionary(jumprelu, tmp_path / "j")
    _edit(tmp_path / "j", metadata={"sae_lens_version": "6.54.12"}, initial_threshold=..., bandwidth=...)
    assert load_dictionary(tmp_path / "j")(tokens()).equal(jumprelu(tokens()))

    pursuit = make("matching_pursuit", k=6)
    save_dictionary(pursuit, tmp_path / "m")
    _edit(tmp_path / "m", metadata={"sae_lens_version": "6.54.12"}, max_iterations=None)
    opened = load_dictionary(tmp_path / "m")
    assert opened.config.k == 6
    assert opened(tokens()).equal(pursuit(tokens()))


@pytest.mark.parametrize("name", ["skip_transcoder", "jumprelu_skip_transcoder"])
def test_a_skip_connection_of_normalised_inputs_is_no_function_of_saelens(make, tokens, tmp_path, name):
    dictionary = make(name)
    dictionary.input_normalization = LayerNorm()
    save_dictionary(dictionary, tmp_path / "d")
    assert _read(tmp_path / "d")[0]["architecture"] == f"saescope/{name}"
    assert load_dictionary(tmp_path / "d")(tokens()).equal(dictionary(tokens()))
