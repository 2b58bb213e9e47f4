"""``saescope steer``: what it shows and writes is what the library computes; what it can not do it says in one line."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
import typer

from saescope.cli.opening import open_dictionary
from saescope.cli.steer import steer
from saescope.cli.views.steering import steering_view
from saescope.interventions import Ablate, Add, Clamp, Site
from saescope.interventions.side_by_side import side_by_side
from saescope.models import LanguageModel
from saescope.store import Store
from saescope.web.numbers import decimal

PROMPTS = ["def alpha(x", "    return"]
SHORT = ["--max-new-tokens", 5]


@pytest.fixture
def run(cli, monkeypatch, tmp_path):
    """Runs ``saescope steer ARGUMENTS`` where no store lies."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(steer)
    app.command("another")(lambda: None)  # with one command alone, typer would not ask for its name
    monkeypatch.setattr("saescope.cli.app.app", app)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAESCOPE_STORE", raising=False)
    return lambda *arguments: cli("steer", *arguments)


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    """A store with the analysis of the trained dictionary."""
    from saescope.__main__ import main

    path = tmp_path_factory.mktemp("store") / "features.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["saescope", "analyze", str(trained), "--store", str(path)])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    return path


@pytest.fixture(scope="module")
def alive(analysed):
    """Two features that fire, by number, with their largest activations."""
    with Store.open(analysed) as store:
        records = store.features("small", sort="max_activation", limit=2).features
    return {record.index: record.max_activation for record in records}


@pytest.fixture(scope="module")
def place(trained, sources, alive):
    model = LanguageModel.load(sources / "model")
    dictionary = open_dictionary(trained / "dictionary")
    return Site(dictionary, model, hook_point="blocks.1.hook_resid_post", max_activations=alive)


def document(ran):
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_the_document_has_what_the_library_computes(run, trained, analysed, alive, place):
    first, second = alive
    ran = run(
        trained, "-f", first, "-f", second, "-s", 3, "-s", 0.5, "-p", PROMPTS[0], "-p", PROMPTS[1], "--seed", 4,
        "--temperature", 0.9, "--top-k", 50, "--top-p", 0.95, "--store", analysed, "--json", *SHORT,
    )  # fmt: skip
    found = document(ran)
    changes = [Add(place, first, 3.0), Add(place, second, 0.5)]
    expected = side_by_side(
        place.model, PROMPTS, changes, max_new_tokens=5, seed=4, temperature=0.9, top_k=50, top_p=0.95, prepend_bos=True
    )
    assert found["kl_per_token"] == pytest.approx(expected.kl_per_token, rel=1e-6)
    assert found["kl_reverse_per_token"] == pytest.approx(expected.kl_reverse_per_token, rel=1e-6)
    assert found["perplexity_plain"] == pytest.approx(expected.perplexity_plain, rel=1e-6)
    assert found["perplexity_steered"] == pytest.approx(expected.perplexity_steered, rel=1e-6)
    for row, text in enumerate(found["texts"]):
        assert text["prompt"] == PROMPTS[row]
        assert text["prompt_ids"][0] == 0  # the run's windows begin with this token
        assert text["plain"]["text"] == expected.plain.texts[row]
        assert text["steered"]["text"] == expected.steered.texts[row]
        assert text["steered"]["token_ids"] == expected.steered.new_ids[row]
        assert text["steered"]["kl"] == pytest.approx(expected.scores.kl[row], rel=1e-5, abs=1e-9)
        assert text["kl_per_token"] == pytest.approx(sum(text["steered"]["kl"]) / len(text["steered"]["kl"]))
    assert [change["activation"] for change in found["changes"]] == pytest.approx(
        [3 * alive[first], 0.5 * alive[second]]
    )
    assert [change["max_activation"] for change in found["changes"]] == pytest.approx([alive[first], alive[second]])
    with Store.open(analysed) as store:
        labels = store.labels("small", alive)
    assert [change["label"] for change in found["changes"]] == [labels.get(first), labels.get(second)]
    assert found["settings"]["top_p"] == 0.95
    assert found["hook_point"].endswith("1.hook_resid_post") or found["hook_point"].endswith("h.1.output")


