"""dictionary_learning: a folder per run with ``config.json`` and ``ae.pt``, and ``checkpoints/ae_{step}.pt`` on the way.

    pre = (x - b_dec) @ W_enc + b_enc        x_hat = f @ W_dec + b_dec

    AutoEncoder, AutoEncoderNew       f = ReLU(pre)
    GatedAutoEncoder                  f = 1[u + b_gate > 0] * ReLU(exp(r_mag) * u + b_mag),  u = (x - b_dec) @ W_enc
    JumpReluAutoEncoder               f = ReLU(pre) where pre > threshold, a threshold per feature
    AutoEncoderTopK                   f = the k largest of each token of ReLU(pre)
    BatchTopKSAE, Matryoshka...       f = ReLU(pre) where pre > threshold, one threshold for all

AutoEncoderNew and JumpReluAutoEncoder do not subtract ``b_dec`` from the input. Which class it is stands in config.json
alone: TopK and BatchTopK have the same tensors.

Sources: the code of dictionary-learning 0.1.0 and of later commits (github.com/saprmarks/dictionary_learning), whose runs
leave, when they are interrupted, an ``ae.pt`` with the optimizer beside the tensors, and biases in the units of training.

d_in  width of the input, d_sae  features.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.formats.dictionaries.centring import shift_of_centring
from saescope.formats.foreign import Foreign, row_norms, scaled
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, LocalSource, Source
from saescope.formats.tensor_files import TensorSource, read_json, read_tensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "ae.pt"
_CHECKPOINT = r"ae_\d+\.pt"


@dataclass(frozen=True)
class _Class:
    """A ``dict_class``."""

    architecture: str  # ours
    tensors: Mapping[str, str]  # ours -> theirs; an nn.Linear's ``weight`` is the transpose of ours
    centred: bool = True
    selects: bool = False  # has k and one threshold


_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_PLAIN = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}

_CLASSES: Mapping[str, _Class] = {
    "AutoEncoder": _Class("relu", {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "bias"}),
    "AutoEncoderNew": _Class("relu", {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "decoder.bias"}, centred=False),
    "GatedAutoEncoder": _Class(
        "gated", {**_LINEAR, "b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
    ),
    "JumpReluAutoEncoder": _Class("jumprelu", {**_PLAIN, "threshold": "threshold"}, centred=False),
    "AutoEncoderTopK": _Class("topk", {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"}, selects=True),
    "BatchTopKSAE": _Class("jumprelu", {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"}, selects=True),
    "MatryoshkaBatchTopKSAE": _Class("jumprelu", _PLAIN, selects=True),
}
_GROUPS = "group_sizes"  # of a Matryoshka; all groups are active

# of the trainer: how it was trained, which the weights do not depend on any more
_TRAINING_KEYS = (
    "trainer_class", "lr", "steps", "seed", "device", "wandb_name", "warmup_steps", "decay_start", "resample_steps",
    "auxk_alpha", "threshold_beta", "threshold_start_step", "top_k_aux", "dead_feature_threshold",
    "group_fractions", "group_weights", "group_sizes", "l1_penalty", "sparsity_warmup_steps", "bandwidth",
    "sparsity_penalty", "target_l0", "sparsity_function", "p_start", "p_end", "anneal_start", "n_sparsity_updates",
    "sparsity_queue_length", "norm_factor",
)  # fmt: skip
_INTERRUPTED_KEYS = ("ae", "step", "optimizer", "config")
_IN_ACTIVATION_UNITS = ("b_enc", "b_dec", "b_gate", "b_mag", "threshold")

_OVERRIDES = {
    "dict_class": f"the class, where config.json is missing or wrong: {', '.join(_CLASSES)}",
    "k": "features that fire on each token, of an AutoEncoderTopK whose files do not say",
    "threshold": "of a BatchTopK or TopK dictionary: activations above it fire",
    "use_top_k": "of those: true for the k largest of each token, false for the threshold in the file",
    "normalise_decoder": "true to bring decoder rows to norm 1, as its own load_dictionary does with an AutoEncoder",
    "apply_b_dec_to_input": "true for a JumpReluAutoEncoder that was made of a dictionary that centres its input",
}

# What it is


def _recognise(source: Source) -> bool:
    source = _run_of(source)
    name = source.only or WEIGHTS_FILE
    if not name.endswith(".pt"):
        return False
    try:
        if source.has(CONFIG_FILE):
            trainer = read_json(source.path(CONFIG_FILE)).get("trainer")
            if isinstance(trainer, dict) and not {"dict_class", "trainer_class"}.isdisjoint(trainer):
                return True
    except (OSError, ValueError):
        pass  # the names of the tensors say it as well
    if not source.has(name) or not re.fullmatch(rf"(checkpoints/)?({_CHECKPOINT}|ae\.pt)", name):
        return False
    try:
        held: Any = read_tensors(source.path(name), shapes_only=True)
    except (OSError, ValueError):
        return False
    held = held["ae"] if isinstance(held.get("ae"), Mapping) else held
    return any(set(each.tensors.values()) <= set(held) for each in _CLASSES.values())


def _run_of(source: Source) -> Source:
    """Of a file that was named in ``checkpoints/``, the folder of its run, where config.json lies."""
    inside = isinstance(source, LocalSource) and source.label.endswith("/checkpoints") and not source.has(CONFIG_FILE)
    if inside and isinstance(source, LocalSource) and re.fullmatch(_CHECKPOINT, source.only):
        folder = source.folder.resolve().parent
        return replace(source, folder=folder, label=folder.as_posix(), only=f"checkpoints/{source.only}")
    return source


# Reading


def _read(source: Source) -> Foreign:
    source = _run_of(source)
    name = source.the_tensor_file(r".*\.pt" if source.only else r"ae\.pt", WEIGHTS_FILE)
    said: list[str] = []
    tensors, norm_factor, embedded = _tensors(source, name, said)
    config = _config(source, embedded)
    trainer, buffer = config.part("trainer"), config.part("buffer")
    config.require_all_used()
    trainer.ignore(*_TRAINING_KEYS)
    buffer.ignore(".*")  # how activations were collected

    dict_class = _dict_class(source, trainer, said)
    described = _CLASSES[dict_class]
    found = _matrices(described, tensors, trainer)
    foreign = Foreign(
        format="dictionary_learning", architecture=described.architecture, tensors=found, said=said,
        metadata=_metadata(source, trainer, buffer, said),
    )  # fmt: skip
    chosen = _Choices(source.overrides)
    foreign.settings["apply_b_dec_to_input"] = described.centred
    if dict_class == "JumpReluAutoEncoder":
        centred = chosen.truth("apply_b_dec_to_input", False)
        foreign.settings["apply_b_dec_to_input"] = centred
        said.append(
            "b_dec is subtracted from the input, as was said" if centred else "b_dec is not subtracted from the input"
        )
    if described.selects:
        _select(foreign, dict_class, tensors, trainer, chosen)
    if dict_class.startswith("Matryoshka"):
        _check_groups(tensors, foreign.d_sae)
    _scale_biases(foreign, norm_factor, chosen)
    if "threshold" in found and not found["threshold"].is_meta:  # ReLU follows it there: what fires is positive
        found["threshold"] = found["threshold"].clamp(min=0)
    _norms(foreign, dict_class, chosen)
    chosen.require_all_used(dict_class)
    trainer.require_all_used()
    tensors.require_all_used()
    return foreign


def _tensors(source: Source, name: str, said: list[str]) -> tuple[TensorSource, float, dict[str, Any] | None]:
    """Tensors of the dictionary, the factor that its biases lack, and the trainer's config that lies beside them."""
    where = f"{source.label}/{name}"
    held = TensorSource(read_tensors(source.path(name)), where)  # mapped: values are read when they are used
    if "ae" not in held:
        return TensorSource(_without_memory(held) if source.shapes_only else held, where), 1.0, None
    inner, step = held["ae"], held.take_value("step")
    if not isinstance(inner, Mapping):
        raise ValueError(f"{where} has 'ae', but no tensors by name under it")
    norm_factor = held.take_value("norm_factor")
    norm_factor = 1.0 if norm_factor is None else norm_factor
    if isinstance(norm_factor, bool) or not isinstance(norm_factor, int | float) or not 0 < norm_factor < math.inf:
        raise ValueError(f"{where}: norm_factor should be a positive number, but is {norm_factor!r}")
    held.ignore(*_INTERRUPTED_KEYS)
    held.require_all_used()
    said.append(f"the run was interrupted at step {step}")
    if norm_factor != 1:
        said.append(
            f"it divided activations by {norm_factor:.6g}; biases and thresholds are multiplied by that, so that "
            "activations are taken as the model gives them"
        )
    embedded = held["config"] if isinstance(held.get("config"), Mapping) else None
    inner = {str(key): value for key, value in inner.items()}
    tensors = TensorSource(_without_memory(inner) if source.shapes_only else inner, f"{where}: ae")
    return tensors, float(norm_factor), None if embedded is None else dict(embedded)


