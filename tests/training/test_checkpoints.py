"""Stopping and going on: the same weights, bit for bit, as from a run that was never stopped."""

from __future__ import annotations

import errno
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
from saescope.dictionaries.saving import new_folder_beside, replace_folder
from saescope.dictionaries.saving import write_tensors as save_tensors
from saescope.metrics import explained_variance
from saescope.training import NonFiniteActivationsError, Run, StepMetrics, TrainingConfig, train
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


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "of another step", "a folder"])
def test_every_kind_of_damage_to_tensors_is_seen(toy_stream, whole, stopped, damage):
    path = stopped / "checkpoints" / "step-00000010" / "state.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        other = (stopped / "checkpoints" / "step-00000005" / "state.safetensors").read_bytes()
        path.write_bytes({"truncated": content[:-1], "empty": b"", "of another step": other}[damage])
    with pytest.warns(UserWarning, match=r"step-00000010 is damaged \(.*\); trying the one before it") as warned:
        dictionary = _resumed(toy_stream, stopped)
    assert len(warned) == 1
    assert _same(dictionary, whole[0])
    assert _log(stopped) == _log(whole[1])


@pytest.mark.parametrize(
    "change",
    [
        {"step": 9}, {"num_taken": 9}, {"num_skipped": 1}, {"settled": True}, {"stream": {"drawn": 9}},
        {"normalizer": {"kind": "scale", "scale_in": 1.0, "scale_out": 1.0}}, {"more": 1}, {"sha256": "0" * 64},
        {"own_sha256": "0" * 64},
    ],
)  # fmt: skip
def test_one_changed_number_among_the_values_is_seen(stopped, change):
    path = stopped / "checkpoints" / "step-00000010" / "state.json"
    values = json.loads(path.read_text())
    assert newest_checkpoint(stopped / "checkpoints").step == 10
    path.write_text(json.dumps(values))  # another form of the same values is no damage
    assert newest_checkpoint(stopped / "checkpoints").step == 10
    path.write_text(json.dumps(values | change))
    with pytest.warns(UserWarning, match=r"step-00000010 is damaged \(the checksum does not match\)"):
        assert newest_checkpoint(stopped / "checkpoints").step == 5


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


def _write(folder: Path, *steps: int, **keep: Any) -> None:
    for step in steps:
        write_checkpoint(
            folder, Checkpoint(step, {"x": torch.tensor([step])}, {"scale": 1.5}), **{"keep_last": 9, **keep}
        )


def _steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (1, None, [21]),
        (2, None, [18, 21]),
        (1, 6, [6, 12, 18, 21]),
        (2, 6, [6, 12, 18, 21]),
        (3, 10, [15, 18, 21]),  # none of these steps is due
        (1, 7, [21]),
        (9, 3, [3, 6, 9, 12, 15, 18, 21]),
        (2, 9, [9, 18, 21]),
    ],
)
def test_exactly_the_checkpoints_asked_for_are_kept(toy_stream, tmp_path, keep_last, keep_every, kept):
    config = _config(21, checkpoint_every_n_steps=3, keep_last=keep_last, keep_every_n_steps=keep_every)
    train(_topk(), toy_stream(), config, folder=tmp_path)
    assert _steps(tmp_path / "checkpoints") == kept
    assert newest_checkpoint(tmp_path / "checkpoints").step == 21


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize("name", ["keep_last", "keep_every_n_steps"])
def test_keeping_none_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        _config(**{name: value})


def test_a_copy_that_somebody_put_aside_is_no_checkpoint_and_stays(tmp_path):
    _write(tmp_path, 3)
    for name in ("step-00000003-good", "step-00000009.bak", "step-best", "step-00000001.tar.gz"):
        (tmp_path / name).mkdir()
    _write(tmp_path, 6, 9, keep_last=1, keep_every_n_steps=2)
    names = ["step-00000001.tar.gz", "step-00000003-good", "step-00000006", "step-00000009", "step-00000009.bak"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "step-best"]
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000006", "step-00000009"]


def test_steps_are_counted_as_numbers(tmp_path):
    _write(tmp_path, 99_999_999, 100_000_000, keep_last=1)
    assert _steps(tmp_path) == [100_000_000]
    _write(tmp_path, 99_999_999)
    assert newest_checkpoint(tmp_path).step == 99_999_999  # the other is of another future


