"""What one activation vector stands for: a token, a word, a sentence or a text.

A granularity cuts each text into units, and a unit is a list of token positions. A unit of several tokens is made one
vector by an aggregation strategy (``aggregation.py``).

- ``CLS_TOKEN``: the first token of each text, which must be the tokenizer's classification token in every text.
- ``ALL_TOKENS``: every token that the attention mask counts, special tokens included.
- ``TOKEN``: every token whose id is none of ``tokenizer.all_special_ids``. (The id for unknown words is one of them.)
- ``WORD``: words as the tokenizer's pre-tokenizer cuts them (``words.py``).
- ``SENTENCE``: sentences of the raw text (``sentences.py``).
- ``SAMPLE``: the tokens of ``TOKEN``, made one vector per text.

Padding belongs to no unit, on whichever side it stands. Special tokens belong to units of ``CLS_TOKEN`` and
``ALL_TOKENS`` alone; an unknown word is a word of a sentence, though.
"""

from __future__ import annotations

from enum import StrEnum


class ActivationGranularity(StrEnum):
    """How texts are cut into units; the strings are accepted wherever a granularity is asked for."""

    CLS_TOKEN = "cls_token"
    ALL_TOKENS = "all_tokens"
    TOKEN = "token"
    WORD = "word"
    SENTENCE = "sentence"
    SAMPLE = "sample"

    @classmethod
    def _missing_(cls, value: object) -> ActivationGranularity:
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        raise ValueError(f"{value!r} is no activation granularity; there are {', '.join(cls.__members__)}")

    @property
    def is_of_tokens(self) -> bool:
        """Whether every unit is a single token, so that nothing is aggregated."""
        return self in (type(self).CLS_TOKEN, type(self).ALL_TOKENS, type(self).TOKEN)

    @property
    def needs_tokenizer_output(self) -> bool:
        """Whether bare token ids do not say enough: which of them are padding."""
        return self not in (type(self).CLS_TOKEN, type(self).ALL_TOKENS)
