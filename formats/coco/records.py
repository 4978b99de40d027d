"""Annotation rows -> COCO records: which rows are one annotation, and its fields as columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds import geometry
from rayds.formats.coco.ids import is_only_id
from rayds.formats.coco.rows import ZERO_GROUP
from rayds.losses import instance_keys
from rayds.schema import AnnotationType as T
from rayds.schema import Flat, list_of
from rayds.sql import query, text_column

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_SINGLE = (T.bbox, T.points, T.caption, T.label)  # a record has at most one of each


@dataclass
class Grouped:
    """Rows by record. view: the rows, those of a record together, in record order; first: each record's first
    row; sizes: rows of each; split: rows whose group could not be kept together."""

    view: Flat
    first: Ints
    sizes: Ints
    split: int = 0

    def __len__(self) -> int:
        return len(self.first)

    @property
    def owner(self) -> Ints:
        """The record of every row."""
        return np.repeat(np.arange(len(self.first)), self.sizes)


def group_records(view: Flat, types: Iterable[T]) -> Grouped:
    """The records that rows of some types make: rows of one item, group and label."""
    kinds = view.type
    keep = np.isin(kinds, [int(t) for t in types])
    if not keep.all():
        rows = np.flatnonzero(keep)
        view = Flat(view.rows.take(pa.array(rows)), view.item[rows], view.offsets)
    item, group = instance_keys(view)
    label = view.numpy("label", -1)
    n = len(group)
    if not n:
        none = np.zeros(0, np.int64)
        return Grouped(view, none, none)
    change = np.ones(n, bool)
    change[1:] = (item[1:] != item[:-1]) | (group[1:] != group[:-1]) | (label[1:] != label[:-1])
    starts = np.flatnonzero(change)
    order = np.lexsort((label[starts], group[starts], item[starts]))
    same = np.zeros(len(starts), bool)
    a, b = starts[order][1:], starts[order][:-1]
    same[1:] = (item[a] == item[b]) & (group[a] == group[b]) & (label[a] == label[b])
    if same.any():
        view, starts = _bring_together(view, starts, order, same, n)
    sizes = np.diff(np.append(starts, n))
    return _split_multiples(Grouped(view, starts, sizes))


def _bring_together(view: Flat, starts: Ints, order: Ints, same: Bools, n: int) -> tuple[Flat, Ints]:
    """Reorder rows so that those of one record, which stand apart, stand together."""
    lead = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    record = np.empty(len(starts), np.int64)
    record[order] = lead
    of_row = np.repeat(record, np.diff(np.append(starts, n)))
    rows = np.argsort(of_row, kind="stable")
    moved = of_row[rows]
    first = np.flatnonzero(np.append(True, moved[1:] != moved[:-1]))
    return Flat(view.rows.take(pa.array(rows)), view.item[rows], view.offsets), first


def _split_multiples(found: Grouped) -> Grouped:
    """A record with two boxes (or sets of points) can't be one COCO annotation: its rows become records each."""
    kinds = found.view.type
    owner = found.owner
    several = np.zeros(len(found.first), bool)
    for t in _SINGLE:
        several |= np.bincount(owner[kinds == t], minlength=len(found.first)) > 1
    if not several.any():
        return found
    alone = several[owner]
    starts = alone.copy()
    starts[found.first] = True
    first = np.flatnonzero(starts)
    return Grouped(found.view, first, np.diff(np.append(first, len(owner))), int(alone.sum()))


def first_of(found: Grouped, kind: T) -> Ints:
    """The row of each record's first annotation of a type, -1 where it has none."""
    out = np.full(len(found.first), -1)
    rows = np.flatnonzero(found.view.type == kind)[::-1]
    out[found.owner[rows]] = rows
    return out


def polygon_lists(found: Grouped) -> pa.ListArray:
    """The polygons of each record: list<list<double>>."""
    rows = found.view.type == T.polygon
    counts = np.bincount(found.owner[rows], minlength=len(found.first))
    points = found.view.column("points")
    if not rows.all():
        points = points.filter(pa.array(rows))
    if points.null_count:
        points = pc.coalesce(points, pa.scalar([], points.type))
    return list_of(points, counts)


