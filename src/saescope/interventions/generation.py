"""Texts that a model writes while its features are changed.

::

    steered = generate(model, ["def "], changes=[Add(site, 12, 4.0)], max_new_tokens=20, seed=1)
    print(steered.texts[0])

Every next token is drawn as ``sampling.py`` says, so that two models with the same seed use the same random numbers, and a
prompt's continuation depends neither on the other prompts nor, but for rounding, on their lengths. A text stops where the
model writes an end token. ``stream`` gives the same token by token.

Shapes: ``B`` prompts, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor

from saescope.interventions.changes import Change
from saescope.interventions.generation_run import Run
from saescope.interventions.generation_text import (
    GrowingText,
    Prompts,
    end_ids,
    prompt_ids_of,
    reader_of,
    require_room,
)
from saescope.interventions.sampling import Sampling

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True)
class NewToken:
    """A token that was written."""

    prompt: int
    """Number of the prompt."""
    token_id: int
    text: str
    """What was written after the prompt up to here, unfinished characters and the end token left out; it only grows."""
    log_probability: float
    """Natural logarithm, under the model that wrote it, at temperature 1 and with no token left out."""
    is_last: bool
    """Whether the text stops here."""
    log_probability_plain: float | None = None
    """Side by side, of the steered text: the same under the plain model."""
    kl: float | None = None
    """Side by side, of the steered text: KL(steered || plain) at this token, in nats."""


@dataclass(frozen=True)
class Step:
    """One more token for every text that has not stopped."""

    number: int
    tokens: tuple[NewToken, ...]


@dataclass(frozen=True)
class Continuations:
    """What was written after each prompt. All lists have one entry per prompt."""

    prompt_ids: list[list[int]]
    new_ids: list[list[int]]
    """An end token counts as written; nothing comes after it."""
    texts: list[str]
    """Of the new tokens, without the end token."""
    log_probabilities: list[list[float]]
    """Of the new tokens, as in :class:`NewToken`."""
    ended: list[bool]
    """Whether the model ended the text, rather than ``max_new_tokens``."""


class HowToWrite(TypedDict, total=False):
    """What :func:`generate`, and everything that writes texts, can be told; all of it may be left out."""

    max_new_tokens: int
    """For each prompt; 32 by default. Prompt and new tokens together fit the context, or nothing is generated."""
    temperature: float
    """1 by default, as the model was trained; 0 takes the most likely token. See :class:`Sampling`."""
    top_k: int | None
    """Only this many of the most likely tokens; None (the default): all."""
    top_p: float | None
    """Only the most likely tokens that together have this probability; None (the default): all."""
    seed: int
    """Of the random numbers; 0 by default."""
    stop_at_end: bool
    """Whether an end token stops a text; true by default."""
    prepend_bos: bool | None
    """Whether texts begin with the beginning-of-text token; None (the default): as the tokenizer does it by itself."""
    first_prompt: int
    """The first prompt's number, 0 by default; for a long list that is generated in parts."""
    use_cache: bool
    """Whether keys and values of the text so far are kept; true by default. The same tokens either way, but for rounding."""


def generate(
    model: LanguageModel,
    prompts: Prompts,
    *,
    changes: Sequence[Change] | Change = (),
    **how: Unpack[HowToWrite],
) -> Continuations:
    """Continue prompts, under changes if there are any.

    Args:
        prompts: a text, several, or token ids of one or several; an empty one starts from the beginning-of-text token.
        changes: of this model; inside another intervention they come after its changes.
        how: see :class:`HowToWrite`.

    Raises:
        ValueError: not a causal model; prompts that are empty or do not fit the context; changes of another model; logits
            that are no numbers (says which changes were made).
    """
    return Writer(model, prompts, changes, **how).write()


def stream(
    model: LanguageModel,
    prompts: Prompts,
    *,
    changes: Sequence[Change] | Change = (),
    **how: Unpack[HowToWrite],
) -> Iterator[Step]:
    """As :func:`generate`, step by step.

    Between steps the model is free for others, and another thread may ask for the next step. What is wrong with the
    arguments is said at once, not at the first step.
    """
    return Writer(model, prompts, changes, **how).steps()


class Writer:
    """A batch of texts that is being written. Arguments as in :func:`generate`."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Prompts,
        changes: Sequence[Change] | Change = (),
        *,
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_at_end: bool = True,
        prepend_bos: bool | None = None,
        first_prompt: int = 0,
        use_cache: bool = True,
    ) -> None:
        model.require_causal("generation")
        self._sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        if isinstance(first_prompt, bool) or not isinstance(first_prompt, int) or first_prompt < 0:
            raise ValueError(f"first_prompt is a prompt's number, at least 0, not {first_prompt!r}")
        self.prompt_ids = prompt_ids_of(model, prompts, prepend_bos=prepend_bos)
        require_room(model, self.prompt_ids, max_new_tokens)
        self._max_new_tokens, self.first_prompt = max_new_tokens, first_prompt
        self._run = Run(model, self.prompt_ids, changes, use_cache=use_cache)
        self._ends = end_ids(model) if stop_at_end else frozenset[int]()
        reader = reader_of(model)
        self._texts = [GrowingText(reader, ids, self._ends) for ids in self.prompt_ids]
        self.logits: Tensor
        """``[B, V]``: what the newest tokens were drawn from."""
        self.newest: tuple[Tensor, Tensor]
        """The newest tokens, ``[B, 1]``, and which of them are tokens; the others' texts have stopped."""

    def steps(self) -> Iterator[Step]:
        """Writes, until all texts have stopped."""
        numbers = range(self.first_prompt, self.first_prompt + len(self.prompt_ids))
        new_ids: list[list[int]] = [[] for _ in self.prompt_ids]
        running = torch.ones(len(self.prompt_ids), dtype=torch.bool)
        for step in range(self._max_new_tokens):
            self.logits = self._run.read(*self.newest)[:, -1] if step else self._run.read_prompts()
            chosen = self._sampling.choose(self.logits, numbers, step)  # [B]
            self.newest = chosen[:, None], running[:, None].clone()
            log_p = log_probabilities_of(self.logits, chosen)
            tokens = []
            for row in running.nonzero()[:, 0].tolist():
                token = int(chosen[row])
                new_ids[row].append(token)
                is_last = token in self._ends or step == self._max_new_tokens - 1
                text = self._texts[row].read(new_ids[row], whole=is_last)
                tokens.append(NewToken(numbers[row], token, text, float(log_p[row]), is_last))
                running[row] = not is_last
            yield Step(step, tuple(tokens))
            if not bool(running.any()):
                return

    def write(self) -> Continuations:
        """All steps, by prompt."""
        written: list[list[NewToken]] = [[] for _ in self.prompt_ids]
        for step in self.steps():
            for token in step.tokens:
                written[token.prompt - self.first_prompt].append(token)
        return Continuations(
            prompt_ids=self.prompt_ids,
            new_ids=[[token.token_id for token in tokens] for tokens in written],
            texts=[tokens[-1].text for tokens in written],
            log_probabilities=[[token.log_probability for token in tokens] for tokens in written],
            ended=[tokens[-1].token_id in self._ends for tokens in written],
        )


def log_probabilities_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities ``[...]`` of tokens ``[...]`` under logits ``[..., V]``, in float64 on the CPU."""
    log_p = logits.to("cpu", torch.float64).log_softmax(-1)
    return log_p.gather(-1, ids[..., None].cpu())[..., 0]
