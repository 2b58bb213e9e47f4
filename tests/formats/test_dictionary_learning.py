"""dictionary_learning's files: what is read computes what they say, and what is written is read back as the same."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from saescope.dictionaries import Dictionary, architecture, save_dictionary
from saescope.formats.dictionaries.dictionary_learning import DICTIONARY_LEARNING
from saescope.formats.foreign import Foreign
from saescope.formats.source import LocalSource

D, F, K, TOKENS = 5, 12, 3, 30
GROUPS = [4, 8]
KEPT = Path(__file__).parent / "files" / "dictionary_learning"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

LINEAR = {"encoder.weight": (F, D), "decoder.weight": (D, F)}
SELECTING = {**LINEAR, "encoder.bias": (F,), "b_dec": (D,)}
PARAMETERS = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": {**LINEAR, "encoder.bias": (F,), "bias": (D,)},
    "AutoEncoderNew": {**LINEAR, "encoder.bias": (F,), "decoder.bias": (D,)},
    "GatedAutoEncoder": {**LINEAR, "decoder_bias": (D,), "r_mag": (F,), "gate_bias": (F,), "mag_bias": (F,)},
    "JumpReluAutoEncoder": {**PARAMETERS, "threshold": (F,)},
    "AutoEncoderTopK": SELECTING,
    "BatchTopKSAE": SELECTING,
    "MatryoshkaBatchTopKSAE": PARAMETERS,
}
BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
WITH_K = ("AutoEncoderTopK", *BATCH)


# An independent writer, and the forward passes in a few lines


def state_of(dict_class: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES[dict_class].items()
    }
    if dict_class in WITH_K:
        state["k"], state["threshold"] = torch.tensor(K, dtype=torch.int32), torch.tensor(0.75)
    if dict_class.startswith("Matryoshka"):
        state["group_sizes"] = torch.tensor(GROUPS)
    return state


def config_of(dict_class: str, /, **trainer: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "dict_class": dict_class, "trainer_class": "SomeTrainer", "activation_dim": D, "dict_size": F, "lr": 1e-3,
        "steps": 100, "seed": None, "device": "cuda:0", "layer": 7, "lm_name": "toy/model", "wandb_name": "w",
        "submodule_name": "resid_post_layer_7", "warmup_steps": 10, "decay_start": None,
    }  # fmt: skip
    if dict_class in WITH_K:
        known["k"] = K
    known |= trainer
    return {
        "trainer": {key: value for key, value in known.items() if value is not ...},
        "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128, "n_ctxs": 30000.0},
    }


def write_files(folder: Path, state: Any, config: dict[str, Any] | None, name: str = "ae.pt") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def forward(dict_class: str, state: dict[str, Tensor], x: Tensor, top_k: int | None = None) -> tuple[Tensor, Tensor]:
    """As the class's own code says it."""
    s = {name: tensor.to(x.dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if dict_class == "GatedAutoEncoder":
        u = (x - s["decoder_bias"]) @ s["encoder.weight"].T
        f = (u + s["gate_bias"] > 0) * (s["r_mag"].exp() * u + s["mag_bias"]).relu()
        return f, f @ s["decoder.weight"].T + s["decoder_bias"]
    if dict_class == "JumpReluAutoEncoder":
        pre = x @ s["W_enc"] + s["b_enc"]
        f = (pre * (pre > s["threshold"])).relu()
        return f, f @ s["W_dec"] + s["b_dec"]
    linear = "encoder.weight" in s
    W_enc, b_enc = (s["encoder.weight"].T, s["encoder.bias"]) if linear else (s["W_enc"], s["b_enc"])
    W_dec = s["decoder.weight"].T if linear else s["W_dec"]
    if dict_class == "AutoEncoderNew":
        f = (x @ W_enc + b_enc).relu()
        return f, f @ W_dec + s["decoder.bias"]
    b_dec = s["bias"] if dict_class == "AutoEncoder" else s["b_dec"]
    f = ((x - b_dec) @ W_enc + b_enc).relu()
    if dict_class == "AutoEncoderTopK" or top_k:
        kept = torch.zeros_like(f)
        for row, values in enumerate(f):
            winners = values.argsort(descending=True)[: top_k or int(s["k"])]
            kept[row, winners] = values[winners]
        f = kept
    elif dict_class in BATCH:
        f = f * (f > s["threshold"])
    return f, f @ W_dec + b_dec


def some_input(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64).to(dtype)


def read(place: Path, *, lenient: bool = False, shapes_only: bool = False, **overrides: Any) -> Foreign:
    source = LocalSource.of(place, lenient=lenient, shapes_only=shapes_only, overrides=overrides)
    return DICTIONARY_LEARNING.read(source)


def recognised(place: Path) -> bool:
    return DICTIONARY_LEARNING.recognise(LocalSource.of(place))


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE[found.dtype] * expected.abs().max()


def assert_computes(dictionary: Dictionary, x: Tensor, f: Tensor, x_hat: Tensor) -> None:
    with torch.no_grad():
        codes, rebuilt = dictionary.encode(x), dictionary(x)
    assert ((codes != 0) == (f != 0)).all()
    assert_same(codes, f)
    assert_same(rebuilt, x_hat)


# Reading every class

ARCHITECTURES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dict_class", SHAPES)
def test_what_is_read_computes_what_the_file_says(tmp_path: Path, dict_class: str, dtype: torch.dtype) -> None:
    state = state_of(dict_class, dtype)
    write_files(tmp_path, state, config_of(dict_class))
    assert recognised(tmp_path)
    foreign = read(tmp_path)
    assert foreign.architecture == ARCHITECTURES[dict_class]
    x = some_input(dtype)
    assert_computes(foreign.build(), x, *forward(dict_class, state, x))


@pytest.mark.parametrize("dict_class", ["AutoEncoder", "JumpReluAutoEncoder"])
def test_the_class_decides_the_layout_where_widths_are_equal(tmp_path: Path, dict_class: str) -> None:
    state = {
        name: tensor[tuple(slice(0, D) for _ in tensor.shape)].clone() for name, tensor in state_of(dict_class).items()
    }
    write_files(tmp_path, state, config_of(dict_class, dict_size=D))
    x = some_input()
    assert_computes(read(tmp_path).build(), x, *forward(dict_class, state, x))


def test_the_same_tensors_are_two_functions(tmp_path: Path) -> None:
    state, x = state_of("BatchTopKSAE"), some_input()
    found = {}
    for dict_class in ("AutoEncoderTopK", "BatchTopKSAE"):
        write_files(tmp_path, state, config_of(dict_class))
        found[dict_class] = read(tmp_path).build().encode(x)
        assert_same(found[dict_class], forward(dict_class, state, x)[0])
    assert not torch.equal(*found.values())


def test_thresholds_below_0_let_every_positive_activation_through(tmp_path: Path) -> None:
    state = state_of("JumpReluAutoEncoder")
    assert (state["threshold"] < 0).any()
    state["threshold"][0] = -5.0
    write_files(tmp_path, state, config_of("JumpReluAutoEncoder"))
    x = some_input()
    dictionary = read(tmp_path).build()
    assert_computes(dictionary, x, *forward("JumpReluAutoEncoder", state, x))
    assert (dictionary.encode(x) >= 0).all()


def test_a_jumprelu_that_centres_has_to_be_said(tmp_path: Path) -> None:
    state, x = state_of("JumpReluAutoEncoder"), some_input()
    write_files(tmp_path, state, config_of("JumpReluAutoEncoder"))
    foreign = read(tmp_path, apply_b_dec_to_input=True)
    f, _ = forward("JumpReluAutoEncoder", state, x - state["b_dec"])
    assert_computes(foreign.build(), x, f, f @ state["W_dec"] + state["b_dec"])
    assert any("as was said" in sentence for sentence in foreign.said)
    assert "b_dec is not subtracted from the input" in read(tmp_path).said


# k and the threshold


@pytest.mark.parametrize("dict_class", BATCH)
@pytest.mark.parametrize("threshold", [-1.0, None, float("nan")])
def test_a_threshold_that_was_never_measured_is_refused(
    tmp_path: Path, dict_class: str, threshold: float | None
) -> None:
    state, x = state_of(dict_class), some_input()
    del state["threshold"]
    if threshold is not None:
        state["threshold"] = torch.tensor(threshold)
    write_files(tmp_path, state, config_of(dict_class))
    for shapes_only in (False, True):
        with pytest.raises(ValueError, match=r"never measured.*threshold=.*use_top_k=true"):
            read(tmp_path, shapes_only=shapes_only)

    foreign = read(tmp_path, threshold=0.4)
    assert_computes(foreign.build(), x, *forward(dict_class, state | {"threshold": torch.tensor(0.4)}, x))
    foreign = read(tmp_path, use_top_k=True)
    assert (foreign.architecture, foreign.settings["k"]) == ("topk", K)
    assert_computes(foreign.build(), x, *forward(dict_class, state, x, top_k=K))
    assert any(f"the {K} largest" in s and "was trained to choose k per token over a batch" in s for s in foreign.said)


def test_a_top_k_dictionary_needs_no_threshold(tmp_path: Path) -> None:
    state, x = state_of("AutoEncoderTopK"), some_input()
    write_files(tmp_path, state | {"threshold": torch.tensor(-1.0)}, config_of("AutoEncoderTopK"))
    assert_computes(read(tmp_path).build(), x, *forward("AutoEncoderTopK", state, x))
    with pytest.raises(ValueError, match="the threshold -1: it was never measured"):
        read(tmp_path, use_top_k=False)


@pytest.mark.parametrize("how", [{"use_top_k": False}, {"threshold": 0.75}])
def test_a_top_k_dictionary_can_be_read_by_its_threshold(tmp_path: Path, how: dict[str, Any]) -> None:
    state, x = state_of("AutoEncoderTopK"), some_input()
    write_files(tmp_path, state, config_of("AutoEncoderTopK"))
    foreign = read(tmp_path, **how)
    assert foreign.architecture == "jumprelu"
    assert_computes(foreign.build(), x, *forward("BatchTopKSAE", state, x))


def test_older_files_have_k_in_the_config_alone(tmp_path: Path) -> None:
    state, x = state_of("AutoEncoderTopK"), some_input()
    write_files(tmp_path, {k: v for k, v in state.items() if k not in ("k", "threshold")}, config_of("AutoEncoderTopK"))
    foreign = read(tmp_path)
    assert any("k from config.json" in sentence for sentence in foreign.said)
    assert_computes(foreign.build(), x, *forward("AutoEncoderTopK", state, x))
    write_files(tmp_path, state, config_of("AutoEncoderTopK"))
    assert any("k from ae.pt" in sentence for sentence in read(tmp_path).said)


def test_a_k_that_is_nowhere_or_in_two_values_has_to_be_said(tmp_path: Path) -> None:
    state = state_of("AutoEncoderTopK")
    write_files(tmp_path, state, config_of("AutoEncoderTopK", k=4))
    with pytest.raises(ValueError, match=r"has k = 3 and .* has 4; pass k="):
        read(tmp_path)
    assert read(tmp_path, k=4).settings["k"] == 4
    del state["k"]
    write_files(tmp_path, state, config_of("AutoEncoderTopK", k=...))
    with pytest.raises(ValueError, match=r"neither .* nor .* has k; pass k="):
        read(tmp_path)
    foreign = read(tmp_path, k=5)
    assert foreign.settings["k"] == 5
    assert any("as was said" in sentence for sentence in foreign.said)


# Interrupted runs


def interrupted(state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    optimizer = {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"step": 4, "ae": state, "optimizer": optimizer, "config": {}, "norm_factor": 2.5} | more


@pytest.mark.parametrize("dict_class", SHAPES)
def test_an_interrupted_run_is_read_in_the_units_of_the_model(tmp_path: Path, dict_class: str) -> None:
    state, x = state_of(dict_class, torch.float64), some_input(torch.float64)
    write_files(tmp_path, interrupted(state), config_of(dict_class))
    foreign = read(tmp_path)
    f, x_hat = forward(dict_class, state, x / 2.5)  # every class is positively homogeneous
    assert_computes(foreign.build(), x, 2.5 * f, 2.5 * x_hat)
    assert any("interrupted at step 4" in sentence for sentence in foreign.said)
    assert any("divided activations by 2.5" in sentence for sentence in foreign.said)


def test_the_threshold_of_an_interrupted_run_is_refused_or_said_in_units_of_the_model(tmp_path: Path) -> None:
    state, x = state_of("BatchTopKSAE", torch.float64), some_input(torch.float64)
    state["threshold"] = torch.tensor(-1.0)
    write_files(tmp_path, interrupted(state), config_of("BatchTopKSAE"))
    with pytest.raises(ValueError, match="never measured"):
        read(tmp_path)
    f, x_hat = forward("BatchTopKSAE", state | {"threshold": torch.tensor(1.0 / 2.5, dtype=torch.float64)}, x / 2.5)
    assert_computes(read(tmp_path, threshold=1.0).build(), x, 2.5 * f, 2.5 * x_hat)


def test_an_interrupted_run_without_normalisation_is_taken_as_it_is(tmp_path: Path) -> None:
    state, x = state_of("AutoEncoder"), some_input()
    backup = interrupted(state)
    del backup["norm_factor"]
    write_files(tmp_path, backup, config_of("AutoEncoder"))
    foreign = read(tmp_path)
    assert_computes(foreign.build(), x, *forward("AutoEncoder", state, x))
    assert not any("divided" in sentence for sentence in foreign.said)


def test_the_config_beside_the_tensors_stands_in_for_the_file(tmp_path: Path) -> None:
    state, x = state_of("AutoEncoderTopK"), some_input()
    backup = interrupted(state, config=config_of("AutoEncoderTopK")["trainer"], norm_factor=1.0)
    write_files(tmp_path, backup, None)
    assert recognised(tmp_path)
    assert_computes(read(tmp_path).build(), x, *forward("AutoEncoderTopK", state, x))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"norm_factor": 0.0}, "norm_factor should be a positive number"),
        ({"norm_factor": float("inf")}, "norm_factor should be a positive number"),
        ({"norm_factor": "3"}, "norm_factor should be a positive number"),
        ({"ae": 3}, "no tensors by name under it"),
        ({"scale": 3.0}, "scale, which this format does not have"),
    ],
)
def test_a_strange_interrupted_run_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    write_files(tmp_path, interrupted(state_of("AutoEncoder"), **more), config_of("AutoEncoder"))
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


