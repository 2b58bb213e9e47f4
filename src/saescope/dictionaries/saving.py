"""A dictionary on disk: a folder with ``cfg.json`` and ``sae_weights.safetensors``, the layout of SAELens >= 6.

Every tool of the field opens it: weights work on raw activations (no scale waits in a side file), and what saescope alone
knows stands under ``metadata.saescope``. Both files are written beside, synced and renamed together, so that a folder is
either the old dictionary or the new one. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from saescope.dictionaries.base import Dictionary, architectures

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_SAELENS_VERSION = "6.0.0"  # the layout that these files follow
_SHARED_KEYS = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
}
_KEYS_WITHOUT_EFFECT = {"architecture", "dtype", "device", "metadata", "d_in", "d_sae", "rescale_acts_by_decoder_norm"}


def save_dictionary(
    dictionary: Dictionary,
    folder: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    saescope: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a dictionary to ``folder`` and return the folder.

    Args:
        metadata: SAELens' own keys (``model_name``, ``hook_name``, ``context_size``, ``dataset_path``, ...).
        saescope: our provenance and training summary, kept under ``metadata.saescope``.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} already exists; choose another folder or allow overwriting")
    config = {
        "architecture": dictionary.saelens_name,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": str(dictionary.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        **_SHARED_KEYS,
        **dictionary.saelens_extras(),
        "metadata": {"sae_lens_version": _SAELENS_VERSION, **(metadata or {}), "saescope": dict(saescope or {})},
    }
    tensors = {
        "W_enc": dictionary.W_enc,
        "W_dec": dictionary.W_dec,
        "b_enc": dictionary.b_enc,
        "b_dec": dictionary.b_dec,
    }
    beside = folder.with_name(folder.name + ".partial")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(parents=True)
    write_tensors(tensors, beside / WEIGHTS_FILE)
    (beside / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
    replace_folder(beside, folder)
    return folder


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; what goes wrong (a full disk) is an OSError."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error


def replace_folder(beside: Path, folder: Path) -> None:
    """Sync a finished folder's files and put it in the place of ``folder``; the old one goes only when it stands."""
    for path in beside.iterdir():
        _sync(path)
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    _sync(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def load_dictionary(folder: str | Path, *, device: str = "cpu") -> Dictionary:
    """Open a dictionary saved by :func:`save_dictionary` (or by SAELens >= 6, where the architecture is known here).

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: an unknown architecture, an option that would change the function, or tensors of a wrong shape.
    """
    folder = Path(folder)
    config = _read_config(folder)
    name = config.get("architecture")
    by_saelens_name = {cls.saelens_name: cls for cls in architectures().values()}
    if name not in by_saelens_name:
        raise ValueError(
            f"{folder}: cfg.json has architecture {name!r}; this version opens {', '.join(sorted(by_saelens_name))}"
        )
    cls = by_saelens_name[name]
    for key, expected in _SHARED_KEYS.items():
        if config.get(key, expected) != expected:
            raise ValueError(f"{folder}: cfg.json has {key} = {config[key]!r}; only {expected!r} can be opened so far")
    if config.get("rescale_acts_by_decoder_norm"):
        raise ValueError(f"{folder}: gating by decoder norm (rescale_acts_by_decoder_norm) can not be opened so far")
    wanted = {field.name for field in fields(cls.Config)}
    unknown = set(config) - wanted - set(_SHARED_KEYS) - _KEYS_WITHOUT_EFFECT
    if unknown or not wanted <= set(config):
        raise ValueError(
            f"{folder}: cfg.json of a {name} dictionary needs {sorted(wanted)}; "
            f"missing {sorted(wanted - set(config))}, not understood {sorted(unknown)}"
        )
    dictionary = cls(cls.Config(**{key: config[key] for key in wanted}))
    tensors = _read_weights(folder)
    shapes = {
        "W_enc": [dictionary.d_in, dictionary.d_sae],
        "W_dec": [dictionary.d_sae, dictionary.d_in],
        "b_enc": [dictionary.d_sae],
        "b_dec": [dictionary.d_in],
    }
    found = {key: list(tensor.shape) for key, tensor in tensors.items()}
    if found != shapes:
        raise ValueError(f"{folder}: {WEIGHTS_FILE} should hold {shapes}, but holds {found}")
    with torch.no_grad():
        dictionary.encoder_rows = torch.nn.Parameter(tensors["W_enc"].T.contiguous())
        for key in ("W_dec", "b_enc", "b_dec"):
            setattr(dictionary, key, torch.nn.Parameter(tensors[key].clone()))
    return dictionary.to(device).eval()


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The ``metadata`` of a dictionary's cfg.json; saescope's own part is under ``"saescope"``."""
    metadata = _read_config(Path(folder)).get("metadata") or {}
    return {**metadata, "saescope": metadata.get("saescope") or {}}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        found = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder} is not a dictionary: it has no {CONFIG_FILE} ({found})")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} should hold a JSON object")
    return config


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS_FILE}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
