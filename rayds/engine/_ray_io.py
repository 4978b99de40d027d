"""What the Ray engine hands to Ray Data: the source of shards, the sink of a writer, and the limits of both.

Everything here but the constructors runs in Ray's workers. Import it where Ray is used, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasink, Datasource
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from rayds.engine._isolate import MAX_CRASHES, Isolation, first_poison
from rayds.engine.base import Block, LostError, Position, Writer, add_counts, rechunked
from rayds.errors import DataError, EngineError

# Ray's functions have no types.
dumps: Callable[[Any], bytes] = ray.cloudpickle.dumps
loads: Callable[[bytes], Any] = ray.cloudpickle.loads


class Carried(Exception):  # noqa: N818
    """An exception of user or format code on its way to the driver, whole.

    Ray Data adds advice to the arguments of what passes it, which breaks messages and some classes.
    """

    def __init__(self, pickled: bytes, *added: Any) -> None:
        super().__init__(pickled, *added)

    @classmethod
    def of(cls, error: Exception) -> Carried:
        """The carrier of an error; of an EngineError with its text when the error can't be pickled."""
        try:
            pickled = dumps(error)
            loads(pickled)
        except Exception:
            pickled = dumps(EngineError(f"{type(error).__name__}: {error}"))
        return cls(pickled)

    def original(self) -> BaseException:
        """The error that was carried."""
        error: BaseException = loads(self.args[0])
        return error

    def __str__(self) -> str:
        return "see the error above"


@contextmanager
def carrying() -> Iterator[None]:
    """Send exceptions from inside to the driver as they are."""
    try:
        yield
    except Carried:
        raise
    except StopIteration as e:  # would end Ray's loop as if there were no more blocks
        raise Carried.of(RuntimeError("a stage raised StopIteration")) from e
    except Exception as e:
        raise Carried.of(e) from e


def attempt() -> int:
    """How often the task that runs now died before: 0 for the first attempt, and outside of tasks."""
    worker: Any = ray._private.worker.global_worker
    return int(worker.core_worker.get_current_task_attempt_number()) if worker.connected else 0


def bound_attempts(what: Callable[[], str], retries: int) -> None:
    """Raise EngineError in a task that died more than `retries` times.

    Ray Data itself starts the task of a dead worker again without end.
    """
    if (died := attempt()) > retries:
        raise EngineError(
            f"{what()}: the worker process died {died} times. It ran out of memory, or native code crashed on an "
            "item; read this part alone with the local engine to find it, or give the workers more memory"
        )


def isolation(retries: int) -> Isolation | None:
    """What runs the work of this task in a process of its own, when it has died so often that the work is suspect.

    Once is a matter of nodes and memory; from the second death on (or the last attempt) it is looked at.
    """
    died = attempt()
    return Isolation(last=died >= retries) if died and died >= min(2, retries) else None


def describe(block: Block) -> str:
    """Which items a block holds, for messages."""
    if "id" not in block.schema.names or not block.num_rows:
        return f"a block of {block.num_rows} rows"
    first, last = block.column("id")[0].as_py(), block.column("id")[-1].as_py()
    return f"the block of items {first!r} to {last!r}" if block.num_rows > 1 else f"item {first!r}"


def shard_name(shard: Any, index: int) -> str:
    """How messages name a shard."""
    return str(
        getattr(shard, "name", None) or (shard if isinstance(shard, (str, int)) else f"number {index}")
    )


class ShardSource(Datasource):
    """One read task a shard, in order; read: a reference to the function, so that no task carries it."""

    def __init__(
        self, shards: Sequence[Any], read: ray.ObjectRef[Callable[[Any], Iterable[Block]]], retries: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = [
            ReadTask(_reader(_by_reference(shard), shard_name(shard, i), read, retries), _metadata(shard))
            for i, shard in enumerate(shards)
        ]
        sizes = [getattr(shard, "size", None) for shard in shards]
        self._size = None if None in sizes else sum(int(n) for n in sizes if n is not None)

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int | None:
        return self._size

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        return self._tasks


def _by_reference(shard: Any) -> Any:
    """Tables in memory go to the object store; what formats plan is small and goes with the task."""
    return ray.put(shard) if isinstance(shard, pa.Table) else shard


def _metadata(shard: Any) -> BlockMetadata:
    size = getattr(shard, "size", None)
    return BlockMetadata(
        num_rows=None, size_bytes=None if size is None else int(size), exec_stats=None, input_files=None
    )


def _reader(
    shard: Any, name: str, read: ray.ObjectRef[Callable[[Any], Iterable[Block]]], retries: int
) -> Callable[[], Iterator[Block]]:
    def run() -> Iterator[Block]:
        with carrying():
            bound_attempts(lambda: f"shard {name}", retries)
            made = ray.get(shard) if isinstance(shard, ray.ObjectRef) else shard
            alone = isolation(retries)
            for block in _alone(ray.get(read), made, name, alone) if alone else ray.get(read)(made):
                if block.num_rows:
                    yield block

    return run


def _alone(read: Any, shard: Any, name: str, alone: Isolation) -> Iterator[Block]:
    """The blocks of a shard, read in a process of its own; a reader that knows what its loss means has a say in it."""
    if hasattr(read, "isolated"):
        return iter(read.isolated(shard, alone.blocks))
    return _named_loss(alone.blocks(read, shard), name)


def _named_loss(blocks: Iterator[Block], name: str) -> Iterator[Block]:
    try:
        yield from blocks
    except LostError as e:
        raise LostError(f"shard {name}: {e}") from e


def write_alone(writer: Any, block: Block, position: Position, alone: Isolation) -> Any:
    """writer.write in a process of its own, without the rows that kill it: those are bad items, if the writer knows such."""
    lost: dict[int, DataError] = {}
    while True:
        try:
            return alone.call(writer.write, block, position, *([lost] if lost else []))
        except LostError as e:
            if not hasattr(writer, "trial"):
                raise LostError(f"writing {describe(block)}: {e}") from e
            rows = [i for i in range(block.num_rows) if i not in lost]
            row = rows[first_poison(alone, writer.trial, block.take(rows), position)]
            lost[row] = DataError(
                f"it can't be written: {e}",
                item=block.column("id")[row].as_py(),
                remedy="Remove or repair the item, or leave it out with --on-error skip",
            )
            if alone.crashes > MAX_CRASHES:
                raise LostError(f"writing {describe(block)}: {e}") from e


@dataclass(frozen=True)
class Counted:
    """What a task of the counting pass found: its number, its blocks, the sums of their counts."""

    task: int
    blocks: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Written:
    """What a task of the writing pass did."""

    task: int
    rows: int
    results: list[Any]


class _Sink(Datasink[Any]):
    """Collects what its tasks return, in block order; task numbers follow the order of the blocks."""

    def __init__(self, writer: Writer, retries: int) -> None:
        self.writer, self.retries = writer, retries
        self.returned: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "returned": []}

    def on_write_complete(self, write_result: Any) -> None:
        self.returned = sorted((r for r in write_result.write_returns if r is not None), key=lambda r: r.task)