# Norms of decoder rows


@pytest.mark.parametrize("dict_class", ["AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder", "BatchTopKSAE"])
def test_norms_are_folded_when_asked_for(tmp_path: Path, dict_class: str) -> None:
    state, x = state_of(dict_class, torch.float64), some_input(torch.float64)
    write_files(tmp_path, state, config_of(dict_class))
    f, x_hat = forward(dict_class, state, x)
    dictionary = read(tmp_path, normalise_decoder=True).build()
    norms = (state["decoder.weight"].T if "decoder.weight" in state else state["W_dec"]).norm(dim=1)
    assert_computes(dictionary, x, f * norms, x_hat)
    assert_same(dictionary.decoder_norms.detach(), torch.ones(F, dtype=torch.float64))
    assert not any("normalise_decoder" in s for s in read(tmp_path, normalise_decoder=True).said)


def test_norms_are_not_folded_unasked_and_not_where_features_compete(tmp_path: Path) -> None:
    write_files(tmp_path, state_of("AutoEncoder"), config_of("AutoEncoder"))
    assert any("load_dictionary brings them to norm 1" in sentence for sentence in read(tmp_path).said)
    write_files(tmp_path, state_of("AutoEncoderTopK"), config_of("AutoEncoderTopK"))
    with pytest.raises(ValueError, match="would change which"):
        read(tmp_path, normalise_decoder=True)


