"""A dictionary on disk: a folder with ``cfg.json`` and ``sae_weights.safetensors``, the layout of SAELens >= 6.

Every tool of the field opens it: weights work on raw activations (no scale waits in a side file), and what saescope
alone knows stands under ``metadata.saescope``. Both files are written beside, synced and renamed together, so that a
folder is either the old dictionary or the new one. Nothing is pickled.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from saescope.dictionaries.base import Dictionary, DictionaryConfig, opened_architectures

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_SAELENS_VERSION = "6.0.0"  # the layout that these files follow
_FORM_KEYS = {
    "architecture", "dtype", "device", "metadata", "normalize_activations", "reshape_activations",
    "rescale_acts_by_decoder_norm",
}  # fmt: skip


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
        FileExistsError: the folder exists and ``overwrite`` is not set, or holds files that are not a dictionary's.
        OSError: the files can not be written; the folder is left as it was.
    """
    folder = Path(folder)
    if folder.exists():
        if not overwrite:
            raise FileExistsError(f"{folder} already exists; choose another folder or allow overwriting")
        _refuse_foreign_files(folder)
    normalization = dictionary.input_normalization.name
    # what SAELens can not undo gets a name that it refuses; its skip connections read what is not normalised
    ours_alone = normalization.startswith("saescope/") or (
        normalization != "none" and getattr(dictionary, "has_skip", False)
    )
    own = {"architecture": dictionary.architecture, **(saescope or {})}
    config = {
        "architecture": f"saescope/{dictionary.architecture}" if ours_alone else dictionary.saelens_name,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": str(dictionary.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.config.apply_b_dec_to_input,
        "normalize_activations": normalization,
        "reshape_activations": "none",
        **dictionary.saelens_extras(),
        "metadata": {"sae_lens_version": _SAELENS_VERSION, **(metadata or {}), "saescope": own},
    }
    tensors = dictionary.saved_tensors()
    text = json.dumps(config, indent=1) + "\n"
    beside = new_folder_beside(folder)
    write_tensors(tensors, beside / WEIGHTS_FILE)
    (beside / CONFIG_FILE).write_text(text)
    replace_folder(beside, folder)
    return folder


def new_folder_beside(folder: Path) -> Path:
    """An empty folder beside ``folder`` to write into; what an interrupted write left there is removed."""
    beside = folder.with_name(folder.name + ".partial")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(parents=True)
    return beside


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; what goes wrong (a full disk) is an OSError."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error


