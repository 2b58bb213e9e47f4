"""Killed outright, again and again, at moments chosen by chance and by design: the end is that of a run never stopped.

A child process trains three dictionaries in one pass on a tiny model's activations. It kills itself with SIGKILL, so
that nothing of Python's can tidy up: a seeded fraction of a second after some step (wherever it then is: in a step, in
the model's forward pass in the other thread, in a line of the log, in a write), or at a named point of a certain write.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from saescope.training.checkpoint import newest_checkpoint

NAMES = ("topk", "batch_topk", "jumprelu")
STEPS = {"topk": 96, "batch_topk": 60, "jumprelu": 96}
SHORT = STEPS["batch_topk"]

CHILD = """
import json, os, pickle, shutil, signal, sys, threading, traceback
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from saescope.activations import ActivationStream, StreamConfig
from saescope.dictionaries import BatchTopK, BatchTopKConfig, JumpReLU, JumpReLUConfig, TopK, TopKConfig
from saescope.models import LanguageModel
from saescope.training import Run, TrainingConfig, train_many
from saescope.training import checkpoint as checkpoints
from saescope.training import run as run_module

windows = pickle.loads(Path(sys.argv[1]).read_bytes())

def train(folder, plan):
    batch = 64
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=3, n_head=2,
                                        bos_token_id=0, eos_token_id=0, initializer_range=0.3))
    hooks = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    stream = ActivationStream(LanguageModel(module, None, "tiny"), windows, hooks, batch_size_tokens=batch,
                              config=StreamConfig(buffer_size_tokens=600, model_batch_size_windows=4), seed=1)

    def config(num_steps, **settings):
        return TrainingConfig(num_tokens=num_steps * batch, batch_size_tokens=batch, lr=0.01, num_warmup_steps=5,
                              dead_after_tokens=4 * batch, log_every_n_steps=3, checkpoint_every_n_steps=4, keep_last=2,
                              num_prefetched_batches=3, num_threshold_tokens=6 * batch, **settings)

    steps = plan["steps"]
    runs = [
        Run(TopK(TopKConfig(d_in=16, d_sae=64, k=3)), folder=folder / "topk",
            config=config(steps["topk"], sparse_kernels="always", resample_every_n_steps=10,
                          num_normalization_tokens=3 * batch)),
        Run(BatchTopK(BatchTopKConfig(d_in=16, d_sae=48, k=2.5), seed=1), folder=folder / "batch_topk",
            config=config(steps["batch_topk"], sparse_kernels="always")),
        Run(JumpReLU(JumpReLUConfig(d_in=16, d_sae=32), seed=2), folder=folder / "jumprelu",
            config=config(steps["jumprelu"], sparse_kernels="never", keep_every_n_steps=40,
                          num_normalization_tokens=5 * batch)),
    ]
    assert [run.stepper.kernels is not None for run in runs] == [True, True, False]

    calls, done, writing, counts = 0, 0, "", {}

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def armed():
        return plan["after_step"] >= 0 and done >= plan["after_step"] and calls >= plan["after_calls"]

    def on_step(now, total):
        nonlocal calls, done
        calls, done = calls + 1, now
        if armed() and not plan["point"] and not counts:
            counts["timer"] = 1
            threading.Timer(plan["delay"], die).start() if plan["delay"] else die()

    def reached(point):
        if plan["point"] == point and armed() and plan["run"] in ("", writing):
            counts[point] = counts.get(point, 0) + 1
            if counts[point] == plan["nth"]:
                die()

    original, rmtree, fit = run_module.write_checkpoint, shutil.rmtree, BatchTopK.fit_threshold

    def write(place, *arguments, **settings):
        nonlocal writing
        writing = place.parent.name
        return original(place, *arguments, **settings)

    def remove(path, **settings):
        if plan["point"] == "half pruned" and Path(path).suffix == "" and armed():
            (Path(path) / "state.json").unlink()
            die()
        rmtree(path, **settings)

    def settle(self, batches):
        if plan["point"] == "fit" and armed():
            self.threshold.fill_(7)
            die()
        fit(self, batches)

    checkpoints.reached, run_module.write_checkpoint, shutil.rmtree, BatchTopK.fit_threshold = reached, write, remove, settle
    hooked = [lambda item: item.values[hooks[0]], lambda item: item.values[hooks[1]], lambda item: item.values[hooks[1]]]
    train_many(runs, stream, pick=hooked, resume=plan["resume"], on_step=on_step)

for line in sys.stdin:  # a process of its own for each, forked from this one, which has done nothing but import
    plan = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            train(Path(plan["folder"]), plan)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class _Kill:
    """When the child is to die: at the n-th time that a point is reached, or ``delay`` seconds after a step."""

    after_step: int = -1  # steps done of the longest run; -1: never
    point: str = ""
    nth: int = 1
    run: str = ""  # the run whose checkpoint is written; any where empty
    delay: float = 0.0
    after_calls: int = 0  # batches that this process has trained on
    resume: bool = True


