"""What pages ask of a running network, without knowing what a network is: no torch here.

A `Live` object is made by ``saescope.web.network`` (which needs torch), or by a test. All its work goes through one
`Queue`: one request at a time, a bounded number waiting, each with a time limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class NoModelError(LookupError):
    """This server has no model for the dictionary; the message says how to give it one."""


class BusyError(RuntimeError):
    """Too many requests wait for the model, or one waited too long."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One feature turned up, or held at a value."""

    feature: int
    strength: float
    """In units of the feature's largest activation in the store."""
    kind: str = "add"
    """"add" or "clamp"."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of a text: one token, or several that share a character."""

    text: str
    token_ids: tuple[int, ...]
    features: tuple[tuple[int, float], ...] = ()
    """The strongest features at the piece with their activations (the largest over its tokens), strongest first."""
    activation: float = 0.0
    """Of the feature that was asked for, likewise."""
    is_special: bool = False
    """A token that the tokenizer adds; it is not read."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text as a dictionary sees it."""

    pieces: tuple[Piece, ...]
    features: tuple[tuple[int, float, int], ...] = ()
    """Of the whole text: feature, its largest activation, tokens on which it fires; the strongest first."""
    num_tokens: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Live(Protocol):
    """The networks behind dictionaries. Methods may be called from any thread, and block."""

    def absent(self, name: str, *, steering: bool = False) -> str | None:
        """Why texts can not be tried on this dictionary, in a sentence that says what to do; None where they can.

        With `steering`, why nothing can be written under changes of it, which asks more of its model. Answered at once.
        """

    def state(self, name: str) -> dict[str, Any]:
        """``{"state": "cold" | "loading" | "ready" | "failed", "words": ..., "num_waiting": int}``, at once."""

    def read_text(
        self,
        name: str,
        text: str,
        *,
        feature: int | None = None,
        num_per_token: int = 5,
        apart: Collection[int] = (),
        analysis: str | None = None,
    ) -> Reading:
        """The features of a text, of all of them the strongest, or of one. Loads the model if it is not there yet.

        Args:
            num_per_token: how many a piece names.
            apart: features that are ranked by themselves, so that the lists hold as many of these and as many of the others.

        Raises:
            NoModelError, BusyError; ValueError: the text is too long for the model, or has no token.
        """

    def steer(
        self,
        name: str,
        prompt: str,
        changes: Sequence[Change],
        *,
        max_new_tokens: int = 40,
        temperature: float = 1.0,
        seed: int = 0,
        analysis: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Steered and plain continuation, step by step.

        What can be known to be wrong with the arguments before the model is there is raised at once, the rest on the way.
        Each step is ``{"plain": TOKEN | None, "steered": TOKEN | None}``, where a TOKEN is ``{"text": all that was written
        so far, "log_probability", "is_last"}``, and of the steered text also ``"kl"`` (in nats, to the plain model, at this
        token) and ``"log_probability_plain"``. Between them may come ``{"state": ...}``, as :meth:`state`. The last item is
        ``{"done": {"kl_per_token", "perplexity_plain", "perplexity_steered", "num_tokens"}}``; numbers that are not finite
        are None. Closing the iterator frees the model.
        """

    def match(self, a: str, b: str) -> dict[str, Any]:
        """Features of two dictionaries matched by their decoder rows; see ``saescope.web.compare``."""
