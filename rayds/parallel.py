"""Ordered, bounded parallelism on threads: the results come in the order of the inputs.

Decoding, DuckDB, Arrow and file I/O release the interpreter lock, so threads use all cores where it counts.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cpu_count() -> int:
    """The cores that this process may use; RAYDS_CPUS overrides it."""
    if value := os.environ.get("RAYDS_CPUS"):
        return max(1, int(value))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """The memory that this process may use: of the machine, or of the container where that is less."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 8 << 30
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(limit) as f:
                total = min(total, int(f.read()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


def ordered_map(fn: Callable[[T], R], items: Iterable[T], workers: int, window: int = 0) -> Iterator[R]:
    """fn over items on `workers` threads, results in order, at most `window` (workers + 1) in flight.

    One worker without a window works on the caller's thread, with one ahead of it.
    """
    inline = workers <= 1 and not window
    window = window or workers + 1
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="rayds")
    try:
        if inline:
            for item in items:
                yield fn(item)
            return
        for item in items:
            pending.append(pool.submit(fn, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(items, Generator):  # now, and not when the traceback of an error lets go of it
            items.close()


_END = object()


def ordered_chain(
    make: Callable[[T], Iterable[R]], inputs: Sequence[T], workers: int, depth: int = 2
) -> Iterator[R]:
    """The iterables make(input) one after the other, up to `workers` of them running ahead on threads.

    Each runs at most `depth` results ahead of the reader. Inputs are begun in order, so that the one being read
    always has a thread.
    """
    if not inputs:
        return
    stop = threading.Event()
    queues: list[queue.Queue[Any]] = [queue.Queue(depth) for _ in inputs]

    def put(q: queue.Queue[Any], value: Any) -> bool:
        while not stop.is_set():
            try:
                q.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce(i: int) -> None:
        try:
            for value in make(inputs[i]):
                if not put(queues[i], (value, None)):
                    return
            put(queues[i], (_END, None))
        except BaseException as e:
            put(queues[i], (_END, e))

    def work() -> None:
        while todo and not stop.is_set():
            try:
                i = todo.popleft()
            except IndexError:
                return
            produce(i)

    # Daemons: a reader that was left in the middle (by an uncaught error, say) must not keep the program from ending.
    todo = deque(range(len(inputs)))
    threads = [
        threading.Thread(target=work, name=f"rayds-source_{n}", daemon=True)
        for n in range(max(1, min(workers, len(inputs))))
    ]
    try:
        for thread in threads:
            thread.start()
        for q in queues:
            while True:
                value, error = q.get()
                if error is not None:
                    raise error
                if value is _END:
                    break
                yield value
    finally:
        stop.set()
        for thread in threads:
            # While Python ends, daemons stand still: to wait for one then is to wait forever (Python 3.13).
            if thread.is_alive() and not sys.is_finalizing():
                thread.join()
