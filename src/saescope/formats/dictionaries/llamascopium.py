"""Llamascopium (OpenMOSS, formerly Language-Model-SAEs): ``config.json`` with ``sae_type``, and ``sae_weights``.

    h = x @ W_E + b_E           x brought to norm sqrt(d) first (see ``openmoss_norms.py``)
    f = act(h n) / n            n: norm of each decoder row, with sparsity_include_decoder_norm; else f = act(h)
    y = f @ W_D + b_D           brought back to the scale of the output

``act`` is a ReLU, a JumpReLU (thresholds stored as logarithms), TopK, or BatchTopK, for which no threshold is stored. Only
the choice of features depends on n, never the size of a firing, so that it goes into the thresholds, ``theta / n``, or,
where features compete, into the encoder. With the output at another hook point it is a transcoder.

The library divides the scales s of the data set out of its own files by ``b_E / s_in``, ``W_D s_in / s_out`` and
``b_D / s_out``, which divides codes by s_in, and leaves thresholds as they were. They are brought to the same units here
(``theta / s_out`` where the norm counts, since it is multiplied by s_in / s_out itself, else ``theta / s_in``), so that
the features fire that fired in training.

Source: the code of Llamascopium 2.0.0b34 (github.com/OpenMOSS/Llamascopium).

d  width of activations (d_model), s  features (d_sae).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saescope.formats.dictionaries.llamascopium_crosscoder import crosscoder_of
from saescope.formats.dictionaries.openmoss_norms import (
    Scaling,
    blank_or_zeros,
    looks_folded,
    positive_number,
    scaling_of,
    thresholds,
    yes_or_no,
)
from saescope.formats.foreign import Foreign, row_norms
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, Source
from saescope.formats.tensor_files import TensorSource, read_json, tensor_shapes
from saescope.metrics import explained_variance

CONFIG_FILE, MODEL_FILE = "config.json", "lm_config.json"
# by priority, as the library looks for them
WEIGHTS_FILES = tuple(
    f"{name}.{kind}"
    for name in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for kind in ("safetensors", "pt", "dcp")
)

_SAES = ("sae", "matryoshka_sae")  # a Matryoshka differs in its loss alone
_OTHERS: Mapping[str, str] = {
    "clt": "a cross-layer transcoder, whose features read one layer and write to all later ones",
    "lorsa": "a low-rank sparse attention, whose features mix tokens",
    "molt": "a mixture of low-rank maps, whose features write what depends on the input",
}
_NO_PART_IN_THE_FUNCTION = (
    "device", "dtype", "use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel", "jumprelu_threshold_window",
    "sae_pretrained_name_or_path", "strict_loading", "matryoshka_widths", "matryoshka_loss_weights",
    "use_matryoshka_aux_loss",
)  # fmt: skip
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"


def _recognise(source: Source) -> bool:
    if not source.has(CONFIG_FILE):
        return False
    try:
        config = read_json(source.path(CONFIG_FILE))
        if not isinstance(config.get("sae_type"), str) or not {"d_model", "expansion_factor"} <= set(config):
            return False
        name = _weights_file(source)
        if name.endswith(".safetensors"):  # the R1-Distill release has this configuration, and other tensors
            return "encoder.weight" not in tensor_shapes(source.path(name))
    except (OSError, ValueError):
        return False
    return True


def _weights_file(source: Source) -> str:
    """The file that was named, else the file or folder that the library would open; empty where there is none."""
    if source.only.endswith((".safetensors", ".pt")):
        return source.only
    held, said = source.names, source.override("weights")
    if isinstance(said, str):
        return said
    for name in WEIGHTS_FILES:
        if name in held or any(each.startswith(f"{name}/") for each in held):
            return name
    return ""


def _weights(source: Source) -> tuple[TensorSource, str]:
    """The tensors, and the version of the library that wrote them."""
    name = _weights_file(source)
    if not name:
        raise FileNotFoundError(f"{source.label} has none of {', '.join(WEIGHTS_FILES)}; say which: weights=NAME")
    if name.endswith(".dcp"):
        raise ValueError(
            f"{source.label}/{name} is a distributed checkpoint of PyTorch, whose index is a pickle, which could run code; "
            "it is not opened. Open it with Llamascopium on one device and call save_pretrained, which writes "
            "sae_weights.safetensors"
        )
    whole = source.tensors(name)
    inner = whole.get("sae")
    if isinstance(inner, Mapping):
        whole.ignore("sae")
        version = whole.take_value("version", "")
        whole.require_all_used()
        return TensorSource(inner, f"{whole.where}: sae"), str(version)
    return whole, _version_in(source, name)


def _version_in(source: Source, name: str) -> str:
    if not name.endswith(".safetensors"):
        return ""
    try:
        with safe_open(source.path(name), framework="pt") as file:
            return str((file.metadata() or {}).get("version", ""))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{source.label}/{name} is damaged or no safetensors file: {error}") from error


def _read(source: Source) -> Foreign:
    return _read_as(source, already_folded=yes_or_no(source, "already_folded"))


def _read_as(source: Source, *, already_folded: bool | None) -> Foreign:
    config = source.config(CONFIG_FILE)
    kind = config.need("sae_type", str)
    if kind in _OTHERS:
        raise ValueError(f"{config.where}: sae_type is {kind}, {_OTHERS[kind]}; that is no dictionary of this kind")
    if kind not in (*_SAES, "crosscoder"):
        raise ValueError(f"{config.where}: sae_type is {kind!r}; opened are {', '.join((*_SAES, 'crosscoder'))}")
    if config.get("use_glu_encoder", bool, False):
        raise ValueError(
            f"{config.where}: use_glu_encoder is set: each pre-activation is multiplied by a sigmoid of the input, which no "
            "architecture here computes"
        )
    tensors, version = _weights(source)
    d_model = config.need("d_model", int)
    d_sae = whole_product(config, d_model)
    hook_points = _hook_points(config, kind)
    scaling = scaling_of(source, config, tensors, hook_points, d_model, version=version, already_folded=already_folded)
    rule, settings, log_threshold = _rule(source, config, tensors, d_sae)
    biased = config.get("use_decoder_bias", bool, True)
    by_norm = config.get("sparsity_include_decoder_norm", bool, True)
    if kind == "crosscoder" and not by_norm:
        raise ValueError(f"{config.where}: a crosscoder without sparsity_include_decoder_norm does not exist there")
    if kind == "crosscoder":
        foreign = crosscoder_of(
            tensors, len(hook_points), d_model, d_sae, rule, log_threshold, scaling, biased=biased,
            split=bool(yes_or_no(source, "split_heads")),
        )  # fmt: skip
    else:
        foreign = _sae_of(
            tensors, d_model, d_sae, rule, log_threshold, scaling, biased=biased, by_norm=by_norm,
            transcoder=len(set(hook_points)) > 1, threshold_folded=bool(yes_or_no(source, "threshold_folded")),
        )  # fmt: skip
        _centring(config, foreign, transcoder=len(set(hook_points)) > 1)
    foreign.settings.update(settings)
    foreign.said[:0] = scaling.said
    if rule == "jumprelu" and config.get("act_fn", str, "").lower() == "batchtopk":
        foreign.said.append("BatchTopK with the threshold that was given, the same for all tokens: a JumpReLU")
    foreign.metadata.update(_metadata(source, hook_points, crosscoder=kind == "crosscoder"))
    config.ignore("top_k", *_NO_PART_IN_THE_FUNCTION)
    config.require_all_used()
    tensors.require_all_used()
    return foreign


def whole_product(config: ConfigSource, d_model: int) -> int:
    """d_sae, from expansion_factor."""
    d_sae = d_model * config.need("expansion_factor", float)
    if d_model < 1 or not 1 <= d_sae < 2**40 or abs(d_sae - round(d_sae)) > 1e-6:
        raise ValueError(
            f"{config.where}: d_model and its product with expansion_factor should be whole numbers of at least 1, but are "
            f"{d_model} and {d_sae}"
        )
    return round(d_sae)


def _hook_points(config: ConfigSource, kind: str) -> list[str]:
    if kind == "crosscoder":
        found = config.need("hook_points", list)
        if not found or not all(isinstance(each, str) for each in found):
            raise ValueError(f"{config.where}: hook_points should be a list of names, but is {found!r}")
        return list(found)
    return [config.need("hook_point_in", str), config.need("hook_point_out", str)]


def _rule(
    source: Source, config: ConfigSource, tensors: TensorSource, d_sae: int
) -> tuple[str, dict[str, Any], Tensor | None]:
    """Our name of the activation, its settings, and the logarithm of its thresholds."""
    name = config.get("act_fn", str, "relu").lower()
    threshold = positive_number(source, "threshold")
    if threshold is not None and name != "batchtopk":
        raise ValueError(f"threshold can be said of BatchTopK alone, and act_fn is {name}")
    if name == "jumprelu":
        return name, {}, tensors.take(LOG_THRESHOLD, (d_sae,))
    if name == "topk":
        return name, {"k": config.need("top_k", int)}, None
    if name == "batchtopk":
        if threshold is None:
            raise ValueError(
                f"{config.where}: act_fn is batchtopk, and no threshold is stored: which features fire depends on the "
                "batch. Say threshold=NUMBER, above which a feature fires, in the units in which features compete in "
                "training; the mean over batches of the smallest value that was kept is the usual choice"
            )
        return "jumprelu", {}, torch.full((d_sae,), threshold, dtype=torch.float64).log()
    if name == "relu":
        return name, {}, None
    raise ValueError(f"{config.where}: act_fn is {name!r}; opened are relu, jumprelu, topk and batchtopk")


def _sae_of(
    tensors: TensorSource, d: int, s: int, rule: str, log_threshold: Tensor | None, scaling: Scaling,
    *, biased: bool, by_norm: bool, transcoder: bool, threshold_folded: bool,
) -> Foreign:  # fmt: skip
    W_D = tensors.take("W_D", (s, d))
    foreign = Foreign(
        format="llamascopium",
        architecture=_architecture(rule, transcoder),
        settings={"d_out": d} if transcoder else {"apply_b_dec_to_input": False},
        tensors={
            "W_enc": tensors.take("W_E", (d, s)),
            "b_enc": tensors.take("b_E", (s,)),
            "W_dec": W_D,
            "b_dec": tensors.take("b_D", (d,)) if biased else blank_or_zeros(W_D, d),
        },
        normalization="constant_norm_rescale" if scaling.state == "token" else "none",
    )
    s_in, s_out = (1.0, 1.0) if scaling.scales is None else scaling.scales
    if log_threshold is not None:
        scale = 1.0
        if scaling.state == "inside" and not threshold_folded:
            scale = s_out if by_norm else s_in
            foreign.said.append(
                "the library does not fold thresholds, so they are folded here; if they were: threshold_folded=true"
            )
        foreign.tensors["threshold"] = thresholds(
            log_threshold, row_norms(W_D) if by_norm else None, W_D.dtype, scale=scale
        )
        gate = "its pre-activation times its decoder's norm exceeds" if by_norm else "its pre-activation exceeds"
        foreign.said.append(f"a feature fires where {gate} its threshold")
    if scaling.state == "outside" and scaling.scales is not None:
        foreign.fold_input_scale(s_in, s_out)
    if rule == "topk" and by_norm:
        if not W_D.is_meta:
            foreign.fold_decoder_norms()
        foreign.said.append(
            "features compete by pre-activation times their decoder's norm; norms are folded into the encoder, and codes "
            "multiplied by them"
        )
    return foreign


def _architecture(rule: str, transcoder: bool) -> str:
    if not transcoder:
        return rule
    return "transcoder" if rule == "relu" else f"{rule}_transcoder"


def _centring(config: ConfigSource, foreign: Foreign, *, transcoder: bool) -> None:
    """Versions before 2 could subtract the decoder's bias from the encoder's input."""
    if not config.get("apply_decoder_bias_to_pre_encoder", bool, False):
        return
    if transcoder:
        raise ValueError(
            f"{config.where}: apply_decoder_bias_to_pre_encoder is set in a transcoder, whose bias is the output's"
        )
    foreign.settings["apply_b_dec_to_input"] = True
    foreign.said.append("the decoder's bias is subtracted from the encoder's input")


def _metadata(source: Source, hook_points: list[str], *, crosscoder: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"hook_name": ", ".join(hook_points) if crosscoder else hook_points[0]}
    if not crosscoder and hook_points[0] != hook_points[1]:
        found["hook_name_out"] = hook_points[1]
    if source.has(MODEL_FILE):
        model = source.config(MODEL_FILE)
        for key, kind in (("model_name", str), ("prepend_bos", bool)):
            value = model.get(key)
            if isinstance(value, kind):
                found[key] = value
    return found


def folding_check(source: Source, x: Tensor, y: Tensor | None = None) -> dict[str, Any]:
    """Which of the two readings of a folder that says ``dataset-wise`` reconstructs activations: the double-fold trap.

    Args:
        x: activations as the model gives them, ``[B, d]``; some hundred tokens are enough.
        y: what is rebuilt, where that is another hook point.

    Returns:
        Explained variance and mean number of firings, once with the norms folded here (``folded_here``), once with the
        weights taken as folded (``already_folded``), which of the two is in force, and which is better. Empty where there is
        nothing to fold.

    Raises:
        ValueError: a transcoder without ``y``.
    """
    config = source.config(CONFIG_FILE)
    if config.get("norm_activation", str, "dataset-wise") != "dataset-wise":
        return {}
    target = x if y is None else y
    if y is None and config.get("hook_point_in") != config.get("hook_point_out"):
        raise ValueError(
            "this is a transcoder: give the activations at its output as well, folding_check(source, x, y)"
        )
    found: dict[str, Any] = {}
    for name, folded in (("folded_here", False), ("already_folded", True)):
        dictionary = _read_as(source, already_folded=folded).build(dtype=torch.float32)
        with torch.no_grad():
            f = dictionary.encode(x.float())
            found[f"explained_variance_{name}"] = explained_variance(target.float(), dictionary.decode(f, x.float()))
            found[f"l0_{name}"] = float((f != 0).sum(-1).float().mean())
    said = yes_or_no(source, "already_folded")
    in_force = looks_folded(source, _weights(source)[1])[0] if said is None else said
    found["in_force"] = "already_folded" if in_force else "folded_here"
    better = found["explained_variance_already_folded"] > found["explained_variance_folded_here"]
    found["better"] = "already_folded" if better else "folded_here"
    return found


LLAMASCOPIUM = Format(
    name="llamascopium",
    title="Llamascopium (OpenMOSS, Language-Model-SAEs)",
    layout=f"{CONFIG_FILE} with sae_type, d_model and expansion_factor, and sae_weights.safetensors or .pt with W_E",
    recognise=_recognise,
    read=_read,
    reads="SAEs, Matryoshka SAEs, transcoders and crosscoders, with ReLU, JumpReLU and TopK; BatchTopK with a threshold",
    overrides={
        "already_folded": "true where the data set's norms are in the weights already, false where they are not",
        "threshold_folded": "true where thresholds were folded with the weights, which the library does not do",
        "threshold": "what a feature of a BatchTopK dictionary has to exceed to fire; none is stored",
        "split_heads": "true to make each hook point's part of a crosscoder's feature a feature of its own",
        "weights": "the file of weights, where it is none of the usual",
    },
    checked_against="an independent writer of the published formulas",
)
