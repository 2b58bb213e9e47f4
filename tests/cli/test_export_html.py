"""``saescope export html``: which features, where to, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saescope.cli.indices import parse_indices
from saescope.store import AnalysisRecord, DictionaryRecord, Feature, FeatureRecord, Store


@pytest.fixture
def address(tmp_path: Path) -> Path:
    record = DictionaryRecord(name="a/b", model="m", hook_point="h", architecture="topk", d_in=2, d_sae=12)
    features = [
        Feature(record=FeatureRecord(index=index, num_firings=index, density=index / 100, max_activation=1.0))
        for index in range(10)
    ]
    with Store.open(tmp_path / "s.db") as store:
        for name in ("first", "second"):
            analysis = AnalysisRecord(name=name, dataset="d", context_size=4, num_tokens=100)
            store.write(record, analysis, features if name == "second" else features[:3], [], [])
    return tmp_path / "s.db"


def exported(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "f").iterdir())


def test_a_folder_of_chosen_features(cli: Any, address: Path, tmp_path: Path):
    out = tmp_path / "out"
    ran = cli("export", "html", "a/b", "--store", address, "--features", "1,5-7,1", "--out", out)
    assert (ran.code, ran.err) == (0, "")
    assert exported(out) == [1, 5, 6, 7]
    assert (
        f"4 features, {sum(p.stat().st_size for p in out.rglob('*') if p.is_file()) / 1e6:,.1f} MB; open {out}/index.html"
        in ran.out
    )
    ran = cli("export", "html", "--store", address, "--limit", 2, "--out", out)
    assert ran.code == 2
    assert ran.err == f"saescope: {out} is there already; --overwrite replaces an earlier export\n"
    assert cli("export", "html", "--store", address, "--limit", 2, "--out", out, "--overwrite").code == 0
    assert exported(out) == [0, 1]
    assert cli("export", "html", "--store", address, "--out", out, "--overwrite").code == 0
    assert exported(out) == list(range(10))
    assert cli("export", "html", "--store", address, "--out", out, "--overwrite", "--analysis", "first").code == 0
    assert exported(out) == [0, 1, 2]


def test_one_file(cli: Any, address: Path, tmp_path: Path):
    (tmp_path / "list.txt").write_text("# of mine\n[2, 4]\n8-9 # the last\n")
    ran = cli("export", "html", "--store", address, "--features", tmp_path / "list.txt", "--out", tmp_path / "x.HTML")
    assert ran.code == 0
    assert ran.out.endswith(f" open {tmp_path / 'x.HTML'}\n")
    text = (tmp_path / "x.HTML").read_text()
    assert [f'id="feature-{index}"' in text for index in (2, 4, 8, 9, 3)] == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--features", "3,x"], "'3,x' is none of these"),
        (["--features", "9-2"], "the stretch 9-2 ends before it begins"),
        (["--features", "12"], "there is no feature 12; the dictionary has 12, from 0 to 11"),
        (["--features", "0-99999999999999999"], "there is no feature 99999999999999999"),
        (["--features", "10"], "analysis 'second' of 'a/b' has no feature 10"),
        (["--features", ", "], "names no feature"),
        (["--features", "1--2"], "'1--2' is no feature"),
        (["--features", "no/such/file"], "a file that lists them"),
        (["--analysis", "third"], "no analysis named 'third'"),
        (["other"], "no dictionary named 'other'"),
    ],
)
def test_mistakes_are_one_line(cli: Any, address: Path, tmp_path: Path, given: list[str], words: str):
    for out in ("out", "out.html"):
        ran = cli("export", "html", "--store", address, "--out", tmp_path / out, *given)
        assert ran.code == 2
        assert words in ran.err
        assert ran.err.count("\n") == 1
        assert not (tmp_path / out).exists()


def test_a_list_can_be_written_in_many_ways(tmp_path: Path):
    assert parse_indices("all", 5) is None
    assert parse_indices(" 1, 2;0-3\n4", 5) == [1, 2, 0, 1, 2, 3, 4]
    (tmp_path / "a.json").write_text(json.dumps([3, 1]))
    assert parse_indices(str(tmp_path / "a.json"), 5) == [3, 1]
    (tmp_path / "b.txt").write_text("\ufeff1\r\n2\r\n")
    assert parse_indices(str(tmp_path / "b.txt"), 5) == [1, 2]
    (tmp_path / "c.txt").write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match="is no feature"):
        parse_indices(str(tmp_path / "c.txt"), 5)
