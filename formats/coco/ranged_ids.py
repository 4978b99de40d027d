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
from rayds.formats._ranges import PieceScanner, file_changed, reader
from rayds.formats.coco.items import Ints, id_twice, repeated_ids
from rayds.formats.coco.order import plain_ids
from rayds.formats.coco.rows import NO_ID, Rows
from rayds.storage import Storage

_BYTES = 24  # of an id, its file and its place
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
    files = [list(group) for _, group in groupby(numbered, key=lambda s: s.file)]
    if sure:
        unsure = [s for own in files if not _apart(own) for s in own]
        again = set(_exchange(engine, unsure, partial(_plain_ids, root))[0].tolist()) if unsure else set()
        files = [own for own in files if own[0].file in again]
    # Records that are bad for another reason take no part: parse them all.
    exact = [s for own in files for s in own]
    if not exact:
        return Repeated()
    file, ids, places, largest = _exchange(engine, exact, partial(_good_ids, parse))
    found = Repeated(largest=largest)
    for own in files:
        mine = np.flatnonzero(file == own[0].file)
        if len(mine):
            order = mine[np.lexsort((places[mine], ids[mine]))]
            path = root.path(own[0].name)
            found.errors += [id_twice(int(ids[k]), int(places[k]), path) for k in order]
            found.exclude[own[0].task] = frozenset(places[mine].tolist())
    return found


def _apart(sources: Sequence[Any]) -> bool:
    """Whether the marks prove that no id occurs twice: unique in each range, the ranges' ids apart."""
    seen = sorted((s.run.seen.ids for s in sources), key=lambda ids: ids.low)
    return all(ids.unique for ids in seen) and all(a.high < b.low for a, b in pairwise(seen))


def _exchange(
    engine: Engine, sources: list[Any], read: Callable[[Any], Iterator[Block]]
) -> tuple[Ints, Ints, Ints, int]:
    """(file, id and place of the records whose id an earlier one of their file has, the largest id)."""
    n = sum(s.run.count for s in sources)
    partitions = max(engine.cpus, -(-n * _BYTES // _PARTITION))
    blocks = engine.by_key(engine.source(sources, read), ["file", "id"], _again, partitions)
    none = np.zeros(0, np.int64)
    table = pa.concat_tables([_ids(0, none, none), *engine.iterate(blocks)])
    file, ids, places = (table.column(c).to_numpy() for c in ("file", "id", "place"))
    later = places != _NOWHERE
    return file[later], ids[later], places[later], int(ids.max(initial=0))


def _ids(file: int, ids: Ints, places: Ints) -> Block:
    return pa.table({"file": np.full(len(ids), file), "id": ids, "place": places})


def _again(block: Block) -> Block:
    """The repeated ids of a block, and its largest one."""
    files, ids, places = (block.column(c).to_numpy() for c in ("file", "id", "place"))
    tables = [_ids(0, ids.max(keepdims=True), np.array([_NOWHERE]))]
    for file in np.unique(files).tolist():
        mine = files == file
        later = repeated_ids(ids[mine], places[mine])
        tables.append(_ids(file, ids[mine][later], places[mine][later]))
    return pa.concat_tables(tables)


def _good_ids(parse: Callable[[Any], Iterator[Rows]], source: Any) -> Iterator[Block]:
    """Ids and places of the good records that have an id."""
    for made in parse(source):
        own = made.ids > NO_ID
        yield _ids(source.file, made.ids[own], made.places[own])


def _plain_ids(root: Storage, source: Any) -> Iterator[Block]:
    """Ids and places of records that surely all have an id."""
    path, read = root.path(source.name), reader(root, source.name)
    for records in PieceScanner(read, path, source.run, "annotations", marks=True).records():
        ids = plain_ids(records)
        if ids is None:
            raise file_changed(path, source.run)
        yield _ids(source.file, ids, records.base + records.starts)
