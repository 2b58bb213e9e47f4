"""A batch of texts that a model reads piece by piece, with changes applied and a cache between the pieces.

Generation and the scoring of what was generated both read texts this way: the prompts first, then what follows. So
``positions="generated"`` means the same tokens in both, since an intervention takes what it is first given for the prompt.
The model's lock is held while a piece is read and free in between.

Prompts are padded on the left, so that all of them end in the same column.

Shapes: ``B`` texts, ``P`` tokens of the longest prompt, ``T`` tokens of a piece, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saescope.interventions.changes import Change
from saescope.interventions.intervention import Intervention

if TYPE_CHECKING:
    from saescope.models import LanguageModel


class Run:
    """One reading of a batch."""

    def __init__(
        self,
        model: LanguageModel,
        prompt_ids: Sequence[Sequence[int]],
        changes: Sequence[Change] | Change = (),
        *,
        use_cache: bool = True,
    ) -> None:
        """Nothing is read yet.

        Args:
            use_cache: otherwise everything is read again with every piece, which is slow and gives the same; so are
                models that have no such cache.

        Raises:
            ValueError: changes that do not go together, or of another model.
        """
        self.changes = changes_of(model, changes)
        self._model = model
        self._intervention = Intervention(self.changes) if self.changes else None
        self._use_cache = use_cache
        self._cache: Any = None
        width = max(map(len, prompt_ids))
        # any id will do for padding; it is never attended to
        padded = [[0] * (width - len(ids)) + list(ids) for ids in prompt_ids]
        masks = [[False] * (width - len(ids)) + [True] * len(ids) for ids in prompt_ids]
        self._ids = torch.empty((len(padded), 0), dtype=torch.long)  # all that was read, [B, P + ...]
        self._mask = torch.empty((len(padded), 0), dtype=torch.bool)
        self._prompt = torch.tensor(padded), torch.tensor(masks)  # [B, P]

    def read_prompts(self) -> Tensor:
        """Logits ``[B, V]`` for each text's first new token."""
        return self.read(*self._prompt)[:, -1]

    @torch.no_grad()
    def read(self, ids: Tensor, is_token: Tensor) -> Tensor:
        """The next piece ``[B, T]`` of all texts; gives the logits ``[B, T, V]`` of what follows each of its tokens.

        Args:
            is_token: bool ``[B, T]``, false where a text has ended.

        Raises:
            ValueError: logits that are no numbers; says which changes were made.
        """
        self._ids = torch.cat([self._ids, ids], dim=1)
        self._mask = torch.cat([self._mask, is_token], dim=1)
        num_new = ids.shape[1]
        cached = self._cache is not None
        with self._intervention or nullcontext():
            output = self._model.forward(
                ids if cached else self._ids,
                attention_mask=self._mask.long(),
                cache=self._cache,
                use_cache=self._use_cache,
            )
        if self._use_cache:
            self._cache = getattr(output, "past_key_values", None)
        logits: Tensor = output.logits[:, -num_new:]
        broken = ~torch.isfinite(logits).all(-1) & is_token.to(logits.device)  # [B, T]
        if bool(broken.any()):
            raise ValueError(self._broken(num_new, broken))
        return logits

    def _broken(self, num_new: int, broken: Tensor) -> str:
        text = int(broken.any(1).nonzero()[0, 0])
        num_read = self._mask.shape[1] - num_new - self._prompt[0].shape[1]
        where = f"after {num_read + 1} new tokens" if num_read >= 0 else "at the prompt"
        found = f"the logits of text {text} are no numbers or infinite {where}"
        if not self.changes:
            return (
                f"{found}, and nothing was changed: is the model {self._model.name} intact, and its dtype wide enough?"
            )
        return f"{found}, with {'; '.join(map(str, self.changes))}: choose a smaller strength"


def changes_of(model: LanguageModel, changes: Sequence[Change] | Change) -> tuple[Change, ...]:
    """The changes as a tuple.

    Raises:
        ValueError: one of another model.
    """
    found = (changes,) if isinstance(changes, Change) else tuple(changes)
    for change in found:
        if isinstance(change, Change) and change.site.model is not model:
            raise ValueError(
                f"{change} is a change of the model {change.site.model.name}, and the text is to be written by another "
                f"object, {model.name}; make the site with the model that generates"
            )
    return found
