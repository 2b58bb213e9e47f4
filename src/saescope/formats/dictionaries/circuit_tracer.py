"""circuit-tracer: sets of transcoders, one ``layer_{i}.safetensors`` each, and cross-layer transcoders, one layer at a time.

    f = act(x @ W_enc.T + b_enc)        y_hat = f @ W_dec + b_dec (+ x @ W_skip.T)        W_enc, W_dec  [d_sae, d_model]

``config.yaml`` beside names the model, the hook points (``feature_input_hook``, within a block), and the activation: ReLU;
JumpReLU where a file has ``activation_function.threshold``, which is ``pre where pre > threshold``; or the k largest
pre-activations. Three things differ between files and are told apart here:

- The 2025 files of ReLU transcoders have ``W_dec [d_model, d_sae]``. Shapes decide; where d_sae = d_model they can not,
  and the user has to.
- The skip connection of a transcoder is ``x @ W_skip.T``, that of a cross-layer transcoder ``x @ W_skip_i``; both are
  square. So they are in circuit-tracer's code (``SingleLayerTranscoder.compute_skip``, ``CrossLayerTranscoder``).
- A cross-layer transcoder has ``W_enc_{i}.safetensors`` (with b_enc_{i}, b_dec_{i}, threshold_{i} where there is one) and
  ``W_dec_{i}.safetensors``, ``[d_sae, L - i, d_model]``, targets i to L - 1: see ``cross_layer.py``.

circuit-tracer's TopK keeps the k largest even where they are negative. A dictionary here does not; the two are the same
wherever k pre-activations are positive, which is said. Its attribution sets features to 0 at the first token; its
transcoders do not.

Sources: github.com/safety-research/circuit-tracer (2025 and 2026), the loaders of SAELens 6.54.12.

d_model  width of input and output, L  layers of the model, d_sae  features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from saescope.formats.dictionaries import cross_layer
from saescope.formats.dictionaries.gemma_scope import BEFORE_GAIN
from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, Source, whole_number
from saescope.formats.tensor_files import TensorSource, read_yaml, tensor_shapes

CONFIG_FILE = "config.yaml"
_TRAINING = ("wandb-config.yaml", "wanb-config.yaml")  # of training; both spellings are published
_LAYER = r"layer_(\d+)\.safetensors"
_ENCODER, _DECODER = "W_enc_{}.safetensors", "W_dec_{}.safetensors"
_ACROSS = r"W_(?:enc|dec)_(\d+)\.safetensors"
_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}
_IGNORED = ("scan", "scan_name", "repo_id", "revision", "subfolder", "dtype", "model_kind")
_MODEL_KINDS = ("transcoder_set", "cross_layer_transcoder")

_RELU, _JUMP, _TOPK = ("relu",), ("jump_relu", "jumprelu"), ("topk",)
# The sets of Qwen3 14B have no config: the repository, which a cache of the hub spells models--mwhanna--...
_PLACE = r"(?:models--mwhanna--)?qwen3-(?P<size>\d+(?:\.\d+)?)b-transcoders(?:-lowl0)?(?:@[^/]+)?(?:/snapshots/[^/]+)?"

# the input and the output of the MLP itself, by the model's family, for which there is no alias
_PLAIN = {"mlp.hook_in": "post_attention_layernorm.output", "mlp.hook_out": "mlp.output"}
_MODULES = {
    r"(?:meta-llama/)?Llama-3.*|(?:Qwen/)?Qwen3-.*": _PLAIN,
    r"(?:google/)?gemma-[23]-.*": {"mlp.hook_in": "pre_feedforward_layernorm.output"},
}


def _recognise(source: Source) -> bool:
    if not source.tensor_files(_LAYER) and not source.tensor_files(_ACROSS):
        return _lists_transcoders(source) and (not source.only or source.only.endswith(".safetensors"))
    if source.tensor_files(_ACROSS) or source.has(CONFIG_FILE) or any(map(source.has, _TRAINING)):
        return True
    try:
        return set(tensor_shapes(source.path(source.tensor_files(_LAYER)[0]))) >= _TENSORS
    except (OSError, ValueError):
        return False


def _lists_transcoders(source: Source) -> bool:
    """Whether the config is circuit-tracer's, though files have other names or lie elsewhere."""
    try:
        return source.has(CONFIG_FILE) and {"transcoders", "feature_input_hook"} <= set(
            read_yaml(source.path(CONFIG_FILE))
        )
    except (OSError, ValueError):
        return False


