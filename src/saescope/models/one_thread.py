"""A lock for what one thread at a time may do, which that thread can take again.

Unlike ``threading.RLock``, any thread may give it back: a generator that is left in the middle of a context can be closed
by another thread, and a lock that only the first one can open would then stay shut.
"""

from __future__ import annotations

import threading
from types import TracebackType


class OneThread:
    """A lock with an owner."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._owner: threading.Thread | None = None
        self._times = 0

    @property
    def is_mine(self) -> bool:
        """Whether the running thread has it."""
        return self._owner is threading.current_thread()

    def acquire(self) -> None:
        """Waits until no other thread has it, and takes it once more."""
        me = threading.current_thread()
        with self._free:
            while self._owner is not None and self._owner is not me:
                self._free.wait()
            self._owner = me
            self._times += 1

    def release(self) -> None:
        """Gives back what was taken once.

        Raises:
            RuntimeError: nobody has it.
        """
        with self._free:
            if not self._times:
                raise RuntimeError("the lock was given back more often than it was taken")
            self._times -= 1
            if not self._times:
                self._owner = None
                self._free.notify()

    def __enter__(self) -> OneThread:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
