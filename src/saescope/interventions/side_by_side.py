"""The same prompts continued by the plain model and by the changed one, with the same random numbers; and what it costs.

How far the change moves the model is KL(steered || plain) per generated token, along the steered text. How natural the
plain model finds a text is its perplexity: that of the steered text beside that of the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Unpack

import torch

from saescope.interventions.changes import Change
from saescope.interventions.generation import Continuations, HowToWrite, NewToken, Step, Writer
from saescope.interventions.generation_run import Run
from saescope.interventions.generation_scores import (
    Scores,
    divergence,
    log_probabilities,
    mean_of_tokens,
    perplexity,
    score,
)
from saescope.interventions.generation_text import Prompts

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True)
class SideBySide:
    """Plain and steered continuations. Numbers are of the new tokens, of all prompts together or one per prompt."""

    plain: Continuations
    steered: Continuations
    scores: Scores
    """Token by token, of the steered texts."""
    plain_log_probabilities: list[list[float]]
    """Token by token, of the plain texts under the plain model."""

    @property
    def kl_per_token(self) -> float:
        """KL(steered || plain) along the steered texts, in nats, mean over their tokens."""
        return mean_of_tokens(self.scores.kl)

    @property
    def kl_reverse_per_token(self) -> float:
        """KL(plain || steered) along the steered texts, in nats, mean over their tokens."""
        return mean_of_tokens(self.scores.kl_reverse)

    @property
    def perplexity_plain(self) -> float:
        """Of the plain texts under the plain model."""
        return perplexity(self.plain_log_probabilities)

    @property
    def perplexity_steered(self) -> float:
        """Of the steered texts under the plain model."""
        return perplexity(self.scores.log_probabilities_plain)

    @property
    def kl_of_prompts(self) -> list[float]:
        """As ``kl_per_token``, one per prompt."""
        return [mean_of_tokens([row]) for row in self.scores.kl]

    @property
    def perplexities_plain(self) -> list[float]:
        """As ``perplexity_plain``, one per prompt."""
        return [perplexity([row]) for row in self.plain_log_probabilities]

    @property
    def perplexities_steered(self) -> list[float]:
        """As ``perplexity_steered``, one per prompt."""
        return [perplexity([row]) for row in self.scores.log_probabilities_plain]


@dataclass(frozen=True)
class PairOfSteps:
    """One more token of every text on either side that has not stopped."""

    number: int
    plain: tuple[NewToken, ...]
    steered: tuple[NewToken, ...]
    """With ``log_probability_plain`` and ``kl``."""


def side_by_side(
    model: LanguageModel,
    prompts: Prompts,
    changes: Sequence[Change] | Change,
    **how: Unpack[HowToWrite],
) -> SideBySide:
    """Continue prompts without and with changes, and score both texts. Arguments as in ``generate``.

    Raises:
        ValueError: as ``generate``.
    """
    plain, steered = (Writer(model, prompts, each, **how).write() for each in ((), changes))
    return SideBySide(
        plain=plain,
        steered=steered,
        scores=score(model, steered.prompt_ids, steered.new_ids, changes),
        plain_log_probabilities=log_probabilities(model, plain.prompt_ids, plain.new_ids),
    )


def stream_side_by_side(
    model: LanguageModel,
    prompts: Prompts,
    changes: Sequence[Change] | Change,
    **how: Unpack[HowToWrite],
) -> Iterator[PairOfSteps]:
    """As :func:`side_by_side`, step by step: the same tokens, and each steered one with its numbers under the plain model.

    Between the passes the model is free for others, as in ``stream``.
    """
    plain, steered = (Writer(model, prompts, each, **how) for each in ((), changes))
    return _pairs(plain.steps(), _judged(steered, Run(model, steered.prompt_ids)))


def _pairs(plain: Iterator[Step], steered: Iterator[Step]) -> Iterator[PairOfSteps]:
    for number, (left, right) in enumerate(zip_longest(plain, steered)):
        yield PairOfSteps(number, left.tokens if left else (), right.tokens if right else ())


def _judged(writer: Writer, judge: Run) -> Iterator[Step]:
    """The writer's steps, each token with its numbers under a model that only reads along."""
    newest = None
    for step in writer.steps():
        plain = judge.read(*newest)[:, -1] if newest is not None else judge.read_prompts()  # [B, V]
        newest = writer.newest
        log_p, log_q = (logits.to("cpu", torch.float64).log_softmax(-1) for logits in (writer.logits, plain))
        kl, under_plain = divergence(log_p, log_q), log_q.gather(-1, newest[0])[:, 0]  # [B]
        rows = [(token, token.prompt - writer.first_prompt) for token in step.tokens]
        yield Step(
            step.number,
            tuple(
                replace(token, log_probability_plain=float(under_plain[row]), kl=float(kl[row])) for token, row in rows
            ),
        )
