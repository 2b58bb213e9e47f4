"""Where a dictionary of another library lies: its files by name, fetched when they are asked for, and what the user says.

Formats are told apart by the names of files and by what stands in them. The label (a folder's path, or a repository with
its sub-folder) is looked at only for a parameter that exists nowhere but in a name, by one anchored pattern.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from saescope.formats.tensor_files import KINDS, TensorSource, read_json, read_tensors, read_yaml, require_plain_file

_MOST_NAMES = 20_000
_DEPTH = 3


class Source(ABC):
    """The files of one dictionary.

    Attributes:
        label: the folder or repository as it was named, with ``/`` between parts.
        only: the one file of tensors that was named, where a file was; formats look at no other then.
        overrides: what the user says where a file does not.
        lenient: let unknown keys of configurations be.
        shapes_only: tensors without memory, from the headers alone.
    """

    label: str
    only: str
    overrides: Mapping[str, Any]
    lenient: bool
    shapes_only: bool

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of all files, sorted, relative to the folder, ``/`` between parts."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """The file of this name on this machine; fetched if it is elsewhere."""

    def has(self, *names: str) -> bool:
        """Whether all of these files are there."""
        return set(names) <= set(self.names)

    def tensor_files(self, pattern: str) -> list[str]:
        """Files of tensors whose whole name matches, in natural order; the one that was named, where one was."""
        wanted = (self.only,) if self.only else self.names
        found = [name for name in wanted if name.lower().endswith(KINDS) and re.fullmatch(pattern, name)]
        return sorted(found, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])

    def the_tensor_file(self, pattern: str, words: str) -> str:
        """The only file that matches.

        Raises:
            ValueError: none, or several: they are listed.
        """
        found = self.tensor_files(pattern)
        if len(found) != 1:
            several = f"it has {', '.join(found[:8])}; name one of them" if found else f"it has {_listed(self.names)}"
            raise ValueError(f"{self.label} should hold one {words}, but {several}")
        return found[0]

    def tensors(self, name: str) -> TensorSource:
        """The tensors of a file."""
        return TensorSource(read_tensors(self.path(name), shapes_only=self.shapes_only), f"{self.label}/{name}")

    def config(self, name: str) -> ConfigSource:
        """The configuration in a JSON or YAML file."""
        read = read_json if name.endswith(".json") else read_yaml
        return ConfigSource(read(self.path(name)), f"{self.label}/{name}", lenient=self.lenient)

    def from_name(self, pattern: str) -> re.Match[str] | None:
        """What the end of the label says: the match of a pattern that has to reach to its end."""
        return re.search(rf"(?:^|/){pattern}$", self.label)

    def override(self, name: str, default: Any = None) -> Any:
        """What the user says, else ``default``."""
        return self.overrides.get(name, default)

    def whole(self, name: str, default: Any = None, *, least: int = 1) -> int | None:
        """The whole number that the user says, else ``default``; ValueError where it is none."""
        value = self.override(name, default)
        return None if value is None else whole_number(value, name, least=least)


@dataclass(frozen=True, kw_only=True)
class LocalSource(Source):
    """Files of a folder on this machine."""

    folder: Path
    label: str
    only: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    lenient: bool = False
    shapes_only: bool = False

    @classmethod
    def of(cls, path: str | Path, **more: Any) -> LocalSource:
        """The files of a folder, or one file and what lies beside it.

        Raises:
            FileNotFoundError: there is neither.
        """
        path = Path(path)
        if path.is_dir():
            return cls(folder=path, label=path.resolve().as_posix(), **more)
        require_plain_file(path)
        return cls(folder=path.parent, label=path.resolve().parent.as_posix(), only=path.name, **more)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(_names(self.folder, self.folder, _DEPTH)))

    def path(self, name: str) -> Path:
        return require_plain_file(self.folder / name, inside=self.folder)


def _names(folder: Path, root: Path, depth: int) -> list[str]:
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if depth > 1 and not path.is_symlink():
                found += _names(path, root, depth - 1)
        else:
            found.append(path.relative_to(root).as_posix())
        if len(found) > _MOST_NAMES:
            break
    return found


def _listed(names: tuple[str, ...]) -> str:
    if not names:
        return "no files"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def whole_number(value: Any, name: str, *, least: int = 0) -> int:
    """A number that the user or a file says, in digits or as a number; ValueError where it is not whole, or too small."""
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} should be a whole number of at least {least}, but is {value!r}")
    return int(text)


class ConfigSource:
    """A configuration of which every key has to be read or knowingly ignored: a misspelt one would be lost in silence."""

    def __init__(self, values: Mapping[str, Any], where: str, *, lenient: bool = False) -> None:
        self._values, self.where, self.lenient = dict(values), where, lenient
        self._used: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def as_dict(self) -> dict[str, Any]:
        return dict(self._values)

    def get(self, key: str, kind: type | tuple[type, ...] = object, default: Any = None) -> Any:
        """The value of a key, else ``default``; null counts as absent.

        Raises:
            ValueError: it is of another kind. Whole numbers pass as float, true and false do not pass as numbers.
        """
        self._used.add(key)
        value = self._values.get(key)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
            words = " or ".join(each.__name__ for each in kinds)
            raise ValueError(f"{self.where}: {key} should be {words}, but is {value!r}")
        return value

    def need(self, key: str, kind: type | tuple[type, ...] = object) -> Any:
        """As :meth:`get`, for a key that has to be there."""
        value = self.get(key, kind)
        if value is None:
            raise ValueError(f"{self.where} has no {key}; it has {', '.join(sorted(self._values)[:30])}")
        return value

    def part(self, key: str) -> ConfigSource:
        """The object under a key; empty where there is none."""
        return ConfigSource(self.get(key, dict, {}), f"{self.where}: {key}", lenient=self.lenient)

    def ignore(self, *keys: str) -> None:
        """These do not change the function; patterns of ``re.fullmatch``."""
        self._used |= {key for key in self._values for pattern in keys if re.fullmatch(pattern, key)}

    def require_all_used(self) -> None:
        """ValueError where a key was neither read nor ignored, unless the user lets it be."""
        left = sorted(set(self._values) - self._used)
        if left and not self.lenient:
            raise ValueError(
                f"{self.where} has {', '.join(left[:10])}, which is not known here and might change the function; if it "
                "does not, pass --lenient (lenient=True)"
            )
