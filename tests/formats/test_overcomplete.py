"""overcomplete's state dicts: written by hand from the formulas, and their forward passes written out again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.formats.dictionaries.overcomplete import OVERCOMPLETE
from saescope.formats.source import LocalSource

C, D, P, K = 13, 5, 17, 3


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def a_state(
    *, multiplier: float = 0.4, encoder: str = "linear", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A state dict with rows that are far from norm 1, and one of the library's linear encoders."""
    state = {"dictionary._weights": 3 * random(C, D, seed=1, dtype=dtype)}
    state["dictionary.multiplier"] = torch.tensor(multiplier, dtype=dtype)
    return state | an_encoder(encoder, state, dtype)


def an_archetypal_state(*, encoder: str = "linear", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    state = {
        "dictionary.C": random(P, D, seed=4, dtype=dtype),
        "dictionary.W": random(C, P, seed=5, dtype=dtype),  # some negative: the ReLU matters
        "dictionary.Relax": random(C, D, seed=6, dtype=dtype) * torch.linspace(0, 2, C, dtype=dtype)[:, None],
        "dictionary.multiplier": torch.tensor(0.3, dtype=dtype),
    }
    return state | an_encoder(encoder, state, dtype)


def an_encoder(kind: str, dictionary: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    weight, bias = random(C, D, seed=2, dtype=dtype), random(C, seed=3, dtype=dtype)
    if kind == "linear":
        return {"encoder.final_block.0.weight": weight, "encoder.final_block.0.bias": bias}
    made = {"encoder.bias": bias} if kind.endswith("biased") else {}
    if kind.startswith("untied"):
        return made | {"encoder.weight": weight}
    return made | {name.replace("dictionary", "encoder.tied_to"): value for name, value in dictionary.items()}


def atoms(state: dict[str, Tensor], normalization: str = "l2", delta: float = 1.0) -> Tensor:
    """The dictionary that the library would use."""
    scale = state["dictionary.multiplier"].exp()
    if "dictionary.C" in state:
        mixture = state["dictionary.W"].relu()
        mixture = mixture / (mixture.sum(-1, keepdim=True) + 1e-8)
        relaxation = state["dictionary.Relax"]
        relaxation = relaxation * (delta / relaxation.norm(dim=-1, keepdim=True)).clamp(max=1)
        return (mixture @ state["dictionary.C"] + relaxation) * scale
    rows = state["dictionary._weights"]
    if normalization == "identity":
        return rows * scale
    norms = rows.norm(p=2 if normalization.endswith("l2") else 1, dim=-1, keepdim=True)
    return rows / (norms.amax() if normalization.startswith("max") else norms + 1e-8) * scale


def codes_before(state: dict[str, Tensor], D_eff: Tensor, x: Tensor) -> Tensor:
    """ReLU of the linear encoder's values."""
    weight = state.get("encoder.final_block.0.weight", state.get("encoder.weight", D_eff))
    bias = state.get("encoder.final_block.0.bias", state.get("encoder.bias", torch.zeros(C, dtype=x.dtype)))
    return (x @ weight.T + bias).relu()


def some_x(dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * random(50, D, seed=9, dtype=dtype)


def close(found: Tensor, expected: Tensor) -> None:
    bound = 1e-10 if expected.dtype == torch.float64 else 1e-5
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= bound * expected.abs().max()


def require_same(dictionary: Dictionary, f: Tensor, D_eff: Tensor, x: Tensor) -> None:
    found = dictionary.encode(x)
    assert (f != 0).any()
    assert torch.equal(found != 0, f != 0)
    close(found, f)
    close(dictionary(x), f @ D_eff)


def put(folder: Path, state: Any, name: str = "sae.pt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    return folder


def read(folder: Path, *, shapes_only: bool = False, **overrides: Any) -> Any:
    return OVERCOMPLETE.read(LocalSource.of(folder, overrides=overrides, shapes_only=shapes_only))


def topk(before: Tensor, k: int = K) -> Tensor:
    values, indices = before.topk(k, dim=-1)
    return torch.zeros_like(before).scatter(-1, indices, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("encoder", ["linear", "untied", "untied biased", "tied", "tied biased"])
@pytest.mark.parametrize("archetypal", [False, True])
def test_every_linear_encoder_with_every_dictionary(
    tmp_path: Path, archetypal: bool, encoder: str, dtype: torch.dtype
) -> None:
    state, x = (an_archetypal_state if archetypal else a_state)(encoder=encoder, dtype=dtype), some_x(dtype)
    assert OVERCOMPLETE.recognise(LocalSource.of(put(tmp_path, state)))
    D_eff = atoms(state)
    require_same(read(tmp_path, sae_class="SAE").build(), codes_before(state, D_eff, x), D_eff, x)
    require_same(read(tmp_path, k=K).build(), topk(codes_before(state, D_eff, x)), D_eff, x)


@pytest.mark.parametrize("normalization", ["l2", "l1", "max_l2", "max_l1", "identity"])
def test_every_normalisation_can_be_said(tmp_path: Path, normalization: str) -> None:
    state, x = a_state(encoder="tied"), some_x()
    D_eff = atoms(state, normalization)
    found = read(put(tmp_path, state), sae_class="SAE", normalization=normalization)
    assert f"rows are normalised by '{normalization}', as was said" in found.said
    require_same(found.build(), codes_before(state, D_eff, x), D_eff, x)


def test_a_default_that_the_file_does_not_hold_is_said(tmp_path: Path) -> None:
    assert any("'l2', the default there" in each for each in read(put(tmp_path, a_state()), sae_class="SAE").said)
    archetypal = read(put(tmp_path, an_archetypal_state()), sae_class="SAE")
    assert any("delta = 1, the default there" in each for each in archetypal.said)


def test_delta_can_be_said(tmp_path: Path) -> None:
    state, x = an_archetypal_state(), some_x()
    assert not torch.allclose(atoms(state), atoms(state, delta=0.25))
    D_eff = atoms(state, delta=0.25)
    found = read(put(tmp_path, state), sae_class="SAE", delta=0.25).build()
    require_same(found, codes_before(state, D_eff, x), D_eff, x)


def test_topk_takes_k_features_after_the_relu(tmp_path: Path) -> None:
    state, x = a_state(), some_x()
    f = topk(codes_before(state, atoms(state), x), 9)
    assert ((f != 0).sum(-1) < 9).any()  # fewer positive ones than k
    found = read(put(tmp_path, state), sae_class="TopKSAE", k="9")
    assert "k = 9 from what was said" in found.said
    require_same(found.build(), f, atoms(state), x)


@pytest.mark.parametrize("archetypal", [False, True])
def test_jumprelu_thresholds_are_logarithms(tmp_path: Path, archetypal: bool) -> None:
    state, x = (an_archetypal_state if archetypal else a_state)(), some_x()
    state["thresholds"] = random(C, seed=12)
    before = codes_before(state, atoms(state), x)
    f = before * (before >= state["thresholds"].exp())
    assert 0 < (f != 0).sum() < (before != 0).sum()
    require_same(read(put(tmp_path, state)).build(), f, atoms(state), x)
    named = read(tmp_path, sae_class="RAJumpSAE" if archetypal else "JumpReLUSAEConcepts")
    require_same(named.build(), f, atoms(state), x)


def exact_state(values: list[float]) -> dict[str, Tensor]:
    """One input of 1 gives exactly these values before the activation."""
    state = a_state(multiplier=0.0)
    state["encoder.final_block.0.weight"] = torch.zeros(C, D)
    state["encoder.final_block.0.bias"] = torch.tensor(values + [-1.0] * (C - len(values)))
    return state


def test_a_feature_fires_at_its_threshold_itself(tmp_path: Path) -> None:
    theta = torch.tensor(math.log(0.7)).exp()
    above, below = torch.nextafter(theta, theta + 1), torch.nextafter(theta, theta - 1)
    state = exact_state([float(theta), float(above), float(below), 0.5, -3.0])
    x = torch.ones(1, D)
    expected = [True, True, False, False, False] + [False] * (C - 5)
    found = read(put(tmp_path / "batch", state), threshold=float(theta)).build()
    assert (found.encode(x)[0] != 0).tolist() == expected
    state["thresholds"] = torch.full((C,), math.log(0.7))
    found = read(put(tmp_path / "jump", state)).build()
    assert (found.encode(x)[0] != 0).tolist() == expected


def test_a_threshold_of_zero_is_a_relu(tmp_path: Path) -> None:
    state, x = a_state(), some_x()
    f = codes_before(state, atoms(state), x)
    found = read(put(tmp_path / "batch", state), threshold=0).build()
    assert found.threshold.tolist() == [0.0] * C  # not the number below: thresholds are never negative here
    require_same(found, f, atoms(state), x)
    state["thresholds"] = torch.full((C,), -200.0)  # its exponential is 0 in float32
    require_same(read(put(tmp_path / "jump", state)).build(), f, atoms(state), x)


def test_batchtopk_takes_the_threshold_that_is_said(tmp_path: Path) -> None:
    state, x = a_state(), some_x()
    before = codes_before(state, atoms(state), x)
    found = read(put(tmp_path, state), sae_class="BatchTopKSAE", threshold=1.25)
    assert found.architecture == "jumprelu"
    require_same(found.build(), before * (before >= 1.25), atoms(state), x)
    with pytest.raises(ValueError, match=r"does not hold its threshold; say it: threshold=.*can not stand in"):
        read(tmp_path, sae_class="BatchTopKSAE")
    with pytest.raises(ValueError, match="BatchTopKSAE of overcomplete has no k of its own"):
        read(tmp_path, sae_class="BatchTopKSAE", threshold=1.25, k=40)
    for wrong in (-1, "high", math.nan, math.inf, True):
        with pytest.raises(ValueError, match="threshold should be a number of at least 0"):
            read(tmp_path, threshold=wrong)


def pursued(rows: Tensor, x: Tensor, k: int) -> Tensor:
    residual, codes = x, torch.zeros(len(x), len(rows), dtype=x.dtype)
    for _ in range(k):
        value, index = (residual @ rows.T).max(dim=1)
        codes = codes.scatter_add(1, index[:, None], value[:, None])
        residual = residual - value[:, None] * rows[index]
    return codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("encoder", ["", "linear"])  # interpreto leaves one in the file that is not used
@pytest.mark.parametrize("normalization", ["l2", "max_l2"])
def test_matching_pursuit_takes_the_same_steps(
    tmp_path: Path, normalization: str, encoder: str, dtype: torch.dtype
) -> None:
    state, x = a_state(multiplier=0.0, dtype=dtype), some_x(dtype)
    if not encoder:
        state = {name: value for name, value in state.items() if name.startswith("dictionary.")}
    rows = atoms(state, normalization)
    f = pursued(rows, x, 6)
    assert (f >= 0).all()
    found = read(put(tmp_path, state), sae_class="MpSAE", k=6, normalization=normalization)
    require_same(found.build(), f, rows, x)


def test_matching_pursuit_differs_where_it_says_so(tmp_path: Path) -> None:
    state = {"dictionary._weights": torch.eye(2), "dictionary.multiplier": torch.tensor(0.0)}
    found = read(put(tmp_path, state), sae_class="MpSAE", k=1)
    x = torch.tensor([[-1.0, -2.0], [-1.0, 2.0]])
    assert pursued(torch.eye(2), x, 1).tolist() == [[-1, 0], [0, 2]]
    assert found.build().encode(x).tolist() == [[0, 0], [0, 2]]
    assert any("a token without a positive product" in each for each in found.said)


def test_matching_pursuit_with_longer_rows_is_refused(tmp_path: Path) -> None:
    put(tmp_path, a_state(multiplier=0.01))
    with pytest.raises(ValueError, match="rows longer than 1"):
        read(tmp_path, sae_class="MpSAE", k=2)
    assert read(put(tmp_path, a_state(multiplier=-0.01)), sae_class="MpSAE", k=2).settings["k"] == 2


@pytest.mark.parametrize("how", [{"sae_class": "SAE"}, {"k": K}, {"threshold": 0.5}, {"sae_class": "MpSAE", "k": 2}])
@pytest.mark.parametrize("state", [a_state(multiplier=0.0), an_archetypal_state(encoder="tied biased")])
def test_headers_alone_say_the_same(tmp_path: Path, state: dict[str, Tensor], how: dict[str, Any]) -> None:
    if how.get("sae_class") == "MpSAE" and "dictionary.C" in state:
        how = {"sae_class": "TopKSAE", "k": 2}
    put(tmp_path, state)
    whole, header = read(tmp_path, **how), read(tmp_path, shapes_only=True, **how)
    assert (header.architecture, header.settings, header.said) == (whole.architecture, whole.settings, whole.said)
    assert all(tensor.is_meta for tensor in header.tensors.values())
    for each in whole.tensors:
        assert (header.tensors[each].shape, header.tensors[each].dtype) == (
            whole.tensors[each].shape,
            whole.tensors[each].dtype,
        )


def test_a_safetensors_file_holds_the_same(tmp_path: Path) -> None:
    state, x = a_state(), some_x()
    save_file(state, tmp_path / "model.safetensors")
    assert OVERCOMPLETE.recognise(LocalSource.of(tmp_path))
    D_eff = atoms(state)
    require_same(read(tmp_path, sae_class="SAE").build(), codes_before(state, D_eff, x), D_eff, x)


def with_(state: dict[str, Tensor], **more: Any) -> dict[str, Tensor]:
    changed = {**state, **{name.replace("__", "."): value for name, value in more.items()}}
    return {name: value for name, value in changed.items() if value is not None}


BARE = {"dictionary._weights": torch.ones(C, D), "dictionary.multiplier": torch.tensor(0.0)}


@pytest.mark.parametrize(
    ("state", "how", "words"),
    [
        (a_state(), {}, r"could be an SAE, a TopKSAE or a BatchTopKSAE .* say which"),
        (a_state(), {"k": 3, "threshold": 0.5}, r"could be an SAE, a TopKSAE or a BatchTopKSAE"),
        (a_state(), {"sae_class": "TopKSAE"}, r"does not hold its k; say it: k="),
        (a_state(), {"sae_class": "TopKSAE", "threshold": 0.5, "k": 3}, "TopKSAE of overcomplete has no threshold"),
        (a_state(), {"sae_class": "SAE", "k": 3}, "a SAE of overcomplete has no k"),
        (a_state(), {"sae_class": "MpSAE"}, "say how many steps"),
        (a_state(), {"sae_class": "JumpSAE"}, "is no JumpSAE: it holds neither thresholds"),
        (a_state(), {"sae_class": "OMPSAE"}, "OMPSAE of overcomplete, which is not opened"),
        (a_state(), {"sae_class": "RATopKSAE", "k": 3}, "its dictionary is not archetypal"),
        (a_state(), {"sae_class": "TopK"}, "sae_class should be one of SAE, TopKSAE"),
        (a_state(), {"sae_class": 3}, "sae_class should be one of SAE, TopKSAE"),
        (a_state(), {"k": 0}, "k should be a whole number of at least 1"),
        (a_state(), {"k": 2.5}, "k should be a whole number of at least 1"),
        (a_state(), {"k": 3, "normalization": "max"}, "normalization should be one of l2, l1"),
        (a_state(), {"k": 3, "delta": 2}, "not archetypal and has no delta"),
        (an_archetypal_state(), {"k": 3, "normalization": "l2"}, "archetypal dictionary are not normalised"),
        (an_archetypal_state(), {"k": 3, "delta": -1}, "delta should be a number of at least 0"),
        (with_(a_state(), Q=torch.ones(4)), {}, "QSAE of overcomplete, which is not opened"),
        (
            with_(a_state(), thresholds=torch.ones(C)),
            {"sae_class": "TopKSAE", "k": 3},
            "is no TopKSAE: it holds the thresholds",
        ),
        (with_(a_state(), thresholds=torch.ones(D)), {}, r"thresholds should have shape \[13\]"),
        (BARE, {}, "a dictionary and no encoder, as an MpSAE or an OMPSAE"),
        (BARE, {"sae_class": "SAE"}, "holds no encoder, so it is no SAE"),
        (
            with_(a_state(), encoder__final_block__1__weight=torch.ones(C)),
            {"k": 3},
            r"more than one linear layer \(encoder.final_block.1.weight\)",
        ),
        (with_(a_state(), encoder__mlp_blocks__0__0__weight=torch.ones(D, D)), {"k": 3}, "more than one linear layer"),
        (with_(a_state(encoder="tied"), encoder__tied_to___weights=torch.ones(C, D)), {"k": 3}, "tied to another"),
        (with_(a_state(), gain=torch.ones(C)), {"k": 3}, "gain, which this format does not have"),
        (with_(a_state(), dictionary__Relax=torch.ones(C, D)), {"k": 3}, "Relax, which this format does not have"),
        (with_(a_state(), dictionary__multiplier=None), {"k": 3}, "no tensor 'dictionary.multiplier'"),
        (with_(a_state(), dictionary__multiplier=torch.ones(2)), {"k": 3}, r"multiplier should have shape \[\]"),
        (
            with_(a_state(), encoder__final_block__0__weight=torch.ones(D, C)),
            {"k": 3},
            r"weight should have shape \[13, 5\]",
        ),
        (
            with_(an_archetypal_state(), dictionary__Relax=torch.ones(D, C)),
            {"k": 3},
            r"Relax should have shape \[13, 5\]",
        ),
    ],
)
def test_what_can_not_be_known_or_computed_is_refused(
    tmp_path: Path, state: dict[str, Tensor], how: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read(put(tmp_path, state), **how)


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "sae.pt")
    assert not OVERCOMPLETE.recognise(LocalSource.of(tmp_path))
    with pytest.raises(ValueError, match="save its state_dict"):
        read(tmp_path, k=3)


def test_a_damaged_dictionary_is_refused(tmp_path: Path) -> None:
    state = a_state()
    state["dictionary._weights"][2, 1] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinite"):
        read(put(tmp_path, state), k=3).build()


def test_several_files_are_not_opened_one_by_one(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        put(tmp_path, a_state(), name)
    assert not OVERCOMPLETE.recognise(LocalSource.of(tmp_path))
    assert OVERCOMPLETE.recognise(LocalSource.of(tmp_path / "b.pt"))
    with pytest.raises(ValueError, match="name one of them"):
        read(tmp_path, k=3)
    assert read(tmp_path / "b.pt", k=3).settings["k"] == 3


def test_other_files_are_left_to_others(tmp_path: Path) -> None:
    put(tmp_path / "openai", {"pre_bias": torch.ones(2), "encoder.weight": torch.ones(3, 2)})
    (tmp_path / "saelens").mkdir()
    save_file({"W_enc": torch.ones(2, 3), "W_dec": torch.ones(3, 2)}, tmp_path / "saelens" / "sae_weights.safetensors")
    (tmp_path / "saelens" / "cfg.json").write_text('{"architecture": "standard"}')
    (tmp_path / "empty").mkdir()
    for name in ("openai", "saelens", "empty"):
        assert not OVERCOMPLETE.recognise(LocalSource.of(tmp_path / name))
