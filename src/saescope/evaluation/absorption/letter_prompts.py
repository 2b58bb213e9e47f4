"""Words with a known first letter, in prompts that make a model think of it, and the place of each word's token.

The words are tokens of the model's own vocabulary that consist of letters, with at most one space before them. Each is
put behind a few examples of the task; the activation at the word's own token is what a study reads. The place of that token
comes from the tokenizer's offsets, whatever the length of the examples; a word that the tokenizer cuts otherwise inside
the prompt is left out and counted. A causal model sees nothing of what follows the token, so the prompt ends there.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saescope.evaluation.sample import TokenSample, joined
from saescope.models.token_text import vocabulary_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from saescope.models import LanguageModel

WORD = "{word}"
LETTERS = string.ascii_lowercase


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """How words are put to the model."""

    question: str = "{word} has the first letter:"
    """One line; a word stands with the space that its token has."""
    answer: str = " {letter}"
    """What follows the question in an example; the letter is a capital."""
    num_examples: int = 10
    """Examples before each word, drawn anew for it."""
    num_words: int | None = 10_000
    """Most words, drawn at random; None: all."""
    seed: int = 0
    """Of words and examples."""

    def __post_init__(self) -> None:
        if self.question.count(WORD) != 1 or self.answer.count("{letter}") != 1:
            raise ValueError(
                'question must hold "{word}" once and answer "{letter}" once, got '
                f"{self.question!r} and {self.answer!r}"
            )
        if self.num_examples < 0 or (self.num_words is not None and self.num_words < 1):
            raise ValueError(
                f"num_examples must be at least 0 and num_words at least 1, got {self.num_examples} and {self.num_words}"
            )


@dataclass(frozen=True)
class Word:
    """A token of letters."""

    id: int
    text: str  # with the space before it, if its token has one

    @property
    def plain(self) -> str:
        """In small letters, without the space: the same for all tokens of one word."""
        return self.text.strip().lower()

    @property
    def letter(self) -> str:
        """Its first letter, small."""
        return self.plain[0]


@dataclass(frozen=True)
class Prompt:
    """A word's prompt up to and including the word."""

    word: Word
    ids: list[int]


def words_of(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[Word]:
    """All tokens of ASCII letters, at most one space before them, special tokens left out."""
    special = set(tokenizer.all_special_ids)
    texts = vocabulary_texts(tokenizer, min(vocab_size, len(tokenizer)))
    letters = [(number, text) for number, text in enumerate(texts) if number not in special]
    return [Word(number, text) for number, text in letters if _is_word(text.removeprefix(" "))]


def prompts_of(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[Word], config: Prompting
) -> tuple[list[Prompt], list[Word]]:
    """A prompt for each word (for at most ``num_words``), and the words that are no token of their own in it.

    Raises:
        ValueError: a tokenizer without offsets, or too few words for the examples.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which characters a token covers; load the fast tokenizer of this model"
        )
    if len({word.plain for word in words}) <= config.num_examples:
        raise ValueError(
            f"{len(words)} tokens of the vocabulary are words, too few for {config.num_examples} examples in each prompt"
        )
    generator = np.random.default_rng(config.seed)
    chosen = np.arange(len(words))
    if config.num_words is not None and len(words) > config.num_words:
        chosen = np.sort(generator.choice(len(words), config.num_words, replace=False))
    prompts, cut = [], []
    for word in (words[int(place)] for place in chosen):
        ids = _ids_up_to(tokenizer, word, _examples(words, word, config.num_examples, generator), config)
        if ids is None:
            cut.append(word)
        else:
            prompts.append(Prompt(word, ids))
    return prompts, cut


@torch.no_grad()
def read_words(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    reads: Sequence[str],
    writes: Sequence[str] = (),
    *,
    batch_size_prompts: int = 32,
) -> TokenSample:
    """Activations at the words' own tokens, in the order of the prompts; tokens of one word are one document.

    Raises:
        ValueError: a prompt that is longer than the model's context.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    if model.context_size is not None and longest > model.context_size:
        raise ValueError(
            f"a prompt has {longest} tokens, more than the {model.context_size} that {model.name} has positions for; "
            "take fewer examples"
        )
    found: dict[str, list[torch.Tensor]] = {"x": [], "y": []}
    for first in range(0, len(prompts), batch_size_prompts):
        batch = prompts[first : first + batch_size_prompts]
        width = max(len(prompt.ids) for prompt in batch)
        ids = torch.tensor([prompt.ids + [prompt.ids[-1]] * (width - len(prompt.ids)) for prompt in batch])
        last = torch.tensor([len(prompt.ids) - 1 for prompt in batch])
        places = torch.arange(width)
        values = model.read(ids, [*reads, *writes], attention_mask=(places <= last[:, None]).long())
        keep = places == last[:, None]
        found["x"].append(joined([values[name] for name in reads], keep).cpu())
        if writes:
            found["y"].append(joined([values[name] for name in writes], keep).cpu())
    x = torch.cat(found["x"])
    _, document = np.unique([prompt.word.plain for prompt in prompts], return_inverse=True)
    return TokenSample(
        x=x,
        y=torch.cat(found["y"]) if writes else x,
        ids=np.array([prompt.word.id for prompt in prompts], dtype=np.int64),
        document=document.astype(np.int64),
        place=np.array([len(prompt.ids) - 1 for prompt in prompts], dtype=np.int64),
        position=np.arange(len(prompts), dtype=np.int64),
    )


def _is_word(text: str) -> bool:
    return text.isascii() and text.isalpha()


def _examples(words: Sequence[Word], word: Word, count: int, generator: np.random.Generator) -> list[Word]:
    """Words other than this one, in any spelling."""
    drawn: list[Word] = []
    while len(drawn) < count:
        other = words[int(generator.integers(len(words)))]
        if other.plain not in {word.plain, *(earlier.plain for earlier in drawn)}:
            drawn.append(other)
    return drawn


def _ids_up_to(
    tokenizer: PreTrainedTokenizerBase, word: Word, examples: Sequence[Word], config: Prompting
) -> list[int] | None:
    """Token ids up to and including the word's token; None where the word is not exactly its token in the prompt."""
    # the line break at the beginning keeps the first word's space a part of its token in every tokenizer
    before = "\n" + "".join(
        config.question.replace(WORD, other.text) + config.answer.replace("{letter}", other.letter.upper()) + "\n"
        for other in examples
    )
    start = len(before) + config.question.index(WORD) + len(word.text) - len(word.plain)
    end = start + len(word.plain)
    encoded = tokenizer(before + config.question.replace(WORD, word.text), return_offsets_mapping=True)
    over = [place for place, (low, high) in enumerate(encoded["offset_mapping"]) if low < end and high > start]
    ids = list(encoded["input_ids"])
    if len(over) != 1 or ids[over[0]] != word.id:
        return None
    ids = ids[: over[0] + 1]
    opening = tokenizer.bos_token_id  # windows of text begin with it, whether the tokenizer adds it by itself or not
    return ids if opening is None or ids[0] == opening else [opening, *ids]
