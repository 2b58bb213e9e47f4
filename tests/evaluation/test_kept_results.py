"""Results found by what they depend on, and never by a name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saescope.activations import TokenWindows, WindowConfig
from saescope.evaluation import Number, StudyResult
from saescope.evaluation.kept_results import (
    KeptResults,
    default_folder,
    digest_of_code,
    digest_of_tensors,
    digest_of_windows,
    key_of,
    source_of,
)

RESULT = StudyResult(study="core", numbers=(Number(name="l0", value=3.0),))


def test_kept_and_found(tmp_path: Path) -> None:
    kept = KeptResults(tmp_path)
    key = key_of("a")
    assert kept.find(key) is None
    kept.keep(key, RESULT)
    assert kept.find(key) == RESULT
    assert kept.find(key_of("b")) is None
    (path,) = tmp_path.rglob("*.json")
    assert not list(tmp_path.rglob("*.partial"))
    for damage in ("", "{}", path.read_text()[:-9], '{"study": "core", "numbers": []}'):
        path.write_text(damage)
        assert kept.find(key) is None
    kept.keep(key, RESULT)
    assert kept.find(key) == RESULT


def test_failures_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a failure is not kept"):
        KeptResults(tmp_path).keep("key", StudyResult.failed("core", ValueError("no tokens")))


@dataclass(frozen=True)
class Settings:
    places: frozenset[int]
    seed: int = 0


def test_keys_see_every_setting() -> None:
    settings = Settings(frozenset({3, 1}))
    assert key_of(settings) == key_of(Settings(frozenset({1, 3})))
    keys = {key_of(settings), key_of(replace(settings, seed=1)), key_of(Settings(frozenset({1}))), key_of({"seed": 0})}
    assert len(keys) == 4
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    with pytest.raises(TypeError, match="object has no plain form"):
        key_of(object())


def test_digests_of_tensors_see_names_shapes_dtypes_and_values() -> None:
    x = torch.arange(6.0)
    digests = {
        digest_of_tensors({"a": x}.items()),
        digest_of_tensors({"b": x}.items()),
        digest_of_tensors({"a": x.reshape(2, 3)}.items()),
        digest_of_tensors({"a": x.double()}.items()),
        digest_of_tensors({"a": x.bfloat16()}.items()),
        digest_of_tensors({"a": x.index_fill(0, torch.tensor([5]), 5.0000005)}.items()),
    }
    assert len(digests) == 6
    assert digest_of_tensors([("a", x), ("b", x)]) == digest_of_tensors([("b", x), ("a", x.clone())])
    assert digest_of_tensors({"empty": torch.zeros(0), "one": torch.tensor(1)}.items())


def test_digests_of_text(documents: Any, tokenizer: Any) -> None:
    def windows(count: int, **config: Any) -> TokenWindows:
        return TokenWindows.build(documents[:count], tokenizer, WindowConfig(**{"context_size": 12, **config}))

    assert digest_of_windows(windows(3)) == digest_of_windows(windows(3))
    kinds = [windows(3), windows(4), windows(3, context_size=13), windows(3, prepend_bos=False), windows(3).evenly(60)]
    assert len({digest_of_windows(kind) for kind in kinds}) == 5


def test_sources_of_classes() -> None:
    class Mine(dict[str, int]):
        pass

    assert "class Mine(dict[str, int])" in (source_of(Mine) or "")
    assert source_of(TokenWindows) == ""
    assert source_of(type("Typed", (), {})) is None


def test_code_and_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len(digest_of_code()) == 64
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "evaluations"
    monkeypatch.delenv("SAESCOPE_CACHE")
    assert default_folder().is_relative_to(Path.home())
