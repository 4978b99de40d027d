"""Units: the pieces in which an output is written and recorded, so that a later run goes on where one ended.

A source's good items are numbered shard by shard, in hidden columns. A unit is a run of items of one shard, or, where a
format's files have a fixed number of items, a block of exactly so many. Numbers don't depend on engines, workers or
where blocks end; so a job begun on one engine can be finished on another. Bad items of a shard are kept in its record.
Datasets that are more than a source (derived, in memory) have no numbers: there a unit is a block by its place in the
stream, and a hash tells whether its content is that of the unit that was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rayds.encoding import EncodingError, decode, encode
from rayds.engine.base import Block, Position, Stage, add_counts
from rayds.errors import DataError, EngineError, ResumeError
from rayds.format import Shard
from rayds.partial import SHARDS, UNITS, Partial
from rayds.reading import Isolate, ShardReader
from rayds.schema import single_chunk, split_errors

SHARD, ROW = "__shard", "__row"
SHARD_STRIDE = 10**12  # more than any shard's items: unit numbers ascend with (shard, row)

Runs = list[tuple[int, int]]  # (first row, row after the last)


class Inner(Protocol):
    """What writes a unit; see rayds.export.ExportWriter."""

    rows: int | None
    needs_offsets: bool

    def count(self, block: Block) -> dict[str, int]: ...
    def write(self, block: Block, position: Position, lost: Mapping[int, DataError] | None = None) -> Any: ...
    def trial(self, block: Block, position: Position) -> None: ...


@dataclass(frozen=True)
class Numbered:
    """A shard with its number; items before `first` are left out."""

    number: int
    shard: Shard
    first: int = 0

    @property
    def name(self) -> str:
        return self.shard.name

    @property
    def size(self) -> int | None:
        return self.shard.size


@dataclass
class NumberingReader:
    """Reads a shard, checks its items, numbers the good ones and records the bad ones."""

    reader: ShardReader
    check: Stage
    partial: Partial

    def __call__(self, shard: Numbered) -> Iterator[Block]:
        return self._numbered(shard, self.reader(shard.shard))

    def isolated(self, shard: Numbered, isolate: Isolate) -> Iterator[Block]:
        """The same, read in a process of its own."""
        return self._numbered(shard, self.reader.isolated(shard.shard, isolate))

    def _numbered(self, shard: Numbered, blocks: Iterable[Block]) -> Iterator[Block]:
        row = 0
        errors: list[dict[str, Any]] = []
        for block in blocks:
            good, bad = split_errors(self.check(block))
            errors += error_records(bad)
            start = max(0, shard.first - row)
            if start < good.num_rows:
                yield with_numbers(good.slice(start), shard.number, row + start)
            row += good.num_rows
        self.partial.write_shard(shard.number, row, errors)


def error_records(bad: pa.Table | None) -> list[dict[str, Any]]:
    """The records of error rows."""
    return [json.loads(text) for text in bad.column("error").to_pylist()] if bad is not None else []


def with_numbers(block: Block, shard: int, row: int) -> Block:
    """The block with the hidden columns."""
    n = block.num_rows
    block = block.append_column(SHARD, pa.array(np.full(n, shard, np.int32)))
    return block.append_column(ROW, pa.array(np.arange(row, row + n)))


def without_numbers(block: Block) -> Block:
    """The block without the hidden columns."""
    return block.drop_columns([SHARD, ROW]) if SHARD in block.schema.names else block


@dataclass(frozen=True)
class Unit:
    """A written unit: its number, where it begins, how many items of the stream it covers, what they add to offsets.

    part: what the writer returned; None for one that an earlier run wrote, whose record has it.
    """

    number: int
    shard: int
    row: int
    rows: int
    counts: dict[str, int] = field(default_factory=dict)
    part: Any = None

    @property
    def end(self) -> int:
        return self.row + self.rows


def unit_record(unit: Unit, digest: str | None) -> dict[str, Any]:
    """A unit as JSON; raises EncodingError when its fragment can't be told in JSON."""
    return {
        "shard": unit.shard,
        "row": unit.row,
        "rows": unit.rows,
        "counts": unit.counts,
        "part": encode(unit.part),
        "digest": digest,
    }


def load_units(partial: Partial) -> dict[int, Unit]:
    """The units that earlier runs recorded; what can't be read counts as not written."""
    made = {}
    for number, record in partial.read_all(UNITS).items():
        try:
            shard, row, rows = (int(record[k]) for k in ("shard", "row", "rows"))
            part = decode(record["part"], partial.packages)
            made[number] = Unit(number, shard, row, rows, dict(record["counts"]), part)
        except (EncodingError, KeyError, TypeError, ValueError):
            continue
    return made


