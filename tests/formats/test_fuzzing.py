"""Mutated files: never anything but a dictionary, or a sentence; never a hang."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import saescope as ss
from saescope.formats.dictionaries import FORMATS
from saescope.formats.loading import convert, load, read_foreign
from saescope.formats.tensor_files import read_json, read_tensors, read_yaml

pytestmark = pytest.mark.slow

FUZZ = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

BYTES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)
CUT = st.one_of(st.none(), st.floats(0, 1))
PIECE = st.one_of(st.none(), st.tuples(st.floats(0, 1), st.binary(max_size=40)))


def mutated(data: bytes, changes, cut, piece) -> bytes:
    """Some bytes replaced, a piece put in, the end cut off."""
    made = bytearray(data)
    for place, value in changes:
        made[int(place * len(made))] = value
    if piece is not None:
        where = int(piece[0] * len(made))
        made[where:where] = piece[1]
    return bytes(made if cut is None else made[: int(cut * len(made))])


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(4, 6, generator=generator), "W_dec": torch.randn(6, 4, generator=generator),
        "b_enc": torch.randn(6, generator=generator), "b_dec": torch.randn(4, generator=generator),
    }  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    made = weights()
    save_file(made, folder / "x.safetensors")
    torch.save({**made, "k": 3, "config": {"a": [1, 2.5, None], "b": "words"}}, folder / "x.pt")
    np.savez(folder / "x.npz", **{name: tensor.numpy() for name, tensor in made.items()})
    np.savez_compressed(folder / "y.npz", **{name: tensor.numpy() for name, tensor in made.items()})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.npz", "y.npz"])
@given(changes=BYTES, cut=CUT, piece=PIECE)
@FUZZ
def test_files_of_tensors(originals, tmp_path, name, changes, cut, piece):
    path = tmp_path / name
    path.write_bytes(mutated(originals[name], changes, cut, piece))
    for shapes_only in (True, False):
        try:
            found = read_tensors(path, shapes_only=shapes_only)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (either is right)
        else:
            for value in found.values():
                if isinstance(value, torch.Tensor) and not shapes_only:
                    value.clone()  # every byte of it is there


NUMBERS = st.one_of(st.integers(-3, 30), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=3), st.none())
HEADER = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]),
    st.one_of(
        NUMBERS,
        st.fixed_dictionaries(
            {
                "dtype": st.one_of(st.sampled_from(["F32", "BF16", "U8", "F64"]), NUMBERS),
                "shape": st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS),
                "data_offsets": st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS),
            }
        ),
    ),
)


@given(header=HEADER, size=st.integers(0, 64))
@FUZZ
def test_headers_of_safetensors(tmp_path, header, size):
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    try:
        found = read_tensors(path)
    except ValueError:
        return
    assert sum(tensor.numel() * tensor.element_size() for tensor in found.values()) == size


@given(program=st.binary(max_size=60))
@FUZZ
def test_programs_of_pickles(originals, tmp_path, program):
    import zipfile

    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}" + program + b".")
    try:
        assert isinstance(read_tensors(path), dict)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 (either is right)


@given(text=st.one_of(st.text(max_size=200), st.text("{}[]:,-&*!?|>'\"# \n019aé.<", max_size=200)))
@FUZZ
def test_configurations(tmp_path, text):
    for name, read in (("x.json", read_json), ("x.yaml", read_yaml)):
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            assert isinstance(read(tmp_path / name), dict)
        except ValueError as error:
            assert name in str(error)  # noqa: PT017 (either is right)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS), lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)), max_leaves=5,
)  # fmt: skip


def written_folders(tmp_path) -> dict[str, list]:
    """A folder of every format that is written, by each architecture that it can hold."""
    from saescope.dictionaries import save_dictionary

    made = {}
    for name in ("relu", "topk", "jumprelu", "transcoder", "skip_transcoder"):
        cls = ss.architecture(name)
        fields = cls.Config.__dataclass_fields__
        more = {"k": 2} if "k" in fields else {}
        more |= {"d_out": 4} if "d_out" in fields else {}
        own = tmp_path / "own" / name
        own.parent.mkdir(exist_ok=True)
        save_dictionary(cls(cls.Config(d_in=4, d_sae=6, **more)), own)
        for each in FORMATS:
            if each.write is None:
                continue
            target = tmp_path / each.name / name
            target.parent.mkdir(exist_ok=True)
            try:
                convert(own, target, to=each.name)
            except ValueError:
                continue  # this format can not hold it
            made.setdefault(each.name, []).append(target)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return written_folders(tmp_path_factory.mktemp("written"))


@given(data=st.data())
@FUZZ
def test_configurations_of_every_format_that_is_written(folders, data):
    """A key is dropped, added, or gets another value; the weights stay."""
    name = data.draw(st.sampled_from(sorted(folders)))
    folder = data.draw(st.sampled_from(folders[name]))
    configs = sorted(folder.rglob("*.json"))
    if not configs:
        return
    path = data.draw(st.sampled_from(configs))
    before = path.read_text()
    config = json.loads(before)
    places = [config, *(value for value in config.values() if isinstance(value, dict))]
    place = data.draw(st.sampled_from(places))
    key = data.draw(st.sampled_from([*sorted(place), "new_key"]))
    if data.draw(st.booleans()):
        place.pop(key, None)
    else:
        place[key] = data.draw(JSON)
    path.write_text(json.dumps(config))
    try:
        for chosen in (None, name):
            try:
                read_foreign(folder, format=chosen, shapes_only=True)
                dictionary = load(folder, format=chosen)
            except (ValueError, OSError):
                continue
            assert isinstance(dictionary, ss.Dictionary)
    finally:
        path.write_text(before)
