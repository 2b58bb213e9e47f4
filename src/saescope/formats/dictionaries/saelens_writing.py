"""Write a dictionary as SAELens >= 6 writes it, so that ``SAE.load_from_disk`` opens the same function.

Names and tensors are those of our own files (``dictionaries/saving.py``), less the note and the settings that only saescope
reads. Where SAELens knows another form of the same function, that is written:

    BatchTopK, Matryoshka       JumpReLU with one threshold for all features
    Ordered                     TopK
    archetypal                  their host, with W_dec as the mixtures make it
    Gated (as a transcoder)     JumpReLU, for the gate u + b_gate > 0 is a threshold on the magnitude m = exp(r) u + b_mag:
                                m > b_mag - exp(r) b_gate, and m > 0

Gated itself stays Gated, which SAELens has: both compare the same numbers there, bit by bit.

d_in  width of the input, d_sae  features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saescope.dictionaries import Archetypal, Dictionary, architectures
from saescope.dictionaries.saving import CONFIG_FILE, WEIGHTS_FILE, write_tensors
from saescope.formats.dictionaries.saelens_legacy import is_legacy

WRITES = (
    "relu, topk, ordered, abs_topk, jumprelu, gated, matching_pursuit, temporal; batch_topk and matryoshka as jumprelu; "
    "archetypal ones as their host; transcoders of relu and jumprelu, and those of gated, batch_topk and matryoshka as "
    "jumprelu"
)
_VERSION = "6.0.0"  # the first with this layout

# what else stands in cfg.json, by SAELens' architecture
_TOPK_KEYS = ("k", "rescale_acts_by_decoder_norm")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "topk": _TOPK_KEYS,
    "abstopk": _TOPK_KEYS,
    "matching_pursuit": ("residual_threshold", "max_iterations", "stop_on_duplicate_support"),
    "temporal": (
        "n_heads",
        "n_attn_layers",
        "bottleneck_factor",
        "sae_diff_type",
        "kval_topk",
        "tied_weights",
        "activation_normalization_factor",
    ),
    "transcoder": ("d_out",),
    "skip_transcoder": ("d_out",),
    "jumprelu_transcoder": ("d_out",),
    "jumprelu_skip_transcoder": ("d_out",),
}
_AS_JUMPRELU = tuple(
    f"{host}_{kind}" for host in ("gated", "batch_topk", "matryoshka") for kind in ("transcoder", "skip_transcoder")
)
_OF_ARCHETYPES = ("points", "mixture", "relaxation", "log_scale")


def write_saelens(dictionary: Dictionary, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write ``cfg.json`` and ``sae_weights.safetensors``.

    Raises:
        ValueError: SAELens has nothing that computes the same.
    """
    name, tensors = _form(dictionary)
    normalization = dictionary.input_normalization.name
    if normalization.startswith("saescope/"):
        raise ValueError(
            f"SAELens has no {normalization.removeprefix('saescope/')} of the input that stays outside of the weights, as "
            f"this {dictionary.architecture} dictionary has; it can be written for saescope alone (--to saescope)"
        )
    if normalization != "none" and "W_skip" in tensors:
        raise ValueError(
            f"SAELens gives W_skip the activation as it is, this {dictionary.architecture} dictionary gives it the "
            f"activation after {normalization}; it can be written for saescope alone (--to saescope)"
        )
    if "threshold" in tensors:
        _require_thresholds(tensors["threshold"], dictionary)
    known = {key: value for key, value in metadata.items() if key != "saescope"}
    if is_legacy({"metadata": known}):
        known["sae_lens_version"] = _VERSION
    known.setdefault("sae_lens_training_version", None)  # else SAELens says it was itself
    config = {
        "architecture": name,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": str(dictionary.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.config.apply_b_dec_to_input,
        "normalize_activations": normalization,
        "reshape_activations": _reshape(name, known),
        **{key: value for key, value in dictionary.saelens_extras().items() if key in _KEYS.get(name, ())},
        "metadata": known,
    }
    text = json.dumps(config, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _form(dictionary: Dictionary) -> tuple[str, dict[str, Tensor]]:
    """SAELens' architecture of the same function, and its tensors."""
    name, tensors = dictionary.saelens_name, dictionary.saved_tensors()
    if isinstance(dictionary, Archetypal):
        host = architectures().get(dictionary.architecture.removesuffix("_archetypal"))
        name = name if host is None else host.saelens_name
        tensors = {key: tensor for key, tensor in tensors.items() if key not in _OF_ARCHETYPES}
        tensors["W_dec"] = dictionary.W_dec.detach()
    if dictionary.architecture in _AS_JUMPRELU:
        name = "jumprelu_skip_transcoder" if "W_skip" in tensors else "jumprelu_transcoder"
        if "b_gate" in tensors:
            tensors = _gate_as_threshold(tensors)
    if name.startswith("saescope/"):
        raise ValueError(
            f"SAELens has nothing that computes what a {dictionary.architecture} dictionary does; it can be written for "
            "saescope alone (--to saescope)"
        )
    return name, {key: tensor for key, tensor in tensors.items() if not key.startswith("input_normalization.")}


def _gate_as_threshold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """JumpReLU of the magnitude: the gate opens where the magnitude passes a threshold, both rising with u."""
    others = {key: tensor for key, tensor in tensors.items() if key not in ("b_gate", "b_mag", "r_mag")}
    dtype = tensors["b_mag"].dtype
    ratio, b_mag = tensors["r_mag"].double().exp(), tensors["b_mag"].double()
    return {
        **others,
        "W_enc": (tensors["W_enc"].double() * ratio).to(dtype),  # [d_in, d_sae]
        "b_enc": tensors["b_mag"],
        "threshold": (b_mag - ratio * tensors["b_gate"].double()).clamp(min=0).to(dtype),
    }


def _require_thresholds(threshold: Tensor, dictionary: Dictionary) -> None:
    if bool(threshold.isnan().any()):
        raise ValueError(
            f"this {dictionary.architecture} dictionary has no threshold yet: train it, or measure one with "
            "fit_threshold(batches)"
        )
    if bool((threshold < 0).any()):
        raise ValueError(
            f"this {dictionary.architecture} dictionary has a threshold below 0, where negative activations pass here and "
            "not in SAELens; bring thresholds to 0 or above first (dictionary.threshold.clamp_(min=0))"
        )


def _reshape(name: str, metadata: Mapping[str, Any]) -> str:
    """SAELens is given the heads of ``hook_z`` one by one, and lays them side by side itself where this is said."""
    at_heads = str(metadata.get("hook_name", "")).endswith("hook_z") and metadata.get("hook_head_index") is None
    return "hook_z" if at_heads and "transcoder" not in name else "none"
