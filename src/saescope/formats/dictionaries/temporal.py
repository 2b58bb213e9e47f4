"""Temporal SAEs as their authors published them: ``conf.yaml`` and ``latest_ckpt.safetensors``; and SAELens' form of them.

    D [d_sae, d_in]     W_dec            b [d_in]     b_dec, always taken off the input
    E [d_in, d_sae]     W_enc, where weights are not tied
    attn_layers.I.{k_ctx,q_target,v_ctx,c_proj}.{weight,bias}

Activations are multiplied by ``scaling_factor`` before everything. The layer stands in the folder's name alone
(``layer_12/temporal``); the place is the residual stream after it.

Source: arXiv 2511.01836, and the reader of SAELens 6.54.12.

d_in  width of activations, d_sae  features, d_key  width of all keys of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, Source
from saescope.formats.tensor_files import TensorSource

CONFIG_FILE, WEIGHTS_FILE = "conf.yaml", "latest_ckpt.safetensors"
_PLACE = r"layer_(\d+)(?:/temporal)?"


def read_temporal(config: ConfigSource, tensors: TensorSource, names: Mapping[str, str]) -> Foreign:
    """A temporal dictionary of a configuration with SAELens' keys.

    Args:
        names: of our tensors ``W_dec``, ``b_dec`` and ``W_enc`` in the file.
    """
    d_in, d_sae = config.need("d_in", int), config.need("d_sae", int)
    layers, bottleneck = config.get("n_attn_layers", int, 1), config.get("bottleneck_factor", int, 64)
    tied = config.get("tied_weights", bool, True)
    kind, k = config.get("sae_diff_type", str, "topk"), config.get("kval_topk", int)
    if not 0 < bottleneck <= d_sae or not 0 <= layers <= 1000:
        raise ValueError(
            f"{config.where}: bottleneck_factor = {bottleneck} and n_attn_layers = {layers} do not fit d_sae = {d_sae}"
        )
    found = {
        "W_dec": tensors.take(names["W_dec"], (d_sae, d_in)),
        "b_dec": tensors.take(names["b_dec"], (d_in,)),
    }
    if not tied:
        found["W_enc"] = tensors.take(names["W_enc"], (d_in, d_sae))
    d_key = d_sae // bottleneck
    for layer in range(layers):
        for part, width in (("k_ctx", d_key), ("q_target", d_key), ("v_ctx", d_sae), ("c_proj", d_sae)):
            name = f"attn_layers.{layer}.{part}"
            found[f"{name}.weight"] = tensors.take(f"{name}.weight", (width, d_sae))
            found[f"{name}.bias"] = tensors.take(f"{name}.bias", (width,))
    return Foreign(
        format="temporal",
        architecture="temporal",
        settings={
            "apply_b_dec_to_input": config.get("apply_b_dec_to_input", bool, True),
            "n_heads": config.get("n_heads", int, 8),
            "n_attn_layers": layers,
            "bottleneck_factor": bottleneck,
            "sae_diff_type": kind,
            "kval_topk": k,
            "tied_weights": tied,
            "activation_normalization_factor": config.get("activation_normalization_factor", (int, float), 1.0),
        },
        tensors=found,
        said=[
            "a token's features depend on the tokens before it: give whole sequences [batch, tokens, d_in]; encode() gives "
            "the novel codes, and decode(f, x) adds those that are predicted"
        ],
    )


def _recognise(source: Source) -> bool:
    return source.has(CONFIG_FILE, WEIGHTS_FILE) and source.only in ("", WEIGHTS_FILE)


def _read(source: Source) -> Foreign:
    config, tensors = source.config(CONFIG_FILE), source.tensors(WEIGHTS_FILE)
    model, sae, data = config.part("llm"), config.part("sae"), config.part("data")
    d_in = model.need("dimin", int)
    keys = ("n_heads", "n_attn_layers", "bottleneck_factor", "sae_diff_type", "kval_topk", "tied_weights")
    settings = {
        "d_in": d_in,
        "d_sae": int(d_in * sae.need("exp_factor", (int, float))),
        **{key: sae.get(key) for key in keys},
        "activation_normalization_factor": sae.need("scaling_factor", (int, float)),
    }
    foreign = read_temporal(ConfigSource(settings, config.where), tensors, {"W_dec": "D", "b_dec": "b", "W_enc": "E"})
    foreign.normalization = "constant_scalar_rescale"
    layer = source.from_name(_PLACE)
    if layer is not None:
        foreign.metadata["hook_name"] = f"blocks.{layer[1]}.hook_resid_post"
        foreign.said.append(f"layer {layer[1]} from the name")
    for part in (model, sae, data, config):  # how it was trained
        part.ignore(*part.as_dict())
    tensors.require_all_used()
    return foreign


TEMPORAL = Format(
    name="temporal",
    title="temporal SAEs",
    layout=f"{CONFIG_FILE} and {WEIGHTS_FILE}",
    recognise=_recognise,
    read=_read,
    reads="temporal (for whole sequences)",
    checked_against="an independent transcription of the published formulas",
)