# Which files, and which class


def test_a_checkpoint_is_read_when_it_is_named(tmp_path: Path) -> None:
    first, last, x = state_of("AutoEncoder", seed=1), state_of("AutoEncoder", seed=2), some_input()
    write_files(tmp_path, first, None, "checkpoints/ae_100.pt")
    write_files(tmp_path, last, config_of("AutoEncoder"))
    assert_computes(read(tmp_path).build(), x, *forward("AutoEncoder", last, x))
    named = tmp_path / "checkpoints" / "ae_100.pt"
    assert recognised(named)
    foreign = read(named)
    assert_computes(foreign.build(), x, *forward("AutoEncoder", first, x))
    assert foreign.metadata["model_name"] == "toy/model"
    (tmp_path / "ae.pt").unlink()
    with pytest.raises(ValueError, match=r"should hold one ae.pt, but it has checkpoints/ae_100.pt"):
        read(tmp_path)


def test_a_file_that_was_named_is_read_and_no_other(tmp_path: Path) -> None:
    write_files(tmp_path, state_of("AutoEncoder", seed=1), config_of("AutoEncoder"))
    other, x = state_of("AutoEncoder", seed=2), some_input()
    write_files(tmp_path, other, None, "other.pt")
    assert recognised(tmp_path / "other.pt")
    assert_computes(read(tmp_path / "other.pt").build(), x, *forward("AutoEncoder", other, x))
    (tmp_path / "other.safetensors").write_bytes(b"")
    assert not recognised(tmp_path / "other.safetensors")


