"""A feature and a dictionary on the screen, and their JSON, from a store made of records."""

from __future__ import annotations

import json
import re

import pytest

from saescope.store import Store
from saescope.web.numbers import decimal, percent, whole
from saescope.web.page_json import page_as_json


def shown(ran) -> str:
    """What was printed, with single spaces."""
    assert ran.code == 0, ran.err
    return "\n".join(" ".join(line.split()) for line in ran.out.splitlines())


def test_the_json_is_that_of_the_page(cli, looked_at):
    ran = cli("show", "feature", "tiny", 3, "--store", looked_at, "--json")
    assert ran.code == 0, ran.err
    with Store.open(looked_at) as store:
        page = store.page("tiny", 3)
    document = json.loads(ran.out)
    assert document == json.loads(json.dumps(page_as_json(page)))
    assert document["feature"]["mean_positive"] == 1.0
    assert document["examples"][0]["values"] == [4.5, 0.75]
    assert [note["text"] for note in document["notes"]] == ["compare with 5"]


def test_the_screen_and_the_json_say_the_same(cli, looked_at):
    """Every number that the screen shows is written here from the JSON, and looked for in its place."""
    options = ["show", "feature", "tiny", 3, "--store", looked_at]
    document = json.loads(cli(*options, "--json").out)
    text = shown(cli(*options))
    feature, detail = document["feature"], document["detail"]
    label, bands = feature["label"], detail["bands"]
    expected = [
        f"feature {feature['index']} of {document['dictionary']['name']}",
        label["text"],
        f"precision {percent(label['precision'])}, recall {percent(label['recall'])}, lift {decimal(label['lift'])}×, "
        f"on {whole(label['num_firings'])} held-out firings",
        f"density {percent(feature['density'])} ({whole(feature['num_firings'])} firings)",
        f"max {decimal(feature['max_activation'])} mean {decimal(feature['mean_positive'])} "
        f"median {decimal(feature['median_positive'])} windows it fires in {whole(feature['num_windows'])}",
        f"first firing, token {whole(feature['first_firing'])} last firing, token {whole(feature['last_firing'])}",
        f"on special tokens {percent(feature['special_share'])}",
        f"mean over all tokens {decimal(feature['mean_activation'])}",
        f"std over all tokens {decimal(feature['std_activation'])}",
        f"kurtosis of logit effects {decimal(feature['logit_kurtosis'])}",
        f"highest {max(detail['histogram']['counts'])}",
        f"highest {max(detail['logit_histogram']['counts'])}",
        f"highest {max(detail['positions'])}",
        *(f"{token['text'].replace(' ', '·')} {decimal(token['logit'], 3, trim=False)}"
          for token in detail["top_logits"] + detail["bottom_logits"]),
        *(f"{other['feature']} {decimal(other['value'], 3, trim=False)}" for other in detail["neighbours"]["decoder"]),
        *(f"{other['feature']} {decimal(other['value'], 3, trim=False)} {other['num_both']}"
          for other in detail["neighbours"]["firing"]),
        *(f"{percent(band['share'])} of firings ({whole(band['num_tokens'])}), peak of {whole(band['num_windows'])} windows"
          for band in bands if band["kind"] == "quantile"),
        *(f"{decimal(example['activation'], 3, trim=False)} " for example in document["examples"]),
    ]  # fmt: skip
    flat = " ".join(text.split()).replace("\u00a0", " ")
    for words in expected:
        assert " ".join(words.replace("\u00a0", " ").split()) in flat, words
    ends = detail["histogram"]["edges"]
    bars = [line for line in text.splitlines() if line.startswith("activations")]
    assert re.fullmatch(rf"activations {decimal(ends[0])} [▁-█ ]+ {decimal(ends[-1])} log counts, highest 200", bars[0])


def test_neighbours_have_their_labels(cli, looked_at):
    text = shown(cli("show", "feature", "tiny", 3, "--store", looked_at))
    assert "5 0.875 the token “5th”" in text
    assert "1 0.375 77 the token “1th”" in text
    assert "4 0.250\n" in text  # it has none


def test_contexts_bands_and_silent_windows(cli, looked_at):
    text = shown(cli("show", "feature", "tiny", 3, "--store", looked_at))
    lines = text.splitlines()
    assert "4.50 def first(«self», n0↵ 3 copies" in lines
    assert "2.50 a«漢»b" in lines
    assert "0.625 def first(self, n«1»↵" in lines
    assert lines[lines.index("near misses: it is silent, and its nearest neighbour fires at the mark") + 1] == (
        "0.00 def« first»(self, n2↵"
    )
    assert (
        lines[lines.index("silent: drawn from all windows in which it does not fire") + 1] == "0.00 def first(self, n3↵"
    )
    assert "names of receivers explained by detection, judge, score 0.812" in lines
    assert "tags syntax" in lines
    assert any(line.startswith("compare with 5 Ann") for line in lines)


