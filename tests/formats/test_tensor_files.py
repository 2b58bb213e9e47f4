"""Files of tensors: what is in them comes out bit by bit; a crafted file is refused in words, in little time and memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saescope.formats.mapped_files import owned
from saescope.formats.source import LocalSource
from saescope.formats.tensor_files import (
    TensorSource,
    read_json,
    read_tensors,
    read_yaml,
    require_plain_file,
    safe_name,
    tensor_shapes,
)


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(5, 7, generator=generator)
    return {
        "dense": dense, "half": dense.half(), "brain": dense.bfloat16(), "double": dense.double(),
        "scalar": dense[0, 0].clone(), "none": torch.zeros(0, 3), "whole": torch.arange(3),
        "yes": torch.tensor([True, False, True]), "small": dense.to(torch.float8_e4m3fn),
    }  # fmt: skip


def same(found, expected) -> bool:
    raw = lambda tensor: tensor.contiguous().flatten().view(torch.uint8)  # noqa: E731
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(raw(found), raw(expected))


def safetensors_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def pt_file(path: Path, program: bytes, parts: dict[str, bytes] | None = None, **more) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in (parts or {}).items():
            archive.writestr(f"archive/{name}", data, **more)
    return path


class Storage:
    """Pickles as torch does: its class by name, and what lies elsewhere as a persistent id."""


class PtPickler(pickle.Pickler):
    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value and value[0] == "storage" else None


def program(value: object) -> bytes:
    written = io.BytesIO()
    PtPickler(written, protocol=2).dump(value)
    return written.getvalue()


class Rebuilt:
    """Pickles as a call of torch's function for tensors."""

    def __init__(self, storage, offset, size, stride):
        self.arguments = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def float_storage(numel, key="0"):
    return ("storage", torch.FloatStorage, key, "cpu", numel)


# What is in a file


