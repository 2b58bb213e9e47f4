"""Work for the one model, piece by piece: a bounded queue, one thread that works, limits of time, and leaving early.

::

    queue = Queue(max_waiting=8, seconds=60)
    answer = queue.run(lambda job: read(text))
    for item in queue.stream(write): ...        # def write(job): for step in steps: job.check(); yield step

The thread never waits for those who asked: what a stream gives is kept until it is read, so that a slow reader holds up
nobody. Whoever leaves closes the stream; then the work ends before its next step.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from saescope.web.live import BusyError

T = TypeVar("T")


class _LeftError(Exception):
    """Nobody waits for the result any more."""


@dataclass(eq=False)
class Job:
    """A piece of work. What it does may ask `check()` between its steps, and should."""

    _queue: Queue
    _work: Callable[[Job], Iterable[Any]]
    _late_at: float
    """When it has waited, or run, for too long; by the monotonic clock."""
    _state: str = "waiting"  # then "running", then "done"
    _has_left: bool = False
    _items: deque[Any] = field(default_factory=deque)
    _error: BaseException | None = None

    def check(self) -> None:
        """Ends the work where nobody wants its result any more, or it takes too long."""
        with self._queue._changed:
            if self._queue._closed:
                raise BusyError(_STOPPING)
            if self._has_left:
                raise _LeftError
            if self._queue._clock() > self._late_at:
                raise BusyError(self._queue._too_long(self))

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """What happens inside may take as long as it takes (a model is loaded); then all the time begins anew."""
        self._queue._set_late(self, None)
        try:
            yield
        finally:
            self._queue._set_late(self, self._queue.seconds)


_STOPPING = "the server is stopping"


class Queue:
    """Jobs one at a time, in the order in which they came."""

    def __init__(
        self, *, max_waiting: int = 8, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            max_waiting: jobs that wait while one runs; more are refused.
            seconds: that a job may wait, and then run.
        """
        self.max_waiting, self.seconds = max_waiting, seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for their turn."""
        with self._changed:
            return len(self._waiting)

    def run(self, work: Callable[[Job], T]) -> T:
        """The result of a piece of work, when its turn has come.

        Raises:
            BusyError: too many wait, or it took too long. Whatever the work raises.
        """

        def once(job: Job) -> Iterator[tuple[T]]:
            yield (work(job),)

        with self.stream(once) as stream:
            return next(stream)[0]

    def stream(self, work: Callable[[Job], Iterable[T]]) -> Stream[T]:
        """Results as they come. The job has its place in the queue when this returns.

        Raises:
            BusyError: too many wait.
        """
        job = Job(self, work, self._clock() + self.seconds)
        with self._changed:
            if self._closed:
                raise BusyError(_STOPPING)
            self._drop_late()
            if len(self._waiting) >= self.max_waiting:
                raise BusyError(
                    f"{len(self._waiting)} requests wait for the model already, the most that may; try again in a moment"
                )
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work_on, name="saescope model", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return Stream(self, job)

    def close(self, seconds: float = 10.0) -> None:
        """Refuses what waits, ends what runs before its next step, and waits for that so many seconds."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                self._end(job, BusyError(_STOPPING))
            self._waiting.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    # of the thread that works

    def _work_on(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._waiting:
                    self._changed.wait()
                if self._closed:
                    return
                self._drop_late()
                if not self._waiting:
                    continue
                job = self._running = self._waiting.popleft()
                job._state, job._late_at = "running", self._clock() + self.seconds
                self._changed.notify_all()
            error = self._do(job)
            with self._changed:
                self._running = None
                self._end(job, error)
            del job, error  # what they hold is free now, not when the next one comes

    def _do(self, job: Job) -> BaseException | None:
        items: Iterable[Any] = ()
        try:
            items = job._work(job)
            for item in items:
                with self._changed:
                    if not job._has_left:
                        job._items.append(item)
                        self._changed.notify_all()
                    job.check()
        except BaseException as error:  # the reader raises it; this thread has others to serve
            return error
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                with suppress(Exception):
                    close()
        return None

    # all below with the lock held

    def _end(self, job: Job, error: BaseException | None) -> None:
        job._state, job._error = "done", error
        self._changed.notify_all()

    def _drop_late(self) -> None:
        """Lets those go that have waited too long and whose readers have not noticed."""
        now = self._clock()
        late = [job for job in self._waiting if now > job._late_at]
        for job in late:
            self._waiting.remove(job)
            self._end(job, BusyError(self._too_long(job, was_waiting=True)))

    def _set_late(self, job: Job, seconds: float | None) -> None:
        with self._changed:
            job._late_at = float("inf") if seconds is None else self._clock() + seconds
            self._changed.notify_all()

    def _too_long(self, job: Job, *, was_waiting: bool = False) -> str:
        if was_waiting or job._state == "waiting":
            return f"the model was busy with others for {self.seconds:g} s; try again in a moment"
        return f"this took the model longer than {self.seconds:g} s, and was given up; ask for less"

    def _leave(self, job: Job) -> None:
        job._has_left = True
        if job._state == "waiting":
            self._waiting.remove(job)
            self._end(job, None)
        job._items.clear()
        self._changed.notify_all()


class Stream(Generic[T]):
    """What a job gives, none of it None. Closing the stream ends the job; any thread may."""

    def __init__(self, queue: Queue, job: Job) -> None:
        self._queue, self._job = queue, job

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        while True:
            item = self.next_within(None)
            if item is not None:
                return item

    def next_within(self, seconds: float | None) -> T | None:
        """The next item, or None where none comes in so many seconds.

        Raises:
            StopIteration: there are no more. BusyError: it waited or ran too long. Whatever the work raises.
        """
        queue, job = self._queue, self._job
        with queue._changed:
            until = None if seconds is None else queue._clock() + seconds
            while True:
                if job._items:
                    item: T = job._items.popleft()
                    return item
                if job._state == "done" or job._has_left:
                    if job._error is not None and not isinstance(job._error, _LeftError):
                        error, job._error = job._error, None
                        raise error
                    raise StopIteration
                now = queue._clock()
                if now > job._late_at:
                    error = BusyError(queue._too_long(job))
                    queue._leave(job)
                    raise error
                if until is not None and now >= until:
                    return None
                wait = min(job._late_at, until if until is not None else float("inf")) - now
                queue._changed.wait(None if wait == float("inf") else wait + 1e-3)

    @property
    def num_before(self) -> int | None:
        """How many jobs come first: 0 where it is the next or the one at work, None where it has ended."""
        with self._queue._changed:
            if self._job._state == "waiting":
                return self._queue._waiting.index(self._job) + (self._queue._running is not None)
            return 0 if self._job._state == "running" else None

    def close(self) -> None:
        """Leave."""
        with self._queue._changed:
            if not self._job._has_left:
                self._queue._leave(self._job)

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
