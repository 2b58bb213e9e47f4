"""Progress on a terminal as a bar with rate and time left; in a log file as a plain line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress(console: Console, what: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """Gives a function that is told (done, in all, a short remark) as often as one likes."""
    if console.is_terminal:
        with _bar(console, what, unit) as update:
            yield update
    else:
        with _lines(console, what, unit) as update:
            yield update


@contextmanager
def _bar(console: Console, what: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn(f"{{task.percentage:3.0f}} %  {{task.fields[rate]}} {unit}/s"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[remark]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=1, remark="", rate="-")
        started = time.perf_counter()

        def update(done: int, total: int, remark: str = "") -> None:
            rate = done / max(time.perf_counter() - started, 1e-9)
            bar.update(task, completed=done, total=total, remark=remark, rate=f"{rate:,.0f}")

        yield update
    console.print(f"{what}: done in {time.perf_counter() - started:.0f} s", highlight=False)


@contextmanager
def _lines(console: Console, what: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    started = last = time.perf_counter()

    def update(done: int, total: int, remark: str = "") -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= _SECONDS_BETWEEN_LINES and done:
            last = now
            rate, left = done / (now - started), (now - started) * (total - done) / done
            console.print(
                f"{what}: {100 * done / total:.0f} %, {rate:,.0f} {unit}/s, {left:.0f} s left {remark}".rstrip(),
                highlight=False,
                soft_wrap=True,
            )

    yield update
    console.print(f"{what}: done in {time.perf_counter() - started:.0f} s", highlight=False)
