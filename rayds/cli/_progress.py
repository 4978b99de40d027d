"""Progress on stderr: a bar with rate and time on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import click

INTERVAL = 5.0  # seconds between the lines where stderr is no terminal

Advance = Callable[[int], None]


def progress(what: str, quiet: bool = False, total: int | None = None) -> AbstractContextManager[Advance]:
    """Tell how work goes on while the context is open: call what it gives with the number of items done.

    total: the number of items to come, where it is known; the time left follows from it.
    """
    if quiet:
        return _none()
    return _bar(what, total) if sys.stderr.isatty() else _lines(what, total)


def _ignore(items: int) -> None:
    del items


@contextmanager
def _none() -> Iterator[Advance]:
    yield _ignore


def _state(done: int, total: int | None, seconds: float) -> str:
    if not done:
        return "no items yet"
    rate = done / seconds if seconds > 0 else 0.0
    of = f" of {total:,}" if total else ""
    return f"{done:,}{of} items, {rate:,.0f} items/s"


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


@contextmanager
def _lines(what: str, total: int | None) -> Iterator[Advance]:
    """A line every INTERVAL seconds, also while nothing advances, so that a log shows that the job lives."""
    done = 0
    start = time.monotonic()
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(INTERVAL):
            seconds = time.monotonic() - start
            left = f", {_clock((total - done) * seconds / done)} left" if total and 0 < done < total else ""
            click.echo(f"{what}: {_state(done, total, seconds)}, {_clock(seconds)} elapsed{left}", err=True)

    def advance(items: int) -> None:
        nonlocal done
        done += items

    thread = threading.Thread(target=tell, name="rayds-progress", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),  # pulses when the total is not known
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        *([TextColumn("left"), TimeRemainingColumn()] if total else []),
    ]
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total, state="")

        def advance(items: int) -> None:
            done = int(shown.tasks[0].completed) + items
            shown.update(task, completed=done, state=_state(done, total, time.monotonic() - start))

        yield advance
