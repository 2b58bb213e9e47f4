"""The commands, from a recipe to a feature on the screen, on a saved model and a local text file."""

from __future__ import annotations

import json
import re

import pytest

from saescope.dictionaries import load_dictionary, read_metadata
from saescope.store import Store


def test_train_leaves_a_dictionary_that_opens(trained):
    assert {"run.json", "metrics.jsonl", "checkpoints", "dictionary"} <= {p.name for p in trained.iterdir()}
    dictionary = load_dictionary(trained / "dictionary")
    metadata = read_metadata(trained / "dictionary")
    assert (dictionary.d_in, dictionary.d_sae, dictionary.config.k) == (16, 64, 4)
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert metadata["hf_hook_name"] == "transformer.h.1.output"
    assert metadata["saescope"]["training"]["num_tokens"] == 1280
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]


def test_another_architecture_is_two_overrides(cli, recipe, tmp_path):
    ran = cli(
        "train", recipe, "--output", tmp_path / "r", "-o", "dictionary.architecture=relu", "-o", "loss.l1_coefficient=2"
    )
    assert ran.code == 2
    assert "k" in ran.err  # relu has no k
    relu = recipe.with_name("relu.toml")
    relu.write_text(recipe.read_text().replace('"topk"', '"relu"').replace("k = 4\n", ""))
    assert cli("train", relu, "--output", tmp_path / "r").code == 0
    assert load_dictionary(tmp_path / "r" / "dictionary").architecture == "relu"


def test_eval_prints_and_writes_its_numbers(cli, trained, tmp_path):
    ran = cli("eval", trained, "--json", tmp_path / "e.json")
    assert ran.code == 0, ran.err
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert {"explained_variance", "ce_loss_recovered", "dead_share", "l0"} <= set(numbers)
    assert numbers["l0"] <= 4
    assert {"kl_recovered_resample", "mean_max_decoder_cosine"} <= set(numbers)
    low, high = numbers["intervals"]["explained_variance"]
    assert low <= numbers["explained_variance"] <= high
    assert set(numbers["not_defined"]) == {name for name, value in numbers.items() if value is None}
    assert numbers["context"]["held_out"]["split"] == "held_out"
    assert re.search(r"explained variance .*(met|not met)", ran.out)


def test_eval_on_another_hook_point_of_another_width_is_refused(cli, trained):
    ran = cli("eval", trained, "--hook-point", "blocks.1.mlp.act")
    assert ran.code == 2
    ran = cli("eval", trained, "--hook-point", "transformer.h.1.mlp.c_fc")
    assert ran.code == 2
    assert "d_in = 16" in ran.err
    assert "64" in ran.err


def test_analyze_then_list_then_show(cli, trained, tmp_path):
    store = tmp_path / "features.db"
    ran = cli("analyze", trained, "--store", store)
    assert ran.code == 0, ran.err
    ran = cli("features", "small", "--store", store, "--limit", "5")
    assert ran.code == 0, ran.err
    with Store.open(store) as opened:
        feature = opened.features("small", limit=1).features[0]
    assert str(feature.index) in ran.out
    ran = cli("show", "feature", "small", feature.index, "--store", store)
    assert ran.code == 0, ran.err
    assert f"feature {feature.index}" in ran.out
    assert f"({feature.num_firings:,} firings)" in ran.out

    ran = cli("analyze", trained, "--store", store)
    assert ran.code == 2
    assert "--overwrite" in ran.err
    assert cli("analyze", trained, "--store", store, "--overwrite", "--num-tokens", 500).code == 0
    with Store.open(store) as opened:
        assert opened.analysis("small").num_tokens <= 500


