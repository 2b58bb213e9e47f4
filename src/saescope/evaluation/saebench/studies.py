"""Our studies in SAEBench's files: which of its keys each evaluation has, filled by name.

A study whose numbers follow SAEBench's definitions gives them SAEBench's names, and those are taken. Where it has a number
of the same meaning under a name of its own (its sparse probes split by document, SAEBench's do not), that stands there,
with what it is. Keys that the study does not have, or that have no value, are null, with the reason beside them. Numbers
that SAEBench has no key for stay in the study's own report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saescope.evaluation.results import StudyResult
from saescope.evaluation.saebench.files import saebench_json

_WIDTHS = (1, 2, 5, 10, 20, 50, 100)  # of sparse probes
_THRESHOLDS = (2, 5, 10, 20, 50, 100, 500)  # numbers of ablated features


@dataclass(frozen=True, kw_only=True)
class SaeBenchForm:
    """The keys of one of SAEBench's evaluations."""

    eval_type_id: str
    categories: Mapping[str, tuple[str, ...]]
    row_name: str = ""  # the key that says which dataset or letter a row of details is about; "": no details
    row_keys: tuple[str, ...] = ()
    ours: Mapping[str, str] = field(default_factory=dict)  # key -> what our studies call it, if not that

    def take(self, values: Mapping[str, Any], key: str) -> Any:
        """What is there under the key's name, or under ours; None where neither is."""
        return values.get(key, values.get(self.ours.get(key, key)))


def _probing() -> SaeBenchForm:
    llm = ("llm_test_accuracy", *(f"llm_top_{k}_test_accuracy" for k in _WIDTHS))
    sae = ("sae_test_accuracy", *(f"sae_top_{k}_test_accuracy" for k in _WIDTHS))
    return SaeBenchForm(
        eval_type_id="sparse_probing",
        categories={"llm": llm, "sae": sae},
        row_name="dataset_name",
        row_keys=(*llm, *sae),
        ours={
            "dataset_name": "concept",
            "llm_test_accuracy": "accuracy_dense",
            "sae_test_accuracy": "accuracy_all_features",
            **{f"llm_top_{k}_test_accuracy": f"accuracy_dimensions_k{k}" for k in _WIDTHS},
            **{f"sae_top_{k}_test_accuracy": f"accuracy_features_k{k}" for k in _WIDTHS},
        },
    )


def _sae_probes() -> SaeBenchForm:
    llm = ("llm_test_accuracy", "llm_test_auc", "llm_test_f1")
    sae = ("sae_test_accuracy", *(f"sae_top_{k}_test_{what}" for k in _WIDTHS for what in ("accuracy", "auc", "f1")))
    return SaeBenchForm(
        eval_type_id="sparse_probing_sae_probes",
        categories={"llm": llm, "sae": sae},
        row_name="dataset_name",
        row_keys=(*llm, *sae),
        ours={
            "dataset_name": "concept",
            **{f"llm_test_{what}": f"{what}_dense" for what in ("accuracy", "auc", "f1")},
            "sae_test_accuracy": "accuracy_all_features",
            **{
                f"sae_top_{k}_test_{what}": f"{what}_features_k{k}"
                for k in _WIDTHS
                for what in ("accuracy", "auc", "f1")
            },
        },
    )


def _absorption() -> SaeBenchForm:
    measures = ("absorption_fraction_score", "full_absorption_score", "num_split_features")
    return SaeBenchForm(
        eval_type_id="absorption_first_letter",
        categories={"mean": tuple(f"{kind}_{measure}" for kind in ("mean", "std_dev") for measure in measures)},
        row_name="first_letter",
        row_keys=(
            "mean_absorption_fraction", "full_absorption_rate", "num_full_absorption", "num_probe_true_positives",
            "num_split_features",
        ),
        ours={
            "first_letter": "letter", "mean_absorption_fraction": "mean_absorption_fraction_score",
            "full_absorption_rate": "mean_full_absorption_score", "num_probe_true_positives": "num_true_positives",
        },
    )  # fmt: skip


