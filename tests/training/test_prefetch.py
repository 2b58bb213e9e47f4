"""Reading ahead: the same batches and positions as without, and nothing lost or left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch

from saescope.activations import ActivationStream, StreamConfig
from saescope.training import TrainingConfig, train
from saescope.training.checkpoint import newest_checkpoint
from saescope.training.prefetch import Prefetch

HOOK = "blocks.1.hook_resid_post"


class _Numbers(Iterator[Any]):
    """1, 2, 3 ... with a gate before each: a number comes when it is let through, if gates are used at all."""

    def __init__(self, length: int = 10**9, gated: bool = False, error_at: int | None = None) -> None:
        self.drawn, self.length, self.error_at = 0, length, error_at
        self.gate = threading.Semaphore(0) if gated else None
        self.began = threading.Semaphore(0)

    def __next__(self) -> int:
        self.began.release()
        if self.gate is not None:
            assert self.gate.acquire(timeout=30)
        if self.drawn == self.length:
            raise StopIteration
        if self.drawn + 1 == self.error_at:
            self.error_at = None
            raise OSError("the cable is out")
        self.drawn += 1
        return self.drawn

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "saescope-prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert _threads() == []


def _config(num_steps: int = 12, **settings: Any) -> TrainingConfig:
    defaults = {"batch_size_tokens": 32, "num_warmup_steps": 3, "checkpoint_every_n_steps": 4}
    return TrainingConfig(num_tokens=num_steps * 32, **{**defaults, **settings})


@pytest.mark.parametrize("num_batches", [1, 2, 7])
def test_items_and_positions_are_those_of_the_stream(num_batches):
    ahead = Prefetch(_Numbers(), num_batches)
    assert ahead.state_dict() == {"drawn": 0}
    for number in range(1, 40):
        assert next(ahead) == number
        assert ahead.state_dict() == {"drawn": number}  # not where the thread has got to
    ahead.close()


def test_the_next_item_is_drawn_while_the_last_is_in_use():
    numbers = _Numbers(gated=True)
    ahead = Prefetch(numbers, 2)
    assert _threads() == []  # not before it is asked
    numbers.gate.release(3)
    assert next(ahead) == 1
    for _ in range(4):  # it goes on by itself, to the fourth, at whose gate it stands
        assert numbers.began.acquire(timeout=30)
    assert numbers.drawn == 3
    numbers.gate.release(100)
    ahead.close()


def test_it_is_not_further_ahead_than_it_may():
    numbers = _Numbers()
    ahead = Prefetch(numbers, 3)
    assert next(ahead) == 1
    thread = _threads()[0]
    thread.join(timeout=0.3)  # all the time it needs
    assert numbers.drawn <= 1 + 3 + 1  # three that wait, and one in its hand
    ahead.close()


@pytest.mark.parametrize("num_taken", [0, 1, 5])
@pytest.mark.parametrize("num_batches", [1, 4])
def test_after_closing_the_stream_goes_on_right_after_the_last_item(num_taken, num_batches):
    numbers = _Numbers()
    ahead = Prefetch(numbers, num_batches)
    assert list(islice(ahead, num_taken)) == list(range(1, num_taken + 1))
    ahead.close()
    assert _threads() == []
    assert ahead.state_dict() == {"drawn": num_taken}
    assert next(numbers) == num_taken + 1


def test_an_item_that_is_being_drawn_as_the_end_comes_goes_back_too():
    """The thread stands in the stream, and nothing waits in the queue."""
    numbers = _Numbers(gated=True)
    ahead = Prefetch(numbers, 1)
    numbers.gate.release(1)
    assert next(ahead) == 1
    for _ in range(2):
        assert numbers.began.acquire(timeout=30)  # it asks for the second
    closing = threading.Thread(target=ahead.close)
    closing.start()
    while not ahead._stop.is_set():
        pass
    numbers.gate.release(10)
    closing.join(timeout=30)
    assert not closing.is_alive()
    assert next(numbers) == 2


def test_closing_twice_or_unused_does_nothing():
    numbers = _Numbers()
    ahead = Prefetch(numbers, 2)
    ahead.close()
    assert next(ahead) == 1
    ahead.close()
    ahead.close()
    assert (next(ahead), next(ahead)) == (2, 3)  # and it may be used again
    ahead.close()


def test_the_end_of_the_stream_is_its_end():
    ahead = Prefetch(_Numbers(length=5), 3)
    assert list(ahead) == [1, 2, 3, 4, 5]
    assert next(ahead, None) is None  # as often as it is asked
    assert ahead.state_dict() == {"drawn": 5}
    ahead.close()


def test_an_error_comes_in_its_place_and_in_the_users_thread():
    numbers = _Numbers(error_at=3)
    ahead = Prefetch(numbers, 5)
    assert (next(ahead), next(ahead)) == (1, 2)
    with pytest.raises(OSError, match="the cable is out"):
        next(ahead)
    assert ahead.state_dict() == {"drawn": 2}
    assert next(ahead) == 3  # asked again, the stream answers again
    ahead.close()


def test_an_error_of_the_position_comes_too():
    class Broken(_Numbers):
        def state_dict(self) -> dict[str, Any]:
            if self.drawn == 2:
                raise OSError("no position")
            return super().state_dict()

    ahead = Prefetch(Broken(), 2)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="no position"):
        next(ahead)
    ahead.close()


def test_going_to_a_position_drops_what_was_read_ahead():
    numbers = _Numbers()
    ahead = Prefetch(numbers, 3)
    assert list(islice(ahead, 4)) == [1, 2, 3, 4]
    ahead.load_state_dict({"drawn": 20})
    assert ahead.state_dict() == {"drawn": 20}
    assert (next(ahead), next(ahead)) == (21, 22)
    ahead.load_state_dict({"drawn": 2})
    assert next(ahead) == 3
    ahead.close()


def test_a_stream_without_positions_is_read_ahead_too():
    ahead = Prefetch(iter(range(100)), 2)
    assert list(islice(ahead, 6)) == [0, 1, 2, 3, 4, 5]
    assert ahead.state_dict() == {}
    ahead.close()
    with pytest.raises(AttributeError):
        ahead.load_state_dict({})


@pytest.mark.parametrize("num_ahead", [1, 3])
def test_a_models_activations_are_the_same_read_ahead(tiny, windows, new, num_ahead, tmp_path):
    """Trained on them, bit for bit; and the stream is where it would be without."""
    found = []
    for ahead in (0, num_ahead):
        stream = ActivationStream(
            tiny, windows, [HOOK], batch_size_tokens=32, config=StreamConfig(buffer_size_tokens=200), seed=3
        )  # fmt: skip
        dictionary, folder = new("topk", d_in=16), tmp_path / str(ahead)
        train(dictionary, stream.at(HOOK), _config(40, num_prefetched_batches=ahead), folder=folder)
        found.append((dictionary, newest_checkpoint(folder / "checkpoints"), next(stream).values[HOOK]))
    (plain, kept, after), (read_ahead, kept_too, after_too) = found
    assert plain.W_dec.equal(read_ahead.W_dec)
    assert kept.values == kept_too.values
    assert all(torch.equal(tensor, kept_too.tensors[key]) for key, tensor in kept.tensors.items())
    assert any(key.startswith("stream/carry") for key in kept.tensors)
    assert after.equal(after_too)


@pytest.mark.parametrize("spoilt", [0, 5])
def test_training_that_fails_leaves_no_thread(toy_stream, new, spoilt):
    with pytest.raises(OSError, match="gone"):  # in the stream
        train(new("topk"), toy_stream(spoil={spoilt: OSError("gone")}), _config(num_prefetched_batches=2))

    def fail(done: int, total: int) -> None:
        if done > spoilt:
            raise KeyError("mine")

    stream = toy_stream()
    with pytest.raises(KeyError, match="mine"):  # in the user's code
        train(new("topk"), stream, _config(num_prefetched_batches=2), on_step=fail)
    assert stream.drawn == spoilt + 1
    with pytest.raises(ValueError, match="NaN"):  # in the run
        train(new("topk"), toy_stream(spoil={spoilt: float("nan")}), _config(num_prefetched_batches=2))
    assert _threads() == []
