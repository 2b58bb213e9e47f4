"""Cuts a batch into the units of a granularity (``granularity.py`` says what these are)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from saescope.concepts.splitting.batch_text import BatchText
from saescope.concepts.splitting.encoding import Encoded
from saescope.concepts.splitting.granularity import ActivationGranularity as Granularity
from saescope.concepts.splitting.selection import Selection
from saescope.concepts.splitting.words import WordRule
from saescope.models.token_text import TokenReader


class Selector:
    """Cuts the batches of one tokenizer into units."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _reader(self) -> TokenReader:
        return TokenReader(self._tokenizer)

    @cached_property
    def _word_rule(self) -> WordRule:
        return WordRule(self._tokenizer)  # reads the whole vocabulary: not for every batch

    def select(self, encoded: Encoded, granularity: Granularity, *, include_padding: bool = False) -> Selection:
        """The units of a batch.

        Args:
            encoded: the batch.
            granularity: what a unit is.
            include_padding: with ``ALL_TOKENS``, padding too.

        Raises:
            ValueError: a granularity that these inputs, this tokenizer or one of these texts does not have.
        """
        if encoded.is_bare and granularity.needs_tokenizer_output:
            raise ValueError(
                f"{granularity.name} needs strings or a tokenizer's output: a bare tensor of token ids does not say what "
                "is padding. CLS_TOKEN and ALL_TOKENS take one"
            )
        if include_padding and granularity is not Granularity.ALL_TOKENS:
            raise ValueError(f"include_padding is for ALL_TOKENS; {granularity.name} has no padding in it")
        reading = BatchText(self._tokenizer, self._reader, self._word_rule, encoded)
        num_texts, width = encoded.encoding["input_ids"].shape
        if granularity is Granularity.CLS_TOKEN:
            units = self._first_tokens(encoded)
        elif granularity is Granularity.ALL_TOKENS:
            columns = (range(width) if include_padding else encoded.columns[text] for text in range(num_texts))
            units = [[[column] for column in each] for each in columns]
        elif granularity is Granularity.TOKEN:
            units = [[[column] for column in reading.tokens(text)] for text in range(num_texts)]
        elif granularity is Granularity.WORD:
            units = [reading.words(text) for text in range(num_texts)]
        elif granularity is Granularity.SENTENCE:
            units = [reading.sentences(text) for text in range(num_texts)]
        else:
            units = [[reading.tokens(text)] for text in range(num_texts)]
            bare = [text for text, ((columns_of,),) in enumerate(zip(units, strict=True)) if not columns_of]
            if bare:
                raise ValueError(
                    f"text {bare[0]} of this batch has special tokens alone ({len(bare)} such); SAMPLE has nothing to "
                    "aggregate there, leave such texts out"
                )
        whole = granularity in (Granularity.CLS_TOKEN, Granularity.SAMPLE)

        def text_of(text: int) -> list[str]:
            if whole:
                return [reading.whole(text)]
            if granularity.is_of_tokens:
                return [reading.token(text, column) for (column,) in units[text]]
            return [reading.between(text, unit) for unit in units[text]]

        return Selection(encoded, granularity, units, text_of)

    def _first_tokens(self, encoded: Encoded) -> list[list[list[int]]]:
        wanted = self._tokenizer.cls_token_id
        if wanted is None:
            raise ValueError(
                "CLS_TOKEN needs a tokenizer with a classification token (cls_token), which this one lacks; use TOKEN, "
                "WORD, SENTENCE or SAMPLE"
            )
        units = []
        for text in range(len(encoded.encoding["input_ids"])):
            first = encoded.columns[text][0]
            found = encoded.ids[text][first]
            if found != wanted:
                raise ValueError(
                    f"text {text} of this batch begins with token id {found}, not with the classification token {wanted} "
                    f"({self._tokenizer.cls_token}); tokenize with add_special_tokens=True, or use another granularity"
                )
            units.append([[first]])
        return units
