"""The queue before the model. Threads meet at events; the clock is moved by hand, so that no test depends on speed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from saescope.web.live import BusyError
from saescope.web.queueing import Job, Queue, Stream

LONG = 20.0  # seconds after which a test has failed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Work that says when it has begun, and goes on when it may."""

    def __init__(self) -> None:
        self.begun, self.may_go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, job: Job) -> Iterator[int]:
        self.begun.set()
        try:
            yield 1
            assert self.may_go.wait(LONG)
            yield 2
        finally:
            self.ended.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> Iterator[Queue]:
    queue = Queue(max_waiting=2, seconds=60, clock=clock)
    yield queue
    queue.close()


@pytest.fixture
def gate(queue: Queue) -> Iterator[Gate]:
    """A job that runs, of which one item has come."""
    gate = Gate()
    gate.stream = queue.stream(gate)  # type: ignore[attr-defined]
    assert gate.begun.wait(LONG)
    yield gate
    gate.may_go.set()


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs it; the list gets what it gives or raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def until(queue: Queue, condition: Callable[[], bool]) -> None:
    """Waits for a change of the queue after which something holds."""
    with queue._changed:
        assert queue._changed.wait_for(condition, LONG)


def test_results_and_errors_come_back(queue: Queue):
    assert queue.run(lambda job: 7) == 7
    assert queue.run(lambda job: None) is None

    def fails(job: Job) -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        queue.run(fails)
    assert list(queue.stream(lambda job: iter("abc"))) == ["a", "b", "c"]

    def fails_later(job: Job) -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    stream = queue.stream(fails_later)
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    assert queue.run(lambda job: 8) == 8  # the thread has survived


def test_one_at_a_time_and_in_order(queue: Queue, gate: Gate):
    order: list[str] = []
    one = in_thread(lambda: queue.run(lambda job: order.append("one")))
    until(queue, lambda: len(queue._waiting) == 1)
    two = in_thread(lambda: queue.run(lambda job: order.append("two")))
    until(queue, lambda: len(queue._waiting) == 2)
    assert queue.num_waiting == 2
    assert order == []
    gate.may_go.set()
    for thread, _ in (one, two):
        thread.join(LONG)
    assert order == ["one", "two"]


def test_no_more_than_may_wait(queue: Queue, gate: Gate):
    waiting = [queue.stream(lambda job: iter("a")) for _ in range(2)]
    assert [stream.num_before for stream in waiting] == [1, 2]
    assert gate.stream.num_before == 0  # type: ignore[attr-defined]
    for ask in (queue.run, queue.stream):
        with pytest.raises(BusyError, match="2 requests wait for the model already, the most that may"):
            ask(lambda job: iter("b"))
    waiting[0].close()
    third = queue.stream(lambda job: iter("c"))
    assert [waiting[1].num_before, third.num_before] == [1, 2]
    gate.may_go.set()
    assert list(third) == ["c"]
    assert third.num_before is None


def test_who_waits_too_long_is_told(queue: Queue, gate: Gate, clock: Clock):
    reader, silent = (queue.stream(lambda job: iter("a")) for _ in range(2))
    clock.now += 59
    assert reader.next_within(0) is None
    clock.now += 2
    with pytest.raises(BusyError, match="busy with others for 60 s"):
        reader.next_within(0)
    assert queue.num_waiting == 1
    later = queue.stream(lambda job: iter("b"))  # whoever did not look has lost the place all the same
    with pytest.raises(BusyError, match="busy with others"):
        next(silent)
    gate.may_go.set()
    assert list(later) == ["b"]


def test_those_who_waited_too_long_take_no_place(queue: Queue, gate: Gate, clock: Clock):
    late = [queue.stream(lambda job: iter("a")) for _ in range(2)]
    clock.now += 61
    assert queue.stream(lambda job: iter("b")).num_before == 1
    assert [stream.num_before for stream in late] == [None, None]


def test_the_time_to_run_begins_when_it_runs(queue: Queue, gate: Gate, clock: Clock):
    later = Gate()
    stream = queue.stream(later)
    clock.now += 59
    gate.may_go.set()
    assert [next(stream)] == [1]
    clock.now += 59
    later.may_go.set()
    assert list(stream) == [2]


def test_late_jobs_are_not_begun(queue: Queue, gate: Gate, clock: Clock):
    ran = []
    late = queue.stream(lambda job: iter([ran.append(1)]))
    clock.now += 61
    gate.may_go.set()
    with pytest.raises(BusyError, match="busy with others"):
        next(late)
    assert ran == []


def test_work_that_takes_too_long_ends_between_steps(queue: Queue, gate: Gate, clock: Clock):
    stream: Stream[int] = gate.stream  # type: ignore[attr-defined]
    assert next(stream) == 1
    clock.now += 61
    gate.may_go.set()
    assert gate.ended.wait(LONG)
    assert queue.run(lambda job: 5) == 5
    assert [next(stream)] == [2]  # what was ready is still to be had
    with pytest.raises(BusyError, match="longer than 60 s"):
        next(stream)


