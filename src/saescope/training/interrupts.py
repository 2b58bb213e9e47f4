"""Stopping politely: the first Ctrl-C (or SIGTERM) lets the step in hand end and be saved, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether somebody has asked for the end, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def raise_if_asked(self) -> None:
        """End as the signal would have: KeyboardInterrupt, or SystemExit with 128 + its number."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextmanager
def polite_interrupts() -> Iterator[Interrupt]:
    """Within it, a first signal is only noted. Outside the main thread, where Python sets no handlers, nothing
    changes."""
    asked = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    old: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        asked.signal = signal.Signals(number)
        restore()  # the next one acts as it always did

    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):  # what is ignored (nohup) stays ignored
            old[number] = handler
            signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()