def test_one_band_alone(cli, looked_at):
    options = ["show", "feature", "tiny", 3, "--store", looked_at, "--band"]
    alone = shown(cli(*options, "quantile:1"))
    assert alone.count("«") == 2
    assert "2 and above" in alone
    assert "where it fires most" not in alone
    by_width = shown(cli(*options, "width"))
    assert "width 0 0 and above" in by_width
    assert "quantile 0" not in by_width
    assert "at every strength" not in shown(cli(*options, "none"))
    for wrong, words in (
        ("quantile:2", "quantile:0, quantile:1"),
        ("third", "quantile, width, none"),
        ("width:x", "'width:x'"),
    ):
        ran = cli(*options, wrong)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert words in ran.err


def test_how_many_examples_and_how_much_of_them(cli, looked_at):
    options = ["show", "feature", "tiny", 3, "--store", looked_at, "--band", "none"]
    assert "«" not in cli(*options, "--examples", 0).out
    assert cli(*options, "--examples", 1).out.count("«") == 2  # and one near miss
    text = shown(cli(*options, "--before", 1, "--after", 0))
    assert "4.50 …(«self»… 3 copies" in text


def test_the_link_to_the_page(cli, looked_at, monkeypatch):
    options = ["show", "feature", "tiny", 3, "--store", looked_at]
    assert "page:" not in cli(*options).out
    assert shown(cli(*options, "--link", "http://host:8000/")).endswith("page: http://host:8000/tiny/f/3")
    monkeypatch.setenv("SAESCOPE_PAGES", "https://pages")
    assert shown(cli(*options)).endswith("page: https://pages/tiny/f/3")
    assert shown(cli(*options, "--link", "http://other")).endswith("page: http://other/tiny/f/3")


def test_a_name_in_a_link_is_quoted(cli, looked_at, tmp_path):
    with Store.open(tmp_path / "renamed.db") as store:
        store.take(looked_at, names=["tiny"], rename={"tiny": "runs/a b"})
    ran = cli("show", "feature", "runs/a b", 3, "--store", tmp_path / "renamed.db", "--link", "http://h")
    assert "page: http://h/runs%2Fa%20b/f/3" in ran.out


def test_an_earlier_analysis(cli, looked_at):
    document = json.loads(cli("show", "feature", "tiny", 3, "--store", looked_at, "--analysis", "early", "--json").out)
    assert document["analysis"]["name"] == "early"
    assert document["examples"] == []


def test_a_feature_that_never_fired(cli, looked_at):
    assert "it never fired" in shown(cli("show", "feature", "tiny", 0, "--store", looked_at))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", 8], ["0 to 7", "no feature 8"]),
        (["tny", 3], ["'tny'", "'tiny'"]),
        (["tiny", 5, "--analysis", "early"], ["feature 5", "not analysed"]),
    ],
)
def test_what_is_not_there_is_one_clear_line(cli, looked_at, arguments, words):
    ran = cli("show", "feature", *arguments, "--store", looked_at)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    for word in words:
        assert word in ran.err


def test_the_dictionary_at_a_glance_and_its_json(cli, looked_at):
    options = ["show", "dictionary", "tiny", "--store", looked_at]
    document = json.loads(cli(*options, "--json").out)
    assert (document["num_features"], document["num_dead"], document["num_dense"]) == (8, 1, 1)  # 7 of 64 tokens
    assert (document["num_labelled"], document["num_explained"]) == (3, 1)
    assert sum(document["log_density"]["counts"]) == 7
    lines = shown(cli(*options)).splitlines()
    for line in (
        "tiny",
        "model gpt-tiny",
        "hook point transformer.h.1.output",
        "architecture topk",
        "features 8, of activations of width 4",
        "text stdlib: 6,400 tokens, 8 to a window",
        "analysed 8",
        "dead 1 (12.5 %)",
        "dense 1 (12.5 %), on more than a tenth of the tokens",
        "labelled 3 (37.5 %)",
        "explained 1 (12.5 %)",
        "least 5 % 25 % median 75 % 95 % most",
        "density 1.6 % 2 % 3.9 % 6.2 % 8.6 % 10 % 11 %",
        " ".join(["max", *(decimal(value, 3) for _, value in document["max_quantiles"])]),
        "reconstruction explained variance 0.8765 0.86 to 0.89",
    ):
        assert line in [shown_line.replace("\u00a0", " ") for shown_line in lines], line
    quantiles = dict(document["density_quantiles"])
    assert (quantiles[0.0], quantiles[0.5], quantiles[1.0]) == (1 / 64, 4 / 64, 7 / 64)
    assert dict(document["max_quantiles"])[0.75] == 8.25  # between 7.5 and 9
    ends = [10 ** document["log_density"]["edges"][end] for end in (0, -1)]
    highest = max(document["log_density"]["counts"])
    bars = [line for line in lines if "log scale" in line]
    assert re.fullmatch(
        rf"density {decimal(ends[0], 2)} \S+ {decimal(ends[1], 2)} log scale, highest {highest}", bars[0]
    )


def test_an_analysis_of_few_features_at_a_glance(cli, looked_at):
    lines = shown(cli("show", "dictionary", "tiny", "--store", looked_at, "--analysis", "early")).splitlines()
    assert "analysed 2" in lines
    assert any(line.startswith("analysis early") for line in lines)
