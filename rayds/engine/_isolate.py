"""Work in a process of its own, for what has killed its worker again and again: native code that crashes on an item.

A child tells which image it decodes. When it dies there, that image is a bad item from then on (media.decode raises
DataError for it), and the work starts again without it. A child that dies elsewhere raises LostError.
Started as a program, this module is the child: it needs Ray's pickle, as what it is sent comes from a Ray task.
"""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from rayds.engine.base import Block, LostError
from rayds.errors import DataError, EngineError

MAX_CRASHES = 20  # of one task; a task with more has another problem than its items
_BLOCK, _RESULT, _ERROR, _END, _ENTER, _LEAVE = b"BREDML"
_HEAD = struct.Struct("<BQ")


class Isolation:
    """Runs functions of one task in children. last: whether the task has no more attempts after this one."""

    def __init__(self, last: bool) -> None:
        self.last = last
        self.denied: dict[str, str] = {}  # hashes of images -> what happened
        self.crashes = 0

    def blocks(self, fn: Callable[[Any], Iterable[Block]], shard: Any) -> Iterator[Block]:
        """fn(shard), block by block. Raises what fn raises, or LostError."""
        had = 0
        while True:
            crashed = False
            n = 0
            for kind, value in self._run("blocks", fn, shard):
                if kind == "crash":
                    crashed = True
                elif kind == "block":
                    n += 1
                    if n > had:
                        yield value
            if not crashed:
                return
            had = max(had, n)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """fn(*args). Raises what fn raises, or LostError."""
        while True:
            for kind, value in self._run("call", fn, *args):
                if kind == "result":
                    return value

    def _run(self, what: str, fn: Callable[..., Any], *args: Any) -> Iterator[tuple[str, Any]]:
        """What a child sends; ends with ("crash", None) when it died in an image, which is denied from now on."""
        cloudpickle = _pickle()

        child = subprocess.Popen(
            [sys.executable, "-m", "rayds.engine._isolate"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin is not None
        assert child.stdout is not None
        decoding = None
        try:
            try:
                _send(child.stdin, _RESULT, repr(sys.path).encode())
                _send(
                    child.stdin,
                    _RESULT,
                    cloudpickle.dumps((what, fn, [_packed(a) for a in args], self.denied)),
                )
            except BrokenPipeError:
                pass  # it died; what it sent says more
            while True:
                kind, data = _receive(child.stdout)
                if kind == _ENTER:
                    decoding = data.decode()
                elif kind == _LEAVE:
                    decoding = None
                elif kind == _BLOCK:
                    yield "block", _unpacked(data)
                elif kind == _RESULT:
                    yield "result", cloudpickle.loads(data)
                    return
                elif kind == _ERROR:
                    raise cloudpickle.loads(data)
                elif kind == _END:
                    return
                else:
                    self._died(child.wait(), decoding)
                    yield "crash", None
                    return
        finally:
            child.kill()
            child.wait()

    def _died(self, code: int, decoding: str | None) -> None:
        """Note the image that a child died in. Raises LostError when there is none, or too many."""
        if code == -signal.SIGKILL and not self.last:
            # Memory, most likely: as if the task itself had been killed, which another node may have room for.
            os.kill(os.getpid(), signal.SIGKILL)
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.crashes += 1
        if decoding is None or self.crashes > MAX_CRASHES:
            raise LostError(
                f"the process died ({why}) each time; native code crashed, or it ran out of memory"
            )
        self.denied[decoding] = why


def first_poison(isolation: Isolation, trial: Callable[[Block, Any], Any], block: Block, place: Any) -> int:
    """The first row of a block that kills the process which tries it, by halving. Raises LostError when none alone does."""
    crashes = isolation.crashes

    def kills(start: int, end: int) -> LostError | None:
        isolation.crashes = 0
        try:
            isolation.call(trial, block.slice(start, end - start), place)
            return None
        except LostError as e:
            return e

    low, high = 0, block.num_rows  # the rows before `low` are harmless, one of those before `high` kills
    while high - low > 1:
        middle = (low + high) // 2
        if kills(low, middle):
            high = middle
        else:
            low = middle
    alone = kills(low, high)
    isolation.crashes = crashes
    if alone is None:
        raise LostError("the process died each time, though no item alone kills it")
    return low


def _pickle() -> Any:
    """Ray's pickle, which has no types."""
    from ray import cloudpickle

    return cloudpickle


def _packed(value: Any) -> Any:
    """Tables as bytes of their own rows: a slice would be pickled with all that it is a slice of."""
    if not isinstance(value, pa.Table):
        return value
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, value.schema) as writer:
        writer.write_table(value)
    return sink.getvalue()


def _unpacked(value: Any) -> Any:
    if isinstance(value, pa.Buffer | bytes):
        return pa.ipc.open_stream(value).read_all().combine_chunks()
    return value


_sending = threading.Lock()


def _send(pipe: IO[bytes], kind: int, data: Any = b"") -> None:
    with _sending:
        pipe.write(_HEAD.pack(kind, len(data)))
        pipe.write(data)
        pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[int, bytes]:
    """(kind, data); kind 0 when the other side is gone."""
    head = pipe.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return 0, b""
    kind, size = _HEAD.unpack(head)
    data = pipe.read(size)
    return (kind, data) if len(data) == size else (0, b"")


# the child


def _main() -> None:
    """Do what the parent sends, and send what comes of it."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the code prints is no frame
    import ast

    sys.path[:] = ast.literal_eval(_receive(sys.stdin.buffer)[1].decode())
    cloudpickle = _pickle()

    try:
        what, fn, args, denied = cloudpickle.loads(_receive(sys.stdin.buffer)[1])
        _watch_images(out, denied)
        if what == "blocks":
            for block in fn(*map(_unpacked, args)):
                _send(out, _BLOCK, _packed(block))
            _send(out, _END)
        else:
            _send(out, _RESULT, cloudpickle.dumps(fn(*map(_unpacked, args))))
    except Exception as e:
        try:
            data = cloudpickle.dumps(e)
            cloudpickle.loads(data)
        except Exception:
            data = cloudpickle.dumps(EngineError(f"{type(e).__name__}: {e}"))
        _send(out, _ERROR, data)
    os._exit(0)


def _watch_images(out: IO[bytes], denied: dict[str, str]) -> None:
    """Tell the parent of each image that is decoded, one at a time; refuse those that killed a child before."""
    from rayds import media

    lock = threading.Lock()

    @contextmanager
    def watch(data: bytes, name: str | None) -> Iterator[None]:
        key = hashlib.blake2b(data, digest_size=16).hexdigest()
        if key in denied:
            raise DataError(
                f"the image decoder crashes on it ({denied[key]})",
                file=name,
                remedy="Replace the file or leave the item out",
            )
        with lock:
            _send(out, _ENTER, key.encode())
            try:
                yield
            finally:
                _send(out, _LEAVE)

    media.watch = watch


if __name__ == "__main__":
    _main()