def _without_memory(values: Mapping[str, Any]) -> dict[str, Any]:
    """Matrices and vectors without values; single numbers (k, the threshold) are kept, as they say which function it is."""
    return {k: v.to("meta") if isinstance(v, Tensor) and v.numel() != 1 else v for k, v in values.items()}


def _config(source: Source, embedded: dict[str, Any] | None) -> ConfigSource:
    if source.has(CONFIG_FILE):
        return source.config(CONFIG_FILE)
    return ConfigSource({"trainer": embedded or {}}, f"{source.label} (no {CONFIG_FILE})", lenient=source.lenient)


def _dict_class(source: Source, trainer: ConfigSource, said: list[str]) -> str:
    in_config = trainer.get("dict_class", str)
    dict_class = source.override("dict_class", in_config)
    if dict_class is None:
        raise ValueError(
            f"{trainer.where} has no dict_class, and tensors do not tell a TopK from a BatchTopK dictionary; pass "
            f"dict_class= one of {', '.join(_CLASSES)}"
        )
    if dict_class == "IdentityDict":
        raise ValueError(
            f"{trainer.where} has dict_class IdentityDict, which gives back its input: there is nothing to open"
        )
    if dict_class not in _CLASSES:
        raise ValueError(
            f"the dict_class {dict_class!r} is not known ({trainer.where}); known are {', '.join(_CLASSES)}"
        )
    if dict_class != in_config:
        said.append(
            f"dict_class {dict_class} as was said" + (f", where config.json has {in_config}" if in_config else "")
        )
    return str(dict_class)


