"""The six primitives that everything is written on, whatever runs them.

Blocks are item tables in flight; an engine's handle on them is opaque and may be used many times (it is a
recipe, not data). Every primitive keeps the order of items, except ``by_key``. Rows whose error column is
set pass every stage untouched; ``iterate``, ``fold`` and ``write`` meet them at the end. Blocks without rows are
dropped: no stage, fold or writer sees one. What a block holds is up to the engine: on a cluster the blocks of a
shard may be joined or cut, so that a result must not depend on where blocks end.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from rayds.errors import EngineError
from rayds.schema import ERROR_COLUMN, split_errors

Block: TypeAlias = pa.Table
Stage: TypeAlias = Callable[[Block], Block]
Blocks: TypeAlias = Any  # an engine's own handle
T = TypeVar("T")
E = TypeVar("E", bound="Engine")

_MAX_CHUNK = 1 << 30


@dataclass(frozen=True)
class Position:
    """Where a block stands in the stream: its number, and the sums of `count` over all blocks before.

    Numbers ascend and never repeat. They are 0, 1, 2, ... only where the writer asks for blocks of a fixed number of items.
    """

    index: int
    offsets: Mapping[str, int] = field(default_factory=dict)


class LostError(EngineError):
    """The process that worked on a part of the data died, every time."""


class Writer(Protocol):
    """What `Engine.write` drives. Picklable.

    rows: every block but the last must have exactly so many rows, or None for any; needs_offsets: whether
    `count` and the offsets of Position are needed (on a cluster that costs a pass over the blocks first).
    """

    rows: int | None
    needs_offsets: bool

    def count(self, block: Block) -> dict[str, int]:
        """What the block adds to the offsets of later blocks."""
        ...

    def write(self, block: Block, position: Position) -> Any:
        """Write the block; may run again for the same position after a failure. Returns something small."""
        ...


class Engine(ABC):
    """Runs stages over blocks.

    restartable: readers may raise rayds.format.Restart, then the whole job runs again without this. align: the job writes blocks
    of so many items and changes no number of items: shards had better begin at multiples of it.
    """

    name: ClassVar[str]
    restartable: bool = False
    align: int | None = None

    def for_job(self: E, *, restartable: bool = False, align: int | None = None) -> E:
        """The same engine for a job of which this is known."""
        made = copy.copy(self)
        made.restartable, made.align = restartable, align
        return made

    @abstractmethod
    def source(self, shards: Sequence[T], read: Callable[[T], Iterable[Block]]) -> Blocks:
        """The blocks that `read` yields for each shard, in order.

        A shard may tell its `name` (for messages), its `size` (bytes to read; tasks may then do more than read small ones) and
        its `first_item` (its number among all items, when the shards were made for `align`).
        """

    @abstractmethod
    def map(self, blocks: Blocks, fn: Stage) -> Blocks:
        """fn over every block; it sees no error rows."""

    @abstractmethod
    def chain(self, parts: Sequence[Blocks]) -> Blocks:
        """The blocks of several handles, one after the other."""

    @abstractmethod
    def map_stateful(
        self,
        blocks: Blocks,
        factory: Callable[[], Stage],
        *,
        batch_rows: int | None = None,
        workers: int = 1,
        num_cpus: float = 1,
        num_gpus: float = 0,
    ) -> Blocks:
        """Like map with the stage that `factory` makes once a worker (a loaded model), fed `batch_rows` at a time."""

    @abstractmethod
    def by_key(self, blocks: Blocks, keys: Sequence[str], fn: Stage, partitions: int | None = None) -> Blocks:
        """fn over blocks in which all rows of a key stand together, keys ascending, rows of a key in source order.

        keys: names of string or integer columns. A call may see several keys; the order of calls is not defined.
        """

    @abstractmethod
    def by_number(self, blocks: Blocks, column: str, n: int, fn: Stage | None = None) -> Blocks:
        """The rows with 0 in an integer column, then those with 1, ... to n - 1; rows of a number in source order.

        A keyed exchange like by_key, for keys whose order matters. Where there are many they should be evenly spread
        (as hashes are). Error rows come first. fn: a stage over blocks each of which has all rows of one number, or of
        some numbers that follow one another.
        """

    def fold_inputs(
        self, inputs: Sequence[Any], map_fn: Callable[[Any], T], merge_fn: Callable[[T, T], T]
    ) -> T | None:
        """map_fn over plain inputs, a task each, results merged in order; None for no inputs."""
        import pickle

        def run(value: Any) -> Iterator[Block]:
            yield pa.table({"part": pa.array([pickle.dumps(map_fn(value))], pa.large_binary())})

        blocks = self.source(list(inputs), run)
        return self.fold(blocks, lambda block: pickle.loads(block.column("part")[0].as_py()), merge_fn)

    @property
    @abstractmethod
    def cpus(self) -> int:
        """How many tasks can run side by side."""

    @abstractmethod
    def fold(self, blocks: Blocks, map_fn: Callable[[Block], T], merge_fn: Callable[[T, T], T]) -> T | None:
        """map_fn over every block (error rows included), results merged in order; None for no blocks.

        For equal answers on every engine merge_fn must be associative exactly: integers, sets, sorted lists.
        """

    @abstractmethod
    def write(
        self, blocks: Blocks, writer: Writer, progress: Callable[[int], None] | None = None
    ) -> list[Any]:
        """writer.write over every block; its results in block order. progress is told rows done, now and then."""

    @abstractmethod
    def iterate(self, blocks: Blocks) -> Iterator[Block]:
        """The blocks, in order, error rows included."""

    @abstractmethod
    def rechunk(self, blocks: Blocks, rows: int) -> Blocks:
        """The same rows in blocks of exactly `rows` rows (the last may be smaller)."""

    @abstractmethod
    def expand(self, blocks: Blocks, fn: Stage, rows: int) -> Blocks:
        """Like map for a stage whose results are much bigger than items (decoded images), and of any schema.

        fn gets pieces of at most `rows` rows, error rows included. Only `iterate` and what passes it on may follow.
        """

    def kept(self, blocks: Blocks, size: int) -> Blocks | None:
        """The blocks for two passes, of which the second need not read again; None where that does not pay.

        size: bytes of the files that they are read from, 0 for unknown.
        """
        del blocks, size
        return None

    @abstractmethod
    def materialize(self, blocks: Blocks) -> Any:
        """The blocks computed and held in the engine's memory; for `adopt`."""

    @abstractmethod
    def adopt(self, held: Any) -> Blocks:
        """Blocks of what `materialize` returned, or of the engine's own kind of dataset."""


