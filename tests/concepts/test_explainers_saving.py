"""Explainers on disk: codes after loading are those before, here and in a process that knows nothing of this one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from saescope.concepts.explainers import BatchTopKSAE, JumpReLUSAE, MpSAE, SAEExplainer, TopKSAE, VanillaSAE
from saescope.dictionaries import Gated, MatchingPursuit, load_dictionary, save_dictionary
from saescope.dictionaries.normalization import Whitening

ALL = [VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE, MpSAE]
D, C = 8, 20


class Split:
    def __init__(self, widths=None):
        self.widths = widths or {"layer.1": D}
        self.split_points = list(self.widths)

    def get_latent_shape(self, inputs=None):
        return {name: torch.Size([1, 3, d]) for name, d in self.widths.items()}


@pytest.fixture(scope="module")
def x():
    return 5 * torch.randn(200, D, generator=torch.Generator().manual_seed(3))


def fitted(cls, x, **kwargs):
    explainer = cls(Split(), nb_concepts=C, **kwargs)
    explainer.fit(x, nb_epochs=2, batch_size=64, lr=1e-2)
    return explainer


def same(a, b, x):
    assert type(a) is type(b)
    assert torch.equal(a.encode_activations(x), b.encode_activations(x))
    codes = a.encode_activations(x)
    assert torch.equal(a.decode_concepts(codes), b.decode_concepts(codes))
    assert torch.equal(a.get_dictionary(), b.get_dictionary())


MADE = [
    (VanillaSAE, {}),
    (VanillaSAE, {"decoder_bias": True, "encoder_module": "mlp_bn_3"}),
    (VanillaSAE, {"dictionary_params": {"normalization": "max_l1", "use_multiplier": True}}),
    (TopKSAE, {"top_k": 3}),
    (TopKSAE, {"encoder_module": "mlp_ln_1", "dictionary_params": {"normalization": "identity"}}),
    (BatchTopKSAE, {"top_k": 2.5, "threshold_momentum": 0.9}),
    (JumpReLUSAE, {"target_l0": 3}),
    (MpSAE, {"k": 2, "dropout": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "kwargs"), MADE)
def test_round_trip(cls, kwargs, x, tmp_path):
    """Rows 5 and 24."""
    explainer = fitted(cls, x, **kwargs)
    folder = explainer.save(tmp_path / "concepts")
    assert sorted(path.name for path in folder.iterdir()) == ["concepts.json", "concepts.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["concepts"]  # nothing half-written beside it
    loaded = SAEExplainer.load(folder, Split())
    same(explainer, loaded, x)
    assert loaded.concept_model.recipe == explainer.concept_model.recipe
    assert loaded.is_fitted
    assert loaded.split_point == "layer.1"
    assert not any(part.training for part in loaded.concept_model.modules())
    # and it goes on in the same way
    how = {"nb_epochs": 1, "batch_size": 50, "warm_start": True}
    torch.manual_seed(0)
    first = explainer.fit(x, **how)
    assert loaded.fit(x, **how)["step_loss"] == first["step_loss"]
    same(explainer, loaded, x)
    again = explainer.fit(x, nb_epochs=1, overwrite=True)
    assert loaded.fit(x, nb_epochs=1, overwrite=True)["step_loss"] == again["step_loss"]


def test_unfitted_and_in_float64(x, tmp_path):
    explainer = JumpReLUSAE(Split(), nb_concepts=C, initial_threshold=0.5)
    explainer.concept_model.double()
    explainer.save(tmp_path / "new")
    loaded = JumpReLUSAE.load(tmp_path / "new", Split())
    assert not loaded.is_fitted
    assert loaded.concept_model.dtype == torch.float64
    how = {"nb_epochs": 2, "warm_start": True}  # from the first weights, which are in units of normalised activations
    assert loaded.fit(x, **how)["step_loss"] == explainer.fit(x, **how)["step_loss"]
    same(explainer, loaded, x)


def test_modules_and_functions_of_one_s_own_are_given_again(x, tmp_path):
    def module():
        return nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, C))

    def doubled(w):
        return 2 * w / w.norm(dim=-1, keepdim=True)

    params = {"normalization": doubled}
    explainer = fitted(TopKSAE, x, encoder_module=module(), dictionary_params=params)
    explainer.save(tmp_path / "own")
    same(explainer, SAEExplainer.load(tmp_path / "own", Split(), encoder_module=module(), dictionary_params=params), x)
    with pytest.raises(ValueError, match="give encoder_module"):
        SAEExplainer.load(tmp_path / "own", Split(), dictionary_params=params)
    with pytest.raises(ValueError, match="give dictionary_params"):
        SAEExplainer.load(tmp_path / "own", Split(), encoder_module=module())
    with pytest.raises(ValueError, match="should hold"):
        SAEExplainer.load(tmp_path / "own", Split(), encoder_module=nn.Linear(D, C), dictionary_params=params)
    fitted(TopKSAE, x).save(tmp_path / "plain")
    with pytest.raises(ValueError, match="leave out encoder_module"):
        SAEExplainer.load(tmp_path / "plain", Split(), encoder_module=module())


def test_concepts_of_other_dictionaries(x, tmp_path):
    gated = Gated(Gated.Config(d_in=D, d_sae=C), seed=1)
    whitened = MatchingPursuit(MatchingPursuit.Config(d_in=D, d_sae=C, k=3), seed=1)
    whitened.input_normalization = Whitening(torch.ones(D), 2 * torch.eye(D), torch.eye(D) / 2)
    whitened.metadata = {"model_name": "tiny"}
    for name, dictionary in (("gated", gated), ("whitened", whitened)):
        explainer = SAEExplainer.from_dictionary(Split(), dictionary)
        explainer.save(tmp_path / name)
        loaded = SAEExplainer.load(tmp_path / name, Split())
        same(explainer, loaded, x)
        assert loaded.dictionary.metadata == dictionary.metadata


def test_as_a_dictionary_on_disk(x, tmp_path):
    explainer = fitted(BatchTopKSAE, x, top_k=3)
    save_dictionary(explainer.dictionary, tmp_path / "dictionary")
    opened = load_dictionary(tmp_path / "dictionary")
    again = SAEExplainer.from_dictionary(Split(), opened)
    same(explainer, again, x)


_FRESH = """
import sys, torch
from saescope.concepts.explainers import SAEExplainer
class Split:
    split_points = ["layer.1"]
    def get_latent_shape(self, inputs=None):
        return {"layer.1": torch.Size([1, 3, 8])}