def _matrices(described: _Class, tensors: TensorSource, trainer: ConfigSource) -> dict[str, Tensor]:
    """The tensors in our layout, compared with each other and with the config."""
    encoder, linear = described.tensors["W_enc"], described.tensors["W_enc"].endswith(".weight")
    rows, columns = tensors.take(encoder, (None, None)).shape
    d_sae, d_in = (rows, columns) if linear else (columns, rows)
    for key, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        said = trainer.get(key, int, size)
        if said != size:
            raise ValueError(
                f"{tensors.where}: {encoder} of shape {[rows, columns]} does not fit {key} = {said} in {trainer.where}"
            )
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    found: dict[str, Tensor] = {}
    for ours, theirs in described.tensors.items():
        shape: tuple[int, ...] = shapes.get(ours, (d_sae,))
        transposed = theirs.endswith(".weight")
        tensor = tensors.take(theirs, shape[::-1] if transposed else shape)
        found[ours] = tensor.T if transposed else tensor
    return found


def _select(foreign: Foreign, dict_class: str, tensors: TensorSource, trainer: ConfigSource, chosen: _Choices) -> None:
    """By which rule features fire: the k largest of each token, or those above one threshold."""
    in_file, in_config = tensors.take_value("k"), trainer.get("k", int)
    threshold, own_threshold = tensors.take_value("threshold"), chosen.number("threshold")
    for name, value, kind in (("k", in_file, int), ("threshold", threshold, (int, float))):
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ValueError(f"{tensors.where}: {name} should be a number, but is {value!r}")
    top_k = chosen.truth("use_top_k", dict_class == "AutoEncoderTopK" and own_threshold is None)
    if top_k and own_threshold is not None:
        raise ValueError("use_top_k=true and a threshold contradict each other; pass one of them")
    if top_k:
        k = chosen.whole("k")
        if k is None and None not in (in_file, in_config) and in_file != in_config:
            raise ValueError(f"{tensors.where} has k = {in_file} and {trainer.where} has {in_config}; pass k=")
        origin = (
            "as was said" if k is not None else f"from {WEIGHTS_FILE}" if in_file is not None else f"from {CONFIG_FILE}"
        )
        k = next((each for each in (k, in_file, in_config) if each is not None), None)
        if k is None:
            raise ValueError(f"neither {tensors.where} nor {trainer.where} has k; pass k=")
        foreign.architecture, foreign.settings["k"] = "topk", int(k)
        rule = f"the {k} largest activations of each token fire (k {origin})"
        if dict_class != "AutoEncoderTopK":
            rule += f"; a {dict_class} was trained to choose k per token over a batch, and would go by its threshold"
        foreign.said.append(rule)
        return
    value = threshold if own_threshold is None else own_threshold
    if value is None or not 0 <= value < math.inf:
        raise ValueError(
            f"{tensors.where} has {'no threshold' if value is None else f'the threshold {value:g}'}: it was never measured "
            "(the run ended before threshold_start_step), and every positive activation would fire. Pass threshold= a "
            "number measured on activations, or use_top_k=true for the k largest of each token, another rule than its own"
        )
    decoder = foreign.tensors["W_dec"]
    vector = torch.full((foreign.d_sae,), float(value), dtype=decoder.dtype, device=decoder.device)
    foreign.architecture, foreign.tensors["threshold"] = "jumprelu", vector
    origin = f"from {WEIGHTS_FILE}" if own_threshold is None else "as was said"
    foreign.said.append(f"activations above the threshold {value:.6g} fire ({origin})")


