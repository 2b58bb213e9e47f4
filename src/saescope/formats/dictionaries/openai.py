"""OpenAI's sparse_autoencoder (GPT-2 small): one ``.pt`` with tensors and, beside them, the name of the activation.

    f = act((norm(x) - pre_bias) @ W_enc + latent_bias)        x_hat = undo(f @ W_dec + pre_bias)

``norm`` is a layer norm without weights, (x - mean) / (std + 1e-5) with the unbiased std, undone by std and mean; it is
there if and only if the activation is TopK. Nothing in the file says so: it is a rule of the library that reads it.

Source: github.com/openai/sparse_autoencoder, model.py (2024); Gao et al. 2024, arXiv 2406.04093.

d_in  width of the input, d_sae  features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.formats.dictionaries.single_files import entries
from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import Source
from saescope.formats.tensor_files import TensorSource

_PICKLES = r"[^/]+\.(?:pt|pth)"
_PUBLISHED = r"(?:autoencoders/)?\d+\.pt"  # a folder of them holds one for every layer
_WEIGHTS_FILE = "autoencoder.pt"

# where a published file lies: LOCATION and VERSION / autoencoders / LAYER.pt
_PLACE = (
    r"(?:^|/)(?:(?P<model>gpt2-small)/)?(?P<location>mlp_post_act|resid_delta_attn|resid_delta_mlp|resid_post_attn|"
    r"resid_post_mlp)(?:_v4|_v5_32k|_v5_128k)?/autoencoders/(?P<layer>\d+)\.pt$"
)
_HOOKS: Mapping[str, str] = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
}

_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def _recognise(source: Source) -> bool:
    held = entries(source, _PICKLES) or entries(source, _PUBLISHED)
    if {"pre_bias", "latent_bias", "encoder.weight"} <= set(held):
        return True
    # a folder with one numbered file per layer and no other: which one is asked when it is read
    numbered = source.tensor_files(_PUBLISHED)
    if len(numbered) < 2 or numbered != source.tensor_files(r".*\.(?:pt|pth|bin|safetensors|npz)"):
        return False
    return "pre_bias" in entries(source, re.escape(numbered[0]))


def _read(source: Source) -> Foreign:
    pattern = _PICKLES if source.tensor_files(_PICKLES) else _PUBLISHED
    name = source.the_tensor_file(pattern, "autoencoder (.pt)")
    tensors = source.tensors(name)
    rows = tensors.take("encoder.weight", (None, None))  # [d_sae, d_in]
    d_sae, d_in = rows.shape
    foreign = Foreign(
        format="openai",
        architecture="relu",
        settings={"apply_b_dec_to_input": True},
        tensors={
            "W_enc": rows.T,
            "W_dec": _decoder(tensors, rows),
            "b_enc": tensors.take("latent_bias", (d_sae,)),
            "b_dec": tensors.take("pre_bias", (d_in,)),
        },
    )
    _take_activation(source, tensors, foreign)
    _place_from_name(source, name, foreign)
    tensors.ignore(*_STATISTICS)
    tensors.require_all_used()
    return foreign


def _decoder(tensors: TensorSource, rows: Tensor) -> Tensor:
    """``[d_sae, d_in]``; a tied decoder is the encoder, which is then there twice or once."""
    d_sae, d_in = rows.shape
    if "decoder.weight" in tensors:
        return tensors.take("decoder.weight", (d_in, d_sae)).T
    if "decoder.linear.weight" not in tensors:
        raise ValueError(
            f"{tensors.where} has neither decoder.weight nor decoder.linear.weight, which stands for a tied decoder"
        )
    again = tensors.take("decoder.linear.weight", (d_sae, d_in))
    if not again.is_meta and not torch.equal(again, rows):
        raise ValueError(f"{tensors.where}: decoder.linear.weight should be the encoder's weight again, but differs")
    return rows


def _take_activation(source: Source, tensors: TensorSource, foreign: Foreign) -> None:
    """ReLU or TopK, and with TopK the layer norm."""
    activation = tensors.take_value("activation", "ReLU")
    state = tensors.take_value("activation_state_dict", {})
    if not isinstance(state, Mapping):
        raise ValueError(f"{tensors.where}: activation_state_dict should hold names and values, not {state!r}")
    if activation == "ReLU":
        if state:
            raise ValueError(
                f"{tensors.where}: a ReLU has no activation_state_dict, but it holds {sorted(map(str, state))}"
            )
        foreign.said.append("ReLU, and no layer norm, as the library that wrote it does")
        return
    if activation != "TopK":
        raise ValueError(
            f"{tensors.where} has activation {activation!r}, which is not opened here; known are 'ReLU' and 'TopK'"
        )
    postact = state.get("postact_fn", "ReLU")
    if postact != "ReLU":
        raise ValueError(
            f"{tensors.where}: after TopK comes {postact!r}; only 'ReLU' can be opened, as without it the k largest "
            "pre-activations pass even where they are negative, which no dictionary here does"
        )
    unknown = sorted(set(map(str, state)) - {"k", "postact_fn"})
    if unknown:
        raise ValueError(f"{tensors.where}: activation_state_dict has {', '.join(unknown)}, which is not known here")
    k = source.whole("k", state.get("k"))
    if k is None:
        raise ValueError(f"{tensors.where} does not say k of its TopK; say it: k=...")
    foreign.architecture, foreign.normalization = "topk", "layer_norm"
    foreign.settings["k"] = k
    foreign.said.append(f"TopK with k = {k}, and so a layer norm, as the library that wrote it does")


def _place_from_name(source: Source, name: str, foreign: Foreign) -> None:
    """Model, layer and place, of which the file holds nothing."""
    found = re.search(_PLACE, f"{source.label}/{name}")
    location = source.override("location", found["location"] if found else None)
    layer = source.whole("layer", int(found["layer"]) if found else None, least=0)
    if location is not None and location not in _HOOKS:
        raise ValueError(f"location should be one of {', '.join(_HOOKS)}, but is {location!r}")
    if found and found["model"]:
        # its README takes activations of a model with folded norms and without centred weights
        foreign.metadata |= {
            "model_name": found["model"],
            "model_from_pretrained_kwargs": {"center_writing_weights": False},
        }
    if location is None or layer is None:
        foreign.said.append("neither file nor name says where activations were taken (location=..., layer=...)")
        return
    foreign.metadata["hook_name"] = f"blocks.{layer}.{_HOOKS[location]}"
    of_name = not {"location", "layer"} & set(source.overrides)
    foreign.said.append(f"{location} of layer {layer} from {'the name' if of_name else 'what was said'}")


def _write(dictionary: Dictionary, folder: Path, metadata: Mapping[str, Any]) -> None:
    wanted = {"relu": "none", "topk": "layer_norm"}
    if dictionary.architecture not in wanted:
        raise ValueError(
            f"OpenAI's format holds relu and topk dictionaries, and this is a {dictionary.architecture} dictionary"
        )
    found = dictionary.input_normalization.name
    if found != wanted[dictionary.architecture]:
        raise ValueError(
            "OpenAI's library puts a layer norm before every TopK and before nothing else: it can not hold a "
            f"{dictionary.architecture} dictionary with input normalisation {found!r}"
        )
    with torch.no_grad():
        W_dec, b_dec = dictionary.W_dec, dictionary.b_dec
        b_enc = torch.zeros_like(W_dec[:, 0]) if dictionary.b_enc is None else dictionary.b_enc.detach()
        if not dictionary.config.apply_b_dec_to_input:  # it always centres: the bias takes that back
            b_enc = (b_enc.double() + b_dec.double() @ dictionary.W_enc.double()).to(b_enc.dtype)
        tensors: dict[str, Any] = {
            "pre_bias": b_dec,
            "latent_bias": b_enc,
            "encoder.weight": dictionary.W_enc.T,  # [d_sae, d_in]
            "decoder.weight": W_dec.T,  # [d_in, d_sae]
            # the library wants them; as it makes them, before anything was counted
            "stats_last_nonzero": torch.zeros(dictionary.d_sae, dtype=torch.int64),
            "latents_activation_frequency": torch.ones(dictionary.d_sae),
            "latents_mean_square": torch.zeros(dictionary.d_sae),
        }
        state: dict[str, Any] = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if dictionary.architecture == "topk":
        state["activation"] = "TopK"
        state["activation_state_dict"] = {"k": dictionary.settings()["k"], "postact_fn": "ReLU"}
    else:
        state["activation"], state["activation_state_dict"] = "ReLU", {}
    torch.save(state, folder / _WEIGHTS_FILE)


OPENAI = Format(
    name="openai",
    title="OpenAI sparse_autoencoder",
    layout="one .pt with pre_bias, latent_bias and encoder.weight",
    recognise=_recognise,
    read=_read,
    reads="ReLU, and TopK with layer norm; tied and untied",
    overrides={
        "k": "features per token, where a TopK file does not say it",
        "location": f"where activations were taken: {', '.join(_HOOKS)}",
        "layer": "the layer of it",
    },
    write=_write,
    writes="relu without input normalisation, topk with layer norm; nothing of model and hook point",
    checked_against="an independent writer of the published formulas",
)
