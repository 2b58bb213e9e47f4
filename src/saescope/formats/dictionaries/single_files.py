"""Dictionaries that were published as one ``.pt`` file: of qresearch, of Goodfire, and Kissane's and Krzyzanowski's.

The first two are plain ReLU dictionaries that do not centre their input, and differ in the names of their tensors; the
third centres it, and has its configuration beside it::

    deepseek_r1, goodfire    f = ReLU(x @ W_enc + b_enc)              x_hat = f @ W_dec + b_dec
    connor_rob               f = ReLU((x - b_dec) @ W_enc + b_enc)    x_hat = f @ W_dec + b_dec

Sources: the readers of SAELens 6.54.12 for these three releases, and the configuration that it quotes.

d_in  width of the input, d_sae  features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import Source
from saescope.formats.tensor_files import read_json, read_tensors

_PICKLES = r"[^/]+\.(?:pt|pth)"
_DICTIONARY_LEARNING = r"ae(?:_\d+)?\.pt"  # a class of that library has the same tensors; its own reader decides

# files of formats that have more than one: SAELens, sparsify, Llamascopium, Llama Scope, Gemma Scope, temporal
_OF_OTHERS = (
    "cfg.json", "sae_weights.safetensors", "hyperparams.json", "params.safetensors", "params.npz", "latest_ckpt.safetensors",
    "ae.pt",
)  # fmt: skip

_DEEPSEEK_R1 = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
_GOODFIRE = {"encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"}

# what the name of a published file says: MODEL-SAE-lLAYER.pt
_NAME = r"(?P<model>.+)-SAE-l(?P<layer>\d+)\.(?:pt|pth)"
_ANY_NAME = r"(?P<model>.*)[-_.]l(?P<layer>\d+)\.(?:pt|pth)"
_MODELS: Mapping[str, Mapping[str, Any]] = {
    "DeepSeek-R1-Distill-Llama-8B": {
        "model_name": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "dataset_path": "lmsys/lmsys-chat-1m",
        "context_size": 1024,
        "prepend_bos": True,
    },
    "Llama-3.3-70B-Instruct": {
        "model_name": "meta-llama/Llama-3.3-70B-Instruct",
        "dataset_path": "lmsys/lmsys-chat-1m",
    },
    "Llama-3.1-8B-Instruct": {
        "model_name": "meta-llama/Llama-3.1-8B-Instruct",
        "dataset_path": "lmsys/lmsys-chat-1m",
    },
}
_OVERRIDES = {"layer": "the model's layer after which activations were taken, where the file's name does not say it"}


def entries(source: Source, pattern: str) -> Mapping[str, Any]:
    """What the one file that matches holds, tensors without memory; nothing where it is none, several or damaged.

    For telling formats apart. As a file might have to be fetched to look into it, a folder of many is not opened one by one,
    and one with the names of another format not at all.
    """
    found = source.tensor_files(pattern)
    if len(found) != 1 or (not source.only and any(name in source.names for name in _OF_OTHERS)):
        return {}
    try:
        return read_tensors(source.path(found[0]), shapes_only=True)
    except (OSError, ValueError):
        return {}


# A file of two linear layers


def _recognise_linear(names: set[str]) -> Any:
    def recognise(source: Source) -> bool:
        found = source.tensor_files(_PICKLES)
        if any(re.fullmatch(_DICTIONARY_LEARNING, name) for name in found):
            return False
        return set(entries(source, _PICKLES)) == names

    return recognise


def _read_linear(format_name: str, encoder: str, decoder: str) -> Any:
    def read(source: Source) -> Foreign:
        name = source.the_tensor_file(_PICKLES, "file of tensors (.pt, .pth)")
        tensors = source.tensors(name)
        rows = tensors.take(f"{encoder}.weight", (None, None))  # [d_sae, d_in]
        d_sae, d_in = rows.shape
        foreign = Foreign(
            format=format_name,
            architecture="relu",
            settings={"apply_b_dec_to_input": False},
            tensors={
                "W_enc": rows.T,
                "W_dec": tensors.take(f"{decoder}.weight", (d_in, d_sae)).T,
                "b_enc": tensors.take(f"{encoder}.bias", (d_sae,)),
                "b_dec": tensors.take(f"{decoder}.bias", (d_in,)),
            },
        )
        tensors.require_all_used()
        _place_from_name(source, name, foreign)
        return foreign

    return read


def _place_from_name(source: Source, name: str, foreign: Foreign) -> None:
    """Model and layer, of which the file holds nothing."""
    found = re.fullmatch(_NAME, name) or re.fullmatch(_ANY_NAME, name)
    layer = source.whole("layer", int(found["layer"]) if found else None, least=0)
    if found:
        foreign.metadata |= _MODELS.get(found["model"], {})
    if layer is None:
        foreign.said.append("the file says nothing of model and layer (layer=...)")
        return
    foreign.metadata |= {"hook_name": f"blocks.{layer}.hook_resid_post", "hf_hook_name": f"model.layers.{layer}.output"}
    foreign.said.append(f"layer {layer} from {'the name' if 'layer' not in source.overrides else 'what was said'}")


DEEPSEEK_R1 = Format(
    name="deepseek_r1",
    title="qresearch's SAE of DeepSeek R1",
    layout="one .pt with encoder.weight, encoder.bias, decoder.weight, decoder.bias and nothing else",
    recognise=_recognise_linear(_DEEPSEEK_R1),
    read=_read_linear("deepseek_r1", "encoder", "decoder"),
    reads="ReLU without centring",
    overrides=_OVERRIDES,
    checked_against="an independent writer of the published formulas",
)

GOODFIRE = Format(
    name="goodfire",
    title="Goodfire's SAEs of Llama 3",
    layout="one .pt or .pth with encoder_linear.* and decoder_linear.*",
    recognise=_recognise_linear(_GOODFIRE),
    read=_read_linear("goodfire", "encoder_linear", "decoder_linear"),
    reads="ReLU without centring",
    overrides=_OVERRIDES,
    checked_against="an independent writer of the published formulas",
)


# Kissane's and Krzyzanowski's attention dictionaries: NAME.pt and NAME_cfg.json

_CONFIG = "_cfg.json"
# how it was trained; none of these changes what the weights compute
_TRAINING_KEYS = (
    "seed", "batch_size", "buffer_mult", "lr", "num_tokens", "l1_coeff", "beta1", "beta2", "dict_mult", "enc_dtype", "site",
    "layer", "device", "reinit", "resample_scheme", "anthropic_neuron_resample_scale", "dead_direction_cutoff",
    "re_init_every", "anthropic_resample_last", "resample_factor", "num_resamples", "wandb_project_name", "wandb_entity",
    "save_state_dict_every", "b_dec_init", "sched_.*", "anthropic_resample_batches", "eval_every", "model_batch_size",
    "buffer_size", "buffer_batches", "name", "contiguous", "per_head", "test",
)  # fmt: skip


def _configured(source: Source) -> list[str]:
    """Files of tensors with a configuration of their own beside them."""
    return [name for name in source.tensor_files(r"[^/]+\.pt") if source.has(_config_name(name))]


def _config_name(name: str) -> str:
    return name.removesuffix(".pt") + _CONFIG


def _recognise_connor_rob(source: Source) -> bool:
    found = _configured(source)
    if not found:
        return False
    try:
        config = read_json(source.path(_config_name(found[0])))
    except (OSError, ValueError):
        return False
    return {"act_name", "act_size", "dict_size"} <= set(config)


def _read_connor_rob(source: Source) -> Foreign:
    names = "|".join(map(re.escape, _configured(source)))
    name = source.the_tensor_file(names, f"file of tensors with its configuration ({_CONFIG}) beside it")
    config, tensors = source.config(_config_name(name)), source.tensors(name)
    d_in, d_sae = config.need("act_size", int), config.need("dict_size", int)
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)
    }  # fmt: skip
    taken: dict[str, Tensor] = {key: tensors.take(key, shape) for key, shape in shapes.items()}
    hook = config.need("act_name", str)
    foreign = Foreign(
        format="connor_rob",
        architecture="relu",
        settings={"apply_b_dec_to_input": True},
        tensors=taken,
        metadata={"hook_name": hook, "model_name": config.get("model_name", str, "gpt2-small")},
    )
    foreign.metadata |= {"dataset_path": "Skylion007/openwebtext", "prepend_bos": True}
    foreign.metadata["context_size"] = config.get("seq_len", int, 128)
    head = config.get("head", (int, str))
    if config.get("concat_heads", bool, True):
        foreign.said.append(f"{hook} is read with the heads side by side")
    else:
        foreign.metadata["hook_head_index"] = head
        foreign.said.append(f"{hook} of head {head} alone")
    config.ignore(*_TRAINING_KEYS)
    config.require_all_used()
    tensors.require_all_used()
    return foreign


CONNOR_ROB = Format(
    name="connor_rob",
    title="attention SAEs of GPT-2 small (Kissane, Krzyzanowski)",
    layout=f"NAME.pt with NAME{_CONFIG} beside it",
    recognise=_recognise_connor_rob,
    read=_read_connor_rob,
    reads="ReLU",
    checked_against="an independent writer of the published formulas",
)