@pytest.mark.parametrize("dict_class", SHAPES)
def test_without_a_config_the_class_has_to_be_said(tmp_path: Path, dict_class: str) -> None:
    state, x = state_of(dict_class), some_input()
    write_files(tmp_path, state, None)
    assert recognised(tmp_path)
    with pytest.raises(ValueError, match=r"no dict_class.*pass dict_class="):
        read(tmp_path)
    assert_computes(read(tmp_path, dict_class=dict_class).build(), x, *forward(dict_class, state, x))


def test_the_class_that_is_said_wins(tmp_path: Path) -> None:
    write_files(tmp_path, state_of("AutoEncoderTopK"), config_of("BatchTopKSAE"))
    foreign = read(tmp_path, dict_class="AutoEncoderTopK")
    assert foreign.architecture == "topk"
    assert any(
        "AutoEncoderTopK as was said, where config.json has BatchTopKSAE" in sentence for sentence in foreign.said
    )


@pytest.mark.parametrize(
    ("dict_class", "words"),
    [("IdentityDict", "gives back its input"), ("CrossCoder", "'CrossCoder' is not known"), (None, "pass dict_class=")],
)
def test_other_classes_are_refused(tmp_path: Path, dict_class: str | None, words: str) -> None:
    write_files(tmp_path, state_of("AutoEncoder"), config_of("AutoEncoder", dict_class=dict_class))
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_other_formats_are_not_taken_for_it(tmp_path: Path) -> None:
    relu = architecture("relu")
    save_dictionary(relu(relu.Config(d_in=D, d_sae=F)), tmp_path / "saelens")
    assert not recognised(tmp_path / "saelens")
    folder = write_files(tmp_path / "model", {"weight": torch.ones(2)}, {"hidden_size": 3}, "model.pt")
    assert not recognised(folder)
    assert not recognised(folder / "model.pt")
    write_files(folder, {"weight": torch.ones(2)}, None)
    assert not recognised(folder)
    (folder / "ae.pt").write_bytes(b"no tensors")
    (folder / "config.json").write_bytes(b"\xff{")
    assert not recognised(folder)


