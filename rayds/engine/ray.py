"""The distributed engine: the six primitives as Ray Data plans. Import it only where Ray is wanted.

Order: `preserve_order` is on, and every operator numbers its tasks in the order of their inputs. Faults: Ray
starts the task of a dead worker again; after `retries` times the task itself raises an EngineError.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data._internal.execution.interfaces.task_context import TaskContext
from ray.exceptions import RayError

from rayds.engine._ray_cluster import connect, takes_no_cpu
from rayds.engine._ray_io import (
    Carried,
    CountSink,
    ShardSource,
    Tally,
    WriteSink,
    bound_attempts,
    carrying,
    describe,
    dumps,
    loads,
    start_positions,
    unions_in_turn,
)
from rayds.engine._ray_parts import PART, by_part, unpacked, with_part
from rayds.engine.base import Block, Engine, Position, Stage, Writer, guarded
from rayds.errors import EngineError
from rayds.schema import empty_table

__all__ = ["RayBlocks", "RayEngine", "connect"]

T = TypeVar("T")

BLOCK_BYTES = 16 << 20
PARTITION_BYTES = 64 << 20
FUSED_BYTES = 192 << 20
TASK_STRIDE = 1 << 20  # more than any task's blocks
FUSED_SHARDS = 8  # of fewer, blocks are written side by side; no matter how many CPUs, so that other ones can go on with a job
EXPAND_ROWS = 64
RETRIES = 3
_TASK, _ROW, _PARTIAL = "__task", "__row", "partial"


@dataclass(frozen=True)
class RayBlocks:
    """A lazy dataset, or None for no blocks at all.

    shards and size (bytes): of the source, to choose partitions. small: whether its shards are many, none of them big, and
    a task each, so that each may be written where it is read. starts: the first item of every shard, where they tell it.
    """

    dataset: ray.data.Dataset | None
    shards: int = 0
    size: int | None = None
    small: bool = False
    starts: tuple[int, ...] | None = None


class RayEngine(Engine):
    """Runs stages as Ray Data tasks; connects at first use, unless Ray runs in this process already.

    address: of a cluster ("auto" for the one on this machine; default RAY_ADDRESS, without it a private one is
    started here). num_cpus: logical CPUs of the private cluster, or how many to use of another. retries: how often
    a task whose worker died starts again. block_bytes: size of blocks between tasks. store_bytes: object store
    of the private cluster.
    """

    name = "ray"

    def __init__(
        self,
        address: str | None = None,
        num_cpus: int | None = None,
        *,
        retries: int = RETRIES,
        block_bytes: int = BLOCK_BYTES,
        store_bytes: int | None = None,
    ) -> None:
        self.address, self.num_cpus, self.retries = address, num_cpus, retries
        self.block_bytes, self.store_bytes = block_bytes, store_bytes

    def __repr__(self) -> str:
        return f"RayEngine(address={self.address!r}, num_cpus={self.num_cpus})"

    def source(self, shards: Sequence[T], read: Callable[[T], Iterable[Block]]) -> RayBlocks:
        if not shards:
            return RayBlocks(None)
        with self._planning():
            source = ShardSource(shards, ray.put(read), self.retries)
            dataset = ray.data.read_datasource(source, override_num_blocks=len(shards))
            largest = max((getattr(shard, "size", None) or FUSED_BYTES + 1) for shard in shards)
            small = largest <= FUSED_BYTES and len(shards) >= FUSED_SHARDS
        starts = [getattr(shard, "first_item", None) for shard in shards]
        told = [int(first) for first in starts if first is not None]
        return RayBlocks(
            dataset,
            len(shards),
            source.estimate_inmemory_data_size(),
            small,
            tuple(told) if len(told) == len(shards) else None,
        )

    def map(self, blocks: RayBlocks, fn: Stage) -> RayBlocks:
        return self._map(blocks, _bounded(guarded(fn), fn, self.retries))

    def map_raw(self, blocks: RayBlocks, fn: Stage) -> RayBlocks:
        """Like map with a stage that sees error rows too."""
        return self._map(blocks, _bounded(fn, fn, self.retries))

    def chain(self, parts: Sequence[RayBlocks]) -> RayBlocks:
        some = [p for p in parts if p.dataset is not None]
        if len(some) < 2:
            return some[0] if some else RayBlocks(None)
        first, *others = [p.dataset for p in some if p.dataset is not None]
        unions_in_turn()
        with self._planning():
            dataset = first.union(*others)
        sizes = [p.size for p in some]
        return RayBlocks(
            dataset, sum(p.shards for p in some), None if None in sizes else sum(filter(None, sizes))
        )

    def map_stateful(
        self,
        blocks: RayBlocks,
        factory: Callable[[], Stage],
        *,
        batch_rows: int | None = None,
        workers: int = 1,
        num_cpus: float = 1,
        num_gpus: float = 0,
    ) -> RayBlocks:
        if blocks.dataset is None:
            return blocks
        pool = ray.data.ActorPoolStrategy(
            # From one on: the stage starts when the cluster has room for one worker, not for all.
            min_size=1,
            max_size=workers,
            initial_size=1,
            # One call at a time, on the thread of the task: only there Ray tells how often the task died.
            max_concurrent_calls_per_actor=1,
            enable_true_multi_threading=True,
        )
        with self._planning():
            apart = replace(
                blocks, small=False, starts=None
            )  # no shard is read by the task that goes on with it
            return self._map(
                apart,
                _Actor,
                fn_constructor_kwargs={"factory": factory, "retries": self.retries},
                compute=pool,
                batch_size=batch_rows,
                num_cpus=num_cpus
                if self._cpus() > num_cpus
                else 0,  # one CPU is left to the tasks that feed it
                num_gpus=num_gpus,
                memory=1,  # other arguments than those of tasks: else Ray Data moves the reading into the few actors
            )

    def by_key(
        self, blocks: RayBlocks, keys: Sequence[str], fn: Stage, partitions: int | None = None
    ) -> RayBlocks:
        if blocks.dataset is None:
            return blocks
        with self._planning():
            n = partitions or self._partitions(blocks)
            numbered = self._map(blocks, _numbered())
            assert numbered.dataset is not None
            shuffled = RayBlocks(numbered.dataset.repartition(n, keys=list(keys)), n, blocks.size)
        return self._map(shuffled, _bounded(_keyed(list(keys), guarded(fn)), fn, self.retries))

    @property
    def cpus(self) -> int:
        with self._planning():
            return int(self._cpus())

    def by_number(self, blocks: RayBlocks, column: str, n: int, fn: Stage | None = None) -> RayBlocks:
        if blocks.dataset is None:
            return blocks
        numbered = self._map(blocks, _numbered())
        assert numbered.dataset is not None
        if fn is None:
            with self._planning():
                ordered = numbered.dataset.sort([column, _TASK, _ROW])
            return self._map(RayBlocks(ordered, blocks.shards, blocks.size), _unnumbered)
        # A sort cuts its results anywhere; what is partitioned by keys stays whole, but in no order. So rows are brought
        # together by part (some numbers that follow one another), and what fn makes of each part is put in order.
        with self._planning():
            # A sort makes as many pieces of each block as there are blocks, and the driver knows all of them: so the
            # partitions are few, and the parts small, as several meet in a partition, by chance.
            partitions = min(n, 2 * self._partitions(blocks))
            parts = min(n, 4 * partitions)
            marked = self._map(numbered, with_part(column, n, parts))
            assert marked.dataset is not None
            together = RayBlocks(marked.dataset.repartition(partitions, keys=[PART]), partitions, blocks.size)
            stage = _bounded(by_part([column, _TASK, _ROW], guarded(fn)), fn, self.retries)
            packed = self._map(together, stage)
            assert packed.dataset is not None
            in_order = RayBlocks(packed.dataset.sort(PART), partitions, blocks.size)
        return self._map(in_order, unpacked)

    def fold(
        self, blocks: RayBlocks, map_fn: Callable[[Block], T], merge_fn: Callable[[T, T], T]
    ) -> T | None:
        def part(block: Block) -> Block:
            return _partials([map_fn(block)])

        def merge(block: Block) -> Block:
            return _partials([_merged(block, merge_fn)])

        parts = self._map(self._map(blocks, _bounded(part, map_fn, self.retries)), merge)
        result: T | None = None
        for i, block in enumerate(self.iterate(parts)):
            value = _merged(block, merge_fn)
            result = value if i == 0 else merge_fn(result, value)  # type: ignore[arg-type]
        return result

    def write(
        self, blocks: RayBlocks, writer: Writer, progress: Callable[[int], None] | None = None
    ) -> list[Any]:
        where_read = blocks.small and not writer.needs_offsets
        in_place = where_read and bool(writer.rows) and getattr(writer, "in_place", False) and blocks.starts
        if writer.rows and not in_place:
            blocks, where_read = self.rechunk(blocks, writer.rows), False
        dataset = blocks.dataset
        if dataset is None:
            return []
        # Other arguments than those of maps keep Ray Data from fusing the write with them, so that a write task
        # gets one block: the blocks of one large shard are written side by side.
        args = {} if where_read else {"max_retries": self.retries}
        with _original_errors(), self._planning():
            starts: Mapping[int, Position] | None = None
            if in_place:
                assert blocks.starts
                assert writer.rows
                starts = {i: Position(first // writer.rows) for i, first in enumerate(blocks.starts)}
            elif where_read:
                starts = {i: Position(i * TASK_STRIDE) for i in range(blocks.shards)}
            elif writer.needs_offsets:
                dataset = dataset.materialize()
                counter = CountSink(writer, self.retries)
                dataset.write_datasink(counter, ray_remote_args=args)
                starts = start_positions(counter.returned)
            with _reported(progress) as tally:
                sink = WriteSink(writer, self.retries, starts, tally)
                dataset.write_datasink(sink, ray_remote_args=args)
                if tally is not None:
                    for task in sink.returned:
                        ray.get(tally.tell.remote(task.task, task.rows))
        return [result for task in sink.returned for result in task.results]

    def iterate(self, blocks: RayBlocks) -> Iterator[Block]:
        if blocks.dataset is None:
            return
        with _original_errors():
            batches: Iterator[Any] = iter(
                blocks.dataset.iter_batches(batch_size=None, batch_format="pyarrow")
            )
        while True:
            with _original_errors():
                batch = next(batches, None)
            if batch is None:
                return
            if batch.num_rows:
                yield batch

    def rechunk(self, blocks: RayBlocks, rows: int) -> RayBlocks:
        if blocks.dataset is None:
            return blocks
        with self._planning():
            dataset = blocks.dataset.repartition(target_num_rows_per_block=rows, strict=True)
            takes_no_cpu(dataset)
        return RayBlocks(dataset, blocks.shards, blocks.size)

    def expand(self, blocks: RayBlocks, fn: Stage, rows: int) -> RayBlocks:
        # Items are small: one block holds work for minutes. It is cut where it is made, so that all workers get some.
        cut = self._map(blocks, _same)
        if cut.dataset is None:
            return cut
        with self._planning():
            dataset = cut.dataset.repartition(target_num_rows_per_block=EXPAND_ROWS)
        pieces = RayBlocks(dataset, blocks.shards, blocks.size)
        # memory: other arguments than those of the reading, with which it would else be one task.
        return self._map(pieces, _expanded(fn, rows, self.retries), memory=1)

    def materialize(self, blocks: RayBlocks) -> ray.data.Dataset | None:
        if blocks.dataset is None:
            return None
        with _original_errors(), self._planning():
            held: ray.data.Dataset = blocks.dataset.materialize()
            return held

    def adopt(self, held: ray.data.Dataset | None) -> RayBlocks:
        if held is None:
            return RayBlocks(None)
        with self._planning(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            dataset = ray.data.Dataset.copy(held, _deep_copy=True)
            self._configure(dataset.context)
        return RayBlocks(dataset, int(self._cpus()))

    def to_native(self, blocks: RayBlocks) -> ray.data.Dataset:
        """The blocks as a lazy ray.data.Dataset, error rows included."""
        if blocks.dataset is None:
            with self._planning():
                return ray.data.from_arrow(empty_table())
        return blocks.dataset

    def _map(self, blocks: RayBlocks, fn: Any, **options: Any) -> RayBlocks:
        if blocks.dataset is None:
            return blocks
        with self._planning():
            dataset = blocks.dataset.map_batches(
                fn, batch_format="pyarrow", **{"batch_size": None, **options}
            )
        return replace(blocks, dataset=dataset)

    def _cpus(self) -> float:
        total = float(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        return min(total, self.num_cpus) if self.num_cpus else total

    def _partitions(self, blocks: RayBlocks) -> int:
        """A partition is held in memory whole: about PARTITION_BYTES each, at least one a CPU."""
        by_size = blocks.shards if blocks.size is None else -(-blocks.size // PARTITION_BYTES)
        return max(int(self._cpus()), min(by_size, 10_000), 1)

    @contextmanager
    def _planning(self) -> Iterator[None]:
        """Ray Data's settings for the plans made inside; a plan keeps those it was made under."""
        connect(self.address, self.num_cpus, self.store_bytes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a copy touches settings that are deprecated
            context = ray.data.DataContext.get_current().copy()
        self._configure(context)
        with ray.data.DataContext.current(context):
            yield

    def _configure(self, context: ray.data.DataContext) -> None:
        context.execution_options.preserve_order = True
        if self.num_cpus:
            context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
                cpu=self.num_cpus
            )
        context.target_max_block_size = self.block_bytes
        # 1 GiB by default: one task would partition a whole dataset.
        context.shuffle_input_batch_bytes = PARTITION_BYTES
        context.shuffle_compression = "lz4"  # zstd, the default, took a tenth longer, and saved little
        context.enable_fallback_to_arrow_object_ext_type = False
        context.raise_original_map_exception = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False


