"""Stopping and going on: the same weights, bit for bit, as from a run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, ReLU, TopK, TopKConfig, load_dictionary
from saescope.dictionaries.base import DictionaryConfig
from saescope.metrics import explained_variance
from saescope.training import NonFiniteActivationsError, StepMetrics, TrainingConfig, train
from saescope.training.checkpoint import Checkpoint, checkpoints_in, newest_checkpoint, write_checkpoint

D_IN, D_SAE, BATCH = 12, 24, 32
POWER_CUT = RuntimeError("the power went off")


def _topk() -> TopK:
    return TopK(TopKConfig(d_in=D_IN, d_sae=D_SAE, k=2))


def _config(num_steps: int = 20, **settings: Any) -> TrainingConfig:
    defaults = {"batch_size_tokens": BATCH, "dead_after_tokens": 4 * BATCH, "log_every_n_steps": 2, "lr": 0.01}
    defaults |= {"checkpoint_every_n_steps": 5, "num_warmup_steps": 5, "num_tokens": num_steps * BATCH}
    return TrainingConfig(**{**defaults, **settings})


def _same(a: Dictionary, b: Dictionary) -> bool:
    return all(parameter.equal(b.get_parameter(name)) for name, parameter in a.named_parameters())


def _names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def _log(run: Path) -> list[dict[str, Any]]:
    """The lines of the log, without the one number that is a matter of the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def whole(toy_stream, tmp_path):
    """A run that was never stopped: its dictionary and folder."""
    dictionary = _topk()
    train(dictionary, toy_stream(), _config(), folder=tmp_path / "whole")
    return dictionary, tmp_path / "whole"


@pytest.fixture
def stopped(toy_stream, tmp_path):
    """The folder of the same run, cut off in its fourteenth step, with checkpoints at 5 and 10."""
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power went off"):
        train(_topk(), toy_stream(spoil={13: POWER_CUT}), _config(), folder=run)
    assert _names(run) == ["step-00000005", "step-00000010"]
    return run


def _resumed(toy_stream, run: Path, **settings: Any) -> Dictionary:
    dictionary = TopK(TopKConfig(d_in=D_IN, d_sae=D_SAE, k=2), seed=99)  # its own weights do not matter
    train(dictionary, toy_stream(), _config(**settings), folder=run, resume=True)
    return dictionary


def test_a_resumed_run_equals_one_that_was_never_stopped(toy_stream, whole, stopped):
    assert _same(_resumed(toy_stream, stopped), whole[0])
    assert _log(stopped) == _log(whole[1])
    assert _names(stopped) == _names(whole[1]) == ["step-00000015", "step-00000020"]
    a, b = (newest_checkpoint(run / "checkpoints") for run in (stopped, whole[1]))
    assert a.values == b.values
    assert a.tensors.keys() == b.tensors.keys()
    assert all(tensor.equal(b.tensors[name]) for name, tensor in a.tensors.items())


def test_a_relu_run_resumes_too(toy_stream, tmp_path):
    whole, resumed = (ReLU(DictionaryConfig(d_in=D_IN, d_sae=D_SAE)) for _ in range(2))
    train(whole, toy_stream(), _config())
    with pytest.raises(RuntimeError, match="power went off"):
        train(resumed, toy_stream(spoil={7: POWER_CUT}), _config(), folder=tmp_path)
    train(resumed, toy_stream(), _config(), folder=tmp_path, resume=True)
    assert _same(resumed, whole)


def test_a_run_may_be_stopped_again_and_again(toy_stream, whole, tmp_path):
    run = tmp_path / "run"
    for stop in (3, 6, 7, 12, 18):
        with pytest.raises(RuntimeError, match="power went off"):
            train(_topk(), toy_stream(spoil={stop: POWER_CUT}), _config(), folder=run, resume=True)
    assert _same(_resumed(toy_stream, run), whole[0])
    assert _log(run) == _log(whole[1])


@pytest.mark.parametrize("tail", ['{"step": 11, "num_tok', "\x00" * 40, "12\n", "{}\n"])
def test_a_log_that_was_cut_off_is_mended(toy_stream, whole, stopped, tail):
    with open(stopped / "metrics.jsonl", "a") as log:
        log.write(tail)
    assert _same(_resumed(toy_stream, stopped), whole[0])
    assert _log(stopped) == _log(whole[1])


