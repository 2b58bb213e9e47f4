"""An explainer on disk: a folder with ``concepts.json`` and ``concepts.safetensors``.

The JSON says what the concept model is made of, the tensors are its state: thresholds, scales and running statistics with
the weights, so that codes after loading are those before. Both files are written beside, synced and renamed together.
Nothing is pickled; a module of a user's own, or a normalisation that is a function, has to be given again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from saescope.concepts.explainers.atoms import AtomSettings, atom_settings
from saescope.concepts.explainers.concept_model import ConceptModel, Recipe
from saescope.concepts.explainers.encoders import check_encoder
from saescope.concepts.explainers.explainer import SAEExplainer, _class_for
from saescope.dictionaries.base import architecture
from saescope.dictionaries.normalization import input_normalization
from saescope.dictionaries.saving import (
    new_folder_beside,
    read_json_object,
    read_weights,
    replace_folder,
    write_tensors,
)

if TYPE_CHECKING:
    from saescope.concepts.splitting import ModelWithSplitPoints

CONFIG_FILE = "concepts.json"
WEIGHTS_FILE = "concepts.safetensors"
_FORM = 1  # of these files
_MODULE = "a module"  # of a user's own
_FUNCTION = "a function"


def save_explainer(explainer: SAEExplainer, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write an explainer to ``folder`` and return the folder.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set, or holds other files than an explainer's.
        OSError: the files can not be written; the folder is left as it was.
    """
    folder = Path(folder)
    if folder.exists():
        if not overwrite:
            raise FileExistsError(f"{folder} already exists; choose another folder or allow overwriting")
        present = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
        foreign = sorted(set(present) - {CONFIG_FILE, WEIGHTS_FILE})
        if foreign:
            raise FileExistsError(
                f"{folder} holds files that are not an explainer's ({', '.join(foreign[:5])}); choose another folder"
            )
    model = explainer.concept_model
    recipe = model.recipe
    config = {
        "form": _FORM,
        "class": type(explainer).__name__,
        "split_point": explainer.split_point,
        "fitted": model.fitted,
        "on_raw_activations": model.on_raw_activations,
        "dtype": str(model.dtype).removeprefix("torch."),
        "architecture": recipe.kind.architecture,
        "settings": asdict(recipe.config),
        "input_normalization": model.dictionary.input_normalization.name,
        "encoder_module": _MODULE if isinstance(recipe.encoder, nn.Module) else recipe.encoder,
        "normalization": recipe.atoms.name,
        "use_multiplier": recipe.atoms.use_multiplier,
        "decoder_bias": recipe.decoder_bias,
        "loss": dict(recipe.loss),
        "first_share": recipe.first_share,
        "threshold_momentum": recipe.threshold_momentum,
        "dropout": recipe.dropout,
        "metadata": model.dictionary.metadata,
    }
    text = json.dumps(config, indent=1) + "\n"
    beside = new_folder_beside(folder)
    write_tensors(model.dictionary.state_dict(), beside / WEIGHTS_FILE)
    (beside / CONFIG_FILE).write_text(text, encoding="utf-8")
    replace_folder(beside, folder)
    return folder


def load_explainer(
    folder: str | Path,
    model_with_split_points: ModelWithSplitPoints,
    *,
    split_point: str | None = None,
    encoder_module: nn.Module | None = None,
    dictionary_params: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> SAEExplainer:
    """Open an explainer; see :meth:`SAEExplainer.load`."""
    folder = Path(folder)
    config = _read_config(folder)
    try:
        recipe = _recipe(config, encoder_module, atom_settings(dictionary_params))
        dictionary = recipe.build(seed=None)
        dictionary.input_normalization = input_normalization(config["input_normalization"], dictionary.d_in)
        dictionary.metadata = dict(config["metadata"])
        dtype = getattr(torch, config["dtype"])
        fitted, raw, name = bool(config["fitted"]), bool(config["on_raw_activations"]), config["split_point"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: {CONFIG_FILE} can not be used: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    tensors = read_weights(folder / WEIGHTS_FILE)
    own = {key: list(tensor.shape) for key, tensor in dictionary.state_dict().items()}
    found = {key: list(tensor.shape) for key, tensor in tensors.items()}
    if own != found:
        raise ValueError(f"{folder}: {WEIGHTS_FILE} should hold {own}, but holds {found}")
    dictionary.to(dtype).load_state_dict(tensors)
    model = ConceptModel(replace(recipe, atoms=replace(recipe.atoms, initializer=None)), dictionary=dictionary)
    model.fitted, model.on_raw_activations = fitted, raw
    model.to(device).eval()
    return _class_for(recipe.kind)._around(model_with_split_points, model, split_point or name)


def _recipe(config: Mapping[str, Any], module: nn.Module | None, given: AtomSettings) -> Recipe:
    """What the concept model is made of.

    Raises:
        ValueError: a part that no file can hold is missing, or one is given that the file does not want.
    """
    if config["form"] != _FORM:
        raise ValueError(f"{CONFIG_FILE} has form {config['form']!r}, and this version opens form {_FORM}")
    kind = architecture(config["architecture"])
    settings = kind.Config(**config["settings"])
    encoder: Any = config["encoder_module"]
    if (encoder == _MODULE) != (module is not None):
        wants = (
            "was saved with a module of your own as encoder: give"
            if module is None
            else "has no such module: leave out"
        )
        raise ValueError(f"this explainer {wants} encoder_module")
    if module is not None:
        encoder = module
    normalization = config["normalization"]
    if normalization == _FUNCTION:
        if isinstance(given.normalization, str):
            raise ValueError(
                "this explainer was saved with a function as normalization: give dictionary_params={'normalization': ...}"
            )
        normalization = given.normalization
    return Recipe(
        kind=kind,
        config=settings,
        encoder=check_encoder(encoder, settings.d_in, settings.d_sae),
        atoms=AtomSettings(normalization, None, config["use_multiplier"]),
        decoder_bias=config["decoder_bias"],
        loss=config["loss"],
        first_share=config["first_share"],
        threshold_momentum=config["threshold_momentum"],
        dropout=config["dropout"],
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no saved explainer: it has no {CONFIG_FILE}")
    return read_json_object(path)
