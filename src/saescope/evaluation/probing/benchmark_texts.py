"""The data sets of SAEBench's sparse probing (arXiv 2503.09532), read from the hub or from a folder with their files.

Which column is the text, which classes count, and what each class is balanced by, so that a probe for a profession is not
one for a gender. The benchmark draws from whole data sets; here rows are read in order until each class has enough, so
that the large ones need no full download.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saescope.activations.documents import DatasetError
from saescope.evaluation.probing.labelled_text import LabelledTexts

MOST_ROWS = 1_000_000  # of one split, read in search of the classes


@dataclass(frozen=True, kw_only=True)
class BenchmarkTexts:
    """Where one data set is and how it is read."""

    name: str
    hub_id: str
    text: str  # column of the text; "a.b" is the field b of the column a
    label: str = ""  # column of the class; empty where each subset is a class
    classes: tuple[str, ...]
    balanced_by: str = ""  # column whose values every class has equally often
    subsets: tuple[tuple[str, str], ...] = ()  # (class, subset of the hub data set), where each class has its own
    data_files: str = ""  # pattern of Parquet files, where the hub id has only a loading script
    splits: tuple[str, ...] = ("train", "test")  # with a second one, it is the test part
    skip_characters: int = 0  # at the beginning of each text: a licence header tells the language
    least_characters: int = 0

    def __post_init__(self) -> None:
        if bool(self.label) == bool(self.subsets):
            raise ValueError(f"{self.name} needs either a column of labels or a subset for each class")


def _bios(number: int, *professions: int) -> BenchmarkTexts:
    return BenchmarkTexts(
        name=f"bias_in_bios_class_set{number}", hub_id="LabHC/bias_in_bios", text="hard_text", label="profession",
        classes=tuple(map(str, professions)), balanced_by="gender",
    )  # fmt: skip


BENCHMARK_TEXTS: tuple[BenchmarkTexts, ...] = (
    _bios(1, 0, 1, 2, 6, 9),
    _bios(2, 11, 13, 14, 18, 19),
    _bios(3, 20, 21, 22, 25, 26),
    BenchmarkTexts(
        name="amazon_reviews", hub_id="canrager/amazon_reviews_mcauley_1and5", text="text", label="category",
        classes=("1", "2", "3", "5", "6"), balanced_by="rating",
    ),
    BenchmarkTexts(
        name="amazon_reviews_sentiment", hub_id="canrager/amazon_reviews_mcauley_1and5", text="text", label="rating",
        classes=("1.0", "5.0"),
    ),
    BenchmarkTexts(
        name="github_code", hub_id="codeparrot/github-code", text="code", label="language",
        classes=("C", "Python", "HTML", "Java", "PHP"), data_files="data/*.parquet", splits=("train",),
        skip_characters=150, least_characters=535,
    ),
    BenchmarkTexts(
        name="ag_news", hub_id="fancyzhx/ag_news", text="text", label="label", classes=("0", "1", "2", "3")
    ),
    BenchmarkTexts(
        name="europarl", hub_id="Helsinki-NLP/europarl", text="translation.{class}",
        classes=("en", "fr", "de", "es", "nl"), splits=("train",),
        subsets=(("en", "en-fr"), ("fr", "fr-it"), ("de", "de-en"), ("es", "es-fr"), ("nl", "nl-pt")),
    ),
)  # fmt: skip


def benchmark(name: str) -> BenchmarkTexts:
    """One of `BENCHMARK_TEXTS`; ValueError with their names for any other."""
    for data in BENCHMARK_TEXTS:
        if data.name == name:
            return data
    raise ValueError(f"no benchmark data set is named {name!r}; there are {', '.join(d.name for d in BENCHMARK_TEXTS)}")


def read_benchmark(
    data: BenchmarkTexts | str, *, folder: str | Path | None = None, most_train: int = 4000, most_test: int = 1000
) -> LabelledTexts:
    """The texts of a benchmark data set, from the hub, or from a folder that holds the files of its hub repository.

    Args:
        data: a data set or its name.
        folder: read from here and not from the hub.
        most_train: texts of each class at most, from the training split (from the only one: both numbers together).
        most_test: the same of the test split.

    Raises:
        DatasetError: the hub or the folder cannot be read, with what to do; an unknown column.
        ValueError: an unknown name; fewer than two classes were found.
    """
    data = benchmark(data) if isinstance(data, str) else data
    texts: list[str] = []
    labels: list[str] = []
    is_test: list[bool] = []
    notes: list[str] = []
    limits = (most_train, most_test) if len(data.splits) > 1 else (most_train + most_test,)
    for split, most in zip(data.splits, limits, strict=True):
        found = _balanced(_labelled(data, split, folder, most), data, most)
        for name, rows in found.items():
            if rows:
                texts += rows
                labels += [name] * len(rows)
                is_test += [split == "test"] * len(rows)
            else:
                why = f" for one of the values of {data.balanced_by}" if data.balanced_by else ""
                notes.append(f"{data.name}: class {name} is left out: no text of it in the split {split}{why}")
    return LabelledTexts(
        name=data.name, texts=tuple(texts), labels=tuple(labels), notes=tuple(notes),
        is_test=tuple(is_test) if len(data.splits) > 1 else None,
    )  # fmt: skip


def _balanced(rows: Iterable[tuple[str, str, str]], data: BenchmarkTexts, most: int) -> dict[str, list[str]]:
    """Texts by class, of each value that it is balanced by equally many; rows are (class, value, text)."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in data.classes}
    values: Counter[str] = Counter()
    limit = most // 2 if data.balanced_by else most  # the benchmark balances by two values everywhere
    for name, value, text in rows:
        values[value] += 1
        kept = found[name].setdefault(value, [])
        if len(kept) < limit:
            kept.append(text)
        if all(len(groups) >= (2 if data.balanced_by else 1) for groups in found.values()) and all(
            len(group) == limit for groups in found.values() for group in groups.values()
        ):
            break
    balanced = {}
    for name, groups in found.items():
        count = min((len(groups.get(value, [])) for value in values), default=0)
        balanced[name] = [text for value in sorted(groups) for text in groups[value][:count]]
    return balanced


