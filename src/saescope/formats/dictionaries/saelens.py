"""SAELens: a folder with ``cfg.json`` and ``sae_weights.safetensors``, saescope's own layout too.

    f = act((x - b_dec) @ W_enc + b_enc)        x_hat = f @ W_dec + b_dec

What act is, the architecture says. Finished dictionaries and the checkpoints of a run are opened, of version 6 and of
before. A checkpoint is what the run would have exported at that point: BatchTopK and Matryoshka are JumpReLU with the
threshold that was learned, and scales that still lie beside the weights are folded (``saelens_scaling.py``).

Sources: the code of SAELens 6.54.12 (github.com/jbloomAus/SAELens), which opens what it wrote since 2024.

d_in  width of the input, d_out  width of what is rebuilt, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saescope.dictionaries.temporal import ConstantScalar
from saescope.formats.dictionaries.own import is_our_own
from saescope.formats.dictionaries.saelens_legacy import LLM_KEYS, TRAINING_KEYS, as_of_6, is_legacy
from saescope.formats.dictionaries.saelens_scaling import PER_TOKEN, take_normalization
from saescope.formats.dictionaries.saelens_writing import WRITES, write_saelens
from saescope.formats.dictionaries.temporal import read_temporal
from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import ConfigSource, Source
from saescope.formats.tensor_files import TensorSource

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"

_PLAIN = ("W_enc", "W_dec", "b_enc", "b_dec")

# SAELens' architecture -> ours, and its tensors; thresholds are looked for by each of their names
_ARCHITECTURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "standard": ("relu", _PLAIN),
    "topk": ("topk", _PLAIN),
    "abstopk": ("abs_topk", _PLAIN),
    "jumprelu": ("jumprelu", _PLAIN),
    "gated": ("gated", ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")),
    "matching_pursuit": ("matching_pursuit", ("W_dec", "b_dec")),
    "transcoder": ("transcoder", _PLAIN),
    "skip_transcoder": ("skip_transcoder", (*_PLAIN, "W_skip")),
    "jumprelu_transcoder": ("jumprelu_transcoder", _PLAIN),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", (*_PLAIN, "W_skip")),
    # of training alone
    "batchtopk": ("jumprelu", _PLAIN),
    "matryoshka_batchtopk": ("jumprelu", _PLAIN),
}
_ONE_THRESHOLD = ("batchtopk", "matryoshka_batchtopk")
_BY_NUMBER = ("topk", "abstopk")
_DTYPES = ("float32", "float64", "float16", "bfloat16")
_OWN_JUMPRELU_KEYS = ("k", "widths", "initial_threshold", "bandwidth")  # of our own files that lost their note

_OVERRIDES = {
    "norm_scaling_factor": "the factor on activations in training, for files with normalize_activations = "
    "expected_average_only_in; 1 if it is folded into the weights",
    "normalize_activations": "what was done to activations in training, by SAELens' name",
    "k": "features per token, for topk and abstopk files that do not say",
}


def _recognise(source: Source) -> bool:
    return source.has(CONFIG_FILE, WEIGHTS_FILE) and source.only in ("", WEIGHTS_FILE) and not is_our_own(source)


def _read(source: Source) -> Foreign:
    said: list[str] = []
    config, tensors = _config(source, said), source.tensors(WEIGHTS_FILE)
    name = _architecture(config)
    if name == "temporal":
        return _temporal(config, tensors, said)
    ours, wanted = _ARCHITECTURES[name]
    d_in, d_sae = config.need("d_in", int), config.need("d_sae", int)
    d_out = config.need("d_out", int) if "transcoder" in name else d_in
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in),
    }  # fmt: skip
    foreign = Foreign(
        format="saelens",
        architecture=ours,
        tensors={key: tensors.take(key, shapes.get(key, (d_sae,))) for key in wanted},
        metadata=_metadata(config),
        said=said,
    )
    _take_settings(foreign, name, d_out, config, source)
    _say_dtype(foreign, config)
    by_norm = name in (*_BY_NUMBER, *_ONE_THRESHOLD) and config.get("rescale_acts_by_decoder_norm", bool, False)
    if "jumprelu" in ours and name not in _ONE_THRESHOLD:
        foreign.tensors["threshold"] = _threshold(tensors, d_sae)
    divisor = take_normalization(foreign, config, source, by_norm=by_norm)
    if name in _ONE_THRESHOLD:  # it is compared with what the norms have multiplied already
        foreign.tensors["threshold"] = _one_threshold(tensors, d_sae, divisor, foreign)
    _refuse_finetuning(tensors)
    config.ignore("device", *TRAINING_KEYS, *(_OWN_JUMPRELU_KEYS if "jumprelu" in ours else ()))
    config.require_all_used()
    tensors.require_all_used()
    return foreign


def _temporal(config: ConfigSource, tensors: TensorSource, said: list[str]) -> Foreign:
    metadata, kind = _metadata(config), config.get("normalize_activations", str, "none")
    if kind not in ("none", *PER_TOKEN, ConstantScalar.name):
        raise ValueError(
            f"{config.where} is of a temporal dictionary with normalize_activations = {kind!r}, not known here"
        )
    foreign = read_temporal(config, tensors, {"W_dec": "W_dec", "b_dec": "b_dec", "W_enc": "W_enc"})
    foreign.format, foreign.metadata, foreign.normalization = "saelens", metadata, kind
    foreign.said[:0] = said
    _say_dtype(foreign, config)
    config.ignore("device", "reshape_activations", *TRAINING_KEYS)
    config.require_all_used()
    tensors.require_all_used()
    return foreign


def _config(source: Source, said: list[str]) -> ConfigSource:
    """The configuration as of version 6."""
    config = source.config(CONFIG_FILE)
    values = config.as_dict()
    if not is_legacy(values):
        return config
    said.append(
        "cfg.json is of SAELens before version 6, or does not say of which; read with the defaults of that time"
    )
    return ConfigSource(as_of_6(values, config.where), config.where, lenient=source.lenient)


def _architecture(config: ConfigSource) -> str:
    name: str = config.need("architecture", str)
    if name.startswith("saescope/"):
        raise ValueError(
            f"{config.where} has architecture {name!r}, of saescope's own files, but not the note that they have; open it "
            "with format='saescope'"
        )
    if name not in (*_ARCHITECTURES, "temporal"):
        raise ValueError(
            f"{config.where} has architecture {name!r}, which is not opened here; known are "
            f"{', '.join(_ARCHITECTURES)}, temporal"
        )
    return name


def _metadata(config: ConfigSource) -> dict[str, object]:
    """What is known of the model: from the top level of old files, from ``metadata`` of new ones."""
    top = {key: config.get(key) for key in LLM_KEYS if key in config}
    return {key: value for key, value in top.items() if value is not None} | config.get("metadata", dict, {})


def _take_settings(foreign: Foreign, name: str, d_out: int, config: ConfigSource, source: Source) -> None:
    settings = foreign.settings
    if "transcoder" in name:
        if config.get("apply_b_dec_to_input", bool, False):
            raise ValueError(
                f"{config.where}: apply_b_dec_to_input of a {name} should be false: b_dec belongs to its output"
            )
        settings["d_out"] = d_out
    else:
        settings["apply_b_dec_to_input"] = config.get("apply_b_dec_to_input", bool, True)
    if name in _BY_NUMBER:
        settings["k"] = _k(config, source)
    elif source.override("k") is not None:
        raise ValueError(f"k = {source.override('k')} is for topk and abstopk files; {config.where} is a {name}")
    if name in _ONE_THRESHOLD and (k := config.get("k", (int, float))) is not None:
        foreign.said.append(f"a checkpoint of {name} training, where {k:g} features per token fire on average")
    if name == "matching_pursuit":
        settings["k"] = config.get("max_iterations", int)
        settings["residual_threshold"] = max(0.0, config.get("residual_threshold", float, 1e-2))
        settings["stop_on_repeat"] = config.get("stop_on_duplicate_support", bool, True)
    reshape = config.get("reshape_activations", str, "none")
    if reshape not in ("none", "hook_z"):
        raise ValueError(f"{config.where} has reshape_activations = {reshape!r}; known are none and hook_z")
    if reshape == "hook_z":
        foreign.said.append(
            "reshape_activations = hook_z: heads lie side by side in attn.hook_z here, as the encoder wants"
        )


def _k(config: ConfigSource, source: Source) -> int:
    said, written = source.override("k"), config.get("k", (int, float))
    found = written if said is None else said
    if found is None:
        raise ValueError(f"{config.where} has no k; pass it (k=...), SAELens would take 100")
    try:
        whole = int(found)
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if whole < 1 or whole != float(found):
        raise ValueError(f"k should be a whole number of at least 1, got {found!r}")
    return whole


def _say_dtype(foreign: Foreign, config: ConfigSource) -> None:
    """Weights keep the type they are stored in; SAELens brings them to the type in cfg.json."""
    named = config.get("dtype", str)
    if named is None:
        return
    if named.removeprefix("torch.") not in _DTYPES:
        raise ValueError(f"{config.where} has dtype = {named!r}; known are {', '.join(_DTYPES)}")
    stored = str(foreign.dtype).removeprefix("torch.")
    if named.removeprefix("torch.") != stored:
        foreign.said.append(f"weights are stored in {stored} and stay so; SAELens would compute in {named}")


def _threshold(tensors: TensorSource, d_sae: int) -> Tensor:
    """Of each feature, ``[d_sae]``; a firing is positive there whatever the threshold."""
    if "log_threshold" in tensors and "threshold" not in tensors:  # checkpoints of versions that trained the logarithm
        logarithm = tensors.take("log_threshold", (d_sae,))
        return logarithm if logarithm.is_meta else logarithm.exp()
    threshold = tensors.take("threshold", (d_sae,))
    return threshold if threshold.is_meta else threshold.clamp(min=0)


def _one_threshold(tensors: TensorSource, d_sae: int, divisor: float, foreign: Foreign) -> Tensor:
    """The threshold that BatchTopK has learned, for every feature, ``[d_sae]``."""
    threshold = tensors.take("topk_threshold", ())
    if not threshold.is_meta:
        threshold = (threshold / divisor).clamp(min=0)
        foreign.said.append(f"every feature has the threshold {threshold.item():.6g}, learned in training")
        if threshold == 0:
            foreign.said.append("a threshold of 0 is where training begins: every positive activation passes")
    return threshold.to(foreign.dtype).expand(d_sae)


def _refuse_finetuning(tensors: TensorSource) -> None:
    """Factors on activations, of versions before 6: ones, as a rule, and then of no effect."""
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name not in tensors:
            continue
        factors = tensors.take(name)
        if not factors.is_meta and not torch.allclose(factors.double(), torch.ones_like(factors).double()):
            raise ValueError(
                f"{tensors.where}: {name} holds factors other than 1, of SAELens' finetuning before version 6, which no "
                "later version computes and is not opened here"
            )


SAELENS = Format(
    name="saelens",
    title="SAELens",
    layout=f"{CONFIG_FILE} and {WEIGHTS_FILE}",
    recognise=_recognise,
    read=_read,
    reads=", ".join(_ARCHITECTURES) + ", temporal; versions 2 to 6, checkpoints of training",
    overrides=_OVERRIDES,
    write=write_saelens,
    writes=WRITES,
    checked_against="sae-lens 6.54.12",
)
