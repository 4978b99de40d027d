"""What needs to know all items: their place in the dataset, whether keys are unique, an order by value. Bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import Block, Blocks, Engine
from rayds.errors import DataError
from rayds.schema import single_chunk, split_errors
from rayds.sharding import hashed

CHUNK = 10_000
SAMPLE = 4096
PARTS = 64
_PART, _KEY, _OLD = "__sort_part", "__sort_key", "__old"


def with_starts(
    engine: Engine, blocks: Blocks, count: Callable[[Block], int], fn: Callable[[Block, int], Block]
) -> Blocks:
    """fn over item tables and the sum of `count` over all before them. Reads the blocks once more, to count.

    Blocks are cut into chunks of a fixed size, which are the same in both passes; the driver holds a key for each.
    """
    made, _ = _with_starts(engine, blocks, count, fn)
    return made


def numbered(engine: Engine, blocks: Blocks, column: str, start: int = 0) -> tuple[Blocks, int]:
    """(the blocks with a column of the places of their items, from `start` on; the number after the last)."""
    made, n = _with_starts(engine, blocks, len, partial(_number, column, start))
    return made, start + n


def _number(column: str, start: int, block: Block, before: int) -> Block:
    places = np.arange(start + before, start + before + block.num_rows)
    return block.append_column(column, pa.array(places, pa.int64()))


def _with_starts(
    engine: Engine, blocks: Blocks, count: Callable[[Block], int], fn: Callable[[Block, int], Block]
) -> tuple[Blocks, int]:
    chunks = engine.rechunk(blocks, CHUNK)
    found = engine.fold(chunks, partial(_chunk, count), lambda a, b: a + b) or []
    starts: dict[tuple[str, str], int] = {}
    before = 0
    for key, n in found:
        if key in starts:
            raise DataError(
                f"the id occurs twice in the subset {key[1]!r}",
                item=key[0],
                remedy="Items are numbered by their keys, which must be unique",
            )
        starts[key] = before
        before += n
    return engine.map(chunks, partial(_placed, fn, starts)), before


def _first(block: Block) -> tuple[str, str]:
    return block.column("id")[0].as_py(), block.column("subset")[0].as_py()


def _chunk(count: Callable[[Block], int], block: Block) -> list[tuple[tuple[str, str], int]]:
    good = split_errors(block)[0]
    return [(_first(good), count(good))] if good.num_rows else []


def _placed(fn: Callable[[Block, int], Block], starts: dict[tuple[str, str], int], block: Block) -> Block:
    return fn(block, starts[_first(block)]) if block.num_rows else block


def check_unique(engine: Engine, blocks: Blocks, rename: Callable[[Block], Block], what: str) -> None:
    """Raise DataError when items have the same id and subset after `rename`. Reads the blocks once more."""
    pairs = engine.by_key(engine.map(blocks, partial(_old_and_new, rename)), ["id", "subset"], _only_repeated)
    found = engine.fold(pairs, _examples, _first_examples)
    if not found or not found[0]:
        return
    count, examples = found
    (id, subset), old = examples[0]
    places = " and ".join(f"{o[0]!r} of {o[1]!r}" for o in old)
    raise DataError(
        f"{what}: {count:,} items would have the id of another one in their subset, e.g. {places} would both be "
        f"{id!r} in {subset!r}",
        remedy="Choose other options, so that no two items of a subset get the same id",
    )


def _old_and_new(rename: Callable[[Block], Block], block: Block) -> Block:
    old = pa.StructArray.from_arrays(
        [single_chunk(block, "id"), single_chunk(block, "subset")], names=["id", "subset"]
    )
    made = rename(block)
    return pa.table({"id": made.column("id"), "subset": made.column("subset"), _OLD: old})


def _only_repeated(block: Block) -> Block:
    same = pc.and_(
        pc.equal(block.column("id")[1:], block.column("id")[:-1]),
        pc.equal(block.column("subset")[1:], block.column("subset")[:-1]),
    )
    repeated = np.zeros(block.num_rows, bool)
    pairs = np.flatnonzero(same.to_numpy(zero_copy_only=False))
    repeated[pairs] = repeated[pairs + 1] = True
    return block.filter(pa.array(repeated))


Examples = tuple[int, list[tuple[tuple[str, str], list[tuple[str, str]]]]]


def _examples(block: Block) -> Examples:
    block = split_errors(block)[0]
    keys = list(zip(block.column("id").to_pylist(), block.column("subset").to_pylist(), strict=True))
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for key, old in zip(keys, block.column(_OLD).to_pylist(), strict=True):
        found.setdefault(key, []).append((old["id"], old["subset"]))
    return len(keys) - len(found), sorted(found.items())[:3]


def _first_examples(a: Examples, b: Examples) -> Examples:
    return a[0] + b[0], sorted(a[1] + b[1])[:3]


def ordered(engine: Engine, blocks: Blocks, key: Callable[[Block], pa.Array], descending: bool) -> Blocks:
    """The items in the order of a key (nulls last), those of the same key in the order that they had.

    A sample of keys tells where to cut the range of keys, so that no task holds all items; it does not change the order.
    """
    sample = engine.fold(blocks, partial(_sampled, key), _merged_samples)
    values = sorted(v for _, v in sample or [])
    bounds = [values[len(values) * i // PARTS] for i in range(1, PARTS)] if len(values) > PARTS else []
    marked = engine.map(blocks, partial(_mark, key, bounds, descending))
    together = engine.by_number(marked, _PART, len(bounds) + 2, partial(_sorted, descending))
    return engine.map(together, _unmark)


def _sampled(key: Callable[[Block], pa.Array], block: Block) -> list[tuple[int, Any]]:
    good = split_errors(block)[0]
    if not good.num_rows:
        return []
    places = hashed(good, "subset || '/' || id", 1 << 62).to_numpy()
    values = key(good)
    rows = [int(r) for r in np.argsort(places, kind="stable")[:SAMPLE] if values[int(r)].is_valid]
    return [(int(places[r]), values[r].as_py()) for r in rows]


def _merged_samples(a: list[tuple[int, Any]], b: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    return sorted(a + b, key=lambda pair: pair[0])[:SAMPLE]


def _mark(key: Callable[[Block], pa.Array], bounds: list[Any], descending: bool, block: Block) -> Block:
    values = key(block)
    part = np.zeros(block.num_rows, np.int64)
    for bound in bounds:
        part += pc.fill_null(pc.greater_equal(values, pa.scalar(bound, values.type)), False).to_numpy(
            zero_copy_only=False
        )
    if descending:
        part = len(bounds) - part
    part[values.is_null().to_numpy(zero_copy_only=False)] = len(bounds) + 1
    return block.append_column(_PART, pa.array(part)).append_column(_KEY, values)


def _sorted(descending: bool, block: Block) -> Block:
    place = pa.array(np.arange(block.num_rows))
    order = pc.sort_indices(
        block.append_column("__place", place),
        sort_keys=[
            (_PART, "ascending"),  # nulls are in the last
            (_KEY, "descending" if descending else "ascending"),
            ("__place", "ascending"),
        ],
    )
    return block.take(order)


def _unmark(block: Block) -> Block:
    return block.drop_columns([_PART, _KEY])
