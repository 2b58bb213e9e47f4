"""Two releases of OpenMOSS from before their library's present layout, with the tensors of two linear layers.

    h = x @ encoder.weight.T + encoder.bias       x brought to norm sqrt(d) by the data set's mean norm, s = sqrt(d) / norm
    f = h where h > theta, else 0                 y = f @ decoder.weight.T + decoder.bias, divided by s of the output

**Llama Scope** (He et al. 2024, arXiv 2410.20526): ``hyperparams.json`` and ``checkpoints/final.safetensors``. One threshold
for all features. Two things are documented nowhere, and are read as SAELens 6.54.12 does unless the user says otherwise:

- ``threshold_units``: the stored threshold is in units of raw activations ("raw": ``theta = s * threshold``), though the
  weights are not, or as stored ("normalised");
- ``gate``: what exceeds it. "pre": the pre-activation; "norm": the pre-activation times the decoder's norm, as the library
  does since; "topk" and "topk_norm": not the threshold, but the ``top_k`` largest of either. Decoder rows are not of norm 1
  (about 1.5 on layer 15), so that these differ: 1089 features a token have been measured with one reading of "pre", and 42
  with "topk_norm" (issue 128 of the library).

Its transcoders (LXTC) need the scale of the output for the decoder, which SAELens, with one scale for both, does not have.

**R1-Distill**, and whatever version 1 of the library wrote: ``config.json``, and ``sae_weights.safetensors`` with
``encoder.weight``. Thresholds are one for each feature, stored as logarithms, in the units of the weights. That version
compared pre-activation times decoder norm with it if ``sparsity_include_decoder_norm`` is set; SAELens never does.

d  width of activations (d_model), s  features (d_sae).
"""

from __future__ import annotations

from typing import Any

import torch

from saescope.formats.dictionaries.llamascopium import whole_product
from saescope.formats.dictionaries.openmoss_norms import (
    NORM,
    blank_or_zeros,
    positive_number,
    scale_to_root_d,
    thresholds,
)
from saescope.formats.foreign import Foreign, row_norms
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, Source
from saescope.formats.tensor_files import TensorSource, read_json, tensor_shapes

V1_CONFIG, V1_WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
R1_CONFIG, R1_WEIGHTS = "config.json", "sae_weights.safetensors"
_V1_NAME = r"Llama3_1-8B-Base-L(\d+)(R|A|M|TC)-(8|32)x"
_R1_NAME = r"\d+M?-Slimpajama-\d+M?-OpenR1-Math-220k/L(\d+)R"
_LOG_THRESHOLD = "log_jumprelu_threshold"
_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
_GATES = ("pre", "norm", "topk", "topk_norm")
_UNITS = ("raw", "normalised")
# how it was made, and where it ran
_NO_PART_IN_THE_FUNCTION = (
    "sae_type", "device", "dtype", "seed", "init_.*", "decoder_exactly_fixed_norm", "decoder_bias_init_method", "l1_.*",
    "lp", "k_warmup_steps", "use_batch_norm_mse", "use_ghost_grads", "ghost_.*", "tp_size", "ddp_size", "noise_.*",
    "remove_gradient_parallel_to_decoder_directions", "sae_pretrained_name_or_path", "strict_loading", "top_k",
    "use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel", "jumprelu_threshold_window", "expansion_factor",
    "jump_relu_threshold_window", "jumprelu_threshold_grad_scale",
)  # fmt: skip


def _has_linear_layers(source: Source, config: str, weights: str, keys: set[str], tensors: set[str]) -> bool:
    """Whether a configuration with these keys and weights with these tensors are there."""
    if not source.has(config, weights) or source.only not in ("", config, weights):
        return False
    try:
        return keys <= set(read_json(source.path(config))) and tensors <= set(tensor_shapes(source.path(weights)))
    except (OSError, ValueError):
        return False


