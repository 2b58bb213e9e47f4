"""SAEBench's files: exactly its keys, nothing half-written, studies by name."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.saebench.files import saebench_file_name, saebench_json, write_saebench
from saescope.evaluation.saebench.studies import FORMS, saebench_from_study

ENVELOPE = [
    "eval_type_id", "eval_config", "eval_id", "datetime_epoch_millis", "eval_result_metrics", "eval_result_details",
    "sae_bench_commit_hash", "sae_lens_id", "sae_lens_release_id", "sae_lens_version", "sae_cfg_dict",
    "eval_result_unstructured",
]  # fmt: skip


def envelope(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "eval_type_id": "core", "metrics": {"sparsity": {"l0": 3.5, "l1": None}}, "details": [{"index": 0}],
        "config": {"model_name": "m"}, "release": "org/run", "sae_id": "blocks.1/x",
    }  # fmt: skip
    return saebench_json(**{**settings, **changes})


def test_the_envelope_has_saebenchs_keys_and_no_others() -> None:
    before = int(time.time() * 1000)
    found = envelope(compat=True, seeds=[1, 2], intervals={"l0": {"low": 3.0, "high": 4.0}}, unstructured={"a": 1})
    assert list(found) == ENVELOPE
    assert uuid.UUID(found["eval_id"]).version == 4
    assert before <= found["datetime_epoch_millis"] <= int(time.time() * 1000)
    assert found["eval_result_metrics"] == {"sparsity": {"l0": 3.5, "l1": None}}
    # what is ours stands inside the two free objects
    assert found["eval_config"].keys() == {"model_name", "compat", "random_seeds", "code_version"}
    assert (found["eval_config"]["compat"], found["eval_config"]["random_seeds"]) == (True, [1, 2])
    ours = {"intervals": {"l0": {"low": 3.0, "high": 4.0}}}
    assert found["eval_result_unstructured"] == {"a": 1, "saescope": ours}
    assert envelope()["eval_id"] != found["eval_id"]
    assert envelope()["eval_config"]["compat"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_type_id": "cores"}, "no evaluation 'cores'; it has core, sparse_probing"),
        ({"metrics": {"l0": 3.0}}, "two levels"),
        ({"metrics": {"a": {"b": float("nan")}}}, "a.b is nan; give a finite number, or None"),
        ({"metrics": {"a": {"b": {"c": 1}}}}, "finite number"),
        ({"details": [{"index": 0, "more": [1]}]}, "flat objects"),
        ({"release": ""}, "release and id"),
        ({"config": {"compat": False}}, "saescope itself writes compat"),
        ({"unstructured": {"saescope": 1}}, "saescope itself writes saescope"),
    ],
)
def test_what_is_no_saebench_result_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        envelope(**changes)


def test_file_names() -> None:
    assert saebench_file_name("org/run", "blocks.1/x") == "org_run_blocks.1_x_eval_results.json"
    assert saebench_file_name("mine") == "mine_custom_sae_eval_results.json"


def test_written_whole_and_not_over_another(tmp_path: Path) -> None:
    folder = tmp_path / "core"
    path = write_saebench(folder, envelope())
    assert path == folder / "org_run_blocks.1_x_eval_results.json"
    first = path.read_text()
    assert list(json.loads(first)) == ENVELOPE
    with pytest.raises(FileExistsError, match="choose another folder or allow overwriting"):
        write_saebench(folder, envelope())
    broken = envelope() | {"eval_result_unstructured": {"value": float("nan")}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_saebench(folder, broken, overwrite=True)
    assert path.read_text() == first
    second = envelope()
    write_saebench(folder, second, overwrite=True)
    assert json.loads(path.read_text()) == second
    assert [entry.name for entry in folder.iterdir()] == [path.name]


PROBED, REMOVED = (1, 2, 5, 10, 20, 50, 100), (2, 5, 10, 20, 50, 100, 500)
KEYS = {
    "sparse_probing": {
        "llm": ["llm_test_accuracy", *(f"llm_top_{k}_test_accuracy" for k in PROBED)],
        "sae": ["sae_test_accuracy", *(f"sae_top_{k}_test_accuracy" for k in PROBED)],
    },
    "sparse_probing_sae_probes": {
        "llm": ["llm_test_accuracy", "llm_test_auc", "llm_test_f1"],
        "sae": ["sae_test_accuracy"]
        + [f"sae_top_{k}_test_{what}" for k in PROBED for what in ("accuracy", "auc", "f1")],
    },
    "absorption_first_letter": {
        "mean": [
            "mean_absorption_fraction_score", "mean_full_absorption_score", "mean_num_split_features",
            "std_dev_absorption_fraction_score", "std_dev_full_absorption_score", "std_dev_num_split_features",
        ],
    },
    "scr": {
        "scr_metrics": [
            f"{kind}_threshold_{n}" for n in REMOVED for kind in ("scr_dir1", "scr_metric", "scr_dir2")
        ],
    },
    "tpp": {
        "tpp_metrics": [
            f"tpp_threshold_{n}_{part}"
            for n in REMOVED
            for part in ("total_metric", "intended_diff_only", "unintended_diff_only")
        ],
    },
    "meta_structure_decoder_variance": {
        "meta_structure": [
            "decoder_fraction_variance_explained", "train_time_seconds", "final_reconstruction_mse",
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("eval_type_id", sorted(KEYS))
def test_keys_of_every_evaluation(eval_type_id: str) -> None:
    """All numbers under SAEBench's names, each another value: every one arrives where it belongs."""
    keys = [key for wanted in KEYS[eval_type_id].values() for key in wanted]
    numbers = [Number(name=key, value=float(place)) for place, key in enumerate(keys)]
    study = StudyResult(study="some", numbers=(*numbers, Number(name="other", value=1e9)))
    found = saebench_from_study(study, eval_type_id, config={}, release="r")
    assert found["eval_type_id"] == eval_type_id
    assert {category: list(numbers) for category, numbers in found["eval_result_metrics"].items()} == KEYS[eval_type_id]
    values = [value for numbers in found["eval_result_metrics"].values() for value in numbers.values()]
    assert values == [float(place) for place in range(len(keys))]
    assert set(FORMS) == set(KEYS)


