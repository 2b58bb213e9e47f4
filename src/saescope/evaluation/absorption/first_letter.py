"""First-letter absorption: features of "starts with S" that are silent on some words that start with S.

The oldest test of absorption (Chanin et al. 2024, arXiv 2409.14507; in SAEBench, arXiv 2503.09532): the first letter of a
word is true by definition, and most models of more than a billion parameters represent it at the word's token. Each word
stands behind examples of the task; a probe for every letter, its features and its scores are those of
``concept_absorption.py``. The activations are read at the dictionary's own hook point. Letters that cannot be scored are
listed with the reason, and the study goes on.

Tokens of one word ("Cat", " cat") are one document: split, and drawn again for intervals, together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saescope.dictionaries import Dictionary
from saescope.evaluation.absorption.concept_absorption import (
    DECEPTIVE,
    AbsorptionConfig,
    ConceptScores,
    mean_rates,
    score_concept,
)
from saescope.evaluation.absorption.ground_truth import Units
from saescope.evaluation.absorption.letter_prompts import LETTERS, Prompting, prompts_of, read_words, words_of
from saescope.evaluation.absorption.study import concept_row
from saescope.evaluation.absorption.written import Written
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.sample import TokenSample

if TYPE_CHECKING:
    from saescope.models import LanguageModel

LARGE_MODEL = 1_000_000_000  # parameters


@dataclass(frozen=True, kw_only=True)
class FirstLetterConfig:
    """How first-letter absorption is measured."""

    prompting: Prompting = field(default_factory=Prompting)
    """Words and prompts."""
    absorption: AbsorptionConfig = field(
        default_factory=lambda: AbsorptionConfig(least_positives=5, main_latents_from="all")
    )
    """Split, probes and scores; words have no children, so that features come from all words of a letter."""
    batch_size_prompts: int = 32

    def __post_init__(self) -> None:
        if self.batch_size_prompts < 1:
            raise ValueError(f"batch_size_prompts must be at least 1, got {self.batch_size_prompts}")


def first_letter(
    dictionary: Dictionary,
    model: LanguageModel,
    reads: Sequence[str],
    config: FirstLetterConfig | None = None,
    *,
    writes: Sequence[str] = (),
) -> StudyResult:
    """Absorption of first letters, the mean over letters, with intervals over words. Table: ``letters``.

    Args:
        model: a causal model with a fast tokenizer.
        reads: hook points that the dictionary reads.
        writes: those that it rebuilds, where they are others.

    Raises:
        ValueError: a model that is not causal or has no fast tokenizer, a vocabulary of too few words, prompts longer than
            the context, or a dictionary that does not fit the hook point.
    """
    begin, config = time.perf_counter(), config or FirstLetterConfig()
    model.require_causal("first-letter absorption")
    if model.tokenizer is None:
        raise ValueError(f"first-letter absorption needs the tokenizer of {model.name}, which was loaded without one")
    prompts, cut = prompts_of(model.tokenizer, words_of(model.tokenizer, model.vocab_size), config.prompting)
    if not prompts:
        raise ValueError("no word of the vocabulary is a token of its own in its prompt; try another question")
    sample = read_words(model, prompts, reads, writes, batch_size_prompts=config.batch_size_prompts)
    first = np.array([prompt.word.letter for prompt in prompts])
    notes = [DECEPTIVE, _size_note(model)]
    if cut:
        notes.append(
            f"{len(cut):,} of {len(cut) + len(prompts):,} words are cut into other tokens inside the prompt, and are left "
            f"out: {', '.join(repr(word.text) for word in cut[:5])}{', ...' if len(cut) > 5 else ''}"
        )
    return _letters_scored(dictionary, sample, first, config.absorption, notes, begin)


def _letters_scored(
    dictionary: Dictionary,
    sample: TokenSample,
    first: np.ndarray,
    config: AbsorptionConfig,
    notes: Sequence[str],
    begin: float,
) -> StudyResult:
    parts = dict(zip(("train", "validation", "test"), sample.parts(config.shares, seed=config.seed), strict=True))
    written = Written.of(dictionary, sample)
    units = Units.of(written.targets(np.flatnonzero(parts["train"])))
    childless = np.zeros(len(sample), dtype=bool)
    scored = [
        score_concept(
            written, first == letter, childless, parts, units, config,
            seed=(config.seed, number), what=f"words with {letter.upper()}",
        )
        for number, letter in enumerate(LETTERS)
    ]  # fmt: skip
    return StudyResult(
        study="first_letter",
        numbers=tuple(_numbers(scored, sample.document, parts["test"], config)),
        tables={"letters": [_row(letter, found) for letter, found in zip(LETTERS, scored, strict=True)]},
        notes=tuple(notes),
        seconds=time.perf_counter() - begin,
    )


_SAEBENCH = (
    "SAEBench's name and scores: b_dec left in the projection; but lengths of decoder rows count, as for unit rows there, "
    "{selection}, and each word has one prompt"
)


def _numbers(
    scored: Sequence[ConceptScores], document: np.ndarray, test: np.ndarray, config: AbsorptionConfig
) -> Iterator[Number]:
    nothing = "no letter could be scored; the table of letters says why"
    childless = [np.zeros(len(document), dtype=bool)] * len(scored)
    good = [found for found in scored if found.values]
    for value, name, published in (
        ("fraction", "absorption_fraction", "absorption_fraction_score"),
        ("full", "full_absorption", "full_absorption_score"),
    ):
        ours, theirs = (
            mean_rates(scored, childless, kind, document, test, seed=config.seed)["all"]
            for kind in (value, f"published_{value}")
        )
        yield Number.of(
            name, **ours, better="lower", reason=nothing,
            variant=f"mean over letters; {config.latents.words}; b_dec taken off; intervals over words",
        )  # fmt: skip
        variant = _SAEBENCH.format(selection=config.latents.words)
        yield Number.of(f"mean_{published}", **theirs, better="lower", variant=variant, reason=nothing)
        yield _spread(f"std_dev_{published}", [found.mean(f"published_{value}") for found in good], variant)
    split = [found.num_split_features for found in good]
    variant = f"{config.latents.words}, one more where F1 on validation words jumps by {config.latents.f1_jump:g}"
    yield Number.of("mean_num_split_features", _mean(split), variant=variant, reason=nothing)
    yield _spread("std_dev_num_split_features", split, variant)
    f1s = [found.probe_f1 for found in scored if found.probe_f1 is not None]
    yield Number.of(
        "probe_f1", _mean(f1s), better="higher", reason="no letter has enough words",
        variant="of probes on activations, mean over all letters with enough words; of the model, not of the dictionary",
    )  # fmt: skip
    yield Number(name="num_letters_scored", value=len(good), variant="of 26")
    yield Number(name="num_words", value=len(document))


def _row(letter: str, found: ConceptScores) -> dict[str, Any]:
    return {
        "letter": letter.upper(),
        **concept_row(found),
        "absorption_fraction": found.mean("fraction"),
        "full_absorption": found.mean("full"),
        "mean_absorption_fraction_score": found.mean("published_fraction"),
        "mean_full_absorption_score": found.mean("published_full"),
        "reason": found.reason,
    }


def _size_note(model: LanguageModel) -> str:
    count = sum(parameter.numel() for parameter in model.module.parameters())
    note = "first-letter absorption means little on models below one to two billion parameters"
    return f"{note}; {model.name} has {count:,}" + ("" if count >= LARGE_MODEL else ", so look at the probes' F1 first")


def _mean(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None


def _spread(name: str, values: Sequence[float | None], variant: str) -> Number:
    """Standard deviation over letters, of the letters themselves (not of a larger population)."""
    kept = [value for value in values if value is not None]
    spread = float(np.std(kept)) if len(kept) > 1 else None
    return Number.of(name, spread, variant=f"over letters; {variant}", reason="fewer than two letters could be scored")
