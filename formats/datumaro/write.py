"""Item tables as the texts of Datumaro's item records: columns and SQL, no loop over annotations."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
from rayds.format import WriteContext
from rayds.json_text import list_texts, may_hold, spans, string_texts
from rayds.media import extension, is_inline
from rayds.schema import AnnotationType, Flat, flat, single_chunk
from rayds.sql import joined_bytes, query, text_column

FAMILY = "datumaro"
PIECE_BYTES = 96 << 20  # of columns turned into text at once
_OWN = f'"{FAMILY}":'

_LABEL, _MASK, _CAPTION, _CUBOID = (int(AnnotationType[n]) for n in ("label", "mask", "caption", "cuboid_3d"))
_TYPES = frozenset(map(int, AnnotationType))
_FEW = 1024
_NOT_LISTS = [_LABEL, _MASK, _CAPTION, _CUBOID]  # what is told of all others is one list of numbers
_BODIES = f"""
SELECT CASE type
    WHEN {_LABEL} THEN ''
    WHEN {_MASK} THEN concat(',"rle":{{"counts":', to_json(counts), ',"size":[', height, ',', width, ']}}')
    WHEN {_CAPTION} THEN ',"caption":' || to_json(coalesce(text, ''))
    ELSE concat(',"position":', to_json(points[1:3]), ',"rotation":', to_json(points[4:6]),
                ',"scale":', to_json(points[7:9])) END AS text
FROM annotations"""

_VISIBILITY = f"""
SELECT CASE WHEN type <> {int(AnnotationType.points)} OR visibility IS NULL THEN ''
            ELSE ',"visibility":' || to_json(visibility) END AS text
FROM annotations"""

_OWN_TEXT = f"""
SELECT CASE WHEN own IS NULL OR length(own) < 3 THEN '' ELSE ',' || own[2:-2] END AS text
FROM (SELECT json_extract(extra, '$.{FAMILY}')::VARCHAR AS own FROM annotations)"""


def _has_own(column: pa.Array) -> bool:
    """Whether any of the JSON texts in an `extra` column is this format's."""
    return may_hold(column, _OWN) and bool(pc.any(pc.match_substring(column, _OWN)).as_py())


def annotation_texts(view: Flat) -> pa.Array:
    """The JSON object of every annotation, with a comma before all but the first of an item."""
    kind, label, z_order = (view.column(n) for n in ("type", "label", "z_order"))
    heads = _by_type(kind, lambda t: f',"type":"{t.name}","attributes":')
    labels = _members("label_id", label).fill_null(',"label_id":null')
    no_depth = pc.is_in(kind, pa.array([_LABEL, _CAPTION, _CUBOID], kind.type))
    depths = _members("z_order", z_order)
    extra = view.column("extra")
    first = np.zeros(len(view) + 1, np.int8)
    first[view.offsets] = 1
    parts = [
        pa.array([',{"id":', '{"id":']).take(pa.array(first[:-1])),
        view.column("id").cast(pa.string()),
        heads,
        view.column("attributes").fill_null("{}"),
        ',"group":',
        view.column("group").cast(pa.string()),
        _blank(labels, pc.and_(pc.equal(kind, _CAPTION), label.is_null())),
        *_bodies(view, kind),
        _blank(depths, pc.and_(pc.equal(z_order, 0), no_depth)),
        _visibility(view, kind),
        text_column(query(_OWN_TEXT, annotations=pa.table({"extra": extra}))) if _has_own(extra) else "",
        "}",
    ]
    return pc.binary_join_element_wise(*(p for p in parts if not isinstance(p, str) or p), "")


def _by_type(kind: pa.Array, text: Callable[[AnnotationType], str]) -> pa.Array:
    """A text for every annotation by its type."""
    texts = [text(AnnotationType(t)) if t in _TYPES else None for t in range(max(_TYPES) + 1)]
    return pa.array(texts, pa.string()).take(kind)


def _members(key: str, column: pa.Array) -> pa.Array:
    """Every number with its key, where few different ones are likely; null for null."""
    bounds = pc.min_max(column)
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    if low is not None and low >= 0 and high < _FEW:
        return pa.array([f',"{key}":{i}' for i in range(high + 1)]).take(column)
    encoded = column.dictionary_encode()
    texts = pc.binary_join_element_wise(f',"{key}":', encoded.dictionary.cast(pa.string()), "")
    return texts.take(encoded.indices)


