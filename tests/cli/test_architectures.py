"""Every kind of dictionary through the command line: trained, measured, resumed, analyzed; contradictions refused."""

from __future__ import annotations

import json
import math
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from saescope.activations import DatasetConfig, TokenWindows, WindowConfig, read_documents
from saescope.dictionaries import load_dictionary, read_metadata
from saescope.evaluation import evaluate
from saescope.models import LanguageModel
from saescope.store import Store

RESID = {"hook_point": "blocks.1.hook_resid_post"}
MLP = {"hook_point": "blocks.0.hook_mlp_in", "hook_point_out": "blocks.0.hook_mlp_out"}
WIDE = "transformer.h.1.mlp.c_fc"  # 64 wide, all others are 16 wide
TWO = {"hook_points": ["blocks.0.hook_resid_post", WIDE]}

# architecture -> hook points, settings of the dictionary
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "jumprelu": (RESID, {"initial_threshold": 0.05}),
    "gated": (RESID, {}),
    "batch_topk": (RESID, {"k": 4.5}),
    "matryoshka": (RESID, {"k": 4, "widths": [8, 24, 64]}),
    "ordered": (RESID, {"k": 4}),
    "matching_pursuit": (RESID, {"k": 4}),
    "topk_archetypal": (RESID, {"k": 4, "num_points": 70}),
    "abs_topk": (RESID, {"k": 4}),
    "topk_skip_transcoder": (MLP, {"k": 4}),
    "transcoder": ({"hook_point": "blocks.1.hook_mlp_in", "hook_point_out": WIDE}, {}),
    "batch_topk_crosscoder": (TWO, {"k": 4}),
}


def write_recipe(path: Path, recipe: Path, architecture: str, hooks: dict[str, Any], settings: dict[str, Any]) -> Path:
    """The small recipe with another dictionary, as TOML."""
    data = tomllib.loads(recipe.read_text())
    del data["hook_point"]
    data = {**hooks, **data, "dictionary": {"architecture": architecture, "d_sae": 64, **settings}}
    data["training"] |= {"lr": 3e-3, "num_tokens": 40 * 128, "num_threshold_tokens": 1024}
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for section, values in data.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def recipe_of(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")

    def write(name: str) -> Path:
        hooks, settings = RUNS[name]
        return write_recipe(folder / f"{name}.toml", recipe, name, hooks, settings)

    return write


@pytest.fixture(scope="module")
def run_of(recipe_of, tmp_path_factory):
    """The folder of a finished run of an architecture; each is trained once."""
    from saescope.__main__ import main

    folder = tmp_path_factory.mktemp("runs")

    def trained(name: str) -> Path:
        if not (folder / name).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["saescope", "train", str(recipe_of(name)), "--output", str(folder / name)])
                with pytest.raises(SystemExit, match=r"^0$"):
                    main()
        return folder / name

    return trained


def held_out_windows(recipe: Path) -> TokenWindows:
    data = tomllib.loads(recipe.read_text())
    model = LanguageModel.load(data["model"]["name"])
    documents = read_documents(DatasetConfig(name=data["dataset"]["name"], split="held_out"))
    return TokenWindows.build(documents, model.tokenizer, WindowConfig(context_size=32))


@pytest.mark.parametrize("name", RUNS)
def test_train_leaves_that_dictionary(run_of, name):
    hooks, settings = RUNS[name]
    dictionary = load_dictionary(run_of(name) / "dictionary")
    assert (dictionary.architecture, dictionary.d_sae) == (name, 64)
    for key, value in settings.items():
        found = getattr(dictionary.config, key)
        assert (list(found) if isinstance(value, list) else found) == value
    reads = hooks.get("hook_points") or [hooks["hook_point"]]
    assert dictionary.d_in == sum(64 if hook == WIDE else 16 for hook in reads)
    assert dictionary.d_out == (64 if hooks.get("hook_point_out") == WIDE else dictionary.d_in)
    if "hook_points" in hooks:
        assert dictionary.config.source_widths == (16, 64)
    metadata = read_metadata(run_of(name) / "dictionary")
    assert metadata["hook_name"] == ", ".join(reads)
    assert metadata.get("hook_name_out") == hooks.get("hook_point_out")
    lines = [json.loads(line) for line in (run_of(name) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 41, 2))
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["parts"]["mse"] < 0.95 * lines[0]["parts"]["mse"]  # it learns


