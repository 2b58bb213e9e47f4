"""Named arrays in one file that is there whole or not at all, and says so if it was damaged since.

The file is what numpy calls npz, without pickled objects. It is written beside, synced and renamed, and holds a checksum.
"""

from __future__ import annotations

import os
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np

_CHECKSUM = "sha256"


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a file, or leave the one that is there."""
    checksum = np.frombuffer(_checksum(arrays).encode(), dtype=np.uint8)
    beside = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(beside, "wb") as file:
            np.savez(file, **arrays, **{_CHECKSUM: checksum})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)  # a full disk needs the room
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a file that was saved before, or begin anew")
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = dict(file)
        checksum = arrays.pop(_CHECKSUM).tobytes().decode()
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or holds something else: {error}") from error
    if checksum != _checksum(arrays):
        raise ValueError(f"{path} is damaged: its checksum does not fit; use the one before it, or begin anew")
    return arrays


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    whole = sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        whole.update(f"{name} {array.dtype} {array.shape}\n".encode())
        whole.update(array.data)
    return whole.hexdigest()