def _read(source: Source) -> Foreign:
    config = source.config(CONFIG_FILE) if source.has(CONFIG_FILE) else None
    across = source.tensor_files(_ACROSS)
    kind = None if config is None else config.get("model_kind", str)
    if kind is not None and kind not in _MODEL_KINDS:
        raise ValueError(
            f"{config.where if config else ''}: model_kind is {kind!r}; known are {', '.join(_MODEL_KINDS)}"
        )
    if across and kind == "transcoder_set":
        raise ValueError(f"{source.label} holds {across[0]}, but {CONFIG_FILE} says that it is a set of transcoders")
    foreign = _read_across(source, across) if across else _read_one(source, config)
    _choose_activation(foreign, source, config, across=bool(across))
    _name_hooks(foreign, source, config)
    if not across:
        del foreign.metadata["target_layers"]
    if config is not None:
        config.get("transcoders")
        config.ignore(*_IGNORED)
        config.require_all_used()
    return foreign


# Which file


def _layer_files(source: Source, config: ConfigSource | None) -> dict[str, int]:
    """Files of the set that lie here, and their layers: by their names, or by the config's list."""
    found = {name: int(re.fullmatch(_LAYER, name)[1]) for name in source.tensor_files(_LAYER)}  # type: ignore[index]
    listed = [] if config is None else config.get("transcoders", list, [])
    for position, entry in enumerate(listed):
        path = entry.get("filepath") if isinstance(entry, dict) else entry  # the lists of 2025 have an object each
        layer = entry.get("layer", position) if isinstance(entry, dict) else position
        if not isinstance(path, str) or not isinstance(layer, int) or isinstance(layer, bool):
            raise ValueError(f"{CONFIG_FILE} of {source.label} lists {entry!r}, which names no file of a layer")
        if path in source.tensor_files(r".*\.safetensors"):  # a path that leads elsewhere is none of these
            found.setdefault(path, layer)
    return found


def _the_file(source: Source, config: ConfigSource | None) -> tuple[str, int]:
    files = _layer_files(source, config)
    wanted = source.override("layer")
    if wanted is not None:
        chosen = {name: layer for name, layer in files.items() if layer == whole_number(wanted, "layer")}
        if len(chosen) != 1:
            held = ", ".join(files) or "none"
            raise ValueError(f"{source.label} should hold one transcoder of layer {wanted}; it has {held}")
        return next(iter(chosen.items()))
    if not files and source.only:
        raise ValueError(
            f"the name {source.only} does not say which layer it is, and no config.yaml lists it; layer_3.safetensors would"
        )
    if not files and _lists_transcoders(source):
        raise ValueError(
            f"{CONFIG_FILE} of {source.label} lists files that lie elsewhere, which are not followed from here; open the "
            "one that you want where it is"
        )
    pattern = "|".join(map(re.escape, files)) or _LAYER
    name = source.the_tensor_file(pattern, "transcoder layer_{i}.safetensors")
    return name, files[name]


# A transcoder of one layer


def _read_one(source: Source, config: ConfigSource | None) -> Foreign:
    name, layer = _the_file(source, config)
    tensors = source.tensors(name)
    b_enc, b_dec = tensors.take("b_enc", (None,)), tensors.take("b_dec", (None,))
    d_sae, d_model = len(b_enc), len(b_dec)
    found = {
        "W_enc": tensors.take("W_enc", (d_sae, None)).T,
        "W_dec": _decoder(source, tensors, d_sae, d_model),
        "b_enc": b_enc,
        "b_dec": b_dec,
    }
    if "activation_function.threshold" in tensors:
        found["threshold"] = tensors.take("activation_function.threshold", (d_sae,))
    if "W_skip" in tensors:
        found["W_skip"] = tensors.take("W_skip", (d_model, found["W_enc"].shape[0]))
    foreign = Foreign(format="circuit_tracer", architecture="transcoder", tensors=found)
    if "k" in tensors:
        foreign.settings["k"] = tensors.take_value("k")  # None where headers alone are read
    tensors.require_all_used()
    foreign.metadata["target_layers"] = [layer]
    return foreign


def _decoder(source: Source, tensors: TensorSource, d_sae: int, d_model: int) -> Tensor:
    """W_dec [d_sae, d_model], which the files of 2025 hold transposed."""
    said = source.override("decoder")
    if said not in (None, "rows", "columns"):
        raise ValueError(f"decoder should be rows or columns (of W_dec, which are what features write), got {said!r}")
    W_dec = tensors.take("W_dec", (None, None))
    if d_sae == d_model and said is None:
        raise ValueError(
            f"{tensors.where} has as many features as its output is wide, {d_sae}, so that the shape of W_dec does not say "
            "whether a feature writes a row or, as in the files of 2025, a column: say decoder=rows or decoder=columns"
        )
    rows = said == "rows" if said else tuple(W_dec.shape) == (d_sae, d_model)
    return tensors.take("W_dec", (d_sae, d_model)) if rows else tensors.take("W_dec", (d_model, d_sae)).T