class _Killed(BaseException):
    """Stands for the end of the process; what a handler of exceptions does is undone by the test."""


def _killed_at(monkeypatch: pytest.MonkeyPatch, point: str, number: int = 1) -> list[str]:
    seen: list[str] = []

    def reached(name: str) -> None:
        seen.append(name)
        if name == point and seen.count(point) == number:
            raise _Killed

    monkeypatch.setattr("saescope.training.checkpoint.reached", reached)
    return seen


def test_what_a_kill_before_the_pruning_left_goes_with_the_next(tmp_path, monkeypatch):
    _write(tmp_path, 3, 6, keep_last=2)
    with monkeypatch.context() as patch:
        _killed_at(patch, "renamed")
        with pytest.raises(_Killed):
            _write(tmp_path, 9, keep_last=2)
    assert _steps(tmp_path) == [3, 6, 9]  # the new one stands
    with monkeypatch.context() as patch:
        _killed_at(patch, "pruned")
        with pytest.raises(_Killed):
            _write(tmp_path, 12, keep_last=2)
    assert _steps(tmp_path) == [6, 9, 12]  # one of two has gone
    (tmp_path / "step-00000013.partial").mkdir()  # of a Ctrl-C; no later write has that name
    _write(tmp_path, 15, keep_last=2)
    assert _steps(tmp_path) == [12, 15]


def test_what_a_kill_at_the_very_end_left_goes_when_the_run_is_resumed(toy_stream, tmp_path, monkeypatch):
    dictionary = _topk()
    with monkeypatch.context() as patch:
        _killed_at(patch, "renamed", 4)
        with pytest.raises(_Killed):
            train(dictionary, toy_stream(), _config(), folder=tmp_path)
    (tmp_path / "checkpoints" / "step-00000019.partial").mkdir()
    assert len(_names(tmp_path)) == 4
    again = _resumed(toy_stream, tmp_path)
    assert _names(tmp_path) == ["step-00000015", "step-00000020"]
    assert _same(again, dictionary)


def test_every_point_at_which_a_write_may_be_cut_off_is_passed(toy_stream, tmp_path, monkeypatch):
    seen = _killed_at(monkeypatch, "never")
    train(_topk(), toy_stream(), _config(), folder=tmp_path)
    write = ["begun", "dictionary written", "tensors written", "values written", "renamed"]
    assert seen == write * 2 + [*write, "pruned"] * 2


