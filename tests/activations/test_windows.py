"""Windows: every token once and in order, every mask and position as a construction by plain lists has it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saescope.activations import Document, TokenWindows, WindowBatch, WindowConfig

SPECIALS = {"<s>": 0, "</s>": 1, "<pad>": 2, "<sep>": 3, "<extra>": 4}
WORDS = range(len(SPECIALS), 20)
BOS, EOS, PAD = 0, 1, 2


@cache
def word_tokenizer(*roles: str) -> PreTrainedTokenizerFast:
    """One token per word: ``w7`` has id 7. ``roles`` say which special tokens the tokenizer knows as such."""
    backend = Tokenizer(models.WordLevel({**SPECIALS, **{f"w{i}": i for i in WORDS}}, unk_token="w5"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "sep": "<sep>"}
    named: dict[str, Any] = {f"{role}_token": tokens[role] for role in roles if role != "extra"}
    if "extra" in roles:
        named["additional_special_tokens"] = ["<extra>"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def written(ids: Iterable[int]) -> str:
    names = {number: name for name, number in SPECIALS.items()}
    return " ".join(names.get(i, f"w{i}") for i in ids)


def build(texts: list[list[int]], config: WindowConfig, *roles: str) -> TokenWindows:
    documents = [Document(f"d{number}", written(ids)) for number, ids in enumerate(texts)]
    return TokenWindows.build(documents, word_tokenizer(*roles), config)


class Cell(NamedTuple):
    id: int
    attention: bool
    keep: bool
    position: int


class Cut(NamedTuple):
    flat: list[tuple[int, int, int]]  # (id, document, offset) of every position
    rows: list[list[Cell]]


def by_hand(texts: list[list[int]], config: WindowConfig, opening: int, pad: int, special: frozenset[int]) -> Cut:
    """The windows by plain lists."""
    flat: list[tuple[int, int, int]] = []
    for number, ids in enumerate(texts):
        if config.packing == "concatenate":
            flat.append((opening, number, -1))
        flat += [(i, number, offset) for offset, i in enumerate(ids)]
    flat = flat[: config.max_tokens]
    width = config.context_size - config.prepend_bos
    cells = [Cell(i, True, i not in special, position) for position, (i, _, _) in enumerate(flat)]
    if config.packing == "concatenate":
        rows = [cells[i : i + width] for i in range(0, len(cells), width)]
        rows = [row for row in rows if len(row) == width]
    else:
        rows = []
        for number in range(len(texts)):
            own = [cell for cell, (_, document, _) in zip(cells, flat, strict=True) if document == number]
            rows += [own[i : i + width] for i in range(0, len(own), width)]
    head = [Cell(opening, True, False, -1)] if config.prepend_bos else []
    return Cut(flat, [head + row + [Cell(pad, False, False, -1)] * (width - len(row)) for row in rows])


def cells_of(batch: WindowBatch) -> list[list[Cell]]:
    assert batch.ids.dtype == batch.positions.dtype == torch.int64
    assert batch.attention.dtype == batch.keep.dtype == torch.bool
    columns = [t.tolist() for t in (batch.ids, batch.attention, batch.keep, batch.positions)]
    return [[Cell(*cell) for cell in zip(*row, strict=True)] for row in zip(*columns, strict=True)]


# documents may be empty, and may hold special tokens as text
texts_strategy = st.lists(st.lists(st.integers(0, 19), max_size=25), min_size=1, max_size=8)
config_strategy = st.builds(
    WindowConfig,
    context_size=st.integers(3, 12),
    packing=st.sampled_from(["concatenate", "separate"]),
    prepend_bos=st.booleans(),
    max_tokens=st.none() | st.integers(1, 120),
)
roles_strategy = st.sampled_from([("bos", "eos", "pad"), ("bos", "eos", "pad", "sep", "extra"), ("eos",)])


@settings(deadline=None, max_examples=150)
@given(texts_strategy, config_strategy, roles_strategy)
def test_windows_agree_with_a_construction_by_hand(
    texts: list[list[int]], config: WindowConfig, roles: tuple[str, ...]
) -> None:
    special = frozenset(BOS if role == "bos" else SPECIALS[f"<{role}>"] for role in roles if role != "eos") | {EOS}
    opening = BOS if "bos" in roles else EOS
    pad = PAD if "pad" in roles else opening
    flat, rows = by_hand(texts, config, opening, pad, special)
    if not rows:
        with pytest.raises(ValueError, match=f"its {len(flat)} tokens fill no window of context_size"):
            build(texts, config, *roles)
        return
    windows = build(texts, config, *roles)
    assert windows.special_ids == special
    assert cells_of(windows.batch(range(len(windows)))) == rows
    assert [row for batch in windows.in_order(2) for row in cells_of(batch)] == rows
    assert windows.num_tokens == sum(cell.keep for row in rows for cell in row)
    assert windows.num_attended == sum(cell.attention for row in rows for cell in row)
    for position, (i, document, offset) in enumerate(flat):
        assert windows.tokens[position] == i
        found, place = windows.document_of(position)
        assert (found.name, place) == (f"d{document}", offset)


@settings(deadline=None, max_examples=60)
@given(texts_strategy, st.integers(3, 9), st.booleans())
def test_concatenated_windows_hold_every_token_once_in_order(
    texts: list[list[int]], context_size: int, prepend_bos: bool
) -> None:
    texts = [*texts, [7] * context_size]  # at least one full window
    config = WindowConfig(context_size=context_size, prepend_bos=prepend_bos)
    windows = build(texts, config, "bos", "eos")
    batch = windows.batch(range(len(windows)))
    assert batch.attention.all()
    content = batch.ids[:, 1:] if prepend_bos else batch.ids
    expected = [i for ids in texts for i in (BOS, *ids)]
    got = content.flatten().tolist()
    assert got == expected[: len(got)]
    assert len(expected) - len(got) < context_size - prepend_bos


@settings(deadline=None, max_examples=60)
@given(texts_strategy, st.integers(3, 9), st.booleans())
def test_separate_windows_hold_one_document_each_and_every_token_once(
    texts: list[list[int]], context_size: int, prepend_bos: bool
) -> None:
    texts = [*texts, [7]]
    config = WindowConfig(context_size=context_size, packing="separate", prepend_bos=prepend_bos)
    windows = build(texts, config, "bos", "eos", "pad")
    seen: dict[str, list[int]] = {f"d{number}": [] for number in range(len(texts))}
    for batch in windows.in_order(3):
        for ids, attention, positions in zip(batch.ids, batch.attention, batch.positions, strict=True):
            places = positions[positions >= 0].tolist()
            (name,) = {windows.document_of(place)[0].name for place in places}
            seen[name] += ids[positions >= 0].tolist()
            assert (ids[~attention] == PAD).all()
            assert attention.int().diff().max() <= 0  # padding stands on the right
    assert list(seen.values()) == texts


def test_a_position_outside_the_text_has_no_document() -> None:
    windows = build([[5, 6, 7], [8, 9]], WindowConfig(context_size=4, prepend_bos=False), "bos")
    assert windows.document_of(0) == (windows.documents[0], -1)  # the separator
    assert windows.document_of(6) == (windows.documents[1], 1)
    for position in (-1, 7):
        with pytest.raises(IndexError, match="which has positions 0 to 6"):
            windows.document_of(position)


def test_documents_of_the_byte_level_tokenizer_can_be_read_back(documents: list[Document], tokenizer: Any) -> None:
    """Through document_of alone, over more documents than one call of the tokenizer takes."""
    many = [Document(f"{i}:{document.name}", document.text) for i in range(4) for document in documents]
    windows = TokenWindows.build(many, tokenizer, WindowConfig(context_size=16, packing="separate"))
    seen: dict[str, list[int]] = {}
    for batch in windows.in_order(16):
        for i, position in zip(batch.ids[batch.keep].tolist(), batch.positions[batch.keep].tolist(), strict=True):
            document, offset = windows.document_of(position)
            ids = seen.setdefault(document.name, [])
            assert offset == len(ids)
            ids.append(i)
    assert {name: tokenizer.decode(ids) for name, ids in seen.items()} == {d.name: d.text for d in many}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_evenly_keeps_the_bound_and_spreads(data: st.DataObject) -> None:
    packing: Any = data.draw(st.sampled_from(["concatenate", "separate"]))
    texts = data.draw(st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=60), min_size=20, max_size=40))
    windows = build(texts, WindowConfig(context_size=6, packing=packing), "bos", "eos")
    num_tokens = data.draw(st.integers(0, windows.num_tokens + 5))
    average = windows.num_tokens / len(windows)
    if num_tokens < windows.num_tokens and num_tokens < max(average, int(windows.batch([0]).keep.sum())):
        try:
            part = windows.evenly(num_tokens)
        except ValueError:  # not even the first window, or not even one
            return
    else:
        part = windows.evenly(num_tokens)
    assert part.num_tokens <= num_tokens
    chosen = np.searchsorted(windows.starts, part.starts)
    assert (np.diff(chosen) > 0).all()
    assert (windows.starts[chosen] == part.starts).all()
    assert (windows.lengths[chosen] == part.lengths).all()
    if len(part) > 1:
        assert (chosen[0], chosen[-1]) == (0, len(windows) - 1)
        assert np.diff(chosen).max() - np.diff(chosen).min() <= 1
    assert part.document_of(int(part.starts[-1])) == windows.document_of(int(part.starts[-1]))


def test_evenly_takes_what_is_asked_for_where_windows_are_alike() -> None:
    windows = build([[7] * 999], WindowConfig(context_size=11), "bos")
    assert (len(windows), windows.num_tokens) == (100, 999)  # the separator opens the first window
    for num_tokens in (10, 95, 100, 505, 990):
        part = windows.evenly(num_tokens)
        assert num_tokens - 10 < part.num_tokens <= num_tokens
    assert windows.evenly(None) is windows
    assert windows.evenly(999) is windows
    with pytest.raises(ValueError, match=r"num_tokens = 8 is less than what one window holds \(11\)"):
        windows.evenly(8)


def test_max_tokens_ends_the_reading() -> None:
    def endless() -> Iterable[Document]:
        number = 0
        while True:
            yield Document(f"d{number}", "w7 w8 w9")
            number += 1

    config = WindowConfig(context_size=5, prepend_bos=False, max_tokens=1002)
    windows = TokenWindows.build(endless(), word_tokenizer("bos"), config)
    assert len(windows.tokens) == 1002
    assert (
        len(windows.documents) == len(windows.document_starts) - 1 == 251
    )  # 250 whole ones and two tokens of the next
    assert windows.document_starts[-1] == 1002


def test_progress_counts_tokens() -> None:
    counts: list[int] = []
    texts = [Document(str(i), "w7 w8 w9") for i in range(100)]
    TokenWindows.build(texts, word_tokenizer("bos"), WindowConfig(context_size=8), on_progress=counts.append)
    assert counts == [64 * 4, 400]


def test_eos_opens_where_there_is_no_bos() -> None:
    windows = build([[7, 8], [9]], WindowConfig(context_size=3), "eos")
    assert windows.batch([0, 1]).ids.tolist() == [[EOS, EOS, 7], [EOS, 8, EOS]]


def test_tokenizer_without_bos_and_eos() -> None:
    with pytest.raises(ValueError, match=r"neither a BOS, a CLS nor an EOS token; set prepend_bos = false"):
        build([[7, 8, 9]], WindowConfig(context_size=3), "pad")
    windows = build([[7, 8, 9], [10]], WindowConfig(context_size=4, prepend_bos=False), "pad")
    assert windows.batch([0]).ids.tolist() == [[7, 8, 9, 10]]  # nothing to part documents with
    windows = build([[7, 8, 9], [10]], WindowConfig(context_size=4, prepend_bos=False, packing="separate"), "pad")
    assert windows.batch([0, 1]).ids.tolist() == [[7, 8, 9, PAD], [10, PAD, PAD, PAD]]
    windows = build([[7]], WindowConfig(context_size=2, prepend_bos=False, packing="separate"))
    assert windows.batch([0]).keep.tolist() == [[True, False]]  # no special token at all: id 0 pads, and is not kept


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"context_size": 2}, "context_size must be at least 3, got 2"),
        ({"context_size": 1, "prepend_bos": False}, "context_size must be at least 2, got 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"packing": "seperate"}, "packing must be 'concatenate' or 'separate', got 'seperate'"),
    ],
)
def test_config_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WindowConfig(**settings)


def test_too_little_text() -> None:
    with pytest.raises(ValueError, match="its 4 tokens fill no window of context_size 6"):
        build([[7, 8, 9]], WindowConfig(context_size=6), "bos")
    with pytest.raises(ValueError, match="its 0 tokens fill no window"):
        build([[]], WindowConfig(context_size=6, packing="separate"), "bos")
    with pytest.raises(ValueError, match="its 0 tokens fill no window"):
        TokenWindows.build([], word_tokenizer("bos"), WindowConfig(context_size=6))