@pytest.mark.parametrize("kind", ["clamp", "ablate", "activation"])
def test_other_changes_are_those_of_the_library(run, trained, analysed, alive, place, kind):
    feature = next(iter(alive))
    options, change = {
        "clamp": (["--clamp", "-s", 2, "--store", analysed], Clamp(place, feature, 2.0, positions="generated")),
        "ablate": (["--ablate"], Ablate(place, [feature], positions="generated")),
        "activation": (
            ["--unit", "activation", "-s", -7],
            Add(place, feature, -7.0, "activation", positions="generated"),
        ),
    }[kind]
    ran = run(trained, "-f", feature, "-p", PROMPTS[0], "--positions", "generated", "--json", *options, *SHORT)
    found = document(ran)
    expected = side_by_side(place.model, PROMPTS[:1], change, max_new_tokens=5, prepend_bos=True)
    assert found["texts"][0]["steered"]["token_ids"] == expected.steered.new_ids[0]
    assert found["kl_per_token"] == pytest.approx(expected.kl_per_token, rel=1e-5, abs=1e-9)
    assert found["changes"][0]["kind"] == ("add" if kind == "activation" else kind)
    assert found["positions"] == "generated"


def test_the_strength_is_found(run, trained, analysed, alive, place):
    first, second = alive
    options = ["-f", first, "-f", second, "-s", 1, "-s", 0.25, "-p", PROMPTS[0], "--store", analysed, *SHORT]
    found = document(run(trained, *options, "--kl", 0.2, "--json"))
    assert found["search"]["met"]
    factor = found["search"]["factor"]
    assert [change["strength"] for change in found["changes"]] == pytest.approx([factor, factor / 4])
    changes = [Add(place, first, factor), Add(place, second, factor / 4)]
    expected = side_by_side(place.model, PROMPTS[:1], changes, max_new_tokens=5, prepend_bos=True)
    assert expected.kl_per_token == pytest.approx(found["kl_per_token"], rel=1e-5)
    assert abs(found["kl_per_token"] - 0.2) <= 0.05 * 0.2
    assert len(found["search"]["tried"]) > 1
    ran = run(trained, *options, "--kl", 0.2)
    assert f"strength found for a KL of 0.2 within 5 %; {len(found['search']['tried'])} strengths tried" in ran.out


def test_a_kl_that_is_not_reached_is_said(run, trained, analysed, alive):
    options = ["-f", next(iter(alive)), "-p", PROMPTS[0], "--store", analysed, "--max-new-tokens", 1]
    found = document(run(trained, *options, "--kl", 500, "--json"))
    assert not found["search"]["met"]
    assert "a KL of 500 was not reached up to strength" in found["search"]["reason"]
    assert found["kl_per_token"] < 500
    ran = run(trained, *options, "--kl", 500)
    assert ran.code == 0
    assert "not found: a KL of 500 was not reached" in " ".join(ran.out.split())


def test_the_screen_shows_both_texts_and_the_numbers_of_the_document(run, trained, analysed, alive):
    first, second = alive
    options = [
        trained, "-f", first, "-f", second, "-s", 2, "-p", PROMPTS[0], "-p", PROMPTS[1], "--store", analysed, *SHORT,
    ]  # fmt: skip
    found = document(run(*options, "--json"))
    ran = run(*options)
    assert ran.code == 0
    text = "\n".join(" ".join(line.split()) for line in ran.out.splitlines())
    for change in found["changes"]:
        expected = f"strength 2 × maximum {decimal(change['max_activation'])} = {decimal(change['activation'])}"
        assert f"add feature {change['feature']}, {expected}" in text
        assert change["label"] is None or change["label"][:20] in ran.out
    for number, row in [(str(n), row) for n, row in enumerate(found["texts"])] + [("all", found)]:
        shown = [decimal(row[key]) for key in ("kl_per_token", "perplexity_plain", "perplexity_steered")]
        assert " ".join([number, *shown]) in text
    assert "KL in nats per generated token" in text
    assert text.count("def alpha(x") == 2


