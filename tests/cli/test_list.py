"""``saescope list pretrained``: releases, dictionaries of one, filters, JSON."""

from __future__ import annotations

import json

import pytest

from saescope.cli.views.published import hooks_in_words
from saescope.formats import registry


def test_releases_of_a_model(cli):
    ran = cli("list", "pretrained", "--model", "gemma-2-2b")
    assert ran.code == 0, ran.err
    line = next(line for line in ran.out.splitlines() if line.strip().startswith("gemma-scope-2b-pt-res-canonical"))
    assert "blocks.0-25.hook_resid_post" in line
    assert line.split()[-1] != "58" or " 58 " in line
    assert "58" in line.split()
    assert "gpt2-small" not in ran.out
    count = len(registry.published(model="gemma-2-2b"))
    assert f"{count:,} dictionaries of" in ran.out


def test_dictionaries_of_a_release(cli):
    ran = cli("list", "pretrained", "gpt2-small-res-jb")
    assert ran.code == 0, ran.err
    row = next(line for line in ran.out.splitlines() if "gpt2-small-res-jb/blocks.8.hook_resid_pre" in line)
    assert row.split() == [
        "gpt2-small-res-jb/blocks.8.hook_resid_pre",
        "blocks.8.hook_resid_pre",
        "60",
        "gpt2-small/8-res-jb",
    ]


def test_filters_and_json(cli):
    ran = cli("list", "pretrained", "--model", "gpt2-small", "--hook", "blocks.3.hook_resid_mid", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["made_from"].startswith("sae-lens")
    assert [each["ref"] for each in document["dictionaries"]] == [
        "gpt2-small-resid-mid-v5-128k/blocks.3.hook_resid_mid", "gpt2-small-resid-mid-v5-32k/blocks.3.hook_resid_mid",
    ]  # fmt: skip
    assert document["dictionaries"][0]["neuronpedia"] == "gpt2-small/3-res_mid_128k-oai"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt2-small-res-jp"], "no release is named gpt2-small-res-jp; nearest: gpt2-small-res-jb"),
        (["--model", "gemma-2-2bb"], "gemma-2-2b"),
        (["--model", "gpt2-small", "--hook", "nowhere"], "nothing is published with model gpt2-small, hook nowhere"),
        (["gpt2-small-res-jb", "--model", "gemma-2-2b"], "nothing is published with release gpt2-small-res-jb, model"),
    ],
)
def test_nothing_is_an_error_with_a_way_on(cli, arguments, words):
    ran = cli("list", "pretrained", *arguments)
    assert ran.code == 2
    assert words in ran.err


def test_layers_are_drawn_together():
    found = [each for each in registry.release("gpt2-small-res-jb") if each.id != "blocks.5.hook_resid_pre"]
    assert hooks_in_words(found) == "blocks.0-4,6-11.hook_resid_pre, blocks.11.hook_resid_post"
