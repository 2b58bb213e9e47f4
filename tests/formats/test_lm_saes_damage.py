"""Dumps that are damaged or made to harm: refused in words that name the file, never opened as code."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson_writer import Id, document
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_saes_dump import Planted, plant, sampling, small_dump

from saescope.formats import read_lm_saes
from saescope.formats.lm_saes.bson_files import plain


def read(dump: Path) -> list[Any]:
    """Everything there is to read."""
    found = read_lm_saes(dump)
    return [*found.features, *found.windows, *found.examples, *found.explanations, *found.evaluations]


@pytest.fixture
def with_sampling(tmp_path: Path) -> Callable[..., Path]:
    """A dump in which feature 4 has one sampling, with some of its fields replaced."""

    def make(**changes: Any) -> Path:
        planted = small_dump()
        made = {key: value(planted) if callable(value) else value for key, value in changes.items()}
        (entry,) = planted.writer.collections["features"][4]["analyses"]
        entry["samplings"] = [sampling(planted, "top_activations", 4, [3, 5], **made)]
        return planted.writer.write(tmp_path / "dump")

    return make


def array(values: Any) -> Callable[[Planted], Id]:
    return lambda planted: planted.writer.array(values)


def raw(data: bytes) -> Callable[[Planted], Id]:
    return lambda planted: planted.writer.file(data)


def header(text: str, rest: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text.encode() + rest


class Harm:
    def __reduce__(self) -> Any:
        return (Path("/tmp/never").write_text, ("harm",))


def pickled_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Harm()], dtype=object), allow_pickle=True)
    return stream.getvalue()


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 100000000000), }\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_acts_indices": array([[0.0], [2.5]])}, "holds numbers that are not whole"),
        ({"feature_acts_indices": array([[0.0], [np.nan]])}, "holds numbers that are not whole"),
        ({"feature_acts_indices": array([[0.0], [-1.0]])}, "a number out of range: -1.0 to -1.0"),
        ({"feature_acts_indices": array([[2.0], [5.0]])}, "speaks of sample 2, but there are 2"),
        ({"feature_acts_indices": array([[0.0], [2.0**24 + 2]])}, "beyond 16,777,216"),
        ({"feature_acts_indices": array([[0], [2**21]])}, "speaks of token 2,097,152"),
        ({"feature_acts_indices": array([0.0, 5.0])}, r"has the shape \[2\], expected \[2, firings\]"),
        ({"feature_acts_indices": array([[0.0], [0.0], [5.0]])}, r"has the shape \[3, 1\]"),
        ({"feature_acts_indices": array([[0.0, 0.0], [5.0, 5.0]]), "feature_acts_values": array([1.0, 2.0])},
         "names a token of a sample twice"),
        ({"feature_acts_indices": array([["0"], ["5"]])}, "array of <U1, expected numbers"),
        ({"feature_acts_indices": array([[0j], [5j]])}, "array of complex128, expected numbers"),
        ({"feature_acts_indices": [[0], [1, 2]]}, "rows differ in length"),
        ({"feature_acts_indices": "0"}, "is str, expected an array in GridFS"),
        ({"feature_acts_indices": None}, "is NoneType, expected an array in GridFS"),
        ({"feature_acts_indices": Id(b"x" * 12)}, "is the file 787878787878787878787878, which is not in"),
        ({"feature_acts_indices": raw(pickled_array())}, "arrays of objects are not opened"),
        ({"feature_acts_indices": raw(pickle.dumps(Harm()))}, "is a pickle"),
        ({"feature_acts_indices": raw(b"PK\x03\x04 as torch.save writes")}, "is a pickle"),
        ({"feature_acts_indices": raw(b"")}, "is not an array as numpy.save writes it"),
        ({"feature_acts_indices": raw(header(HUGE, b"\0" * 40))}, "which is not what its 40 bytes hold"),
        ({"feature_acts_indices": raw(header(HUGE.replace("2, 1", "0, 1")))}, r"has 0 indices but values of shape \[1\]"),
        ({"feature_acts_indices": raw(header("{'descr': '<f4', 'shape': (-2, -2), 'fortran_order': False}", b"\0" * 16))},
         "which is not what its 16 bytes hold"),
        ({"feature_acts_indices": raw(header("__import__('os')"))}, "has a damaged header"),
        ({"feature_acts_indices": raw(header("{" * 9000))}, "has a damaged header"),
        ({"feature_acts_indices": raw(header("", version=b"\x09\x00"))}, "has a damaged header"),
        ({"feature_acts_values": array([1.0, 2.0])}, r"has 1 indices but values of shape \[2\]"),
        ({"feature_acts_values": array([np.inf])}, "numbers that are not finite"),
        ({"context_idx": array([3])}, "has 2 numbers in shard_idx|1 samples but 2 numbers"),
        ({"context_idx": array([[3], [5]])}, r"has the shape \[2, 1\], expected one number after the other"),
        ({"context_idx": array([3, -5])}, "a number out of range: -5 to 3"),
        ({"n_shards": array([1, 1, 1])}, "2 samples but 3 numbers in n_shards"),
        ({"dataset_name": ["stories"]}, "has 1 names for 2 samples"),
        ({"dataset_name": [1, 2]}, "is not a list of names"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_named(changes: dict[str, Any], message: str, with_sampling: Callable[..., Path]) -> None:
    dump = with_sampling(**changes)
    with pytest.raises(ValueError, match=message) as told:
        read(dump)
    assert "features.bson: feature 4, analysis 'default'" in str(told.value)
    assert not Path("/tmp/never").exists()


def test_a_huge_shape_takes_no_memory(with_sampling: Callable[..., Path]) -> None:
    dump = with_sampling(feature_acts_indices=raw(header(HUGE, b"\0" * 40)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="which is not what its 40 bytes hold"):
            read(dump)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_missing_chunks_are_named(tmp_path: Path) -> None:
    for number, (spoil, message) in enumerate(
        [
            (lambda chunks: chunks.pop(1), "chunk 1 is missing"),
            (lambda chunks: chunks.pop(0), "chunk 0 is missing"),
            (lambda chunks: chunks.pop(), r"chunk 2 is missing; 128 of \d+ bytes are there"),
            (lambda chunks: chunks.append(dict(chunks[1])), "chunk 1 is there twice"),
            (lambda chunks: chunks.append({**chunks[0], "n": 3}), r"has \d+ bytes, but .*fs\.files\.bson says"),
            (lambda chunks: chunks[1].update(data="text"), "chunk 1 holds str instead of bytes"),
            (lambda chunks: chunks[1].update(n=-1), "n of the document at byte .* is -1, expected a count"),
        ]
    ):
        planted = small_dump()
        (entry,) = planted.writer.collections["features"][0]["analyses"]
        identity = entry["samplings"][0]["context_idx"]
        chunks = planted.writer.collections["fs.chunks"]
        of_file = [chunk for chunk in chunks if chunk["files_id"] == identity]
        assert len(of_file) == 3
        rest = [chunk for chunk in chunks if chunk["files_id"] != identity]
        spoil(of_file)
        planted.writer.collections["fs.chunks"] = rest + of_file
        with pytest.raises(ValueError, match=message) as told:
            read(planted.writer.write(tmp_path / str(number)))
        assert "fs.chunks.bson" in str(told.value)


@pytest.mark.parametrize(
    ("collection", "changes", "message"),
    [
        ("features", {"index": "one"}, "has the index 'one'"),
        ("features", {"index": 1}, "has the feature 1 of 'tiny-sae' twice"),
        ("features", {"index": 6}, "has a feature 6 of 'tiny-sae', but its d_sae is 6"),
        ("features", {"analyses": {"a": 1}}, "analyses is not a list of analyses"),
        ("features", {"analyses": [{"act_times": 1}]}, "has an analysis without a name"),
        ("features", {"logits": {"top_positive": [{"logit": 1.0}]}}, "top_positive has an entry without a token"),
        ("features", {"logits": {"top_positive": [{"token": "a"}]}}, "top_positive is None, expected a finite number"),
        ("features", {"logits": {"top_positive": {}}}, "top_positive is dict, expected a list"),
        ("features", {"interpretation": {"text": 5}}, "the text of its interpretation is int"),
        ("saes", {"series": None}, "has an SAE without a name and a series"),
        ("fs.files", {"length": "long"}, "length of the document at byte .* is 'long', expected a count"),
        ("bookmarks", {"feature_index": 77}, "marks the feature 77, but there are 6"),
    ],
)
def test_wrong_documents_are_named(collection: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    planted = small_dump()
    planted.writer.collections[collection][0].update(changes)
    with pytest.raises(ValueError, match=message) as told:
        read(planted.writer.write(tmp_path / "dump"))
    assert f"{collection}.bson" in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_times": -1}, "act_times is -1, expected a count"),
        ({"act_times": 1.5}, "act_times is 1.5, expected a count"),
        ({"act_times": None}, "act_times is None, expected a count"),
        ({"act_times": 5_000_000_000}, "fires on 5,000,000,000 of 4,000,000,000 tokens"),
        ({"max_feature_acts": float("nan")}, "max_feature_acts is nan, expected a finite number"),
        ({"n_analyzed_tokens": "many"}, "n_analyzed_tokens is 'many', expected a count"),
        ({"decoder_norms": [True]}, "decoder_norms is True, expected a finite number"),
        ({"samplings": [{"name": 5}]}, "has a sampling without a name"),
        ({"samplings": 4}, "samplings is int, expected a list"),
        ({"samplings": [{"name": "old", "feature_acts": []}]}, "dumps of early versions"),
    ],
)
def test_wrong_numbers_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    planted = small_dump()
    planted.writer.collections["features"][0]["analyses"][0].update(changes)
    with pytest.raises(ValueError, match=message) as told:
        read(planted.writer.write(tmp_path / "dump"))
    assert "features.bson: feature 0, analysis 'default'" in str(told.value)


def test_files_that_are_cut_off_or_lie_about_their_lengths(tmp_path: Path) -> None:
    dump = small_dump().writer.write(tmp_path / "dump")
    path = dump / "mechinterp" / "features.bson"
    whole = path.read_bytes()
    for data, message in [
        (whole[:-1], r"cut off: the document at byte [\d,]+ is [\d,]+ bytes long, but [\d,]+ are left"),
        (whole + b"\x01\x02", "cut off: 2 bytes are left"),
        (whole + struct.pack("<i", -7), r"says that it is -7 bytes long"),
        (whole + struct.pack("<i", 0) * 2, r"says that it is 0 bytes long"),
        (whole + struct.pack("<i", 2**31 - 1) + b"\0" * 99, "says that it is 2,147,483,647 bytes long"),
        (whole[:-1] + b"\x07", "is no BSON"),
        (whole[:4] + b"\x99" + whole[5:], "the document at byte 0 is no BSON"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as told:
            read(dump)
        assert str(path) in str(told.value)
    path.unlink()
    (path.parent / "features.bson.gz").write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(ValueError, match=r"features\.bson\.gz is damaged or cut off"):
        read(dump)


def test_documents_nested_without_end_are_refused(tmp_path: Path) -> None:
    depth, inner = 100_000, document({})
    opening = (struct.pack("<i", len(inner) + 8 * level) + b"\x03a\x00" for level in range(depth, 0, -1))
    data = b"".join(opening) + inner + b"\x00" * depth
    dump = small_dump().writer.write(tmp_path / "dump")
    path = dump / "mechinterp" / "features.bson"
    path.write_bytes(path.read_bytes() + data)
    with pytest.raises(ValueError, match="is no BSON"):
        read(dump)


@pytest.fixture(scope="module")
def whole_dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dump(chunk_bytes=256).writer.write(tmp_path_factory.mktemp("whole") / "dump")


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_is_read_or_refused(data: st.DataObject, whole_dump: Path, tmp_path: Path) -> None:
    """Bytes changed, cut or put in anywhere: either the dump is still readable, or a ValueError says what is wrong."""
    folder = tmp_path / "mechinterp"
    folder.mkdir(exist_ok=True)
    name = data.draw(
        st.sampled_from(["features.bson", "fs.chunks.bson", "fs.files.bson", "saes.bson", "bookmarks.bson"])
    )
    for path in (whole_dump / "mechinterp").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = (folder / name).read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(0, 8))
    put = data.draw(st.binary(max_size=8))
    (folder / name).write_bytes(content[:at] + put + content[at + length :])
    with contextlib.suppress(ValueError, FileNotFoundError):
        read(tmp_path)


def test_values_of_other_kinds_become_plain() -> None:
    import datetime

    moment = datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC)
    assert plain({"a": [1, 2.5, None, True, "x"], "b": float("inf"), "c": b"12", "d": moment}) == {
        "a": [1, 2.5, None, True, "x"], "b": None, "c": "<2 bytes>", "d": "2025-01-02T00:00:00+00:00",
    }  # fmt: skip


def test_the_plan_has_what_the_tests_need() -> None:
    acts = plant()
    assert (acts > 0).any(axis=(1, 2)).tolist() == [True, True, False, True, True, True]
    assert not acts[:, 6].any()
