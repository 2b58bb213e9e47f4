"""EleutherAI's sparsify: a folder per hook point with ``cfg.json`` and ``sae.safetensors``.

    pre = (x - b_dec) @ W_enc + b_enc        x without b_dec where it is a transcoder
    f = the k largest of ReLU(pre), or the largest of each of k groups of neighbours
    y_hat = f @ W_dec + b_dec (+ x @ W_skip.T)

Source: the code of eai-sparsify 1.3.3 (github.com/EleutherAI/sparsify). The decoder is stored with a row per feature, as
ours. Whether the input is centred follows from ``transcode`` alone, and the skip connection reads the input as it is. Our
transcoders never centre: of an autoencoder with a skip connection, the centring goes into the encoder's bias.

d  width of the input and of what is rebuilt, d_sae  features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.dictionaries.saving import write_tensors
from saescope.formats.dictionaries.centring import shift_of_centring
from saescope.formats.foreign import Foreign, row_norms
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, Source

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae.safetensors"

_ACTIVATIONS: Mapping[str, str] = {"topk": "topk", "groupmax": "group_max"}  # theirs -> ours
_TENSORS: Mapping[str, str] = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}

# how it was trained: the rows' norm is a rule of training (the file's rows are used as they are), and so is Multi-TopK
_TRAINING_KEYS = ("normalize_decoder", "multi_topk")

# theirs where a file is silent
_DEFAULT_K, _DEFAULT_EXPANSION = 32, 32

# a module of the model without its head, as sparsify names folders: a layer, what is in one, or an embedding
_HOOK_POINT = (
    r"(?P<module>(?:\w+\.)*(?:layers|layer|h|blocks)\.(?P<layer>\d+)(?P<inside>(?:\.\w+)*)|embed_tokens|embed_in|wte)"
)
_SEED = r"(?:/seed\d+)?"  # where several were trained


def _recognise(source: Source) -> bool:
    return source.has(CONFIG_FILE, WEIGHTS_FILE) and source.only in ("", WEIGHTS_FILE)


def _read(source: Source) -> Foreign:
    config, tensors = source.config(CONFIG_FILE), source.tensors(WEIGHTS_FILE)
    d = _positive(config, "d_in", config.need("d_in", int))
    d_sae, k = _num_latents(config, d), _positive(config, "k", config.get("k", int, _DEFAULT_K))
    rule = config.get("activation", str, "topk")
    if rule not in _ACTIVATIONS:
        raise ValueError(f"{config.where} has activation {rule!r}; sparsify knows {', '.join(_ACTIVATIONS)}")
    if config.get("signed", bool, False):
        raise ValueError(
            f"{config.where} has signed = true: the k activations of the largest size fire there, negative ones too. "
            "Sparsify has given this up and would open the file as another function; it is not opened here"
        )
    if rule == "groupmax" and d_sae % k:
        raise ValueError(f"{config.where}: {d_sae} features can not be cut into k = {k} groups of one size")
    transcode, skip = config.get("transcode", bool, False), config.get("skip_connection", bool, False)
    config.ignore(*_TRAINING_KEYS)
    config.require_all_used()

    found: dict[str, Tensor] = {
        "W_enc": tensors.take("encoder.weight", (d_sae, d)).T,  # [d, d_sae]
        "b_enc": tensors.take("encoder.bias", (d_sae,)),
        "W_dec": tensors.take("W_dec", (d_sae, d)),
        "b_dec": tensors.take("b_dec", (d,)),
    }
    if skip:
        found["W_skip"] = tensors.take("W_skip", (d, d))  # [d_out, d_in]
    tensors.require_all_used()

    kind = "_skip_transcoder" if skip else "_transcoder" if transcode else ""
    foreign = Foreign(format="sparsify", architecture=_ACTIVATIONS[rule] + kind, tensors=found, settings={"k": k})
    if kind:
        foreign.settings["d_out"] = d
    else:
        foreign.settings["apply_b_dec_to_input"] = True
    if rule == "groupmax":
        foreign.said.append(f"the strongest of each of {k} groups of {d_sae // k} neighbours fires")
    else:
        foreign.said.append(f"the {k} strongest features of each token fire")
    if skip and not transcode:
        # left in double precision, so that nothing is lost where the dictionary is opened in it
        shift = shift_of_centring(found["b_dec"], found["W_enc"])
        found["b_enc"] = shift if shift.is_meta else found["b_enc"].double() - shift
        foreign.said.append(
            "an autoencoder with a skip connection, opened as a transcoder from its input to itself: the centring by b_dec "
            "is folded into the encoder's bias"
        )
    elif transcode:
        foreign.said.append("a transcoder: b_dec is not subtracted from the input")
    _tell_hook_point(source, foreign, transcode)
    return foreign


def _positive(config: ConfigSource, key: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{config.where}: {key} should be at least 1, but is {value}")
    return value


def _num_latents(config: ConfigSource, d: int) -> int:
    """``num_latents``, else a multiple of the width; 0 counts as absent."""
    num_latents = config.get("num_latents", int, 0)
    expansion = config.get("expansion_factor", int, _DEFAULT_EXPANSION)
    return _positive(config, "num_latents (or expansion_factor)", num_latents or d * expansion)


def _tell_hook_point(source: Source, foreign: Foreign, transcode: bool) -> None:
    """The module stands in the folder's name alone."""
    found = source.from_name(_HOOK_POINT + _SEED)
    if found is None:
        foreign.said.append("the folder is not named after a module of the model, so the hook point is not known")
        return
    module, metadata = found["module"], foreign.metadata
    metadata["hf_hook_name"] = f"{module}.input" if transcode else module
    if transcode:
        metadata["hf_hook_name_out"] = module
    if found["layer"] and not found["inside"]:
        metadata["hook_name"] = f"blocks.{found['layer']}.hook_resid_{'pre' if transcode else 'post'}"
        if transcode:
            metadata["hook_name_out"] = f"blocks.{found['layer']}.hook_resid_post"
    foreign.said.append(f"hook point {module} (a module of the model without its head) from the name")


