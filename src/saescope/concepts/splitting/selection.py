"""Which tokens of a batch belong to which unit, from tokens to units and back.

::

    rows = selection.gather(A, strategy)          # [n, l, d] -> [ng, d]
    A_new = selection.scatter(A, rows, strategy)  # [n, l, d], changed where the units' tokens are

Both are differentiable, and ``gather(scatter(A, rows)) == rows`` for every strategy.

Shapes: ``n`` texts, ``l`` tokens, padding counted, ``g`` units of one text, ``ng`` of all, ``m`` tokens of all units.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from transformers import BatchEncoding

from saescope.concepts.splitting.aggregation import GranularityAggregationStrategy as Strategy
from saescope.concepts.splitting.encoding import Encoded
from saescope.concepts.splitting.granularity import ActivationGranularity as Granularity


class Selection:
    """The units of one batch.

    Attributes:
        encoding: what the model gets: ``input_ids`` and ``attention_mask`` ``[n, l]``, and what else the inputs held.
        granularity: what a unit is.
        units: for each text, for each unit, its columns in ``input_ids``.
    """

    def __init__(
        self,
        encoded: Encoded,
        granularity: Granularity,
        units: list[list[list[int]]],
        text_of: Callable[[int], list[str]],
    ) -> None:
        """Made by ``Selector.select`` (``selecting.py``).

        Args:
            text_of: the units' texts of one row.
        """
        self.encoding: BatchEncoding = encoded.encoding
        self.granularity = granularity
        self.units = units
        self._text_of = text_of
        self._shape = tuple(encoded.encoding["input_ids"].shape)

    @property
    def counts(self) -> list[int]:
        """``g`` of each text."""
        return [len(each) for each in self.units]

    @cached_property
    def unit_texts(self) -> list[list[str]]:
        """What each unit says: a token's text, a word, a sentence, or the text (for ``CLS_TOKEN`` as well)."""
        return [self._text_of(text) for text in range(len(self.units))]

    def gather(self, activations: Tensor, strategy: Strategy | str = Strategy.MEAN) -> Tensor:
        """``[n, l, d]`` to one row per unit, ``[ng, d]``, text by text. Half precision becomes float32.

        Raises:
            ValueError: activations of another batch, or an unknown strategy.
        """
        strategy = Strategy(strategy)
        places, sizes = self._index(activations)
        rows = activations.flatten(0, 1)[places]  # [m, d]
        if self.granularity.is_of_tokens:
            return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        return strategy.aggregate_units(rows, sizes)

    def scatter(self, activations: Tensor, rows: Tensor, strategy: Strategy | str = Strategy.MEAN) -> Tensor:
        """Activations ``[n, l, d]`` with each unit's tokens overwritten by its row ``[ng, d]``, unfolded.

        All other tokens keep their activation. A new tensor, of the dtype of ``activations``.

        Raises:
            ValueError: activations of another batch, another number of rows or width, an unknown strategy, or ``SAMPLE``,
                whose one vector stands for no token.
        """
        if self.granularity is Granularity.SAMPLE:
            raise ValueError(
                "one vector per text cannot be written back to its tokens; use TOKEN, WORD, SENTENCE, ALL_TOKENS or "
                "CLS_TOKEN"
            )
        strategy = Strategy(strategy)
        places, sizes = self._index(activations)
        wanted = (len(sizes), activations.shape[-1])
        if rows.shape != wanted:
            raise ValueError(f"there are {wanted[0]} units of width {wanted[1]}, and the rows are {tuple(rows.shape)}")
        values = rows if self.granularity.is_of_tokens else strategy.unfold_units(rows, sizes)
        flat = activations.flatten(0, 1)
        return flat.index_copy(0, places, values.to(flat)).view(activations.shape)

    def _index(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Places ``[m]`` in ``[n * l]`` and sizes ``[ng]``, where the activations are."""
        if activations.dim() != 3 or tuple(activations.shape[:2]) != self._shape:
            raise ValueError(
                f"this batch has {self._shape[0]} texts of {self._shape[1]} tokens, and the activations have the shape "
                f"{tuple(activations.shape)}; [texts, tokens, width] is needed"
            )
        places, sizes = self._places
        return places.to(activations.device), sizes.to(activations.device)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        width = self._shape[1]
        units = [(text, unit) for text, of_text in enumerate(self.units) for unit in of_text]
        places = [text * width + column for text, unit in units for column in unit]
        return torch.tensor(places, dtype=torch.long), torch.tensor([len(unit) for _, unit in units], dtype=torch.long)
