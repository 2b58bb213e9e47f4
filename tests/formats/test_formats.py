"""The room's door: names on first use, nothing heavy at import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import saescope.formats


def loaded_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(ran.stdout.split())


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "bson", "sqlalchemy", "transformers", "datasets"}
    assert not heavy & loaded_after("import saescope.formats")
    everything = "; ".join(f"from saescope.formats import {name}" for name in saescope.formats.__all__)
    assert not (heavy - {"numpy"}) & loaded_after(everything)


@pytest.mark.parametrize("name", saescope.formats.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(saescope.formats, name) is not None


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="read_neuronpedia"):
        saescope.formats.read_mongo  # noqa: B018