def test_safetensors_come_out_bit_by_bit(tmp_path):
    made = weights()
    save_file(made, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    assert {name: same(found[name], tensor) for name, tensor in made.items()} == dict.fromkeys(made, True)
    assert tensor_shapes(tmp_path / "x.safetensors") == {name: tuple(tensor.shape) for name, tensor in made.items()}
    assert len(found) == len(made)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pytorch_files_come_out_bit_by_bit(tmp_path, protocol):
    made = weights()
    more = {
        "turned": made["dense"].T, "part": made["dense"][1:, 2:5], "parameter": torch.nn.Parameter(torch.ones(3)),
        "ae": torch.nn.Linear(3, 4).state_dict(), "k": 5, "words": ["TopK", None, True, 2.5, (1, 2, 3, 4)],
        "size": torch.Size([2, 3]), "device": torch.device("cpu"), "dtype": torch.float32,
    }  # fmt: skip
    torch.save({**made, **more}, tmp_path / "x.pt", pickle_protocol=protocol)
    found = read_tensors(tmp_path / "x.pt")
    for name in (*made, "turned", "part", "parameter"):
        assert same(found[name], {**made, **more}[name].detach()), name
    assert same(found["ae"]["weight"], more["ae"]["weight"])
    assert found["words"] == more["words"]
    assert (found["k"], found["size"], found["device"], found["dtype"]) == (5, (2, 3), "cpu", torch.float32)
    shapes = read_tensors(tmp_path / "x.pt", shapes_only=True)
    assert shapes["turned"].is_meta
    assert {name: (found[name].shape, found[name].stride()) for name in made} == {
        name: (shapes[name].shape, shapes[name].stride()) for name in made
    }


def test_a_tied_tensor_and_the_state_of_an_optimizer_can_be_read(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3, 4))
    state = {
        "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.full((3, 4), 0.5)}},
        "param_groups": [{"params": [0]}],
    }
    torch.save(OrderedDict(a=weight, b=weight, optimizer=state), tmp_path / "x.pt")
    found = read_tensors(tmp_path / "x.pt")
    assert same(found["a"], found["b"])
    assert same(found["a"], weight.detach())
    assert same(found["optimizer"]["state"][0]["exp_avg"], state["state"][0]["exp_avg"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_files_come_out_bit_by_bit(tmp_path, save):
    made = {name: tensor for name, tensor in weights().items() if name not in ("brain", "small")}
    arrays = {name: tensor.numpy() for name, tensor in made.items()}
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    save(tmp_path / "x.npz", **arrays, fortran=np.asfortranarray(cube))
    found = read_tensors(tmp_path / "x.npz")
    assert {name: same(found[name], tensor) for name, tensor in made.items()} == dict.fromkeys(made, True)
    assert same(found["fortran"], torch.from_numpy(cube))
    shapes = read_tensors(tmp_path / "x.npz", shapes_only=True)
    assert {name: (t.shape, t.dtype) for name, t in shapes.items()} == {n: (t.shape, t.dtype) for n, t in found.items()}
    assert all(tensor.is_meta for tensor in shapes.values())


def test_what_is_read_can_be_written_to_and_the_file_stays_as_it_is(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    read_tensors(tmp_path / "x.safetensors")["a"].zero_()
    assert (tmp_path / "x.safetensors").read_bytes() == before
    assert read_tensors(tmp_path / "x.safetensors")["a"].tolist() == [1, 1, 1, 1]


def test_numbers_that_lie_across_a_boundary(tmp_path):
    data = torch.tensor([1], dtype=torch.uint8).numpy().tobytes() + torch.tensor([1.5, -2.5]).numpy().tobytes()
    header = {"a": entry([1], 0, 1, "U8"), "b": entry([2], 1, 9)}
    found = read_tensors(safetensors_file(tmp_path / "x.safetensors", header, data))
    assert found["b"].tolist() == [1.5, -2.5]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_copy_equals_its_original_in_every_layout(tmp_path, transposed, turned):
    """Larger than a block, and read again from the file after its pages were given back."""
    made = torch.randn(700, 9001, generator=torch.Generator().manual_seed(1))
    save_file({"a": made}, tmp_path / "x.safetensors")
    mapped = read_tensors(tmp_path / "x.safetensors")["a"]
    view, expected = (mapped.T, made.T) if turned else (mapped, made)
    found = owned(view, torch.float32, transposed=transposed)
    assert same(found, expected)
    assert (found.T if transposed else found).is_contiguous()
    assert same(mapped, made)
    assert torch.equal(owned(view, torch.bfloat16), expected.bfloat16())


def test_a_copy_refuses_what_is_no_number():
    for shape in ((3, 4), (3,), ()):
        bad = torch.zeros(shape).fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            owned(bad, torch.float32)


# Crafted files


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["torch", "legacy", "bare", "built", "polyglot"])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, kind):
    marker, path = tmp_path / "ran", tmp_path / "x.pt"
    evil = {"W_enc": torch.ones(2), "x": Evil(marker)}
    if kind == "torch":
        torch.save(evil, path)
    elif kind == "legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif kind == "bare":
        path.write_bytes(pickle.dumps(evil))
    elif kind == "built":  # an instruction that sets the state of an object
        pt_file(path, b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x00aNb.")
    else:  # a legacy file to one reader, a zip to another
        whole = io.BytesIO()
        torch.save({"W_enc": torch.ones(2)}, whole)
        path.write_bytes(pickle.dumps(evil) + whole.getvalue())
    for shapes_only in (False, True):
        with pytest.raises(ValueError, match=r"could run code|no file of PyTorch") as caught:
            read_tensors(path, shapes_only=shapes_only)
        assert len(str(caught.value)) < 600
    assert not marker.exists()


def test_the_payload_of_these_tests_does_run_where_pickles_are_trusted(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "builtins.bytearray", "os.system", "torch.load", "torch._utils._rebuild_qtensor",
     "torch.hub.load", "numpy.core.multiarray.scalar"],
)  # fmt: skip
def test_names_that_stand_for_no_tensor_are_not_looked_up(tmp_path, name):
    module, _, word = name.rpartition(".")
    for code in (
        f"c{module}\n{word}\n".encode() + b")R.",
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(w)]) + w.encode() for w in (module, word)) + b"\x93)R.",
    ):
        with pytest.raises(ValueError, match=rf"it names {module}\.{word}"):
            read_tensors(pt_file(tmp_path / "x.pt", code))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"(i os\nsystem\n.", "instruction INST"),
        (b"(cos\nsystem\no.", "names os.system"),
        (b"\x80\x02]\x81.", "instruction NEWOBJ"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"}(]Ku.", "damaged"),  # cut off within an argument
        (b"}(]K\x01u.", "named by a list"),
        (b"}(K\x01K\x01K\x01K\x02u.", "entry 1 twice"),
        (b"].", "holds a list"),
        (b"}", "damaged"),
        (b"", "damaged"),
        (b".", "damaged"),
        (b"h\x05.", "damaged"),
        (b"u.", "damaged"),
        (b"R.", "damaged"),
        (b"(I1\nI2\ntQ.", "no storage"),
        (b"N)R.", "calls what makes no tensor"),
        (b"\x8a\xff", "damaged"),
        (b"\x8d" + struct.pack("<Q", 1 << 40) + b"a.", "damaged"),  # a word of a terabyte
        (b"(" * 100_000 + b".", "_Mark"),
    ],
)
def test_programs_that_make_no_plain_values_are_refused(tmp_path, code, words):
    with pytest.raises(ValueError, match=words):
        read_tensors(pt_file(tmp_path / "x.pt", code))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Rebuilt(float_storage(4), 0, (1 << 40,), (0,)), "in a storage of 4 numbers"),  # one number a trillion times
        (Rebuilt(float_storage(4), 0, (4,), (2,)), "in a storage of 4 numbers"),
        (Rebuilt(float_storage(4), 1, (4,), (1,)), "in a storage of 4 numbers"),
        (Rebuilt(float_storage(4), -1, (4,), (1,)), "offset -1"),
        (Rebuilt(float_storage(4), 0, (4,), (-1,)), "-1"),
        (Rebuilt(float_storage(4), 0, (4,), (1, 1)), "strides"),
        (Rebuilt(float_storage(4), 0, (1,) * 9, (1,) * 9), "a tensor of size"),
        (Rebuilt(float_storage(4), 0, "4", (1,)), "a tensor of size '4'"),
        (Rebuilt(float_storage(1 << 40), 0, (1 << 40,), (1,)), "has 16 bytes"),
        (Rebuilt(float_storage(-4), 0, (4,), (1,)), "-4"),
        (Rebuilt(float_storage(4, "../0"), 0, (4,), (1,)), "is not there"),
        (Rebuilt(float_storage(4, "7"), 0, (4,), (1,)), "is not there"),
        (Rebuilt((1, 2), 0, (4,), (1,)), "no storage"),
        (Rebuilt(("storage", torch.Size, "0", "cpu", 4), 0, (4,), (1,)), "no storage"),
    ],
)
def test_tensors_that_reach_out_of_their_storage_are_refused(tmp_path, tensor, words):
    path = pt_file(tmp_path / "x.pt", program({"a": tensor}), {"data/0": bytes(16)})
    for shapes_only in (False, True):
        with pytest.raises(ValueError, match=words):
            read_tensors(path, shapes_only=shapes_only)
    good = pt_file(
        tmp_path / "y.pt", program({"a": Rebuilt(float_storage(4), 0, (2, 2), (2, 1))}), {"data/0": bytes(16)}
    )
    assert read_tensors(good)["a"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("cut", [1, 3, 40, 200, -1, -30, -200])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_files_that_are_cut_off_are_refused(tmp_path, suffix, cut):
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_file({"a": torch.ones(40, 5)}, path)
    elif suffix == ".pt":
        torch.save({"a": torch.ones(40, 5)}, path)
    else:
        np.savez(path, a=np.ones((40, 5)))
    path.write_bytes(path.read_bytes()[:cut])
    for shapes_only in (False, True):
        with pytest.raises(ValueError, match=str(path)):
            read_tensors(path, shapes_only=shapes_only)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, "overlaps"),
        ({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, "hole"),
        ({"a": entry([6], 0, 20)}, "does not fit its shape"),
        ({"a": entry([4], 0, 16)}, "cut off or padded"),
        ({"a": entry([8], 0, 32)}, "cut off or padded"),
        ({"a": entry([1 << 40], 0, 1 << 42)}, "cut off"),
        ({"a": entry([1 << 40, 1 << 40], 0, 24)}, "lists a tensor of shape"),
        ({"a": entry([0, 1 << 60], 0, 0)}, "lists a tensor of shape"),
        ({"a": entry([1] * 9 + [6], 0, 24)}, "lists a tensor of shape"),
        ({"a": entry([-6], 0, 24)}, "lists a tensor of shape"),
        ({"a": entry([6.0], 0, 24)}, "shape"),
        ({"a": entry([True, 6], 0, 24)}, "shape"),
        ({"a": entry(["6"], 0, 24)}, "shape"),
        ({"a": entry([6], "0", 24)}, "shape"),
        ({"a": entry([6], 0, 24, "F4")}, "type 'F4'"),
        ({"a": {"dtype": "F32", "shape": [6]}}, "damaged"),
        ({"a": {"dtype": [], "shape": [6], "data_offsets": [0, 24]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24, 24]}}, "damaged"),
        ({"a": 5}, "damaged"),
        ([1, 2], "damaged"),
        (b'{"a": %s, "a": %s}' % ((json.dumps(entry([6], 0, 24)).encode(),) * 2), "twice"),
        (b'{"a": {"dtype": "F32", "shape": [6], "shape": [6], "data_offsets": [0, 24]}}', "twice"),
        (b"[" * 100_000, "damaged"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged"),
        (b"\xff\xfe{}", "damaged"),
    ],
)  # fmt: skip
def test_headers_that_do_not_hold_are_refused(tmp_path, header, words):
    path = safetensors_file(tmp_path / "x.safetensors", header, bytes(24))
    for shapes_only in (False, True):
        with pytest.raises(ValueError, match=words) as caught:
            read_tensors(path, shapes_only=shapes_only)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("length", [0, 1, 1 << 40, (1 << 64) - 1, 25])
