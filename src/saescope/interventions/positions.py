"""Which tokens a change applies to.

A rule is one of

- ``"all"``, ``"prompt"`` or ``"generated"``. The prompt is what the model was first given; what follows it was generated,
  with a cache (token by token) or without (the text again, one token longer);
- a bool mask ``[T]`` or ``[B, T]`` over the prompt, padding counted; false for all that follows it;
- ``Where(site, feature)``: where another feature is active, or (``so_far=True``) has been, the token itself counted;
- a list of these, all of which must hold.

Padding is never changed, and special tokens only where a change says ``special_tokens=True``: dictionaries are trained
without them as a rule, and a model's first token carries a huge activation that others lean on. For the same reason a
feature that fires on either has not "been active" for what follows.

A text goes on where a pass comes with a cache, or with the same prompt and at least as many tokens as before; otherwise
it is a new one. A cache whose rows change places (beam search) is followed in all but ``so_far`` and crosscoders.

Shapes: ``B`` batch, ``T`` tokens of this pass, ``P`` tokens before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakKeyDictionary, ref

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
    found: tuple[Any, ...]
    if isinstance(positions, str | Tensor | Where) or not isinstance(positions, Sequence):
        found = (positions,)
    else:
        found = tuple(positions)
    if not found:
        raise ValueError('positions is an empty list; say "all" for every token')
    for rule in found:
        mask = isinstance(rule, Tensor) and rule.dtype == torch.bool and rule.dim() in (1, 2)
        if not (mask or isinstance(rule, Where) or (isinstance(rule, str) and rule in NAMED)):
            shown = f"a {rule.dtype} tensor of shape {tuple(rule.shape)}" if isinstance(rule, Tensor) else repr(rule)
            raise ValueError(
                f'positions are "all", "prompt", "generated", a bool mask [tokens] or [batch, tokens], or Where(site, '
                f"feature), alone or in a list; not {shown}"
            )
    return found


@dataclass
class _Story:
    """A batch of texts as far as the model has read them."""

    num_texts: int
    num_prompt: int
    num_read: int = 0
    prompt: Tensor | None = None  # ids, [B, num_prompt]; None where they are not known
    fired: dict[tuple[Where, bool], Tensor] = field(default_factory=dict)  # [B, num_read]
    ahead: Any = None  # the cache of passes that read ahead, in which nothing was changed


class Text:
    """The texts that a model is running over: what was the prompt, and which features have fired."""

    def __init__(self, special_token_ids: frozenset[int]) -> None:
        self._special = torch.tensor(sorted(special_token_ids), dtype=torch.long)
        self._by_cache: WeakKeyDictionary[Any, _Story] = WeakKeyDictionary()
        self._last: _Story | None = None
        self._given: list[ref[Any]] = []  # the cache that the last pass has given, once it has ended

    def begin(self, running: Pass) -> PassText:
        """A pass begins: one of a new text, or of one that was begun before."""
        for given in self._given:  # what the pass before has given is what the next one comes with
            cache = given()
            if cache is not None and self._last is not None:
                self._by_cache[cache] = self._last
        story = self._known(running) or self._new(running)
        story.num_read = running.num_past + running.shape[1]
        if running.cache is not None:
            self._by_cache[running.cache] = story
        self._last, self._given = story, running.cache_given
        return PassText(running, story, self._special)

    def _known(self, running: Pass) -> _Story | None:
        story = self._last
        if running.num_past:
            # a cache that was never seen is a copy
            story = self._by_cache.get(running.cache, story)
            goes_on = story is not None and running.num_past <= story.num_read
        else:
            goes_on = story is not None and _begins_with(running.ids, story.prompt, story.num_read)
        return story if goes_on and story is not None and story.num_texts == running.shape[0] else None

    def _new(self, running: Pass) -> _Story:
        if running.num_past:  # the context was entered in the middle of a text: what came before is its prompt
            return _Story(running.shape[0], num_prompt=running.num_past)
        prompt = None if running.ids is None else running.ids.clone()
        return _Story(running.shape[0], num_prompt=running.shape[1], prompt=prompt)


def _begins_with(ids: Tensor | None, prompt: Tensor | None, num_read: int) -> bool:
    if ids is None or prompt is None or len(ids) != len(prompt) or ids.shape[1] < num_read:
        return False
    return bool((ids[:, : prompt.shape[1]] == prompt.to(ids.device)).all())


class PassText:
    """The tokens of one pass, and what came before them."""

    def __init__(self, running: Pass, story: _Story, special: Tensor) -> None:
        self._running, self._story, self._special = running, story, special

    @property
    def ahead(self) -> Any:
        """The cache of passes that read ahead of those in which something is changed."""
        return self._story.ahead

    @ahead.setter
    def ahead(self, cache: Any) -> None:
        self._story.ahead = cache

    def has_read_ahead(self, num_past: int) -> bool:
        """Whether that cache holds as many tokens."""
        return self.ahead is not None and int(self.ahead.get_seq_length()) == num_past

    def chosen(
        self, found: tuple[Rule, ...], active: Mapping[Where, Tensor], special_tokens: bool, device: torch.device
    ) -> Tensor:
        """Which tokens of this pass all rules hold for, bool ``[B, T]``.

        Args:
            active: where the features of ``Where`` rules are active in this pass, ``[B, T]``.
        """
        running, num_prompt = self._running, self._story.num_prompt
        columns = running.num_past + torch.arange(running.shape[1], device=device)
        counted = self._counted(special_tokens, device)
        keep = counted
        for rule in found:
            if isinstance(rule, Tensor):
                keep = keep & self._masked(rule.to(device), columns)
            elif isinstance(rule, Where):
                on = active[rule].to(device)
                keep = keep & (self._so_far(rule, on & counted, special_tokens) if rule.so_far else on)
            elif rule != "all":
                keep = keep & ((columns < num_prompt) == (rule == "prompt"))
        return keep

    def _counted(self, special_tokens: bool, device: torch.device) -> Tensor:
        """Tokens that are no padding, and not special unless they are asked for."""
        running = self._running
        counted = torch.ones(running.shape, dtype=torch.bool, device=device)
        if running.is_token is not None:
            counted &= running.is_token.to(device)
        if special_tokens or not len(self._special):
            return counted
        if running.ids is None:
            raise ValueError(
                "the model was given embeddings, among which special tokens can not be told from others; say "
                "special_tokens=True to change them too, or give token ids"
            )
        return counted & ~torch.isin(running.ids.to(device), self._special.to(device))

    def _masked(self, mask: Tensor, columns: Tensor) -> Tensor:
        rows = mask if mask.dim() == 2 else mask[None]
        batch, num_prompt = self._running.shape[0], self._story.num_prompt
        if rows.shape[1] != num_prompt or len(rows) not in (1, batch):
            raise ValueError(
                f"the mask of positions has the shape {tuple(mask.shape)}, and the prompt has {batch} texts of "
                f"{num_prompt} tokens, padding counted; they must agree"
            )
        return rows[:, columns.clamp_max(num_prompt - 1)] & (columns < num_prompt)

    def _so_far(self, rule: Where, active: Tensor, special_tokens: bool) -> Tensor:
        past = self._running.num_past
        before = self._story.fired.get((rule, special_tokens))
        earlier = active.new_zeros(len(active), past)  # what came before the context was entered is not known
        if before is not None and before.shape[1] >= past:
            earlier = before[:, :past].to(active.device)
        fired = torch.cat([earlier, active], dim=1)
        self._story.fired[rule, special_tokens] = fired
        return fired.cummax(dim=1).values[:, past:]
