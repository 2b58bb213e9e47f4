"""``saescope convert``."""

from __future__ import annotations

import pytest
import torch

from saescope.cli.overrides import overrides_of
from saescope.formats.loading import load


def test_a_run_is_converted_and_what_was_decided_is_said(cli, trained, tmp_path):
    ran = cli("convert", trained, tmp_path / "theirs", "--to", "saelens")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("read as saescope, topk\n")
    assert "the same features fire" in ran.out
    assert ran.out.endswith(f"written: {tmp_path / 'theirs'}\n")
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    one, other = load(trained / "dictionary"), load(tmp_path / "theirs", format="saelens")
    with torch.no_grad():
        assert torch.allclose(one(x), other(x), atol=1e-6)


def test_what_is_refused_is_one_line(cli, trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for arguments, words in (
        ((tmp_path / "mine",), "already exists"),
        ((tmp_path / "mine", "--overwrite"), "thesis.tex"),
        ((tmp_path / "new", "--to", "gguf"), "no format is named 'gguf'"),
        ((tmp_path / "new", "-o", "depth=3"), "depth can not be said"),
        ((tmp_path / "new", "-o", "format=3"), "-o takes KEY=VALUE"),
        ((tmp_path / "new", "--dtype", "int8"), "floating type"),
    ):
        ran = cli("convert", trained, *arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert words in ran.err
        assert len(ran.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_overrides_are_values_or_words():
    given = ["k=32", "already_folded=true", "scale=0.5", "gate=by_norm", "name=a=b"]
    expected = {"k": 32, "already_folded": True, "scale": 0.5, "gate": "by_norm", "name": "a=b"}
    assert overrides_of(given) == expected
    assert overrides_of(None) == {}
    for wrong in (["k"], ["=3"], ["a b=3"], ["dtype=3"]):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            overrides_of(wrong)
    with pytest.raises(ValueError, match="twice"):
        overrides_of(["k=1", "k=2"])
