"""Every query that docs/store.md gives for the sqlite3 shell runs, and says what is true."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from saescope.store import EvaluationResult, Explanation, Store, tables

PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
QUERIES = {
    said.strip().splitlines()[-1].rstrip(":"): query
    for said, query in re.findall(r"\n\n([^\n].*?)\n\n```sql\n(.*?)```", PAGE, re.DOTALL)
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace, fill: Callable[..., object]) -> Path:
    file = tmp_path_factory.mktemp("docs") / "features.db"
    with Store.open(file) as store:
        store.write(make.dictionary("alone"), make.analysis(), [make.feature(1, density=0.5)], [], [])
        fill(store, evaluations=[EvaluationResult(study="sparsity", metric="l0", value=32.5, low=32.0, high=33.0)])
        store.explain("tiny", 6, Explanation(text="digits of pi", author="me", score=0.5))
        store.tag("tiny", 6, "odd")
        store.set_series("tiny", "sweep")
    return file


def _rows(file: Path, question: str) -> list[tuple[object, ...]]:
    (query,) = (query for said, query in QUERIES.items() if question in said)
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


def test_all_queries_were_found() -> None:
    assert len(QUERIES) == PAGE.count("```sql") == 10


def test_every_query_gives_rows(small: Path) -> None:
    for question in QUERIES:
        assert _rows(small, question), question


def test_the_ten_densest_features_and_their_labels(small: Path) -> None:
    labels = {2: "digits, 100% of them", 3: "Élan vital", 5: "x_y"}
    expected = [(index, index / 100, labels.get(index)) for index in range(7, -1, -1)]
    assert _rows(small, "The ten densest features and their labels") == expected


def test_the_other_answers(small: Path) -> None:
    assert _rows(small, "What is in the store") == [
        ("alone", "default", "topk", 16, 1, 10_000_000_000, 0),
        ("tiny", "default", "topk", 16, 8, 10_000_000_000, 3),
    ]
    assert _rows(small, "How many features are dead") == [(1, 1, 0, 1), (2, 8, 1, 0)]
    assert _rows(small, "five strongest windows") == [
        (0, 2.5, 4, "os.path", "def func(arg):\n"),
        (1, 0.5, 4, "json.decoder", "def func(arg):\n"),
    ]
    assert _rows(small, "Where feature 2 fires") == [(1, 0.125), (3, 2.5)]
    assert _rows(small, "Tokens that feature 2 pushes up") == [(" the", 1.25)]
    assert _rows(small, 'begins with "dig"') == [(2, "digits, 100% of them"), (6, None)]
    assert _rows(small, "What people wrote") == [("tiny", 6, "me", "human", 0.5, "digits of pi")]
    assert _rows(small, "Features with a tag") == [("tiny", 6, "odd")]
    assert _rows(small, "One metric across") == [("sweep", "tiny", "sparsity", "l0", 32.5, 32.0, 33.0)]


def test_every_table_is_named(small: Path) -> None:
    section = PAGE[PAGE.index("## Tables") : PAGE.index("## Questions")]
    for table in (*(table.name for table in tables.TABLES), "migration", "feature_search"):
        assert f"`{table}`" in section, table
