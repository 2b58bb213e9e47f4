"""The units of texts (tokens, words, sentences, ...) with what the concepts say about each, some rows at a time.

Activations come from the first of these that is given: those of concepts, latent ones, which are encoded here, or those that
the model has on the texts. Nothing is held for all of the texts but what the caller keeps.

Instead of units in their texts there can be single tokens or words, each alone before the model:

* ``use_vocab``: every token id but the special ones; at CLS_TOKEN between the tokens that the tokenizer puts around a text;
* ``use_unique_words``: every different word of the texts. A word is a run of letters, digits and underscores, with an
  apostrophe inside; upper and lower case differ.

Shapes: ``ng`` units in all, ``r`` rows at a time, ``d`` width, ``c`` concepts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saescope.concepts.splitting import ActivationGranularity, GranularityAggregationStrategy
from saescope.models.token_text import TokenReader

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_WHOLE_TEXT = (ActivationGranularity.CLS_TOKEN, ActivationGranularity.SAMPLE)
_WORD_SETTINGS = ("count_min_threshold", "lemmatize", "words_to_ignore")


class Unit(NamedTuple):
    """A unit and where it is."""

    text: str
    sample: int
    """Number of its text."""
    number: int
    """Which of the text's units it is."""
    position: int
    """Its first token's place in the text, padding not counted."""


class Surrounded(NamedTuple):
    """A unit with what stands around it."""

    before: str
    text: str
    after: str


@dataclass(frozen=True, eq=False)
class Rows:
    """Some units and their concepts."""

    units: list[Unit]
    codes: Tensor  # [r, c], on the CPU


