"""A run that is killed outright goes on from its checkpoint to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from saescope.dictionaries import load_dictionary


@pytest.mark.slow
def test_sigkill_at_any_moment_then_resume_gives_the_same_weights(recipe, tmp_path):
    def command(folder, *more):
        settings = ["-o", "training.num_tokens=40960", "-o", "training.checkpoint_every_n_steps=5"]
        return [sys.executable, "-m", "saescope", "train", str(recipe), "--output", str(folder), *settings, *more]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    kills = 0
    killed = tmp_path / "killed"
    for delay in (0.05, 0.4, 0.9):
        process = subprocess.Popen(
            command(killed, *(["--resume"] if killed.exists() else [])),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = sorted((killed / "checkpoints").glob("step-*")) if killed.exists() else []
        while process.poll() is None and sorted((killed / "checkpoints").glob("step-*")) in ([], before):
            time.sleep(0.01)  # until this process has written a checkpoint of its own
        time.sleep(delay)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    ran = subprocess.run(command(killed, "--resume"), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert kills
    whole, resumed = load_dictionary(tmp_path / "whole" / "dictionary"), load_dictionary(killed / "dictionary")
    for name, parameter in whole.named_parameters():
        assert parameter.equal(resumed.get_parameter(name)), name


@pytest.mark.slow
def test_an_evaluation_that_is_killed_keeps_what_was_finished(trained, tmp_path, monkeypatch):
    kept, out = tmp_path / "kept", tmp_path / "out"
    monkeypatch.setenv("SAESCOPE_CACHE", str(kept))
    studies = ("core", "l0", "meta_structure")
    command = [
        sys.executable,
        "-m",
        "saescope",
        "eval",
        str(trained),
        "--studies",
        ",".join(studies),
        "--out",
        str(out),
    ]

    def results():
        return {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")}

    finished = {}
    for _ in range(2):  # after the first result, and after one more
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(results()) == len(finished):
            time.sleep(0.002)
        assert process.poll() is None, "it came to its end before it was killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert finished.items() <= results().items()
        finished = results()
    assert not out.exists()
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert finished.items() <= results().items()  # found, not made again
    report = json.loads((out / "report.json").read_text())
    assert list(report["dictionaries"][0]["studies"]) == list(studies)
    assert not any(result["failure"] for result in report["dictionaries"][0]["studies"].values())