def _scr() -> SaeBenchForm:
    keys = tuple(f"scr_{kind}_threshold_{n}" for n in _THRESHOLDS for kind in ("dir1", "metric", "dir2"))
    return SaeBenchForm(eval_type_id="scr", categories={"scr_metrics": keys}, row_name="dataset_name", row_keys=keys)


def _tpp() -> SaeBenchForm:
    kinds = ("total_metric", "intended_diff_only", "unintended_diff_only")
    keys = tuple(f"tpp_threshold_{n}_{kind}" for n in _THRESHOLDS for kind in kinds)
    return SaeBenchForm(eval_type_id="tpp", categories={"tpp_metrics": keys}, row_name="dataset_name", row_keys=keys)


def _meta_structure() -> SaeBenchForm:
    keys = ("decoder_fraction_variance_explained", "train_time_seconds", "final_reconstruction_mse")
    return SaeBenchForm(eval_type_id="meta_structure_decoder_variance", categories={"meta_structure": keys})


FORMS: dict[str, SaeBenchForm] = {
    form.eval_type_id: form for form in (_probing(), _sae_probes(), _absorption(), _scr(), _tpp(), _meta_structure())
}
"""By SAEBench's name of the evaluation."""


def saebench_from_study(
    study: StudyResult,
    eval_type_id: str,
    *,
    config: Mapping[str, Any],
    release: str,
    sae_id: str = "custom_sae",
    sae_cfg: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
) -> dict[str, Any]:
    """A study's numbers in SAEBench's envelope (see :func:`~saescope.evaluation.saebench.files.saebench_json`).

    Rows of the study's tables become ``eval_result_details``; one that could not be measured stands under ``skipped`` in
    ``eval_result_unstructured``, with its reason, for SAEBench has no place for it.

    Args:
        eval_type_id: one of ``FORMS``.

    Raises:
        ValueError: the study failed, has none of the evaluation's keys, or SAEBench has no such evaluation.
    """
    if eval_type_id not in FORMS:
        raise ValueError(f"studies can be written as {', '.join(FORMS)}, not as {eval_type_id!r}")
    form = FORMS[eval_type_id]
    if study.failure:
        raise ValueError(
            f"{study.study} failed ({study.failure}); SAEBench's files have no place for a failure: see the report"
        )
    numbers = {number.name: number for number in study.numbers}
    keys = [key for wanted in form.categories.values() for key in wanted]
    found = {key: form.take(numbers, key) for key in keys if form.take(numbers, key) is not None}
    if not found:
        raise ValueError(
            f"{study.study} has no number that SAEBench's {eval_type_id} has; it has {', '.join(numbers) or 'none'}"
        )
    details, skipped = _details(form, study.tables.values())
    return saebench_json(
        eval_type_id,
        {
            category: {key: found[key].value if key in found else None for key in wanted}
            for category, wanted in form.categories.items()
        },
        details,
        config=config,
        release=release,
        sae_id=sae_id,
        sae_cfg=sae_cfg,
        unstructured={
            "undefined": {key: number.reason for key, number in found.items() if number.value is None},
            "not_measured": [key for key in keys if key not in found],
            "our_names": {key: number.name for key, number in found.items() if number.name != key},
            "variants": {key: number.variant for key, number in found.items() if number.variant},
            "skipped": skipped,
            "notes": list(study.notes),
        },
        seeds=seeds,
        intervals={
            key: {"low": number.low, "high": number.high}
            for key, number in found.items()
            if number.low is not None and number.high is not None
        },
    )


def _details(
    form: SaeBenchForm, tables: Iterable[Sequence[Mapping[str, Any]]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows with SAEBench's keys, and rows that have none of their values."""
    details, skipped = [], []
    for table in tables:
        known = {name for key in form.row_keys for name in (key, form.ours.get(key, key))}
        if not form.row_name or not any(known & set(row) for row in table):
            continue
        for row in table:
            name, values = form.take(row, form.row_name), {key: form.take(row, key) for key in form.row_keys}
            if name is None:
                continue
            if row.get("reason") or all(value is None for value in values.values()):
                skipped.append(dict(row))
            else:
                details.append({form.row_name: name, **values})
    return details, skipped
