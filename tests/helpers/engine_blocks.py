"""Blocks, shards and a writer to try engines with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from rayds.engine.base import Block, Engine, Position
from rayds.schema import annotation_rows, item_table, mask_rows

BLOCKS, ROWS = 3, 5


def items(ids: list[str], subset: str = "train") -> Block:
    """A block of items with one box and one mask each."""
    n = len(ids)
    masks = mask_rows(2 * n, 4, 6, [None, "PP1"] * n)
    points = [[float(i), 0.1, 2.5, 1e-9] if i % 2 == 0 else None for i in range(2 * n)]
    rows = annotation_rows(2 * n, type=[6, 2] * n, id=list(range(2 * n)), label=0, points=points, mask=masks)
    return item_table(n, rows, [2] * n, id=ids, subset=subset)


def read(shard: int) -> Iterator[Block]:
    for block in range(BLOCKS):
        yield items([f"{shard:03}/{block}/{row}" for row in range(ROWS)], "train" if shard % 2 else "val")


def ids_of(engine: Engine, blocks: Any) -> list[str]:
    return [i for block in engine.iterate(blocks) for i in block.column("id").to_pylist()]


def expected_ids(shards: int) -> list[str]:
    return [f"{s:03}/{b}/{r}" for s in range(shards) for b in range(BLOCKS) for r in range(ROWS)]


class Recorder:
    """A writer that returns the ids and the position that it got."""

    def __init__(self, rows: int | None = None, needs_offsets: bool = False) -> None:
        self.rows, self.needs_offsets = rows, needs_offsets

    def count(self, block: Block) -> dict[str, int]:
        return {"items": block.num_rows, **split_subsets(block)}

    def write(self, block: Block, position: Position) -> Any:
        return block.column("id").to_pylist(), position.index, dict(position.offsets)


def split_subsets(block: Block) -> dict[str, int]:
    return {v["values"]: v["counts"] for v in pc.value_counts(block.column("subset")).to_pylist()}