def boxes(found: Grouped) -> npt.NDArray[np.float64]:
    """x, y, w, h of every record, shape (n, 4): its box, else what encloses its shapes."""
    view = found.view
    out = np.zeros((len(found.first), 4))
    box = first_of(found, T.bbox)
    has = np.flatnonzero(box >= 0)
    if len(has):
        points = view.column("points").take(pa.array(box[has]))
        out[has] = points.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    missing = box < 0
    if not missing.any():
        return out
    rows = np.flatnonzero(missing[found.owner])
    lists = view.column("points").take(pa.array(rows))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    each = geometry.enclosing_boxes(lists.flatten().to_numpy(zero_copy_only=False), lengths)
    each[:, 2:] += each[:, :2]  # corners
    masks = view.column("mask").take(pa.array(rows))
    for i in np.flatnonzero(masks.is_valid().to_numpy(zero_copy_only=False)):
        m = masks[int(i)].as_py()
        x, y, w, h = geometry.rle_bbox({"size": [m["height"], m["width"]], "counts": m["counts"]})
        each[i] = x, y, x + w, y + h
        lengths[i] = 4
    owner = found.owner[rows]
    seen = lengths > 0
    low, high = np.full((len(out), 2), np.inf), np.full((len(out), 2), -np.inf)
    np.minimum.at(low, owner[seen], each[seen, :2])
    np.maximum.at(high, owner[seen], each[seen, 2:])
    some = missing & np.isfinite(low[:, 0])
    out[some] = np.concatenate([low[some], high[some] - low[some]], axis=1)
    return out


def areas(polygons: pa.ListArray, box: npt.NDArray[np.float64], rles: list[Any]) -> Any:
    """The area of every record: of its masks, else of its polygons (shoelace), else of its box."""
    out = box[:, 2] * box[:, 3]
    flat = polygons.flatten()
    lengths = pc.list_value_length(flat).to_numpy(zero_copy_only=False).astype(np.int64)
    each = geometry.polygon_areas(flat.flatten().to_numpy(zero_copy_only=False), lengths)
    counts = pc.list_value_length(polygons).to_numpy(zero_copy_only=False)
    owner = np.repeat(np.arange(len(out)), counts)
    out = np.where(counts > 0, np.bincount(owner, each, minlength=len(out)), out)
    for i, rle in enumerate(rles):
        if rle is not None:
            out[i] = geometry.rle_area(rle)
    return out


def mask_rles(found: Grouped) -> list[list[dict[str, Any]]] | None:
    """The RLEs of each record, or None when no record has a mask."""
    rows = np.flatnonzero(found.view.type == T.mask)
    if not len(rows):
        return None
    out: list[list[dict[str, Any]]] = [[] for _ in range(len(found.first))]
    for row, m in zip(rows, found.view.column("mask").take(pa.array(rows)).to_pylist(), strict=True):
        out[found.owner[row]].append({"size": [m["height"], m["width"]], "counts": m["counts"]})
    return out


def identified(found: Grouped) -> tuple[Ints, Bools]:
    """(the id of every record, whether it has one): 0 is one where the group says so."""
    ids = found.view.numpy("id")[found.first].astype(np.int64)
    return ids, (ids != 0) | (found.view.numpy("group")[found.first] == ZERO_GROUP)


def lead_texts(found: Grouped, kind: T | None = None) -> tuple[pa.Array, pa.Array]:
    """(attributes, extra) of every record: those of its first row that has any, the row of type `kind` before others."""
    view = found.view
    lead_row = None if kind is None else first_of(found, kind)

    def lead(name: str) -> pa.Array:
        column = view.column(name)
        first = column.take(pa.array(found.first))
        if column.null_count == len(column) or (first.null_count == 0 and lead_row is None):
            return first
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))[::-1]
        index = found.first.copy()
        index[found.owner[rows]] = rows
        if lead_row is not None:
            told = (
                column.take(pa.array(lead_row, mask=lead_row < 0)).is_valid().to_numpy(zero_copy_only=False)
            )
            index = np.where(told, lead_row, index)
        return column.take(pa.array(index))

    return lead("attributes"), lead("extra")


