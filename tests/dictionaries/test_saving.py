"""A dictionary on disk: the layout, the round trip, and everything that is refused."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import saescope.dictionaries.saving as saving
from saescope.dictionaries import (
    Dictionary,
    DictionaryConfig,
    ReLU,
    TopK,
    TopKConfig,
    load_dictionary,
    read_metadata,
    save_dictionary,
)

D_IN, D_SAE = 3, 5
PARAMETERS = ("encoder_rows", "W_dec", "b_enc", "b_dec")


def _dictionary(architecture: str = "topk", seed: int = 0, dtype: torch.dtype = torch.float32) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    dictionary: Dictionary
    if architecture == "topk":
        dictionary = TopK(TopKConfig(d_in=D_IN, d_sae=D_SAE, k=2))
    else:
        dictionary = ReLU(DictionaryConfig(d_in=D_IN, d_sae=D_SAE))
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return dictionary.to(dtype)


def _same(a: Dictionary, b: Dictionary) -> bool:
    return type(a) is type(b) and all(a.get_parameter(name).equal(b.get_parameter(name)) for name in PARAMETERS)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("architecture", ["relu", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_round_trip_keeps_every_bit(tmp_path, architecture, dtype):
    dictionary = _dictionary(architecture, dtype=dtype)
    assert save_dictionary(dictionary, tmp_path / "d") == tmp_path / "d"
    opened = load_dictionary(tmp_path / "d")
    assert _same(opened, dictionary)
    assert opened.config == dictionary.config
    assert opened.W_dec.dtype == dtype
    assert not opened.training
    assert opened.encoder_rows.is_contiguous()
    assert all(parameter.requires_grad for parameter in opened.parameters())
    x = torch.randn(6, D_IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert opened(x).equal(dictionary(x))


@pytest.mark.parametrize(
    ("architecture", "own"),
    [
        ("relu", {"architecture": "standard"}),
        ("topk", {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": False}),
    ],
)
def test_cfg_json_has_the_keys_of_saelens_6(tmp_path, architecture, own):
    save_dictionary(
        _dictionary(architecture),
        tmp_path / "d",
        metadata={"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "context_size": 128},
        saescope={"version": "0.1"},
    )
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **own,
    }
    assert int(metadata.pop("sae_lens_version").split(".")[0]) >= 6
    assert metadata == {
        "model_name": "gpt2",
        "hook_name": "blocks.8.hook_resid_pre",
        "context_size": 128,
        "saescope": {"architecture": architecture, "version": "0.1"},
    }


def test_the_weights_are_the_four_tensors_of_the_papers(tmp_path):
    """The file is taken apart by hand: an 8-byte length, a JSON header, and numbers, with no room for anything else."""
    dictionary = _dictionary()
    save_dictionary(dictionary, tmp_path / "d")
    data = (tmp_path / "d" / "sae_weights.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    assert "__metadata__" not in header
    assert {name: entry["shape"] for name, entry in header.items()} == {
        "W_enc": [D_IN, D_SAE],
        "W_dec": [D_SAE, D_IN],
        "b_enc": [D_SAE],
        "b_dec": [D_IN],
    }
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert len(body) == 4 * (2 * D_IN * D_SAE + D_IN + D_SAE)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        numbers = struct.unpack(f"<{math.prod(entry['shape'])}f", body[start:stop])
        assert list(numbers) == getattr(dictionary, name).flatten().tolist(), name


def test_nothing_is_pickled(tmp_path):
    save_dictionary(_dictionary(), tmp_path / "d")
    files = _files(tmp_path / "d")
    assert set(files) == {"cfg.json", "sae_weights.safetensors"}
    assert files["cfg.json"].startswith(b"{")
    for name, data in files.items():
        assert not data.startswith((b"\x80", b"PK")), name  # a pickle, a zip of pickles


def test_metadata_comes_back_with_a_part_of_ours(tmp_path):
    save_dictionary(_dictionary(), tmp_path / "d", metadata={"model_name": "m"})
    assert read_metadata(tmp_path / "d")["model_name"] == "m"
    assert read_metadata(tmp_path / "d")["saescope"] == {"architecture": "topk"}
    _edit(tmp_path / "d", metadata=None)
    assert read_metadata(tmp_path / "d") == {"saescope": {}}
    assert load_dictionary(tmp_path / "d").d_sae == D_SAE


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
    first, second = _dictionary(seed=1), _dictionary(seed=2)
    save_dictionary(first, tmp_path / "d")
    with pytest.raises(FileExistsError, match=r"d already exists; choose another folder"):
        save_dictionary(second, tmp_path / "d")
    assert _same(load_dictionary(tmp_path / "d"), first)
    save_dictionary(second, tmp_path / "d", overwrite=True)
    assert _same(load_dictionary(tmp_path / "d"), second)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_overwriting_never_takes_other_files_with_it(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds files that are not a dictionary's \(thesis.tex\)"):
        save_dictionary(_dictionary(), tmp_path / "results", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file"):
        save_dictionary(_dictionary(), tmp_path / "file", overwrite=True)
    assert (tmp_path / "results" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "mine"


def test_parents_are_made_and_leftovers_of_a_kill_are_swept(tmp_path):
    folder = tmp_path / "a" / "b" / "d"
    (tmp_path / "a" / "b" / "d.partial").mkdir(parents=True)
    (tmp_path / "a" / "b" / "d.partial" / "sae_weights.safetensors").write_bytes(b"half")
    save_dictionary(_dictionary(), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["d"]
    assert _same(load_dictionary(folder), _dictionary())


def _full_disk(tensors: Any, path: Path) -> None:
    path.write_bytes(b"half of the")
    raise SafetensorError("No space left on device")


def _no_rename(self: Path, target: Path) -> Path:
    if self.name.endswith(".partial"):
        raise OSError("the rename failed")
    return _rename(self, target)


def _no_sync(path: Path) -> None:
    raise OSError("the sync failed")


_rename = Path.rename


@pytest.mark.parametrize(
    ("name", "failure", "words"),
    [
        ("saescope.dictionaries.saving.save_file", _full_disk, "could not write .*No space left on device"),
        ("saescope.dictionaries.saving._sync", _no_sync, "the sync failed"),
        ("pathlib.Path.rename", _no_rename, "the rename failed"),
    ],
)
def test_a_write_that_fails_leaves_the_old_dictionary_whole(tmp_path, monkeypatch, name, failure, words):
    save_dictionary(_dictionary(seed=1), tmp_path / "d")
    before = _files(tmp_path / "d")
    monkeypatch.setattr(name, failure)
    with pytest.raises(OSError, match=words):
        save_dictionary(_dictionary(seed=2), tmp_path / "d", overwrite=True)
    monkeypatch.undo()
    assert _files(tmp_path / "d") == before
    assert _same(load_dictionary(tmp_path / "d"), _dictionary(seed=1))
    save_dictionary(_dictionary(seed=2), tmp_path / "d", overwrite=True)  # and the next one succeeds
    assert _same(load_dictionary(tmp_path / "d"), _dictionary(seed=2))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_metadata_that_json_cannot_hold_fails_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_dictionary(_dictionary(), tmp_path / "d", metadata={"thing": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_two_renames_is_explained_and_healed(tmp_path):
    folder = tmp_path / "d"
    save_dictionary(_dictionary(seed=1), folder)
    folder.rename(tmp_path / "d.old")
    with pytest.raises(FileNotFoundError, match=r"cut off here; the dictionary before it is in .*d\.old"):
        load_dictionary(folder)
    save_dictionary(_dictionary(seed=2), folder)
    assert _same(load_dictionary(folder), _dictionary(seed=2))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_after_such_a_kill_the_old_one_stays_until_a_new_one_stands(tmp_path, monkeypatch):
    folder = tmp_path / "d"
    save_dictionary(_dictionary(seed=1), folder)
    folder.rename(tmp_path / "d.old")
    monkeypatch.setattr(saving, "save_file", _full_disk)
    with pytest.raises(OSError, match="could not write"):
        save_dictionary(_dictionary(seed=2), folder)
    assert _same(load_dictionary(tmp_path / "d.old"), _dictionary(seed=1))


def _edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "lista"}, "architecture 'lista'; this version opens "),
        ({"architecture": "topkk"}, "architecture 'topkk'; this version opens topk"),
        ({"architecture": ...}, "architecture None; this version opens .*standard, temporal, topk"),
        ({"architecture": "saescope/batch_topk"}, "architecture 'saescope/batch_topk'; this version opens"),
        ({"architecture": ["topk"]}, r"architecture \['topk'\]; this version opens"),
        (
            {"activation_fn": "relu"},
            r"needs \['d_in', 'd_sae', 'k'\]; missing \[\], not understood \['activation_fn'\]",
        ),
        ({"k": ...}, r"missing \['k'\]"),
        ({"d_sae": ..., "dsae": 5}, r"missing \['d_sae'\], not understood \['dsae'\]"),
        (
            {"normalize_activations": "constant_scalar_rescale"},
            "'constant_scalar_rescale' can not be opened so far; known are",
        ),
        ({"normalize_activations": None}, "normalize_activations = None can not be opened"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations = 'expected_average_only_in'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations = 'hook_z', as files of SAELens do; open"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm"),
        ({"k": 6}, "cfg.json can not be used: k must be .*d_sae = 5, got 6"),
        ({"k": "2"}, "cfg.json can not be used: k must be a whole number"),
        ({"d_in": None}, "cfg.json can not be used: d_in must be a whole number"),
        ({"d_sae": 6}, r"sae_weights.safetensors should hold .*\[3, 6\].* but holds .*\[3, 5\]"),
        ({"d_in": 10**9, "d_sae": 10**9}, "should hold .*1000000000.* but holds"),  # refused before it is allocated
    ],
)
def test_a_configuration_that_would_change_the_function_is_refused(tmp_path, changes, words):
    save_dictionary(_dictionary(), tmp_path / "d")
    _edit(tmp_path / "d", **changes)
    with pytest.raises(ValueError, match=words) as error:
        load_dictionary(tmp_path / "d")
    assert str(tmp_path / "d") in str(error.value)


def test_a_relu_file_needs_no_k(tmp_path):
    save_dictionary(_dictionary("relu"), tmp_path / "d")
    _edit(tmp_path / "d", k=3)
    with pytest.raises(ValueError, match=r"a standard dictionary needs \['d_in', 'd_sae'\].*not understood \['k'\]"):
        load_dictionary(tmp_path / "d")


@pytest.mark.parametrize("text", ["{", "", '{"architecture": "topk",}', "\xff"])
def test_damaged_json_is_named(tmp_path, text):
    save_dictionary(_dictionary(), tmp_path / "d")
    (tmp_path / "d" / "cfg.json").write_bytes(text.encode("latin-1"))
    for read in (load_dictionary, read_metadata):
        with pytest.raises(ValueError, match=r"cfg\.json is not valid JSON"):
            read(tmp_path / "d")


def test_json_that_is_no_object_is_named(tmp_path):
    save_dictionary(_dictionary(), tmp_path / "d")
    (tmp_path / "d" / "cfg.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"cfg\.json should hold a JSON object"):
        load_dictionary(tmp_path / "d")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a dictionary: it has no cfg.json \(no such folder\)"):
        load_dictionary(tmp_path / "nowhere")
    save_dictionary(_dictionary(), tmp_path / "d")
    (tmp_path / "d" / "cfg.json").rename(tmp_path / "cfg.json")
    with pytest.raises(FileNotFoundError, match=r"no cfg.json \(it holds \['sae_weights.safetensors'\]\)"):
        load_dictionary(tmp_path / "d")
    (tmp_path / "cfg.json").rename(tmp_path / "d" / "cfg.json")
    (tmp_path / "d" / "sae_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"d has no sae_weights\.safetensors"):
        load_dictionary(tmp_path / "d")


@pytest.mark.parametrize("size", [0, 4, 40, -1])
def test_truncated_weights_are_named(tmp_path, size):
    save_dictionary(_dictionary(), tmp_path / "d")
    path = tmp_path / "d" / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors is damaged or not a safetensors file"):
        load_dictionary(tmp_path / "d")


@pytest.mark.parametrize(
    "metadata", [[1], "words", {"saescope": "words"}, {"saescope": {"architecture": ["topk"]}}, {"saescope": [1]}]
)
def test_a_strangers_metadata_stops_nobody(tmp_path, metadata):
    """The file's own name for its architecture is enough: a note that is none is no note, or a ValueError."""
    save_dictionary(_dictionary(), tmp_path / "d")
    _edit(tmp_path / "d", metadata=metadata)
    for read in (load_dictionary, read_metadata):
        with contextlib.suppress(ValueError):
            read(tmp_path / "d")


def test_tensors_of_a_wrong_shape_number_or_dtype_are_refused(tmp_path):
    save_dictionary(_dictionary(), tmp_path / "d")
    path = tmp_path / "d" / "sae_weights.safetensors"
    good = load_file(path)
    for bad in (
        {**good, "W_enc": good["W_enc"].T.contiguous()},
        {**good, "b_enc": good["b_enc"][:-1]},
        {**good, "threshold": torch.zeros(D_SAE)},
        {key: value for key, value in good.items() if key != "b_dec"},
    ):
        save_file(bad, path)
        with pytest.raises(ValueError, match=r"should hold \{.*'W_enc': \[3, 5\].*but holds \{"):
            load_dictionary(tmp_path / "d")
    for bad in ({**good, "b_enc": good["b_enc"].half()}, {key: value.int() for key, value in good.items()}):
        save_file(bad, path)
        with pytest.raises(ValueError, match=r"tensors of one floating dtype, but holds \['torch"):
            load_dictionary(tmp_path / "d")
