"""Which tokens a change applies to.

A rule is one of

- ``"all"``, ``"prompt"`` or ``"generated"``. The prompt is what the model was first given; what follows it was generated,
  with a cache (token by token) or without (the text again, one token longer);
- a bool mask ``[T]`` or ``[B, T]`` over the prompt, padding counted; false for all that follows it;
- ``Where(site, feature)``: where another feature is active, or (``so_far=True``) has been, the token itself counted;
- a list of these, all of which must hold.

Padding is never changed, and special tokens only where a change says ``special_tokens=True``: dictionaries are trained
without them as a rule, and a model's first token carries a huge activation that others lean on.

Shapes: ``B`` batch, ``T`` tokens of this pass, ``P`` tokens before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from saescope.interventions.site import Site
    from saescope.models.hooks import Pass

NAMED = ("all", "prompt", "generated")


@dataclass(frozen=True, eq=False)
class Where:
    """Tokens on which a feature is active, before anything is changed there.

    Attributes:
        above: active means larger than this, in activations.
        so_far: also all tokens after such a one.
    """

    site: Site
    feature: int
    above: float = 0.0
    so_far: bool = False

    def __post_init__(self) -> None:
        self.site.check_feature(self.feature)
        if not self.above >= 0:
            raise ValueError(f"above is an activation of at least 0, not {self.above}")


Rule: TypeAlias = Literal["all", "prompt", "generated"] | Tensor | Where
Positions: TypeAlias = Rule | Sequence[Rule]


def rules(positions: Positions) -> tuple[Rule, ...]:
    """The rules that must all hold.

    Raises:
        ValueError: something is none.
    """
    found = (positions,) if isinstance(positions, str | Tensor | Where) else tuple(positions)
    for rule in found:
        mask = isinstance(rule, Tensor) and rule.dtype == torch.bool and rule.dim() in (1, 2)
        if not (mask or isinstance(rule, Where) or (isinstance(rule, str) and rule in NAMED)):
            shown = f"a {rule.dtype} tensor of shape {tuple(rule.shape)}" if isinstance(rule, Tensor) else repr(rule)
            raise ValueError(
                f'positions are "all", "prompt", "generated", a bool mask [tokens] or [batch, tokens], or Where(site, '
                f"feature), alone or in a list; not {shown}"
            )
    return found


class Text:
    """The text that a model is running over, pass by pass: what was the prompt, and which features have fired."""

    def __init__(self, special_token_ids: frozenset[int]) -> None:
        self._special = torch.tensor(sorted(special_token_ids), dtype=torch.long)
        self._ids: Tensor | None = None  # [B, P + T], of all passes so far
        self._num_prompt = 0
        self._fired: dict[Where, Tensor] = {}  # [B, P + T]
        self._running: Pass

    def begin(self, running: Pass) -> None:
        """A pass begins: one of a new text, or of the text so far."""
        ids, before = running.ids, self._ids
        self._running = running
        if running.num_past:
            known = before is not None and ids is not None and len(before) == len(ids)
            if known and before is not None and ids is not None and before.shape[1] >= running.num_past:
                self._ids = torch.cat([before[:, : running.num_past].to(ids.device), ids], dim=1)
            else:  # the context was entered in the middle of a text: what came before is its prompt
                self._ids, self._num_prompt, self._fired = None, running.num_past, {}
            return
        longer = (
            before is not None
            and ids is not None
            and len(before) == len(ids)
            and ids.shape[1] >= before.shape[1]
            and bool((ids[:, : before.shape[1]] == before.to(ids.device)).all())
        )
        if not longer:
            self._num_prompt, self._fired = running.shape[1], {}
        self._ids = ids

    def chosen(
        self, found: tuple[Rule, ...], active: dict[Where, Tensor], special_tokens: bool, device: torch.device
    ) -> Tensor:
        """Which tokens of this pass all rules hold for, bool ``[B, T]``.

        Args:
            active: where the features of ``Where`` rules are active in this pass, ``[B, T]``.
        """
        running = self._running
        columns = running.num_past + torch.arange(running.shape[1], device=device)
        keep = torch.ones(running.shape, dtype=torch.bool, device=device)
        if running.is_token is not None:
            keep &= running.is_token.to(device)
        if not special_tokens and running.ids is not None and len(self._special):
            keep &= ~torch.isin(running.ids.to(device), self._special.to(device))
        for rule in found:
            if isinstance(rule, Tensor):
                keep &= self._masked(rule.to(device), columns)
            elif isinstance(rule, Where):
                keep &= self._so_far(rule, active[rule]) if rule.so_far else active[rule]
            elif rule != "all":
                keep &= (columns < self._num_prompt) == (rule == "prompt")
        return keep

    def _masked(self, mask: Tensor, columns: Tensor) -> Tensor:
        rows = mask if mask.dim() == 2 else mask[None]
        batch = self._running.shape[0]
        if rows.shape[1] != self._num_prompt or len(rows) not in (1, batch):
            raise ValueError(
                f"the mask of positions has the shape {tuple(mask.shape)}, and the prompt has {batch} texts of "
                f"{self._num_prompt} tokens, padding counted; they must agree"
            )
        inside = columns < self._num_prompt
        return rows[:, columns.clamp_max(self._num_prompt - 1)] & inside

    def _so_far(self, rule: Where, active: Tensor) -> Tensor:
        past = self._running.num_past
        before = self._fired.get(rule)
        earlier = active.new_zeros(len(active), past)
        if before is not None and before.shape[1] >= past and len(before) == len(active):
            earlier = before[:, :past]
        self._fired[rule] = torch.cat([earlier, active], dim=1)
        return self._fired[rule].cummax(dim=1).values[:, past:]