x = torch.load(sys.argv[1] + "/x.pt", weights_only=True)
for name, codes in torch.load(sys.argv[1] + "/codes.pt", weights_only=True).items():
    explainer = SAEExplainer.load(sys.argv[1] + "/" + name, Split())
    assert torch.equal(explainer.encode_activations(x), codes), name
    print(name, type(explainer).__name__)
"""


def test_in_a_fresh_process(x, tmp_path):
    """Row 24."""
    codes = {}
    for cls in ALL:
        explainer = fitted(cls, x)
        explainer.save(tmp_path / cls.__name__)
        codes[cls.__name__] = explainer.encode_activations(x).detach()
    torch.save(codes, tmp_path / "codes.pt")
    torch.save(x, tmp_path / "x.pt")
    run = subprocess.run([sys.executable, "-c", _FRESH, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [word for cls in ALL for word in (cls.__name__, cls.__name__)]


def test_nothing_is_written_over(x, tmp_path):
    explainer = fitted(VanillaSAE, x)
    explainer.save(tmp_path / "a")
    with pytest.raises(FileExistsError, match="already exists"):
        explainer.save(tmp_path / "a")
    other = fitted(TopKSAE, x)
    other.save(tmp_path / "a", overwrite=True)
    same(other, SAEExplainer.load(tmp_path / "a", Split()), x)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        explainer.save(tmp_path / "a", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        explainer.save(tmp_path / "file", overwrite=True)


def test_a_write_that_fails_leaves_the_old_one(x, tmp_path, monkeypatch):
    explainer, other = fitted(VanillaSAE, x), fitted(TopKSAE, x)
    explainer.save(tmp_path / "a")

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("saescope.concepts.explainers.saving.write_tensors", full)
    with pytest.raises(OSError, match="no space"):
        other.save(tmp_path / "a", overwrite=True)
    monkeypatch.undo()
    same(explainer, SAEExplainer.load(tmp_path / "a", Split()), x)
    other.save(tmp_path / "a", overwrite=True)
    same(other, SAEExplainer.load(tmp_path / "a", Split()), x)


def test_files_that_do_not_fit(x, tmp_path):
    fitted(TopKSAE, x).save(tmp_path / "a")
    with pytest.raises(ValueError, match="not split at"):
        SAEExplainer.load(tmp_path / "a", Split({"layer.2": D}))
    assert SAEExplainer.load(tmp_path / "a", Split({"layer.2": D}), split_point="layer.2").split_point == "layer.2"
    with pytest.raises(ValueError, match="width 9"):
        SAEExplainer.load(tmp_path / "a", Split({"layer.1": 9}))
    with pytest.raises(ValueError, match="TopKSAEConcepts, not a VanillaSAEConcepts"):
        VanillaSAE.load(tmp_path / "a", Split())
    with pytest.raises(FileNotFoundError, match="no saved explainer"):
        SAEExplainer.load(tmp_path / "nowhere", Split())


def test_damaged_files(x, tmp_path):
    folder = fitted(TopKSAE, x).save(tmp_path / "a")
    config, weights = folder / "concepts.json", folder / "concepts.safetensors"
    text, tensors = config.read_text(), load_file(weights)

    def refused(words):
        with pytest.raises(ValueError, match=words):
            SAEExplainer.load(folder, Split())

    for damaged, words in (
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ("{}", "can not be used"),
        (json.dumps({**json.loads(text), "form": 99}), "form 99"),
        (json.dumps({**json.loads(text), "architecture": "tokp"}), "did you mean"),
        (json.dumps({**json.loads(text), "settings": {"d_in": 8}}), "can not be used"),
        (json.dumps({**json.loads(text), "dtype": "float23"}), "can not be used"),
    ):
        config.write_text(damaged)
        refused(words)
    config.write_text(text)
    save_file({**tensors, "W_dec": tensors["W_dec"][:3].contiguous()}, weights)
    refused("should hold")
    weights.write_bytes(weights.read_bytes()[:100])
    refused("damaged")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        SAEExplainer.load(folder, Split())