def guarded(fn: Stage) -> Stage:
    """A stage that lets error rows pass `fn` untouched."""

    def run(block: Block) -> Block:
        if ERROR_COLUMN not in block.schema.names:
            return fn(block)
        good, bad = split_errors(block)
        out = fn(good)
        if ERROR_COLUMN not in out.schema.names:
            out = out.append_column(ERROR_COLUMN, pa.nulls(out.num_rows, pa.string()))
        if bad is None:
            return out
        bad = bad.select(
            [n for n in bad.column_names if n in out.column_names]
        )  # a column that fn drops is gone
        return pa.concat_tables([out, bad], promote_options="default")

    return run


def rechunked(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """The rows of blocks in blocks of exactly `rows` rows, the last may be smaller; one chunk each unless huge."""
    held: list[Block] = []
    have = 0
    for block in blocks:
        while block.num_rows:
            take = min(rows - have, block.num_rows)
            held.append(block.slice(0, take))
            have += take
            block = block.slice(take)
            if have == rows:
                yield _joined(held)
                held, have = [], 0
    if held:
        yield _joined(held)


def _joined(tables: Sequence[Block]) -> Block:
    """The tables as one of one chunk; of several where one could overflow Arrow's 32-bit offsets."""
    table = pa.concat_tables(tables)
    return table.combine_chunks() if table.nbytes < _MAX_CHUNK else table


def add_counts(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """The sums of two counts, name by name."""
    out = dict(a)
    for name, n in b.items():
        out[name] = out.get(name, 0) + n
    return out
