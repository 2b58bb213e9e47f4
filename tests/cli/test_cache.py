"""``saescope cache``, and training from what it wrote, on a saved model and a local text file."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from saescope.activations import CachedActivations
from saescope.dictionaries import read_metadata

ALONE = ("-o", "stream.model_batch_size_windows=1")  # a window's values do not depend on the others in a batch


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def own(sources, recipe, tmp_path):
    """A copy of the sources that a test may take away; gives its recipe."""
    shutil.copytree(sources / "model", tmp_path / "model")
    shutil.copy(sources / "text.jsonl", tmp_path / "text.jsonl")
    path = tmp_path / "own.toml"
    path.write_text(recipe.read_text().replace(str(sources), str(tmp_path)))
    return path


def test_training_from_a_cache_needs_neither_model_nor_text(cli, own, tmp_path, monkeypatch):
    """And gives, to the byte, the dictionary of training with the model."""
    assert cli("train", own, "--output", tmp_path / "live", *ALONE).code == 0
    ran = cli("cache", own, "--output", tmp_path / "cache", *ALONE)
    assert ran.code == 0, ran.err
    cache = CachedActivations.open(tmp_path / "cache", verify=True)
    size = sum(len(data) for name, data in files(tmp_path / "cache").items() if name != "manifest.json")
    assert f"{cache.num_tokens:,} tokens at blocks.1.hook_resid_post of {tmp_path / 'model'} in float32" in ran.out
    assert f"{cache.num_tokens:,} tokens, {size / 1000:.3g} kB, 1 shards, " in ran.out
    assert cache.manifest.settings["dataset"]["name"] == str(tmp_path / "text.jsonl")
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "text.jsonl").unlink()
    from saescope.models import LanguageModel

    monkeypatch.setattr(LanguageModel, "__init__", lambda *_: pytest.fail("a model was made"))
    ran = cli("train", own, "--output", tmp_path / "cached", "-o", f"cache={tmp_path / 'cache'}", *ALONE)
    assert ran.code == 0, ran.err
    assert f"{1280 / cache.num_tokens:.2f} passes over {cache.num_tokens:,} tokens" in ran.out
    assert f"in the cache {tmp_path / 'cache'}" in ran.out
    weights = [tmp_path / name / "dictionary" / "sae_weights.safetensors" for name in ("live", "cached")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    live, cached = (read_metadata(path.parent) for path in weights)
    assert cached["saescope"]["run"].pop("cache") == str(tmp_path / "cache")
    assert live["saescope"]["run"].pop("cache") == ""
    assert live == cached


def test_the_demo_trains_from_a_cache(cli, own, tmp_path):
    """Evaluation and analysis load the model all the same."""
    small = ["-o", f"model.name={tmp_path / 'model'}", "-o", f"dataset.name={tmp_path / 'text.jsonl'}"]
    for setting in (
        "windows.context_size=32", "stream.buffer_size_tokens=1024", "training.num_tokens=4096", "dictionary.d_sae=64",
        "dictionary.k=4", "evaluation.num_tokens=400", "analysis.num_tokens=1000",
    ):  # fmt: skip
        small += ["-o", setting]
    assert cli("cache", "demo", "--output", tmp_path / "cache", *small).code == 0
    ran = cli("demo", "--output", tmp_path / "demo", *small, "-o", f"cache={tmp_path / 'cache'}")
    assert ran.code == 0, ran.err
    assert (tmp_path / "demo" / "report.html").exists()


def test_a_cache_of_something_else_is_refused_with_both_shown(cli, own, tmp_path):
    folder = tmp_path / "cache"
    assert cli("cache", own, "--output", folder).code == 0
    for override, said in (
        ("model.name=other", f"model.name is '{tmp_path / 'model'}' in the cache, and 'other' is asked for"),
        ("model.dtype=bfloat16", "model.dtype is 'float32' in the cache, and 'bfloat16' is asked for"),
        ("dataset.split=all", "dataset.split is 'train' in the cache, and 'all' is asked for"),
        ("windows.context_size=16", "windows.context_size is 32 in the cache, and 16 is asked for"),
        ("windows.max_tokens=900", "windows.max_tokens is None in the cache, and 900 is asked for"),
        ("stream.exclude_special_tokens=false", "exclude_special_tokens is True in the cache, and False is asked for"),
        ("hook_point=blocks.0.hook_resid_post", "blocks.1.hook_resid_post, not at blocks.0.hook_resid_post"),
    ):  # fmt: skip
        ran = cli("train", own, "--output", tmp_path / "run", "-o", f"cache={folder}", "-o", override, "--overwrite")
        assert ran.code == 2
        assert said in ran.err
        assert not (tmp_path / "run" / "checkpoints").exists()
    # what decides no activation may differ
    ran = cli("train", own, "--output", tmp_path / "run", "-o", f"cache={folder}", "--overwrite",
              "-o", "seed=3", "-o", "training.lr=1e-3", "-o", "stream.buffer_size_tokens=256",
              "-o", "hook_point=transformer.h.1")  # fmt: skip
    assert ran.code == 0, ran.err


def test_a_truncated_shard_is_named_before_training(cli, recipe, tmp_path):
    assert cli("cache", recipe, "--output", tmp_path / "cache").code == 0
    shard = tmp_path / "cache" / "shard-00000.safetensors"
    os.truncate(shard, shard.stat().st_size // 2)
    ran = cli("train", recipe, "--output", tmp_path / "run", "-o", f"cache={tmp_path / 'cache'}")
    assert ran.code == 2
    assert f"saescope: {shard} is truncated: " in ran.err
    assert cli("cache", "--verify", tmp_path / "cache").code == 2
    assert cli("cache", recipe, "--output", tmp_path / "cache", "--resume").code == 0
    ran = cli("cache", "--verify", tmp_path / "cache")
    assert ran.code == 0, ran.err
    assert f"{tmp_path / 'cache'} is whole" in ran.out
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    ran = cli("cache", "--verify", tmp_path / "cache")
    assert ran.code == 2
    assert f"{shard}: the checksum does not match" in ran.err


def test_several_hook_points_serve_several_dictionaries(cli, recipe, tmp_path):
    folder, wide = tmp_path / "cache", "transformer.h.0.mlp.c_fc"
    ran = cli("cache", recipe, "--output", folder, "--hook-point", wide, "--hook-point", wide, "--dtype", "bfloat16")
    assert ran.code == 0, ran.err
    cache = CachedActivations.open(folder)
    assert cache.manifest.widths == {"blocks.1.hook_resid_post": 16, wide: 64}
    for name, width in cache.manifest.widths.items():
        ran = cli(
            "train", recipe, "--output", tmp_path / f"run{width}", "-o", f"cache={folder}", "-o", f"hook_point={name}"
        )
        assert ran.code == 0, ran.err
        assert json.loads((tmp_path / f"run{width}" / "dictionary" / "cfg.json").read_text())["d_in"] == width
    transcoder = recipe.with_name("transcoder.toml")
    transcoder.write_text(
        recipe.read_text()
        .replace('"topk"', '"topk_transcoder"')
        .replace('hook_point = "', f'hook_point_out = "{wide}"\nhook_point = "')
    )
    ran = cli("train", transcoder, "--output", tmp_path / "transcoder", "-o", f"cache={folder}")
    assert ran.code == 0, ran.err
    assert cli("cache", transcoder, "--output", tmp_path / "both").code == 0
    assert CachedActivations.open(tmp_path / "both").hook_points == ["blocks.1.hook_resid_post", wide]


def test_the_recipe_may_say_where_the_cache_is(cli, recipe, tmp_path):
    own = recipe.with_name("cached.toml")
    own.write_text(f'cache = "{tmp_path / "cache"}"\n' + recipe.read_text())
    ran = cli("train", own, "--output", tmp_path / "run")
    assert ran.code == 2
    assert f"{tmp_path / 'cache'} is not a cache of activations" in ran.err
    assert cli("cache", own).code == 0
    ran = cli("train", own, "--output", tmp_path / "run", "--overwrite")
    assert ran.code == 0, ran.err


def test_what_is_there_is_kept_unless_one_says_so(cli, recipe, tmp_path):
    folder = tmp_path / "cache"
    assert cli("cache", recipe, "--output", folder, "--resume").code == 0  # nothing to go on with: a start
    before = files(folder)
    ran = cli("cache", recipe, "--output", folder)
    assert ran.code == 2
    assert "already holds a cache; pass --overwrite" in ran.err
    ran = cli("cache", recipe, "--output", folder, "--resume")
    assert ran.code == 0
    assert f"{folder} is finished: " in ran.out
    ran = cli("cache", recipe, "--output", folder, "--resume", "-o", "windows.context_size=16")
    assert ran.code == 2
    assert "windows.context_size is 32 in the cache, and 16 is asked for" in ran.err
    assert files(folder) == before
    ran = cli("cache", recipe, "--output", folder, "--overwrite", "-o", "windows.context_size=16")
    assert ran.code == 0, ran.err
    assert CachedActivations.open(folder).windows.config.context_size == 16


def test_mistakes_are_one_clear_line(cli, recipe, tmp_path):
    for arguments, said in (
        ([], "Give a recipe, or --verify FOLDER"),
        ([recipe], 'where to? Give --output FOLDER, or write cache = "FOLDER"'),
        ([recipe, "--verify", tmp_path], "leave the recipe out"),
        (["--verify", tmp_path], "is not a cache of activations"),
        ([recipe, "--output", tmp_path / "c", "--dtype", "int8"], "a cache has dtype float32, bfloat16, float16"),
        ([recipe, "--output", tmp_path / "c", "--hook-point", "blocks.9.hook_resid_post"], "3 blocks, 0 to 2"),
    ):  # fmt: skip
        ran = cli("cache", *arguments)
        assert ran.code == 2
        assert said in ran.err
        assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_a_full_disk_is_one_clear_line_and_the_run_goes_on(cli, recipe, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        ran = cli("cache", recipe, "--output", tmp_path / "cache")
    assert ran.code == 2
    assert ran.err.startswith(f"saescope: {tmp_path / 'cache'}: the disk is too small: ")
    assert "1 kB are free" in ran.err
    assert cli("cache", recipe, "--output", tmp_path / "cache", "--resume").code == 0


def test_ctrl_c_leaves_a_cache_that_can_be_gone_on_with(cli, recipe, tmp_path, monkeypatch):
    from saescope.models import LanguageModel

    original, calls, sizes = LanguageModel.read, 0, []

    def read(self, ids, *arguments, **settings):
        nonlocal calls
        calls += 1
        sizes.append(len(ids))
        if calls == 3:  # the first asks for the width
            raise KeyboardInterrupt
        return original(self, ids, *arguments, **settings)

    monkeypatch.setattr(LanguageModel, "read", read)
    ran = cli("cache", recipe, "--output", tmp_path / "cache")
    assert ran.code == 130
    assert "the same command with --resume goes on" in ran.out
    ran = cli("cache", recipe, "--output", tmp_path / "cache", "--resume", "-o", "stream.model_batch_size_windows=5")
    assert ran.code == 0, ran.err
    assert (max(sizes[:3]), max(sizes[3:])) == (32, 5)
    assert "(0 of 1 shards are there)" in ran.out


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_is_the_same_to_the_byte(tmp_path):
    """A real process on the bundled model, killed six times at random moments: before, between and within shards."""
    settings = ["-o", "windows.max_tokens=60000", "-o", "windows.context_size=64", "--shard-size-mb", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(folder, *more):
        return [sys.executable, "-m", "saescope", "cache", "demo", "--output", str(folder), *settings, *more]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, env=environment)
    whole, killed = files(tmp_path / "whole"), tmp_path / "killed"
    rng, kills = random.Random(0), 0

    def num_shards():
        return len(list(killed.glob("shard-*.safetensors")))

    while kills < 6:
        before = num_shards()
        process = subprocess.Popen(
            command(killed, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        further = rng.randint(1, 4) if kills else 0  # the first one dies when there is hardly a folder
        while process.poll() is None and (num_shards() < before + further or not killed.exists()):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1 if kills else 0.02))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            kills += 1
        else:  # a machine so busy that the write was finished before it could be killed: once more from the start
            assert process.returncode == 0
            shutil.rmtree(killed)
            continue
        for name, data in files(killed).items():  # whatever is there under its own name is whole
            assert name == "manifest.json" or name.endswith(".partial") or data == whole[name], name
    ran = subprocess.run(command(killed, "--resume"), capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert files(killed) == whole
    assert CachedActivations.open(killed, verify=True).manifest.num_shards > 40
