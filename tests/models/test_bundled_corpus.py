"""The bundled corpus: which files it holds, in which half each one is, and its fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest

from saescope.models.bundled.corpus import SourceFile, SourcesMissingError, fingerprint, source_files, split_of

KEPT = {
    "abc.py": "abc",
    "json/__init__.py": "json",
    "json/decoder.py": "json.decoder",
    "xml/dom/minidom.py": "xml.dom.minidom",
    "__init__.py": "__init__",
    "contest.py": "contest",
}
LEFT_OUT = [
    "test/test_abc.py",
    "test/__init__.py",
    "json/tests/test_json.py",
    "idlelib/editor.py",
    "idlelib/idle_test/x.py",
    "site-packages/numpy/core.py",
    "dist-packages/apt.py",
    "__pycache__/abc.py",
    "lib-dynload/x.py",
    "config-3.11-x86_64-linux-gnu/python_config.py",
    "some-script.py",
    "3d.py",
    "_sysconfigdata_m_linux.py",
    "_sysconfigdata__linux_x86_64-linux-gnu.py",
    "abc.txt",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in [*KEPT, *LEFT_OUT]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def test_modules_by_their_dotted_names(root: Path) -> None:
    files = source_files(root=root)
    assert [file.name for file in files] == sorted(KEPT.values())
    assert {str(file.path.relative_to(root)): file.name for file in files} == KEPT
    assert next(file for file in files if file.name == "json.decoder").text == "# json/decoder.py\n"


def test_halves_are_disjoint_and_together_all(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"module_{i}.py").touch()
    whole, train, held_out = (source_files(split, tmp_path) for split in (None, "train", "held_out"))
    assert len(whole) == 200
    assert train == [file for file in whole if file.split == "train"]
    assert held_out == [file for file in whole if file.split == "held_out"]
    assert 8 <= len(held_out) <= 40  # one in ten, give or take


def test_the_half_of_a_module_is_a_matter_of_its_name_alone() -> None:
    """Fixed for good: dictionaries in the field were trained on one side and are judged on the other."""
    names = ["abc", "ast", "json", "json.decoder", "os", "posixpath", "sched", "shelve", "string", "tokenize", "uuid"]
    assert [name for name in names if split_of(name) == "held_out"] == ["sched", "tokenize"]
    assert SourceFile("json", Path("anywhere/else.py")).split == split_of("json")


def test_the_running_interpreter() -> None:
    files = source_files()
    names = [file.name for file in files]
    assert len(names) > 300
    assert names == sorted(set(names))
    assert files == source_files()
    assert {"abc", "json", "json.decoder", "argparse"} <= set(names)
    parts = {part for name in names for part in name.split(".")}
    assert not parts & {"test", "tests", "idlelib", "idle_test", "site-packages"}
    shares = [sum(len(f.path.read_bytes()) for f in files if f.split == split) for split in ("train", "held_out")]
    assert shares[0] > 3 * shares[1] > 0


def test_fingerprint_depends_on_names_content_and_order(root: Path) -> None:
    files = source_files(root=root)
    before = fingerprint(files)
    assert len(before) == 64
    assert fingerprint(source_files(root=root)) == before
    assert fingerprint(files[::-1]) != before
    assert fingerprint(files[:-1]) != before
    assert fingerprint([SourceFile("renamed", files[0].path), *files[1:]]) != before
    files[0].path.write_text("changed")
    assert fingerprint(files) != before


def test_fingerprint_does_not_depend_on_the_folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("elsewhere") / "lib"
    root.rename(copy)
    moved = fingerprint(source_files(root=copy))
    copy.rename(root)
    assert moved == fingerprint(source_files(root=root))


def test_a_file_that_is_not_utf8_is_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    assert source_files(root=tmp_path)[0].text == "# caf\ufffd\n"


def test_no_sources(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_abc.py").touch()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SourcesMissingError, match=r"no standard library source files under .*zipped or stripped"):
            source_files("train", folder)
