"""Progress on stderr: a bar with rate and time on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rayds.format import Expected

INTERVAL = 5.0  # seconds between the lines where stderr is no terminal

Advance = Callable[[int], None]


def progress(
    what: str, quiet: bool = False, total: Expected | None = None
) -> AbstractContextManager[Advance]:
    """Tell how work goes on while the context is open: call what it gives with the number of items done.

    total: how many items are to come, where that is known; the time left follows from it.
    """
    if quiet:
        return _none()
    return _bar(what, total) if sys.stderr.isatty() else _lines(what, total)


def _ignore(items: int) -> None:
    del items


@contextmanager
def _none() -> Iterator[Advance]:
    yield _ignore


def _state(done: int, total: Expected | None, seconds: float) -> str:
    if not done:
        return "no items yet"
    rate = done / seconds if seconds > 0 else 0.0
    about = "" if total and total.exact else "about "
    of = f" of {about}{total.items:,}" if total and done <= total.items else ""
    return f"{done:,}{of} items, {rate:,.0f} items/s"


def _left(done: int, total: Expected | None, seconds: float) -> str:
    if not total or not 0 < done < total.items:  # more came than estimated: nothing is known of the rest
        return ""
    about = "" if total.exact else "about "
    return f", {about}{_clock((total.items - done) * seconds / done)} left"


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


@contextmanager
def _lines(what: str, total: Expected | None) -> Iterator[Advance]:
    """A line every INTERVAL seconds, also while nothing advances, so that a log shows that the job lives."""
    done = 0
    start = time.monotonic()
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(INTERVAL):
            seconds = time.monotonic() - start
            left = _left(done, total, seconds)
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
def _bar(what: str, total: Expected | None) -> Iterator[Advance]:
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
        *([TextColumn("left" if total.exact else "left, about"), TimeRemainingColumn()] if total else []),
    ]
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total.items if total else None, state="")

        def advance(items: int) -> None:
            done = int(shown.tasks[0].completed) + items
            shown.update(task, completed=done, state=_state(done, total, time.monotonic() - start))

        yield advance
