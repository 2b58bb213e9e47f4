"""Which rows of a dictionary enter the residual stream, and so have a direct effect on the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from saescope.dictionaries import Crosscoder, Dictionary
from saescope.models.hook_points import HookPointError

if TYPE_CHECKING:
    from saescope.models import LanguageModel, Unembedding

_WRITTEN_TO_THE_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


def written_rows(dictionary: Dictionary, hook_points: Sequence[str], hook_point_out: str) -> tuple[Tensor, str]:
    """Decoder rows ``[d_sae, d]`` and the hook point that they are written to: of a crosscoder those of its last source.

    Raises:
        ValueError: a crosscoder with another number of sources than hook points.
    """
    if not isinstance(dictionary, Crosscoder):
        return dictionary.W_dec, hook_point_out or hook_points[0]
    sources = dictionary.of_sources(dictionary.W_dec)
    if len(sources) != len(hook_points):
        raise ValueError(
            f"the crosscoder has {len(sources)} sources, and {len(hook_points)} hook points are named: "
            f"{', '.join(hook_points)}"
        )
    return sources[-1], hook_points[-1]


def unembedding_for(model: LanguageModel, hook_point: str) -> Unembedding:
    """The unembedding that rows written at a hook point can be sent through.

    Raises:
        ValueError: they cannot: what is written there does not enter the residual stream (a matter of meaning, not of
            width: ``attn.hook_z`` is often just as wide), or what follows the stream is unknown or no linear map.
    """
    unembedding = model.unembedding()
    place = model.hook_point(hook_point).canonical
    for layer in range(model.module.config.get_text_config().num_hidden_layers):
        for name in _WRITTEN_TO_THE_STREAM:
            try:
                if model.hook_point(f"blocks.{layer}.{name}").canonical == place:
                    return unembedding
            except HookPointError:  # parallel blocks have no hook_resid_mid
                continue
    raise ValueError(
        f"{hook_point} is not on the residual stream, so its decoder rows have no direct effect on the logits"
    )
