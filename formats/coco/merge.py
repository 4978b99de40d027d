"""Annotation rows of several files brought together by item, in bounded memory; which of them are one object."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.formats.coco.rows import NO_ID
from rayds.schema import ANNOTATION_TYPE, AnnotationType, annotation_rows
from rayds.sql import query

Ints = npt.NDArray[np.int64]

SPILL_BYTES = 768 << 20
SOURCES = 8  # files of one subset: one a task
INSTANCES, PERSON_KEYPOINTS = 0, 1  # the numbers of the files whose records may be one object


class Grouping:
    """Annotation rows by item: kept in buckets of `size` consecutive items, spilled to disk over a budget."""

    def __init__(self, size: int, folder: Path, budget: int | None = None) -> None:
        self.size, self.folder = size, folder
        self.budget = SPILL_BYTES if budget is None else budget
        self.held: dict[int, list[tuple[pa.StructArray, Ints]]] = {}
        self.spilled: list[dict[int, list[int]]] = []
        self.bytes = 0

    def add(self, rows: pa.StructArray, item: Ints, source: int = 0) -> None:
        """Rows with the number of the item of each; source: the number of their file."""
        if not len(item):
            return
        key = item * SOURCES + source
        rows, key = ascending(rows, key)
        buckets = key // (self.size * SOURCES)
        cuts = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(key)]
        for lo, hi in pairwise(cuts):
            self.held.setdefault(int(buckets[lo]), []).append((rows.slice(lo, hi - lo), key[lo:hi]))
        self.bytes += rows.nbytes + key.nbytes
        if self.bytes > self.budget:
            self._spill()

    def _spill(self) -> None:
        path = self.folder / f"{len(self.spilled)}.arrow"
        schema = pa.schema([("rows", ANNOTATION_TYPE), ("key", pa.int64())])
        places: dict[int, list[int]] = {}
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, schema) as writer:
            n = 0
            for bucket in sorted(self.held):
                for rows, key in self.held[bucket]:
                    writer.write_batch(pa.record_batch([rows, pa.array(key)], schema=schema))
                    places.setdefault(bucket, []).append(n)
                    n += 1
        self.spilled.append(places)
        self.held, self.bytes = {}, 0

    def bucket(self, i: int) -> tuple[pa.StructArray, Ints, Ints]:
        """(rows in order of items and files, item of each counted from the bucket's first, file of each)."""
        parts: list[tuple[pa.StructArray, Ints]] = []
        for k, places in enumerate(self.spilled):
            if i in places:
                with pa.memory_map(str(self.folder / f"{k}.arrow")) as f:
                    reader = pa.ipc.open_file(f)
                    batches = [reader.get_batch(n) for n in places[i]]
                    parts += [(b.column(0), b.column(1).to_numpy()) for b in batches]
        parts += self.held.pop(i, [])
        if not parts:
            none = np.zeros(0, np.int64)
            return annotation_rows(0), none, none
        rows = pa.concat_arrays([p[0] for p in parts]) if len(parts) > 1 else parts[0][0]
        rows, key = ascending(rows, np.concatenate([p[1] for p in parts]))
        return rows, key // SOURCES - i * self.size, key % SOURCES


def ascending(rows: pa.StructArray, key: Ints) -> tuple[pa.StructArray, Ints]:
    """Rows and keys by ascending key; rows of one key stay in their order."""
    if not np.any(key[1:] < key[:-1]):
        return rows, key
    order = np.argsort(key, kind="stable")
    return rows.take(pa.array(order)), key[order]


def replace_fields(rows: pa.StructArray, **columns: pa.Array) -> pa.StructArray:
    """The rows with some fields replaced."""
    arrays = [
        columns[f.name] if f.name in columns else pc.struct_field(rows, f.name) for f in ANNOTATION_TYPE
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(ANNOTATION_TYPE))


def number_missing(rows: pa.StructArray, largest: int, give: bool) -> pa.StructArray:
    """Annotations that came without an id get the numbers after the largest one; give=False: their groups only."""
    id = pc.struct_field(rows, "id").to_numpy()
    missing = id <= NO_ID
    if not missing.any():
        return rows
    group = pc.struct_field(rows, "group").to_numpy()
    fresh = max(largest, 0) + 1 + NO_ID
    id = np.where(missing, fresh - id if give else 0, id)
    group = np.where(group <= NO_ID, fresh - group, group)
    return replace_fields(rows, id=pa.array(id), group=pa.array(group))


def merge_tasks(rows: pa.StructArray, item: Ints, source: Ints) -> tuple[pa.StructArray, Ints]:
    """Rows of several files of the same images: an object that two files tell is one.

    person_keypoints repeats the boxes and polygons of instances under the same id: the repeated rows go, the key
    points join the group and take over what the record says besides. Other objects of one number (ids are unique
    in a file only) get a group of their own.
    """
    group = pc.struct_field(rows, "group").to_numpy()
    grouped = np.flatnonzero((group != 0) & (group > NO_ID))
    later = grouped[_repeats(item[grouped], group[grouped], source[grouped])]
    if not len(later):
        return rows, item
    where = pa.array(grouped)
    table = pa.table(
        {
            "item": item[grouped],
            "g": group[grouped],
            "source": source[grouped],
            "type": pc.struct_field(rows, "type").take(where),
            "label": pc.struct_field(rows, "label").take(where),
            "points": pc.struct_field(rows, "points").take(where),
            "mask": pc.struct_field(pc.struct_field(rows, "mask"), "counts").take(where),
            "row": grouped,
        }
    )
    same = query(_SAME, t=table)
    one = np.isin(later, same.column("row").to_numpy())
    group = group.copy()
    group[later[~one]] += source[later[~one]] << 57
    rows = replace_fields(rows, group=pa.array(group), extra=_moved_extra(rows, same))
    place = np.arange(len(item)) * 2
    place[same.column("row").to_numpy()] = (
        same.column("last").to_numpy() * 2 + 1
    )  # behind the rows of their object
    keep = np.ones(len(item), bool)
    keep[same.filter(same.column("repeated")).column("row").to_numpy()] = False
    order = np.argsort(place, kind="stable")
    order = order[keep[order]]
    return rows.take(pa.array(order)), item[order]


# The rows of key point records that are the object of the same number in instances: same label, same box where
# both have one. last: the last row of that object; repeated: instances has that shape already.
_SAME = f"""
    WITH o AS (SELECT item, g, source, first(label) AS label,
                      first(points) FILTER (type = {int(AnnotationType.bbox)}) AS box, max(row) AS last
               FROM t WHERE source IN ({INSTANCES}, {PERSON_KEYPOINTS}) GROUP BY item, g, source),
         s AS (SELECT a.item, a.g, a.last FROM o a JOIN o b USING (item, g)
               WHERE a.source = {INSTANCES} AND b.source = {PERSON_KEYPOINTS}
                 AND a.label IS NOT DISTINCT FROM b.label AND (a.box = b.box OR a.box IS NULL OR b.box IS NULL))
    SELECT t.row, t.item, t.g, s.last, EXISTS (
             SELECT 1 FROM t u WHERE u.source = {INSTANCES} AND u.item = t.item AND u.g = t.g AND u.type = t.type
               AND u.points IS NOT DISTINCT FROM t.points AND u.mask IS NOT DISTINCT FROM t.mask) AS repeated
    FROM t JOIN s USING (item, g) WHERE t.source = {PERSON_KEYPOINTS} ORDER BY t.row"""


def _repeats(item: Ints, group: Ints, source: Ints) -> npt.NDArray[np.bool_]:
    """Rows whose item and group occur in an earlier file too."""
    order = np.lexsort((source, group, item))
    i, g, s = item[order], group[order], source[order]
    starts = np.append(True, (i[1:] != i[:-1]) | (g[1:] != g[:-1])) if len(i) else np.zeros(0, bool)
    first = s[np.flatnonzero(starts)][np.cumsum(starts) - 1] if len(i) else s
    out = np.zeros(len(item), bool)
    out[order] = s > first
    return out


def _moved_extra(rows: pa.StructArray, same: pa.Table) -> pa.Array:
    """extra, with what stood on a repeated row moved to the first row of its record that stays."""
    extra = pc.struct_field(rows, "extra")
    row = same.column("row").to_numpy()
    repeated = same.column("repeated").to_numpy()
    owner = np.stack([same.column("item").to_numpy(), same.column("g").to_numpy()])
    if not len(row):
        return extra
    record = np.cumsum(np.append(True, np.any(owner[:, 1:] != owner[:, :-1], axis=0))) - 1
    lead = row[np.unique(record, return_index=True)[1]]
    staying = np.flatnonzero(~repeated)
    records, first = np.unique(record[staying], return_index=True)
    source = np.arange(len(rows))
    source[row[staying][first]] = lead[records]
    return extra.take(pa.array(source))