class UnitReader:
    """Units and concepts of whatever is given to :meth:`read`."""

    def __init__(
        self,
        explainer: Any,
        granularity: ActivationGranularity,
        strategy: GranularityAggregationStrategy,
        *,
        rows_at_once: int = 1024,
        use_vocab: bool = False,
        use_unique_words: bool = False,
        unique_words_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Checks the settings.

        Args:
            explainer: fitted.
            rows_at_once: how many rows are encoded together.
            unique_words_kwargs: ``count_min_threshold`` (words that occur less often are left out; 1) and
                ``words_to_ignore``.
            device: where the concept model computes; where it is, if None.

        Raises:
            RuntimeError: the explainer is not fitted.
            ValueError: ALL_TOKENS, whose units are no text, or settings that exclude each other.
        """
        self.explainer, self.model = explainer, explainer.model_with_split_points
        self.granularity = ActivationGranularity(granularity)
        self.strategy = GranularityAggregationStrategy(strategy)
        self.rows_at_once = from_one("concept_encoding_batch_size", rows_at_once)
        self.use_vocab, self.use_unique_words, self.device = use_vocab, bool(use_unique_words), device
        self.word_settings = dict(unique_words_kwargs or {})
        if self.granularity is ActivationGranularity.ALL_TOKENS:
            raise ValueError("ALL_TOKENS has units that are no text of the input; take TOKEN, or another granularity")
        if self.use_vocab and self.use_unique_words:
            raise ValueError("use_vocab and use_unique_words exclude each other: units are tokens or words")
        if use_unique_words not in (False, True):
            raise ValueError(f"use_unique_words takes single words, no runs of {use_unique_words}: it is True or False")
        self._check_word_settings()
        if not explainer.is_fitted:
            raise RuntimeError("the explainer is not fitted: call fit(activations) first")

    @property
    def num_concepts(self) -> int:
        """``c``."""
        return int(self.explainer.get_dictionary().shape[0])

    @property
    def has_context(self) -> bool:
        """Whether units stand among others of their text."""
        return not (self.use_vocab or self.use_unique_words or self.granularity in _WHOLE_TEXT)

    def concepts(self, asked: str | int | Sequence[int]) -> list[int]:
        """The numbers of the concepts that are asked for.

        Raises:
            ValueError: neither "all" nor numbers of concepts.
        """
        size = self.num_concepts
        if isinstance(asked, str):
            if asked != "all":
                raise ValueError(f'concepts_indices is a number, a list of numbers, or "all"; not {asked!r}')
            return list(range(size))
        numbers = [asked] if isinstance(asked, int) else list(asked)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < size:
                raise ValueError(f"concepts have numbers from 0 to {size - 1}; {number!r} is none")
        return list(dict.fromkeys(numbers))

    def kept(self, inputs: Any) -> Any:
        """Inputs that can be read twice."""
        return list(inputs) if isinstance(inputs, Iterator) else inputs

    def read(
        self, inputs: Any = None, latent_activations: Any = None, concepts_activations: Tensor | None = None
    ) -> Iterator[Rows]:
        """All units in order.

        Args:
            inputs: texts, token ids ``[n, l]``, or what a tokenizer gave; not needed with ``use_vocab``.
            latent_activations: ``[ng, d]``, or a dictionary with the split point's.
            concepts_activations: ``[ng, c]``, dense or sparse.

        Raises:
            ValueError: no inputs, or activations of other units than theirs.
        """
        given = self._given(latent_activations, concepts_activations)
        encoded = concepts_activations is not None
        held: list[Unit] = []
        parts: list[Tensor] = []
        num_read = 0
        for units, batch, granularity in self._batches(self._texts(inputs)):
            held += units
            if given is None:
                parts.append(self._latent(batch, granularity))
                if len(parts[-1]) != len(units):
                    raise ValueError(f"{len(parts[-1])} rows of activations do not belong to {len(units)} units")
            else:
                if num_read + len(units) > len(given):
                    raise ValueError(
                        f"there are {len(given)} rows of activations, and more units in the inputs; give activations of "
                        f"the same inputs at the same granularity ({self.granularity.name})"
                    )
                parts.append(_rows_of(given, num_read, num_read + len(units)))
            num_read += len(units)
            if len(held) >= self.rows_at_once:
                rows = torch.cat(parts)
                while len(held) >= self.rows_at_once:
                    yield self._rows(held[: self.rows_at_once], rows[: self.rows_at_once], encoded)
                    held, rows = held[self.rows_at_once :], rows[self.rows_at_once :]
                parts = [rows]
        if held:
            yield self._rows(held, torch.cat(parts), encoded)
        if given is not None and num_read < len(given):
            raise ValueError(
                f"there are {len(given)} rows of activations, and the inputs have {num_read} units; give activations of the "
                f"same inputs at the same granularity ({self.granularity.name})"
            )

    def surroundings(
        self, inputs: Any, places: Collection[tuple[int, int]], size: int
    ) -> dict[tuple[int, int], Surrounded]:
        """What stands around units, given as (text, number of the unit): ``size`` units to either side."""
        found: dict[tuple[int, int], Surrounded] = {}
        if not self.has_context:
            return found
        wanted: dict[int, list[int]] = {}
        for sample, number in places:
            wanted.setdefault(sample, []).append(number)
        reader = TokenReader(self.model.tokenizer)
        first = 0
        for batch in self.model.batches(inputs, self.model.batch_size):
            selection = self.model.selection(batch, self.granularity)
            for row, units in enumerate(selection.units):
                for number in wanted.get(first + row, ()):
                    ids = selection.encoding["input_ids"][row]
                    found[first + row, number] = _surrounded(reader, ids, units, number, size)
            first += len(selection.units)
        return found

    def _check_word_settings(self) -> None:
        unknown = sorted(set(self.word_settings) - set(_WORD_SETTINGS))
        if unknown:
            raise ValueError(f"unique_words_kwargs has {unknown[0]!r}; known are {', '.join(_WORD_SETTINGS)}")
        if self.word_settings.get("lemmatize"):
            raise ValueError(
                "words are not brought to their base forms here, which takes a dictionary of each language; leave "
                "lemmatize out, or give texts of base forms"
            )

    def _given(self, latent: Any, concepts: Tensor | None) -> Tensor | None:
        if concepts is not None:
            return _matrix("concepts_activations", concepts, self.num_concepts)
        if latent is None:
            return None
        if isinstance(latent, Mapping):
            latent = self.model.get_split_activations(latent, self.explainer.split_point)
        return _matrix("latent_activations", latent, None)

    def _texts(self, inputs: Any) -> Any:
        """What is given to the model: the inputs, or words of them one by one."""
        if self.use_vocab:
            return None
        if inputs is None:
            raise ValueError("there are no inputs: units are taken from texts (use_vocab=True takes tokens one by one)")
        if isinstance(inputs, str):
            raise ValueError("inputs are a list of texts; for one text give a list of one")
        if not self.use_unique_words:
            return inputs
        counts: Counter[str] = Counter()
        for batch in self.model.batches(inputs, self.model.batch_size):
            for text in self._whole_texts(batch):
                counts.update(_WORD.findall(text))
        least, ignored = (
            self.word_settings.get("count_min_threshold", 1),
            self.word_settings.get("words_to_ignore") or (),
        )
        words = [word for word, count in counts.items() if count >= least and word not in set(ignored)]
        if not words:
            raise ValueError(f"no word of the inputs occurs {least} times or more (words_to_ignore left out)")
        return words

    def _batches(self, texts: Any) -> Iterator[tuple[list[Unit], Any, ActivationGranularity]]:
        """Units of some texts, what to give to the model for them, and at which granularity."""
        if self.use_vocab:
            yield from self._vocabulary()
            return
        first = 0
        for batch in self.model.batches(texts, self.model.batch_size):
            selection = self.model.selection(batch, self.granularity)
            words = texts[first : first + len(selection.units)] if self.use_unique_words else None
            ids = selection.encoding["input_ids"]
            mask = selection.encoding["attention_mask"].bool()
            units = [
                Unit(
                    words[row] if words is not None else selection.unit_texts[row][number],
                    first + row,
                    number,
                    int(mask[row, : tokens[0]].sum()),
                )
                for row in range(len(ids))
                for number, tokens in enumerate(selection.units[row])
            ]
            yield units, batch, self.granularity
            first += len(ids)

    def _vocabulary(self) -> Iterator[tuple[list[Unit], Tensor, ActivationGranularity]]:
        tokenizer = self.model.tokenizer
        special = set(tokenizer.all_special_ids)
        size = self.model.model.get_input_embeddings().num_embeddings  # a tokenizer may have more
        known = [number for number in tokenizer.get_vocab().values() if number < size]
        numbers = sorted(number for number in known if number not in special)
        reader = TokenReader(tokenizer)
        before, after, granularity = [], [], ActivationGranularity.ALL_TOKENS
        if self.granularity is ActivationGranularity.CLS_TOKEN:
            around = list(tokenizer("")["input_ids"])
            if not around or around[0] != tokenizer.cls_token_id:
                raise ValueError(
                    "this tokenizer puts no CLS token before a text, so that there is none for CLS_TOKEN to read"
                )
            before, after, granularity = around[:1], around[1:], self.granularity
        for first in range(0, len(numbers), self.model.batch_size):
            some = numbers[first : first + self.model.batch_size]
            units = [Unit(reader.read([number])[0], number, 0, len(before)) for number in some]
            yield units, torch.tensor([[*before, number, *after] for number in some]), granularity

    def _whole_texts(self, batch: Any) -> list[str]:
        if isinstance(batch, list | tuple) and all(isinstance(text, str) for text in batch):
            return list(batch)
        return [text for (text,) in self.model.selection(batch, ActivationGranularity.SAMPLE).unit_texts]

    @torch.no_grad()
    def _latent(self, batch: Any, granularity: ActivationGranularity) -> Tensor:
        found = self.model.get_activations(batch, granularity, self.strategy)
        return self.model.get_split_activations(found, self.explainer.split_point)

    @torch.no_grad()
    def _rows(self, units: list[Unit], rows: Tensor, encoded: bool) -> Rows:
        if not encoded:
            at = self.explainer.device
            try:
                if self.device is not None:
                    self.explainer.device = self.device
                rows = self.explainer.encode_activations(rows)
            finally:
                if self.device is not None:
                    self.explainer.device = at
        codes = rows.detach().cpu()
        codes = codes if codes.dtype == torch.float64 else codes.float()
        if not bool(codes.isfinite().all()):
            row = int((~codes.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"a concept's activation is not a number (NaN or infinite) at {units[row]}")
        return Rows(units, codes)


def _surrounded(reader: TokenReader, ids: Tensor, units: Sequence[Sequence[int]], number: int, size: int) -> Surrounded:
    """The text from the unit ``size`` before to the unit ``size`` after, cut at the unit's own ends."""
    first, last = units[max(0, number - size)][0], units[min(len(units) - 1, number + size)][-1]
    text, ranges = reader.read(ids[first : last + 1].tolist())
    start, end = ranges[units[number][0] - first][0], ranges[units[number][-1] - first][1]
    return Surrounded(text[:start], text[start:end], text[end:])


def _matrix(name: str, value: Any, width: int | None) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() != 2 or (width is not None and value.shape[1] != width):
        shown = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a tensor [units, {width or 'd'}], not {shown}")
    return value.coalesce() if value.layout is torch.sparse_coo else value


def _rows_of(matrix: Tensor, first: int, last: int) -> Tensor:
    if matrix.layout is torch.strided:
        return matrix[first:last]
    return matrix.index_select(0, torch.arange(first, last, device=matrix.device)).to_dense()


def from_one(name: str, value: int) -> int:
    """The value of a setting that counts something.

    Raises:
        ValueError: it is no number from 1 on.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is a number from 1 on, not {value!r}")
    return value
