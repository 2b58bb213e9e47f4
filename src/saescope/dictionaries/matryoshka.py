"""The Matryoshka dictionary: every prefix of the features is a dictionary of its own.

Bussmann et al. 2025, arXiv 2503.17547: the codes are those of one BatchTopK over all features, and the loss asks each
of some prefixes to rebuild the activation, so that early features stay general and are not absorbed by special ones.
Random prefixes (Nabeshima 2024, "Matryoshka Sparse Autoencoders") are an option of the loss,
``training/losses/nested.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from saescope.dictionaries.base import register
from saescope.dictionaries.batch_topk import BatchTopK, BatchTopKConfig

_DEFAULT_SHARES = (16, 8, 4, 2, 1)  # prefixes of d_sae / 16, d_sae / 8, ..., as in the paper


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchTopKConfig):
    widths: tuple[int, ...] = ()  # features in each prefix, rising to d_sae; empty: d_sae / 16, / 8, / 4, / 2, and all

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = tuple(self.widths) or tuple(sorted({max(1, self.d_sae // share) for share in _DEFAULT_SHARES}))
        object.__setattr__(self, "widths", widths)
        rising = all(isinstance(b, int) and a < b for a, b in zip((0, *widths), widths, strict=False))
        if not rising or widths[-1] != self.d_sae:
            raise ValueError(
                f"widths must rise from at least 1 to d_sae = {self.d_sae}, in whole numbers, got {list(widths)}"
            )


@register("matryoshka", written_as="jumprelu")
class Matryoshka(BatchTopK):
    """A Matryoshka dictionary on BatchTopK codes."""

    Config = MatryoshkaConfig
    config: MatryoshkaConfig
