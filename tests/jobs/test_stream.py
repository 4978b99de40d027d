"""An asynchronous stream as a plain iterator."""

import asyncio
import gc
import random
import signal
import threading
import time
import warnings

import pytest

from rayds.jobs.stream import in_thread


class Stream:
    """Counts; knows what was asked of it and whether it was closed in order."""

    def __init__(self, size, fault=None):
        self.size, self.fault = size, fault
        self.sent = 0
        self.begun = self.closed = False

    async def __call__(self):
        self.begun = True
        try:
            for i in range(self.size):
                await asyncio.sleep(0)
                self.sent += 1
                yield i
            if self.fault:
                raise self.fault
        finally:
            await asyncio.sleep(0)  # a connection is closed by asynchronous calls too
            self.closed = True


def threads():
    return [t for t in threading.enumerate() if t.name == "rayds-stream"]


def test_all_pieces_in_order():
    stream = Stream(1000)
    assert list(in_thread(stream)) == list(range(1000))
    assert stream.closed
    assert not threads()


def test_its_error_comes_after_its_pieces():
    pieces = in_thread(Stream(3, ConnectionError("gone")))
    assert [next(pieces) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConnectionError, match="gone"):
        next(pieces)
    assert not threads()


def test_it_reads_little_ahead_and_stops_when_nobody_reads():
    stream = Stream(1_000_000)
    pieces = in_thread(stream)
    assert next(pieces) == 0
    time.sleep(0.2)
    assert stream.sent < 200
    pieces.close()
    assert stream.closed
    assert not threads()


def test_an_interrupt_at_any_moment_leaves_nothing_half_made(caplog):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    moments = random.Random(0)
    streams = []
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(60):
                streams.append(stream := Stream(1_000_000))
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0005, 0.02))
                with pytest.raises(KeyboardInterrupt):
                    all(True for _ in in_thread(stream))
            gc.collect()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not [str(w.message) for w in told if "never awaited" in str(w.message)]
    assert "was destroyed" not in caplog.text
    assert all(s.closed for s in streams if s.begun)
    assert not threads()
