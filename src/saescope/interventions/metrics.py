"""What an intervention is measured by: one number for each prompt, from the logits.

::

    metric = logit_difference(" self", " cls", model=model)
    metric(model.logits(ids), tokens)  # [B]

====================  ===================================================================================
``logit``             the token's logit after the prompt; the mean over several tokens
``logit_difference``  mean logit of some tokens less mean logit of others: what the model prefers, on a scale
                      that does not change when all logits move together
``log_probability``   in nats; of several tokens, that of any of them: ``log sum_i p_i``
``cross_entropy``     mean over the prompt's own next tokens, in nats; larger is worse
====================  ===================================================================================

The first three look at one position: a prompt's last token, or another counted from the end (``position=-2``: the one before
it), padding on either side left out. All are differentiable, and computed in the logits' dtype, float32 at least.

Shapes: ``B`` prompts, ``T`` tokens, ``V`` vocabulary, ``n`` target tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.models.token_text import TokenReader

if TYPE_CHECKING:
    from saescope.models import LanguageModel

Token: TypeAlias = int | str


@dataclass(frozen=True)
class PerPrompt:
    """Another target for each prompt: one token each, or the same number of tokens each."""

    targets: Sequence[Token] | Sequence[Sequence[Token]]


Target: TypeAlias = Token | Sequence[Token] | PerPrompt
"""One token, several, or others for each prompt; by id, or by text where a model is given."""


@dataclass(frozen=True, eq=False)
class Metric(ABC):
    """One number for each prompt. Your own is a subclass with :meth:`__call__`.

    Attributes:
        name: as tables and plots show it.
        of_next_tokens: whether it only makes sense for models that predict the next token.
    """

    name: str
    of_next_tokens: bool = field(default=True, kw_only=True)

    @abstractmethod
    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The number ``[B]`` of each prompt.

        Args:
            logits: ``[B, T, V]``. tokens: bool ``[B, T]``, false for padding.

        Raises:
            ValueError: a target outside the vocabulary, a prompt with too few tokens, or shapes that do not agree.
        """

    def of_rows(self, rows: Tensor) -> Metric:
        """The same metric for other rows of a batch: row i of it has what prompt ``rows[i]`` has here.

        To be overridden by a metric that has something of its own for each prompt.
        """
        return self

    def require_fit(self, model: LanguageModel, num_prompts: int) -> None:
        """Refuses a model or a number of prompts that the metric can not be computed for, before anything runs.

        Raises:
            ValueError: the model predicts no next token, a target is outside its vocabulary, or the numbers differ.
        """
        if self.of_next_tokens:
            model.require_causal(f"the metric {self.name}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class _AtPosition(Metric):
    """A metric of the logits at one position of each prompt."""

    position: int = -1

    def __post_init__(self) -> None:
        if isinstance(self.position, bool) or not isinstance(self.position, int) or self.position >= 0:
            raise ValueError(
                f"a position is counted from the end of the prompt, -1 for its last token; it can not be {self.position}"
            )

    def at_position(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The logits there, ``[B, V]``."""
        _require_shapes(logits, tokens)
        tokens = tokens.to(logits.device, torch.bool)
        short = tokens.sum(1) < -self.position
        if bool(short.any()):
            row = int(short.nonzero()[0])
            raise ValueError(
                f"prompt {row} has {int(tokens[row].sum())} tokens, so that there is no position {self.position} in it"
            )
        from_end = tokens.flip(1).cumsum(1).flip(1)
        column = (tokens & (from_end == -self.position)).long().argmax(1)
        found = logits[torch.arange(len(logits), device=logits.device), column]
        return found.to(torch.promote_types(found.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class _OfTokens(_AtPosition):
    """Mean logit of ``a``, less that of ``b``; both ``[1, n]``, or ``[B, n]`` where each prompt has its own."""

    a: Tensor = field(kw_only=True)
    b: Tensor | None = field(default=None, kw_only=True)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        found = self.at_position(logits, tokens)
        value = _gathered(found, self.a).mean(1)
        return value if self.b is None else value - _gathered(found, self.b).mean(1)

    def of_rows(self, rows: Tensor) -> Metric:
        return replace(self, a=_rows_of(self.a, rows), b=None if self.b is None else _rows_of(self.b, rows))

    def require_fit(self, model: LanguageModel, num_prompts: int) -> None:
        super().require_fit(model, num_prompts)
        for target in (self.a, self.b):
            if target is not None:
                _require_target(target, model, num_prompts)


@dataclass(frozen=True, eq=False)
class _LogProbability(_AtPosition):
    """Log-probability of any of ``a``."""

    a: Tensor = field(kw_only=True)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return _gathered(self.at_position(logits, tokens).log_softmax(-1), self.a).logsumexp(1)

    def of_rows(self, rows: Tensor) -> Metric:
        return replace(self, a=_rows_of(self.a, rows))

    def require_fit(self, model: LanguageModel, num_prompts: int) -> None:
        super().require_fit(model, num_prompts)
        _require_target(self.a, model, num_prompts)


@dataclass(frozen=True, eq=False)
class _CrossEntropy(Metric):
    """Mean over the tokens of ``ids [B, T]`` that have one before them."""

    ids: Tensor = field(kw_only=True)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        _require_shapes(logits, tokens)
        if self.ids.shape != tokens.shape:
            raise ValueError(
                f"the cross-entropy is that of a text of shape {tuple(self.ids.shape)}, but the logits are of one of shape "
                f"{tuple(tokens.shape)}; give the ids that the model gets"
            )
        ids, tokens = self.ids.to(logits.device), tokens.to(logits.device, torch.bool)
        counted = tokens[:, 1:] & tokens[:, :-1]  # [B, T - 1]
        empty = ~counted.any(1)
        if bool(empty.any()):
            raise ValueError(
                f"prompt {int(empty.nonzero()[0])} has fewer than two tokens: it has no next token to predict"
            )
        wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(wide.transpose(1, 2), ids[:, 1:], reduction="none")
        return torch.where(counted, losses, 0).sum(1) / counted.sum(1)

    def of_rows(self, rows: Tensor) -> Metric:
        return replace(self, ids=self.ids[rows.to(self.ids.device)])


def logit(token: Target, *, position: int = -1, model: LanguageModel | None = None) -> Metric:
    """The logit of a token as the next one; the mean over several.

    Args:
        token: an id or several, or texts if there is a ``model``; :class:`PerPrompt` for others in each prompt.
        position: after which of the prompt's tokens, counted from its end.
        model: whose tokenizer reads texts; ids are checked against its vocabulary.

    Raises:
        ValueError: no such token, a text of several tokens (all are shown), or a position that is not negative.
    """
    return _OfTokens(f"logit of {_shown(token)}", position, a=_ids(token, model))


def logit_difference(a: Target, b: Target, *, position: int = -1, model: LanguageModel | None = None) -> Metric:
    """Mean logit of the tokens ``a`` less mean logit of the tokens ``b``; arguments and errors as :func:`logit`."""
    name = f"logit of {_shown(a)} less that of {_shown(b)}"
    first, second = _ids(a, model), _ids(b, model)
    if len(first) > 1 and len(second) > 1 and len(first) != len(second):
        raise ValueError(f"there are targets for {len(first)} prompts on one side and for {len(second)} on the other")
    return _OfTokens(name, position, a=first, b=second)


def log_probability(token: Target, *, position: int = -1, model: LanguageModel | None = None) -> Metric:
    """Log-probability, in nats, that the next token is this one, or any of several; arguments as :func:`logit`."""
    ids = _ids(token, model)
    if any(len(set(row)) < len(row) for row in ids.tolist()):
        raise ValueError("a token is named twice, and its probability would be counted twice")
    return _LogProbability(f"log-probability of {_shown(token)}", position, a=ids)


def cross_entropy(ids: Tensor) -> Metric:
    """Mean next-token cross-entropy of each prompt, in nats, special tokens counted and padding not.

    Args:
        ids: ``[B, T]``, as the model gets them.

    Raises:
        ValueError: not token ids ``[B, T]``.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        shown = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"the cross-entropy is that of token ids [batch, tokens], not of {shown}")
    return _CrossEntropy("cross-entropy", ids=ids.long())


def token_id(model: LanguageModel, token: Token) -> int:
    """The id of a token that is named by its text, or an id itself, checked.

    Raises:
        ValueError: an id outside the vocabulary, a text that is no token or several (all are shown), or no tokenizer.
    """
    if not isinstance(token, str):
        if isinstance(token, bool) or not isinstance(token, int):
            raise ValueError(f"a token is named by its id or its text, not by {token!r}")
        if not 0 <= token < model.vocab_size:
            raise ValueError(
                f"token {token} is not in the vocabulary of {model.name}, which has 0 to {model.vocab_size - 1}"
            )
        return token
    if model.tokenizer is None:
        raise ValueError(f"{model.name} comes without a tokenizer; name the token {token!r} by its id")
    ids = model.tokenizer.encode(token, add_special_tokens=False)
    if not ids:
        raise ValueError(f"the text {token!r} is no token; name one")
    if len(ids) > 1:
        text, ranges = TokenReader(model.tokenizer).read(ids)
        pieces = ", ".join(f"{text[a:b]!r} {number}" for (a, b), number in zip(ranges, ids, strict=True))
        raise ValueError(f"{token!r} is {len(ids)} tokens here: {pieces}; name one, by its text or its number")
    if ids[0] == model.tokenizer.unk_token_id and token != model.tokenizer.unk_token:
        raise ValueError(f"{token!r} is not in the vocabulary of {model.name}; name another token")
    return int(ids[0])


def _ids(target: Target, model: LanguageModel | None) -> Tensor:
    """Ids ``[1, n]``, or ``[B, n]`` where each prompt has its own."""
    rows = target.targets if isinstance(target, PerPrompt) else [target]
    found = [[_id(token, model) for token in _several(row)] for row in rows]
    if not found or not found[0]:
        raise ValueError("a metric needs a target token")
    if len({len(row) for row in found}) > 1:
        raise ValueError(
            f"prompts have different numbers of target tokens, {sorted({len(row) for row in found})}; give each the same"
        )
    return torch.tensor(found)


def _several(target: object) -> Sequence[Token]:
    if isinstance(target, Tensor):
        return list(map(int, target.flatten()))
    return list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]  # type: ignore[list-item]


