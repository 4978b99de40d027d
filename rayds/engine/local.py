"""The in-process engine: plain loops on threads, no Ray. For laptops, tests and small data.

Memory is bounded by the blocks in flight: a few for each thread. ``by_key`` spills to disk over a budget.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import Block, Engine, Position, Stage, Writer, add_counts, guarded, rechunked
from rayds.parallel import cpu_count, ordered_chain, ordered_map

T = TypeVar("T")

SPILL_BYTES = 512 << 20
MAX_PARTITIONS = 256
KEPT_BYTES = 256 << 20  # of blocks that are kept between two passes
AHEAD = 2  # pieces for each thread that `expand` makes before they are asked for


@dataclass(frozen=True)
class LocalBlocks:
    """A recipe: how to make the source blocks, and the stages that follow."""

    make: Callable[[], Iterator[Block]]
    stages: tuple[Stage, ...] = ()

    def run(self, block: Block) -> Block:
        for stage in self.stages:
            if not block.num_rows:
                break
            block = stage(block)
        return block


class LocalEngine(Engine):
    """Runs stages on the threads of this process; workers: threads (default: the cores it may use)."""

    name = "local"

    def __init__(self, workers: int | None = None, spill_bytes: int = SPILL_BYTES) -> None:
        self.workers = workers or cpu_count()
        self.spill_bytes = spill_bytes

    def __repr__(self) -> str:
        return f"LocalEngine(workers={self.workers})"

    def source(self, shards: Sequence[T], read: Callable[[T], Iterable[Block]]) -> LocalBlocks:
        return LocalBlocks(lambda: ordered_chain(read, shards, self.workers))

    def map(self, blocks: LocalBlocks, fn: Stage) -> LocalBlocks:
        return replace(blocks, stages=(*blocks.stages, guarded(fn)))

    def chain(self, parts: Sequence[LocalBlocks]) -> LocalBlocks:
        return LocalBlocks(lambda: (block for part in parts for block in self.iterate(part)))

    def map_stateful(
        self,
        blocks: LocalBlocks,
        factory: Callable[[], Stage],
        *,
        batch_rows: int | None = None,
        workers: int = 1,
        num_cpus: float = 1,
        num_gpus: float = 0,
    ) -> LocalBlocks:
        del workers, num_cpus, num_gpus  # one instance, which has its own threads

        def make() -> Iterator[Block]:
            stage = guarded(factory())
            stream = self.iterate(blocks)
            yield from map(stage, rechunked(stream, batch_rows) if batch_rows else stream)

        return LocalBlocks(make)

    def by_key(
        self, blocks: LocalBlocks, keys: Sequence[str], fn: Stage, partitions: int | None = None
    ) -> LocalBlocks:
        stage = guarded(fn)

        def make() -> Iterator[Block]:
            with tempfile.TemporaryDirectory(prefix="rayds-") as folder:
                store = _Partitions(partitions or 4 * self.workers, Path(folder), self.spill_bytes)
                for block in self.iterate(blocks):
                    store.add(block, _partition(block, keys, store.n))
                for table in store.tables():
                    yield stage(sort_by_keys(table, keys))

        return LocalBlocks(make)

    @property
    def cpus(self) -> int:
        return self.workers

    def by_number(self, blocks: LocalBlocks, column: str, n: int, fn: Stage | None = None) -> LocalBlocks:
        def make() -> Iterator[Block]:
            with tempfile.TemporaryDirectory(prefix="rayds-") as folder:
                store = _Partitions(min(n, MAX_PARTITIONS), Path(folder), self.spill_bytes)
                width = -(-n // store.n)  # numbers a partition
                for block in self.iterate(blocks):
                    store.add(block, block.column(column).fill_null(0).to_numpy() // width)
                for table in store.tables():
                    if width > 1:
                        order = np.argsort(table.column(column).fill_null(0).to_numpy(), kind="stable")
                        table = table.take(pa.array(order))
                    yield table

        return LocalBlocks(make) if fn is None else self.map(LocalBlocks(make), fn)

    def fold(
        self, blocks: LocalBlocks, map_fn: Callable[[Block], T], merge_fn: Callable[[T, T], T]
    ) -> T | None:
        def part(block: Block) -> list[T]:
            block = blocks.run(block)
            return [map_fn(block)] if block.num_rows else []

        result: list[T] = []
        for parts in ordered_map(part, blocks.make(), self.workers):
            result = [merge_fn(result[0], parts[0])] if result and parts else result or parts
        return result[0] if result else None

    def write(
        self, blocks: LocalBlocks, writer: Writer, progress: Callable[[int], None] | None = None
    ) -> list[Any]:
        def positions() -> Iterator[tuple[Block, Position]]:
            offsets: dict[str, int] = {}
            stream = self.iterate(blocks)
            for i, block in enumerate(rechunked(stream, writer.rows) if writer.rows else stream):
                yield block, Position(i, dict(offsets))
                if writer.needs_offsets:
                    offsets = add_counts(offsets, writer.count(block))

        def write(task: tuple[Block, Position]) -> tuple[Any, int]:
            return writer.write(*task), task[0].num_rows

        results = []
        for result, rows in ordered_map(write, positions(), self.workers):
            results.append(result)
            if progress:
                progress(rows)
        return results

    def iterate(self, blocks: LocalBlocks) -> Iterator[Block]:
        if not blocks.stages:
            return _full(blocks.make())
        return _full(ordered_map(blocks.run, blocks.make(), self.workers))

    def rechunk(self, blocks: LocalBlocks, rows: int) -> LocalBlocks:
        return LocalBlocks(lambda: rechunked(self.iterate(blocks), rows))

    def expand(self, blocks: LocalBlocks, fn: Stage, rows: int) -> LocalBlocks:
        def pieces() -> Iterator[Block]:
            for block in self.iterate(blocks):
                for start in range(0, block.num_rows, rows):
                    yield block.slice(start, rows)

        ahead = 1 + AHEAD * self.workers
        return LocalBlocks(lambda: ordered_map(fn, pieces(), self.workers, ahead))

    def kept(self, blocks: LocalBlocks, size: int) -> LocalBlocks | None:
        return LocalBlocks(_Kept(partial(self.iterate, blocks))) if size <= KEPT_BYTES else None

    def materialize(self, blocks: LocalBlocks) -> list[Block]:
        return list(self.iterate(blocks))

    def adopt(self, held: list[Block]) -> LocalBlocks:
        return LocalBlocks(lambda: iter(held))


class _Kept:
    """Makes blocks, and keeps those of the first pass for the second, unless they are too big."""

    def __init__(self, make: Callable[[], Iterator[Block]]) -> None:
        self.make = make
        self.held: deque[Block] | None = None

    def __call__(self) -> Iterator[Block]:
        held, self.held = self.held, None
        if held is not None:
            while held:
                yield held.popleft()
            return
        held, size = deque(), 0
        for block in self.make():
            if held is not None:
                size += block.nbytes
                held.append(block)
                held = held if size <= KEPT_BYTES else None
            yield block
        self.held = held


def _full(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks that have rows."""
    return (block for block in blocks if block.num_rows)