def _full(blocks: Iterable[Any]) -> Iterator[Block]:
    """The blocks that have rows, as tables."""
    for block in blocks:
        accessor = BlockAccessor.for_block(block)
        if accessor.num_rows():
            yield accessor.to_arrow()


class CountSink(_Sink):
    """The first pass of a write that needs offsets: writes nothing, counts."""

    def write(self, blocks: Iterable[Block], ctx: Any) -> Counted:
        n, counts = 0, dict[str, int]()
        with carrying():
            for block in _full(blocks):
                n, counts = n + 1, add_counts(counts, self.writer.count(block))
        return Counted(ctx.task_idx, n, counts)


class WriteSink(_Sink):
    """Drives a Writer.

    starts: the position of each task's first block; None when tasks get one block each, whose number is the
    task's. Where the writer wants blocks of a fixed number of rows, those of a task are cut so. tally: an actor of Tally that is told of written rows, or None.
    """

    def __init__(
        self, writer: Writer, retries: int, starts: Mapping[int, Position] | None = None, tally: Any = None
    ) -> None:
        super().__init__(writer, retries)
        self.starts, self.tally = starts, tally

    def write(self, blocks: Iterable[Block], ctx: Any) -> Written:
        with carrying():
            return self._write(_full(blocks), ctx.task_idx)

    def _write(self, blocks: Iterator[Block], task: int) -> Written:
        if self.starts is None:
            full = list(blocks)
            blocks = iter([pa.concat_tables(full)] if len(full) > 1 else full)
            position = Position(task)
        else:
            if task not in self.starts:
                raise EngineError("Ray Data did not write each shard in the task that reads it")
            position = self.starts[task]
        if self.writer.rows:
            blocks = rechunked(blocks, self.writer.rows)
        results, rows = [], 0
        alone = isolation(self.retries)
        for block in blocks:
            bound_attempts(partial(_writing, block), self.retries)
            results.append(
                write_alone(self.writer, block, position, alone)
                if alone
                else self.writer.write(block, position)
            )
            rows += block.num_rows
            if self.tally is not None:
                self.tally.tell.remote(task, rows)
            offsets = position.offsets
            if self.writer.needs_offsets:
                offsets = add_counts(offsets, self.writer.count(block))
            position = Position(position.index + 1, offsets)
        return Written(task, rows, results)


def _writing(block: Block) -> str:
    return f"writing {describe(block)}"


def start_positions(counted: Iterable[Counted]) -> dict[int, Position]:
    """The position of every task's first block."""
    starts: dict[int, Position] = {}
    position = Position(0)
    for task in counted:
        starts[task.task] = position
        position = Position(position.index + task.blocks, add_counts(position.offsets, task.counts))
    return starts


def unions_in_turn() -> None:
    """Make Ray Data's unions that keep order give all blocks of one input before those of the next.

    Ray Data takes a block of each in turn, which is an order, but not that of the inputs. There is no setting for it.
    """
    from ray.data._internal.execution.operators.union_operator import UnionOperator

    UnionOperator._try_round_robin = _pass_on_in_turn  # type: ignore[method-assign, assignment]


def _pass_on_in_turn(union: Any) -> None:
    while True:
        current = union._current_input_index
        buffer = union._input_buffers[current]
        if buffer.has_next():
            refs = buffer.get_next()
            union._metrics.on_input_dequeued(refs, input_index=current)
            union._output_buffer.add(refs)
            union._metrics.on_output_queued(refs)
        elif union._input_done_flags[current] and current + 1 < len(union._input_buffers):
            union._current_input_index += 1
        else:
            return


class Tally:
    """An actor that knows the rows written so far. A repeated task counts once."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}
        self.total = 0

    def tell(self, task: int, rows: int) -> None:
        """A task has written so many rows by now."""
        had = self.rows.get(task, 0)
        if rows > had:
            self.rows[task] = rows
            self.total += rows - had

    def read(self) -> int:
        """Rows written by all tasks."""
        return self.total