def _blank(texts: pa.Array, where: pa.Array) -> pa.Array:
    return pc.if_else(where, "", texts) if pc.any(where).as_py() else texts


def _bodies(view: Flat, kind: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Two texts for every annotation: one after the other, they tell its shape."""
    bbox = AnnotationType.bbox
    keys = _by_type(kind, lambda t: "" if t in _NOT_LISTS else ',"bbox":[' if t == bbox else ',"points":[')
    points = view.column("points")
    others = pc.is_in(kind, pa.array(_NOT_LISTS, kind.type))
    if not pc.any(others).as_py():
        return keys, list_texts(points)
    rows = pa.array(np.flatnonzero(others.to_numpy(zero_copy_only=False)))
    mask = view.column("mask").take(rows)
    columns = {n: view.column(n).take(rows) for n in ("type", "points", "text")}
    columns |= {n: pc.struct_field(mask, n) for n in ("height", "width", "counts")}
    made = text_column(query(_BODIES, annotations=pa.table(columns)))
    listed = list_texts(pc.if_else(others, pa.scalar(None, points.type), points))
    return keys, pc.replace_with_mask(listed, others, made)


def _visibility(view: Flat, kind: pa.Array) -> pa.Array | str:
    """The visibility of points with its key; nothing for other annotations."""
    seen = view.column("visibility")
    if seen.null_count == len(seen):
        return ""
    return text_column(query(_VISIBILITY, annotations=pa.table({"type": kind, "visibility": seen})))


def faults(view: Flat) -> dict[int, str]:
    """What can't be written, by row of the block: {row: reason}, the first of each."""
    types = view.type
    points = view.column("points")
    lengths = pc.list_value_length(points).fill_null(-1).to_numpy(zero_copy_only=False)
    wants = np.zeros(128, np.int64)  # how many coordinates: -2 an even number, 0 none
    T = AnnotationType
    for kind, n in ((T.bbox, 4), (T.ellipse, 4), (T.rotated_bbox, 5), (T.cuboid_3d, 9)):
        wants[kind] = n
    wants[[T.polygon, T.polyline, T.points]] = -2
    want = wants[types]
    wrong = ((want > 0) & (lengths != want)) | ((want == -2) & ((lengths < 0) | (lengths % 2 == 1)))
    found: dict[int, str] = {}
    for i in np.flatnonzero(wrong).tolist():
        what = f"a {T(int(types[i])).name} with {max(0, int(lengths[i]))} coordinates"
        found.setdefault(int(view.item[i]), what)
    counts = pc.struct_field(view.column("mask"), "counts")
    for i in np.flatnonzero((types == T.mask) & pc.is_null(counts).to_numpy(zero_copy_only=False)).tolist():
        found.setdefault(int(view.item[i]), "a mask without run lengths")
    flatten = points.flatten()
    values = flatten.to_numpy(zero_copy_only=False)
    finite = np.isfinite(values)
    if not finite.all():
        ends = np.cumsum(np.maximum(lengths, 0))
        for i in np.unique(np.searchsorted(ends, np.flatnonzero(~finite), side="right")).tolist():
            what = f"a {T(int(types[i])).name} with a coordinate that is no number: JSON can't hold it"
            found.setdefault(int(view.item[i]), what)
    return found


def pieces(block: pa.Table) -> Iterator[pa.Table]:
    """The block in slices whose texts are far from Arrow's limit of 2 GiB a column."""
    n = max(1, -(-block.nbytes // PIECE_BYTES))
    rows = max(1, -(-block.num_rows // n))
    for start in range(0, block.num_rows, rows):
        yield block.slice(start, rows)


def record_texts(block: pa.Table, names: pa.Array, saved: bool) -> pa.Array:
    """The JSON object of every item with a comma after it. names: the files of the media; saved: they are there."""
    view = flat(block)
    joined = spans(annotation_texts(view), view.offsets) if len(view) else pa.repeat("", block.num_rows)
    own = _own_columns(block, names, saved)
    attributes = pc.binary_join_element_wise(',"attr":', single_chunk(block, "attributes"), "")
    return pc.binary_join_element_wise(
        '{"id":',
        string_texts(single_chunk(block, "id")),
        ',"annotations":[',
        joined,
        "]",
        attributes.fill_null(""),
        _media_texts(single_chunk(block, "media"), own),
        own["own"],
        "},",
        "",
    )


def _media_texts(media: pa.Array, own: dict[str, pa.Array]) -> pa.Array:
    """What tells the image or the point cloud of every item; nothing where there is none."""
    kind, height, width = (pc.struct_field(media, n) for n in ("kind", "height", "width"))
    path = string_texts(own["path"])
    numbers = [n.cast(pa.string()) for n in (height, width)]
    size = pc.binary_join_element_wise(',"size":[', numbers[0], ",", numbers[1], "]", "").fill_null("")
    texts = pc.binary_join_element_wise(',"image":{"path":', path, size, own["more"], "}", "")
    clouds = pc.equal(kind, "point_cloud")
    if pc.any(clouds).as_py():
        cloud = pc.binary_join_element_wise(
            ',"point_cloud":{"path":', path, own["more"], "}", own["related"], ""
        )
        texts = pc.if_else(clouds, cloud, texts)
    return pc.if_else(pc.is_in(kind, pa.array(["image", "point_cloud"])), texts, "")


def _own_columns(block: pa.Table, names: pa.Array, saved: bool) -> dict[str, pa.Array]:
    """The columns own, more, related and path: what only this format says of an item, and where its media is."""
    n = block.num_rows
    columns: dict[str, pa.Array] = {c: pa.repeat("", n) for c in ("own", "more", "related")}
    extra, media = single_chunk(block, "extra"), single_chunk(block, "media")
    clouds = pc.fill_null(pc.equal(pc.struct_field(media, "kind"), "point_cloud"), False)
    rows = set(np.flatnonzero(clouds.to_numpy(zero_copy_only=False)).tolist())
    if _has_own(extra):
        found = pc.fill_null(pc.match_substring(extra, _OWN), False).to_numpy(zero_copy_only=False)
        rows.update(np.flatnonzero(found).tolist())
    if not rows:
        return {**columns, "path": names}
    texts = {c: [""] * n for c in columns}
    paths = names.to_pylist()
    for i in sorted(rows):
        own = (json.loads(extra[i].as_py() or "{}")).get(FAMILY) or {}
        row = media[i].as_py()
        if row is not None:
            media_own = dict(own.pop(row["kind"], None) or {})
            kept = media_own.pop("path", None)
            if kept is not None and not saved:
                paths[i] = kept
            texts["more"][i] = _inner(media_own)
            listed = own.pop("related_images", None)
            if row["kind"] == "point_cloud" and row["related"]:
                if saved or not listed or len(listed) != len(row["related"]):
                    stem = posixpath.splitext(names[i].as_py())[0]
                    listed = [{"path": p} for p in related_names(stem, row["related"], saved)]
                texts["related"][i] = ',"related_images":' + _text(listed)
            elif listed is not None:
                own["related_images"] = listed
        texts["own"][i] = _inner(own)
    columns |= {c: pa.array(v, pa.string()) for c, v in texts.items()}
    return {**columns, "path": pa.array(paths, pa.string())}


def related_names(stem: str, related: list[str], saved: bool) -> list[str]:
    """The names of the images that belong to a point cloud: numbered below `stem` when they are saved, or have no name."""
    return [
        f"{stem}/extra_image_{i}{extension(p)}" if saved or is_inline(p) else posixpath.basename(p)
        for i, p in enumerate(related)
    ]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _inner(value: dict[str, Any]) -> str:
    """The members of an object with a comma before each."""
    return "," + _text(value)[1:-1] if value else ""


def check(block: pa.Table, ctx: WriteContext) -> pa.Table:
    """The block without the items that can't be written, which are reported."""
    found = faults(flat(block))
    if not found:
        return block
    ids, subsets = single_chunk(block, "id"), single_chunk(block, "subset")
    for row, reason in sorted(found.items()):
        error = DataError(
            reason, item=ids[row].as_py(), remedy="Correct it, or leave it out with --on-error skip"
        )
        ctx.bad(error, subsets[row].as_py())
    keep = np.ones(block.num_rows, bool)
    keep[list(found)] = False
    return block.filter(pa.array(keep))


def record_bytes(texts: pa.Array, last: bool) -> memoryview:
    """The records one after the other; the last one's comma left out when nothing follows."""
    data = joined_bytes(texts)
    return data[:-1] if last and len(data) else data