@pytest.mark.parametrize("moment", [1, 2])
def test_a_checkpoint_that_was_to_be_replaced_is_there_at_every_moment(tmp_path, monkeypatch, moment):
    """The same step is written again after a Ctrl-C; between the two renames the old one has another name."""
    _write(tmp_path, 12, keep_last=1)
    rename, calls = Path.rename, []

    def cut_off(self: Path, target: Any) -> Any:
        if self.name.startswith("step-") and ".old" not in self.name:  # not what puts things back
            calls.append(self)
            if len(calls) >= moment:
                raise _Killed
        elif len(calls) >= moment:
            raise _Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut_off)
        with pytest.raises(_Killed):
            _write(tmp_path, 12, keep_last=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000012" + [".old", ""][moment == 1]]
    assert newest_checkpoint(tmp_path).tensors["x"].tolist() == [12]
    _write(tmp_path, 12, keep_last=1)
    assert _steps(tmp_path) == [12]
    (tmp_path / "step-00000012.old").mkdir()  # a kill just before it is removed
    assert newest_checkpoint(tmp_path).tensors["x"].tolist() == [12]
    _write(tmp_path, 14, keep_last=1)
    assert _steps(tmp_path) == [14]


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


@pytest.mark.parametrize("part", ["dictionary", "tensors", "values", "rename", "folder"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_costs_no_more_than_the_steps_since_the_checkpoint_before(
    toy_stream, whole, tmp_path, monkeypatch, part, nth
):
    """Whichever file it is that does not fit."""
    calls = []

    def until_full(original: Any) -> Any:
        def write(*arguments: Any, **settings: Any) -> Any:
            if part == "values" and Path(arguments[0]).name != "state.json":
                return original(*arguments, **settings)
            calls.append(1)
            if len(calls) < nth:
                return original(*arguments, **settings)
            if part == "tensors":  # half of it is there
                Path(arguments[1]).write_bytes(b"half of the")
            raise OSError(errno.ENOSPC, "No space left on device")

        return write

    places = {
        "dictionary": ("saescope.dictionaries.saving.write_tensors", save_tensors),
        "tensors": ("saescope.training.checkpoint.write_tensors", save_tensors),
        "values": ("pathlib.Path.write_text", Path.write_text),
        "rename": ("saescope.training.checkpoint.replace_folder", replace_folder),
        "folder": ("saescope.training.checkpoint.new_folder_beside", new_folder_beside),
    }
    run, (place, original) = tmp_path / "run", places[part]
    with monkeypatch.context() as patch:
        patch.setattr(place, until_full(original))
        with pytest.raises(OSError, match=rf"checkpoint .*step-{5 * nth:08d} could not be written: .*No space left"):
            train(_topk(), toy_stream(), _config(), folder=run)
    left = ["step-00000005"] if nth == 2 else []
    assert not (run / "checkpoints").exists() or _names(run) == left  # nothing half-written takes up room
    found = newest_checkpoint(run / "checkpoints")
    assert (found.step if found else None) == (5 if nth == 2 else None)
    if found:
        assert load_dictionary(run / "checkpoints" / "step-00000005" / "dictionary").d_sae == D_SAE
    resumed = _resumed(toy_stream, run) if found else _topk()
    if not found:
        train(resumed, toy_stream(), _config(), folder=run, resume=True)
    assert _same(resumed, whole[0])
    assert _log(run) == _log(whole[1])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_is_full_for_the_log_alone(toy_stream, whole, tmp_path, monkeypatch):
    """The dictionary comes back on raw activations all the same, and the run goes on from its checkpoint."""
    opened = Run._open_log

    def with_a_full_disk(self: Run) -> Any:
        opened(self).close()
        return open("/dev/full", "w") if len(logs) == 2 else open(self.folder / "metrics.jsonl", "a")

    run, logs, folded = tmp_path / "run", [1], _topk()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_open_log", with_a_full_disk)
        with pytest.raises(RuntimeError, match="power went off"):
            train(_topk(), toy_stream(spoil={7: POWER_CUT}), _config(), folder=run)
        logs.append(2)
        with pytest.raises(OSError, match="No space left"):
            train(folded, toy_stream(), _config(), folder=run, resume=True)
    expected = _topk()
    with pytest.raises(RuntimeError, match="power went off"):
        train(expected, toy_stream(spoil={6: POWER_CUT}), _config())  # where the first line was due
    assert _same(folded, expected)
    assert _same(_resumed(toy_stream, run), whole[0])
    assert _log(run) == _log(whole[1])


def test_the_log_is_on_the_disk_before_a_checkpoint_that_counts_on_it(toy_stream, tmp_path, monkeypatch):
    """A power cut may cost what was not synced: never a line of a step that will not be made again."""
    synced: list[str] = []
    original = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        original(handle)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc to tell what is synced")
    monkeypatch.setattr(os, "fsync", noted)
    train(_topk(), toy_stream(), _config(6), folder=tmp_path)
    logs = [number for number, name in enumerate(synced) if name == "metrics.jsonl"]
    states = [number for number, name in enumerate(synced) if name == "state.json"]
    assert len(logs) == len(states) == 2
    assert all(log < state for log, state in zip(logs, states, strict=True))
    for name in ("state.safetensors", "sae_weights.safetensors", "cfg.json", "checkpoints"):
        assert synced.count(name) == 2, name


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


def test_the_run_of_another_architecture_is_refused_though_its_tensors_fit(toy_stream, stopped):
    dictionary = ReLU(DictionaryConfig(d_in=D_IN, d_sae=D_SAE))
    log = (stopped / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"holds the run of another dictionary: topk with .*, not relu with"):
        train(dictionary, toy_stream(), _config(), folder=stopped, resume=True)
    assert (stopped / "metrics.jsonl").read_text() == log


def test_a_refused_dictionary_keeps_its_normalisation(toy_stream, stopped):
    dictionary, fresh = ReLU(DictionaryConfig(d_in=D_IN, d_sae=D_SAE)), next(toy_stream(50, seed=4))
    train(dictionary, toy_stream(), _config(6, normalization="layer_norm"))
    before = dictionary(fresh)
    with pytest.raises(ValueError, match="another dictionary"):
        train(dictionary, toy_stream(), _config(), folder=stopped, resume=True)
    assert dictionary(fresh).equal(before)


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
