"""Where an item belongs by a hash of its key: its shard, its place in a shuffle. The same for every run, engine and
number of workers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import Block, Blocks, Engine
from rayds.schema import single_chunk, split_errors
from rayds.sql import query

SHARD_COLUMN = "__shard"
SHUFFLE_COLUMN = "__shuffle"
_HASH_BITS = 62


def shard_of(block: Block, shards: int, by: str) -> pa.Array:
    """The shard, 0..shards-1, of every row: by "id" (id and subset) or by "subset". int64."""
    return hashed(block, "subset || '/' || id" if by == "id" else "subset", shards)


def hashed(block: Block, key: str, n: int) -> pa.Array:
    """A hash from 0 to n - 1 of every row's key, an SQL expression. int64."""
    table = pa.table({"id": single_chunk(block, "id"), "subset": single_chunk(block, "subset")})
    # MD5 is slow for a hash, but will be the same in every version of every library.
    sql = f"SELECT (md5_number_lower({key}) % {int(n)})::BIGINT AS hash FROM t"
    column = query(sql, t=table).column("hash").combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def only_shard(index: int, shards: int, by: str, block: Block) -> Block:
    """The rows of one shard."""
    return block.filter(pc.equal(shard_of(block, shards, by), index))


def shard_counts(shards: int, by: str, block: Block) -> dict[str, int]:
    """The number of rows of each shard that has any, by its number as text (error rows not counted)."""
    found = pc.value_counts(shard_of(split_errors(block)[0], shards, by))
    return {str(v["values"]): v["counts"] for v in found.to_pylist()}


def shuffled(engine: Engine, blocks: Blocks, window: int | None, seed: int, epoch: int) -> Blocks:
    """The rows in the order of a hash of (seed, epoch, subset, id): all of them, or those of each `window` rows."""
    key = f"'{int(seed)}/{int(epoch)}/' || subset || '/' || id"
    if window is not None:
        return engine.map(engine.rechunk(blocks, window), partial(_sorted, key))
    marked = engine.map(blocks, partial(_mark_place, key))
    return engine.map(engine.by_number(marked, SHUFFLE_COLUMN, 1 << _HASH_BITS), _unmark_place)


def _sorted(key: str, block: Block) -> Block:
    places = hashed(block, key, 1 << _HASH_BITS).to_numpy()
    return block.take(pa.array(np.argsort(places, kind="stable")))


def _mark_place(key: str, block: Block) -> Block:
    return block.append_column(SHUFFLE_COLUMN, hashed(block, key, 1 << _HASH_BITS))


def _unmark_place(block: Block) -> Block:
    return block.drop_columns([SHUFFLE_COLUMN])


def _mark(shards: int, by: str, block: Block) -> Block:
    return block.append_column(SHARD_COLUMN, shard_of(block, shards, by))


def _unmark(block: Block) -> Block:
    return block.drop_columns([SHARD_COLUMN])


def repartition(engine: Engine, blocks: Blocks, shards: int, by: str) -> Blocks:
    """The rows of shard 0, then of shard 1, ..., rows of one shard in source order."""
    marked = engine.map(blocks, partial(_mark, shards, by))
    return engine.map(engine.by_number(marked, SHARD_COLUMN, shards), _unmark)