@pytest.mark.parametrize("name", RUNS)
def test_eval_measures_where_it_was_trained(cli, run_of, recipe, tiny, tmp_path, name):
    """The numbers are those of the library on the same held-out text, at the recipe's hook points."""
    ran = cli("eval", run_of(name), "--json", tmp_path / "e.json")
    assert ran.code == 0, ran.err
    numbers = json.loads((tmp_path / "e.json").read_text())
    hooks, _ = RUNS[name]
    context = numbers.pop("context")
    assert context["hook_point"] == ", ".join(hooks.get("hook_points") or [hooks["hook_point"]])
    assert context.get("hook_point_out") == hooks.get("hook_point_out")
    windows = held_out_windows(recipe)
    expected = evaluate(
        load_dictionary(run_of(name) / "dictionary"),
        tiny,
        windows,
        hooks.get("hook_points") or hooks["hook_point"],
        hook_point_out=hooks.get("hook_point_out"),
        num_tokens=400,
    ).values()
    assert expected["num_tokens"] > 200
    found, expected = (
        {key: math.nan if of[key] is None else of[key] for key in expected} for of in (numbers, expected)
    )
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)
    assert found["l0"] > 0.5
    assert f"{found['explained_variance']:.2f}"[:3] in ran.out


@pytest.mark.parametrize("name", ["topk_skip_transcoder", "batch_topk_crosscoder"])
def test_a_dictionary_without_its_recipe_still_says_where_it_belongs(cli, run_of, tmp_path, name):
    """cfg.json alone, as another program would write it: model, hook points and text are among its metadata."""
    shutil.copytree(run_of(name) / "dictionary", tmp_path / "d")
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    del config["metadata"]["saescope"]["run"]
    (tmp_path / "d" / "cfg.json").write_text(json.dumps(config))
    ran = cli("eval", tmp_path / "d", "--num-tokens", 400, "--json", tmp_path / "without.json")
    assert ran.code == 0, ran.err
    assert cli("eval", run_of(name), "--json", tmp_path / "with.json").code == 0
    without, whole = (json.loads((tmp_path / f"{which}.json").read_text()) for which in ("without", "with"))
    for key in ("num_tokens", "explained_variance", "l0", "ce_loss_spliced", "kl_zero_ablation"):
        assert without[key] == pytest.approx(whole[key], rel=1e-6), key


@pytest.mark.parametrize("comma", [",", ", "])
def test_the_sources_of_a_crosscoder_as_an_option(cli, run_of, tmp_path, comma):
    """Also written as eval.json and cfg.json write them."""
    sources = TWO["hook_points"]
    ran = cli("eval", run_of("batch_topk_crosscoder"), "--hook-point", comma.join(sources), "--json", tmp_path / "e")
    assert ran.code == 0, ran.err
    ran = cli("eval", run_of("batch_topk_crosscoder"), "--hook-point", sources[0])
    assert ran.code == 2
    assert "d_in = 80" in ran.err


@pytest.mark.parametrize("name", ["matryoshka", "topk_skip_transcoder", "batch_topk_crosscoder"])
def test_resume_gives_the_run_that_was_never_stopped(cli, run_of, recipe_of, tmp_path, stopped_train, name):
    options = ["--output", tmp_path / "run", "-o", "training.checkpoint_every_n_steps=10"]
    stopped_train(24, recipe_of(name), *options)
    ran = cli("train", recipe_of(name), *options, "--resume")
    assert ran.code == 0, ran.err
    whole, resumed = (load_dictionary(folder / "dictionary") for folder in (run_of(name), tmp_path / "run"))
    for key, tensor in whole.saved_tensors().items():
        assert tensor.equal(resumed.saved_tensors()[key]), key


