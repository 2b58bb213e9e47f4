"""Inputs of any form as one padded batch, with what the tokenizer knows about each token.

Inputs are strings, a tensor of token ids, or a tokenizer's output (its ``BatchEncoding``, or a plain mapping with
``input_ids``). Strings are tokenized without padding, cut to what the model has positions for, and padded here, so that
the tokenizer needs no padding token and stays as it was, and so does the model.

The padding id is the model's own (``config.pad_token_id``), else the tokenizer's, else the end of text, else 0: the
attention mask hides it, and some classification models look for it to find a text's last token. Token types are passed on
to models that have an embedding for them (``config.type_vocab_size``) alone: others, GPT-2 among them, would add a word's
embedding to every token.

Shapes: ``n`` texts, ``l`` tokens, padding counted.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from saescope.models.positions import context_size, first_position, text_config

SIDES = ("left", "right")


@dataclass(frozen=True, eq=False)
class Encoded:
    """One batch."""

    encoding: BatchEncoding
    """What the model gets, on the CPU: ``input_ids`` and ``attention_mask`` ``[n, l]``, and what else the inputs held."""
    texts: Sequence[str] | None = None
    """The raw texts, where strings were given."""
    of_text: Sequence[Any] | None = None
    """What a fast tokenizer tells of each text: a ``tokenizers.Encoding``."""
    shifts: Sequence[int] = ()
    """Column of each text's first entry in ``of_text``."""
    is_bare: bool = False
    """Whether ids alone were given, without word of padding."""

    @cached_property
    def ids(self) -> list[list[int]]:
        """Token ids of each row, padding counted."""
        return self.encoding["input_ids"].tolist()

    @cached_property
    def columns(self) -> list[list[int]]:
        """Where each row holds tokens, not padding."""
        rows = self.encoding["attention_mask"].tolist()
        return [[column for column, counts in enumerate(row) if counts] for row in rows]

    def is_of_these_ids(self) -> bool:
        """Whether what the tokenizer tells is of the ids in the batch; one can change them after it made them."""
        if self.of_text is None or len(self.of_text) != len(self.encoding["input_ids"]):
            return False
        for text, (told, shift) in enumerate(zip(self.of_text, self.shifts, strict=True)):
            known = dict(enumerate(told.ids, start=shift))
            if any(known.get(column) != self.ids[text][column] for column in self.columns[text]):
                return False
        return True


