"""How probable a text is, token by token, and how far two models disagree along it.

A text is read with the tokens that it has (teacher forcing): the prompts in one pass, all that follows in a second one that
uses the first one's cache, so that changes meet the same tokens as when the text was written. At a new token, with p the
changed model's distribution and q the plain one's, both at temperature 1:

    KL(steered || plain) = sum_t p(t) (log p(t) - log q(t))        KL(plain || steered) = sum_t q(t) (log q(t) - log p(t))

in nats, computed in float64. Perplexity is exp(-mean log-probability) of the new tokens; the prompt's are not counted.

Shapes: ``B`` texts, ``N`` new tokens of the longest, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saescope.interventions.changes import Change
from saescope.interventions.generation_run import Run

if TYPE_CHECKING:
    from saescope.models import LanguageModel

_MAX_LOGITS_AT_ONCE = 2**25  # in float64 256 MB
_LARGEST_EXPONENT = 709.0  # exp of more is no float64


@dataclass(frozen=True)
class Scores:
    """Numbers of each new token of each text."""

    log_probabilities_plain: list[list[float]]
    log_probabilities_steered: list[list[float]]
    kl: list[list[float]]
    """KL(steered || plain), in nats."""
    kl_reverse: list[list[float]]
    """KL(plain || steered), in nats."""


def score(
    model: LanguageModel,
    prompt_ids: Sequence[Sequence[int]],
    new_ids: Sequence[Sequence[int]],
    changes: Sequence[Change] | Change,
) -> Scores:
    """Scores given texts under the plain model and under the changed one.

    Args:
        prompt_ids, new_ids: of each text; what follows a prompt has one token or more.

    Raises:
        ValueError: as :func:`saescope.interventions.generation.generate`.
    """
    parts: list[tuple[Tensor, ...]] = []
    sides = zip(_logits(model, prompt_ids, new_ids, ()), _logits(model, prompt_ids, new_ids, changes), strict=True)
    for (ids, plain), (_, steered) in sides:
        log_q, log_p = plain.double().log_softmax(-1), steered.double().log_softmax(-1)  # [B, n, V]
        at_token = (log_each.gather(-1, ids[..., None])[..., 0] for log_each in (log_q, log_p))
        parts.append((*at_token, divergence(log_p, log_q), divergence(log_q, log_p)))
    return Scores(*(_rows(torch.cat(part, dim=1), new_ids) for part in zip(*parts, strict=True)))


def log_probabilities(
    model: LanguageModel,
    prompt_ids: Sequence[Sequence[int]],
    new_ids: Sequence[Sequence[int]],
    changes: Sequence[Change] | Change = (),
) -> list[list[float]]:
    """Log-probabilities of given texts' new tokens; arguments as in :func:`score`."""
    parts = [
        logits.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        for ids, logits in _logits(model, prompt_ids, new_ids, changes)
    ]
    return _rows(torch.cat(parts, dim=1), new_ids)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) ``[...]`` of log-probabilities ``[..., V]``; never below 0, as rounding would have it."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)


def perplexity(log_probabilities: Sequence[Sequence[float]]) -> float:
    """Of all tokens together."""
    mean = -mean_of_tokens(log_probabilities)
    return math.exp(mean) if mean < _LARGEST_EXPONENT else math.inf


def mean_of_tokens(values: Sequence[Sequence[float]]) -> float:
    """The mean over all tokens of all texts."""
    every = [each for row in values for each in row]
    return math.fsum(every) / len(every)


def _logits(
    model: LanguageModel,
    prompt_ids: Sequence[Sequence[int]],
    new_ids: Sequence[Sequence[int]],
    changes: Sequence[Change] | Change,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids ``[B, n]`` of the next few new tokens, and the logits ``[B, n, V]`` that they were predicted with; on the CPU."""
    lengths = torch.tensor([len(row) for row in new_ids])
    if len(new_ids) != len(prompt_ids) or not bool(lengths.all()):
        raise ValueError("every prompt needs a continuation of at least one token to be scored")
    ids = torch.zeros((len(new_ids), int(lengths.max())), dtype=torch.long)  # [B, N]
    for row, tokens in enumerate(new_ids):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    is_token = torch.arange(ids.shape[1]) < lengths[:, None]
    run = Run(model, prompt_ids, changes)
    first = run.read_prompts()[:, None]
    yield ids[:, :1], first.cpu()
    columns = max(1, _MAX_LOGITS_AT_ONCE // first.numel())
    for start in range(0, ids.shape[1] - 1, columns):  # the last token's own logits predict what nobody wrote
        end = min(start + columns, ids.shape[1] - 1)
        yield ids[:, start + 1 : end + 1], run.read(ids[:, start:end], is_token[:, start:end]).cpu()


def _rows(values: Tensor, new_ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """Those of tokens, of ``[B, N]``."""
    return [row[: len(tokens)].tolist() for row, tokens in zip(values, new_ids, strict=True)]
