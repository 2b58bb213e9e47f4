"""A report in words: the paragraph under its table, and everything else that is derived from it.

Nothing here is written by hand for one report; the sentences follow from ``comparison.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from saescope.evaluation.reporting.comparison import RULE, MetricComparison, as_rows, compare
from saescope.evaluation.reporting.report import EvaluationReport
from saescope.evaluation.targets import target_rows

_FIRST = (
    "core.explained_variance", "core.ce_loss_recovered", "core.l0", "core.dead_share", "core.silent_share",
    "probing.f1_features_k1", "probing.f1_features_k5",
)  # fmt: skip
_ACRONYMS = {
    "l0": "L0", "l1": "L1", "l2": "L2", "ce": "CE", "kl": "KL", "mse": "MSE", "f1": "F1", "auc": "AUC", "scr": "SCR",
    "tpp": "TPP", "mcc": "MCC", "mcs": "MCS", "pw": "PW", "fvu": "FVU", "nmse": "NMSE",
}  # fmt: skip
_MANY = 24  # numbers of which a paragraph can name each
_MATCHED = 1.25  # times the lowest L0 at a sparsity; beyond it the comparison is not at matched sparsity
_MOST_DOUBTS = 6  # unreliable groups whose reasons fit into a paragraph
_LONGEST = 160  # characters of a reason inside a sentence


def summarise(report: EvaluationReport) -> dict[str, Any]:
    """What pages and terminals show beside the report itself, as plain values.

    ``paragraph`` and ``rule`` in words, ``comparison`` row by row, ``targets`` by dictionary, the keys of the
    ``headlines``, why which key is ``unreliable``, and a title for every key.
    """
    comparisons = compare(report)
    return {
        "paragraph": paragraph(report, comparisons),
        "rule": RULE,
        "headlines": headlines(report),
        "unreliable": {found.key: found.unreliable for found in comparisons if found.unreliable},
        "titles": {found.key: title(found.key) for found in comparisons},
        "comparison": as_rows(comparisons),
        "targets": {dictionary.name: target_rows(dictionary) for dictionary in report.dictionaries},
    }


def title(key: str) -> str:
    """The name of a number in words, without its study: "core.ce_loss_recovered" is "CE loss recovered"."""
    words = key.partition(".")[2].split("_")
    return " ".join(_ACRONYMS.get(word, word) for word in words)


def headlines(report: EvaluationReport, per_study: int = 1) -> list[str]:
    """The numbers that stand for a dictionary in a table: the usual ones, and the first of every other study.

    A study gives its most important numbers first; those with a better and a worse end, and a value, are taken.
    """
    keys = report.metrics()
    chosen = [key for key in _FIRST if key in keys]
    if "core.dead_share" in chosen and "core.silent_share" in chosen:
        chosen.remove("core.silent_share")  # known from training, over far more text
    for study in dict.fromkeys(key.partition(".")[0] for key in keys):
        of_study = [key for key in keys if key.partition(".")[0] == study]
        if not any(key in chosen for key in of_study):
            held = [key for key in of_study if any(d.number(key).value is not None for d in report.dictionaries)]
            directed = [key for key in held if report.better(key)]
            chosen += (directed or of_study)[:per_study]
    return chosen


def paragraph(
    report: EvaluationReport, comparisons: Sequence[MetricComparison] | None = None, *, per_study: int = 4
) -> str:
    """The outcome of an evaluation in sentences.

    It names the best architecture for each number, what is within seed noise, what is not to be ranked by, what failed
    and the recommended L0. Of a report with very many numbers the first ``per_study`` of each study are named, and the
    others counted.
    """
    comparisons = compare(report) if comparisons is None else comparisons
    directed = [found for found in comparisons if found.better and not _same_for_all(found)]
    named = directed if len(directed) <= _MANY else _first_of_each_study(directed, per_study)
    sentences = [
        _what_was_compared(report),
        *_mismatch(comparisons),
        *_winners(named),
        *_undecided(named),
        *_changes(named),
        *_counts(directed if len(named) < len(directed) else []),
        *_not_to_rank_by(comparisons),
        *_gaps(report, comparisons),
        *_recommended_l0(report),
    ]
    if any(found.overall.difference is not None for found in named):
        sentences.append("Seed noise reaches as far as two standard errors, made of the spread between seeds.")
    return " ".join(sentences)


def _same_for_all(found: MetricComparison) -> bool:
    """Whether every dictionary has the same value: a baseline says nothing about a dictionary."""
    ends = [end for group in found.groups for end in (group.low, group.high)]
    return len(found.groups) > 1 and max(ends) == min(ends)


def _what_was_compared(report: EvaluationReport) -> str:
    architectures = sorted({dictionary.architecture for dictionary in report.dictionaries})
    if len(report.dictionaries) == 1:
        (dictionary,) = report.dictionaries
        at = f" at {setting}" if (setting := report.setting_of(dictionary)) else ""
        return f"One dictionary was evaluated: {dictionary.name} ({dictionary.architecture}{at})."
    settings = [setting for setting in report.settings() if setting]
    seeds = {dictionary.seed for dictionary in report.dictionaries if dictionary.seed is not None}
    parts = [f"{len(report.dictionaries)} dictionaries were evaluated: {_counted(architectures, 'architecture')}"]
    if settings:
        parts.append(f"at {_counted(settings, 'sparsity', 'sparsities')}")
    if len(seeds) > 1:
        parts.append(f"{len(seeds)} seeds")
    return ", ".join(parts) + "."


def _mismatch(comparisons: Iterable[MetricComparison]) -> list[str]:
    """A warning where dictionaries that are to have one sparsity do not: fewer features explain less."""
    clauses = []
    for found in comparisons:
        for contest in found.by_setting if found.key == "core.l0" else ():
            ranked = sorted(contest.means, key=lambda architecture: contest.means[architecture])
            low, high = contest.means[ranked[0]], contest.means[ranked[-1]]
            if high > _MATCHED * low:
                at = contest.settings[0] or "one setting"
                clauses.append(f"at {at} it is {low:.3g} for {ranked[0]} and {high:.3g} for {ranked[-1]}")
    return [f"The measured L0 is not quite matched: {'; '.join(clauses)}."] if clauses else []


def _winners(named: Iterable[MetricComparison]) -> list[str]:
    won: dict[str, list[MetricComparison]] = {}
    for found in named:
        if found.overall.verdict == "winner":
            won.setdefault(found.overall.leader, []).append(found)
    if not won:
        return []
    over = max((len(found.overall.settings) for group in won.values() for found in group), default=1)
    clauses = [f"{architecture} is best in {_titles(group)}" for architecture, group in sorted(won.items(), key=_most)]
    return [f"{'On the mean over the sparsities, ' if over > 1 else ''}{'; '.join(clauses)}."]


def _undecided(named: Iterable[MetricComparison]) -> list[str]:
    sentences = []
    noise: dict[tuple[str, ...], list[MetricComparison]] = {}
    equal: list[MetricComparison] = []
    single: dict[str, list[MetricComparison]] = {}
    for found in named:
        if found.overall.difference == 0:
            equal.append(found)
        elif found.overall.verdict == "noise":
            noise.setdefault((found.overall.leader, *found.overall.close), []).append(found)
        elif found.overall.verdict == "one seed":
            single.setdefault(found.overall.leader, []).append(found)
    if noise:
        clauses = [f"{leader} leads {_listed(close)} in {_titles(group)}" for (leader, *close), group in noise.items()]
        sentences.append(f"Within seed noise, so that nothing is best: {'; '.join(clauses)}.")
    if equal:
        sentences.append(f"The best are equal in {_titles(equal)}.")
    if single:
        clauses = [f"{leader} leads in {_titles(group)}" for leader, group in single.items()]
        sentences.append(f"On a single seed, which makes no winner, {'; '.join(clauses)}.")
    return sentences


def _changes(named: Iterable[MetricComparison]) -> list[str]:
    """Where another architecture than the overall leader wins at one of the sparsities."""
    clauses: dict[tuple[str, str], list[MetricComparison]] = {}
    for found in named:
        for contest in found.by_setting:
            if contest.verdict == "winner" and found.overall.leader not in ("", contest.leader):
                clauses.setdefault((contest.leader, contest.settings[0]), []).append(found)
    if not clauses:
        return []
    said = [f"at {setting}, {leader} is best in {_titles(group)}" for (leader, setting), group in clauses.items()]
    return [f"Not so at every sparsity: {'; '.join(said)}."]


def _counts(directed: Sequence[MetricComparison]) -> list[str]:
    if not directed or all(found.overall.difference is None for found in directed):
        return []
    won = Counter(found.overall.leader for found in directed if found.overall.verdict == "winner")
    clauses = [f"{name} is best in {count}" for name, count in won.most_common()]
    noise = sum(found.overall.verdict == "noise" for found in directed)
    return [f"Of all {len(directed)} numbers, {', '.join([*clauses, f'{noise} within seed noise'])}."]


def _not_to_rank_by(comparisons: Iterable[MetricComparison]) -> list[str]:
    reasons: dict[str, list[MetricComparison]] = {}
    for found in comparisons:
        if found.unreliable:
            reasons.setdefault(found.unreliable, []).append(found)
    if not reasons:
        return []
    clauses = [f"{_titles(group)}: {_short(reason)}" for reason, group in reasons.items()]
    if len(clauses) > _MOST_DOUBTS:
        clauses = [f"{_titles(group, most=3)}" for group in (_of_one_study(reasons.values()))]
        return [f"Unreliable here for the reasons beside them, and not ranked: {'; '.join(clauses)}."]
    return [f"Unreliable here, and not ranked: {'; '.join(clauses)}."]


def _of_one_study(groups: Iterable[list[MetricComparison]]) -> list[list[MetricComparison]]:
    studies: dict[str, list[MetricComparison]] = {}
    for group in groups:
        for found in group:
            studies.setdefault(found.study, []).append(found)
    return list(studies.values())


def _gaps(report: EvaluationReport, comparisons: Iterable[MetricComparison]) -> list[str]:
    sentences = []
    failed: dict[tuple[str, str], list[str]] = {}
    for name, study, failure in report.failures():
        failed.setdefault((study, failure), []).append(name)
    for (study, failure), names in failed.items():
        sentences.append(f"Failed: the study {study} of {_some(names)} ({_short(failure)}).")
    studies_failed = {(name, study) for name, study, _ in report.failures()}
    gaps = []
    for found in comparisons:
        without = [name for name in found.missing if (name, found.study) not in studies_failed]
        if found.better and without:
            gaps.append(f"{title(found.key)} ({found.study}) in {len(without)} of {len(report.dictionaries)}")
    if gaps:
        more = f" and {len(gaps) - 6} more" if len(gaps) > 6 else ""
        sentences.append(f"Without a value, for the reasons in the table: {', '.join(gaps[:6])}{more}.")
    return sentences


def _recommended_l0(report: EvaluationReport) -> list[str]:
    if report.advice:
        return [report.advice if report.advice.endswith(".") else f"{report.advice}."]
    found = []
    for dictionary in report.dictionaries:
        study = dictionary.studies.get("l0")
        for row in study.tables.get("advice", []) if study else []:
            if row.get("low") is not None and row.get("high") is not None:
                found.append(f"{row['low']:.3g} to {row['high']:.3g}")
    return [f"The recommended L0 is {_listed(list(dict.fromkeys(found)))}."] if found else []


def _first_of_each_study(directed: Iterable[MetricComparison], per_study: int) -> list[MetricComparison]:
    taken: Counter[str] = Counter()
    kept = []
    for found in directed:
        taken[found.study] += 1
        if taken[found.study] <= per_study:
            kept.append(found)
    return kept


def _most(item: tuple[str, list[MetricComparison]]) -> tuple[int, str]:
    return -len(item[1]), item[0]


def _titles(group: Iterable[MetricComparison], most: int = 1000) -> str:
    """Titles with their study said once for each study."""
    by_study: dict[str, list[str]] = {}
    for found in group:
        by_study.setdefault(found.study, []).append(title(found.key))
    return ", ".join(f"{_some(titles, most)} ({study})" for study, titles in by_study.items())


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _some(names: Sequence[str], most: int = 4) -> str:
    return _listed([*names[:most], f"{len(names) - most} more"]) if len(names) > most else _listed(names)


def _counted(names: Sequence[str], one: str, many: str = "") -> str:
    word = one if len(names) == 1 else many or f"{one}s"
    return f"{len(names)} {word} ({', '.join(names)})"


def _short(reason: str) -> str:
    return reason.rstrip(".") if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1].rstrip()}…"