def test_a_step_that_never_ends_does_not_hold_its_reader(queue: Queue, gate: Gate, clock: Clock):
    stream: Stream[int] = gate.stream  # type: ignore[attr-defined]
    assert next(stream) == 1
    clock.now += 61
    with pytest.raises(BusyError, match="longer than 60 s"):
        next(stream)
    assert not gate.ended.is_set()
    gate.may_go.set()
    assert gate.ended.wait(LONG)


def test_loading_takes_as_long_as_it_takes_and_then_the_time_begins_anew(queue: Queue, clock: Clock):
    inside, go_on = threading.Event(), threading.Event()

    def work(job: Job) -> Iterator[float]:
        with job.untimed():
            inside.set()
            assert go_on.wait(LONG)
        yield job._late_at

    stream = queue.stream(work)
    assert inside.wait(LONG)
    clock.now += 1e6
    assert stream.next_within(0) is None
    go_on.set()
    assert next(stream) == clock.now + 60


def test_leaving_ends_the_work_before_its_next_step(queue: Queue, gate: Gate):
    stream: Stream[int] = gate.stream  # type: ignore[attr-defined]
    assert next(stream) == 1
    stream.close()
    assert list(stream) == []
    gate.may_go.set()
    assert gate.ended.wait(LONG)
    assert queue.run(lambda job: "free") == "free"
    stream.close()  # twice is once


def test_leaving_wakes_a_reader(queue: Queue, gate: Gate):
    stream: Stream[int] = gate.stream  # type: ignore[attr-defined]
    assert next(stream) == 1
    thread, found = in_thread(lambda: list(stream))
    stream.close()
    thread.join(LONG)
    assert found == [[]]


def test_leaving_while_waiting_gives_the_place_back(queue: Queue, gate: Gate):
    ran: list[int] = []
    stream = queue.stream(lambda job: iter([ran.append(1)]))
    stream.close()
    assert queue.num_waiting == 0
    gate.may_go.set()
    assert queue.run(lambda job: 3) == 3
    assert ran == []


def test_a_slow_reader_holds_up_nobody(queue: Queue):
    slow = queue.stream(lambda job: iter(range(256)))
    assert queue.run(lambda job: "next") == "next"  # though nothing of the first was read
    assert list(slow) == list(range(256))


def test_an_item_or_nothing_within_a_time(queue: Queue, gate: Gate):
    stream: Stream[int] = gate.stream  # type: ignore[attr-defined]
    assert stream.next_within(0) == 1
    assert stream.next_within(0) is None
    gate.may_go.set()
    assert stream.next_within(LONG) == 2
    with pytest.raises(StopIteration):
        stream.next_within(LONG)


def test_the_end_of_the_server(queue: Queue, gate: Gate):
    stream: Stream[int] = gate.stream  # type: ignore[attr-defined]
    waiting = queue.stream(lambda job: iter("a"))
    closing, _ = in_thread(queue.close)
    until(queue, lambda: queue._closed)
    with pytest.raises(BusyError, match="stopping"):
        next(waiting)
    with pytest.raises(BusyError, match="stopping"):
        queue.run(lambda job: 1)
    gate.may_go.set()
    closing.join(LONG)
    assert gate.ended.is_set()
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(BusyError, match="stopping"):
        next(stream)
    assert queue._thread is not None
    assert not queue._thread.is_alive()


def test_closing_a_queue_that_was_never_used():
    Queue().close()


def test_what_a_job_held_is_free_when_it_has_ended(queue: Queue):
    class Large:
        pass

    large = Large()
    known = weakref.ref(large)

    def work(job: Job, held: Any = large) -> int:
        return 1

    assert queue.run(work) == 1
    del large, work
    assert queue.run(lambda job: 2) == 2
    until(queue, lambda: queue._running is None)
    assert known() is None


@pytest.mark.parametrize("num_threads", [6])
def test_many_at_once(num_threads: int):
    """Every job runs alone, whoever asks and leaves."""
    queue = Queue(max_waiting=1000)
    inside, most = 0, 0

    def work(job: Job) -> Iterator[int]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            yield from range(3)
        finally:
            inside -= 1

    def ask(number: int) -> int:
        total = 0
        for turn in range(30):
            with queue.stream(work) as stream:
                if (turn + number) % 3:
                    total += sum(stream)
        return total

    threads = [in_thread(lambda number=number: ask(number)) for number in range(num_threads)]  # type: ignore[misc]
    for thread, _ in threads:
        thread.join(LONG)
    assert [found for _, found in threads] == [[60]] * num_threads
    queue.close()
    assert most == 1
    assert inside == 0
