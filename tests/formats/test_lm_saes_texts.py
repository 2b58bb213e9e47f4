"""The text behind sample points: rows by shard, tokens as the workflow made them, and what is missing said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from lm_saes_dump import CONTEXT, small_dump

from saescope.formats import DatasetTexts, SamplePoint, read_lm_saes
from saescope.formats.lm_saes.texts import shard_bounds

TEXTS = [f"def row_{number}(x):  # \N{GRINNING FACE} é\n    return x + {number}\n" for number in range(12)]


@pytest.fixture(scope="module")
def rows() -> Any:
    return Dataset.from_dict({"text": TEXTS, "number": list(range(12))})


@pytest.mark.parametrize("num_shards", [1, 5])
def test_windows_show_the_rows(num_shards: int, rows: Any, tokenizer: Any, tmp_path: Path) -> None:
    planted = small_dump(num_shards=num_shards)
    texts = DatasetTexts(rows, tokenizer, context_size=CONTEXT)
    found = read_lm_saes(planted.writer.write(tmp_path / "dump"), texts=texts)
    assert found.analysis.details["num_examples_without_text"] == 0
    assert found.analysis.context_size == CONTEXT
    assert not any("no text" in remark for remark in found.remarks)
    windows = {window.id: window for window in found.windows}
    assert len({window.token_ids for window in windows.values()}) == len(windows) > 6
    for window in windows.values():
        _, *shard, row = window.document.split(":")
        if num_shards > 1:
            cut = rows.shard(num_shards, int(shard[0].split("/")[0]), contiguous=True)  # as the workflow does
        text = (cut if num_shards > 1 else rows)[int(row)]["text"]
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:CONTEXT]
        assert list(window.token_ids) == ids
        shown = "".join(piece.text for piece in window.spans).removeprefix("<|endoftext|>")
        assert text.startswith(shown.split("\\x")[0])


def test_rows_that_are_not_there_are_counted(rows: Any, tokenizer: Any, tmp_path: Path) -> None:
    planted = small_dump()
    found = read_lm_saes(
        planted.writer.write(tmp_path / "dump"),
        texts=DatasetTexts(rows.select(range(8)), tokenizer, context_size=CONTEXT),
    )
    windows = {window.id: window for window in found.windows}
    without = {window.id for window in windows.values() if set(window.text) == {"□"}}
    assert {int(windows[number].document.split(":")[1]) for number in windows.keys() - without} <= set(range(8))
    assert {int(windows[number].document.split(":")[1]) for number in without} <= {8, 9, 10, 11}
    assert without
    count = sum(example.window_id in without for example in found.examples)
    assert found.analysis.details["num_examples_without_text"] == count
    assert found.analysis.details["num_windows_without_text"] == len(without)
    assert found.remarks[0].startswith(f"{count} of ")


def test_a_data_set_per_name(rows: Any, tokenizer: Any) -> None:
    texts = DatasetTexts({"stories": rows}, tokenizer, context_size=4, prepend_bos=False)
    assert SamplePoint("stories", 0, 1, 11) in texts
    assert SamplePoint("stories", 0, 1, 12) not in texts
    assert SamplePoint("others", 0, 1, 0) not in texts
    assert SamplePoint("stories", 2, 2, 0) not in texts
    assert SamplePoint("stories", 0, 0, 0) not in texts
    found = texts.read(SamplePoint("stories", 1, 2, 0))
    assert found.ids == tokenizer(TEXTS[6], add_special_tokens=False)["input_ids"][:4]
    assert TEXTS[6].startswith(found.text)


def test_a_wrong_column_or_context_size_is_named(rows: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no text in the column 'body'; its columns are text, number"):
        DatasetTexts(rows, tokenizer, context_size=4, column="body").read(SamplePoint("s", 0, 1, 0))
    with pytest.raises(ValueError, match="a context has at least one token"):
        DatasetTexts(rows, tokenizer, context_size=0)


def test_text_that_is_too_short_was_not_analysed(rows: Any, tokenizer: Any, tmp_path: Path) -> None:
    texts = DatasetTexts(rows, tokenizer, context_size=2)
    found = read_lm_saes(small_dump().writer.write(tmp_path / "dump"), texts=texts)
    with pytest.raises(ValueError, match="has 2 tokens, but a feature fires on token 9: the data set, the tokenizer"):
        list(found.windows)


@given(st.integers(0, 40), st.integers(1, 9))
def test_shards_are_cut_as_the_library_cuts_them(num_rows: int, num_shards: int) -> None:
    rows = list(range(num_rows))
    cut = [rows[slice(*shard_bounds(num_rows, num_shards, shard))] for shard in range(num_shards)]
    assert [row for shard in cut for row in shard] == rows
    if num_rows >= num_shards:
        whole = Dataset.from_dict({"number": rows})
        assert cut == [list(whole.shard(num_shards, shard, contiguous=True)["number"]) for shard in range(num_shards)]