@dataclass
class ShardRecord:
    """What is known of a shard that was read to its end."""

    items: int
    errors: list[dict[str, Any]]


def load_shards(partial: Partial) -> dict[int, ShardRecord]:
    """The shards that were read to their end."""
    made = {}
    for number, record in partial.read_all(SHARDS).items():
        try:
            made[number] = ShardRecord(int(record["items"]), list(record["errors"]))
        except (KeyError, TypeError, ValueError):
            continue
    return made


@dataclass
class Rest:
    """What is left to do.

    shards: those to read. number, offsets: of the first block, where blocks are numbered through or need offsets.
    done: rows of these shards that are written, by shard. resumed: whether there may be records of units.
    """

    shards: list[Numbered]
    number: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    done: dict[int, Runs] = field(default_factory=dict)
    resumed: bool = False


def rest_of(
    shards: list[Shard], units: Mapping[int, Unit], known: Mapping[int, ShardRecord], inner: Inner
) -> Rest:
    """What is left to do of a source when these units are written and these shards are known."""
    runs: dict[int, Runs] = {}
    for unit in units.values():
        runs.setdefault(unit.shard, []).append((unit.row, unit.end))
    if inner.rows is None and not inner.needs_offsets:
        todo = [i for i in range(len(shards)) if not _covered(runs.get(i, []), known.get(i))]
        done = {i: merged(runs[i]) for i in todo if i in runs}
        return Rest([Numbered(i, shards[i]) for i in todo], done=done, resumed=bool(units))
    shard, row, number, offsets = _prefix(units, known, len(shards), fixed=inner.rows is not None)
    todo = list(range(shard, len(shards)))
    done = {} if inner.rows is not None else {i: merged(runs[i]) for i in todo if i in runs}
    return Rest(
        [Numbered(i, shards[i], row if i == shard else 0) for i in todo], number, offsets, done, bool(units)
    )


def _covered(runs: Runs, known: ShardRecord | None) -> bool:
    return known is not None and merged(runs) == ([(0, known.items)] if known.items else [])


def _prefix(
    units: Mapping[int, Unit], known: Mapping[int, ShardRecord], shards: int, *, fixed: bool
) -> tuple[int, int, int, dict[str, int]]:
    """(shard, row, number, offsets) of the first item that no unit holds; all before are held without a gap."""
    starts: Mapping[Any, Unit] = units if fixed else {(u.shard, u.row): u for u in units.values()}
    shard = row = number = 0
    offsets: dict[str, int] = {}
    while True:
        while shard < shards and shard in known and row >= known[shard].items:
            row -= known[shard].items
            shard += 1
        unit = starts.get(number if fixed else (shard, row))
        if unit is None or (unit.shard, unit.row) != (shard, row):
            return shard, row, number, offsets
        row += unit.rows
        number += 1
        offsets = add_counts(offsets, unit.counts)


def merged(runs: Iterable[tuple[int, int]]) -> Runs:
    """Runs in order, those that touch joined."""
    made: Runs = []
    for start, end in sorted(runs):
        if made and start <= made[-1][1]:
            made[-1] = made[-1][0], max(end, made[-1][1])
        else:
            made.append((start, end))
    return made