# A layer of a cross-layer transcoder


def _read_across(source: Source, across: list[str]) -> Foreign:
    layers = sorted({int(re.fullmatch(_ACROSS, name)[1]) for name in across})  # type: ignore[index]
    wanted = source.override("layer")
    if wanted is None and len(layers) > 1:
        raise ValueError(
            f"{source.label} holds a cross-layer transcoder of layers {', '.join(map(str, layers))}, which are opened "
            f"one at a time: name {_ENCODER.format(layers[0])}, or say layer={layers[0]}"
        )
    layer = layers[0] if wanted is None else whole_number(wanted, "layer")
    encoder, decoder = _ENCODER.format(layer), _DECODER.format(layer)
    for name in (encoder, decoder):
        if not source.has(name):
            raise FileNotFoundError(
                f"{source.label} has no {name}, which layer {layer} of a cross-layer transcoder needs"
            )
    tensors, decoders = source.tensors(encoder), source.tensors(decoder)
    W_enc = tensors.take(f"W_enc_{layer}", (None, None))
    d_sae, d_model = W_enc.shape
    W_dec = decoders.take(f"W_dec_{layer}", (d_sae, None, d_model))
    b_dec = tensors.take(f"b_dec_{layer}", (d_model,))
    W_skip = tensors.take(f"W_skip_{layer}", (d_model, d_model)).T if f"W_skip_{layer}" in tensors else None
    found = {"W_enc": W_enc.T, "b_enc": tensors.take(f"b_enc_{layer}", (d_sae,))}
    if f"threshold_{layer}" in tensors:
        found["threshold"] = tensors.take(f"threshold_{layer}", (d_sae,))
    targets = _targets(source, layer, W_dec.shape[1])
    found |= cross_layer.side_by_side(W_dec, b_dec, W_skip, own=0)
    tensors.require_all_used()
    decoders.require_all_used()
    foreign = Foreign(format="circuit_tracer", architecture="transcoder", tensors=found)
    foreign.metadata["target_layers"] = targets
    foreign.said.append(cross_layer.words(layer, targets, d_model))
    return foreign


def _targets(source: Source, layer: int, number: int) -> list[int]:
    """From this layer to the last; the files beside say which that is."""
    if number < 1:
        raise ValueError(f"{source.label}: {_DECODER.format(layer)} has no targets")
    beside = [int(found[1]) for name in source.names if (found := re.fullmatch(r"W_enc_(\d+)\.safetensors", name))]
    last, complete = max(beside, default=layer), len(beside) == max(beside, default=0) + 1 > 1
    if layer + number - 1 < last or (complete and layer + number - 1 != last):
        raise ValueError(
            f"{source.label}: {_DECODER.format(layer)} has {number} targets, but from layer {layer} to the last, {last}, "
            f"there are {last - layer + 1}"
        )
    return list(range(layer, layer + number))


# What both have


def _choose_activation(foreign: Foreign, source: Source, config: ConfigSource | None, *, across: bool) -> None:
    written = source.override("activation") or (None if config is None else config.get("activation", str))
    in_config = None if config is None else config.get("k", int)
    if config is not None:
        config.get("activation")  # the user may say another
    threshold = foreign.tensors.get("threshold")
    in_tensors = "k" in foreign.settings
    written = written or (_TOPK[0] if in_tensors and threshold is None else None)
    known = (*_RELU, *_JUMP, *_TOPK)
    if written is not None and written not in known:
        raise ValueError(f"{source.label}: the activation is {written!r}; known are {', '.join(known)}")
    if (written in _JUMP and threshold is None) or (written not in (None, *_JUMP) and threshold is not None):
        has = "has no" if threshold is None else "has a"
        raise ValueError(f"{source.label}: the activation is said to be {written}, but the file {has} threshold")
    if in_tensors and written not in _TOPK:
        raise ValueError(f"{source.label}: the activation is said to be {written or _JUMP[0]}, but the file has a k")
    base = ""
    if threshold is not None:
        base = "jumprelu"
        if not threshold.is_meta and bool((threshold < 0).any()):
            raise ValueError(
                f"{source.label} has thresholds below 0, where circuit-tracer passes negative activations on; no dictionary "
                "here has these"
            )
    elif written in _TOPK:
        base = "topk"
        if across:
            raise ValueError(
                f"{source.label}: circuit-tracer has no cross-layer transcoders with TopK, and whether k counts per layer "
                "is nowhere said; if the activation is another, say it: activation=relu"
            )
        _choose_k(foreign, source, in_config, in_tensors=in_tensors)
    elif written is None:
        foreign.said.append("no activation is named and there is no threshold: ReLU, as circuit-tracer takes it")
    if base != "topk" and in_config is not None:
        foreign.said.append(f"{CONFIG_FILE} gives k = {in_config}, which plays no part without TopK")
    foreign.architecture = "_".join(filter(None, (base, "skip" if "W_skip" in foreign.tensors else "", "transcoder")))
    foreign.settings["d_out"] = foreign.d_out