def _check_groups(tensors: TensorSource, d_sae: int) -> None:
    groups = tensors.get(_GROUPS)
    if isinstance(groups, Tensor) and not groups.is_meta and int(groups.sum()) != d_sae:
        raise ValueError(
            f"{tensors.where}: {_GROUPS} are of {int(groups.sum())} features together, and there are {d_sae}"
        )
    tensors.ignore(_GROUPS)


def _scale_biases(foreign: Foreign, factor: float, chosen: _Choices) -> None:
    """From the units of training to those of the model; a threshold that the user says is in the model's already."""
    for name in _IN_ACTIVATION_UNITS if factor != 1 else ():
        said = name == "threshold" and name in chosen.values
        if name in foreign.tensors and not said and not foreign.tensors[name].is_meta:
            foreign.tensors[name] = scaled(foreign.tensors[name], factor)


def _norms(foreign: Foreign, dict_class: str, chosen: _Choices) -> None:
    if chosen.truth("normalise_decoder", False):
        if foreign.architecture == "topk":
            raise ValueError("normalise_decoder: where the k largest fire, other rows would change which do")
        foreign.fold_decoder_norms()
        foreign.said.append(
            "decoder rows are brought to norm 1; feature activations are multiplied by the norms they had"
        )
    elif dict_class == "AutoEncoder":
        foreign.said.append(
            "decoder rows are as in the file; dictionary_learning's load_dictionary brings them to norm 1, which multiplies "
            "feature activations by the norms (normalise_decoder=true does the same)"
        )