def _labelled(data: BenchmarkTexts, split: str, folder: str | Path | None, most: int) -> Iterator[tuple[str, str, str]]:
    """(class, value that it is balanced by, text) of the rows that count; of a class's own subset at most ``most``."""
    for label, subset in data.subsets or (("", None),):
        kept = 0
        for row in _open(data, subset, split, folder):
            name = label or str(_field(row, data.label, data))
            if name not in data.classes:
                continue
            text = _field(row, data.text.replace("{class}", name), data)
            if not isinstance(text, str) or len(text) < max(1, data.least_characters):
                continue
            yield (
                name,
                str(_field(row, data.balanced_by, data)) if data.balanced_by else "",
                text[data.skip_characters :],
            )
            kept += 1
            if label and kept == most:
                break


def _field(row: dict[str, Any], path: str, data: BenchmarkTexts) -> Any:
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise DatasetError(f"{data.name} has no column {path!r}; its columns are {', '.join(map(str, row))}")
        value = value[name]
    return value


def _open(data: BenchmarkTexts, subset: str | None, split: str, folder: str | Path | None) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    if folder is not None and not Path(folder).expanduser().is_dir():
        raise DatasetError(f"no such folder: {folder}; give the folder that holds the files of {data.hub_id}")
    place = str(Path(folder).expanduser()) if folder is not None else data.hub_id
    try:
        if data.data_files:
            base = place if folder is not None else f"hf://datasets/{data.hub_id}"
            rows = load_dataset("parquet", data_files={split: f"{base}/{data.data_files}"}, split=split, streaming=True)
        elif folder is not None and subset is not None:
            rows = load_dataset(str(Path(place) / subset), split=split, streaming=True)
        else:
            rows = load_dataset(place, subset, split=split, streaming=True)
        yield from rows.take(MOST_ROWS)
    except Exception as error:  # hub, network and builder errors come in a dozen types
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise DatasetError(
            f"{data.name} cannot be read from {place}: {words[0][:300]}. On a machine that reaches the hub, download it "
            f"with `hf download {data.hub_id} --repo-type dataset --local-dir FOLDER`, copy the folder here and read from it"
        ) from error