def test_a_last_line_without_its_end_is_not_run_into_the_next(toy_stream, whole, stopped):
    lines = (stopped / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 10]
    (stopped / "metrics.jsonl").write_text("\n".join(kept))
    _resumed(toy_stream, stopped)
    assert _log(stopped) == _log(whole[1])


def test_a_kill_right_after_resuming_costs_no_line(toy_stream, stopped):
    on_disk = []
    train(
        _topk(), toy_stream(), _config(log_every_n_steps=100), folder=stopped, resume=True,
        on_step=lambda done, total: on_disk.append([line["step"] for line in _log(stopped)]),
    )  # fmt: skip
    assert on_disk[0] == [2, 4, 6, 8, 10]


def test_resuming_a_finished_run_trains_no_step(toy_stream, whole):
    dictionary, run = whole
    again = _topk()
    result = train(again, toy_stream(), _config(), folder=run, resume=True)
    assert _same(again, dictionary)
    assert (result.num_steps, result.last) == (20, None)
    assert newest_checkpoint(run / "checkpoints").step == 20


def test_resuming_what_never_began_begins(toy_stream, whole, tmp_path):
    dictionary = _topk()
    train(dictionary, toy_stream(), _config(), folder=tmp_path / "new", resume=True)
    assert _same(dictionary, whole[0])


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(toy_stream, whole, stopped):
    _damage(stopped / "checkpoints" / "step-00000010" / "state.safetensors")
    with pytest.warns(UserWarning, match=r"step-00000010 is damaged \(the checksum does not match\)") as warned:
        dictionary = _resumed(toy_stream, stopped)
    assert len(warned) == 1
    assert _same(dictionary, whole[0])
    assert _log(stopped) == _log(whole[1])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": 10}', "\xff"])
def test_every_kind_of_damage_is_seen(stopped, text):
    newest = stopped / "checkpoints" / "step-00000010"
    (newest / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"step-00000010 is damaged"):
        assert newest_checkpoint(stopped / "checkpoints").step == 5
    (newest / "state.json").unlink()
    with pytest.warns(UserWarning, match=r"step-00000010 is damaged"):
        assert newest_checkpoint(stopped / "checkpoints").step == 5


def test_a_run_with_nothing_but_damaged_checkpoints_is_not_begun_again_unasked(toy_stream, stopped):
    log = (stopped / "metrics.jsonl").read_text()
    for name in _names(stopped):
        _damage(stopped / "checkpoints" / name / "state.safetensors")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"every checkpoint in .*checkpoints is damaged; remove that folder"),
    ):
        _resumed(toy_stream, stopped)
    assert (stopped / "metrics.jsonl").read_text() == log


def test_only_the_newest_checkpoints_are_kept(toy_stream, tmp_path):
    for keep_last in (1, 3):
        run = tmp_path / str(keep_last)
        train(_topk(), toy_stream(), _config(18, keep_last=keep_last), folder=run)
        assert _names(run) == ["step-00000005", "step-00000010", "step-00000015", "step-00000018"][-keep_last:]


def test_a_checkpoint_from_an_abandoned_future_does_not_crowd_out_the_new_one(tmp_path):
    for step in (5, 10, 15, 12):
        write_checkpoint(tmp_path, Checkpoint(step, {"x": torch.tensor([step])}, {"scale": 1.5}), keep_last=2)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000010", "step-00000012"]
    found = newest_checkpoint(tmp_path)
    assert (found.step, found.values, found.tensors["x"].tolist()) == (12, {"scale": 1.5}, [12])


def test_a_new_run_does_not_start_among_the_checkpoints_of_another(toy_stream, stopped):
    before, log = _names(stopped), (stopped / "metrics.jsonl").read_text()
    with pytest.raises(FileExistsError, match="run already holds checkpoints of a run; resume it"):
        train(_topk(), toy_stream(), _config(), folder=stopped)
    assert _names(stopped) == before
    assert (stopped / "metrics.jsonl").read_text() == log


