"""Item tables as the texts of Datumaro's item records: columns and SQL, no loop over annotations."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
from rayds.format import WriteContext
from rayds.media import extension, is_inline
from rayds.schema import AnnotationType, Flat, flat, single_chunk
from rayds.sql import joined_bytes, query, text_column

FAMILY = "datumaro"
PIECE_BYTES = 96 << 20  # of columns turned into text at once
_OWN = f'"{FAMILY}":'

_NAMES = " ".join(f"WHEN {int(t)} THEN '{t.name}'" for t in AnnotationType)
_ANNOTATIONS = f"""
SELECT concat(
  '{{"id":', id, ',"type":"', CASE type {_NAMES} END, '","attributes":', coalesce(attributes, '{{}}'),
  ',"group":', "group",
  CASE WHEN label IS NOT NULL THEN concat(',"label_id":', label) WHEN type = 7 THEN '' ELSE ',"label_id":null' END,
  CASE type
    WHEN 6 THEN ',"bbox":' || to_json(points)
    WHEN 1 THEN ''
    WHEN 2 THEN concat(',"rle":{{"counts":', to_json(counts), ',"size":[', height, ',', width, ']}}')
    WHEN 7 THEN ',"caption":' || to_json(coalesce(text, ''))
    WHEN 8 THEN concat(',"position":', to_json(points[1:3]), ',"rotation":', to_json(points[4:6]),
                       ',"scale":', to_json(points[7:9]))
    ELSE ',"points":' || to_json(points) END,
  CASE WHEN z_order = 0 AND type IN (1, 7, 8) THEN '' ELSE concat(',"z_order":', z_order) END,
  CASE WHEN visibility IS NULL THEN '' ELSE ',"visibility":' || to_json(visibility) END,
  own, '}}') AS text
FROM annotations"""

_OWN_TEXT = f"""
SELECT CASE WHEN own IS NULL OR length(own) < 3 THEN '' ELSE ',' || own[2:-2] END AS text
FROM (SELECT json_extract(extra, '$.{FAMILY}')::VARCHAR AS own FROM annotations)"""

_HEADS = """
SELECT '{"id":' || to_json(id) || ',"annotations":[' AS head,
  concat(']', CASE WHEN attributes IS NULL THEN '' ELSE ',"attr":' || attributes END,
    CASE kind WHEN 'image' THEN concat(',"image":{"path":', to_json(path),
                CASE WHEN height IS NULL OR width IS NULL THEN '' ELSE concat(',"size":[', height, ',', width, ']') END,
                more, '}')
              WHEN 'point_cloud' THEN concat(',"point_cloud":{"path":', to_json(path), more, '}', related)
              ELSE '' END,
    own, '},') AS tail
FROM items"""


def _has_own(column: pa.Array) -> bool:
    """Whether any of the JSON texts in an `extra` column is this format's."""
    if column.null_count == len(column):
        return False
    return bool(pc.any(pc.match_substring(column, _OWN)).as_py())


def annotation_texts(view: Flat) -> pa.Array:
    """The JSON object of every annotation."""
    columns = {
        n: view.column(n) for n in ("type", "id", "group", "label", "z_order", "points", "attributes", "text")
    }
    mask = view.column("mask")
    columns |= {n: pc.struct_field(mask, n) for n in ("height", "width", "counts")}
    visibility = view.column("visibility")
    if visibility.null_count < len(visibility):
        keep = pc.equal(columns["type"], int(AnnotationType.points))
        visibility = pc.if_else(keep, visibility, pa.scalar(None, visibility.type))
    columns["visibility"] = visibility
    extra = view.column("extra")
    if _has_own(extra):
        columns["own"] = text_column(query(_OWN_TEXT, annotations=pa.table({"extra": extra})))
    else:
        columns["own"] = pa.repeat("", len(view))
    return text_column(query(_ANNOTATIONS, annotations=pa.table(columns)))


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
    offsets = pa.array(view.offsets.astype(np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, annotation_texts(view)), ",")
    media = single_chunk(block, "media")
    columns: dict[str, Any] = {
        "id": single_chunk(block, "id"),
        "attributes": single_chunk(block, "attributes"),
        "path": names,
        **{n: pc.struct_field(media, n) for n in ("kind", "height", "width")},
    }
    columns |= _own_columns(block, media, names, saved)
    made = query(_HEADS, items=pa.table(columns))
    return pc.binary_join_element_wise(text_column(made, "head"), joined, text_column(made, "tail"), "")


def _own_columns(block: pa.Table, media: pa.Array, names: pa.Array, saved: bool) -> dict[str, Any]:
    """The columns own, more, related and perhaps path: what only this format says of an item."""
    n = block.num_rows
    columns: dict[str, Any] = {c: pa.repeat("", n) for c in ("own", "more", "related")}
    extra = single_chunk(block, "extra")
    clouds = pc.fill_null(pc.equal(pc.struct_field(media, "kind"), "point_cloud"), False)
    rows = set(np.flatnonzero(clouds.to_numpy(zero_copy_only=False)).tolist())
    if _has_own(extra):
        found = pc.fill_null(pc.match_substring(extra, _OWN), False).to_numpy(zero_copy_only=False)
        rows.update(np.flatnonzero(found).tolist())
    if not rows:
        return columns
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
