"""What a format is: how it is recognised, how it is read and, for some, written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from saescope.dictionaries import Dictionary
from saescope.formats.foreign import Foreign
from saescope.formats.source import Source

Writer: TypeAlias = Callable[[Dictionary, Path, Mapping[str, Any]], None]
"""Writes a dictionary with its metadata into an empty folder; ValueError where the format can not hold the function."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of files of dictionaries."""

    name: str
    """As in ``saescope convert --to``."""
    title: str
    """The library, or the release of dictionaries."""
    layout: str
    """Which files it is recognised by, in words."""
    recognise: Callable[[Source], bool]
    """Whether this is it, by names of files and what stands in them; cheap, and never an error."""
    read: Callable[[Source], Foreign]
    """
    Raises:
        ValueError: a file that is damaged, holds what this format does not have, or another function than can be computed.
    """
    reads: str = ""
    """Which dictionaries, in words."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """What the user may say where a file does not: name and explanation."""
    write: Writer | None = None
    writes: str = ""
    """Which dictionaries it can hold, in words."""
    checked_against: str = ""
    """What reading and writing are compared with in tests."""
