"""Several recipes in one pass: each dictionary as it would have come out alone."""

from __future__ import annotations

import pytest

from saescope.dictionaries import load_dictionary


@pytest.fixture
def recipes(recipe, tmp_path):
    """The small recipe, and two more on the same text: another architecture and layer; another seed and length."""
    text = recipe.read_text()
    jump = text.replace('name = "small"', 'name = "jump"').replace("blocks.1.", "blocks.0.").replace("k = 4", "")
    seeded = text.replace('name = "small"', 'name = "seeded"').replace("k = 4", "k = 3\nseed = 5")
    paths = [recipe, tmp_path / "jump.toml", tmp_path / "seeded.toml"]
    paths[1].write_text(jump.replace('"topk"', '"jumprelu"'))
    paths[2].write_text(seeded.replace("num_tokens = 1280", "num_tokens = 768"))
    return paths


def test_dictionaries_of_one_pass_are_those_of_single_runs(cli, recipes, tmp_path):
    ran = cli("train", *recipes, "--output", tmp_path / "many")
    assert ran.code == 0, ran.err
    for name, path in zip(("small", "jump", "seeded"), recipes, strict=True):
        assert str(tmp_path / "many" / name / "dictionary") in ran.out.replace("\n", "")
        alone = cli("train", path, "--output", tmp_path / "alone" / name)
        assert alone.code == 0, alone.err
        found = load_dictionary(tmp_path / "many" / name / "dictionary")
        expected = load_dictionary(tmp_path / "alone" / name / "dictionary")
        for key, tensor in expected.named_parameters():
            assert tensor.equal(found.get_parameter(key)), (name, key)
    again = cli("eval", tmp_path / "many" / "jump")
    assert again.code == 0, again.err


def test_what_can_not_share_a_pass_is_refused(cli, recipes, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(recipes[1].read_text().replace("context_size = 32", "context_size = 16"))
    ran = cli("train", recipes[0], other, "--output", tmp_path / "many")
    assert ran.code == 2
    assert "small and jump can not share one pass: windows is" in ran.err
    assert "context_size=32" in ran.err
    assert "context_size=16" in ran.err
    other.write_text(recipes[1].read_text().replace("batch_size_tokens = 128", "batch_size_tokens = 64"))
    ran = cli("train", recipes[0], other, "--output", tmp_path / "many")
    assert ran.code == 2
    assert "training.batch_size_tokens is 128 and 64" in ran.err
    ran = cli("train", recipes[0], recipes[0], "--output", tmp_path / "many")
    assert ran.code == 2
    assert "two recipes are named small" in ran.err
    assert not (tmp_path / "many").exists()


def test_a_dictionary_seed_must_be_a_whole_number(cli, recipe, tmp_path):
    ran = cli("train", recipe, "-o", "dictionary.seed=1.5", "--output", tmp_path / "run")
    assert ran.code == 2
    assert "seed must be a whole number" in ran.err
