"""``saescope advise-l0``, and sweeps of many dictionaries in few passes."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from saescope.cli import sweeps
from saescope.cli.advise_l0 import default_grid, measured, snapshot_steps, sweep_configs
from saescope.cli.recipe import load_recipe
from saescope.cli.sweeps import sweep_seconds, train_sweep
from saescope.dictionaries import load_dictionary
from saescope.evaluation.l0.advice import L0Advice
from saescope.evaluation.l0.measures import decoder_overlap


@pytest.fixture
def quiet():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def stopped(monkeypatch):
    """``with stopped(7):`` the optimizer fails at its seventh step."""
    from contextlib import contextmanager

    import saescope.training.stepper as stepper

    @contextmanager
    def run(at_step):
        made, original = 0, stepper.UnitNormAdam.step

        def step(self, *settings):
            nonlocal made
            made += 1
            if made == at_step:
                raise OSError("the power went off")
            return original(self, *settings)

        with monkeypatch.context() as patch:
            patch.setattr(stepper.UnitNormAdam, "step", step)
            with pytest.raises(OSError, match="the power went off"):
                yield

    return run


def weights(folder):
    return {name: tensor.tolist() for name, tensor in load_dictionary(folder / "dictionary").named_parameters()}


@pytest.fixture(scope="module")
def swept(recipe, tmp_path_factory):
    """The folder of a finished sweep: L0 2, 4 and 8, two seeds."""
    import sys

    from saescope.__main__ import main

    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["advise-l0", str(recipe), "--l0", "8,2,4", "--seeds", "2", "--output", str(folder)]
        patch.setattr(sys, "argv", ["saescope", *arguments])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    return folder


def test_the_files_of_a_sweep(swept):
    names = [f"small-l0-{l0}-seed-{seed}" for l0 in (2, 4, 8) for seed in (0, 1)]
    assert sorted(path.name for path in swept.iterdir()) == sorted([*names, "l0.json", "l0.png", "sweep.json"])
    document = json.loads((swept / "l0.json").read_text())
    assert [(p["setting"], p["seed"]) for p in document["points"]] == [
        (l0, seed) for l0 in (2, 4, 8) for seed in (0, 1)
    ]
    for name, point in zip(names, document["points"], strict=True):
        final = load_dictionary(swept / name / "dictionary")
        early = load_dictionary(swept / name / "checkpoints" / "step-00000007" / "dictionary")
        assert final.config.k == point["setting"]
        assert point["final"]["c_dec"] == decoder_overlap(final.W_dec).c_dec
        assert point["early"]["c_dec"] == decoder_overlap(early.W_dec).c_dec
        assert point["final"]["c_dec"] != point["early"]["c_dec"]
        # between 8 and 64 / 2, and L0 as asked for
        assert list(point["final"]["s"]) == ["12", "17", "24"] == list(point["early"]["s"])
        assert point["final"]["l0"] == pytest.approx(point["setting"], rel=0.05)
    assert weights(swept / names[0]) != weights(swept / names[1])
    advice = L0Advice.from_dict(document["advice"])
    assert [v.measure for v in advice.verdicts] == ["c_dec", "s_17"]
    assert document["context"]["training_seconds"] == sweep_seconds(swept) > 0


def test_the_screen_of_a_finished_sweep_and_no_training_the_second_time(cli, recipe, swept, tmp_path, monkeypatch):
    before = json.loads((swept / "l0.json").read_text())
    monkeypatch.setattr(sweeps, "train_runs", lambda *_, **__: pytest.fail("trained again"))
    ran = cli("advise-l0", recipe, "--l0", "2,4,8", "--output", swept, "--resume", "--json", tmp_path / "again.json")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "again.json").read_text()) == before
    assert "6 of 6 dictionaries are finished" in ran.out
    assert "training took" in ran.out
    for sentence in before["advice"]["sentences"]:
        assert sentence in ran.out
    rows = [line.split() for line in ran.out.splitlines() if line.strip().startswith(("2 ", "4 ", "8 "))]
    assert [row[0] for row in rows] == ["2", "4", "8"]
    low, high = sorted(point["final"]["c_dec"] for point in before["points"][:2])
    assert f"{(low + high) / 2:.4f} ({low:.4f} to {high:.4f})" in ran.out


def test_a_sweep_that_was_stopped_goes_on(recipe, quiet, stopped, swept, tmp_path):
    base = load_recipe(recipe)
    configs = [config for l0 in (2, 4, 8) for config in sweep_configs(base, l0, 2)]
    folder = tmp_path / "sweep"
    with stopped(31):  # in the second of three passes, of 20 steps each
        train_sweep(configs, folder, quiet, resume=False, dictionaries_per_pass=2)
    first = sweep_seconds(folder)
    assert first > 0
    finished = [(folder / config.name / "dictionary").exists() for config in configs]
    assert finished == [True, True, False, False, False, False]
    # those that are finished are not touched
    kept = (folder / configs[0].name / "dictionary" / "cfg.json").stat().st_mtime_ns
    paths = train_sweep(configs, folder, quiet, resume=True, dictionaries_per_pass=2)
    assert paths == [folder / config.name for config in configs]
    assert (paths[0] / "dictionary" / "cfg.json").stat().st_mtime_ns == kept
    assert sweep_seconds(folder) > first
    said = quiet.file.getvalue()
    assert f"training took {sweep_seconds(folder):,.0f} s, {first:,.0f} s of them earlier" in said
    assert "2 of 2 dictionaries are finished" in said
    for path in paths:  # however they were grouped, and wherever they were stopped
        assert weights(path) == weights(swept / path.name)


def test_a_sweep_has_as_many_passes_as_asked_for(recipe, quiet, tmp_path, monkeypatch):
    base = load_recipe(recipe)
    configs = [config for l0 in (2, 4, 8) for config in sweep_configs(base, l0, 1)]
    passes = []
    monkeypatch.setattr(
        sweeps, "train_runs", lambda runs, folders, *_, **__: passes.append([config.name for config in runs])
    )
    for number, size in enumerate((None, 2, 1)):
        train_sweep(configs, tmp_path / str(number), quiet, resume=False, dictionaries_per_pass=size)
    names = [config.name for config in configs]
    assert passes == [names, names[:2], names[2:], *([name] for name in names)]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        train_sweep(configs, tmp_path / "none", quiet, resume=False, dictionaries_per_pass=0)
    with pytest.raises(ValueError, match="at least one run"):
        train_sweep([], tmp_path / "none", quiet, resume=False)


def test_the_clock_writes_while_a_pass_runs(recipe, quiet, tmp_path, monkeypatch):
    """A kill, which nothing can answer, costs little of the time."""
    import time

    configs = sweep_configs(load_recipe(recipe), 2, 1)
    monkeypatch.setattr(sweeps, "_SECONDS_BETWEEN_WRITES", 0.01)
    seen = []

    def wait(*_, **__):
        while not sweep_seconds(tmp_path / "sweep"):
            time.sleep(0.01)
        seen.append(sweep_seconds(tmp_path / "sweep"))

    monkeypatch.setattr(sweeps, "train_runs", wait)
    train_sweep(configs, tmp_path / "sweep", quiet, resume=False)
    assert 0 < seen[0] <= sweep_seconds(tmp_path / "sweep")
    (tmp_path / "sweep" / "sweep.json").write_text('{"training_seconds": 1000}')
    monkeypatch.setattr(sweeps, "train_runs", lambda *_, **__: None)
    train_sweep(configs, tmp_path / "sweep", quiet, resume=True)
    assert 1000 <= sweep_seconds(tmp_path / "sweep") < 1100  # what earlier calls took counts
    (tmp_path / "sweep" / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep.json is damaged .*; remove it"):
        sweep_seconds(tmp_path / "sweep")


def test_what_is_there_is_not_written_over(cli, recipe, swept, quiet):
    ran = cli("advise-l0", recipe, "--l0", "2,4,8", "--output", swept)
    assert ran.code == 2
    assert "go on with --resume, or name another folder" in ran.err
    ran = cli("advise-l0", recipe, "--l0", "2,4,8", "--output", swept, "--resume", "-o", "training.lr=0.5")
    assert ran.code == 2
    assert "was begun with other settings (training)" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--l0", "2,4"], "at least three L0, got 2, 4"),
        (["--l0", "2,x"], "name numbers, parted by commas"),
        (["--l0", "2,-4,8"], "every number must be above 0"),
        (["--l0", "2,4,100"], "k must be a whole number between 1 and d_sae = 64, got 100"),
        (["--l0", "2,4,8", "-o", "training.num_tokens=256"], "2 training steps are too few"),
        (["--l0", "2,4,8", "-o", "dictionary={architecture='relu', d_sae=64}"], "can not be asked for an L0"),
        (["-o", "dictionary={architecture='jumprelu', d_sae=64}"], "names no L0 of its own"),
    ],
)
def test_what_can_not_be_swept_is_refused_before_anything_is_written(cli, recipe, tmp_path, arguments, said):
    ran = cli("advise-l0", recipe, "--output", tmp_path / "sweep", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "sweep").exists()


def test_n_out_of_range_is_an_error_in_words(cli, recipe, swept):
    ran = cli("advise-l0", recipe, "--l0", "2,4,8", "--output", swept, "--resume", "--n", "64")
    assert ran.code == 2
    assert "below the 64 rows of the decoder, got 64" in ran.err


def test_a_missing_snapshot_is_said(recipe, swept, quiet):
    base = load_recipe(recipe)
    with pytest.raises(FileNotFoundError, match="is gone"):
        measured(base, [2.0], [swept / "nowhere-0"], quiet)


def test_the_grid_left_out_and_the_snapshot(recipe):
    assert default_grid(load_recipe(recipe)) == [1, 2, 3, 4, 6, 8, 12]
    assert default_grid(load_recipe("demo")) == [16, 24, 32, 48, 64, 96, 128, 192]
    # (steps between checkpoints, step of the snapshot): near 75 %, a multiple, and no rarer than asked for
    assert snapshot_steps(10, 500) == (7, 7)
    assert snapshot_steps(2800, 500) == (420, 2100)
    for num_steps in range(3, 3000, 7):
        for at_most in (1, 13, 500):
            every, step = snapshot_steps(num_steps, at_most)
            assert 1 <= every <= at_most
            assert step % every == 0
            assert 2 * step > num_steps > step  # its next multiple is beyond the end
            assert step >= 0.5 * num_steps


def test_sweeps_of_other_architectures(recipe):
    jump = "dictionary={architecture='jumprelu', d_sae=64}"
    first, second = sweep_configs(load_recipe(recipe, [jump, "loss.l0_coefficient=2.0"]), 6.5, 2)
    assert first.loss == {"penalty": "quadratic", "target_l0": 6.5, "l0_coefficient": 2.0}
    assert (first.name, second.name) == ("small-l0-6.5-seed-0", "small-l0-6.5-seed-1")
    assert [config.dictionary["seed"] for config in (first, second)] == [0, 1]
    for name in ("batch_topk", "matryoshka", "ordered"):
        more = ["dictionary.widths=[16, 64]"] if name == "matryoshka" else []
        run = load_recipe(recipe, [f"dictionary.architecture={name}", "dictionary.seed=7", *more])
        (config,) = sweep_configs(run, 5.0, 1)
        assert (config.dictionary["k"], config.dictionary["seed"]) == (5, 7)
        assert config.name == "small-l0-5-seed-7"
