"""Gemma Scope 2: JumpReLU dictionaries of Gemma 3, a ``config.json`` and a ``params.safetensors`` each.

    pre = x @ w_enc + b_enc        f = relu(pre) * (pre > threshold)
    y_hat = f @ w_dec + b_dec (+ x @ affine_skip_connection)

Autoencoders, transcoders with and without the affine connection, and one layer at a time of the cross-layer transcoders
and of the weakly causal crosscoders, which are stored as ``params_layer_{n}.safetensors`` with ``w_dec [d_sae, T,
d_model]``: see ``cross_layer.py``. There T is the number of all layers (the published files), or of those from the file's
own on; both are read, rows of targets before the file's own layer too, as the release's own class has them
(circuit-tracer leaves those out).

Hook points are those of the config, in Hugging Face's names. TransformerLens' name is given beside where it means the same
place; what the transcoders read, the output of the norm before the MLP, has none. Without a config, site, layer and model
come from the place in the repository, ``google/gemma-scope-2-4b-pt/resid_post_all/layer_17_width_16k_l0_big``.

Sources: the release's tutorial class; the loaders of SAELens 6.54.12 and circuit-tracer.

d_in  width of the input, d_out  of what is rebuilt, T  targets, d_sae  features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from saescope.formats.dictionaries import cross_layer
from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, Source, whole_number
from saescope.formats.tensor_files import TensorSource, read_json, tensor_shapes

CONFIG_FILE = "config.json"
_FILE = r"params(_layer_\d+)?\.safetensors"
_TENSORS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}

# Where it lies: the repository, which a cache of the hub spells models--google--..., the site, and the dictionary
_PLACE = (
    r"(?:(?:(?:models--google--)?gemma-scope-2-(?P<size>270m|1b|4b|12b|27b)-(?P<tuning>pt|it)"
    r"(?:@[^/]+)?(?:/snapshots/[^/]+)?/)?"
    r"(?P<site>resid_post|mlp_out|attn_out|transcoder|clt|crosscoder)(?:_all)?/)?"
    r"(?:layer_(?P<layers>\d+(?:_\d+)*)_)?width_(?P<width>\d+[km])_l0_(?P<l0>[a-z0-9]+)(?P<affine>_affine)?"
    r"(?:_seed_\d+)?(?:@[^/]+)?"
)
_WIDTHS = {"16k": 1 << 14, "65k": 1 << 16, "262k": 1 << 18, "524k": 1 << 19, "1m": 1 << 20}
_NUM_LAYERS = {"270m": 18, "1b": 26, "4b": 34, "12b": 48, "27b": 62}

# site -> the hook points of its config, in and out
_MLP_IN, _MLP_OUT = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"
_HOOKS = {
    "resid_post": ("output", "output"),
    "mlp_out": (_MLP_OUT, _MLP_OUT),
    "attn_out": ("self_attn.o_proj.input", "self_attn.o_proj.input"),
    "transcoder": (_MLP_IN, _MLP_OUT),
    "clt": (_MLP_IN, _MLP_OUT),
    "crosscoder": ("output", "output"),
}
# what TransformerLens calls the same place within a block
_LENS = {"output": "hook_resid_post", _MLP_OUT: "hook_mlp_out", "self_attn.o_proj.input": "attn.hook_z"}
_KINDS = ("sae", "transcoder", "clt", "crosscoder")
_MANY = ("clt", "crosscoder")


def _recognise(source: Source) -> bool:
    files = source.tensor_files(r".*\.safetensors" if source.only else _FILE)
    if not files:
        return False
    try:
        if source.has(CONFIG_FILE):
            config = read_json(source.path(CONFIG_FILE))
            return config.get("architecture") == "jump_relu" or "hf_hook_point_in" in config
        return set(tensor_shapes(source.path(files[0]))) >= _TENSORS
    except (OSError, ValueError):
        return False


def _read(source: Source) -> Foreign:
    name = source.the_tensor_file(r".*\.safetensors" if source.only else _FILE, "params.safetensors")
    tensors = source.tensors(name)
    place = source.from_name(_PLACE)
    said_of = {key: value for key, value in place.groupdict().items() if value} if place else {}
    foreign = Foreign(format="gemma_scope_2", architecture="jumprelu", tensors={})
    config = _config(source)
    if config is None:
        words = f"{_words(said_of)} from the name" if said_of else "nothing in the folder's name either"
        foreign.said.append(f"there is no {CONFIG_FILE}; {words}")
    W_dec = tensors.take("w_dec")
    kind = _kind(source, config, said_of, tensors, W_dec)
    layers = _layers(source, name, kind, config, said_of)
    foreign.metadata = _metadata(source, config, said_of, kind, layers)
    parts = _tensors(tensors, W_dec, affine=None if config is None else config.get("affine_connection", bool))
    if parts.pop("wrongly_affine", None):
        foreign.said.append(
            f"{CONFIG_FILE} says that there is no affine connection, but the file holds one; it is used"
        )
    if W_dec.ndim == 3:
        _spread_targets(foreign, source, parts, kind, layers)
    else:
        foreign.tensors = parts
    _choose_architecture(foreign, source, kind)
    _check_width(foreign, config, said_of, many=W_dec.ndim == 3)
    if config is not None:
        config.require_all_used()
    return foreign


def _config(source: Source) -> ConfigSource | None:
    if not source.has(CONFIG_FILE):
        return None
    config = source.config(CONFIG_FILE)
    architecture = config.need("architecture", str)
    if architecture != "jump_relu":
        raise ValueError(f"{config.where} has architecture {architecture!r}; known is jump_relu")
    return config


def _tensors(tensors: TensorSource, W_dec: Tensor, *, affine: bool | None) -> dict[str, Any]:
    """By our names; the affine connection as it multiplies from the left. The decoder may have a target axis still."""
    if W_dec.ndim not in (2, 3):
        raise ValueError(
            f"{tensors.where}: w_dec should have shape [d_sae, d_out] or [d_sae, targets, d_model], but has "
            f"{list(W_dec.shape)}"
        )
    d_sae, width = W_dec.shape[0], W_dec.shape[-1]
    W_enc = tensors.take("w_enc", (None, d_sae))
    threshold = tensors.take("threshold", (d_sae,))
    found: dict[str, Any] = {
        "W_enc": W_enc,
        "W_dec": W_dec,
        "b_enc": tensors.take("b_enc", (d_sae,)),
        "b_dec": tensors.take("b_dec", (width,)),
        "threshold": threshold.clamp(min=0),  # the relu stops what is between a negative threshold and 0
    }
    if "affine_skip_connection" in tensors:
        found["W_skip"] = tensors.take("affine_skip_connection", (W_enc.shape[0], width)).T
        found["wrongly_affine"] = affine is False
    elif affine:
        raise ValueError(f"{tensors.where} has no affine_skip_connection, though {CONFIG_FILE} says that there is one")
    tensors.require_all_used()
    return found


def _kind(
    source: Source, config: ConfigSource | None, said_of: Mapping[str, str], tensors: TensorSource, W_dec: Tensor
) -> str:
    """What is rebuilt, which the formula does not show: by what the user, the config, or the name says."""
    kind = source.override("kind")
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"kind should be one of {', '.join(_KINDS)}, got {kind!r}")
    if kind is None and config is not None:
        kind = config.get("type", str)
        if kind is None and config.get("hf_hook_point_out", str) not in (None, config.get("hf_hook_point_in", str)):
            kind = "transcoder"
        if kind is not None and kind not in _KINDS:
            raise ValueError(f"{config.where} has type {kind!r}; known are {', '.join(_KINDS)}")
    elif config is not None:
        config.ignore("type")
    if kind is None and "site" in said_of:
        kind = said_of["site"] if said_of["site"] in _KINDS else "sae"
    if kind is None and W_dec.ndim == 3:
        raise ValueError(
            f"{source.label}: w_dec has a target for each of {W_dec.shape[1]} layers, but nothing says which these are; say "
            "kind=clt or kind=crosscoder"
        )
    if kind is None:
        kind = "transcoder" if "affine_skip_connection" in tensors or _differ(tensors, W_dec) else "sae"
    if (kind in _MANY) != (W_dec.ndim == 3):
        raise ValueError(f"{source.label} is said to be a {kind}, but w_dec has shape {list(W_dec.shape)}")
    return str(kind)


def _differ(tensors: TensorSource, W_dec: Tensor) -> bool:
    return bool(tensors.take("w_enc", (None, None)).shape[0] != W_dec.shape[-1])


def _layers(
    source: Source, name: str, kind: str, config: ConfigSource | None, said_of: Mapping[str, str]
) -> tuple[int, ...]:
    """Layers that are read: one for the most part, all of a crosscoder's; nothing where nothing says it."""
    said = source.override("layer")
    hook = config.get("hf_hook_point_in", str) if config is not None else None
    if kind == "crosscoder":
        several = re.fullmatch(r"model\.layers\.\{(\d+(?:,\d+)*)\}\..*", hook or "")
        if several:
            return tuple(map(int, several[1].split(",")))
        return tuple(map(int, said_of["layers"].split("_"))) if "layers" in said_of else ()
    if said is not None:
        return (whole_number(said, "layer"),)
    numbered = re.fullmatch(r"(?:.*/)?params_layer_(\d+)\.safetensors", name)
    if numbered:
        return (int(numbered[1]),)
    single = re.fullmatch(r"model\.layers\.(\d+)\..*", hook or "")
    if single:
        return (int(single[1]),)
    return (int(said_of["layers"]),) if said_of.get("layers", "").isdecimal() else ()