def test_analyze_a_transcoder(cli, run_of, recipe, tiny, tmp_path):
    """Features fire on what is read; their effect on the logits is that of what is written."""
    store = tmp_path / "features.db"
    for name in ("topk_skip_transcoder", "transcoder"):
        ran = cli("analyze", run_of(name), "--store", store, "--name", name)
        assert ran.code == 0, ran.err
    data = tomllib.loads(recipe.read_text())
    documents = read_documents(DatasetConfig(name=data["dataset"]["name"], split="train"))
    windows = TokenWindows.build(documents, tiny.tokenizer, WindowConfig(context_size=32)).evenly(1000)
    batch = windows.batch(range(len(windows)))
    x = tiny.read(batch.ids, [MLP["hook_point"]])[MLP["hook_point"]][batch.keep]
    dictionary = load_dictionary(run_of("topk_skip_transcoder") / "dictionary")
    with torch.no_grad():
        f = dictionary.encode(x)
    with Store.open(store) as opened:
        record = opened.dictionary("topk_skip_transcoder")
        assert (record.hook_point, record.hook_point_out) == (MLP["hook_point"], MLP["hook_point_out"])
        assert record.architecture == "topk_skip_transcoder"
        pages = list(opened.pages("topk_skip_transcoder"))
        features = {page.feature.index: page.feature for page in pages}
        assert len(features) == 64
        for index, feature in features.items():
            assert feature.num_firings == pytest.approx(int((f[:, index] > 0).sum()), abs=1)
            assert feature.max_activation == pytest.approx(float(f[:, index].max()), rel=1e-3, abs=1e-4)
        assert all(len(page.detail.top_logits) == len(page.detail.bottom_logits) == 20 for page in pages)
        assert "no_logit_effects" not in opened.analysis("topk_skip_transcoder").details
        assert WIDE in opened.analysis("transcoder").details["no_logit_effects"]  # not on the residual stream
        assert not any(page.detail.top_logits for page in opened.pages("transcoder"))
        index = max(features.values(), key=lambda feature: feature.num_firings).index
    ran = cli("features", "topk_skip_transcoder", "--store", store)
    assert ran.code == 0, ran.err
    ran = cli("show", "feature", "topk_skip_transcoder", index, "--store", store)
    assert ran.code == 0, ran.err
    assert f"feature {index}" in ran.out


@pytest.mark.parametrize("name", ["batch_topk_crosscoder", "abs_topk"])
def test_analyze_several_sources_and_two_directions(cli, run_of, tmp_path, name):
    store = tmp_path / "features.db"
    ran = cli("analyze", run_of(name), "--store", store, "--name", name)
    assert ran.code == 0, ran.err
    with Store.open(store) as opened:
        pages = list(opened.pages(name))
        index = max(pages, key=lambda page: page.feature.num_firings).feature.index
    if name == "abs_topk":
        assert any(value < 0 for page in pages for example in page.all_examples for value in example.activations)
        assert all(page.feature.negative_share is not None for page in pages)
    else:
        dictionary = load_dictionary(run_of(name) / "dictionary")
        norms = dictionary.source_norms
        assert all(page.detail.sources == pytest.approx(norms[page.feature.index].tolist()) for page in pages)
    ran = cli("show", "feature", name, index, "--store", store)
    assert ran.code == 0, ran.err
    assert f"feature {index}" in ran.out


HERE, THERE = "blocks.0.hook_mlp_in", "blocks.0.hook_mlp_out"
CONTRADICTIONS: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    ("topk", {"hook_points": [HERE, THERE]}, {"k": 4}, ["hook_points is for crosscoders", "topk"]),
    ("topk", {}, {"k": 4}, ["hook_point is missing", "topk"]),
    ("topk", {"hook_point": HERE, "hook_points": [HERE, THERE]}, {"k": 4}, ["hook_point", "topk"]),
    ("topk", {"hook_point": HERE, "hook_point_out": THERE}, {"k": 4}, ["hook_point_out", "transcoders", "topk"]),
    ("transcoder", {"hook_point": HERE}, {}, ["hook_point_out", "transcoder"]),
    ("transcoder", {"hook_point_out": THERE}, {}, ["hook_point is missing", "transcoder"]),
    ("transcoder", {"hook_points": [HERE, THERE]}, {}, ["hook_points is for crosscoders", "transcoder"]),
    ("relu_crosscoder", {"hook_point": HERE}, {}, ["relu_crosscoder", "hook_points = [...]"]),
    ("relu_crosscoder", {"hook_points": [HERE]}, {}, ["several", "hook_points = [...]"]),
    ("relu_crosscoder", {"hook_point": HERE, "hook_points": [HERE, THERE]}, {}, ["hook_points = [...] alone"]),
    ("relu_crosscoder", {"hook_point_out": HERE, "hook_points": [HERE, THERE]}, {}, ["hook_points = [...] alone"]),
    ("relu_crosscoder", {}, {}, ["hook_points = [...]"]),
    ("relu_crosscoder", {"hook_points": HERE}, {}, ["hook_points", "valid"]),
    ("relu_crosscoder", {"hook_points": [HERE, 3]}, {}, ["hook_points", "string"]),
    ("transcoder", {"hook_point": HERE, "hook_pointout": THERE}, {}, ["hook_pointout", "did you mean hook_point"]),
    ("relu_transcoder", {"hook_point": HERE, "hook_point_out": THERE}, {}, ["relu_transcoder", "transcoder"]),
    ("transcoder", {"hook_point": HERE, "hook_point_out": THERE}, {"apply_b_dec_to_input": True}, ["b_dec"]),
    ("matryoshka", {"hook_point": HERE}, {"k": 4, "widths": [8, 32]}, ["widths", "64"]),
    ("matching_pursuit", {"hook_point": HERE}, {"k": 0}, ["k"]),
    ("topk_archetypal", {"hook_point": HERE}, {"k": 4, "num_points": 10}, ["num_points", "64"]),
    ("batch_topk", {"hook_point": HERE}, {"k": 65}, ["k", "64"]),
    ("gated", {"hook_point": HERE}, {"k": 4}, ["unknown key k"]),
]