def sort_by_keys(table: Block, keys: Sequence[str]) -> Block:
    """The rows by ascending keys, rows of one key in their order."""
    order = pc.sort_indices(
        table.select(list(keys)).append_column("__row", pa.array(np.arange(table.num_rows))),
        sort_keys=[*((k, "ascending") for k in keys), ("__row", "ascending")],
    )
    return table.take(order)


def _partition(block: Block, keys: Sequence[str], n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The partition (0..n-1) of every row by a hash of its keys."""
    from rayds.sql import query

    names = ", ".join(f'"{k}"' for k in keys)
    found = query(
        f"SELECT (hash({names}) % {int(n)})::BIGINT AS partition FROM t", t=block.select(list(keys))
    )
    partition: np.ndarray[Any, np.dtype[np.int64]] = found.column("partition").to_numpy()
    return partition


class _Partitions:
    """Rows by partition, in memory up to a budget, beyond it in Arrow files."""

    def __init__(self, n: int, folder: Path, budget: int) -> None:
        self.n, self.folder, self.budget = n, folder, budget
        self.held: list[list[Block]] = [[] for _ in range(n)]
        self.bytes = 0
        self.spills = 0

    def add(self, block: Block, partition: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        order = np.argsort(partition, kind="stable")
        bounds = np.searchsorted(partition[order], np.arange(self.n + 1))
        block = block.take(pa.array(order))
        for i in range(self.n):
            if bounds[i + 1] > bounds[i]:
                self.held[i].append(block.slice(bounds[i], bounds[i + 1] - bounds[i]))
        self.bytes += block.nbytes
        if self.bytes > self.budget:
            self._spill()

    def _file(self, i: int, spill: int) -> Path:
        return self.folder / f"{i}-{spill}.arrow"

    def _spill(self) -> None:
        for i, tables in enumerate(self.held):
            if tables:
                table = pa.concat_tables(tables)
                with (
                    pa.OSFile(str(self._file(i, self.spills)), "wb") as f,
                    pa.ipc.new_file(f, table.schema) as w,
                ):
                    w.write_table(table)
        self.held = [[] for _ in range(self.n)]
        self.bytes, self.spills = 0, self.spills + 1

    def tables(self) -> Iterator[Block]:
        for i in range(self.n):
            parts = []
            for spill in range(self.spills):
                if (path := self._file(i, spill)).exists():
                    with pa.OSFile(str(path), "rb") as f:
                        parts.append(pa.ipc.open_file(f).read_all())
            parts += self.held[i]
            if parts:
                yield pa.concat_tables(parts)