def _is_v1(source: Source) -> bool:
    return _has_linear_layers(source, V1_CONFIG, V1_WEIGHTS, {"d_model", "hook_point_in"}, _LINEAR)


def _is_r1(source: Source) -> bool:
    return _has_linear_layers(source, R1_CONFIG, R1_WEIGHTS, {"d_model", "expansion_factor", "hook_point_in"}, _LINEAR)


def _read_v1(source: Source) -> Foreign:
    config, tensors = source.config(V1_CONFIG), source.tensors(V1_WEIGHTS)
    d_model = config.need("d_model", int)
    d_sae = config.get("d_sae", int) or whole_product(config, d_model)
    foreign = _linear_layers("llama_scope", config, tensors, d_model, d_sae)
    scales = _v1_scales(config, d_model)
    gate = _choice(source, "gate", _GATES)
    rule = config.get("act_fn", str, "jumprelu").lower()
    if rule not in ("jumprelu", "topk", "relu"):
        raise ValueError(f"{config.where}: act_fn is {rule!r}; opened are jumprelu, topk and relu")
    if rule == "relu" and gate is not None:
        raise ValueError(f"{config.where}: act_fn is relu, which has no gate to choose")
    if gate is None:
        gate = "topk_norm" if config.get("sparsity_include_decoder_norm", bool, True) else "topk"
        gate = "pre" if rule == "jumprelu" else gate
    if rule != "relu" and gate in ("pre", "norm"):
        _v1_threshold(source, config, foreign, scales, by_norm=gate == "norm")
    if scales is not None and not foreign.tensors["W_dec"].is_meta:
        foreign.fold_input_scale(*scales)
    if rule != "relu" and gate in ("topk", "topk_norm"):
        foreign.architecture = _architecture("topk", foreign)
        foreign.settings["k"] = config.need("top_k", int)
        if gate == "topk_norm" and not foreign.tensors["W_dec"].is_meta:
            foreign.fold_decoder_norms()
        weight = "pre-activation times decoder norm" if gate == "topk_norm" else "pre-activation"
        foreign.said.append(f"the top_k features with the largest {weight} fire")
    found = source.from_name(_V1_NAME)
    if found:
        foreign.metadata |= {"model_name": "meta-llama/Llama-3.1-8B", "context_size": 1024, "prepend_bos": True}
        foreign.said.append("model = meta-llama/Llama-3.1-8B from the name")
    config.ignore("jump_relu_threshold", "sparsity_include_decoder_norm", *_NO_PART_IN_THE_FUNCTION)
    config.require_all_used()
    tensors.require_all_used()
    return foreign


def _v1_scales(config: ConfigSource, d_model: int) -> tuple[float, float] | None:
    """Of input and output; None where activations are not scaled."""
    norms = config.part(NORM)
    kind = config.get("norm_activation", str, "dataset-wise")
    found = [scale_to_root_d(norms.get(side), d_model, f"{norms.where}: {side}") for side in ("in", "out")]
    norms.require_all_used()
    if kind == "inference":
        return None
    if kind != "dataset-wise":
        raise ValueError(f"{config.where}: norm_activation is {kind!r}; opened are dataset-wise and inference")
    if found[0] is None or found[1] is None:
        raise ValueError(f"{config.where} should have the data set's norms, {NORM}: {{in, out}}")
    return found[0], found[1]