def _choose_k(foreign: Foreign, source: Source, in_config: int | None, *, in_tensors: bool) -> None:
    said, stored = source.override("k"), foreign.settings.pop("k", None)
    if said is not None or in_config is not None:
        k, where = (said, "as you say") if said is not None else (in_config, f"from {CONFIG_FILE}")
        foreign.settings["k"] = whole_number(k, "k")
    elif in_tensors:
        where = "from the file"
        foreign.settings["k"] = None if stored is None else whole_number(int(stored), "k")
    else:
        raise ValueError(
            f"{source.label}: the k largest pre-activations fire, but k is nowhere; say it: k=128 (which "
            "circuit-tracer takes for facebook/crv-8b-instruct-transcoders)"
        )
    foreign.said.append(
        f"k = {foreign.settings['k']} {where}; circuit-tracer also keeps negative ones of the k largest, which are 0 here: "
        "the same wherever k pre-activations are positive"
    )


def _name_hooks(foreign: Foreign, source: Source, config: ConfigSource | None) -> None:
    targets = foreign.metadata["target_layers"]
    written = (
        {} if config is None else {key: config.get(key, str) for key in ("feature_input_hook", "feature_output_hook")}
    )
    metadata: dict[str, Any] = {"model_name": None if config is None else config.get("model_name", str)}
    if config is None:
        place = source.from_name(_PLACE)
        foreign.said.append(f"there is no {CONFIG_FILE}" + ("; the model is from the name" if place else ""))
        if place:
            metadata["model_name"] = f"Qwen/Qwen3-{place['size']}B"
            written = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    metadata["model_name"] = source.override("model_name") or metadata["model_name"]
    modules = _modules(str(metadata["model_name"]))
    for key, config_key, layers in (
        ("hook_name", "feature_input_hook", targets[:1]),
        ("hook_name_out", "feature_output_hook", targets),
    ):
        hook = written.get(config_key)
        if source.override(key):
            metadata[key] = str(source.override(key))
        elif hook is not None:
            # within a block as a rule; some converters write the whole name with {layer} in it
            whole = hook if hook.startswith("blocks.") else f"blocks.{{layer}}.{hook}"
            metadata[key] = ", ".join(whole.replace("{layer}", str(layer)) for layer in layers)
            module = modules.get(whole.removeprefix("blocks.{layer}."))
            if module:
                metadata[f"hf_{key}"] = ", ".join(f"model.layers.{layer}.{module}" for layer in layers)
    foreign.metadata |= {key: value for key, value in metadata.items() if value is not None}
    if str(metadata.get("hook_name")).endswith("ln2.hook_normalized"):
        foreign.said.append(BEFORE_GAIN)


def _modules(model: str) -> Mapping[str, str]:
    return next((modules for pattern, modules in _MODULES.items() if re.fullmatch(pattern, model)), {})


CIRCUIT_TRACER = Format(
    name="circuit_tracer",
    title="circuit-tracer",
    layout=(
        f"{CONFIG_FILE} (or wandb-config.yaml) with layer_{{i}}.safetensors, or W_enc_{{i}}.safetensors and "
        "W_dec_{i}.safetensors"
    ),
    recognise=_recognise,
    read=_read,
    reads=(
        "ReLU, JumpReLU and TopK transcoders with and without skip connection; cross-layer transcoders one layer at a time"
    ),
    overrides={
        "layer": "which layer, where there are several",
        "k": "how many features may fire, where config.yaml names TopK without it",
        "activation": "relu, jumprelu or topk, where config.yaml does not say, or says wrongly",
        "decoder": "rows or columns: what features write in W_dec, where shapes do not tell",
        "model_name": "the model, where config.yaml does not say",
        "hook_name": "the hook point that is read, where config.yaml does not say",
        "hook_name_out": "the hook point that is written, where config.yaml does not say",
    },
    checked_against="an independent writer of the published formulas",
)
