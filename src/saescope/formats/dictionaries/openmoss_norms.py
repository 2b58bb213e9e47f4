"""How OpenMOSS' libraries scale activations, and whether a file's weights have the scale in them already.

In training every activation is brought to norm sqrt(d), by a factor s = sqrt(d) / norm for each hook point. The norm is the
token's own (``token-wise``), the batch's mean (``batch-wise``), or the data set's mean (``dataset-wise``), which is stored
with the weights. ``inference`` means that nothing is scaled: weights are for activations as the model gives them.

**The double fold.** Since version 2.0.0b22 the training runner writes ``config.json`` before training, and divides the
scale out of the weights when it saves them. Such a folder still says ``dataset-wise``, and its norms are still there, so
that whoever folds by the configuration folds twice. Nothing in the folder says which it is. The rule here, unless the user
says ``already_folded``: weights by a version from 2.0.0b22 on are taken as folded, because that runner folds unless it is
told not to; older ones are not, and neither are checkpoints of a run (``trainer.pt`` beside them, or a folder named
``step_N``), which are never folded.

Source: the code of Llamascopium 2.0.0b34 (github.com/OpenMOSS/Llamascopium), formerly Language-Model-SAEs.

d  width of an activation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from saescope.formats.source import ConfigSource, Source
from saescope.formats.tensor_files import TensorSource

NORM = "dataset_average_activation_norm"
FOLDS_BY_ITSELF = (2, 0, 0, 22)  # from this version on the runner's configuration does not tell of its folding
_NO_BETA = 1 << 30  # 2.0.0 comes after all its betas

State = Literal["raw", "token", "outside", "inside"]


@dataclass(frozen=True)
class Scaling:
    """What activations are multiplied by before the weights see them.

    Attributes:
        state: "raw": nothing. "token": each token by its own factor. "outside": ``scales``, which are not in the weights.
            "inside": ``scales``, which the library has put into the weights.
        scales: one per hook point; None where only headers were read.
        said: the decision in words.
    """

    state: State
    scales: tuple[float, ...] | None = None
    said: list[str] = field(default_factory=list)


def scaling_of(
    source: Source,
    config: ConfigSource,
    tensors: TensorSource,
    hook_points: Sequence[str],
    d_model: int,
    *,
    version: str = "",
    already_folded: bool | None = None,
) -> Scaling:
    """How activations are scaled for these weights, and where that is decided.

    Raises:
        ValueError: a scale that depends on more than the token, or a stored norm that can not be one.
    """
    kind = config.get("norm_activation", str, "dataset-wise")
    tensors.ignore(rf"{NORM}\..*")  # memory that nothing was written to unless the scaling is dataset-wise
    if kind == "inference":
        return _in_inference(config, tensors, hook_points, d_model, already_folded)
    if kind == "dataset-wise":
        folded, why = (
            looks_folded(source, version) if already_folded is None else (already_folded, "as already_folded says")
        )
        scales = stored_scales(tensors, hook_points, d_model)
        return Scaling("inside" if folded else "outside", scales, [_folding_in_words(folded, why)])
    if already_folded is not None:
        raise ValueError(f"{config.where}: norm_activation is {kind}, which can not be folded into weights")
    if kind == "token-wise":
        if len(set(hook_points)) > 1:
            raise ValueError(
                f"{config.where}: norm_activation is token-wise with several hook points ({', '.join(hook_points)}): each "
                "is scaled by its own norm on every token, so that an output can not be brought back without knowing it"
            )
        return Scaling("token", said=["each token is brought to norm sqrt(d) first, and brought back last"])
    if kind == "batch-wise":
        raise ValueError(
            f"{config.where}: norm_activation is batch-wise: what a token gives depends on the other tokens of its batch, "
            "which is no function of the activation; it can not be opened"
        )
    raise ValueError(
        f"{config.where}: norm_activation is {kind!r}; known are dataset-wise, inference, token-wise and batch-wise"
    )


def _in_inference(
    config: ConfigSource, tensors: TensorSource, hook_points: Sequence[str], d_model: int, already_folded: bool | None
) -> Scaling:
    if already_folded is False:
        raise ValueError(
            f"{config.where}: norm_activation is inference, so that there is no scale to be folded; if that is wrong, write "
            "dataset-wise there"
        )
    if already_folded:
        said = ["the norms in the file are taken for those that were folded, as already_folded says"]
        return Scaling("inside", stored_scales(tensors, hook_points, d_model), said)
    return Scaling("raw", said=["norm_activation is inference: weights are taken as they stand"])


def stored_scales(tensors: TensorSource, hook_points: Sequence[str], d_model: int) -> tuple[float, ...] | None:
    """The factor of every hook point; None where only headers were read."""
    names = [f"{NORM}.{hook_point}" for hook_point in hook_points]
    missing = sorted(set(names) - set(tensors))
    if missing:
        raise ValueError(
            f"{tensors.where} has no {', '.join(missing)}, though activations were scaled by the data set's norm in "
            "training; without it the dictionary is of another scale"
        )
    scales = [scale_to_root_d(tensors.take_value(name), d_model, f"{tensors.where}: {name}") for name in names]
    known = [scale for scale in scales if scale is not None]
    return tuple(known) if len(known) == len(scales) else None


def scale_to_root_d(norm: Any, d_model: int, where: str) -> float | None:
    """sqrt(d) / norm; None for a norm of which only the header was read."""
    if norm is None:
        return None
    number = isinstance(norm, int | float) and not isinstance(norm, bool)
    scale = math.sqrt(d_model) / norm if number and norm > 0 else math.nan
    if not 0 < scale < math.inf:
        raise ValueError(
            f"{where} should be the mean norm of activations, a positive number, but is {norm!r}: it was never set when the "
            "file was written"
        )
    return scale


def looks_folded(source: Source, version: str) -> tuple[bool, str]:
    """Whether the scale is in the weights of a folder that says ``dataset-wise``, and why: the rule above."""
    if source.has("trainer.pt"):
        return False, "trainer.pt beside them marks a checkpoint of a run, which is not folded"
    if source.from_name(r"step_\d+"):
        return False, "by its name the folder is a checkpoint of a run, which is not folded"
    number = _version_number(version)
    if number is None:
        return False, "no version is in the file"
    if number >= FOLDS_BY_ITSELF:
        return True, f"version {version} folds when it saves, and leaves the configuration as it was"
    return False, f"version {version} writes inference where it has folded"


def _version_number(version: str) -> tuple[int, ...] | None:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)(?:b(\d+))?", version)
    return found and tuple(_NO_BETA if part is None else int(part) for part in found.groups())


def _folding_in_words(folded: bool, why: str) -> str:
    if folded:
        return (
            f"the data set's norms are taken as folded into the weights already ({why}); if the reconstruction is bad, they "
            "are not: already_folded=false"
        )
    return (
        f"the data set's norms in the file are folded into the weights here ({why}); if the reconstruction is bad, they "
        "were folded already: already_folded=true"
    )


def thresholds(logarithms: Tensor, norms: Tensor | None, dtype: torch.dtype, *, scale: float = 1.0) -> Tensor:
    """``exp(logarithms) / (norms * scale)``, finite: the largest number of ``dtype`` where a norm is 0: nothing fires there.

    Computed in float64, kept in the weights' precision ``dtype`` or better.
    """
    kept = torch.promote_types(dtype, torch.float32)
    if logarithms.is_meta or (norms is not None and norms.is_meta):
        return torch.empty(logarithms.shape if norms is None else norms.shape, dtype=kept, device="meta")
    largest = torch.finfo(dtype).max
    by = scale * (torch.ones(1, dtype=torch.float64) if norms is None else norms.double())
    return torch.where(by > 0, logarithms.double().exp() / by, largest).clamp(max=largest).to(kept)


def blank_or_zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros, in the place of a bias that is not there; without memory where only headers were read."""
    return like.new_empty(shape) if like.is_meta else like.new_zeros(shape)


def yes_or_no(source: Source, name: str) -> bool | None:
    """An override that is true or false; None where the user says nothing."""
    value = source.override(name)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} should be true or false, got {value!r}")
    return value


def positive_number(source: Source, name: str) -> float | None:
    """An override that is a positive number; None where the user says nothing."""
    value = source.override(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ValueError(f"{name} should be a positive number, got {value!r}")
    return number