def _v1_threshold(
    source: Source, config: ConfigSource, foreign: Foreign, scales: tuple[float, float] | None, *, by_norm: bool
) -> None:
    units = _choice(source, "threshold_units", _UNITS)
    said = "as it was said" if units or source.override("gate") else "as SAELens reads it"
    W_D = foreign.tensors["W_dec"]
    stored = config.need("jump_relu_threshold", float)
    if not 0 <= stored < float("inf"):
        raise ValueError(f"{config.where}: jump_relu_threshold should not be negative, but is {stored}")
    s_in, s_out = scales or (1.0, 1.0)
    # in raw units a pre-activation is h / s_in, and with rows of norm 1 it is h n / s_out
    factor = 1.0 if units == "normalised" else s_out if by_norm else s_in
    logarithms = torch.full((foreign.d_sae,), stored * factor, dtype=torch.float64).log()
    norms = row_norms(W_D) if by_norm or W_D.is_meta else None
    foreign.tensors["threshold"] = thresholds(logarithms, norms, W_D.dtype)
    foreign.architecture = _architecture("jumprelu", foreign)
    weight = "pre-activation times decoder norm" if by_norm else "pre-activation"
    foreign.said.append(
        f"a feature fires where its {weight} exceeds {stored:g}, in {units or 'raw'} units ({said}; neither is documented: "
        f"gate={'|'.join(_GATES)}, threshold_units={'|'.join(_UNITS)})"
    )


def _read_r1(source: Source) -> Foreign:
    config, tensors = source.config(R1_CONFIG), source.tensors(R1_WEIGHTS)
    d_model = config.need("d_model", int)
    d_sae = whole_product(config, d_model)
    foreign = _linear_layers("llama_scope_r1_distill", config, tensors, d_model, d_sae)
    rule = config.get("act_fn", str, "jumprelu" if _LOG_THRESHOLD in tensors else "relu").lower()
    if rule not in ("jumprelu", "topk", "relu"):
        raise ValueError(f"{config.where}: act_fn is {rule!r}; opened are jumprelu, topk and relu")
    by_norm = _r1_gate(source, config, foreign) if rule != "relu" else False
    if rule == "jumprelu":
        W_D = foreign.tensors["W_dec"]
        logarithms = tensors.take(_LOG_THRESHOLD, (d_sae,))
        foreign.tensors["threshold"] = thresholds(logarithms, row_norms(W_D) if by_norm else None, W_D.dtype)
    scales = _r1_scales(source, config, tensors, d_model)
    if scales is not None and not foreign.tensors["W_dec"].is_meta:
        foreign.fold_input_scale(*scales)
    foreign.architecture = _architecture(rule, foreign)
    if rule == "topk":
        foreign.settings["k"] = config.need("top_k", int)
        if by_norm and not foreign.tensors["W_dec"].is_meta:
            foreign.fold_decoder_norms()
    if source.from_name(_R1_NAME):
        foreign.metadata |= {"model_name": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "context_size": 1024}
        foreign.metadata["prepend_bos"] = True
        foreign.said.append("model = deepseek-ai/DeepSeek-R1-Distill-Llama-8B from the name")
    config.ignore("sparsity_include_decoder_norm", *_NO_PART_IN_THE_FUNCTION)
    config.require_all_used()
    tensors.require_all_used()
    return foreign


def _r1_gate(source: Source, config: ConfigSource, foreign: Foreign) -> bool:
    """Whether features are chosen by pre-activation times the decoder's norm."""
    said, stored = _choice(source, "gate", ("pre", "norm")), config.get("sparsity_include_decoder_norm", bool)
    by_norm = said == "norm" if said else bool(stored)
    weight = "pre-activation times decoder norm" if by_norm else "pre-activation"
    why = "as it was said" if said else "sparsity_include_decoder_norm" if stored is not None else "as SAELens reads it"
    foreign.said.append(f"features are chosen by {weight} ({why}; to change it: gate=pre|norm)")
    return by_norm


