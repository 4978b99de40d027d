"""An asynchronous stream as a plain iterator."""

from __future__ import annotations

import asyncio
import queue
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK = 0.05  # seconds between two looks at whether the pieces are still wanted
_AHEAD = 64  # pieces that wait to be taken


class _Pump(Generic[T]):
    def __init__(self, stream: Callable[[], AsyncIterator[T]]) -> None:
        self._stream = stream
        self.pieces: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        self.enough = threading.Event()

    def run(self) -> None:
        """Read the stream to its end, or until it is enough; an error, or None for the end, comes last."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of aiohttp, by how Ray calls it
                asyncio.run(self._watch())
        except BaseException as e:
            self.pieces.put(e)
        else:
            self.pieces.put(None)

    async def _watch(self) -> None:
        reading = asyncio.ensure_future(self._read())
        while not reading.done() and not self.enough.is_set():
            await asyncio.wait([reading], timeout=_LOOK)
        if reading.done():
            reading.result()

    async def _read(self) -> None:
        async for piece in self._stream():
            while self.pieces.qsize() >= _AHEAD:
                await asyncio.sleep(_LOOK)
            self.pieces.put((piece,))


def in_thread(stream: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
    """The pieces of an asynchronous stream, which a thread of its own reads; what the stream raises is raised here.

    Ctrl-C is raised in the main thread, between any two instructions: within asyncio it would leave tasks half made, which
    nobody can end. Here it meets only the wait for the next piece, and the thread closes the stream in order.
    """
    pump = _Pump(stream)
    thread = threading.Thread(target=pump.run, name="rayds-stream", daemon=True)
    try:
        thread.start()
        while (piece := pump.pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece[0]
    finally:
        pump.enough.set()
        if thread.ident is not None:
            thread.join(timeout=5)