def test_a_header_longer_than_its_file_is_refused(tmp_path, length):
    path = safetensors_file(tmp_path / "x.safetensors", {"a": entry([6], 0, 24)}, b"", length=length)
    with pytest.raises(ValueError, match=r"header should have|damaged|fit its shape|cut off"):
        read_tensors(path)


def test_object_arrays_and_other_kinds_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([Evil(tmp_path / "ran")], dtype=object))
    for array in (
        None,
        np.array(["words"]),
        np.array([1j]),
        np.array([1.0], dtype=">f4"),
        np.zeros(1, dtype=[("a", "f4")]),
    ):
        if array is not None:
            np.savez(tmp_path / "x.npz", a=array)
        for shapes_only in (False, True):
            with pytest.raises(ValueError, match="which is not opened"):
                read_tensors(tmp_path / "x.npz", shapes_only=shapes_only)
    assert not (tmp_path / "ran").exists()


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "shape",
    [
        "(1099511627776,)",
        "(-4,)",
        "(5,)",
        "(4, 0)",
        "(1 << 40,)",
        "__import__('os').getcwd()",
        "(" * 300 + ")" * 300,
        "4",
    ],
)
def test_arrays_that_claim_another_size_are_refused(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy(shape, bytes(16)))
    for shapes_only in (False, True):
        with pytest.raises(ValueError, match="cannot be opened"):
            read_tensors(tmp_path / "x.npz", shapes_only=shapes_only)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_a_part_that_is_there_twice_is_refused(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            with pytest.warns(UserWarning, match="Duplicate") if archive.namelist() else open(os.devnull):
                archive.writestr("archive/data.pkl" if suffix == ".pt" else "a.npy", npy("(4,)", bytes(16)))
    with pytest.raises(ValueError, match="twice"):
        read_tensors(path)


def test_compressed_parts_of_a_pytorch_file_are_refused(tmp_path):
    path = pt_file(tmp_path / "x.pt", b"}.", {"data/0": bytes(1 << 10)}, compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read_tensors(path)


def test_numbers_in_the_other_order_are_refused(tmp_path):
    with pytest.raises(ValueError, match="big-endian"):
        read_tensors(pt_file(tmp_path / "x.pt", b"}.", {"byteorder": b"big"}))


def test_whole_modules_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"names torch\.nn\.modules\.linear\.Linear.*save its state_dict"):
        read_tensors(tmp_path / "x.pt")


# Time and memory of bombs: they are read in a process of its own, whose peak is measured

MEASURED = """
import json, resource, sys
from pathlib import Path
from saescope.formats.tensor_files import read_json, read_tensors, read_yaml
import numpy.lib.format, yaml

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

found, before = {}, peak()
for folder in sorted(Path(sys.argv[1]).iterdir()):
    (path,) = folder.iterdir()
    try:
        {".json": read_json, ".yaml": read_yaml}.get(path.suffix, read_tensors)(path)
        said = "opened"
    except ValueError as error:
        said = str(error)
    found[folder.name] = {"said": said, "megabytes": peak() - before}
print(json.dumps(found))
"""


def deflated(path: Path, name: str, data_blocks, header: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as part:
        part.write(header)
        for block in data_blocks:
            part.write(block)
    return path


def make_bomb(kind: str, folder: Path) -> Path:
    if kind == "npz":  # 400 megabytes of zeros in 400 kilobytes
        numel = 100 << 20
        return deflated(folder / "x.npz", "a.npy", [bytes(1 << 20)] * 400, npy(f"({numel},)"))
    if kind == "npz of many":
        with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(300):
                archive.writestr(f"a{number}.npy", npy("(262144,)", bytes(1 << 20)))
        return folder / "x.npz"
    if kind == "npz of headers":  # a header of which numpy would make a syntax tree
        return deflated(folder / "x.npz", "a.npy", [], npy("(" + "1," * 30_000 + ")"))
    if kind == "parts":  # a list of a million parts
        with zipfile.ZipFile(folder / "x.npz", "w") as archive:
            archive.writestr("a.npy", npy("(4,)", bytes(16)))
        whole = (folder / "x.npz").read_bytes()
        place = whole.index(b"PK\x01\x02")
        one, end = whole[place : whole.index(b"PK\x05\x06")], whole[whole.index(b"PK\x05\x06") :]
        count = 1_000_000
        end = end[:8] + struct.pack("<HHII", 65535, 65535, len(one) * count, place) + end[20:]
        (folder / "x.npz").write_bytes(whole[:place] + one * count + end)
        return folder / "x.npz"
    if kind == "pickle of lists":
        return pt_file(folder / "x.pt", b"]" * ((1 << 20) - 1) + b".")
    if kind == "pickle of bytes":
        return pt_file(folder / "x.pt", b"cbuiltins\nbytearray\n\x8a\x05" + (1 << 38).to_bytes(5, "little") + b"\x85R.")
    if kind == "pickle's memory":
        return pt_file(folder / "x.pt", b"}" + b"r\xff\xff\xff\x7f" + b".")
    if kind == "header":
        return safetensors_file(folder / "x.safetensors", b"[" + b"{}," * (1_300_000) + b"{}]")
    if kind == "long header":
        return safetensors_file(folder / "x.safetensors", b"[" + b"{}," * 4_000_000 + b"{}]")
    if kind == "json":
        (folder / "x.json").write_text("[" + "{}," * 600_000 + "{}]")
        return folder / "x.json"
    if kind == "long json":
        (folder / "x.json").write_text("[" + "{}," * 4_000_000 + "{}]")
        return folder / "x.json"
    if kind == "deep json":
        (folder / "x.json").write_text('{"a":' * 300_000)
        return folder / "x.json"
    lines = {
        "yaml of aliases": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "yaml of odd aliases": "a: &-a [x,x]\nb: [*-a,*-a]\n",
        "deep yaml": "[" * 60_000,
        "yaml of numbers": "a: " + "1:" * 60_000 + "1\n",
        "long yaml": "a: [" + "x," * 60_000 + "x]\n",
    }
    (folder / "x.yaml").write_text(lines[kind])
    return folder / "x.yaml"


BOMBS = {
    "npz": "unfold", "npz of many": "unfold", "npz of headers": "cannot be opened", "parts": "list of parts",
    "pickle of lists": "holds a list", "pickle of bytes": "builtins.bytearray", "pickle's memory": "opened",
    "header": "damaged", "long header": "header should have", "json": "should hold a JSON object",
    "long json": "more than a configuration", "deep json": "not valid JSON",
    "yaml of aliases": "another part of itself", "yaml of odd aliases": "another part of itself",
    "deep yaml": "not valid YAML", "yaml of numbers": "", "long yaml": "opened",
}  # fmt: skip


def test_bombs_take_little_memory_and_time(tmp_path):
    for kind in BOMBS:
        (tmp_path / kind).mkdir()
        make_bomb(kind, tmp_path / kind)
    ran = subprocess.run([sys.executable, "-c", MEASURED, tmp_path], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found.keys() == BOMBS.keys()
    for kind, words in BOMBS.items():
        assert words in found[kind]["said"], (kind, found[kind])
        assert len(found[kind]["said"]) < 700, kind
    assert max(each["megabytes"] for each in found.values()) < 200, found


# Names, links, devices


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "~/x", "c:/x", "..\\x", "a\0b", ""])
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(ValueError, match="leads out"):
        safe_name(name)


@pytest.mark.parametrize("name", ["x", "a/b.safetensors", "a..b/c", ".hidden"])
def test_names_that_stay_are_taken(name):
    assert safe_name(name) == name


def test_a_source_follows_no_way_out_of_its_folder(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.json").write_text("{}")
    (inside / "file.json").symlink_to(outside / "secret.json")
    (inside / "folder").symlink_to(outside)
    (inside / "own.json").write_text("{}")
    (inside / "alias.json").symlink_to(inside / "own.json")
    source = LocalSource.of(inside)
    for name in ("../outside/secret.json", "file.json", "folder/secret.json", str(outside / "secret.json")):
        with pytest.raises(ValueError, match="leads out of"):
            source.path(name)
    assert source.path("own.json").read_text() == source.path("alias.json").read_text() == "{}"
    assert "folder/secret.json" not in source.names


def test_the_cache_of_the_hub_may_link_to_its_own_files_and_no_others(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    others = tmp_path / "models--c--d" / "blobs"
    for folder in (snapshot / "sub", blobs, others):
        folder.mkdir(parents=True)
    (blobs / "77").write_text("{}")
    (others / "88").write_text("{}")
    (snapshot / "cfg.json").symlink_to(blobs / "77")
    (snapshot / "sub" / "cfg.json").symlink_to(blobs / "77")
    (snapshot / "other.json").symlink_to(others / "88")
    assert LocalSource.of(snapshot).path("cfg.json").read_text() == "{}"
    assert LocalSource.of(snapshot / "sub").path("cfg.json").read_text() == "{}"
    with pytest.raises(ValueError, match="leads out of"):
        LocalSource.of(snapshot).path("other.json")


def test_what_is_no_plain_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    for name in ("x.safetensors", "folder.safetensors", "loop.safetensors"):
        with pytest.raises(ValueError, match=name):
            read_tensors(tmp_path / name)
    with pytest.raises(ValueError, match="not a plain file"):
        LocalSource.of(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a plain file"):
        require_plain_file(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tensors(tmp_path / "nothing.pt")
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="no file of tensors"):
        read_tensors(tmp_path / "x.onnx")


# Configurations


def test_configurations_are_read(tmp_path):
    (tmp_path / "x.json").write_text('\ufeff{"a": [1, 2.5, null, true], "b": {"c": "d"}}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None, True], "b": {"c": "d"}}
    (tmp_path / "x.yaml").write_text("a: [1, 2.5, null, true]\nb: {c: 'x & y *z'}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": [1, 2.5, None, True], "b": {"c": "x & y *z"}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"k": 32, "k": 64}', "'k' stands there twice"), ('{"a": {"b": 1, "b": 1}}', "twice"), ("[1]", "JSON object"),
        ("{", "not valid JSON"), ("9" * 5000, "not valid JSON"), ("", "not valid JSON"),
    ],
)  # fmt: skip
def test_json_that_is_no_configuration_is_refused(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['touch ran']", "a: !!python/name:os.system", "- 1", "a: [", "a: *b", "{[1]: 2}",
     "\x00", "? {a: 1}\n: 2"],
)  # fmt: skip
def test_yaml_that_is_no_configuration_is_refused(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"x\.yaml"):
        read_yaml(tmp_path / "x.yaml")
    assert not (tmp_path / "ran").exists()


def test_text_that_is_none_is_refused(tmp_path):
    for name, read in (("x.json", read_json), ("x.yaml", read_yaml)):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(ValueError, match="is no text"):
            read(tmp_path / name)


# Tensors that are asked for by name


def test_every_tensor_is_taken_or_knowingly_ignored():
    source = TensorSource({"a": torch.ones(2, 3), "k": torch.tensor(5), "n": 7, "more": torch.ones(1)}, "x.pt")
    assert source.take("a", (2, None)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"a should have shape \[3, any\], but has \[2, 3\]"):
        source.take("a", (3, None))
    with pytest.raises(ValueError, match="no tensor 'b'"):
        source.take("b")
    for name in ("k", "n"):
        with pytest.raises(ValueError, match="tensor of floating numbers"):
            source.take(name)
    assert (source.take_value("k"), source.take_value("n"), source.take_value("gone", 3)) == (5, 7, 3)
    with pytest.raises(ValueError, match="one number"):
        source.take_value("a")
    with pytest.raises(ValueError, match="more, which this format does not have"):
        source.require_all_used()
    source.ignore("mo.e")
    source.require_all_used()