def test_the_view_keeps_line_ends_and_shows_what_has_no_shape(run):
    import io

    from rich.console import Console

    side = {"text": "\x1b[31m[bold]\n\ttwo", "ended": True}
    row = {"prompt": "a\nb", "plain": side, "steered": {**side, "ended": False}}
    numbers = {"kl_per_token": 0.5, "perplexity_plain": 2.0, "perplexity_steered": None}
    shown = {
        "changes": [{"kind": "ablate", "feature": 3, "label": None}], "search": None, "name": "small", "hook_point": "h.1",
        "positions": "all", "texts": [{**row, **numbers}], **numbers,
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(steering_view(shown))
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "remove feature 3"
    assert any("b\\x1b[31m[bold]" in line for line in lines)
    (last,) = [line for line in lines if "two" in line]
    assert last.count("    two") == 2
    assert last.count("(end)") == 1
    assert any(line.split()[:3] == ["0", "0.5", "2"] and "beyond all numbers" in line for line in lines)
    assert "\x1b" not in console.file.getvalue()


def test_a_store_that_lies_there_is_used(run, trained, analysed, alive, monkeypatch):
    options = [trained, "-f", next(iter(alive)), "-s", 2, "-p", PROMPTS[0], "--json", *SHORT]
    named = document(run(*options, "--store", analysed))
    monkeypatch.setenv("SAESCOPE_STORE", str(analysed))
    assert document(run(*options)) == named
    elsewhere = document(run(*options, "--hook-point", "blocks.1.hook_resid_post", "--name", "small"))
    assert elsewhere["texts"] == named["texts"]


def test_without_a_store_maximum_activations_are_not_known(run, trained, analysed, alive, monkeypatch):
    options = [trained, "-f", next(iter(alive)), "-s", 2, "-p", PROMPTS[0], *SHORT]
    ran = run(*options)
    assert ran.code == 2
    assert "strengths count in maximum activations" in ran.err
    assert "saescope analyze" in ran.err
    assert "--unit activation" in ran.err
    monkeypatch.setenv("SAESCOPE_STORE", str(analysed))
    ran = run(*options, "--name", "unknown")
    assert ran.code == 2
    assert "has no dictionary unknown" in ran.err
    found = document(run(*options, "--name", "unknown", "--unit", "activation", "--json"))
    assert found["changes"][0]["label"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-f", 1, "-s", 2, "--clamp", "--ablate"], "--clamp and --ablate are two changes"),
        (["-f", 1], "how strong? Give --strength, or --kl"),
        (["-f", 1, "-f", 1, "-s", 2], "a feature is named twice: 1, 1"),
        (["-f", 1, "-f", 2, "-s", 1, "-s", 2, "-s", 3], "2 features and 3 strengths"),
        (["-f", 1, "--ablate", "-s", 2], "--ablate removes features, so that there is no strength"),
        (["-f", 1, "--ablate", "--kl", 2], "--ablate removes features"),
        (["-f", 1, "-s", 2, "--unit", "sigma"], "--unit is max_activation or activation, not 'sigma'"),
        (["-f", 1, "-s", 2, "--positions", "last"], "--positions is all, prompt, generated, not 'last'"),
        (["-f", 64, "-s", 2, "--unit", "activation"], "feature 64 is out of range"),
        (["-f", 1, "-s", "nan", "--unit", "activation"], "a strength is a finite number"),
        (["-f", 1, "-s", 1e30, "--unit", "activation"], "choose a smaller strength"),
        (["-f", 1, "-s", 2, "--unit", "activation", "--kl", -1], "the wanted KL is above 0"),
        (["-f", 1, "-s", 2, "--unit", "activation", "--top-p", 2], "top_p is a share"),
        (["-f", 1, "-s", 2, "--unit", "activation", "--max-new-tokens", 90], "90 are to follow, more than the 32"),
        (["-f", 1, "-s", 2, "--unit", "activation", "-p", "x = 1\n" * 30], "reads at most 32"),
        (["-f", 1, "-s", 2, "--unit", "activation", "--hook-point", "nowhere"], "nowhere"),
        (["-f", 1, "-s", 2, "--store", "no.db"], "no.db"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(run, trained, options, words):
    ran = run(trained, *SHORT, "-p", PROMPTS[0], *options)
    assert ran.code == 2, ran.out
    assert words in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""


def test_a_feature_that_never_fired_has_no_unit(run, trained, analysed, alive, tmp_path):
    feature = next(iter(alive))
    copied = tmp_path / "copied.db"
    copied.write_bytes(analysed.read_bytes())
    with closing(sqlite3.connect(copied)) as connection:
        connection.execute("update feature set max_activation = 0 where feature_index = ?", (feature,))
        connection.commit()
    options = [trained, "-f", feature, "-s", 2, "-p", PROMPTS[0], "--store", copied, *SHORT]
    ran = run(*options)
    assert ran.code == 2
    assert f"feature {feature} of small never fired" in ran.err
    assert run(*options, "--unit", "activation").code == 0
