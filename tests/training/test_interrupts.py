"""Ctrl-C and SIGTERM: the step in hand is finished and saved; the second time the end is at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saescope.dictionaries import BatchTopK, load_dictionary
from saescope.training import Run, TrainingConfig, train, train_many
from saescope.training.checkpoint import newest_checkpoint
from saescope.training.interrupts import polite_interrupts

BATCH, STEPS = 32, 12
BOTH = [signal.SIGINT, signal.SIGTERM]


def _config(**settings: Any) -> TrainingConfig:
    defaults = {"num_tokens": STEPS * BATCH, "batch_size_tokens": BATCH, "lr": 0.01, "num_warmup_steps": 3}
    defaults |= {"checkpoint_every_n_steps": 50, "log_every_n_steps": 2, "num_threshold_tokens": 4 * BATCH}
    return TrainingConfig(**{**defaults, **settings})


def _at(*steps: int, number: signal.Signals = signal.SIGINT) -> Callable[[int, int], None]:
    """An ``on_step`` that sends this process a signal in the n-th batches."""
    calls: list[int] = []

    def on_step(done: int, total: int) -> None:
        calls.append(done)
        for _ in range(steps.count(len(calls))):
            signal.raise_signal(number)

    return on_step


def _same(a: Any, b: Any) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(t.equal(states[1][key]) for key, t in states[0].items())


@pytest.fixture(autouse=True)
def _handlers_are_as_they_were() -> Iterator[None]:
    """Those of Python, though the tests may run in the background of a shell, where SIGINT is ignored."""
    python = [signal.default_int_handler, signal.SIG_DFL]
    before = [signal.signal(number, handler) for number, handler in zip(BOTH, python, strict=True)]
    yield
    after = [signal.getsignal(number) for number in BOTH]
    for number, handler in zip(BOTH, before, strict=True):
        signal.signal(number, handler)
    assert after == python


@pytest.mark.parametrize("num_prefetched", [0, 2])
@pytest.mark.parametrize("number", BOTH)
def test_the_step_in_hand_is_finished_and_saved(new, toy_stream, tmp_path, number, num_prefetched):
    whole, stopped, resumed = new("topk"), new("topk"), new("topk", seed=9)
    train(whole, toy_stream(), _config())
    config = _config(num_prefetched_batches=num_prefetched)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
        train(stopped, toy_stream(), config, folder=tmp_path, on_step=_at(5, number=number))
    if number == signal.SIGTERM:
        assert ended.value.code == 143
    assert newest_checkpoint(tmp_path / "checkpoints").step == 5
    assert _same(load_dictionary(tmp_path / "checkpoints" / "step-00000005" / "dictionary"), stopped)
    assert [threads.name for threads in threading.enumerate() if "prefetch" in threads.name] == []
    stream = toy_stream()
    train(resumed, stream, config, folder=tmp_path, resume=True)
    assert (len(stream.given) - 7) in range(num_prefetched + 2)
    assert _same(resumed, whole)


@pytest.mark.parametrize("number", BOTH)
def test_the_second_time_the_end_is_at_once(new, toy_stream, tmp_path, number):
    def end(*_: Any) -> None:
        raise ZeroDivisionError("the handler of before")

    before = signal.signal(number, end)
    try:
        with pytest.raises(ZeroDivisionError):
            train(new("topk"), toy_stream(), _config(), folder=tmp_path, on_step=_at(5, 5, number=number))
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_the_second_may_come_as_the_checkpoint_is_written(new, toy_stream, tmp_path, monkeypatch):
    """It is not written to the end then, and the one before it stands."""
    points: list[str] = []

    def reached(point: str) -> None:
        points.append(point)
        if points.count("tensors written") == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("saescope.training.checkpoint.reached", reached)
    config = _config(checkpoint_every_n_steps=4)
    with pytest.raises(KeyboardInterrupt):
        train(new("topk"), toy_stream(), config, folder=tmp_path, on_step=_at(6))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    whole, resumed = new("topk"), new("topk", seed=9)
    train(whole, toy_stream(), _config())
    train(resumed, toy_stream(), config, folder=tmp_path, resume=True)
    assert _same(resumed, whole)


def test_the_first_may_come_as_a_checkpoint_is_written(new, toy_stream, tmp_path, monkeypatch):
    """That is written to the end, and so is one more step."""
    points: list[str] = []

    def reached(point: str) -> None:
        points.append(point)
        if len(points) == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("saescope.training.checkpoint.reached", reached)
    with pytest.raises(SystemExit):
        train(new("topk"), toy_stream(), _config(checkpoint_every_n_steps=4), folder=tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_while_the_normalisation_is_measured_nothing_is_kept(new, toy_stream, tmp_path, batch):
    """The batches that were measured on are not in a checkpoint: they are read again."""
    config = _config(num_normalization_tokens=4 * BATCH, checkpoint_every_n_steps=1)
    whole, resumed = new("topk"), new("topk")
    train(whole, toy_stream(), config)
    with pytest.raises(KeyboardInterrupt):
        train(new("topk"), toy_stream(), config, folder=tmp_path, on_step=_at(batch))
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    train(resumed, toy_stream(), config, folder=tmp_path, resume=True)
    assert _same(resumed, whole)


@pytest.mark.parametrize("batch", [STEPS, STEPS + 1, STEPS + 3, STEPS + 4])
def test_while_the_threshold_is_measured(new, toy_stream, tmp_path, batch):
    """The last step is kept; the batches for the threshold are read again."""
    whole, resumed = new("batch_topk"), new("batch_topk", seed=9)
    train(whole, toy_stream(), _config(), folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(new("batch_topk"), toy_stream(), _config(), folder=tmp_path / "run", on_step=_at(batch))
    kept = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert (kept.step, kept.values["settled"], kept.values["num_taken"]) == (STEPS, False, STEPS)
    stream = toy_stream()
    train(resumed, stream, _config(), folder=tmp_path / "run", resume=True)
    assert len(stream.given) == 4
    assert _same(resumed, whole)
    files = [
        {path.relative_to(folder): path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()}
        for folder in (tmp_path / "run", tmp_path / "whole")
    ]
    assert files[0] == files[1]


def test_again_and_again(new, toy_stream, tmp_path):
    config = _config(num_normalization_tokens=2 * BATCH, num_prefetched_batches=1)
    whole, resumed = new("batch_topk"), new("batch_topk", seed=9)
    train(whole, toy_stream(), config, folder=tmp_path / "whole")
    for batch in (1, 3, 2, 1, 5, 4, 2):
        with pytest.raises(KeyboardInterrupt):
            train(
                new("batch_topk"), toy_stream(), config, folder=tmp_path / "run", resume=True, on_step=_at(batch)
            )  # fmt: skip
    train(resumed, toy_stream(), config, folder=tmp_path / "run", resume=True)
    assert _same(resumed, whole)
    names = [sorted(path.name for path in (tmp_path / run / "checkpoints").iterdir()) for run in ("run", "whole")]
    assert names[0][-1] == names[1][-1] == f"step-{STEPS:08d}"
    assert len(names[0]) == 2


def test_after_the_last_batch_it_is_not_swallowed(new, toy_stream, tmp_path, monkeypatch):
    """The run is finished, and what comes after it is not begun."""
    fit = BatchTopK.fit_threshold

    def interrupted(self: BatchTopK, batches: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        fit(self, batches)

    monkeypatch.setattr(BatchTopK, "fit_threshold", interrupted)
    stopped, whole = new("batch_topk"), new("batch_topk")
    with pytest.raises(SystemExit) as ended:
        train(stopped, toy_stream(), _config(), folder=tmp_path)
    assert ended.value.code == 143
    monkeypatch.undo()
    train(whole, toy_stream(), _config())
    kept = newest_checkpoint(tmp_path / "checkpoints")
    assert (kept.step, kept.values["settled"]) == (STEPS, True)
    assert _same(stopped, whole)


def test_all_of_many_are_saved(new, toy_stream, tmp_path):
    def runs(folder: Path) -> list[Run]:
        return [
            Run(new("topk"), _config(), folder=folder / "plain"),
            Run(new("batch_topk"), _config(num_tokens=4 * BATCH), folder=folder / "settling"),
            Run(new("topk", seed=2), _config(num_tokens=3 * BATCH), folder=folder / "done"),
            Run(new("relu"), _config(num_normalization_tokens=8 * BATCH), folder=folder / "measuring"),
        ]

    whole, resumed = runs(tmp_path / "whole"), runs(tmp_path / "run")
    train_many(whole, toy_stream())
    with pytest.raises(KeyboardInterrupt):
        train_many(runs(tmp_path / "run"), toy_stream(), on_step=_at(6))
    steps = {path.name: newest_checkpoint(path / "checkpoints") for path in (tmp_path / "run").iterdir()}
    assert {name: kept and kept.step for name, kept in steps.items()} == {
        "plain": 6, "settling": 4, "done": 3, "measuring": None,
    }  # fmt: skip
    assert steps["done"].values["settled"]
    train_many(resumed, toy_stream(), resume=True)
    for a, b in zip(whole, resumed, strict=True):
        assert _same(a.dictionary, b.dictionary)


def test_what_is_ignored_stays_ignored(new, toy_stream):
    """As under nohup."""
    seen: list[Any] = []
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        result = train(
            new("topk"), toy_stream(), _config(),
            on_step=lambda done, total: (seen.append(signal.getsignal(signal.SIGTERM)), os.kill(os.getpid(), 15)),
        )  # fmt: skip
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert set(seen) == {signal.SIG_IGN}
    assert result.num_steps == STEPS


def test_outside_the_main_thread_nothing_is_installed(new, toy_stream):
    before = [signal.getsignal(number) for number in BOTH]
    seen: list[Any] = []

    def run() -> None:
        result = train(
            new("topk"), toy_stream(), _config(num_prefetched_batches=1),
            on_step=lambda done, total: seen.append([signal.getsignal(number) for number in BOTH]),
        )  # fmt: skip
        seen.append(result.num_steps)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before] * STEPS + [STEPS]


def test_inside_the_main_thread_they_are(new, toy_stream):
    """What the test above could not see if nothing were ever installed."""
    before, seen = [signal.getsignal(number) for number in BOTH], []
    train(
        new("topk"), toy_stream(), _config(),
        on_step=lambda done, total: seen.append([signal.getsignal(number) for number in BOTH]),
    )  # fmt: skip
    assert all(a != b for handlers in seen for a, b in zip(handlers, before, strict=True))


def test_handlers_are_restored_whatever_ends_the_training(new, toy_stream):
    before = [signal.getsignal(number) for number in BOTH]
    with pytest.raises(OSError, match="gone"):
        train(new("topk"), toy_stream(spoil={3: OSError("gone")}), _config())
    assert [signal.getsignal(number) for number in BOTH] == before
    with polite_interrupts() as asked:
        assert asked.signal is None
        asked.raise_if_asked()  # nobody has
        signal.raise_signal(signal.SIGTERM)
        assert asked.signal == signal.SIGTERM
        assert [signal.getsignal(number) for number in BOTH] == before  # for the second


def test_without_a_folder_there_is_nothing_to_save(new, toy_stream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stopped, whole = new("topk"), new("topk")
    with pytest.raises(KeyboardInterrupt):
        train(stopped, toy_stream(), _config(), on_step=_at(STEPS))
    train(whole, toy_stream(), _config())
    assert _same(stopped, whole)  # and it works on raw activations
    assert list(tmp_path.iterdir()) == []
