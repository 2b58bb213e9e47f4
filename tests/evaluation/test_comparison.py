"""Winners and seed noise on tables whose answer is known, and the paragraph that says it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby
from math import sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.evaluation.reporting.comparison import as_rows, compare, compare_in
from saescope.evaluation.reporting.report import EvaluatedDictionary, EvaluationReport
from saescope.evaluation.reporting.summary import headlines, paragraph, summarise, title
from saescope.evaluation.results import Number, StudyResult

Row = tuple[str, str, int | None, float | None]
"""architecture, sparsity, seed, value"""


def report_of(rows: Sequence[Row], better: Any = "higher", name: str = "score", **more: Any) -> EvaluationReport:
    """A dictionary for each row, with one number."""
    return EvaluationReport(
        dictionaries=tuple(
            EvaluatedDictionary(
                name=f"d{i}", architecture=architecture, d_sae=64, seed=seed, sparsity=sparsity,
                studies={
                    "core": StudyResult(
                        study="core",
                        numbers=(Number.of(name, value, better=better, reason="it could not be measured"),),
                    )
                },
            )
            for i, (architecture, sparsity, seed, value) in enumerate(rows)
        ),
        **more,
    )  # fmt: skip


def table(values: dict[tuple[str, str], Sequence[float]]) -> list[Row]:
    return [(a, s, seed, value) for (a, s), own in values.items() for seed, value in enumerate(own)]


CLEAR = {
    ("topk", "k = 8"): (0.80, 0.82), ("relu", "k = 8"): (0.50, 0.48), ("topk", "k = 32"): (0.90, 0.91),
    ("relu", "k = 32"): (0.70, 0.71),
}  # fmt: skip


def test_a_clear_winner() -> None:
    found = compare_in(report_of(table(CLEAR)), "core.score")
    spread = sqrt((2 * 0.01**2 + 2 * 0.01**2 + 2 * 0.005**2 + 2 * 0.005**2) / 4)
    assert found.seed_spread == pytest.approx(spread)
    assert found.num_spread_groups == 4
    best = found.overall
    assert (best.verdict, best.leader, best.runner_up, best.close) == ("winner", "topk", "relu", ())
    assert best.settings == ("k = 8", "k = 32")
    assert best.means == pytest.approx({"topk": 0.8575, "relu": 0.5975})
    assert best.difference == pytest.approx(0.26)
    # each mean is over two settings of two seeds: its variance is spread^2 / 4
    assert best.standard_error == pytest.approx(spread * sqrt(2 / 4))
    assert [(at.settings, at.leader, at.verdict) for at in found.by_setting] == [
        (("k = 8",), "topk", "winner"),
        (("k = 32",), "topk", "winner"),
    ]
    assert found.by_setting[0].standard_error == pytest.approx(spread * sqrt(1 / 2 + 1 / 2))


def test_where_less_is_better_the_lower_wins() -> None:
    found = compare_in(report_of(table(CLEAR), better="lower"), "core.score")
    assert (found.overall.verdict, found.overall.leader, found.overall.runner_up) == ("winner", "relu", "topk")


def test_a_tie_within_noise_has_no_winner() -> None:
    rows = table({("a", "k = 8"): (0.80, 0.90), ("b", "k = 8"): (0.81, 0.88), ("c", "k = 8"): (0.20, 0.21)})
    best = compare_in(report_of(rows), "core.score").overall
    assert (best.verdict, best.leader, best.close) == ("noise", "a", ("b",))
    words = paragraph(report_of(rows))
    assert "Within seed noise, so that nothing is best: a leads b in score (core)." in words
    assert "is best in" not in words


def test_two_standard_errors_are_the_border() -> None:
    # spread 1, two seeds each: standard error 1, border 2
    spread = {("a", "k"): (-sqrt(0.5), sqrt(0.5))}
    for difference, verdict in [(1.99, "noise"), (2.01, "winner")]:
        rows = table({**spread, ("b", "k"): (difference - sqrt(0.5), difference + sqrt(0.5))})
        found = compare_in(report_of(rows), "core.score")
        assert found.seed_spread == pytest.approx(1)
        assert found.overall.standard_error == pytest.approx(1)
        assert (found.overall.verdict, found.overall.leader) == (verdict, "b")


def test_nothing_wins_on_one_seed() -> None:
    alone = report_of([("a", "k = 8", 0, 0.9), ("b", "k = 8", 0, 0.1)])
    best = compare_in(alone, "core.score").overall
    assert (best.verdict, best.leader, best.standard_error) == ("one seed", "a", None)
    assert "On a single seed, which makes no winner, a leads in score (core)." in paragraph(alone)
    # nor where others have two, whose spread is known
    rows = [("a", "k = 8", 0, 0.9), ("b", "k = 8", 0, 0.10), ("b", "k = 8", 1, 0.11)]
    assert compare_in(report_of(rows), "core.score").overall.verdict == "one seed"
    # but one seed can be beaten by two
    rows = [("a", "k = 8", 0, 0.05), ("b", "k = 8", 0, 0.10), ("b", "k = 8", 1, 0.11)]
    found = compare_in(report_of(rows), "core.score")
    assert (found.overall.verdict, found.overall.leader) == ("winner", "b")
    assert found.overall.standard_error == pytest.approx(found.seed_spread * sqrt(1 + 1 / 2))


@pytest.mark.parametrize("seed", [None, 7])
def test_the_same_or_an_unknown_seed_is_no_repeat(seed: int | None) -> None:
    rows = [("a", "k", seed, 0.9), ("a", "k", seed, 0.7), ("b", "k", seed, 0.1), ("b", "k", seed, 0.2)]
    found = compare_in(report_of(rows), "core.score")
    assert found.seed_spread is None
    assert found.overall.verdict == "one seed"
    assert [(g.architecture, g.num_seeds, g.mean) for g in found.groups] == [
        ("a", 1, pytest.approx(0.8)),
        ("b", 1, pytest.approx(0.15)),
    ]


def test_missing_values_are_said_and_left_out() -> None:
    rows = [*table(CLEAR), ("gated", "k = 8", 0, None), ("gated", "k = 8", 1, 0.99)]
    found = compare_in(report_of(rows), "core.score")
    assert found.missing == {"d8": "it could not be measured"}
    # gated has no k = 32: the mean over what all share is that of k = 8
    assert found.overall.settings == ("k = 8",)
    assert (found.overall.leader, found.overall.verdict) == ("gated", "one seed")
    assert found.by_setting[1].leader == "topk"
    assert "Without a value, for the reasons in the table: score (core) in 1 of 10." in paragraph(report_of(rows))


def test_an_architecture_at_a_sparsity_of_its_own_is_left_out() -> None:
    rows = [*table(CLEAR), ("gated", "l1 = 5", 0, 2.0), ("gated", "l1 = 5", 1, 2.0)]
    found = compare_in(report_of(rows), "core.score")
    assert found.overall.settings == ("k = 8", "k = 32")
    assert set(found.overall.means) == {"topk", "relu"}
    assert found.by_setting[-1].verdict == "alone"


def test_no_shared_sparsity_no_winner() -> None:
    rows = table({("a", "k = 1"): (1.0, 1.1), ("b", "k = 2"): (5.0, 5.1)})
    found = compare_in(report_of(rows), "core.score")
    assert found.overall.verdict == "alone"
    assert "is best" not in paragraph(report_of(rows))


def test_numbers_without_a_direction_have_no_winner() -> None:
    report = report_of(table(CLEAR), better="")
    assert compare_in(report, "core.score").overall.verdict == "no direction"
    assert "score" not in paragraph(report)


@pytest.mark.parametrize("key", ["core.score", "core."])
def test_an_unreliable_number_is_not_ranked(key: str) -> None:
    report = report_of(table(CLEAR), unreliable={key: "unreliable: a random dictionary ranks above the truth."})
    found = compare_in(report, "core.score")
    assert found.overall.verdict == "unreliable"
    assert all(at.verdict == "unreliable" for at in found.by_setting)
    words = paragraph(report)
    assert "Unreliable here, and not ranked: score (core): a random dictionary ranks above the truth." in words
    assert "is best" not in words


def test_exact_repeats_leave_no_noise() -> None:
    rows = table({("a", "k"): (3.0, 3.0), ("b", "k"): (4.0, 4.0)})
    assert compare_in(report_of(rows), "core.score").overall.verdict == "winner"
    same = table({("a", "k"): (0.1 + 0.2, 0.3), ("b", "k"): (0.3, 0.1 + 0.2)})  # equal but for rounding
    assert compare_in(report_of(same), "core.score").overall.verdict == "noise"
    # what is the same for all is a baseline, and no sentence
    assert "score" not in paragraph(report_of(table({("a", "k"): (3.0, 3.0), ("b", "k"): (3.0, 3.0)})))


finite = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["k = 1", "k = 2"])), st.lists(finite, min_size=1, max_size=4),
        min_size=1,
    ),
    st.sampled_from(["higher", "lower"]),
)  # fmt: skip
def test_against_plain_loops(values: dict[tuple[str, str], list[float]], better: str) -> None:
    found = compare_in(report_of(table(values), better=better), "core.score")
    repeated = [own for own in values.values() if len(own) > 1]
    freedom = sum(len(own) - 1 for own in repeated)
    spread = sqrt(sum((len(own) - 1) * statistics.variance(own) for own in repeated) / freedom) if freedom else None
    assert found.seed_spread == (None if spread is None else pytest.approx(spread, abs=1e-9))
    for contest in found.by_setting:
        (setting,) = contest.settings
        means = {a: statistics.fmean(own) for (a, s), own in values.items() if s == setting}
        assert contest.means == pytest.approx(means)
        if len(means) < 2:
            assert contest.verdict == "alone"
            continue
        best = (max if better == "higher" else min)(means.values())
        assert means[contest.leader] == pytest.approx(best, abs=1e-9)
        seeds = len(values[contest.leader, setting])
        if seeds == 1:
            assert contest.verdict == "one seed"
            continue
        second = sorted(means.values(), reverse=better == "higher")[1]
        error = spread * sqrt(1 / seeds + 1 / len(values[contest.runner_up, setting]))
        assert contest.difference == pytest.approx(abs(best - second), abs=1e-9)
        assert contest.standard_error == pytest.approx(error, abs=1e-9)
        if abs(contest.difference - 2 * error) > 1e-9:
            assert contest.verdict == ("winner" if contest.difference > 2 * error else "noise")
    shared = found.overall
    if len(shared.means) > 1:
        for architecture, mean in shared.means.items():
            own = [statistics.fmean(values[architecture, s]) for s in shared.settings]
            assert mean == pytest.approx(statistics.fmean(own), abs=1e-9)


def test_as_rows_are_plain() -> None:
    import json

    (row,) = as_rows(compare(report_of(table(CLEAR))))
    assert json.loads(json.dumps(row, allow_nan=False))["overall"]["leader"] == "topk"
    assert row["study"] == "core"
    assert len(row["groups"]) == 4


def many(**more: Any) -> EvaluationReport:
    """Two architectures, two sparsities, two seeds; several numbers in two studies, of which one failed once."""
    dictionaries = []
    for architecture, sign in (("topk", 1), ("relu", -1)):
        for k in (8, 32):
            for seed in (0, 1):
                jitter = 0.001 * (2 * seed - 1)
                core = {
                    "explained_variance": (0.8 + 0.05 * sign + jitter, "higher"), "mse": (3 - sign + jitter, "lower"),
                    "cosine": (0.5 - 0.1 * sign + jitter, "higher"), "l0": (k if sign > 0 else 1.5 * k, ""),
                    # topk is better at k = 8, relu by more at k = 32
                    "kl": (1 + (0.1 * sign if k == 32 else -0.05 * sign) + jitter, "lower"),
                }  # fmt: skip
                numbers = tuple(Number(name=n, value=v, better=b) for n, (v, b) in core.items())  # type: ignore[arg-type]
                probing = StudyResult(
                    study="probing", numbers=(Number(name="f1_k1", value=0.5 + jitter, better="higher"),)
                )
                if (architecture, k, seed) == ("relu", 8, 1):
                    probing = StudyResult.failed("probing", RuntimeError("out of memory"))
                dictionaries.append(
                    EvaluatedDictionary(
                        name=f"{architecture}-{k}-{seed}", architecture=architecture, d_sae=64, seed=seed,
                        sparsity=f"k = {k}",
                        studies={"core": StudyResult(study="core", numbers=numbers), "probing": probing},
                    )
                )  # fmt: skip
    return EvaluationReport(dictionaries=tuple(dictionaries), **more)


def test_the_paragraph_of_many() -> None:
    words = paragraph(many(advice="Recommended L0: 4 to 8"))
    for sentence in (
        "8 dictionaries were evaluated: 2 architectures (relu, topk), at 2 sparsities (k = 8, k = 32), 2 seeds.",
        "The measured L0 is not quite matched: at k = 8 it is 8 for topk and 12 for relu; "
        "at k = 32 it is 32 for topk and 48 for relu.",
        "On the mean over the sparsities, relu is best in cosine and KL (core); "
        "topk is best in explained variance and MSE (core).",
        "Within seed noise, so that nothing is best: topk leads relu in F1 k1 (probing).",
        "Not so at every sparsity: at k = 8, topk is best in KL (core).",
        "Failed: the study probing of relu-8-1 (RuntimeError: out of memory).",
        "Recommended L0: 4 to 8.",
        "Seed noise reaches as far as two standard errors",
    ):
        assert sentence in words, words
    assert "Without a value" not in words  # the failure says it already


def test_very_many_numbers_are_counted() -> None:
    report = many()
    extra = tuple(Number(name=f"n{i}", value=float(i), better="higher") for i in range(30))
    wide = [
        EvaluatedDictionary(
            **{
                **vars(d),
                "studies": {**d.studies, "wide": StudyResult(study="wide", numbers=tuple(
                    Number(name=n.name, value=n.value + (d.architecture == "topk") + 0.01 * (d.seed or 0), better="higher")
                    for n in extra
                ))},
            }
        )
        for d in report.dictionaries
    ]  # fmt: skip
    words = paragraph(EvaluationReport(dictionaries=tuple(wide)))
    assert "n0, n1, n2 and n3 (wide)" in words
    assert "n4" not in words
    assert "Of all 35 numbers, topk is best in 32, relu is best in 2, 1 within seed noise." in words


def test_the_recommended_l0_comes_from_the_study_where_no_advice_was_given() -> None:
    row = {"l0": 9.0, "low": 10.2, "high": 12.04, "verdict": "too low"}
    (plain,) = report_of([("topk", "k = 8", 0, 0.5)]).dictionaries
    for rows, expected in [([row], True), ([{**row, "low": None, "high": None}], False)]:
        study = StudyResult(study="l0", tables={"advice": rows})
        report = EvaluationReport(
            dictionaries=(EvaluatedDictionary(**{**vars(plain), "studies": {**plain.studies, "l0": study}}),)
        )
        assert ("The recommended L0 is 10.2 to 12." in paragraph(report)) is expected
    assert "recommended" not in paragraph(report_of([("topk", "k = 8", 0, 0.5)]))


def test_one_dictionary() -> None:
    words = paragraph(report_of([("topk", "k = 8", 0, 0.5)]))
    assert words == "One dictionary was evaluated: d0 (topk at k = 8)."


def test_titles_and_headlines() -> None:
    assert title("core.ce_loss_recovered") == "CE loss recovered"
    assert title("probing.f1_features_k1") == "F1 features k1"
    assert headlines(many()) == ["core.explained_variance", "core.l0", "probing.f1_k1"]
    # a first number without any value does not stand for its study
    numbers = (Number(name="x", value=None, reason="no", better="higher"), Number(name="y", value=1.0, better="higher"))
    (d,) = report_of([("topk", "k", 0, 1.0)]).dictionaries
    studied = EvaluatedDictionary(**{**vars(d), "studies": {"odd": StudyResult(study="odd", numbers=numbers)}})
    assert headlines(EvaluationReport(dictionaries=(studied,))) == ["odd.y"]


def test_the_summary_has_all_that_pages_need() -> None:
    report = many(unreliable={"probing.": "not checked"})
    found = summarise(report)
    assert set(found["targets"]) == {d.name for d in report.dictionaries}
    assert found["unreliable"] == {"probing.f1_k1": "not checked"}
    assert list(found["titles"]) == report.metrics()
    assert found["paragraph"] == paragraph(report)
    assert [row["key"] for row in found["comparison"]] == report.metrics()


def test_sizes_are_never_mixed() -> None:
    rows = table({("a", "k = 8"): (1.0, 1.1), ("b", "k = 8"): (2.0, 2.1)})
    made = report_of(rows).dictionaries
    mixed = [EvaluatedDictionary(**{**vars(d), "d_sae": 64 if d.architecture == "a" else 128}) for d in made]
    found = compare_in(EvaluationReport(dictionaries=tuple(mixed)), "core.score")
    assert [key for key, _ in groupby(g.setting for g in found.groups)] == ["k = 8, d_sae = 64", "k = 8, d_sae = 128"]
    assert found.overall.verdict == "alone"
