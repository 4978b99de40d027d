"""Ordered, bounded parallelism on threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rayds.parallel import cpu_count, ordered_chain, ordered_map


def _count(n: int) -> Iterator[int]:
    yield from range(10 * n, 10 * n + 10)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_map_keeps_the_order(workers: int) -> None:
    def slow_first(n: int) -> int:
        time.sleep(0.05 if n % 5 == 0 else 0)
        return n * n

    assert list(ordered_map(slow_first, range(30), workers)) == [n * n for n in range(30)]


def test_map_runs_side_by_side() -> None:
    together = threading.Barrier(3, timeout=10)  # breaks unless three calls run at once
    assert len(list(ordered_map(lambda _: together.wait(), range(3), 3))) == 3


@pytest.mark.parametrize("workers", [1, 4])
def test_map_is_bounded_and_stops_when_closed(workers: int) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    stream = ordered_map(lambda n: n, endless(), workers)
    assert [next(stream) for _ in range(3)] == [1, 2, 3]
    assert taken <= 3 + workers + 1
    stream.close()
    assert taken <= 3 + workers + 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_map_raises_in_its_place(workers: int) -> None:
    def fail_at_5(n: int) -> int:
        if n == 5:
            raise ValueError("five")
        return n

    stream = ordered_map(fail_at_5, range(20), workers)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(stream)


def test_map_over_inputs_that_fail() -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(ordered_map(lambda n: n, inputs(), 4))


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
@pytest.mark.parametrize("inputs", [0, 1, 2, 40])
def test_chain_of_more_inputs_than_workers(workers: int, inputs: int) -> None:
    want = list(range(10 * inputs))
    assert list(ordered_chain(_count, range(inputs), workers, depth=1)) == want


def test_chain_does_not_starve_the_first_input() -> None:
    """Threads that wait on the full queues of later inputs must never hold back the one being read."""

    def late(n: int) -> Iterator[int]:
        time.sleep(0.3 if n % 3 == 0 else 0)  # every third comes last of those that run together
        yield from _count(n)

    assert list(ordered_chain(late, range(12), 3, depth=1)) == list(range(120))


def test_chain_with_a_slow_reader() -> None:
    got = []
    for value in ordered_chain(_count, range(5), 2, depth=1):
        time.sleep(0.005)
        got.append(value)
    assert got == list(range(50))


def test_chain_is_bounded_and_stops_when_closed() -> None:
    made = [0] * 6

    def endless(n: int) -> Iterator[int]:
        while True:
            made[n] += 1
            yield n

    stream = ordered_chain(endless, range(6), 3, depth=2)
    assert next(stream) == 0
    time.sleep(0.3)
    assert max(made) <= 5
    assert made[3:] == [0, 0, 0]  # no thread is free for them
    before = threading.active_count()
    stream.close()
    assert threading.active_count() <= before - 3
    seen = list(made)
    time.sleep(0.2)
    assert made == seen


def test_chain_raises_after_the_results_before_the_error() -> None:
    def fail_in_2(n: int) -> Iterator[int]:
        yield n
        if n == 2:
            raise ValueError("two")

    before = set(threading.enumerate())
    stream = ordered_chain(fail_in_2, range(50), 4)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="two"):
        next(stream)
    assert set(threading.enumerate()) <= before


def test_a_stream_left_in_the_middle_does_not_keep_the_program_from_ending() -> None:
    script = """
from itertools import count
from rayds.parallel import ordered_chain, ordered_map
stream = ordered_map(abs, ordered_chain(count, range(5), 3), 2)
next(stream)
raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 7


def test_chain_closes_the_iterators_that_it_leaves() -> None:
    closed: list[int] = []

    def watched(n: int) -> Iterator[int]:
        try:
            yield from _count(n)
        finally:
            closed.append(n)

    stream = ordered_chain(watched, range(4), 2, depth=1)
    next(stream)
    stream.close()
    assert set(closed) >= {0}


def test_nested_chains_and_maps_do_not_wait_for_each_other() -> None:
    def inner(n: int) -> Iterator[int]:
        return ordered_map(lambda v: v, ordered_chain(_count, [n, n], 2), 2)

    assert len(list(ordered_map(lambda v: v, ordered_chain(inner, range(8), 2), 2))) == 160


def test_cpu_count_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDS_CPUS", "3")
    assert cpu_count() == 3
    monkeypatch.delenv("RAYDS_CPUS")
    assert cpu_count() >= 1
