"""SAELens with its option for sparse activations (TopK alone), which it leaves off by default."""

from __future__ import annotations

from typing import Any, ClassVar

from libraries import sae_lens


class Task(sae_lens.Task):
    does = sae_lens.Task.does + "; use_sparse_activations on"
    leaves_out = sae_lens.Task.leaves_out + ", selection weighted by decoder norms (fails beside sparse activations)"
    # with the weighting on, torch 2.13 has no backward for the product of a sparse with a dense tensor
    options: ClassVar[dict[str, Any]] = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
