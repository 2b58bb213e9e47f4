"""One layer of a cross-layer transcoder, as a transcoder that writes all of its targets side by side.

A cross-layer transcoder reads each layer by itself, and its features write into several::

    f_l = act(x_l @ W_enc_l + b_enc_l)        y_L = sum over l of f_l @ W_dec_l[:, L] + b_dec_L (+ x_L @ skip_L)

Files hold one l each. Such a file is an ordinary transcoder with an output of ``targets * d_model``: the decoder's target
axis and its last axis are one axis. b_dec_l and skip_l belong to the target l and are 0 for all others, so that adding
what the files of all layers give, each target to its own, is the whole. Nothing is summed over targets, as SAELens does
to have features alone.

d_in  width of the input, d_model  of one target, T  targets, d_sae  features of this layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def side_by_side(W_dec: Tensor, b_dec: Tensor, W_skip: Tensor | None, *, own: int | None) -> dict[str, Tensor]:
    """The decoder's tensors in our layout. Nothing large is copied but a skip connection.

    Args:
        W_dec: ``[d_sae, T, d_model]``.
        b_dec: ``[d_model]``, of this layer's own target.
        W_skip: ``[d_model, d_in]``, of this layer's own target, or None.
        own: which of the targets is this layer's own.
    """
    _, targets, width = W_dec.shape
    found = {
        "W_dec": W_dec.flatten(1),
        "b_dec": b_dec.new_zeros(targets * width),
    }  # [d_sae, T * d_model], [T * d_model]
    if W_skip is not None:
        found["W_skip"] = W_skip.new_zeros(targets * width, W_skip.shape[1])
    if own is not None:
        block = slice(own * width, (own + 1) * width)
        found["b_dec"][block] = b_dec
        if W_skip is not None:
            found["W_skip"][block] = W_skip
    return found


def words(layer: int, targets: Sequence[int], width: int) -> str:
    """What to say of it."""
    return (
        f"layer {layer} of a cross-layer transcoder: it writes into {len(targets)} targets side by side, {width} numbers "
        f"each (layers {', '.join(map(str, targets))}); what all layers write into a target adds up to its output, and "
        f"b_dec is that of target {layer} alone"
    )
