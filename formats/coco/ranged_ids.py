"""Annotation ids that occur more than once in a file that is read by ranges: by an exchange of ids where they may."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from rayds.engine.base import Block, Engine
from rayds.errors import DataError
from rayds.formats._ranges import PieceScanner, reader
from rayds.formats.coco.checks import BROKEN, checked_json, integers
from rayds.formats.coco.items import Ints, id_twice, repeated_ids
from rayds.formats.coco.rows import NO_ID, Rows
from rayds.sql import query, text_column
from rayds.storage import Storage

_BYTES = 16  # of an id and its place
_PARTITION = 64 << 20
_NOWHERE = -1


@dataclass
class Repeated:
    """exclude: by task, the places of the records whose id an earlier one has; errors: of those. largest: the largest
    id of all, known where some annotation may have none (else 0)."""

    exclude: dict[str, frozenset[int]] = field(default_factory=dict)
    largest: int = 0
    errors: list[DataError] = field(default_factory=list)


def find_repeated(
    engine: Engine, root: Storage, sources: Sequence[Any], parse: Callable[[Any], Iterator[Rows]]
) -> Repeated:
    """The annotations of a subset to leave out. parse: the rows of a source.

    Ids of a panoptic file are colours, unique in their image only, and take no part.
    """
    numbered = [s for s in sources if s.task != "panoptic"]
    sure = all(s.run.seen.ids is not None for s in numbered)
    found = Repeated()
    for task, group in groupby(numbered, key=lambda s: s.task):
        own = list(group)
        if sure and (_apart(own) or not len(_exchange(engine, own, partial(_plain_ids, root))[0])):
            continue
        # Records that are bad for another reason take no part: parse them all.
        later, places, largest = _exchange(engine, own, partial(_good_ids, parse))
        found.largest = max(found.largest, largest)
        if len(later):
            path = root.path(own[0].name)
            order = np.lexsort((places, later))
            found.errors += [id_twice(int(later[k]), int(places[k]), path) for k in order]
            found.exclude[task] = frozenset(places.tolist())
    return found


def _apart(sources: Sequence[Any]) -> bool:
    """Whether the marks prove that no id occurs twice: unique in each range, the ranges' ids apart."""
    seen = sorted((s.run.seen.ids for s in sources), key=lambda ids: ids.low)
    return all(ids.unique for ids in seen) and all(a.high < b.low for a, b in pairwise(seen))


def _exchange(
    engine: Engine, sources: list[Any], read: Callable[[Any], Iterator[Block]]
) -> tuple[Ints, Ints, int]:
    """(ids that occur again, places of these records, the largest id)."""
    n = sum(s.run.count for s in sources)
    partitions = max(engine.cpus, -(-n * _BYTES // _PARTITION))
    blocks = engine.by_key(engine.source(sources, read), ["id"], _again, partitions)
    table = pa.concat_tables([_ids(np.zeros(0, np.int64), np.zeros(0, np.int64)), *engine.iterate(blocks)])
    ids, places = table.column("id").to_numpy(), table.column("place").to_numpy()
    later = places != _NOWHERE
    return ids[later], places[later], int(ids.max(initial=0))


def _ids(ids: Ints, places: Ints) -> Block:
    return pa.table({"id": ids, "place": places})


def _again(block: Block) -> Block:
    """The repeated ids of a block, and its largest one."""
    ids, places = block.column("id").to_numpy(), block.column("place").to_numpy()
    later = repeated_ids(ids, places)
    return _ids(np.append(ids[later], ids.max()), np.append(places[later], _NOWHERE))


def _good_ids(parse: Callable[[Any], Iterator[Rows]], source: Any) -> Iterator[Block]:
    """Ids and places of the good records that have an id."""
    for made in parse(source):
        own = made.ids > NO_ID
        yield _ids(made.ids[own], made.places[own])


def _plain_ids(root: Storage, source: Any) -> Iterator[Block]:
    """Ids and places of records that all have an id."""
    path = root.path(source.name)
    for records in PieceScanner(reader(root, source.name), path, source.run, "annotations").records():
        texts, number = records.texts(), np.arange(len(records))
        sql = """SELECT from_json(j, '{"id":"DOUBLE"}').id AS id FROM t"""
        try:
            found = query(sql, t=pa.table({"j": texts}))
        except BROKEN:
            texts, number = checked_json(records, path, [])
            found = query(sql, t=pa.table({"j": texts}))
        ids = integers(text_column(found, "id"), texts, "id")[0]
        own = ids.is_valid().to_numpy(zero_copy_only=False)
        yield _ids(ids.filter(pa.array(own)).to_numpy(), (records.base + records.starts[number])[own])
