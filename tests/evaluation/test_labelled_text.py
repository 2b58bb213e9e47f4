"""Labelled texts: files as they come, balanced tasks, and the benchmark's data sets from local folders."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saescope.activations.documents import DatasetError
from saescope.evaluation.probing.benchmark_texts import BENCHMARK_TEXTS, BenchmarkTexts, benchmark, read_benchmark
from saescope.evaluation.probing.labelled_text import PARTS, LabelledTexts, one_vs_rest, read_labelled_texts

ROWS = [{"review": f'text "{i}",\nNA', "stars": i % 3, "other": 1.5} for i in range(12)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        from datasets import Dataset

        dataset = Dataset.from_list(rows)
        if path.suffix == ".parquet":
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset.to_parquet(str(path))
        else:
            dataset.save_to_disk(str(path))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet", "saved"])
def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path, name: str) -> None:
    found = read_labelled_texts(write(tmp_path / name, ROWS), text="review", label="stars")
    assert found.texts == tuple(row["review"] for row in ROWS)
    assert found.labels == tuple(str(row["stars"]) for row in ROWS)
    assert (found.classes, len(found), found.notes) == (("0", "1", "2"), 12, ())
    assert found.name == name.partition(".")[0]


def test_rows_without_text_or_label_are_counted(tmp_path: Path) -> None:
    gaps = [{"review": "", "stars": 1}, {"review": None, "stars": 1}, {"review": "x", "stars": None}]
    found = read_labelled_texts(write(tmp_path / "a.jsonl", [*gaps, *ROWS]), text="review", label="stars")
    assert len(found) == 12
    assert found.notes == ("a: 3 rows without a text or a label were left out",)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS)
    with pytest.raises(DatasetError, match="a has no column 'text'; its columns are review, stars, other"):
        read_labelled_texts(path, label="stars")
    with pytest.raises(DatasetError, match="no column 'sentiment'"):
        read_labelled_texts(path, text="review", label="sentiment")
    with pytest.raises(DatasetError, match="column 'other' holds float, not text"):
        read_labelled_texts(write(tmp_path / "a.jsonl", ROWS), text="other", label="stars")
    with pytest.raises(FileNotFoundError, match=r"b\.csv"):
        read_labelled_texts(tmp_path / "b.csv")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"a\.txt is none of \.csv"):
        read_labelled_texts(tmp_path / "a.txt")
    for content in ("{not json", "[1, 2]\n", '"word"'):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(DatasetError, match=r"could not be read|not an object"):
            read_labelled_texts(tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match="only the class '1'; a probe needs texts of two classes"):
        read_labelled_texts(write(tmp_path / "one.jsonl", ROWS[1::3]), text="review", label="stars")
    with pytest.raises(ValueError, match="holds no text"):
        LabelledTexts(name="empty", texts=(), labels=())
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        LabelledTexts(name="short", texts=("a", "b"), labels=("x",))


def texts_of(counts: dict[str, int]) -> LabelledTexts:
    labels = [name for name, count in counts.items() for _ in range(count)]
    return LabelledTexts(name="made", texts=tuple(f"text {i}" for i in range(len(labels))), labels=tuple(labels))


def test_parts_keep_equal_texts_together() -> None:
    texts = ["same"] * 30 + [f"text {i // 2}" for i in range(400)]
    data = LabelledTexts(name="made", texts=tuple(texts), labels=tuple("ab"[i % 2] for i in range(430)))
    part = data.parts((0.5, 0.25, 0.25), seed=3)
    by_text: dict[str, set[int]] = {}
    for text, value in zip(texts, part.tolist(), strict=True):
        by_text.setdefault(text, set()).add(value)
    assert all(len(values) == 1 for values in by_text.values())
    counts = np.bincount([min(values) for values in by_text.values()])
    assert counts.tolist() == [100, 51, 50] or counts.tolist() == [100, 50, 51]
    np.testing.assert_array_equal(part, data.parts((0.5, 0.25, 0.25), seed=3))
    assert (part != data.parts((0.5, 0.25, 0.25), seed=4)).any()


def test_a_test_part_of_its_own_is_kept() -> None:
    base = texts_of({"a": 40, "b": 40})
    texts = (*base.texts, base.texts[0], "fresh")  # the first text is in the test part too
    data = LabelledTexts(name="made", texts=texts, labels=(*base.labels, "a", "b"), is_test=(False,) * 80 + (True,) * 2)
    part = data.parts((0.75, 0.25, 9.0))
    assert np.flatnonzero(part == 2).tolist() == [0, 80, 81]
    assert np.bincount(part).tolist()[:2] == [59, 20]


def test_tasks_are_balanced_and_negatives_come_evenly() -> None:
    data = texts_of({"a": 300, "b": 300, "c": 40, "d": 300, "e": 2})
    part = data.parts((0.6, 0.2, 0.2), seed=1)
    tasks = one_vs_rest(data, part, most_positives=(50, 20, 30), least_positives=3, seed=1)
    labels = np.asarray(data.labels)
    assert [task.name for task in tasks] == list("abcde")
    for task in tasks[:4]:
        assert task.rows is not None
        assert task.reason == ""
        for place, (rows, most) in enumerate(zip(task.rows, (50, 20, 30), strict=True)):
            assert (part[rows] == place).all()
            assert len(set(rows.tolist())) == len(rows)
            positives = int((labels[rows] == task.name).sum())
            assert positives == min(most, int(((labels == task.name) & (part == place)).sum()))
            assert len(rows) == 2 * positives
    assert tasks[0].rows is not None
    negatives = labels[tasks[0].rows[0]]
    scarce = int(((labels == "e") & (part == 0)).sum())
    assert scarce < 3
    counts = [int((negatives == name).sum()) for name in "bcd"]
    assert max(counts) <= -(-(50 - scarce) // 3)  # the three others make up for what the scarce class lacks
    assert int((negatives == "e").sum()) <= scarce
    assert tasks[4].rows is None
    assert "texts of this class and" in tasks[4].reason
    assert "a probe needs 3 of each" in tasks[4].reason
    again = one_vs_rest(data, part, most_positives=(50, 20, 30), least_positives=3, seed=1)
    other = one_vs_rest(data, part, most_positives=(50, 20, 30), least_positives=3, seed=2)
    assert again[0].rows is not None
    assert other[0].rows is not None
    np.testing.assert_array_equal(tasks[0].rows[0], again[0].rows[0])
    assert (tasks[0].rows[0] != other[0].rows[0]).any()


def test_four_other_classes_give_a_quarter_each() -> None:
    data = texts_of(dict.fromkeys("abcde", 100))
    task = one_vs_rest(data, data.parts((0.6, 0.2, 0.2)), most_positives=(40, 8, 10))[1]
    assert task.rows is None  # eight are too few
    task = one_vs_rest(data, data.parts((0.6, 0.2, 0.2)), most_positives=(40, 8, 10), least_positives=8)[1]
    assert task.rows is not None
    for rows, share in zip(task.rows[:2], (10, 2), strict=True):
        names, counts = np.unique(np.asarray(data.labels)[rows], return_counts=True)
        assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
            "b": 4 * share,
            **dict.fromkeys("acde", share),
        }


def test_positives_are_cut_where_negatives_are_few() -> None:
    data = texts_of({"a": 300, "b": 30})
    task = one_vs_rest(data, data.parts((0.6, 0.2, 0.2)), least_positives=2)[0]
    assert task.rows is not None
    labels = np.asarray(data.labels)
    for rows in task.rows:
        assert (labels[rows] == "a").sum() == (labels[rows] == "b").sum()


# the benchmark's data sets


def test_the_list_of_the_benchmark() -> None:
    assert len(BENCHMARK_TEXTS) == 8
    assert sum(len(data.classes) for data in BENCHMARK_TEXTS) == 15 + 5 + 2 + 5 + 4 + 5
    assert benchmark("bias_in_bios_class_set2").classes == ("11", "13", "14", "18", "19")
    with pytest.raises(ValueError, match=r"no benchmark data set is named 'bios'; there are bias_in_bios_class_set1"):
        benchmark("bios")
    with pytest.raises(ValueError, match="either a column of labels or a subset"):
        BenchmarkTexts(name="x", hub_id="x", text="t", classes=("a",))


def test_professions_are_balanced_by_gender(tmp_path: Path) -> None:
    rows = [
        {"hard_text": f"{split} {p} {g} {i}", "profession": p, "gender": g}
        for split in ("train", "test")
        for p, counts in ((0, (5, 9)), (1, (7, 4)), (2, (0, 8)), (7, (5, 5)))
        for g, count in enumerate(counts)
        for i in range(count if split == "train" else min(count, 3))
    ]
    for split in ("train", "test"):
        here = [row for row in rows if row["hard_text"].startswith(split)]
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", here)
    data = read_benchmark("bias_in_bios_class_set1", folder=tmp_path, most_train=12, most_test=4)
    assert data.is_test is not None
    for split, per_gender in (("train", {"0": 5, "1": 4}), ("test", {"0": 2, "1": 2})):
        found = [
            (label, text.split()[2])
            for text, label, test in zip(data.texts, data.labels, data.is_test, strict=True)
            if test == (split == "test")
        ]
        expected = {(label, gender): count for label, count in per_gender.items() for gender in "01"}
        assert {pair: found.count(pair) for pair in set(found)} == expected
    assert len(data.notes) == 2 * 3  # classes 2, 6 and 9 in both splits
    assert "class 2 is left out: no text of it in the split train for one of the values of gender" in data.notes[0]
    assert all(text.startswith("test") == test for text, test in zip(data.texts, data.is_test, strict=True))


def test_classes_in_subsets_and_files_of_parquet(tmp_path: Path) -> None:
    for subset in ("en-fr", "fr-it", "de-en", "es-fr", "nl-pt"):
        rows = [{"translation": {code: f"{code} of {subset} {i}" for code in subset.split("-")}} for i in range(6)]
        write(tmp_path / "euro" / subset / "train-00000-of-00001.parquet", rows)
    data = read_benchmark("europarl", folder=tmp_path / "euro", most_train=3, most_test=1)
    assert data.is_test is None
    assert sorted(set(zip(data.labels, (text[:11] for text in data.texts), strict=True))) == [
        ("de", "de of de-en"), ("en", "en of en-fr"), ("es", "es of es-fr"), ("fr", "fr of fr-it"), ("nl", "nl of nl-pt"),
    ]  # fmt: skip
    assert len(data) == 5 * 4
    rows = [
        {"code": ("#" * 150 + f"{language} {i}").ljust(length), "language": language}
        for language in ("C", "Python", "HTML", "Java", "PHP", "Go")
        for i, length in enumerate((534, 535, 600))
    ]
    write(tmp_path / "code" / "data" / "train-00000-of-00001.parquet", rows)
    data = read_benchmark("github_code", folder=tmp_path / "code")
    assert sorted(text.strip() for text in data.texts) == sorted(f"{name} {i}" for name in data.classes for i in (1, 2))
    assert data.classes == ("C", "HTML", "Java", "PHP", "Python")


def test_the_hub_out_of_reach_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: Any, **more: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DatasetError, match=r"ag_news cannot be read from fancyzhx/ag_news: Couldn't reach the hub\. On a"
    ):
        read_benchmark("ag_news")
    with pytest.raises(DatasetError, match="no such folder"):
        read_benchmark("ag_news", folder=tmp_path / "nowhere")


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [{"words": "x", "label": 1}])
    with pytest.raises(DatasetError, match="ag_news has no column 'text'; its columns are words, label"):
        read_benchmark("ag_news", folder=tmp_path)


def test_parts_have_names() -> None:
    assert PARTS == ("training", "validation", "test")