@dataclass
class UnitWriter:
    """Drives `inner` unit by unit and records each; leaves out what earlier runs wrote. See rayds.engine.base.Writer.

    in_place: all shards begin at multiples of `rows` items, if they tell where they begin.
    """

    inner: Inner
    partial: Partial
    rest: Rest
    run: str
    in_place: bool = False

    def __post_init__(self) -> None:
        self.rows, self.needs_offsets = self.inner.rows, self.inner.needs_offsets

    def count(self, block: Block) -> dict[str, int]:
        """What the block adds to the offsets of later ones."""
        return self.inner.count(without_numbers(block))

    def write(
        self, block: Block, position: Position, lost: Mapping[int, DataError] | None = None
    ) -> list[Unit]:
        """Write the units of a block; lost: rows that can't be written, and why."""
        if SHARD not in block.schema.names:
            return [self._by_content(block, position, lost)]
        shard = single_chunk(block, SHARD).to_numpy()
        row = single_chunk(block, ROW).to_numpy()
        block = without_numbers(block)
        if self.rows is not None:
            unit = Unit(self.rest.number + position.index, int(shard[0]), int(row[0]), block.num_rows)
            found = self.partial.read_unit(unit.number) if self.rest.resumed and not lost else None
            if isinstance(found, dict) and [found.get(k) for k in ("shard", "row", "rows")] == [
                unit.shard,
                unit.row,
                unit.rows,
            ]:
                return [unit]
            return [self._write(block, unit, {}, lost)]
        return self._runs(block, shard, row, add_counts(self.rest.offsets, position.offsets), lost)

    def trial(self, block: Block, position: Position) -> None:
        """Do what `write` does, and leave nothing."""
        self.inner.trial(without_numbers(block), position)

    def _runs(
        self,
        block: Block,
        shard: Any,
        row: Any,
        offsets: dict[str, int],
        lost: Mapping[int, DataError] | None,
    ) -> list[Unit]:
        """Write the runs of rows that are not written yet, each as a unit."""
        made = []
        for start, end, done in self._pieces(shard, row):
            part = block.slice(start, end - start)
            if not done:
                s, r = int(shard[start]), int(row[start])
                mine = {i - start: e for i, e in (lost or {}).items() if start <= i < end}
                made.append(self._write(part, Unit(s * SHARD_STRIDE + r, s, r, end - start), offsets, mine))
            if self.needs_offsets:
                offsets = add_counts(offsets, made[-1].counts if not done else self.inner.count(part))
        return made

    def _pieces(self, shard: Any, row: Any) -> Iterator[tuple[int, int, bool]]:
        """(start, end, written before) of the runs of consecutive items in a block."""
        cuts = np.flatnonzero((np.diff(shard) != 0) | (np.diff(row) != 1)) + 1
        for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(row)], strict=True):
            first = int(row[start])
            at = start
            for a, b in self.rest.done.get(int(shard[start]), []):
                a, b = max(a - first + start, at), min(b - first + start, end)
                if a < b:
                    if at < a:
                        yield at, a, False
                    yield a, b, True
                    at = b
            if at < end:
                yield at, end, False

    def _by_content(self, block: Block, position: Position, lost: Mapping[int, DataError] | None) -> Unit:
        digest = content_digest(block, position)
        if self.rest.resumed and not lost:
            found = self.partial.read_unit(position.index)
            if isinstance(found, dict):
                if found.get("digest") != digest:
                    raise other_items(f"block {position.index}")
                return Unit(position.index, 0, 0, block.num_rows)
        unit = Unit(position.index, 0, 0, block.num_rows)
        return self._write(block, unit, dict(position.offsets), lost, digest)

    def _write(
        self,
        block: Block,
        unit: Unit,
        offsets: dict[str, int],
        lost: Mapping[int, DataError] | None,
        digest: str | None = None,
    ) -> Unit:
        self.partial.check_own(self.run)
        part = self.inner.write(block, Position(unit.number, offsets), lost)
        counts = self.inner.count(block) if self.needs_offsets else {}
        unit = Unit(unit.number, unit.shard, unit.row, unit.rows, counts, part)
        with suppress(EncodingError):  # a later run writes it again
            self.partial.write_unit(unit.number, unit_record(unit, digest))
        return unit


def other_items(where: str) -> ResumeError:
    """The error of a stream that is not the one of which some was written."""
    return ResumeError(
        f"the items to write are not those of the interrupted run ({where}): the dataset is made in another way, or its "
        "blocks end in other places. Start anew: with --overwrite, or without --resume"
    )


def content_digest(block: Block, position: Position) -> str:
    """A hash of all values of a block and its place."""
    # the quickest of the safe ones: processors have instructions for it
    found = hashlib.sha256(repr((position.index, sorted(position.offsets.items()))).encode())

    class Sink:
        closed = False

        def write(self, data: Any) -> int:
            found.update(data)
            return len(data)

        def flush(self) -> None: ...

    with pa.ipc.new_stream(pa.PythonFile(Sink(), "w"), block.schema) as stream:
        stream.write_table(block.combine_chunks())
    return found.hexdigest()


def in_order(
    units: Iterable[Unit], known: Mapping[int, ShardRecord], shards: int
) -> list[Unit | ShardRecord]:
    """All shards and units in the order of the items, a shard before its units.

    Raises EngineError when they don't cover every item once.
    """
    ordered = sorted(units, key=lambda u: (u.shard, u.row, u.number))
    start, at = 0, [0] * (shards + 1)
    for i in range(shards):
        if i not in known:
            raise EngineError(f"the record of shard {i} is missing; run again without --resume")
        at[i] = start
        start += known[i].items
    at[shards] = start
    covered = merged((at[u.shard] + u.row, at[u.shard] + u.end) for u in ordered)
    if covered != ([(0, start)] if start else []) or sum(u.rows for u in ordered) != start:
        raise EngineError(
            f"{sum(u.rows for u in ordered):,} of {start:,} items were written: the source did not give the same items "
            "each time it was read; run again without --resume"
        )
    made: list[tuple[int, int, Unit | ShardRecord]] = [(i, -1, known[i]) for i in range(shards)]
    made += [(u.shard, u.row, u) for u in ordered]
    return [found for _, _, found in sorted(made, key=lambda m: m[:2])]