class _Actor:
    """A worker of map_stateful. It makes its stage at the first block: an error there ends the job at once,
    where Ray would start an actor again whose constructor failed."""

    def __init__(self, factory: Callable[[], Stage], retries: int) -> None:
        self.factory = factory
        self.stage: Stage | None = None
        self.run = _bounded(self._stage, factory, retries)

    def _stage(self, block: Block) -> Block:
        self.stage = self.stage or guarded(self.factory())
        return self.stage(block)

    def __call__(self, block: Block) -> Block:
        return self.run(block)


def _bounded(stage: Stage, named: Any, retries: int) -> Stage:
    """The stage, which gives up on a block after `retries` deaths; named: what messages call it."""
    name = getattr(named, "__qualname__", None) or type(named).__qualname__

    def run(block: Block) -> Block:
        with carrying():
            bound_attempts(lambda: f"stage {name}, {describe(block)}", retries)
            return stage(block)

    return run


def _expanded(stage: Stage, rows: int, retries: int) -> Callable[[Block], Iterator[Block]]:
    """The stage over pieces of a block, one result after the other, so that no task holds all of them."""

    def run(block: Block) -> Iterator[Block]:
        with carrying():
            bound_attempts(lambda: f"decoding {describe(block)}", retries)
            for start in range(0, block.num_rows, rows):
                yield stage(block.slice(start, rows))

    return run


