"""Reading ahead: a thread draws batches from a stream while the last one is trained on.

What a checkpoint needs is where the stream stood when the batch in hand was drawn, not where the thread has got to; so
every batch is kept with the stream's state after it. Reading ahead pays where model and dictionary use different
hardware, or wait for a disk: two users of the same cores only wait for each other.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from saescope.training.records import Resumable, TrainingBatch

_TICK = 0.1  # seconds after which a thread that waits for room looks whether it is still wanted


class Prefetch(Iterator[Tensor | TrainingBatch]):
    """An iterator that is ``num_batches`` ahead of its user. Resumable if the stream is; to be closed after use."""

    def __init__(self, batches: Iterator[Tensor | TrainingBatch], num_batches: int) -> None:
        self.batches = batches
        self.num_batches = num_batches
        self._state: dict[str, Any] = batches.state_dict() if isinstance(batches, Resumable) else {}
        self._ahead: queue.Queue[tuple[Any, dict[str, Any], BaseException | None]] = queue.Queue(num_batches)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __next__(self) -> Tensor | TrainingBatch:
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._draw, name="saescope-prefetch", daemon=True)
            self._thread.start()
        item, state, error = self._ahead.get()
        if error is not None:
            self._thread = None  # it has ended; asked again, the stream answers again
            raise error
        self._state = state
        return item

    def _draw(self) -> None:
        while not self._stop.is_set():
            try:
                item = next(self.batches)
                state = self.batches.state_dict() if isinstance(self.batches, Resumable) else {}
                found: tuple[Any, dict[str, Any], BaseException | None] = (item, state, None)
            except BaseException as error:  # the user's thread is where it belongs
                found = (None, {}, error)
            while True:
                try:
                    self._ahead.put(found, timeout=_TICK)  # before the end is looked at: what was drawn shows
                    break
                except queue.Full:
                    if self._stop.is_set():
                        return
            if found[2] is not None:
                return

    def close(self) -> None:
        """End the thread; what it has drawn and nobody took goes back to the stream, where that is possible."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        drawn = not self._ahead.empty()
        while not self._ahead.empty():
            self._ahead.get_nowait()
        if drawn and isinstance(self.batches, Resumable):
            self.batches.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stood after the last batch that was handed out."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self.batches.load_state_dict(state)  # type: ignore[attr-defined]
        self._state = state
