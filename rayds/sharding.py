"""Which shard an item belongs to: a hash of its key, the same for every run, engine and number of workers."""

from __future__ import annotations

from functools import partial

import pyarrow as pa

from rayds.engine.base import Block, Blocks, Engine
from rayds.schema import single_chunk
from rayds.sql import query

SHARD_COLUMN = "__shard"


def shard_of(block: Block, shards: int, by: str) -> pa.Array:
    """The shard, 0..shards-1, of every row: by "id" (id and subset) or by "subset". int64."""
    key = "subset || '/' || id" if by == "id" else "subset"
    table = pa.table({"id": single_chunk(block, "id"), "subset": single_chunk(block, "subset")})
    # MD5 is slow for a hash, but will be the same in every version of every library.
    sql = f"SELECT (md5_number_lower({key}) % {int(shards)})::BIGINT AS shard FROM t"
    column = query(sql, t=table).column("shard").combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def _mark(shards: int, by: str, block: Block) -> Block:
    return block.append_column(SHARD_COLUMN, shard_of(block, shards, by))


def _unmark(block: Block) -> Block:
    return block.drop_columns([SHARD_COLUMN])


def repartition(engine: Engine, blocks: Blocks, shards: int, by: str) -> Blocks:
    """The rows of shard 0, then of shard 1, ..., rows of one shard in source order."""
    marked = engine.map(blocks, partial(_mark, shards, by))
    return engine.map(engine.by_number(marked, SHARD_COLUMN, shards), _unmark)