def split_attributes(attributes: pa.Array, allow: bool) -> pa.Table:
    """crowd (bool), score (text), rest (JSON object text or null) of attribute texts."""
    encoded = attributes.dictionary_encode()
    words = encoded.dictionary
    if len(words) <= 256:
        parts = [json.loads(t) for t in words.to_pylist()]
        crowd = [bool(p.get("is_crowd")) for p in parts]
        score = [json.dumps(p["score"]) if p.get("score") is not None else None for p in parts]
        rest = [{k: v for k, v in p.items() if k not in ("is_crowd", "score")} for p in parts]
        dump = [
            json.dumps(r, ensure_ascii=False, separators=(",", ":")) if r and allow else None for r in rest
        ]
        table = pa.table(
            {
                "crowd": pa.array(crowd, pa.bool_()),
                "score": pa.array(score, pa.string()),
                "rest": pa.array(dump, pa.string()),
            }
        )
    else:
        merged = """CASE WHEN keys <@ ['is_crowd','score'] THEN NULL
                    ELSE json_merge_patch(a, '{"is_crowd":null,"score":null}')::VARCHAR END"""
        table = query(
            f"""SELECT coalesce(json_extract_string(a, '$.is_crowd') IN ('true', '1'), false) AS crowd,
                  nullif(json_extract(a, '$.score')::VARCHAR, 'null') AS score,
                  {merged if allow else "NULL::VARCHAR"} AS rest
                FROM (SELECT a, json_keys(a) AS keys FROM t)""",
            t=pa.table({"a": words}),
        )
    return table.take(encoded.indices)


_OWN = '{"coco":{'
_HEAD = _OWN + '"area":'


def extra_members(extra: pa.Array) -> pa.Table:
    """Of COCO's own extra: task; listed (RLE counts were a list); visibility (JSON text, where it is no flag);
    area and keypoints: whether told; members: what goes to the record, as text."""
    simple = pc.starts_with(extra, _HEAD)
    for mark in ('"@', '"num_keypoints"', '},"'):
        simple = pc.and_(simple, pc.invert(pc.match_substring(extra, mark)))
    simple = pc.fill_null(simple, False)
    if not pc.all(simple).as_py():
        return _parsed_members(extra)
    n = len(extra)
    false = pa.repeat(False, n)
    return pa.table(
        {
            "task": pa.nulls(n, pa.string()),
            "listed": false,
            "visibility": pa.nulls(n, pa.string()),
            "area": simple,
            "keypoints": false,
            "members": pc.utf8_slice_codeunits(extra, len(_OWN), -2),
        }
    )


def _parsed_members(extra: pa.Array) -> pa.Table:
    sql = """SELECT json_extract_string(e, '$."@task"') AS task,
               coalesce(json_extract_string(e, '$."@counts"') = 'list', false) AS listed,
               json_extract(e, '$."@visibility"')::VARCHAR AS visibility,
               coalesce(json_exists(e, '$.area'), false) AS area,
               coalesce(json_exists(e, '$.num_keypoints'), false) AS keypoints,
               CASE WHEN marked THEN nullif(substr(m, 2, length(m) - 2), '')
                    ELSE nullif(substr(e, 2, length(e) - 2), '') END AS members
             FROM (SELECT e, marked, CASE WHEN marked
                     THEN json_merge_patch(e, '{"@task":null,"@counts":null,"@visibility":null}')::VARCHAR END AS m
                   FROM (SELECT e, coalesce(e LIKE '%"@%', false) AS marked
                         FROM (SELECT CASE WHEN x LIKE '{"coco":%' AND x LIKE '%}}' AND position('},"' IN x) = 0
                                           THEN substr(x, 9, length(x) - 9)
                                           ELSE json_extract(x, '$.coco')::VARCHAR END AS e FROM t)))"""
    return query(sql, t=pa.table({"x": extra}))


def own_members(extra: pa.Array) -> pa.Array:
    """The members of COCO's own extra, as text without braces; null where there are none."""
    simple = pc.starts_with(extra, _OWN)
    simple = pc.and_(simple, pc.invert(pc.match_substring(extra, '},"')))
    if pc.all(pc.fill_null(simple, True)).as_py():
        members = pc.utf8_slice_codeunits(extra, len(_OWN), -2)
    else:
        sql = """SELECT substr(e, 2, length(e) - 2) AS text
                 FROM (SELECT json_extract(x, '$.coco')::VARCHAR AS e FROM t)"""
        members = text_column(query(sql, t=pa.table({"x": extra})))
    return pc.if_else(pc.equal(members, ""), None, members)


def other_attributes(attributes: pa.Array) -> pa.Array:
    """The attributes of images but for `id`, as JSON objects; null where there are none."""
    rows = np.flatnonzero(~is_only_id(attributes))
    if not len(rows):
        return pa.nulls(len(attributes), pa.string())
    sql = """SELECT CASE WHEN NOT json_keys(a) <@ ['id'] THEN json_merge_patch(a, '{"id":null}')::VARCHAR END AS text FROM t"""
    found = text_column(query(sql, t=pa.table({"a": attributes.take(pa.array(rows))})))
    index = np.full(len(attributes), -1)
    index[rows] = np.arange(len(rows))
    return found.take(pa.array(index, mask=index < 0))