_WRITTEN: Mapping[str, tuple[str, bool, bool]] = {  # ours -> activation, transcode, skip_connection
    f"{ours}{kind}": (theirs, bool(kind), "skip" in kind)
    for theirs, ours in _ACTIVATIONS.items()
    for kind in ("", "_transcoder", "_skip_transcoder")
}


def _write(dictionary: Dictionary, folder: Path, metadata: Mapping[str, Any]) -> None:
    name, normalization = dictionary.architecture, dictionary.input_normalization.name
    if name not in _WRITTEN:
        raise ValueError(f"sparsify has no {name} dictionaries; it holds {', '.join(_WRITTEN)}")
    if normalization != "none":
        raise ValueError(f"sparsify does not normalise activations, and this dictionary has {normalization}")
    if dictionary.d_out != dictionary.d_in:
        raise ValueError(
            "sparsify rebuilds activations of the input's width, and this transcoder has "
            f"d_in = {dictionary.d_in} and d_out = {dictionary.d_out}"
        )
    activation, transcode, skip = _WRITTEN[name]
    k = dictionary.settings()["k"]
    if activation == "groupmax" and dictionary.d_sae % k:
        raise ValueError(f"sparsify's groups are of one size, and k = {k} does not divide d_sae = {dictionary.d_sae}")
    tensors = dictionary.saved_tensors()
    if not transcode and not dictionary.config.apply_b_dec_to_input:  # it centres there
        shift = shift_of_centring(tensors["b_dec"], tensors["W_enc"])
        tensors["b_enc"] = (tensors["b_enc"].double() + shift).to(tensors["b_enc"].dtype)
    unit = bool(((row_norms(tensors["W_dec"]) - 1).abs() < 1e-3).all())
    config = {
        "activation": activation,
        "expansion_factor": max(1, dictionary.d_sae // dictionary.d_in),
        "normalize_decoder": unit,
        "num_latents": dictionary.d_sae,
        "k": k,
        "multi_topk": False,
        "skip_connection": skip,
        "transcode": transcode,
        "d_in": dictionary.d_in,
    }
    theirs = {theirs: tensors[ours] for ours, theirs in _TENSORS.items()}
    theirs["encoder.weight"] = tensors["W_enc"].T
    if skip:
        theirs["W_skip"] = tensors["W_skip"]
    write_tensors(theirs, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")


SPARSIFY = Format(
    name="sparsify",
    title="sparsify",
    layout=f"{CONFIG_FILE} and {WEIGHTS_FILE}",
    recognise=_recognise,
    read=_read,
    reads="TopK and GroupMax: autoencoders, transcoders, both with a skip connection",
    write=_write,
    writes="topk and group_max, with their transcoders of one width",
    checked_against="eai-sparsify 1.3.3",
)