@pytest.mark.parametrize(("name", "hooks", "settings", "words"), CONTRADICTIONS)
def test_a_recipe_that_contradicts_itself_is_one_clear_line(cli, recipe, tmp_path, name, hooks, settings, words):
    """Refused before any file is written."""
    path = write_recipe(tmp_path / "wrong.toml", recipe, name, hooks, settings)
    ran = cli("train", path, "--output", tmp_path / "run")
    assert ran.code == 2
    assert ran.err.startswith("saescope: ")
    assert ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err
    assert not (tmp_path / "run").exists()


def test_hook_point_is_not_called_missing_where_it_is_given(cli, recipe, tmp_path):
    path = write_recipe(tmp_path / "wrong.toml", recipe, "topk", {**RESID, **TWO}, {"k": 4})
    ran = cli("train", path, "--output", tmp_path / "run")
    assert ran.code == 2
    assert "hook_points" in ran.err
    assert "hook_point is missing" not in ran.err


@pytest.mark.parametrize(
    ("name", "hooks", "settings"),
    [
        ("relu", RESID, {"d_in": 99}),
        ("transcoder", MLP, {"d_out": 99}),
        ("relu_crosscoder", TWO, {"source_widths": [40, 40]}),
    ],
)
def test_widths_that_are_not_those_of_the_hook_points_are_refused(cli, recipe, tmp_path, name, hooks, settings):
    """A width in a recipe is either true or refused; it is not passed over in silence."""
    path = write_recipe(tmp_path / "wrong.toml", recipe, name, hooks, settings)
    ran = cli("train", path, "--output", tmp_path / "run")
    assert ran.code == 2
    assert next(iter(settings)) in ran.err


@pytest.mark.parametrize(
    ("name", "hooks"),
    [
        ("transcoder", {"hook_point": HERE, "hook_point_out": "blocks.0.hook_mlp_ot"}),
        ("relu_crosscoder", {"hook_points": [HERE, "blocks.0.hook_mlp_ot"]}),
    ],
)
def test_an_unknown_hook_point_names_the_nearest(cli, recipe, tmp_path, name, hooks):
    path = write_recipe(tmp_path / "wrong.toml", recipe, name, hooks, {})
    ran = cli("train", path, "--output", tmp_path / "run")
    assert ran.code == 2
    assert "blocks.0.hook_mlp_ot'" in ran.err
    assert "hook_mlp_out" in ran.err
    assert not (tmp_path / "run" / "dictionary").exists()


def test_another_target_or_source_is_another_run(cli, run_of, recipe_of):
    """--resume goes on with the same hook points or not at all; a crosscoder's list comes back from JSON as it went."""
    ran = cli("train", recipe_of("batch_topk_crosscoder"), "--output", run_of("batch_topk_crosscoder"), "--resume")
    assert ran.code == 0, ran.err
    swapped = json.dumps(TWO["hook_points"][::-1])
    for name, change in (
        ("batch_topk_crosscoder", f"hook_points={swapped}"),
        ("topk_skip_transcoder", "hook_point_out=blocks.0.hook_attn_out"),
    ):
        ran = cli("train", recipe_of(name), "--output", run_of(name), "--resume", "-o", change)
        assert ran.code == 2
        assert change.split("=")[0] in ran.err
