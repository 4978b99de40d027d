"""COCO records -> annotation rows by the compiled scanner, where it is there, and a record is plain; else by DuckDB.

What comes out is the same, whoever reads a record: the scanner leaves all that it is not sure of.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.formats import _compiled
from rayds.formats._records import Records
from rayds.formats.coco.rows import Bools, Ints, Rows, groups_of, labels_of, parsed_rows
from rayds.schema import AnnotationType as T
from rayds.schema import annotation_rows
from rayds.sql import query

# The flags of formats/_jsonscan.c
_PLAIN, _HAS_AREA, _LONG_AREA, _HAS_CROWD, _IS_CROWD = 1, 2, 4, 8, 16
_CROWD = pa.array([None, '{"is_crowd":false}', '{"is_crowd":true}'], pa.string())
_PRINT = """SELECT json_extract('{"area":' || text || '}', '$.area')::VARCHAR AS text FROM t"""


def annotations_of(
    records: Records,
    file: str,
    category_labels: dict[int, int],
    mark: str | None,
    first: int,
    exclude: frozenset[int] = frozenset(),
) -> Rows:
    """The annotation rows of some records of a file; exclude: places of records to leave out.

    mark: the task, where it is to be remembered; first: the number from which annotations without an id are counted.
    """
    numbers = first + np.arange(len(records))
    takes = len(records) > 0 and _compiled.takes(records.data)
    found = _Plain(records, category_labels, exclude) if takes else None
    if found is None or 2 * len(found.rest) > len(records):
        return parsed_rows(records, file, category_labels, mark, numbers, exclude)
    rows = found.rows(mark)
    if not len(found.rest):
        return rows
    others = records.take(found.rest)
    return _merged(rows, parsed_rows(others, file, category_labels, mark, numbers[found.rest], exclude))


class _Plain:
    """What the scanner finds. rest: the numbers of the records that are not plain, or not right."""

    def __init__(self, records: Records, category_labels: dict[int, int], exclude: frozenset[int]) -> None:
        found = _compiled.jsonscan.annotations(records.data, records.starts, records.ends)
        self.flags = np.frombuffer(found[0], np.uint8)
        self.ids, self.images, categories = np.frombuffer(found[1], np.int64).reshape(-1, 3).T
        self.shapes = np.frombuffer(found[2], np.int32)
        self.buffers = found[3:]
        self.places: Ints = records.base + records.starts
        self.label, known = labels_of(categories, category_labels)
        right = self.has(_PLAIN) & known
        self.rest: Ints = np.flatnonzero(~right)
        self.keep = right & ~np.isin(self.places, sorted(exclude)) if exclude else right

    def has(self, flag: int) -> Bools:
        """Which records have a flag."""
        found: Bools = (self.flags & flag) != 0
        return found

    def rows(self, mark: str | None) -> Rows:
        """The rows of the plain records."""
        keep, counts = self.keep, np.diff(self.shapes)
        owner = np.repeat(np.arange(len(keep)), counts)
        leads = self.shapes[:-1][counts > 0]
        types = np.full(len(owner), T.polygon, np.int8)
        types[leads] = T.bbox
        behind = np.ones(len(owner), bool)
        behind[leads] = False
        group = groups_of(self.ids)
        crowd = np.where(self.has(_HAS_CROWD), 1 + self.has(_IS_CROWD), 0)
        rows = annotation_rows(
            len(owner),
            type=types,
            id=self.ids[owner],
            group=group[owner],
            label=self.label[owner],
            points=self._points(len(owner)),
            attributes=_CROWD.take(pa.array(crowd[owner])),
            extra=self._extra(mark).take(pa.array(owner, mask=behind)),
        )
        if not keep[owner].all():
            rows, owner = rows.filter(pa.array(keep[owner])), owner[keep[owner]]
        annotation = (np.cumsum(keep) - 1)[owner]
        return Rows(rows, self.images[owner], annotation, self.ids[keep], self.places[keep])

    def _points(self, n: int) -> pa.ListArray:
        bounds, values = self.buffers[:2]
        offsets = pa.Array.from_buffers(pa.int32(), n + 1, [None, pa.py_buffer(bounds)])
        count = offsets[n].as_py()
        numbers = pa.Array.from_buffers(pa.float64(), count, [None, pa.py_buffer(values)])
        return pa.ListArray.from_arrays(offsets, numbers)

    def _extra(self, mark: str | None) -> pa.Array:
        """What each record says besides, as the member "coco" of a JSON object; null where that is nothing."""
        bounds, texts = map(pa.py_buffer, self.buffers[2:])
        area = pa.StringArray.from_buffers(len(self.flags), bounds, texts)
        told, long = self.has(_HAS_AREA), self.has(_LONG_AREA)
        if long.any():
            printed = query(_PRINT, t=pa.table({"text": area.filter(pa.array(long))})).column("text")
            area = pc.replace_with_mask(area, pa.array(long), printed.combine_chunks())
        task = f'"@task":"{mark}"' if mark else ""
        extra = pc.binary_join_element_wise(
            '{"coco":{' + task + ("," if task else "") + '"area":', area, "}}", ""
        )
        if told.all():
            return extra
        return pc.if_else(pa.array(told), extra, '{"coco":{' + task + "}}" if task else None)


def _merged(one: Rows, other: Rows) -> Rows:
    """The rows of both by the place of their records."""
    places = np.concatenate([one.places, other.places])
    order = np.argsort(places)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    annotation = rank[np.concatenate([one.annotation, other.annotation + len(one.places)])]
    by = np.argsort(annotation, kind="stable")
    rows = pa.concat_arrays([one.rows, other.rows]).take(pa.array(by))
    ids = np.concatenate([one.ids, other.ids])[order]
    image = np.concatenate([one.image, other.image])[by]
    return Rows(rows, image, annotation[by], ids, places[order], other.errors)
