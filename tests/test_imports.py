"""What importing costs: the package itself nothing, dictionaries no more than torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import saescope


def loaded_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(ran.stdout.split())


def test_importing_saescope_loads_no_torch():
    assert not {"torch", "numpy", "transformers", "pydantic", "typer"} & loaded_after("import saescope")


def test_dictionaries_and_training_need_no_more_than_torch():
    loaded = loaded_after("import saescope.dictionaries, saescope.training, saescope.metrics")
    heavy = {"transformers", "datasets", "huggingface_hub", "sqlalchemy", "fastapi", "pydantic", "rich", "typer"}
    assert not heavy & loaded


def test_the_store_and_the_report_need_no_torch(tmp_path):
    opening = f"saescope.store.Store.open({str(tmp_path / 'features.db')!r}).close()"
    assert "torch" not in loaded_after(f"import saescope.store; {opening}")
    assert "torch" not in loaded_after("from saescope.web import write_report")


@pytest.mark.parametrize("name", saescope.__all__)
def test_every_public_name_is_there(name):
    assert getattr(saescope, name) is not None


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="LanguageModel"):
        saescope.LanguageModels  # noqa: B018