# Refusing


@pytest.mark.parametrize("dict_class", SHAPES)
def test_missing_left_over_and_misshapen_tensors_are_refused(tmp_path: Path, dict_class: str) -> None:
    state = state_of(dict_class)
    for name in SHAPES[dict_class]:
        write_files(tmp_path, {key: value for key, value in state.items() if key != name}, config_of(dict_class))
        with pytest.raises(ValueError, match=f"no tensor '{name}'"):
            read(tmp_path)
        write_files(tmp_path, state | {name: torch.ones(2, 2, 2)}, config_of(dict_class))
        with pytest.raises(ValueError, match=f"{name} should have shape"):
            read(tmp_path)
    write_files(tmp_path, state | {"scale": torch.ones(F)}, config_of(dict_class))
    with pytest.raises(ValueError, match="scale, which this format does not have"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"dict_size": F + 1}, "does not fit dict_size = 13"),
        ({"activation_dim": F}, "does not fit activation_dim = 12"),
        ({"rotation": "random"}, "rotation, which is not known"),
        ({"dict_class": 3}, "dict_class should be str"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, trainer: dict[str, Any], words: str) -> None:
    write_files(tmp_path, state_of("AutoEncoder"), config_of("AutoEncoder", **trainer))
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_an_unknown_key_is_let_be_when_the_user_says_so(tmp_path: Path) -> None:
    write_files(tmp_path, state_of("AutoEncoder"), config_of("AutoEncoder", rotation="random"))
    assert read(tmp_path, lenient=True).architecture == "relu"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"k": torch.tensor(2.5)}, "k should be a number"),
        ({"k": "three"}, "k should be a number"),
        ({"threshold": "low"}, "threshold should be a number"),
        ({"threshold": torch.ones(F)}, "threshold should be one number"),
        ({"group_sizes": torch.tensor([4, 4])}, "group_sizes are of 8 features"),
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, state: dict[str, Any], words: str) -> None:
    dict_class = "MatryoshkaBatchTopKSAE"
    write_files(tmp_path, state_of(dict_class) | state, config_of(dict_class))
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