class _Choices:
    """What the user says, each of the right kind, and each of which the class has to have a use for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}
        self._used = {"dict_class"}

    def truth(self, name: str, default: bool) -> bool:
        self._used.add(name)
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{name} should be true or false, got {value!r}")
        return value

    def number(self, name: str) -> float | None:
        self._used.add(name)
        value = self.values.get(name)
        right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if value is not None and not right:
            raise ValueError(f"{name} should be a number of at least 0, got {value!r}")
        return None if value is None else float(value)

    def whole(self, name: str) -> int | None:
        self._used.add(name)
        value = self.values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} should be a whole number of at least 1, got {value!r}")
        return value

    def require_all_used(self, dict_class: str) -> None:
        left = sorted(set(self.values) - self._used)
        if left:
            raise ValueError(f"{', '.join(left)} can not be said of dict_class {dict_class}")


# Where it was trained

_RESIDUAL = r"resid_post_layer_(\d+)"  # its demonstration's name of a layer's output
_TRANSFORMER_LENS = r"blocks\.\d+\.\w[\w.]*|hook_\w+"


def _metadata(source: Source, trainer: ConfigSource, buffer: ConfigSource, said: list[str]) -> dict[str, Any]:
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name", str)
    found: dict[str, Any] = {"model_name": trainer.get("lm_name", str), "context_size": buffer.get("ctx_len", int)}
    if not submodule:
        named = source.from_name(rf"(?P<submodule>{_RESIDUAL})(?:/trainer_\d+)?")
        submodule = named["submodule"] if named else None
        if named:
            said.append(f"hook point {submodule} from the name")
    residual = re.fullmatch(_RESIDUAL, submodule or "")
    io = buffer.get("io", str, "out")
    if residual and io == "out":
        found["hook_name"] = f"blocks.{residual[1]}.hook_resid_post"
    elif submodule and re.fullmatch(_TRANSFORMER_LENS, submodule):
        found["hook_name"] = submodule
    elif submodule:
        found["hf_hook_name"] = submodule
    elif layer is not None:
        said.append(f"trained in layer {layer}; where in the layer is not in the file")
    if io != "out":
        said.append(
            "trained on the input of a module" if io == "in" else "trained to rebuild a module's output from its input"
        )
    return {key: value for key, value in found.items() if value}


# Writing


def _write(dictionary: Dictionary, folder: Path, metadata: Mapping[str, Any]) -> None:
    normalization = dictionary.input_normalization.name
    if normalization != "none":
        raise ValueError(f"dictionary_learning does not normalise activations, and this dictionary has {normalization}")
    tensors = dictionary.saved_tensors()
    dict_class = _class_for(dictionary, tensors)
    described = _CLASSES[dict_class]
    _centre(dictionary, described, tensors)
    written: dict[str, Tensor] = {}
    trainer: dict[str, Any] = {
        "dict_class": dict_class,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.d_sae,
    }
    if described.selects:
        k = max(1, round(dictionary.settings()["k"]))
        trainer["k"], written["k"] = k, torch.tensor(k, dtype=torch.int32)
        written["threshold"] = _one_threshold(dictionary, tensors)
    if dict_class.startswith("Matryoshka"):
        widths = (0, *dictionary.settings()["widths"])
        sizes = [b - a for a, b in pairwise(widths)]
        trainer[_GROUPS], written[_GROUPS] = sizes, torch.tensor(sizes)
    for ours, theirs in described.tensors.items():
        written[theirs] = _on_its_own(tensors[ours].T if theirs.endswith(".weight") else tensors[ours])
    hook = metadata.get("hook_name") or metadata.get("hf_hook_name")
    residual = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook or "")
    layer = re.match(r"blocks\.(\d+)\.", hook or "")
    trainer |= {
        "device": "cpu",
        "layer": int(layer[1]) if layer else None,
        "lm_name": metadata.get("model_name"),
        "submodule_name": f"resid_post_layer_{residual[1]}" if residual else hook,
    }
    buffer = {"d_submodule": dictionary.d_in, "io": "out", "ctx_len": metadata.get("context_size")}
    try:
        torch.save(written, folder / WEIGHTS_FILE)
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(f"could not write {folder / WEIGHTS_FILE}: {error}") from error
    (folder / CONFIG_FILE).write_text(json.dumps({"trainer": trainer, "buffer": buffer}, indent=4) + "\n")


_WRITTEN: Mapping[str, str] = {
    "relu": "AutoEncoder",
    "gated": "GatedAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "topk": "AutoEncoderTopK",
    "batch_topk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
}


def _class_for(dictionary: Dictionary, tensors: Mapping[str, Tensor]) -> str:
    """The class that computes the same, also after what its own loader does to it."""
    name = dictionary.architecture
    if name not in _WRITTEN:
        raise ValueError(f"dictionary_learning has no {name} dictionaries; it holds {', '.join(_WRITTEN)}")
    if name == "relu":
        # its loader brings rows of an AutoEncoder to norm 1, which changes activations; those of the other class it leaves
        unit = bool(((row_norms(tensors["W_dec"]) - 1).abs() < 5e-6).all())
        return "AutoEncoder" if unit and dictionary.config.apply_b_dec_to_input else "AutoEncoderNew"
    return _WRITTEN[name]


def _centre(dictionary: Dictionary, described: _Class, tensors: dict[str, Tensor]) -> None:
    """Move ``b_dec`` into the encoder's biases, or out of them, where the class does the other than the dictionary."""
    centred = dictionary.config.apply_b_dec_to_input
    if centred == described.centred:
        return
    shift = shift_of_centring(tensors["b_dec"], tensors["W_enc"]) * (1 if described.centred else -1)
    shifts = {"b_enc": shift}
    if "r_mag" in tensors:  # gated
        shifts = {"b_gate": shift, "b_mag": tensors["r_mag"].double().exp() * shift}
    for name, by in shifts.items():
        tensors[name] = (tensors[name].double() + by).to(tensors[name].dtype)


def _one_threshold(dictionary: Dictionary, tensors: Mapping[str, Tensor]) -> Tensor:
    if "threshold" not in tensors:
        return torch.tensor(-1.0)  # of a TopK: not measured, and not used
    value = float(tensors["threshold"][0])
    if not 0 <= value < math.inf:
        raise ValueError(
            f"this {dictionary.architecture} dictionary has the threshold {value:g}; train it, or measure one with "
            "fit_threshold(batches), before it is written"
        )
    # theirs is of single precision; in half precision it would be another threshold
    dtype = torch.float64 if tensors["threshold"].dtype == torch.float64 else torch.float32
    return torch.tensor(value, dtype=dtype)


def _on_its_own(tensor: Tensor) -> Tensor:
    """Contiguous, and not a part of a larger memory, which would be written whole."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


DICTIONARY_LEARNING = Format(
    name="dictionary_learning",
    title="dictionary_learning",
    layout=f"{CONFIG_FILE} with trainer.dict_class, and {WEIGHTS_FILE} (or checkpoints/ae_STEP.pt, named)",
    recognise=_recognise,
    read=_read,
    reads=", ".join(_CLASSES) + "; also of interrupted runs",
    overrides=_OVERRIDES,
    write=_write,
    writes=", ".join(_WRITTEN),
    checked_against="dictionary-learning 0.1.0",
)
