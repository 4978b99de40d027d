"""Rows brought together by number on Ray, the results in order: what runs in the tasks of RayEngine.by_number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import Block, Stage

PART = "__part"
_TABLE = "table"


def with_part(column: str, n: int, parts: int) -> Stage:
    """A stage that tells the part of every row: numbers 0..n-1 in `parts` runs of numbers that follow one another."""

    def run(block: Block) -> Block:
        number = block.column(column).fill_null(0).to_numpy()
        return block.append_column(PART, pa.array(number * parts // n))

    return run


def by_part(keys: Sequence[str], stage: Stage) -> Stage:
    """The stage over each part of a partition, its rows in order of keys (a number, and the place of the row).

    Of each part comes one row: the part, and the result as bytes. So a shuffle moves results whole, and sorts few rows.
    """

    def run(block: Block) -> Block:
        order = pc.sort_indices(block, sort_keys=[(PART, "ascending"), *((k, "ascending") for k in keys)])
        part = block.column(PART).to_numpy()[order.to_numpy()]
        rows = block.drop_columns([PART, *keys[1:]]).take(order)
        found, starts = np.unique(part, return_index=True)
        ends = np.append(starts[1:], len(part))
        made = [stage(rows.slice(a, b - a)) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        return pa.table({PART: found, _TABLE: pa.array(map(_packed, made), pa.large_binary())})

    return run


def _packed(table: Block) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpacked(block: Block) -> Block:
    """The tables of the rows that `by_part` made."""
    return pa.concat_tables([pa.ipc.open_stream(p.as_buffer()).read_all() for p in block.column(_TABLE)])