@pytest.mark.parametrize(
    ("dict_class", "overrides", "words"),
    [
        ("AutoEncoderTopK", {"k": 0}, "k should be a whole number"),
        ("AutoEncoderTopK", {"k": True}, "k should be a whole number"),
        ("BatchTopKSAE", {"threshold": -0.5}, "threshold should be a number of at least 0"),
        ("BatchTopKSAE", {"threshold": float("nan")}, "threshold should be a number of at least 0"),
        ("BatchTopKSAE", {"use_top_k": 1}, "use_top_k should be true or false"),
        ("BatchTopKSAE", {"use_top_k": True, "threshold": 1.0}, "contradict"),
        ("BatchTopKSAE", {"k": 3}, "k can not be said"),
        ("AutoEncoder", {"threshold": 1.0, "use_top_k": True}, "threshold, use_top_k can not be said"),
        ("GatedAutoEncoder", {"apply_b_dec_to_input": True}, "apply_b_dec_to_input can not be said"),
    ],
)
def test_what_makes_no_sense_to_say_is_refused(
    tmp_path: Path, dict_class: str, overrides: dict[str, Any], words: str
) -> None:
    assert set(overrides) <= set(DICTIONARY_LEARNING.overrides)
    write_files(tmp_path, state_of(dict_class), config_of(dict_class))
    with pytest.raises(ValueError, match=words):
        read(tmp_path, **overrides)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = state_of("AutoEncoder")
    state["bias"][0] = float("inf")
    write_files(tmp_path, state, config_of("AutoEncoder"))
    with pytest.raises(ValueError, match="b_dec holds NaN or infinite"):
        read(tmp_path).build()


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    write_files(tmp_path, state_of("AutoEncoder") | {"more": Payload()}, config_of("AutoEncoder"))
    with pytest.raises(ValueError, match="could run code"):
        read(tmp_path)
    assert pickle.dumps(Payload())  # it is one that would have run
    assert not ran.exists()


# Where it was trained


@pytest.mark.parametrize(
    ("submodule", "io", "expected", "said"),
    [
        ("resid_post_layer_7", "out", {"hook_name": "blocks.7.hook_resid_post"}, ""),
        ("resid_post_layer_7", "in", {"hf_hook_name": "resid_post_layer_7"}, "input of a module"),
        ("blocks.3.hook_mlp_out", "out", {"hook_name": "blocks.3.hook_mlp_out"}, ""),
        ("model.layers.7.mlp", "out", {"hf_hook_name": "model.layers.7.mlp"}, ""),
        ("model.layers.7.mlp", "in_and_out", {"hf_hook_name": "model.layers.7.mlp"}, "output from its input"),
        (None, "out", {}, "trained in layer 7; where in the layer is not in the file"),
    ],
)
def test_the_hook_point_is_as_the_field_knows_it(
    tmp_path: Path, submodule: str | None, io: str, expected: dict[str, str], said: str
) -> None:
    config = config_of("AutoEncoder", submodule_name=submodule)
    config["buffer"]["io"] = io
    write_files(tmp_path, state_of("AutoEncoder"), config)
    foreign = read(tmp_path)
    assert foreign.metadata == {"model_name": "toy/model", "context_size": 128} | expected
    assert any(said in sentence for sentence in foreign.said)


