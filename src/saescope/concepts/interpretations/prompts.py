"""What a language model is asked, and how its answers are read.

An example is shown as its text, with the unit in question between ``<<`` and ``>>`` where there is text around it, and with
the activation on a scale of 0 to 10.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from saescope.concepts.interpretations.clients import Role
from saescope.concepts.interpretations.units import Surrounded

MAX_WORDS = 5

LABEL_ALONE = f"""\
You name what a hidden unit of a language model responds to. You are given pieces of text on which the unit is active, \
each with its strength from 0 to 10, 10 being the strongest. Find what the pieces have in common, above all the \
strongest. It may be what they mean, how they are written, or their part in a sentence.
Answer with a label of at most {MAX_WORDS} words on one line, and with nothing else."""

LABEL_IN_CONTEXT = f"""\
You name what a hidden unit of a language model responds to. You are given extracts of texts. In each of them the piece \
on which the unit is active stands between << and >>, and the strength is given from 0 to 10, 10 being the strongest. \
The reason may lie in the marked piece or in what stands before it. Find what the extracts have in common, above all \
the strongest.
Answer with a label of at most {MAX_WORDS} words on one line, and with nothing else."""

JUDGE = """\
You are given a label and numbered examples. Decide for each example whether the label fits it; where a piece is marked \
with << and >>, whether it fits that piece. About half of them may fit, or fewer, or more.
Answer with the numbers of the examples that fit, separated by commas, or with the word none. Answer with nothing else."""

_LABEL_WORD = re.compile(r"^(?:label|answer)\s*:\s*", re.IGNORECASE)
_QUOTES = "\"'`“”‘’*"


def shown(example: Surrounded | str) -> str:
    """An example on one line."""
    text = example if isinstance(example, str) else f"{example.before}<<{example.text}>>{example.after}"
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def label_prompt(system: str, examples: Sequence[str], strengths: Sequence[int]) -> list[tuple[Role, str]]:
    """The question for a concept's label."""
    lines = [f"{strength}: {example}" for example, strength in zip(examples, strengths, strict=True)]
    return [(Role.SYSTEM, system), (Role.USER, "\n".join(lines))]


def judge_prompt(label: str, examples: Sequence[str]) -> list[tuple[Role, str]]:
    """The question which examples a label fits."""
    lines = [f"{number}. {example}" for number, example in enumerate(examples, start=1)]
    return [(Role.SYSTEM, JUDGE), (Role.USER, "\n".join([f"Label: {label}", "", *lines]))]


def read_label(answer: str | None) -> str | None:
    """The label in an answer: its first line with words, without quotes around it; None if there is none."""
    for line in (answer or "").splitlines():
        label = _LABEL_WORD.sub("", line.strip().strip(_QUOTES).strip()).strip().strip(_QUOTES).strip()
        if label:
            return label
    return None


def read_choice(answer: str | None, size: int) -> set[int] | None:
    """The places (from 0) that an answer names; None if it can not be read."""
    if answer is None:
        return None
    numbers = [int(number) for number in re.findall(r"\d+", answer)]
    if not numbers:
        return set() if re.search(r"\bnone\b", answer, re.IGNORECASE) else None
    return {number - 1 for number in numbers} if all(1 <= number <= size for number in numbers) else None