def _r1_scales(source: Source, config: ConfigSource, tensors: TensorSource, d_model: int) -> tuple[float, float] | None:
    """Of input and output; None where nothing is scaled, or where only headers were read."""
    tensors.ignore(rf"{NORM}\..*")
    said = positive_number(source, "norm_scaling_factor")
    kind = config.get("norm_activation", str, "dataset-wise")
    hook_points = [config.need("hook_point_in", str)]
    hook_points.append(config.get("hook_point_out", str, hook_points[0]))
    if said is not None:
        return said, said
    if kind == "inference":
        return None
    if kind != "dataset-wise":
        raise ValueError(f"{config.where}: norm_activation is {kind!r}; opened are dataset-wise and inference")
    names = [f"{NORM}.{hook_point}" for hook_point in hook_points]
    if not set(names) <= set(tensors):
        raise ValueError(
            f"{tensors.where} has no {names[0]}: activations were scaled in training by sqrt(d) over their mean norm, "
            "which is not in this file. Say norm_scaling_factor=NUMBER, that quotient; SAELens' registry lists it"
        )
    s_in, s_out = (scale_to_root_d(tensors.take_value(name), d_model, f"{tensors.where}: {name}") for name in names)
    return None if s_in is None or s_out is None else (s_in, s_out)


def _linear_layers(name: str, config: ConfigSource, tensors: TensorSource, d: int, s: int) -> Foreign:
    """Weights and hook points, with a ReLU for the activation."""
    if config.get("use_glu_encoder", bool, False):
        raise ValueError(
            f"{config.where}: use_glu_encoder is set: each pre-activation is multiplied by a sigmoid of the input, which no "
            "architecture here computes"
        )
    read = config.need("hook_point_in", str)
    written = config.get("hook_point_out", str, read)
    centred = config.get("apply_decoder_bias_to_pre_encoder", bool, False)
    if centred and written != read:
        raise ValueError(
            f"{config.where}: apply_decoder_bias_to_pre_encoder is set in a transcoder, whose bias is the output's"
        )
    metadata: dict[str, Any] = {"hook_name": read}
    if written != read:
        metadata["hook_name_out"] = written
    W_D = tensors.take("decoder.weight", (d, s)).T
    biased = config.get("use_decoder_bias", bool, True)
    return Foreign(
        format=name,
        architecture="relu" if written == read else "transcoder",
        settings={"apply_b_dec_to_input": centred} if written == read else {"d_out": d},
        tensors={
            "W_enc": tensors.take("encoder.weight", (s, d)).T,
            "b_enc": tensors.take("encoder.bias", (s,)),
            "W_dec": W_D,
            "b_dec": tensors.take("decoder.bias", (d,)) if biased else blank_or_zeros(W_D, d),
        },
        metadata=metadata,
    )


def _architecture(rule: str, foreign: Foreign) -> str:
    if "d_out" not in foreign.settings:
        return rule
    return "transcoder" if rule == "relu" else f"{rule}_transcoder"


def _choice(source: Source, name: str, known: tuple[str, ...]) -> str | None:
    value = source.override(name)
    if value is not None and value not in known:
        raise ValueError(f"{name} should be one of {', '.join(known)}, got {value!r}")
    return value


LLAMA_SCOPE = Format(
    name="llama_scope",
    title="Llama Scope",
    layout=f"{V1_CONFIG}, and {V1_WEIGHTS} with encoder.weight",
    recognise=_is_v1,
    read=_read_v1,
    reads="residual, attention and MLP dictionaries, and transcoders",
    overrides={
        "gate": "pre: the pre-activation has to exceed the threshold; norm: the same times the decoder's norm; topk, "
        "topk_norm: the largest fire",
        "threshold_units": "raw: the stored threshold is in units of the model's activations; normalised: as the weights",
    },
    checked_against="an independent writer of the published formulas",
)

LLAMA_SCOPE_R1 = Format(
    name="llama_scope_r1_distill",
    title="Llama Scope R1-Distill (Language-Model-SAEs 1)",
    layout=f"{R1_CONFIG} with d_model and expansion_factor, and {R1_WEIGHTS} with encoder.weight",
    recognise=_is_r1,
    read=_read_r1,
    reads="dictionaries and transcoders with JumpReLU, TopK and ReLU",
    overrides={
        "norm_scaling_factor": "sqrt(d) over the mean norm of activations, where the file has no norm",
        "gate": "pre: features are chosen by pre-activation; norm: by the same times the decoder's norm",
    },
    checked_against="an independent writer of the published formulas",
)