def test_a_hook_point_that_is_in_the_folders_name_alone_is_said_to_be(tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "resid_post_layer_4" / "trainer_11"
    write_files(folder, state_of("AutoEncoder"), config_of("AutoEncoder", submodule_name=...))
    foreign = read(folder)
    assert foreign.metadata["hook_name"] == "blocks.4.hook_resid_post"
    assert "hook point resid_post_layer_4 from the name" in foreign.said
    folder = tmp_path / "no_resid_post_layer_4" / "trainer_11"
    write_files(folder, state_of("AutoEncoder"), config_of("AutoEncoder", submodule_name=...))
    assert "hook_name" not in read(folder).metadata


@pytest.mark.parametrize("backup", [False, True])
@pytest.mark.parametrize("dict_class", SHAPES)
def test_headers_alone_say_the_same(tmp_path: Path, dict_class: str, backup: bool) -> None:
    state = state_of(dict_class)
    if dict_class in WITH_K:
        del state["k"]
    write_files(tmp_path, interrupted(state) if backup else state, config_of(dict_class))
    for more in ({}, {"normalise_decoder": True}) if ARCHITECTURES[dict_class] != "topk" else ({},):
        whole, headers = read(tmp_path, **more), read(tmp_path, shapes_only=True, **more)
        assert headers.architecture == whole.architecture
        assert (headers.settings, headers.said, headers.metadata) == (whole.settings, whole.said, whole.metadata)
        shapes = [{key: tensor.shape for key, tensor in each.tensors.items()} for each in (whole, headers)]
        assert shapes[0] == shapes[1]
        assert headers.tensors["W_enc"].is_meta


def test_headers_are_read_without_torchs_compiler() -> None:
    """Arithmetic on tensors without values loads it, which takes seconds."""
    program = f"""
import sys
from pathlib import Path
from saescope.formats.dictionaries.dictionary_learning import DICTIONARY_LEARNING
from saescope.formats.dictionaries.sparsify import SPARSIFY
from saescope.formats.source import LocalSource
for format in (DICTIONARY_LEARNING, SPARSIFY):
    for config in Path({str(KEPT.parent)!r}, format.name).rglob("c*f*g.json"):
        print(format.read(LocalSource.of(config.parent, shapes_only=True)).architecture)
assert "torch._dynamo" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) == 9


# Writing


def made(name: str, *, seed: int = 0, unit: bool = False, **settings: Any) -> Dictionary:
    cls = architecture(name)
    if name in ("topk", "batch_topk", "matryoshka"):
        settings["k"] = K
    if name == "matryoshka":
        settings["widths"] = (4, 12)
    dictionary = cls(cls.Config(d_in=D, d_sae=F, **settings))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in [*dictionary.named_parameters(), *dictionary.named_buffers()]:
            if key == "threshold":
                tensor.copy_(torch.rand(tensor.shape, generator=rng))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=rng))
    if unit:
        dictionary.normalise_decoder()
    return dictionary.eval()


def write(dictionary: Dictionary, folder: Path, **metadata: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder.mkdir(exist_ok=True)
    DICTIONARY_LEARNING.write(dictionary, folder, metadata)  # type: ignore[misc]
    assert sorted(path.name for path in folder.iterdir()) == ["ae.pt", "config.json"]
    return json.loads((folder / "config.json").read_text()), torch.load(folder / "ae.pt", weights_only=True)


WRITTEN = {
    "relu": "AutoEncoderNew",
    "gated": "GatedAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "topk": "AutoEncoderTopK",
    "batch_topk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_computes_the_same_there_and_here(
    tmp_path: Path, name: str, centred: bool, dtype: torch.dtype
) -> None:
    dictionary, x = made(name, apply_b_dec_to_input=centred).to(dtype), some_input(dtype)
    config, state = write(dictionary, tmp_path)
    dict_class = config["trainer"]["dict_class"]
    assert dict_class == WRITTEN[name]
    wanted = SHAPES[dict_class] | ({"k": (), "threshold": ()} if dict_class in WITH_K else {})
    wanted |= {"group_sizes": (2,)} if name == "matryoshka" else {}
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == wanted
    with torch.no_grad():
        f, x_hat = dictionary.encode(x), dictionary(x)
    for found, expected in zip(forward(dict_class, state, x), (f, x_hat), strict=True):
        assert_same(found, expected)
    assert_computes(read(tmp_path).build(), x, f, x_hat)


def test_rows_of_norm_1_are_an_auto_encoder(tmp_path: Path) -> None:
    dictionary, x = made("relu", unit=True), some_input()
    config, state = write(dictionary, tmp_path / "unit")
    assert config["trainer"]["dict_class"] == "AutoEncoder"
    with torch.no_grad():
        assert_computes(read(tmp_path / "unit").build(), x, dictionary.encode(x), dictionary(x))
    for other in (made("relu", unit=True, apply_b_dec_to_input=False), made("relu")):
        config, state = write(other, tmp_path / "other")
        assert config["trainer"]["dict_class"] == "AutoEncoderNew"
        assert "decoder.bias" in state


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("name", WRITTEN)
def test_writing_what_was_read_gives_the_same_bytes(tmp_path: Path, name: str, unit: bool) -> None:
    dictionary = made(name, unit=unit)
    if name in ("batch_topk", "matryoshka"):  # read as JumpReLU: the same function under another name
        write(dictionary, tmp_path / "before")
        dictionary = read(tmp_path / "before").build()
    metadata = {"model_name": "toy/model", "hook_name": "blocks.3.hook_resid_post", "context_size": 64}
    write(dictionary, tmp_path / "first", **metadata)
    foreign = read(tmp_path / "first")
    assert foreign.metadata == metadata
    write(foreign.build(), tmp_path / "second", **foreign.metadata)
    for file in ("config.json", "ae.pt"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize(
    ("metadata", "submodule", "layer"),
    [
        ({"hook_name": "blocks.3.hook_resid_post", "hf_hook_name": "model.layers.3"}, "resid_post_layer_3", 3),
        ({"hook_name": "blocks.3.hook_mlp_out"}, "blocks.3.hook_mlp_out", 3),
        ({"hf_hook_name": "model.layers.3.mlp"}, "model.layers.3.mlp", None),
        ({}, None, None),
    ],
)
def test_the_config_says_where_it_was_trained(
    tmp_path: Path, metadata: dict[str, str], submodule: str | None, layer: int | None
) -> None:
    config, _ = write(made("topk"), tmp_path, model_name="toy/model", context_size=64, **metadata)
    trainer = config["trainer"]
    assert (trainer["submodule_name"], trainer["layer"], trainer["lm_name"]) == (submodule, layer, "toy/model")
    assert (trainer["activation_dim"], trainer["dict_size"], trainer["k"]) == (D, F, K)
    assert (config["buffer"]["ctx_len"], config["buffer"]["d_submodule"]) == (64, D)
    kept = {key: value for key, value in read(tmp_path).metadata.items() if "hook" in key}
    assert kept == dict(list(metadata.items())[:1])


def test_a_fraction_of_k_is_rounded_where_the_threshold_decides(tmp_path: Path) -> None:
    dictionary = made("batch_topk")
    object.__setattr__(dictionary.config, "k", 0.25)
    config, state = write(dictionary, tmp_path)
    assert (config["trainer"]["k"], int(state["k"])) == (1, 1)
    assert state["k"].dtype == torch.int32


def test_only_the_tensors_themselves_are_written(tmp_path: Path) -> None:
    dictionary = made("topk")
    large = torch.zeros(5000, D)
    large[:F] = dictionary.W_dec.detach()
    dictionary.W_dec.data, dictionary.b_dec.data = large[:F], large[F]
    write(dictionary, tmp_path)
    assert (tmp_path / "ae.pt").stat().st_size < 10_000


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_a_dictionary_without_a_threshold_is_not_written(tmp_path: Path, name: str) -> None:
    dictionary = made(name)
    for value in (float("nan"), -1.0):
        dictionary.threshold.fill_(value)  # type: ignore[operator]
        with pytest.raises(ValueError, match="fit_threshold"):
            DICTIONARY_LEARNING.write(dictionary, tmp_path, {})  # type: ignore[misc]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["abs_topk", "group_max", "matching_pursuit", "transcoder", "jumprelu_skip_transcoder"]
)
def test_other_architectures_are_not_written(tmp_path: Path, name: str) -> None:
    from saescope.dictionaries.normalization import input_normalization

    cls = architecture(name)
    settings = {"d_out": D} if "transcoder" in name else {"k": K}
    with pytest.raises(ValueError, match=f"no {name} dictionaries"):
        DICTIONARY_LEARNING.write(cls(cls.Config(d_in=D, d_sae=F, **settings)), tmp_path, {})  # type: ignore[misc]
    normalised = made("topk")
    normalised.input_normalization = input_normalization("layer_norm", D)
    with pytest.raises(ValueError, match="layer_norm"):
        DICTIONARY_LEARNING.write(normalised, tmp_path, {})  # type: ignore[misc]
    assert not list(tmp_path.iterdir())


# Files that dictionary_learning itself made


@pytest.mark.parametrize("case", sorted(path.name for path in KEPT.iterdir()))
def test_files_of_dictionary_learning_compute_what_it_computed(case: str) -> None:
    expected = load_file(KEPT / case / "expected.safetensors")
    assert recognised(KEPT / case / "files")
    foreign = read(KEPT / case / "files")
    assert_computes(foreign.build(), expected["x"], expected["f"], expected["x_hat"])
    double = foreign.build(dtype=torch.float64)
    assert_computes(double, expected["x"].double(), expected["f64"], expected["x_hat64"])
    assert foreign.metadata["hook_name"] == "blocks.3.hook_resid_post"
    checkpoint = KEPT / case / "files" / "checkpoints" / "ae_6.pt"
    if checkpoint.exists():
        then = load_file(KEPT / case / "expected-checkpoint.safetensors")
        assert_computes(read(checkpoint).build(), then["x"], then["f"], then["x_hat"])
