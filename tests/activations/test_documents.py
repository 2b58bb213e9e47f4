"""Documents: every source gives the same texts in order, splits never share a document, and errors name what was found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from saescope.activations import DatasetConfig, DatasetError, Document, read_documents
from saescope.activations.documents import has_own_splits
from saescope.models.bundled.corpus import source_files, split_of

TEXTS = [f"document {i}\n\twith a tab, a comma, \"quotes\" and 'ünïcödé' 漢字 🎈\nlast line {i * i}" for i in range(23)]


def all_of(path: Path, **settings: str) -> list[Document]:
    return list(read_documents(DatasetConfig(name=str(path), **{"split": "all", **settings})))


def save_jsonl(path: Path, texts: Sequence[str | None], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)))
    return path


def save_arrow(path: Path, texts: list[str]) -> None:
    Dataset.from_dict({"text": texts}).save_to_disk(path.parent / "as-arrow")
    (path.parent / "as-arrow" / "data-00000-of-00001.arrow").rename(path)


SAVERS: dict[str, Callable[..., object]] = {
    "jsonl": save_jsonl,
    "json": lambda path, texts: path.write_text(json.dumps([{"n": 1, "text": text} for text in texts])),
    "csv": lambda path, texts: Dataset.from_dict({"n": range(len(texts)), "text": texts}).to_csv(path),
    "parquet": lambda path, texts: Dataset.from_dict({"n": range(len(texts)), "text": texts}).to_parquet(path),
    "arrow": save_arrow,
}


@pytest.mark.parametrize("kind", SAVERS)
def test_tables_give_their_rows_in_order(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    SAVERS[kind](path, TEXTS)
    documents = all_of(path)
    assert [document.text for document in documents] == TEXTS
    assert [document.name for document in documents] == [f"rows.{kind}:{i}" for i in range(len(TEXTS))]


def test_csv_holds_text_and_nothing_else(tmp_path: Path) -> None:
    """No value is taken for a number or for missing, and a text may be long."""
    texts = ["NA", "null", "12", "3.5", "True", "x" * 200_000]
    (tmp_path / "ROWS.CSV").write_text("text,n\n" + "".join(f"{text},1\n" for text in texts) + "one,2,3,4\n")
    assert [document.text for document in all_of(tmp_path / "ROWS.CSV")] == [*texts, "one"]
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbftext\na\n")
    assert all_of(tmp_path / "bom.csv") == [Document("bom.csv:0", "a")]


def test_any_other_file_is_one_document(tmp_path: Path) -> None:
    for name in ("notes.txt", "module.py", "README"):
        (tmp_path / name).write_text(TEXTS[0])
        assert all_of(tmp_path / name) == [Document(name, TEXTS[0])]
    assert [Document(name, "").is_python for name in ("a/module.py", "notes.txt", "rows.jsonl:3")] == [
        True,
        False,
        False,
    ]


def test_a_folder_is_read_whole_in_the_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("first")
    save_jsonl(tmp_path / "b" / "deep" / "rows.jsonl", ["second", "third"])
    SAVERS["parquet"](tmp_path / "b" / "table.parquet", ["fourth"])
    (tmp_path / "c.py").write_text("fifth")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "b" / ".notes").write_text("hidden")
    assert all_of(tmp_path) == [
        Document("a.txt", "first"),
        Document("b/deep/rows.jsonl:0", "second"),
        Document("b/deep/rows.jsonl:1", "third"),
        Document("b/table.parquet:0", "fourth"),
        Document("c.py", "fifth"),
    ]


def test_saved_dataset(tmp_path: Path) -> None:
    Dataset.from_dict({"n": range(23), "text": TEXTS}).save_to_disk(tmp_path / "saved")
    documents = all_of(tmp_path / "saved")
    assert documents == [Document(f"saved:{i}", text) for i, text in enumerate(TEXTS)]
    assert not has_own_splits(str(tmp_path / "saved"))


def test_saved_dataset_dict_has_its_own_splits(tmp_path: Path) -> None:
    parts = {"train": TEXTS[:15], "validation": TEXTS[15:]}
    DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in parts.items()}).save_to_disk(tmp_path)
    assert has_own_splits(str(tmp_path))
    for split, texts in parts.items():
        assert [document.text for document in all_of(tmp_path, split=split)] == texts
    with pytest.raises(DatasetError, match="has the splits train, validation, not 'held_out'"):
        all_of(tmp_path, split="held_out")


def test_empty_texts_are_passed_over(tmp_path: Path) -> None:
    path = save_jsonl(tmp_path / "rows.jsonl", ["a", "", None, "b"])
    assert all_of(path) == [Document("rows.jsonl:0", "a"), Document("rows.jsonl:3", "b")]


def test_another_column(tmp_path: Path) -> None:
    path = save_jsonl(tmp_path / "rows.jsonl", ["a", "b"], column="content")
    assert [document.text for document in all_of(path, column="content")] == ["a", "b"]


@pytest.mark.parametrize("source", ["file", "folder", "saved"])
def test_splits_are_disjoint_and_together_all(source: str, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(300)]
    path = tmp_path / "source"
    if source == "file":
        path = save_jsonl(path / "rows.jsonl", texts)
    elif source == "folder":
        path.mkdir()
        for i, text in enumerate(texts):
            (path / f"{i}.txt").write_text(text)
    else:
        Dataset.from_dict({"text": texts}).save_to_disk(path)
    whole, train, held_out = (all_of(path, split=split) for split in ("all", "train", "held_out"))
    assert len(whole) == 300
    assert train == [document for document in whole if split_of(document.name) == "train"]
    assert held_out == [document for document in whole if split_of(document.name) == "held_out"]
    assert 10 <= len(held_out) <= 60
    with pytest.raises(DatasetError, match="has the splits train, held_out and all, not 'validation'"):
        all_of(path, split="validation")


def test_the_bundled_corpus() -> None:
    files = source_files("held_out")
    documents = list(read_documents(DatasetConfig(name="bundled", split="held_out")))
    assert documents == [Document(f"{file.name}.py", file.text) for file in files if file.text]
    assert next(read_documents("bundled")).name in {f"{file.name}.py" for file in source_files("train")}
    assert not has_own_splits("bundled")
    with pytest.raises(DatasetError, match="bundled has the splits train, held_out and all, not 'test'"):
        read_documents(DatasetConfig(split="test"))


def test_documents_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    save_jsonl(tmp_path / "a.jsonl", ["good"])
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe")
    documents = read_documents(DatasetConfig(name=str(tmp_path), split="all"))
    assert next(documents).text == "good"
    with pytest.raises(DatasetError, match=r"b\.bin"):
        next(documents)


@pytest.mark.parametrize("kind", SAVERS)
def test_missing_column(kind: str, tmp_path: Path) -> None:
    SAVERS[kind](tmp_path / f"rows.{kind}", TEXTS)
    with pytest.raises(DatasetError, match=r"no column 'txt' \(did you mean text\?\); its columns are (n, |id, )?text"):
        all_of(tmp_path / f"rows.{kind}", column="txt")
    with pytest.raises(DatasetError, match=r"no column 'zzzzz'; its columns are (n, |id, )?text"):
        all_of(tmp_path / f"rows.{kind}", column="zzzzz")


def test_column_that_is_no_text(tmp_path: Path) -> None:
    path = save_jsonl(tmp_path / "rows.jsonl", ["a", "b"])
    with pytest.raises(DatasetError, match=r"rows\.jsonl: column 'id' holds int, not text"):
        all_of(path, column="id")


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    save_jsonl(tmp_path / "stories.jsonl", ["a"])
    with pytest.raises(
        DatasetError, match=r"no such file or folder: .*storys\.jsonl \(did you mean stories\.jsonl\?\)"
    ):
        all_of(tmp_path / "storys.jsonl")
    with pytest.raises(DatasetError, match="no such file or folder"):
        all_of(tmp_path / "no" / "folder" / "at all")
    with pytest.raises(DatasetError, match="no such file or folder"):  # looks like a file: the hub is not asked
        read_documents("stories.parquet")
    with pytest.raises(DatasetError, match="no such file or folder"):
        read_documents("./stories")


@pytest.mark.parametrize("kind", SAVERS)
def test_broken_tables(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(b'{"text": "a"}\n{"text": "b", \xff\n{"te')
    with pytest.raises(DatasetError, match=rf"broken\.{kind} could not be read as {kind}: ."):
        all_of(path)


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(DatasetError, match=r"picture\.png is not UTF-8 text, and \.png is not a table \(\.jsonl, "):
        all_of(tmp_path)


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "empty.json", "empty.csv", "empty.parquet"])
def test_empty_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=r"holds no text|could not be read"):
        all_of(tmp_path / name)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no text in its split 'all'"):
        all_of(tmp_path)


def test_a_single_document_is_in_one_split_only(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Once upon a time")
    other = "held_out" if split_of("book.txt") == "train" else "train"
    with pytest.raises(DatasetError, match=rf"holds no text in its split '{other}'.*split = \"all\""):
        all_of(tmp_path / "book.txt", split=other)


@pytest.mark.parametrize("name", ["someone/some-data", "no-such-data-set"])
def test_hub_without_network_is_one_clear_error(name: str) -> None:
    assert datasets.config.HF_HUB_OFFLINE
    started = time.perf_counter()
    with pytest.raises(DatasetError, match=rf"cannot read '{name}': it is no local file or folder, and the hub answer"):
        read_documents(name)
    assert time.perf_counter() - started < 5
    assert has_own_splits(name)