def _metadata(
    source: Source, config: ConfigSource | None, said_of: Mapping[str, str], kind: str, layers: tuple[int, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {"context_size": 1024, "prepend_bos": True}
    model = config.get("model_name", str) if config is not None else None
    if model is None and "size" in said_of:
        model = f"google/gemma-3-{said_of['size']}-{said_of['tuning']}"
    if model is not None:
        found["model_name"] = _hub_name(model)
    l0 = config.get("l0", float) if config is not None else None
    if l0 is not None:
        found["l0"] = l0
    elif "l0" in said_of:
        found["l0_level"] = said_of["l0"]
    for key, hook in zip(("hook_name", "hook_name_out"), _hf_hooks(config, said_of, kind, layers), strict=True):
        if hook is not None:
            found[f"hf_{key}"] = hook
            if kind not in _MANY:
                found[key] = _lens_name(hook)
    for key in ("model_name", "hook_name", "hook_name_out"):
        if source.override(key):
            found[key] = str(source.override(key))
    return found


def _hf_hooks(
    config: ConfigSource | None, said_of: Mapping[str, str], kind: str, layers: tuple[int, ...]
) -> tuple[str | None, str | None]:
    """Hugging Face's names of what is read and, of a transcoder, written: from the config, else from site and layer."""
    hooks: list[str | None] = [None, None]
    site = said_of.get("site", None if kind == "sae" else kind)
    layer = "{all}" if kind in _MANY else next(map(str, layers), None)
    if site is not None and layer is not None:
        hooks = [f"model.layers.{layer}.{place}" for place in _HOOKS[site]]
    if config is not None:
        hooks = [
            config.get(key, str, hook)
            for key, hook in zip(("hf_hook_point_in", "hf_hook_point_out"), hooks, strict=True)
        ]
    return hooks[0], None if kind == "sae" else hooks[1]


def _hub_name(model: str) -> str:
    """As on the hub: the configs leave out the owner, or write gemma-v3, and Gemma 3 270m has no -pt there."""
    model = re.sub(r"^(?!google/)", "google/", model).replace("gemma-v3", "gemma-3")
    return re.sub(r"(gemma-3-270m)-pt$", r"\1", model)


def _lens_name(hook: str) -> str:
    """TransformerLens' name of the same place; where there is none, Hugging Face's."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", hook)
    return f"blocks.{found[1]}.{_LENS[found[2]]}" if found and found[2] in _LENS else hook


def _spread_targets(
    foreign: Foreign,
    source: Source,
    parts: dict[str, Any],
    kind: str,
    layers: tuple[int, ...],
) -> None:
    """One layer of several as a transcoder that writes all targets side by side."""
    num_targets, width = parts["W_dec"].shape[1:]
    own, targets = _targets(source, kind, layers, num_targets, foreign.metadata.get("model_name", ""))
    layer = targets[own]
    foreign.tensors = {
        **{key: parts[key] for key in ("W_enc", "b_enc", "threshold")},
        **cross_layer.side_by_side(parts["W_dec"], parts["b_dec"], parts.get("W_skip"), own=own),
    }
    foreign.said.append(cross_layer.words(layer, targets, width))
    for key in ("hook_name", "hook_name_out"):
        written = foreign.metadata.pop(f"hf_{key}", None)
        if written is None:
            continue
        each = [re.sub(r"\{[\d,]+\}|\{all\}", str(at), written) for at in ([layer] if key == "hook_name" else targets)]
        foreign.metadata[f"hf_{key}"] = ", ".join(each)
        if not source.override(key):
            foreign.metadata[key] = ", ".join(map(_lens_name, each))
    foreign.metadata["target_layers"] = list(targets)


def _targets(
    source: Source, kind: str, layers: tuple[int, ...], num_targets: int, model: str
) -> tuple[int, tuple[int, ...]]:
    """Which target is the file's own, and the layers of all."""
    if kind == "crosscoder":
        numbered = re.fullmatch(r"(?:.*/)?params_layer_(\d+)\.safetensors", _chosen(source))
        said = source.override("layer")
        if len(layers) != num_targets:
            raise ValueError(
                f"{source.label}: w_dec has {num_targets} targets, but "
                + (f"the layers are {', '.join(map(str, layers))}" if layers else "nothing says which layers these are")
            )
        if said is not None:
            if whole_number(said, "layer") not in layers:
                raise ValueError(f"layer {said} is none of the crosscoder's, which are {', '.join(map(str, layers))}")
            return layers.index(whole_number(said, "layer")), layers
        if numbered is None or int(numbered[1]) >= num_targets:
            raise ValueError(f"{source.label}: the file's name does not say which layer it reads; say it: layer=7")
        return int(numbered[1]), layers
    if not layers:
        raise ValueError(f"{source.label}: the file's name does not say which layer it reads; say it: layer=7")
    layer = layers[0]
    if layer == 0:
        return 0, tuple(range(num_targets))
    total = _num_layers(source, model)
    if total is None:
        raise ValueError(
            f"{source.label}: w_dec has {num_targets} targets, but nothing says whether these are all layers or those from "
            "the file's own on; say how many layers the model has: num_layers=26"
        )
    if num_targets == total and layer < total:
        return layer, tuple(range(total))
    if num_targets == total - layer:
        return 0, tuple(range(layer, total))
    raise ValueError(
        f"{source.label}: w_dec of layer {layer} has {num_targets} targets; a model of {total} layers would have {total}, "
        f"or {total - layer} from that layer on"
    )


def _chosen(source: Source) -> str:
    return source.the_tensor_file(r".*\.safetensors" if source.only else _FILE, "params.safetensors")


def _num_layers(source: Source, model: str) -> int | None:
    said = source.override("num_layers")
    if said is not None:
        return whole_number(said, "num_layers")
    size = re.fullmatch(r"google/gemma-3-(270m|1b|4b|12b|27b)(?:-pt|-it)?", model)
    if size:
        return _NUM_LAYERS[size[1]]
    beside = [name for name in source.names if re.fullmatch(r"params_layer_\d+\.safetensors", name)]
    whole = set(beside) == {f"params_layer_{layer}.safetensors" for layer in range(len(beside))}
    return len(beside) if whole and len(beside) > 1 else None


def _choose_architecture(foreign: Foreign, source: Source, kind: str) -> None:
    if kind == "sae":
        if "W_skip" in foreign.tensors:
            raise ValueError(f"{source.label} is an autoencoder with an affine connection, which does not exist")
        if foreign.d_in != foreign.d_out:
            raise ValueError(
                f"{source.label} reads {foreign.d_in} numbers and writes {foreign.d_out}, which no autoencoder does; if it "
                "is a transcoder, say kind=transcoder"
            )
        foreign.settings["apply_b_dec_to_input"] = False
        return
    foreign.architecture = "jumprelu_skip_transcoder" if "W_skip" in foreign.tensors else "jumprelu_transcoder"
    foreign.settings["d_out"] = foreign.d_out


def _check_width(foreign: Foreign, config: ConfigSource | None, said_of: Mapping[str, str], *, many: bool) -> None:
    """Of one layer of several the width is that of all together, rounded: nothing to compare."""
    written = config.get("width", int) if config is not None else None
    if many:
        return
    named = _WIDTHS.get(said_of.get("width", ""))
    for width, where in ((written, CONFIG_FILE), (named, "the name")):
        if width is not None and width != foreign.d_sae:
            foreign.said.append(
                f"{where} says {width:,} features, but the file has {foreign.d_sae:,}; check that it is the file that it "
                "should be"
            )


def _words(said_of: Mapping[str, str]) -> str:
    model = f"Gemma 3 {said_of['size']} {said_of['tuning']}, " if "size" in said_of else ""
    site = f"{said_of['site']}, " if "site" in said_of else ""
    layer = f"layer {said_of['layers'].replace('_', ', ')}, " if "layers" in said_of else ""
    return f"{model}{site}{layer}width {said_of['width']} and L0 {said_of['l0']}"


GEMMA_SCOPE_2 = Format(
    name="gemma_scope_2",
    title="Gemma Scope 2",
    layout=f"{CONFIG_FILE} with architecture jump_relu, and params.safetensors or params_layer_{{n}}.safetensors",
    recognise=_recognise,
    read=_read,
    reads="JumpReLU autoencoders and transcoders; cross-layer transcoders and crosscoders one layer at a time",
    overrides={
        "kind": "sae, transcoder, clt or crosscoder, where neither config.json nor the name says",
        "layer": "the layer that is read, where neither says",
        "num_layers": "how many layers the model of a cross-layer transcoder has, where its name is not known",
        "model_name": "the model",
        "hook_name": "the hook point that is read",
        "hook_name_out": "the hook point that is written",
    },
    checked_against="an independent writer of the published formulas",
)