def replace_folder(beside: Path, folder: Path) -> None:
    """Sync a finished folder's files and put it in the place of ``folder``; the old one goes only when it stands."""
    for path in (*beside.iterdir(), beside):
        _sync(path)
    old = _place_of_old(folder)
    if folder.exists():
        if old.exists():
            shutil.rmtree(old)
        folder.rename(old)
    try:
        beside.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
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
    cls, chosen = settings_in(config, folder)
    try:
        settings = cls.Config(**chosen)
        with torch.device("meta"):  # shapes are compared before any memory is asked for
            expected = _empty(cls, settings, config).saved_tensors()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: cfg.json can not be used: {error}") from error
    tensors = read_weights(folder / WEIGHTS_FILE)
    shapes = {key: list(tensor.shape) for key, tensor in expected.items()}
    found = {key: list(tensor.shape) for key, tensor in tensors.items()}
    if found != shapes:
        raise ValueError(f"{folder}: {WEIGHTS_FILE} should hold {shapes}, but holds {found}")
    dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(dtypes) > 1 or not next(iter(tensors.values())).is_floating_point():
        raise ValueError(f"{folder}: {WEIGHTS_FILE} should hold tensors of one floating dtype, but holds {dtypes}")
    dictionary = _empty(cls, settings, config)
    try:
        dictionary.take_tensors(tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    dictionary.metadata = _metadata(config)
    return dictionary.to(device).eval()


def settings_in(config: Mapping[str, Any], where: object) -> tuple[type[Dictionary], dict[str, Any]]:
    """The architecture that a cfg.json names, and the fields of its config.

    Raises:
        ValueError: an unknown architecture, an option that would change the function, a missing or an unknown key.
    """
    cls = _class_of(config, where)
    if config.get("reshape_activations", "none") != "none":
        raise ValueError(
            f"{where}: cfg.json has reshape_activations = {config['reshape_activations']!r}, as files of SAELens do; open "
            "them with saescope.load"
        )
    if config.get("rescale_acts_by_decoder_norm"):
        raise ValueError(
            f"{where}: features compete by decoder norms (rescale_acts_by_decoder_norm), as in files of SAELens; open them "
            "with saescope.load"
        )
    key_of = {field.name: cls.saelens_keys.get(field.name, field.name) for field in fields(cls.Config)}
    needed = {key_of[field.name] for field in fields(cls.Config) if field.default is MISSING}
    unknown = set(config) - set(key_of.values()) - _FORM_KEYS
    if unknown or not needed <= set(config):
        raise ValueError(
            f"{where}: cfg.json of a {config['architecture']} dictionary needs {sorted(needed)}; "
            f"missing {sorted(needed - set(config))}, not understood {sorted(unknown)}"
        )
    return cls, {name: config[key] for name, key in key_of.items() if key in config}


def _empty(cls: type[Dictionary], settings: DictionaryConfig, config: Mapping[str, Any]) -> Dictionary:
    dictionary = cls(settings, seed=None)
    dictionary.normalise_by(config.get("normalize_activations", "none"))
    return dictionary


def _class_of(config: Mapping[str, Any], folder: object) -> type[Dictionary]:
    """The architecture of a file: what our note in it says, if it fits the name; else what the name says."""
    name = config.get("architecture")
    noted = str(_metadata(config)["saescope"].get("architecture"))
    known = opened_architectures()
    if noted in known and name in (known[noted].saelens_name, f"saescope/{noted}"):
        return known[noted]
    by_name = {cls.saelens_name: cls for cls in known.values() if cls.opens_saelens_name}
    if not isinstance(name, str) or name not in by_name:
        own = ""
        if isinstance(name, str) and name.startswith("saescope/"):
            own = ". An architecture of your own has to be registered first (on the command line: --plugin FILE)"
        near = difflib.get_close_matches(str(name), by_name, n=3, cutoff=0.4) or sorted(by_name)
        raise ValueError(f"{folder}: cfg.json has architecture {name!r}; this version opens {', '.join(near)}{own}")
    return by_name[name]


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The ``metadata`` of a dictionary's cfg.json; saescope's own part is under ``"saescope"``."""
    return _metadata(_read_config(Path(folder)))


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a config; what is no JSON object there counts as empty."""
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    own = metadata.get("saescope")
    return {**metadata, "saescope": own if isinstance(own, dict) else {}}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        found = f"it holds {sorted(p.name for p in folder.iterdir())[:8]}" if folder.is_dir() else "no such folder"
        if not folder.exists() and _place_of_old(folder).exists():
            found = f"a write was cut off here; the dictionary before it is in {_place_of_old(folder)}"
        raise FileNotFoundError(f"{folder} is not a dictionary: it has no {CONFIG_FILE} ({found})")
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError where it holds something else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} should hold a JSON object")
    return config


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors file.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _place_of_old(folder: Path) -> Path:
    """Where ``folder`` waits while the new one takes its place."""
    return folder.with_name(folder.name + ".old")


def _refuse_foreign_files(folder: Path) -> None:
    """Overwriting replaces the whole folder: one that holds anything else than a dictionary is never touched."""
    present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else [folder.name]
    foreign = [name for name in present if name not in (CONFIG_FILE, WEIGHTS_FILE)]
    if foreign:
        raise FileExistsError(
            f"{folder} holds files that are not a dictionary's ({', '.join(foreign[:5])}); choose another folder"
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