def test_a_model_of_masked_tokens_is_measured_without_a_loss(cli, trained, tiny, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tiny.tokenizer.save_pretrained(tmp_path / "bert")
    ran = cli("eval", trained, "--model", tmp_path / "bert", "--json", tmp_path / "e.json")
    assert ran.code == 0, ran.err
    assert "predicts no next token, so that it has no loss" in " ".join(ran.out.split())
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert "explained_variance" in numbers
    assert numbers["ce_loss_recovered"] is None
    assert "predicts no next token" in numbers["not_defined"]["ce_loss_recovered"]


def test_a_folder_that_holds_a_run_is_kept_unless_told(cli, recipe, trained):
    before = (trained / "metrics.jsonl").read_bytes()
    ran = cli("train", recipe, "--output", trained)
    assert ran.code == 2
    assert "--resume" in ran.err
    assert "--overwrite" in ran.err
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_a_folder_of_other_files_is_never_touched(cli, recipe, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for flag in ([], ["--overwrite"], ["--resume"]):
        ran = cli("train", recipe, "--output", tmp_path, *flag)
        assert ran.code == 2
        assert "thesis.txt" in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwrite_replaces_the_run_and_nothing_else(cli, recipe, tmp_path):
    folder = tmp_path / "run"
    assert cli("train", recipe, "--output", folder).code == 0
    (folder / "notes.md").write_text("mine")
    first = load_dictionary(folder / "dictionary").W_dec.clone()
    assert cli("train", recipe, "--output", folder, "--overwrite", "-o", "seed=1").code == 0
    assert not load_dictionary(folder / "dictionary").W_dec.equal(first)
    assert (folder / "notes.md").read_text() == "mine"


def test_resume_gives_the_run_that_was_never_stopped(cli, recipe, trained, tmp_path, stopped_train):
    folder = tmp_path / "run"
    options = ["--output", folder, "-o", "training.checkpoint_every_n_steps=4"]
    stopped_train(7, recipe, *options)
    ran = cli("train", recipe, *options, "--resume")
    assert ran.code == 0, ran.err
    whole, resumed = load_dictionary(trained / "dictionary"), load_dictionary(folder / "dictionary")
    for name, parameter in whole.named_parameters():
        assert parameter.equal(resumed.get_parameter(name)), name
    ran = cli("train", recipe, *options, "--resume", "-o", "seed=9")
    assert ran.code == 2
    assert "seed" in ran.err


def test_ctrl_c_says_how_to_go_on(cli, recipe, tmp_path, monkeypatch):
    import saescope.training.stepper as loop

    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.UnitNormAdam, "step", interrupted)
    ran = cli("train", recipe, "--output", tmp_path / "run")
    assert ran.code == 130
    assert "--resume" in ran.out
    assert "Traceback" not in ran.err
    monkeypatch.undo()
    assert cli("train", recipe, "--output", tmp_path / "run", "--resume").code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("trainng.lr=1", ["trainng", "training"]),
        ("training.num_token=1", ["training.num_token", "num_tokens"]),
        ("training.num_tokens=many", ["training.num_tokens", "integer"]),
        ("dictionary.kk=3", ["kk", "did you mean k"]),
        ("dictionary.architecture=topp", ["topp", "topk"]),
        ("dictionary.k=65", ["k", "64"]),
        ("loss.aux_coeficient=1", ["aux_coeficient", "aux_coefficient"]),
        ("windows.context_size=64", ["64", "32"]),
        ("windows.packing=loose", ["packing", "concatenate"]),
        ("hook_point=blocks.9.hook_resid_post", ["blocks.9"]),
        ("hook_point=blocks.1.hook_resid_pst", ["hook_resid_pst", "hook_resid_post"]),
        ("dataset.column=txt", ["txt", "text"]),
        ("dataset.split=test", ["test", "held_out"]),
        ("dataset.name=missing.jsonl", ["missing.jsonl"]),
        ("model.name=./no_such_model", ["no_such_model"]),
        ("model.dtype=float31", ["float31"]),
        ("training.num_tokens=10", ["10", "128"]),
        ("stream.buffer_size_tokens=64", ["64", "128"]),
        ("training.batch_size_tokens=100000", ["100000"]),
        ("nonsense", ["section.key=value"]),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(cli, recipe, tmp_path, change, words):
    ran = cli("train", recipe, "--output", tmp_path / "run", "-o", change)
    assert ran.code == 2
    assert ran.err.startswith("saescope: ")
    assert ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err
    assert not (tmp_path / "run" / "dictionary").exists()


def test_an_unknown_recipe_or_broken_toml(cli, tmp_path):
    ran = cli("train", "no_such_recipe")
    assert ran.code == 2
    assert "demo" in ran.err
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    ran = cli("train", broken)
    assert ran.code == 2
    assert "not valid TOML" in ran.err


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(cli, recipe, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("/proc/saescope", tmp_path / "file", tmp_path / "file" / "below"):
        ran = cli("train", recipe, "--output", place)
        assert ran.code == 2, place
        assert ran.err.count("\n") == 1


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_there(cli, recipe, tmp_path, monkeypatch):
    import errno

    import saescope.dictionaries.saving as saving

    folder = tmp_path / "run"
    real = saving.write_tensors

    def full(tensors, path):
        if "step-00000006" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path)

    monkeypatch.setattr("saescope.training.checkpoint.write_tensors", full)
    ran = cli("train", recipe, "--output", folder, "-o", "training.checkpoint_every_n_steps=3")
    assert ran.code == 2
    assert "No space left on device" in ran.err
    monkeypatch.undo()
    from saescope.training.checkpoint import newest_checkpoint

    kept = newest_checkpoint(folder / "checkpoints")
    assert kept is not None
    assert kept.step == 3


@pytest.mark.parametrize("command", ["eval", "analyze"])
def test_something_that_is_no_dictionary(cli, tmp_path, command):
    ran = cli(command, tmp_path / "nothing")
    assert ran.code == 2
    assert "there is no" in ran.err
    ran = cli(command, tmp_path)
    assert ran.code == 2
    assert "cfg.json" in ran.err


def test_nan_activations_name_step_and_hook_point(cli, recipe, sources, tiny, tmp_path):
    import copy

    import torch

    broken = copy.deepcopy(tiny.module)
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_proj.bias[3] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tiny.tokenizer.save_pretrained(tmp_path / "broken")
    ran = cli("train", recipe, "--output", tmp_path / "run", "-o", f'model.name="{tmp_path / "broken"}"')
    assert ran.code == 2
    assert "step 0" in ran.err
    assert "blocks.1.hook_resid_post" in ran.err
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_an_empty_store_and_unknown_names(cli, tmp_path):
    ran = cli("features", "--store", tmp_path / "none.db")
    assert ran.code == 2
    assert "saescope analyze" in ran.err
    ran = cli("features", "--store", "mongodb://host/db")
    assert ran.code == 2
    assert "mongodb" in ran.err.lower()
