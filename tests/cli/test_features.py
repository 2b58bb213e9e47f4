"""The list of features, against the records that the store was made from."""

from __future__ import annotations

import json
import re

import pytest

ALL = [7, 6, 5, 4, 3, 2, 1, 0]  # by density, as the store was made


def listed(ran) -> list[int]:
    assert ran.code == 0, ran.err
    return [int(found) for found in re.findall(r"^ +(\d+) +\d", ran.out, re.MULTILINE)]


def document(ran) -> dict:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_the_table_and_how_many_there_are(cli, looked_at):
    ran = cli("features", "tiny", "--store", looked_at, "--limit", "5")
    assert listed(ran) == ALL[:5]
    row = next(line for line in ran.out.splitlines() if "5th" in line)
    assert row.split() == ["5", "7.81", "%", "7.5", "the", "token", "“5th”", "62.5", "%", "10×"]
    assert "5 of 8 features" in ran.out


@pytest.mark.parametrize("sort", ["density", "logit_kurtosis", "lift", "index", "first_firing", "encoder_norm"])
@pytest.mark.parametrize("direction", [[], ["--ascending"]])
def test_pages_go_on_where_the_cursor_says(cli, looked_at, sort, direction):
    options = ["features", "tiny", "--store", looked_at, "--sort", sort, *direction, "--limit"]
    whole = document(cli(*options, "100", "--json"))
    assert whole["next"] is None
    in_one = [feature["index"] for feature in whole["features"]]
    assert sorted(in_one) == sorted(ALL)
    seen, more = [], []
    for _ in range(3):
        ran = cli(*options, "3", *more)
        seen += listed(ran)
        assert ("next: --after " in ran.out) == (len(seen) < 8)
        more = re.findall(r"next: (--after) (\S+)", ran.out)[0] if len(seen) < 8 else []
    assert seen == in_one
    ran = cli(*options, "3", "--after", "nonsense")
    assert (ran.code, ran.err.count("\n")) == (2, 1)


def test_a_cursor_of_another_order_is_refused(cli, looked_at):
    ran = cli("features", "tiny", "--store", looked_at, "--limit", "3")
    cursor = re.findall(r"--after (\S+)", ran.out)[0]
    ran = cli("features", "tiny", "--store", looked_at, "--sort", "lift", "--after", cursor)
    assert ran.code == 2
    assert "sorted by density" in ran.err


def test_the_sort_column_and_those_filtered_by_are_shown(cli, looked_at):
    options = ["--sort", "logit_kurtosis", "--where", "num_windows>=20", "--where", "recall>=0"]
    ran = cli("features", "tiny", "--store", looked_at, *options)
    header = next(line for line in ran.out.splitlines() if "feature" in line)
    assert re.split(r"\s{2,}", header.strip()) == [
        "feature", "density", "max", "logit kurtosis", "windows", "label", "precision", "recall", "lift",
    ]  # fmt: skip
    row = next(line for line in ran.out.splitlines() if "3th" in line)
    assert row.split()[:6] == ["3", "4.69", "%", "4.5", "10", "30"]  # kurtosis 3 + 15 mod 8


def test_json_has_the_numbers_as_they_are(cli, looked_at):
    found = document(cli("features", "tiny", "--store", looked_at, "--where", "index=3", "--json"))
    assert {key: found[key] for key in found if key != "features"} == {
        "dictionary": "tiny", "analysis": "default", "sort": "density", "descending": True, "num_fitting": 1, "next": None,
    }  # fmt: skip
    (feature,) = found["features"]
    assert (feature["density"], feature["mean_positive"], feature["encoder_norm"]) == (3 / 64, 1.0, None)
    assert feature["label"] == {
        "text": "the token “3th”", "kind": "tokens", "precision": 0.375, "recall": 0.1875, "lift": 6.0, "num_firings": 120,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--where", "density>=0.0625"], [7, 6, 5, 4]),
        (["--where", "density>0.0625"], [7, 6, 5]),
        (["--where", "3.125%<=density<6.25%"], [3, 2]),
        (["--min-density", "0.0625"], [7, 6, 5, 4]),
        (["--max-density", "0.03125", "--where", "density>0"], [2, 1]),
        (["--where", "precision>=0"], [5, 3, 1]),
        (["--where", "num_firings<200"], [1, 0]),
        (["--dead"], [0]),
        (["--search", "receivers"], [3]),
        (["--search", "5th"], [5]),
        (["--tag", "syntax"], [5, 3]),
        (["--tag", "syntax", "--where", "lift<10"], [3]),
        (["--bookmarked"], [5]),
        (["--analysis", "early"], [3, 2]),
    ],
)
def test_filters(cli, looked_at, options, expected):
    found = document(cli("features", "tiny", "--store", looked_at, "--json", *options))
    assert [feature["index"] for feature in found["features"]] == expected
    assert found["num_fitting"] == len(expected)


def test_nothing_fits(cli, looked_at):
    ran = cli("features", "tiny", "--store", looked_at, "--search", "nosuchword")
    assert ran.code == 0
    assert "no feature of tiny fits; loosen the filters" in ran.out
    found = document(cli("features", "tiny", "--store", looked_at, "--search", "nosuchword", "--json"))
    assert (found["features"], found["num_fitting"], found["next"]) == ([], 0, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sort", "densty"], ["densty", "density"]),
        (["--where", "densty>1"], ["'densty>1'", "did you mean density?"]),
        (["--where", "density"], ["'density' cannot be read", "density>=0.001"]),
        (["--where", "density>=0.5", "--max-density", "0.1"], ["no feature can have density"]),
        (["--analysis", "late"], ["late", "early"]),
        (["--search", "!?"], ["!?", "word"]),
    ],
)
def test_a_mistake_is_one_clear_line(cli, looked_at, options, words):
    ran = cli("features", "tiny", "--store", looked_at, *options)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("saescope: ")
    assert ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err


def test_which_dictionary_must_be_said_where_there_are_two(cli, looked_at):
    ran = cli("features", "--store", looked_at)
    assert ran.code == 2
    assert "tiny" in ran.err
    assert "other" in ran.err
    assert document(cli("features", "other", "--store", looked_at, "--json"))["num_fitting"] == 1