def _kills() -> list[_Kill]:
    chance = random.Random(0)
    kills = [
        _Kill(0, after_calls=2, resume=False),  # the normalisation is being measured
        _Kill(0, delay=0.05 * chance.random(), after_calls=4),
        _Kill(2, delay=0.02 * chance.random()),
        _Kill(4, "begun", nth=chance.randint(1, 3)),
        _Kill(6, "dictionary written", nth=chance.randint(1, 4)),
        _Kill(9, delay=0.05 * chance.random()),
        _Kill(11, "tensors written", nth=chance.randint(1, 4)),
        _Kill(15, "values written", nth=chance.randint(1, 4)),
        _Kill(18, delay=0.05 * chance.random()),
        _Kill(23, "renamed", run="topk"),
        _Kill(26, "pruned", run="topk"),  # the first of two
        _Kill(30, "half pruned"),
        _Kill(34, delay=0.1 * chance.random()),
        _Kill(42, "values written", run="jumprelu"),
        _Kill(SHORT + 3),  # the batches for the threshold
        _Kill(SHORT, "fit"),
        _Kill(SHORT + 4, "tensors written", run="batch_topk"),
        _Kill(SHORT + 4, "renamed", run="batch_topk"),  # one is finished, the others are not
        _Kill(SHORT + 10, delay=0.1 * chance.random()),
        _Kill(90, "renamed", run="topk", nth=2),  # of its last checkpoint: there is nothing left to do but to prune
    ]
    assert (
        sum(kill.point in ("begun", "dictionary written", "tensors written", "values written") for kill in kills) >= 3
    )
    return kills


@pytest.fixture
def child(windows, tmp_path):
    """``child(folder, kill)`` trains in a process of its own and gives its exit code."""
    script, text = tmp_path / "child.py", tmp_path / "windows.pickle"
    script.write_text(CHILD)
    text.write_bytes(pickle.dumps(windows))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning:saescope", str(script), str(text)]
    with open(tmp_path / "errors.txt", "w") as errors:
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert server.stdin is not None
    assert server.stdout is not None

    def start(folder: Path, kill: _Kill) -> int:
        server.stdin.write(json.dumps({**asdict(kill), "steps": STEPS, "folder": str(folder)}) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline().strip()
        assert answer in ("0", str(-signal.SIGKILL)), (tmp_path / "errors.txt").read_text()
        return int(answer)

    yield start
    server.stdin.close()
    assert server.wait(timeout=60) == 0
    server.stdout.close()


def _log(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({key: value for key, value in line.items() if key != "tokens_per_second"}) for line in lines]


def _names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


def _files(folder: Path) -> dict[str, bytes]:
    """All files but the logs, by their place in the folder."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "metrics.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_twenty_kills_change_not_one_bit(child, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert child(whole, _Kill(resume=False)) == 0
    seen: dict[str, Any] = {}
    for kill in _kills():
        assert child(killed, kill) == -signal.SIGKILL, kill
        names = {name: _names(killed / name) for name in NAMES}
        if kill.point in ("begun", "dictionary written", "tensors written", "values written"):
            assert any(part.endswith(".partial") for parts in names.values() for part in parts), kill
        seen[f"{kill.point} {kill.run} {kill.after_step}"] = names
    # what the kills were to leave is what they left
    extra = seen["renamed topk 23"]["topk"]
    assert len(extra) in (3, 4)  # one more where chance killed the run before at the same point
    assert len(seen["pruned topk 26"]["topk"]) == len(extra)
    assert extra[0] not in seen["pruned topk 26"]["topk"]
    assert seen["fit  60"]["batch_topk"][-1] < f"step-{SHORT:08d}"
    assert seen["tensors written batch_topk 64"]["batch_topk"][-1] == f"step-{SHORT:08d}.partial"
    assert seen["renamed batch_topk 64"]["batch_topk"][-1] == f"step-{SHORT:08d}"
    assert seen["renamed topk 90"]["topk"][-1] == f"step-{STEPS['topk']:08d}"
    assert len(seen["renamed topk 90"]["topk"]) == 3

    assert child(killed, _Kill()) == 0
    for name in NAMES:
        assert _log(killed / name) == _log(whole / name), name
        assert len(_log(whole / name)) == STEPS[name] // 3
        a, b = (newest_checkpoint(folder / name / "checkpoints") for folder in (killed, whole))
        assert a.step == b.step == STEPS[name]
        assert a.values == b.values, name
        assert a.values["settled"]
        assert a.tensors.keys() == b.tensors.keys()
        for key, tensor in a.tensors.items():  # weights, thresholds, moments, counters, the stream's rest
            assert tensor.equal(b.tensors[key]), (name, key)
    assert _files(killed) == _files(whole)  # not one more, and dictionaries are the same
    before = _files(killed)
    assert child(killed, _Kill()) == 0  # finished is finished
    assert _files(killed) == before
