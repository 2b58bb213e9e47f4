"""``saescope analyze``: options, a file of them, shards, caches, interruptions, and mistakes in words."""

from __future__ import annotations

import json

import pytest

from saescope.store import Store


@pytest.fixture
def store(tmp_path):
    return tmp_path / "features.db"


def pages(store, name="small", analysis=None):
    with Store.open(store, must_exist=True) as opened:
        return [(page.feature, page.detail, page.all_examples) for page in opened.pages(name, analysis=analysis)]


def test_a_file_holds_the_options(cli, trained, store, tmp_path):
    file = tmp_path / "analysis.toml"
    file.write_text(
        f'dictionary = "{trained}"\nstore = "{store}"\nname = "other"\nseries = "toys"\n'
        'analysis = "long"\nnum_tokens = 600\n'
        '[settings]\nnum_examples = 2\nnum_bands = 2\nmap = "none"\n'
    )
    ran = cli("analyze", file, "--analysis", "short")
    assert ran.code == 0, ran.err
    with Store.open(store) as opened:
        assert opened.dictionary("other").series == "toys"
        (analysis,) = opened.analyses("other")
        assert analysis.name == "short"  # the command line has the last word
        assert analysis.num_tokens <= 600
        assert analysis.details["settings"]["num_examples"] == 2
        page = max(opened.pages("other"), key=lambda page: page.feature.num_windows)
        assert len(page.examples) == 2
        assert page.feature.map_x is None


def test_its_name_in_the_store_opens_it_again(cli, trained, store, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent)
    ran = cli("analyze", trained.name, "--store", store, "--num-tokens", 600)
    assert ran.code == 0, ran.err
    monkeypatch.chdir(tmp_path)  # it is found from anywhere
    monkeypatch.setenv("SAESCOPE_STORE", str(store))
    found = cli("info", "small", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out) == json.loads(cli("info", trained, "--json").out)
    with Store.open(store) as opened:
        place = opened.dictionary("small").details["source"]
    assert place == str((trained / "dictionary").resolve())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('dictionry = "x"', "unknown key dictionry; did you mean dictionary"),
        ('dictionary = "x"\n[settings]\nnum_band = 3', "unknown key num_band; did you mean num_bands"),
        ('dictionary = "x"\n[settings]\nnum_bands = 0', "num_bands must be"),
        ('dictionary = "x"\nnum_tokens = "many"', "num_tokens"),
        ("dictionary = ", "not valid TOML"),
        ("", "which dictionary"),
    ],
)
def test_mistakes_in_the_file_are_one_line(cli, tmp_path, content, words):
    file = tmp_path / "analysis.toml"
    file.write_text(content)
    ran = cli("analyze", file)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard", "1/2"], "--shard and --statistics go together"),
        (["--shard", "3/2", "--statistics", "s.npz"], "numbered from 1 to 2"),
        (["--shard", "half", "--statistics", "s.npz"], "write it as I/N"),
        (["--shard", "1/99999", "--statistics", "s.npz"], "has no 99999 parts"),
        (["--shard", "1/2", "--statistics", "s.npz", "--merge", "t.npz"], "one of the two"),
        (["--only", "labels"], "--only knows logits"),
        (["--merge", "none.npz"], "none.npz does not exist"),
        (["--cache", "none"], "none"),
    ],
)
def test_options_that_do_not_fit_are_one_line(cli, trained, store, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    ran = cli("analyze", trained, "--store", store, *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_shards_are_the_whole(cli, trained, store, tmp_path):
    assert cli("analyze", trained, "--store", store, "--name", "whole").code == 0
    parts = [tmp_path / "1.npz", tmp_path / "2.npz"]
    for number, part in enumerate(parts, 1):
        ran = cli("analyze", trained, "--store", store, "--shard", f"{number}/2", "--statistics", part)
        assert ran.code == 0, ran.err
        assert str(part) in ran.out
    incomplete = cli("analyze", trained, "--store", store, "--name", "merged", "--merge", parts[0])
    assert incomplete.code == 2
    assert "merge all shards" in incomplete.err
    ran = cli("analyze", trained, "--store", store, "--name", "merged", "--merge", parts[1], "--merge", parts[0])
    assert ran.code == 0, ran.err
    for (a, _, examples_a), (b, _, examples_b) in zip(pages(store, "whole"), pages(store, "merged"), strict=True):
        assert (a.num_firings, a.num_windows, a.first_firing) == (b.num_firings, b.num_windows, b.first_firing)
        assert a.label == b.label
        assert [(e.window.id, e.peak) for e in examples_a] == [(e.window.id, e.peak) for e in examples_b]


def test_an_interrupted_analysis_goes_on(cli, trained, store, tmp_path, monkeypatch):
    from saescope.analysis import features as stages

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "label_features", stop)
        assert cli("analyze", trained, "--store", store).code != 0
    (checkpoint,) = (tmp_path / "features.db.work").iterdir()
    other = cli("analyze", trained, "--store", store, "--seed", 5)
    assert other.code == 2
    assert "other settings; remove it" in other.err
    assert cli("analyze", trained, "--store", store).code == 0
    assert not checkpoint.exists()
    assert len(pages(store)) == 64


def test_logits_alone(cli, trained, store):
    assert cli("analyze", trained, "--store", store).code == 0
    before = pages(store)
    ran = cli("analyze", trained, "--store", store, "--only", "logits")
    assert ran.code == 0, ran.err
    assert "64 features" in ran.out
    assert pages(store) == before
    missing = cli("analyze", trained, "--store", store, "--only", "logits", "--name", "nobody")
    assert missing.code == 2


def test_from_a_cache(cli, recipe, trained, store, tmp_path):
    ran = cli("cache", recipe, "--output", tmp_path / "cache")
    assert ran.code == 0, ran.err
    ran = cli("analyze", trained, "--store", store, "--cache", tmp_path / "cache")
    assert ran.code == 0, ran.err
    assert any(feature.num_firings for feature, _, _ in pages(store))
    assert all(feature.special_share is None for feature, _, _ in pages(store))


def test_the_numbers_are_in_json(cli, trained, store):
    assert cli("analyze", trained, "--store", store).code == 0
    listed = json.loads(cli("features", "--store", store, "--json", "--limit", 3).out)
    densest = sorted(pages(store), key=lambda page: (-page[0].density, page[0].index))[:3]
    assert [feature["num_firings"] for feature in listed["features"]] == [page[0].num_firings for page in densest]