def test_each_checkpoint_holds_a_dictionary_for_raw_activations(toy_stream, tmp_path):
    stream, seen = toy_stream(), {}

    def keep(metrics: StepMetrics) -> None:
        seen[metrics.step] = (metrics.explained_variance, stream.given[-1][0])

    config = _config(log_every_n_steps=1, keep_last=9)
    trained = _topk()
    train(trained, stream, config, folder=tmp_path, on_metrics=keep, metadata={"model_name": "toy"})
    assert _names(tmp_path) == [f"step-{step:08d}" for step in (5, 10, 15, 20)]
    for name in _names(tmp_path):
        opened = load_dictionary(tmp_path / "checkpoints" / name / "dictionary")
        expected, raw = seen[int(name[5:])]
        assert explained_variance(raw, opened(raw)) == pytest.approx(expected, abs=1e-5)
        cfg = json.loads((tmp_path / "checkpoints" / name / "dictionary" / "cfg.json").read_text())
        assert cfg["metadata"]["model_name"] == "toy"
    assert _same(load_dictionary(tmp_path / "checkpoints" / "step-00000020" / "dictionary"), trained)


def test_a_checkpoint_appears_with_its_dictionary_or_not_at_all(toy_stream, tmp_path, monkeypatch):
    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("saescope.dictionaries.saving.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        train(_topk(), toy_stream(), _config(), folder=tmp_path)
    assert checkpoints_in(tmp_path / "checkpoints") == []
    monkeypatch.undo()
    _resumed(toy_stream, tmp_path)
    assert _names(tmp_path) == ["step-00000015", "step-00000020"]
    for path in checkpoints_in(tmp_path / "checkpoints"):
        assert sorted(part.name for part in path.iterdir()) == ["dictionary", "state.json", "state.safetensors"]


def test_a_double_precision_run_stays_double(toy_stream, tmp_path):
    whole, resumed = _topk().double(), _topk().double()
    train(whole, toy_stream(), _config())
    with pytest.raises(RuntimeError, match="power went off"):
        train(resumed, toy_stream(spoil={13: POWER_CUT}), _config(), folder=tmp_path)
    assert load_dictionary(tmp_path / "checkpoints" / "step-00000010" / "dictionary").W_dec.dtype == torch.float64
    train(resumed, toy_stream(), _config(), folder=tmp_path, resume=True)
    assert resumed.W_dec.dtype == torch.float64
    assert _same(resumed, whole)


def test_nothing_in_a_run_is_pickled(whole):
    files = [path for path in whole[1].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path


def test_nan_keeps_the_state_before_it(toy_stream, tmp_path):
    dictionary, after = _topk(), {}

    def keep(done: int, total: int) -> None:
        after.update({name: parameter.detach().clone() for name, parameter in dictionary.named_parameters()})

    with pytest.raises(NonFiniteActivationsError, match=rf"step 7: .* at blocks.3 .* kept in {tmp_path}/checkpoints"):
        train(
            dictionary, toy_stream(spoil={7: float("nan")}), _config(), folder=tmp_path, source="blocks.3", on_step=keep
        )
    kept = newest_checkpoint(tmp_path / "checkpoints")
    assert kept.step == 7
    for name, tensor in kept.part("dictionary").items():
        assert tensor.equal(after[name]), name
    assert _same(load_dictionary(tmp_path / "checkpoints" / "step-00000007" / "dictionary"), dictionary)
    stream = toy_stream()
    train(dictionary, stream, _config(), folder=tmp_path, resume=True)
    assert len(stream.given) == 13  # steps 8 to 20
    assert stream.drawn == 21  # the run went on after the spoilt batch


def test_nan_in_the_very_first_batch(toy_stream, tmp_path):
    with pytest.raises(NonFiniteActivationsError, match="step 0: the activations"):
        train(_topk(), toy_stream(spoil={0: float("nan")}), _config(), folder=tmp_path)
    kept = newest_checkpoint(tmp_path / "checkpoints")
    assert (kept.step, kept.values["normalizer"]) == (0, {})  # nothing was measured
    resumed = _resumed(toy_stream, tmp_path)
    assert all(bool(parameter.isfinite().all()) for parameter in resumed.parameters())
    assert _log(tmp_path)[-1]["step"] == 20


def test_a_stream_that_cannot_be_resumed_is_refused(toy_stream, stopped):
    with pytest.raises(ValueError, match=r"cannot be resumed: it has no state_dict\(\) and load_state_dict\(\)"):
        train(_topk(), (x for x in toy_stream()), _config(), folder=stopped, resume=True)
    assert _names(stopped) == ["step-00000005", "step-00000010"]


def test_a_stream_that_cannot_be_resumed_is_trained_on_all_the_same(toy_stream, whole, tmp_path):
    dictionary = _topk()
    train(dictionary, (x for x in toy_stream()), _config(), folder=tmp_path / "plain")
    assert _same(dictionary, whole[0])


def test_resuming_needs_a_folder(toy_stream):
    with pytest.raises(ValueError, match="can only be resumed from the folder"):
        train(_topk(), toy_stream(), _config(), resume=True)


def test_the_run_of_another_dictionary_is_refused(toy_stream, stopped):
    dictionary = TopK(TopKConfig(d_in=D_IN, d_sae=D_SAE + 1, k=2))
    with pytest.raises(ValueError, match=r"holds the run of another dictionary: .*\[24, 12\].*, not .*\[25, 12\]"):
        train(dictionary, toy_stream(), _config(), folder=stopped, resume=True)


def test_a_half_written_checkpoint_is_passed_over_and_swept(toy_stream, whole, stopped):
    leftover = stopped / "checkpoints" / "step-00000015.partial"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half of the")
    assert newest_checkpoint(stopped / "checkpoints").step == 10
    assert _same(_resumed(toy_stream, stopped), whole[0])
    assert _names(stopped) == _names(whole[1])


KILLED_RUN = """
import sys
from pathlib import Path
import torch
from saescope.dictionaries import TopK, TopKConfig
from saescope.training import TrainingConfig, train

class Stream:
    drawn = 0
    def __iter__(self):
        return self
    def __next__(self):
        self.drawn += 1
        return torch.randn(16, 64, generator=torch.Generator().manual_seed(self.drawn)) + 1
    def state_dict(self):
        return {"drawn": self.drawn}
    def load_state_dict(self, state):
        self.drawn = state["drawn"]

torch.set_num_threads(1)
folder = Path(sys.argv[1])
config = TrainingConfig(num_tokens=16 * 40, batch_size_tokens=16, checkpoint_every_n_steps=1, log_every_n_steps=1)
train(TopK(TopKConfig(d_in=64, d_sae=1024, k=4)), Stream(), config, folder=folder, resume=True)
"""


@pytest.mark.slow
def test_a_run_killed_while_it_writes_checkpoints_goes_on_bit_for_bit(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(KILLED_RUN)

    def start(run: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-W", "error", str(script), str(run)], env=environment)

    assert start(tmp_path / "whole").wait(timeout=120) == 0
    run, kills, writing = tmp_path / "run", 0, 0
    for target in (8, 25):
        process = start(run)
        deadline = time.monotonic() + 120
        # wait until that step is due and a checkpoint is being written, which at this size is most of the time
        while process.poll() is None and time.monotonic() < deadline:
            begun = sorted((run / "checkpoints").glob("step-*.partial"))
            if begun and begun[-1].name >= f"step-{target:08d}":
                process.send_signal(signal.SIGKILL)
                break
        kills += process.wait(timeout=60) == -signal.SIGKILL
        writing += any((run / "checkpoints").glob("*.partial"))
        assert newest_checkpoint(run / "checkpoints").step >= target - 2
    assert kills == 2
    assert writing >= 1
    assert start(run).wait(timeout=120) == 0
    finished: list[dict[str, Tensor]] = []
    for folder in (run, tmp_path / "whole"):
        checkpoint = newest_checkpoint(folder / "checkpoints")
        assert checkpoint.step == 40
        finished.append(checkpoint.tensors)
        assert [line["step"] for line in _log(folder)] == list(range(1, 41))
    assert finished[0].keys() == finished[1].keys()
    assert all(tensor.equal(finished[1][name]) for name, tensor in finished[0].items())
