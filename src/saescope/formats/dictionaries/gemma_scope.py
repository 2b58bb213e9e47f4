"""Gemma Scope: JumpReLU dictionaries of Gemma 2, each a ``params.npz`` whose place in its repository says the rest.

    pre = x @ W_enc + b_enc        f = relu(pre) * (pre > threshold)        x_hat = f @ W_dec + b_dec

Nothing is subtracted from the input and nothing is normalised. Site and model stand in the repository's name, layer, width
and mean L0 in the folders below it: ``google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82``. The transcoders
(``gemma-scope-2b-pt-transcoders``) have the same file; they read the stream before the MLP divided by its RMS, before the
norm's gain (TransformerLens' ``ln2.hook_normalized``), and write what the MLP adds.

Dictionaries of the embedding were trained on rows of the embedding matrix. Gemma multiplies these by sqrt(d) before the
first block. So do, in what they give out, TransformerLens (``hook_embed``) and the embedding module of transformers 5, but
not that of transformers 4. With s = sqrt(d), the same function for activations that are s times larger is

    W_enc / s        W_dec * s        b_dec * s

which ``embedding_scale`` asks for; without it the file's own function is given. (SAELens always scales both matrices, and
leaves b_dec as it is.)

Sources: Lieberum et al. 2024, arXiv 2408.05147; the loaders of SAELens 6.54.12 and circuit-tracer.

d_in  width of the input, d_out  of what is rebuilt, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import Source
from saescope.formats.tensor_files import TensorSource

_FILE = r"params\.npz"

# Where it lies: the repository, which a cache of the hub spells models--google--..., and what is below it
_PLACE = (
    r"(?:(?:models--google--)?gemma-scope-(?P<size>2b|9b|27b)-(?P<tuning>pt|it)-(?P<site>res|mlp|att|transcoders)"
    r"(?:@[^/]+)?(?:/snapshots/[^/]+)?/)?"
    r"(?:layer_(?P<layer>\d+)|(?P<embedding>embedding))/width_(?P<width>\d+[km])/average_l0_(?P<l0>\d+)(?:@[^/]+)?"
)
_WIDTHS = {
    "4k": 1 << 12, "16k": 1 << 14, "32k": 1 << 15, "65k": 1 << 16, "131k": 1 << 17, "262k": 1 << 18, "524k": 1 << 19,
    "1m": 1 << 20,
}  # fmt: skip
_D_MODEL = {"2b": 2304, "9b": 3584, "27b": 4608}
_HEADS_SIDE_BY_SIDE = {"2b": 2048, "9b": 4096, "27b": 4608}  # hook_z, which is not as wide as the stream

# site -> TransformerLens' name and Hugging Face's, both within a block
_HOOKS = {
    "res": ("hook_resid_post", "output"),
    "mlp": ("hook_mlp_out", "post_feedforward_layernorm.output"),
    "att": ("attn.hook_z", "self_attn.o_proj.input"),
}
_KINDS = ("sae", "transcoder")

BEFORE_GAIN = (
    "the input is the stream before the MLP divided by its RMS, before the norm's gain; no module of the Hugging Face model "
    "gives that"
)


def _recognise(source: Source) -> bool:
    return bool(source.tensor_files(_FILE))


def _read(source: Source) -> Foreign:
    name = source.the_tensor_file(r".*\.npz" if source.only else _FILE, "params.npz")
    tensors = source.tensors(name)
    place = source.from_name(_PLACE)
    said_of = {key: value for key, value in place.groupdict().items() if value} if place else {}
    foreign = Foreign(format="gemma_scope", architecture="jumprelu", tensors=_tensors(tensors))
    _choose_kind(foreign, source, said_of)
    foreign.metadata.update(_hooks(said_of))
    if said_of:
        foreign.said.append(f"{_words(said_of)} from the name")
    else:
        foreign.said.append(
            "the folder's name does not say what this is (layer_12/width_16k/average_l0_82 in a repository of Gemma Scope "
            "would): model and hook point are not known"
        )
    _check_widths(foreign, said_of)
    _scale_embedding(foreign, source, said_of)
    if foreign.metadata.get("hook_name", "").endswith("ln2.hook_normalized"):
        foreign.said.append(BEFORE_GAIN)
    for key in ("model_name", "hook_name"):
        if source.override(key):
            foreign.metadata[key] = str(source.override(key))
    return foreign


def _tensors(tensors: TensorSource) -> dict[str, Any]:
    """By our names; some files have them in small letters."""
    spelt = {name.lower(): name for name in tensors}
    if len(spelt) < len(tensors):
        raise ValueError(f"{tensors.where} holds arrays whose names differ in case alone: {', '.join(sorted(tensors))}")
    W_enc = tensors.take(spelt.get("w_enc", "W_enc"), (None, None))
    d_sae = W_enc.shape[1]
    W_dec = tensors.take(spelt.get("w_dec", "W_dec"), (d_sae, None))
    threshold = tensors.take(spelt.get("threshold", "threshold"), (d_sae,))
    found = {
        "W_enc": W_enc,
        "W_dec": W_dec,
        "b_enc": tensors.take(spelt.get("b_enc", "b_enc"), (d_sae,)),
        "b_dec": tensors.take(spelt.get("b_dec", "b_dec"), (W_dec.shape[1],)),
        "threshold": threshold.clamp(min=0),  # the relu stops what is between a negative threshold and 0
    }
    if "scaling_factor" in tensors:
        factor = tensors.take("scaling_factor")
        if not factor.is_meta and bool((factor != 1).any()):
            raise ValueError(
                f"{tensors.where}: scaling_factor is not 1 everywhere; what it scales is nowhere said, so it is not opened"
            )
    tensors.require_all_used()
    return found


def _choose_kind(foreign: Foreign, source: Source, said_of: Mapping[str, str]) -> None:
    """Autoencoder or transcoder: the same file and the same formula, but another target."""
    kind = source.override("kind")
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"kind should be one of {', '.join(_KINDS)}, got {kind!r}")
    named = "site" in said_of
    if kind is None:
        named_transcoder = said_of.get("site") == "transcoders"
        kind = "transcoder" if named_transcoder or (not named and foreign.d_in != foreign.d_out) else "sae"
        if not named and kind == "sae":
            foreign.said.append(
                "the repository is not named, so it is taken for an autoencoder; a transcoder has the same file: "
                "kind=transcoder"
            )
    if kind == "transcoder":
        foreign.architecture, foreign.settings = "jumprelu_transcoder", {"d_out": foreign.d_out}
        return
    if foreign.d_in != foreign.d_out:
        raise ValueError(
            f"{source.label} reads {foreign.d_in} numbers and writes {foreign.d_out}, which no autoencoder does; if it is a "
            "transcoder, say kind=transcoder"
        )
    foreign.settings["apply_b_dec_to_input"] = False


def _hooks(said_of: Mapping[str, str]) -> dict[str, Any]:
    """Metadata that the name gives."""
    found: dict[str, Any] = {}
    if "l0" in said_of:
        found["l0"] = float(said_of["l0"])
    if "site" not in said_of:
        return found
    found |= {
        "model_name": f"google/gemma-2-{said_of['size']}" + ("-it" if said_of["tuning"] == "it" else ""),
        "context_size": 1024,
        "prepend_bos": True,
    }
    site, layer = said_of["site"], said_of.get("layer")
    if layer is not None and site == "transcoders":
        found |= {
            "hook_name": f"blocks.{layer}.ln2.hook_normalized",
            "hook_name_out": f"blocks.{layer}.hook_mlp_out",
            "hf_hook_name_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
        }
    elif layer is not None:
        lens, module = _HOOKS[site]
        found |= {"hook_name": f"blocks.{layer}.{lens}", "hf_hook_name": f"model.layers.{layer}.{module}"}
    return found


def _words(said_of: Mapping[str, str]) -> str:
    where = "the embedding" if "embedding" in said_of else f"layer {said_of['layer']}"
    repository = f"gemma-scope-{said_of['size']}-{said_of['tuning']}-{said_of['site']}, " if "site" in said_of else ""
    return f"{repository}{where}, width {said_of['width']} and mean L0 {said_of['l0']}"


def _check_widths(foreign: Foreign, said_of: Mapping[str, str]) -> None:
    width = said_of.get("width")
    if width is not None and _WIDTHS.get(width) != foreign.d_sae:
        expected = f", which should be {_WIDTHS[width]:,}" if width in _WIDTHS else ""
        foreign.said.append(
            f"the name says width {width}{expected}, but the file has {foreign.d_sae:,} features; check that it is the "
            "file that it should be"
        )
    if "size" not in said_of:
        return
    widths = _HEADS_SIDE_BY_SIDE if said_of["site"] == "att" else _D_MODEL
    if widths[said_of["size"]] != foreign.d_in:
        foreign.said.append(
            f"the name says {said_of['site']} of Gemma 2 {said_of['size']}, which is {widths[said_of['size']]} wide, but "
            f"the file reads {foreign.d_in}; check that it is the file that it should be"
        )


def _scale_embedding(foreign: Foreign, source: Source, said_of: Mapping[str, str]) -> None:
    wanted = source.override("embedding_scale")
    if "layer" in said_of or ("embedding" not in said_of and wanted is None):
        if wanted is not None:
            raise ValueError(f"embedding_scale is for dictionaries of the embedding, and {source.label} is of a block")
        return
    if wanted is None:
        foreign.said.append(
            "trained on rows of the embedding matrix as they are stored. Gemma multiplies them by sqrt(d_in) = "
            f"{foreign.d_in**0.5:.4g} before the first block, as hook_embed of TransformerLens and embed_tokens of "
            "transformers 5 do: say embedding_scale=sqrt_d for those"
        )
        foreign.metadata["scaled_embeddings"] = False
        return
    scale = foreign.d_in**0.5 if wanted == "sqrt_d" else _positive(wanted)
    foreign.fold_input_scale(1 / scale)
    foreign.said.append(
        f"embedding_scale: for activations {scale:.6g} times the rows of the embedding matrix; b_dec too"
    )
    if wanted == "sqrt_d" and "model_name" in foreign.metadata:
        foreign.metadata |= {"hook_name": "blocks.0.hook_resid_pre", "hf_hook_name": "model.layers.0.input"}


def _positive(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number < float("inf"):
        raise ValueError(f"embedding_scale should be sqrt_d or a positive number, got {value!r}")
    return number


GEMMA_SCOPE = Format(
    name="gemma_scope",
    title="Gemma Scope",
    layout="params.npz",
    recognise=_recognise,
    read=_read,
    reads="JumpReLU autoencoders of all sites, embeddings, and transcoders",
    overrides={
        "kind": "sae or transcoder, where the repository's name does not say",
        "embedding_scale": "sqrt_d or a number: how much larger activations are than rows of the embedding matrix",
        "model_name": "the model, where the name does not say",
        "hook_name": "the hook point, where the name does not say",
    },
    checked_against="an independent writer of the published formulas",
)