def _id(token: Token, model: LanguageModel | None) -> int:
    if model is not None:
        return token_id(model, token)
    if isinstance(token, bool) or not isinstance(token, int):
        raise ValueError(f"the token {token!r} is named by its text: give the model too, whose tokenizer knows its id")
    if token < 0:
        raise ValueError(f"token {token} is not in any vocabulary; ids begin with 0")
    return token


def _shown(target: Target) -> str:
    if isinstance(target, PerPrompt):
        return "each prompt's target"
    tokens = _several(target)
    return ", ".join(repr(token) for token in tokens[:5]) + (", ..." if len(tokens) > 5 else "")


def _gathered(found: Tensor, target: Tensor) -> Tensor:
    """Entries ``[B, n]`` of ``[B, V]``."""
    if int(target.max()) >= found.shape[1]:
        raise ValueError(
            f"token {int(target.max())} is not in the vocabulary, for which there are {found.shape[1]} logits"
        )
    if len(target) not in (1, len(found)):
        raise ValueError(f"there are targets for {len(target)} prompts, and {len(found)} prompts")
    return found.gather(1, target.to(found.device).expand(len(found), -1))


def _rows_of(target: Tensor, rows: Tensor) -> Tensor:
    return target if len(target) == 1 else target[rows.to(target.device)]


def _require_target(target: Tensor, model: LanguageModel, num_prompts: int) -> None:
    for token in target.flatten().tolist():
        token_id(model, token)
    if len(target) not in (1, num_prompts):
        raise ValueError(f"there are targets for {len(target)} prompts, and {num_prompts} prompts")


def _require_shapes(logits: Tensor, tokens: Tensor) -> None:
    if logits.dim() != 3 or tokens.shape != logits.shape[:2]:
        raise ValueError(
            f"a metric takes logits [batch, tokens, vocabulary] and which tokens are no padding, [batch, tokens]; these "
            f"are {tuple(logits.shape)} and {tuple(tokens.shape)}"
        )