def test_what_a_study_has_not_is_null_with_its_reason() -> None:
    study = StudyResult(
        study="first_letter",
        numbers=(
            Number(name="mean_absorption_fraction_score", value=0.25, low=0.2, high=0.4, variant="as published"),
            Number(name="std_dev_absorption_fraction_score", value=None, reason="one letter alone"),
        ),
        tables={
            "letters": [
                {"letter": "A", "mean_absorption_fraction_score": 0.25, "mean_full_absorption_score": 0.125,
                 "num_true_positives": 8, "num_split_features": 2, "main_latents": [1, 2], "reason": ""},
                {"letter": "Q", "num_true_positives": 0, "reason": "too few words"},
            ],
            "runs": [{"seed": 1}],
        },
        notes=("small model",),
    )  # fmt: skip
    found = saebench_from_study(study, "absorption_first_letter", config={"max_k": 10}, release="r", seeds=[0])
    (means,) = found["eval_result_metrics"].values()
    assert means["mean_absorption_fraction_score"] == 0.25
    assert [key for key, value in means.items() if value is None] == KEYS["absorption_first_letter"]["mean"][1:]
    assert found["eval_result_details"] == [
        {"first_letter": "A", "mean_absorption_fraction": 0.25, "full_absorption_rate": 0.125, "num_full_absorption": None,
         "num_probe_true_positives": 8, "num_split_features": 2},
    ]  # fmt: skip
    more = found["eval_result_unstructured"]
    assert more["skipped"] == [{"letter": "Q", "num_true_positives": 0, "reason": "too few words"}]
    assert more["undefined"] == {"std_dev_absorption_fraction_score": "one letter alone"}
    assert "mean_num_split_features" in more["not_measured"]
    assert more["variants"] == {"mean_absorption_fraction_score": "as published"}
    assert more["notes"] == ["small model"]
    assert more["saescope"]["intervals"] == {"mean_absorption_fraction_score": {"low": 0.2, "high": 0.4}}


def test_our_names_for_the_same_numbers() -> None:
    numbers = {"accuracy_dense": 0.9, "accuracy_features_k1": 0.7, "accuracy_dimensions_k5": 0.6, "f1_features_k1": 0.1}
    study = StudyResult(
        study="probing",
        numbers=tuple(Number(name=name, value=value) for name, value in numbers.items()),
        tables={"probing": [{"concept": "keyword", **numbers}, {"concept": "rare", "reason": "no positives"}]},
    )
    found = saebench_from_study(study, "sparse_probing", config={}, release="r")
    kept = [
        {key: value for key, value in part.items() if value is not None}
        for part in (*found["eval_result_metrics"].values(), *found["eval_result_details"])
    ]
    llm, sae = {"llm_test_accuracy": 0.9, "llm_top_5_test_accuracy": 0.6}, {"sae_top_1_test_accuracy": 0.7}
    assert kept == [llm, sae, {"dataset_name": "keyword", **llm, **sae}]
    assert found["eval_result_unstructured"]["our_names"]["sae_top_1_test_accuracy"] == "accuracy_features_k1"
    assert [row["concept"] for row in found["eval_result_unstructured"]["skipped"]] == ["rare"]


def test_a_failed_or_foreign_study_is_refused() -> None:
    failed = StudyResult.failed("scr", ValueError("one class only"))
    with pytest.raises(ValueError, match=r"scr failed \(one class only\)"):
        saebench_from_study(failed, "scr", config={}, release="r")
    other = StudyResult(study="core", numbers=(Number(name="l0", value=1.0),))
    with pytest.raises(ValueError, match="core has no number that SAEBench's tpp has; it has l0"):
        saebench_from_study(other, "tpp", config={}, release="r")
    with pytest.raises(ValueError, match="not as 'ravel'"):
        saebench_from_study(other, "ravel", config={}, release="r")
