"""Llamascopium's crosscoders: one code for several hook points ("heads"), gated for each head by its own decoder's norm.

    H = sum_h (x_h @ W_E[h] + b_E[h])          f_h = act(H n_h) / n_h          y_h = f_h @ W_D[h] + b_D[h]

with n_h the norms of the rows of ``W_D[h]``. So a feature can fire for some heads and not for others. A crosscoder here has
one code for all, and is the same function only where the gate does not depend on the head: with a ReLU, or where a feature's
norms are the same in all heads. Otherwise a JumpReLU is the same function with **each head's part as a feature of its own**,
which reads what the feature reads and writes to that head alone: ``split_heads``, with as many times the features as there
are heads.

Sources lie side by side: ``x = [x_1, x_2, ...]``. The library's own folding divides the biases ``b_E[h]`` and ``b_D[h]`` by
s_h and changes no weight, which is the same function only where all s_h are equal; it is undone here, and the scales
are folded so that the codes are those of training: ``W_E[h] s_h``, ``W_D[h] / s_h``, ``b_D[h] / s_h``.

Source: the code of Llamascopium 2.0.0b34 (github.com/OpenMOSS/Llamascopium).

H  heads, d  width of each, s  features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saescope.formats.dictionaries.openmoss_norms import Scaling, blank_or_zeros, thresholds
from saescope.formats.foreign import Foreign, row_norms, scaled
from saescope.formats.tensor_files import TensorSource


def crosscoder_of(
    tensors: TensorSource, H: int, d: int, s: int, rule: str, log_threshold: Tensor | None, scaling: Scaling,
    *, biased: bool, split: bool,
) -> Foreign:  # fmt: skip
    """The crosscoder in our terms.

    Raises:
        ValueError: one whose features are gated differently for each head, and are not to be split.
    """
    W_E, b_E = tensors.take("W_E", (H, d, s)), tensors.take("b_E", (H, s))
    W_D = tensors.take("W_D", (H, s, d))
    b_D = tensors.take("b_D", (H, d)) if biased else blank_or_zeros(W_D, H, d)
    if scaling.state == "token":
        raise ValueError(f"{tensors.where}: a crosscoder's hook points can not be scaled token by token here")
    if split and log_threshold is None:
        raise ValueError("split_heads is for JumpReLU and for BatchTopK with a threshold")
    foreign = Foreign(
        format="llamascopium",
        architecture=f"{rule}_crosscoder",
        settings={"source_widths": (d,) * H, "apply_b_dec_to_input": False},
        tensors={},
    )
    if W_D.is_meta:
        _blank(foreign, W_D, has_threshold=log_threshold is not None, split=split)
        return foreign
    norms = row_norms(W_D.reshape(H * s, d)).reshape(H, s)
    if scaling.scales is not None:
        by = torch.tensor(scaling.scales, dtype=torch.float64)[:, None]  # [H, 1]
        W_E, W_D = scaled(W_E, by[..., None]), scaled(W_D, 1 / by[..., None])
        if scaling.state == "inside":
            b_E = scaled(b_E, by)
        else:
            b_D = scaled(b_D, 1 / by)
    foreign.tensors = {
        "W_enc": W_E.reshape(H * d, s),
        "b_enc": b_E.sum(0),
        "W_dec": W_D.permute(1, 0, 2).reshape(s, H * d),
        "b_dec": b_D.reshape(H * d),
    }
    if log_threshold is not None and split:
        _split(foreign, W_D, thresholds(log_threshold, norms, W_D.dtype))
    elif rule != "relu":
        _gate(foreign, norms, log_threshold, tensors.where)
    return foreign


def _blank(foreign: Foreign, W_D: Tensor, *, has_threshold: bool, split: bool) -> None:
    """Shapes alone, from headers; whether norms are the same in all heads is not known."""
    H, s, d = W_D.shape
    features = H * s if split else s
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (H * d, features), "b_enc": (features,), "W_dec": (features, H * d), "b_dec": (H * d,),
    }  # fmt: skip
    if has_threshold:
        shapes["threshold"] = (features,)
    foreign.tensors = {name: W_D.new_empty(shape) for name, shape in shapes.items()}
    if foreign.architecture != "relu_crosscoder" and not split:
        foreign.said.append(
            "it can be opened if each feature's decoder has the same norm in all heads; norms were not read"
        )


def _gate(foreign: Foreign, norms: Tensor, log_threshold: Tensor | None, where: str) -> None:
    """The choice of features by norms that are the same in all heads."""
    dtype = foreign.tensors["W_dec"].dtype
    if not bool((norms.amax(0) <= norms.amin(0) * (1 + 4 * torch.finfo(dtype).eps)).all()):
        rest = (
            "split_heads=true opens it with each head's part as a feature of its own"
            if log_threshold is not None
            else "with TopK the heads compete apart, which no architecture here does"
        )
        raise ValueError(
            f"{where}: this crosscoder gates features for each head by that head's decoder norm, and the norms differ "
            f"between heads: a feature fires for some heads and not for others; {rest}"
        )
    common = norms.mean(0)  # [s]
    if log_threshold is not None:
        foreign.tensors["threshold"] = thresholds(log_threshold, common, dtype)
        foreign.said.append("norms of decoders are the same in all heads: a feature fires for all of them or none")
        return
    safe = torch.where(common > 0, common, torch.ones_like(common))
    for name, factor in (("W_enc", common), ("b_enc", common), ("W_dec", 1 / safe[:, None])):
        foreign.tensors[name] = scaled(foreign.tensors[name], factor)
    foreign.said.append(
        "features compete by pre-activation times their decoder's norm; norms are folded into the encoder"
    )


def _split(foreign: Foreign, W_D: Tensor, threshold: Tensor) -> None:
    """Each head's part of a feature as a feature of its own: feature i of head h is h s + i."""
    H, s, d = W_D.shape
    rows = W_D.new_zeros(H * s, H * d)
    for h in range(H):
        rows[h * s : (h + 1) * s, h * d : (h + 1) * d] = W_D[h]
    foreign.tensors["W_enc"] = foreign.tensors["W_enc"].repeat(1, H)
    foreign.tensors["b_enc"] = foreign.tensors["b_enc"].repeat(H)
    foreign.tensors["W_dec"] = rows
    foreign.tensors["threshold"] = threshold.reshape(H * s)
    foreign.said.append(f"each head's part of a feature is a feature of its own: i of head h is h * {s} + i")