class Encoder:
    """Makes batches for one model and one tokenizer."""

    def __init__(self, module: nn.Module, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        hugging_face: Any = module
        self._config = text_config(module)
        embedding = hugging_face.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
        self._vocab_size: int | None = getattr(embedding, "num_embeddings", None)
        self._context_size = context_size(module)
        self._parameters = inspect.signature(module.forward).parameters
        is_causal = _is_causal(module)
        self._side = "left" if is_causal else "right"
        # positions are given by the caller, counted from the ids, or of no matter to the causal models without them
        self._can_pad_left = is_causal or "position_ids" in self._parameters or first_position(module) > 0

    def encode(self, inputs: Any, pad_side: str | None = None) -> Encoded:
        """One batch; checked, so that the model's own errors do not come up.

        Args:
            inputs: as above.
            pad_side: where padding of strings stands; by default on the left for causal language models, else on the
                right. Results do not depend on it: for a model that counts positions from a row's first column, whatever
                stands there (BART), it is on the right in any case.

        Raises:
            ValueError: nothing to encode, a text without tokens, ids that the model does not have, ...
        """
        side = self._side if pad_side is None else pad_side
        if side not in SIDES:
            raise ValueError(f"pad_side is 'left' or 'right', not {pad_side!r}")
        if not self._can_pad_left:
            side = "right"
        inputs = _normal(inputs)
        if isinstance(inputs, list):
            encoded = self._of_strings(inputs, side)
        elif isinstance(inputs, Tensor):
            encoded = Encoded(BatchEncoding(self._rows({"input_ids": inputs}, side)), is_bare=True)
        else:
            encoded = self._of_tokenizer_output(inputs, side)
        self._check(encoded.encoding)
        return encoded

    def _of_strings(self, texts: list[str], side: str) -> Encoded:
        limits = [self._tokenizer.model_max_length, self._context_size]
        longest = min(limit for limit in limits if limit is not None)
        settings: dict[str, Any] = {"truncation": False}
        if longest < 1_000_000:  # a tokenizer without a limit says 10^30
            settings = {"truncation": True, "max_length": int(longest)}
        with _as_it_was(self._tokenizer):
            found = self._tokenizer(texts, padding=False, return_attention_mask=True, verbose=False, **settings)
        rows = self._rows(found, side)
        width = rows["input_ids"].shape[1]
        shifts = [width - len(ids) if side == "left" else 0 for ids in found["input_ids"]]
        return Encoded(BatchEncoding(rows), texts=texts, of_text=found.encodings, shifts=shifts)

    def _of_tokenizer_output(self, given: Mapping[str, Any], side: str) -> Encoded:
        rows = self._rows(given, side)
        encoding, of_text = BatchEncoding(rows), getattr(given, "encodings", None)
        width = rows["input_ids"].shape[1]
        shifts = [width - len(each.ids) if side == "left" else 0 for each in of_text or ()]
        encoded = Encoded(encoding, of_text=of_text, shifts=shifts)
        return encoded if of_text and encoded.is_of_these_ids() else Encoded(encoding)

    def _rows(self, given: Mapping[str, Any], side: str) -> dict[str, Tensor]:
        """The entries that the model takes, padded to tensors."""
        ids = given["input_ids"]
        rows = {"input_ids": _padded(ids, self._padding_id(), side)}
        like = rows["input_ids"]
        if "attention_mask" in given:
            rows["attention_mask"] = _padded(given["attention_mask"], 0, side)
        else:  # what is padded here is padding; a tensor says nothing, so that all of it is text
            ones = torch.ones_like(ids) if isinstance(ids, Tensor) else [[1] * len(row) for row in ids]
            rows["attention_mask"] = _padded(ones, 0, side)
        for name, value in given.items():
            if name not in rows and self._takes(name):
                rows[name] = _padded(value, 0, side) if not isinstance(value, Tensor) else value
        for name, value in rows.items():
            if name in ("attention_mask", "token_type_ids") and value.shape != like.shape:
                raise ValueError(
                    f"{name} has the shape {tuple(value.shape)}, input_ids have {tuple(like.shape)}; they must agree"
                )
        if self._own_padding_id() is not None and not bool(rows["attention_mask"].all()):
            rows["input_ids"] = like.masked_fill(rows["attention_mask"] == 0, self._padding_id())
        return rows

    def _takes(self, name: str) -> bool:
        if name == "token_type_ids":
            return getattr(self._config, "type_vocab_size", 0) > 0 and name in self._parameters
        return name in self._parameters and name != "labels"

    def _own_padding_id(self) -> int | None:
        return self._valid(getattr(self._config, "pad_token_id", None))

    def _padding_id(self) -> int:
        candidates = [self._own_padding_id(), self._tokenizer.pad_token_id, self._tokenizer.eos_token_id]
        return next((found for found in map(self._valid, candidates) if found is not None), 0)

    def _valid(self, token_id: Any) -> int | None:
        """None for ids without an embedding: a padding token that was added to the tokenizer alone, or -1 in a config."""
        known = isinstance(token_id, int) and token_id >= 0 and token_id < (self._vocab_size or token_id + 1)
        return token_id if known else None

    def _check(self, encoding: BatchEncoding) -> None:
        ids, mask = encoding["input_ids"], encoding["attention_mask"]
        empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"text {empty[0]} of this batch has no tokens ({len(empty)} such); leave empty texts out")
        if self._context_size is not None and ids.shape[1] > self._context_size:
            raise ValueError(
                f"the token ids are {ids.shape[1]} wide, and the model has positions for {self._context_size}; tokenize "
                f"with truncation=True, max_length={self._context_size}, or give strings, which are cut"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or (self._vocab_size is not None and high >= self._vocab_size):
            raise ValueError(
                f"token id {low if low < 0 else high} is not in the model's vocabulary, 0 to "
                f"{(self._vocab_size or 0) - 1}; were the ids made by another model's tokenizer?"
            )


def num_texts(inputs: Any) -> int:
    """How many texts inputs hold, whatever their form."""
    inputs = _normal(inputs)
    return len(inputs if isinstance(inputs, list | Tensor) else inputs["input_ids"])


def batches(inputs: Any, batch_size: int) -> Iterator[Any]:
    """Inputs in batches of ``batch_size`` texts, each in the form of the whole.

    Raises:
        ValueError: inputs of no known form, none at all, an empty string, or a batch size below 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is a number of texts from 1 up, not {batch_size!r}")
    inputs = _normal(inputs)  # checked now, not when the first batch is asked for
    return _sliced(inputs, batch_size)


def _sliced(inputs: Any, batch_size: int) -> Iterator[Any]:
    for start in range(0, num_texts(inputs), batch_size):
        part = slice(start, start + batch_size)
        if isinstance(inputs, list | Tensor):
            yield inputs[part]
            continue
        entries = {name: value[part] for name, value in inputs.items() if hasattr(value, "__len__")}
        of_text = getattr(inputs, "encodings", None)
        yield BatchEncoding(entries, encoding=list(of_text[part]) if of_text else None)


def _normal(inputs: Any) -> list[str] | Tensor | Mapping[str, Any]:
    """Strings in a list, ids in a tensor ``[n, l]``, or a mapping with ``input_ids`` of one row per text."""
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, Mapping):
        if "input_ids" not in inputs:
            raise ValueError(f"tokenizer output has input_ids; this has {', '.join(map(str, inputs)) or 'nothing'}")
        ids = inputs["input_ids"]
        if isinstance(ids, Tensor):
            _check_ids(ids)
        elif not len(ids) or not all(hasattr(row, "__len__") and not isinstance(row, str) for row in ids):
            raise ValueError("input_ids hold one row of token ids for each text, of one text at least")
        return inputs
    if isinstance(inputs, Tensor):
        _check_ids(inputs)
        return inputs
    if not isinstance(inputs, Iterable):
        raise TypeError(f"{_FORMS}, not {type(inputs).__name__}")
    texts = list(inputs)
    if not texts:
        raise ValueError(f"no inputs were given; {_FORMS}")
    odd = next((each for each in texts if not isinstance(each, str)), None)
    if odd is not None:
        raise TypeError(f"{_FORMS}, not a list that holds {type(odd).__name__}")
    empty = [place for place, text in enumerate(texts) if not text]
    if empty:
        raise ValueError(f"text {empty[0]} is an empty string ({len(empty)} such); leave empty texts out")
    return texts


_FORMS = "inputs are a list of strings, a tensor of token ids [texts, tokens], or what a tokenizer returns"


def _check_ids(ids: Tensor) -> None:
    if ids.dim() != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or not ids.numel():
        raise ValueError(f"token ids are integers [texts, tokens], at least one, not {ids.dtype} {tuple(ids.shape)}")


def _padded(rows: Any, value: int, side: str) -> Tensor:
    """Rows of different lengths as a tensor ``[n, l]`` of int64 on the CPU."""
    if isinstance(rows, Tensor):
        return rows.to("cpu", torch.int64) if not rows.is_floating_point() else rows.to("cpu")
    width = max(map(len, rows))
    tensor = torch.full((len(rows), width), value)
    for number, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        tensor[number, start : start + len(row)] = torch.as_tensor(list(row), dtype=torch.int64)
    return tensor


@contextmanager
def _as_it_was(tokenizer: Any) -> Iterator[None]:
    """Fast tokenizers keep the last call's truncation and padding; afterwards these are as they were."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        if backend.truncation != truncation:
            backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
        if backend.padding != padding:
            backend.no_padding() if padding is None else backend.enable_padding(**padding)


def _is_causal(module: nn.Module) -> bool:
    """Whether this is a causal language model, in whose batches padding stands on the left."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    name = type(module).__name__
    both = name in MASKED.values()
    return name.endswith("ForCausalLM") or (name in CAUSAL.values() and not both)