def _numbered() -> Stage:
    """A stage that gives rows their place in the stream: the task, and the row among those of the task."""
    rows = 0  # every task gets its own copy of this function

    def run(block: Block) -> Block:
        nonlocal rows
        n = block.num_rows
        place = pa.array(np.arange(rows, rows + n))
        rows += n
        context = TaskContext.get_current()
        assert context is not None
        task = pa.repeat(pa.scalar(context.task_idx, pa.int64()), n)
        return block.append_column(_TASK, task).append_column(_ROW, place)

    return run


def _same(block: Block) -> Block:
    return block


def _unnumbered(block: Block) -> Block:
    return block.drop_columns([_TASK, _ROW])


def _keyed(keys: list[str], stage: Stage) -> Stage:
    """The stage over a partition sorted by keys, rows of a key in source order."""

    def run(block: Block) -> Block:
        order = pc.sort_indices(block, sort_keys=[(k, "ascending") for k in (*keys, _TASK, _ROW)])
        return stage(block.drop_columns([_TASK, _ROW]).take(order))

    return run


def _partials(values: Sequence[Any]) -> Block:
    return pa.table({_PARTIAL: pa.array([dumps(v) for v in values], pa.large_binary())})


def _merged(block: Block, merge_fn: Callable[[T, T], T]) -> T:
    values = (loads(v.as_py()) for v in block.column(_PARTIAL))
    result: T = next(values)
    for value in values:
        result = merge_fn(result, value)
    return result


@contextmanager
def _reported(progress: Callable[[int], None] | None) -> Iterator[Any]:
    """An actor to tell of rows, whose news go to `progress` every second from a thread, and at the end."""
    if progress is None:
        yield None
        return
    tally: Any = ray.remote(num_cpus=0)(Tally).remote()
    done = threading.Event()
    told = 0

    def report() -> None:
        nonlocal told
        total = ray.get(tally.read.remote())
        if total > told:
            progress(total - told)
        told = total

    def watch() -> None:
        while not done.wait(1):
            report()

    thread = threading.Thread(target=watch, name="rayds-progress", daemon=True)
    thread.start()
    try:
        yield tally
    finally:
        done.set()
        thread.join()
    report()


@contextmanager
def _original_errors() -> Iterator[None]:
    """Raise what stages and formats raised in a worker as it was; Ray's own errors as EngineError."""
    try:
        yield
    except RayError as e:
        error: Any = e
        while isinstance(error, RayError) or not isinstance(error, Carried):  # Ray's wrapper is both
            error = getattr(error, "cause", None) or getattr(error, "__cause__", None)
            if error is None or error is e:
                raise EngineError(f"Ray could not finish the work: {e}") from e
        raise error.original() from e
