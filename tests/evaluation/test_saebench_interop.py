"""SAEBench itself, where it is installed: it runs on our dictionaries, and says what ``saebench_core`` says."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saescope
from saescope.activations import Document, TokenWindows, WindowConfig
from saescope.dictionaries import Dictionary, architecture, save_dictionary
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.saebench.files import saebench_core, saebench_json, write_saebench
from saescope.evaluation.saebench.studies import FORMS, saebench_from_study
from saescope.models import LanguageModel

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
PROGRAM = Path(__file__).parent / "run_saebench.py"
CONTEXT, WINDOWS, D, FEATURES = 32, 4, 16, 40
HOOKS = {"topk": "blocks.1.hook_resid_post", "relu": "blocks.0.hook_mlp_out", "gated": "blocks.1.attn.hook_z"}
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 5}, "batch_topk": {"k": 6}, "abs_topk": {"k": 4}, "topk_archetypal": {"k": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def peers() -> Path:
    if not PEERS.exists():
        pytest.skip("needs the other libraries: make peers")
    found = subprocess.run([PEERS, "-c", "import sae_bench.evals.core.main"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"SAEBench is not installed among the other libraries: {found.stderr.strip().splitlines()[-1]}")
    return PEERS


def make(name: str) -> Dictionary:
    """Everything random, decoder rows of unequal norms, feature 3 dead, feature 4 without a direction."""
    cls = architecture(name)
    dictionary = cls(cls.Config(d_in=D, d_sae=FEATURES, **SETTINGS.get(name, {})))
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, tensor in [*dictionary.named_parameters(), *dictionary.named_buffers()]:
            if tensor.is_floating_point() and key not in ("points", "mixture", "residual_threshold"):
                scale = 0.3 if tensor.ndim < 2 else tensor.shape[-1] ** -0.5
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
            if key == "threshold":
                tensor.abs_()
        if name == "matching_pursuit":
            dictionary.normalise_decoder()
        elif not name.endswith("archetypal"):
            dictionary.W_dec *= torch.linspace(0.4, 2, FEATURES)[:, None]
            dictionary.W_dec[4] = 0
            for key in ("b_enc", "b_gate"):
                bias = getattr(dictionary, key, None)
                if bias is not None:
                    bias[3] = -1e3
    return dictionary


def windows_of(batches: list[list[list[int]]], tokenizer: Any) -> TokenWindows:
    """Windows that hold exactly these ids."""
    ids = np.asarray([window for batch in batches for window in batch], dtype=np.int32)
    number = len(ids)
    return TokenWindows(
        config=WindowConfig(context_size=CONTEXT, prepend_bos=False),
        tokens=ids.ravel(),
        document_starts=np.asarray([0, ids.size]),
        documents=[Document("all", "")],
        starts=np.arange(number) * CONTEXT,
        lengths=np.full(number, CONTEXT, dtype=np.int32),
        special_ids=frozenset(tokenizer.all_special_ids),
        separator_id=None,
        bos_id=None,
        pad_id=0,
    )


@pytest.mark.slow
def test_every_number_is_saebenchs(peers: Path, tiny: LanguageModel, documents: Any, tmp_path: Path) -> None:
    names = ["topk", "relu", "gated", "jumprelu", "batch_topk", "abs_topk", "matching_pursuit", "topk_archetypal"]
    made = {name: make(name) for name in names} | {"silent": make("relu")}
    with torch.no_grad():
        for name, parameter in made["silent"].named_parameters():
            parameter.fill_(-1e3) if name == "b_enc" else parameter.zero_() if name == "b_dec" else None
    names.append("silent")
    hooks = {name: HOOKS.get(name, "blocks.1.hook_resid_post") for name in names}
    tiny.module.save_pretrained(tmp_path / "model")
    assert tiny.tokenizer is not None
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    lines = [json.dumps({"text": document.text}) for document in documents]
    (tmp_path / "text" / "train.jsonl").write_text("\n".join(lines))
    for name, dictionary in made.items():
        metadata = {"model_name": "tiny", "hook_name": hooks[name], "context_size": CONTEXT, "prepend_bos": True}
        save_dictionary(dictionary, tmp_path / name, metadata=metadata)
    job = {
        "model": str(tmp_path / "model"),
        "text": str(tmp_path / "text"),
        "dictionaries": {name: str(tmp_path / name) for name in names},
        "out": str(tmp_path / "results"),
        "ours": [str(path) for path in our_files(tmp_path / "ours", made["topk"], tiny, documents)],
        "settings": {
            "n_eval_reconstruction_batches": 2, "n_eval_sparsity_variance_batches": 3, "eval_batch_size_prompts": WINDOWS,
            "compute_featurewise_density_statistics": True, "compute_featurewise_weight_based_metrics": True,
            "exclude_special_tokens_from_reconstruction": True, "context_size": CONTEXT, "dtype": "float32",
        },
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    source = str(Path(saescope.__file__).parents[1])
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    ran = subprocess.run(
        [peers, PROGRAM, tmp_path / "job.json", tmp_path / "found.json"],
        env={**os.environ, **offline, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["difference_of_logits"] < 1e-4

    for path, read in zip(job["ours"], found["read"], strict=True):
        written = json.loads(Path(path).read_text())
        for key in ("eval_id", "eval_type_id", "sae_lens_release_id", "eval_result_metrics"):
            assert read[key] == written[key]
        assert read["eval_result_unstructured"]["saescope"] == written["eval_result_unstructured"]["saescope"]
    largest: dict[str, tuple[float, str]] = {}
    for name, dictionary in made.items():
        assert found["files"][name], f"SAEBench failed on {name}: {ran.stderr[-3000:]}"
        theirs = json.loads(Path(found["files"][name]).read_text())
        ours = both_phases(dictionary, tiny, found["batches"][name], hooks[name])
        assert ours["metrics"].keys() == theirs["eval_result_metrics"].keys()
        for category, numbers in theirs["eval_result_metrics"].items():
            assert ours["metrics"][category].keys() == numbers.keys()
            for key, value in numbers.items():
                gap = compare(ours["metrics"][category][key], value, f"{name}: {category}.{key}")
                largest[key] = max(largest.get(key, (0.0, "")), (gap, name))
        assert len(ours["details"]) == len(theirs["eval_result_details"]) == FEATURES
        for mine, row in zip(ours["details"], theirs["eval_result_details"], strict=True):
            assert mine.keys() == row.keys()
            for key, value in row.items():
                gap = compare(mine[key], value, f"{name}: feature {row['index']}, {key}")
                largest[f"details.{key}"] = max(largest.get(f"details.{key}", (0.0, "")), (gap, name))
        # what SAEBench says of its own run, we say too
        kept = {key: value for key, value in ours["config"].items() if key != "dataset"}
        assert kept == {key: theirs["eval_config"][key] for key in kept}
        unit = name in ("matching_pursuit", "topk_archetypal")  # the others have a row of zeros
        assert (not found["complaints"][name]) == unit
    for key, (gap, name) in sorted(largest.items()):
        print(f"{key:45s} {gap:.1e}  {name}")


def our_files(folder: Path, dictionary: Dictionary, model: LanguageModel, documents: Any) -> list[Path]:
    """A file of every evaluation that SAEBench has types for and saescope writes."""
    text = TokenWindows.build(documents[:4], model.tokenizer, WindowConfig(context_size=CONTEXT))
    core = saebench_core(dictionary, model, text, HOOKS["topk"], compat=True, batch_size_windows=2)
    paths = [write_saebench(folder / "core", saebench_json("core", **core, release="ours"))]
    for eval_type_id, form in FORMS.items():
        if eval_type_id == "sparse_probing_sae_probes":  # its types import a package of its own
            continue
        keys = [key for wanted in form.categories.values() for key in wanted]
        row = {form.row_name: "a", **dict.fromkeys(form.row_keys, 1)} if form.row_name else {}
        study = StudyResult(
            study="some",
            numbers=tuple(Number(name=key, value=float(i), low=0.0, high=99.0) for i, key in enumerate(keys)),
            tables={"rows": [row]},
        )
        result = saebench_from_study(study, eval_type_id, config={}, release="ours")
        paths.append(write_saebench(folder / eval_type_id, result))
    return paths


def both_phases(dictionary: Dictionary, model: LanguageModel, batches: Any, hook_point: str) -> dict[str, Any]:
    """``saebench_core`` on the tokens of each phase: SAEBench resets its text in between, but goes on in mid-document."""
    first, second = (
        saebench_core(
            dictionary, model, windows_of(part, model.tokenizer), hook_point, compat=True,
            num_tokens=len(part) * WINDOWS * CONTEXT, num_tokens_reconstruction=2 * WINDOWS * CONTEXT,
            batch_size_windows=WINDOWS,
        )
        for part in (batches[:2], batches[2:])
    )  # fmt: skip
    losses = ("model_behavior_preservation", "model_performance_preservation")
    second["metrics"] |= {category: first["metrics"][category] for category in losses}
    return second


def compare(ours: float, theirs: float, what: str) -> float:
    """Their float32 apart, the same number; the difference, relative where the number is above 1."""
    gap = abs(ours - theirs) / max(1.0, abs(theirs))
    assert gap < 2e-5, f"{what}: {ours} here, {theirs} there"
    return gap


def test_the_program_names_every_setting() -> None:
    """What the program gives to SAEBench exists here (SAEBench itself may be missing)."""
    from saescope.evaluation.saebench.interface import SaeBenchConfig

    wanted = {
        "model_name", "d_in", "d_sae", "hook_layer", "hook_name", "hook_head_index", "context_size", "prepend_bos",
        "architecture", "dtype", "model_from_pretrained_kwargs",
    }  # fmt: skip
    assert wanted <= {field.name for field in dataclasses.fields(SaeBenchConfig)}
