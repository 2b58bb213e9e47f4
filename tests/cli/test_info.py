"""``saescope info``: headers in words and as JSON, and the check on data."""

from __future__ import annotations

import json
import shutil

import torch
from safetensors.torch import load_file, save_file


def test_headers_in_words_and_as_json(cli, trained, monkeypatch):
    from saescope.formats import mapped_files

    with monkeypatch.context() as patch:
        patch.setattr(mapped_files.MappedFile, "flat", None)  # a weight that is read would fail
        ran = cli("info", trained)
        assert ran.code == 0, ran.err
        document = json.loads(cli("info", trained, "--json").out)
    shown = {line.split("  ")[0].strip(): line for line in ran.out.splitlines()}
    assert "saescope" in shown["format"]
    assert "topk, k = 4" in shown["architecture"]
    assert "d_sae 64, d_in 16; float32" in shown["size"]
    assert "b_dec is subtracted" in shown["centring"]
    assert "blocks.1.hook_resid_post" in shown["hook point"]
    assert (document["architecture"], document["d_sae"], document["settings"]["k"]) == ("topk", 64, 4)
    assert document["provenance"]["architecture"] == "topk"
    assert "check" not in document


def test_the_check_measures_on_the_model_that_is_named(cli, trained):
    ran = cli("info", trained, "--check", "--num-tokens", 500)
    assert ran.code == 0, ran.err
    assert "loss recovered" in ran.out
    document = json.loads(cli("info", trained, "--check", "--num-tokens", 500, "--json").out)
    check = document["check"]
    assert 0 < check["num_tokens"] <= 500
    assert 0 < check["l0"] <= 4
    assert f"L0 {check['l0']:.1f}" in ran.out


def test_a_fault_is_named(cli, trained, tmp_path):
    """The decoder of a copy is three times too large."""
    shutil.copytree(trained / "dictionary", tmp_path / "x")
    weights = load_file(tmp_path / "x" / "sae_weights.safetensors")
    save_file({**weights, "W_dec": weights["W_dec"] * 9}, tmp_path / "x" / "sae_weights.safetensors")
    ran = cli("info", tmp_path / "x", "--check", "--num-tokens", 500)
    assert ran.code == 0, ran.err
    assert "looks wrong: what it rebuilds is off by a constant" in ran.out


def test_what_can_not_be_opened_is_one_line(cli, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for arguments, words in (((tmp_path,), "no dictionary of a known format"), ((tmp_path / "none",), "none")):
        ran = cli("info", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert words in ran.err
        assert len(ran.err.splitlines()) == 1
    torch.save({"a": 1}, tmp_path / "x.pt")
    assert cli("info", tmp_path / "x.pt").code == 2
