"""COCO records -> annotation rows, many at a time: DuckDB parses, NumPy and Arrow lay out.

A COCO annotation becomes its box, then its polygons or mask, then its key points: rows of one group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.annotations import normal_rle
from rayds.errors import DataError
from rayds.formats._records import Records
from rayds.schema import AnnotationType as T
from rayds.schema import annotation_rows, list_of, mask_rows
from rayds.sql import query

Ints = npt.NDArray[np.int64]

# Groups need a number other than 0; an annotation whose id is 0 gets this one.
ZERO_GROUP = 1 << 62

_FIELDS = {
    "id": '"BIGINT"',
    "image_id": '"BIGINT"',
    "category_id": '"BIGINT"',
    "iscrowd": '"JSON"',
    "area": '"JSON"',
    "score": '"JSON"',
    "bbox": '["DOUBLE"]',
    "segmentation": '[["DOUBLE"]]',
    "keypoints": '["DOUBLE"]',
    "num_keypoints": '"JSON"',
    "caption": '"VARCHAR"',
    "attributes": '"JSON"',
}
_SPEC = "{" + ",".join(f'"{k}":{v}' for k, v in _FIELDS.items()) + "}"
_PRESENT = " + ".join(f"(r.{k} IS NOT NULL)::INT" for k in _FIELDS)
_TYPED = [k for k, v in _FIELDS.items() if "JSON" not in v and k != "segmentation"]


@dataclass
class Rows:
    """Annotation rows of some records. image: image_id of each row; ids: of each annotation (negative: it has
    none); number: running number of each annotation's record in its file; annotation: running number of each row's annotation among `ids`; errors: bad records left out."""

    rows: pa.StructArray
    image: Ints
    ids: Ints
    number: Ints
    annotation: Ints
    errors: list[DataError] = field(default_factory=list)


def checked_json(records: Records, file: str, bad: list[DataError]) -> tuple[pa.Array, Ints]:
    """(texts of the records that are valid JSON, their numbers); the others go to `bad`."""
    texts = records.texts()
    keep = np.arange(len(records))
    table = query("SELECT json_valid(j) AS ok FROM t", t=pa.table({"j": texts}))
    ok = table.column("ok").combine_chunks().to_numpy(zero_copy_only=False).astype(bool)
    for i in np.flatnonzero(~ok):
        text = texts[int(i)].as_py()
        try:
            json.loads(text, parse_constant=_no_constant)
            reason = "not valid JSON"
        except ValueError as e:
            reason = f"not valid JSON ({e})"
        bad.append(DataError(reason, file=file, place=records.place(int(i)), item=_guess_item(text)))
    return texts.filter(pa.array(ok)), keep[ok]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _guess_item(text: str) -> str | None:
    """The image that a broken record speaks of, for the message."""
    import re

    match = re.search(r'"(?:image_id|file_name|id)"\s*:\s*("?[^",}]{1,100}"?)', text)
    return match.group(1).strip('"') if match else None


def annotations_of(
    records: Records,
    file: str,
    category_labels: dict[int, int],
    task: str,
    first: int,
    exclude: frozenset[int] = frozenset(),
) -> Rows:
    """The annotation rows of some records of a file; exclude: numbers of records to leave out.

    first: the number from which annotations without an id are counted.
    """
    errors: list[DataError] = []
    texts, number = records.texts(), np.arange(len(records))
    sql = f"SELECT unnest(r), {_PRESENT} AS present FROM (SELECT from_json(j, '{_SPEC}') AS r FROM t)"
    try:
        table = query(sql, t=pa.table({"j": texts}))
    except duckdb.Error:
        texts, number = checked_json(records, file, errors)
        table = query(sql, t=pa.table({"j": texts}))
    table = table.combine_chunks()
    parser = _Parser(table, texts, number, records, file, task, errors)
    if exclude:
        parser.keep &= ~np.isin(records.first + number, sorted(exclude))
    return parser.rows(category_labels, first)


class _Parser:
    """Turns one parsed table into rows; bad records are dropped on the way and listed in `errors`."""

    def __init__(
        self,
        table: pa.Table,
        texts: pa.Array,
        number: Ints,
        records: Records,
        file: str,
        task: str,
        errors: list[DataError],
    ) -> None:
        self.table, self.texts, self.number = table, texts, number
        self.records, self.file, self.task, self.errors = records, file, task, errors
        self.keep = np.ones(len(texts), bool)
        self.unknown: pa.Array = pa.nulls(len(texts), pa.string())
        self.masks: pa.StructArray | None = None
        self.listed_rle = np.zeros(len(texts), bool)

    def column(self, name: str) -> pa.Array:
        column = self.table.column(name)
        return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)

    def numpy(self, name: str, null: int) -> Ints:
        out: Ints = self.column(name).fill_null(null).to_numpy(zero_copy_only=False).astype(np.int64)
        return out

    def bad(self, rows: Any, reason: Callable[[int], str] | str) -> None:
        """Leave out the records where `rows` is true."""
        for i in np.flatnonzero(np.asarray(rows) & self.keep):
            image = self.column("image_id")[int(i)].as_py()
            why = reason(int(i)) if callable(reason) else reason
            id = self.column("id")[int(i)].as_py()
            what = f"annotation {id}: {why}" if id is not None else why
            place = self.records.place(int(self.number[i]))
            self.errors.append(
                DataError(what, file=self.file, place=place, item=None if image is None else f"image {image}")
            )
            self.keep[i] = False

    def rows(self, category_labels: dict[int, int], first: int) -> Rows:
        quotes = self.records.quotes[self.number]
        caption = self.column("caption").is_valid().to_numpy(zero_copy_only=False)
        irregular = np.flatnonzero(quotes != 2 * (self.numpy("present", 0) + caption))
        if len(irregular):
            self._irregular(irregular)
        self.bad(self.column("image_id").is_null(), "the key 'image_id' is missing")
        label = self._labels(category_labels)
        shapes, boxes = self._shapes()
        keypoints, visibility = self._keypoints()
        keep = np.flatnonzero(self.keep)
        return self._lay_out(keep, label, shapes, boxes, keypoints, visibility, first)

    def _irregular(self, rows: Ints) -> None:
        """Records with other keys, or with values that are not of the expected type."""
        part = self.table.take(pa.array(rows)).append_column("j", self.texts.take(pa.array(rows)))
        keys = query("SELECT DISTINCT unnest(json_keys(j)) AS k FROM t", t=part.select(["j"])).column("k").to_pylist()
        unknown = sorted(k for k in keys if k not in _FIELDS)
        if unknown:
            found = query(f"SELECT {members_sql(unknown)} AS text FROM t", t=part.select(["j"])).column("text")
            self._set_unknown(rows, found)
        checks = ", ".join(
            f"({k} IS NULL AND coalesce(json_extract(j, '$.{k}')::VARCHAR, 'null') <> 'null') AS {k}"
            for k in [*_TYPED, "segmentation"]
        )
        wrong = query(f"SELECT {checks} FROM t", t=part)
        for k in _TYPED:
            flagged = rows[wrong.column(k).combine_chunks().to_numpy(zero_copy_only=False).astype(bool)]
            mask = np.zeros(len(self.texts), bool)
            mask[flagged] = True
            self.bad(mask, lambda i, k=k: f"{k!r} has the wrong type: {self._raw(i, k)}")  # type: ignore[misc]
        objects = rows[wrong.column("segmentation").combine_chunks().to_numpy(zero_copy_only=False).astype(bool)]
        if len(objects):
            self._rle(objects)

    def _raw(self, i: int, key: str) -> str:
        return json.dumps(json.loads(self.texts[i].as_py()).get(key))[:60]

    def _set_unknown(self, rows: Ints, found: pa.ChunkedArray) -> None:
        index = np.full(len(self.texts), -1)
        index[rows] = np.arange(len(rows))
        self.unknown = found.combine_chunks().take(pa.array(index, mask=index < 0))

    def _rle(self, rows: Ints) -> None:
        """Segmentations that are run lengths: {"size": [h, w], "counts": text or list}."""
        sql = """SELECT r.size[1] AS h, r.size[2] AS w, len(r.size) AS n, r.counts AS counts FROM (
                   SELECT from_json(json_extract(j, '$.segmentation'), '{"size":["INTEGER"],"counts":"JSON"}') AS r
                   FROM t)"""
        found = query(sql, t=pa.table({"j": self.texts.take(pa.array(rows))})).to_pylist()
        texts: list[str | None] = [None] * len(self.texts)
        sizes = np.zeros((2, len(self.texts)), np.int32)
        for i, r in zip(rows.tolist(), found, strict=True):
            one = np.zeros(len(self.texts), bool)
            one[i] = True
            if r["counts"] is None or r["n"] != 2:
                self.bad(one, lambda i: f"'segmentation' is neither polygons nor RLE: {self._raw(i, 'segmentation')}")
                continue
            try:
                counts = json.loads(r["counts"])
                self.listed_rle[i] = isinstance(counts, list)
                texts[i] = normal_rle({"size": [r["h"], r["w"]], "counts": counts})["counts"]
                sizes[:, i] = r["h"], r["w"]
            except (ValueError, TypeError) as e:
                self.bad(one, f"'segmentation' is a broken RLE: {e}")
        self.masks = mask_rows(len(texts), sizes[0], sizes[1], pa.array(texts, pa.string()))

    def _labels(self, category_labels: dict[int, int]) -> pa.Array:
        """The label index of every record, null where it names no category."""
        ids = self.column("category_id")
        if ids.null_count == len(ids):
            return pa.nulls(len(ids), pa.int32())
        known = np.array(sorted(category_labels), np.int64)
        if not len(known):
            self.bad(ids.is_valid(), lambda i: f"the category id {ids[i]} is unknown: the file lists no categories")
            return pa.nulls(len(ids), pa.int32())
        values = self.numpy("category_id", int(known[0]))
        at = np.minimum(np.searchsorted(known, values), len(known) - 1)
        self.bad(known[at] != values, lambda i: f"the category id {values[i]} is unknown")
        labels = np.array([category_labels[int(k)] for k in known], np.int32)[at]
        return pa.array(labels, mask=ids.is_null().to_numpy(zero_copy_only=False))

    def _shapes(self) -> tuple[pa.ListArray, npt.NDArray[np.bool_]]:
        """(the box, if any, and the polygons of each record as a list of lists, whether it has a box)."""
        bbox, seg = self.column("bbox"), self.column("segmentation")
        size = pc.fill_null(pc.list_value_length(bbox), 0).to_numpy(zero_copy_only=False)
        has_box = size > 0
        self.bad(has_box & (size != 4), lambda i: f"a box has 4 numbers, this one {size[i]}")
        self._check_numbers(bbox, "bbox")
        shapes = _prepend(bbox, seg, has_box & (size == 4))
        if seg.null_count < len(seg):
            self._check_polygons(seg)
        return shapes, has_box & (size == 4)

    def _check_numbers(self, lists: pa.ListArray, what: str) -> None:
        """Lists with something that is no finite number are bad."""
        values = lists.flatten()
        finite = pc.is_finite(values).fill_null(False).to_numpy(zero_copy_only=False)
        if not finite.all():
            owner = np.repeat(np.arange(len(lists)), pc.fill_null(pc.list_value_length(lists), 0))
            bad = np.zeros(len(lists), bool)
            bad[owner[~finite]] = True
            self.bad(bad, lambda i: f"{what!r} holds something that is no finite number: {self._raw(i, what)}")

    def _check_polygons(self, seg: pa.ListArray) -> None:
        polygons = seg.flatten()
        lengths = pc.fill_null(pc.list_value_length(polygons), -1).to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(seg)), pc.fill_null(pc.list_value_length(seg), 0))
        short = np.zeros(len(seg), bool)
        short[owner[(lengths < 6) | (lengths % 2 == 1)]] = True

        def why(i: int) -> str:
            length = next(n for n in lengths[owner == i] if n < 6 or n % 2)
            if length % 2:
                return f"a polygon has an odd number of coordinates ({length})" if length > 0 else "a polygon is no list"
            return f"a polygon has {length // 2} points, it needs at least 3"

        self.bad(short, why)
        values = polygons.flatten()
        finite = pc.is_finite(values).fill_null(False).to_numpy(zero_copy_only=False)
        if not finite.all():
            wrong = np.zeros(len(seg), bool)
            wrong[np.repeat(owner, np.maximum(lengths, 0))[~finite]] = True
            self.bad(wrong, "a polygon holds something that is no finite number")

    def _keypoints(self) -> tuple[pa.ListArray | None, pa.ListArray | None]:
        """(x, y of the key points of each record, their visibility), null where it has none."""
        lists = self.column("keypoints")
        if lists.null_count == len(lists):
            return None, None
        self._check_numbers(lists, "keypoints")
        size = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        self.bad(size % 3 != 0, lambda i: f"'keypoints' has {size[i]} numbers, not triples")
        values = lists.flatten().fill_null(0).to_numpy(zero_copy_only=False)
        whole = np.repeat(size % 3 == 0, size)
        triples = values[whole].reshape(-1, 3)
        count = np.where(size % 3 == 0, size // 3, 0)
        mask = pa.array((size == 0) | (size % 3 != 0))

        def lists_of(flat: pa.Array, k: int) -> pa.ListArray:
            offsets = np.concatenate([[0], np.cumsum(count * k)]).astype(np.int32)
            return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=mask)

        seen = np.clip(triples[:, 2], 0, 2).astype(np.int8)
        return lists_of(pa.array(triples[:, :2].ravel()), 2), lists_of(pa.array(seen), 1)

    def _texts(self) -> tuple[pa.Array, pa.Array]:
        """(attributes, extra) of each record as JSON text."""
        plain = self.unknown.null_count == len(self.unknown) and not self.listed_rle.any()
        if plain and self.task not in ("stuff", "panoptic") and self._all_null("score", "attributes", "num_keypoints"):
            return self._plain_texts()
        marks = []
        if self.task in ("stuff", "panoptic"):
            marks.append(f"'\"task\":\"{self.task}\"'")
        marks += ["'\"area\":' || area", "'\"num_keypoints\":' || num_keypoints", "u"]
        marks.append("CASE WHEN listed THEN '\"counts\":\"list\"' END")
        table = self.table.select(["iscrowd", "score", "attributes", "area", "num_keypoints"])
        table = table.append_column("u", self.unknown).append_column("listed", pa.array(self.listed_rle))
        sql = f"""SELECT CASE WHEN a = '' THEN NULL ELSE '{{' || a || '}}' END AS attributes,
                         CASE WHEN e = '' THEN NULL ELSE '{{"coco":{{' || e || '}}}}' END AS extra
                  FROM (SELECT concat_ws(',',
                           CASE WHEN attributes LIKE '{{%' AND json_keys(attributes) <> []
                                THEN substr(trim(attributes), 2, length(trim(attributes)) - 2) END,
                           CASE iscrowd WHEN '0' THEN '"is_crowd":false' WHEN 'false' THEN '"is_crowd":false'
                                        WHEN '1' THEN '"is_crowd":true' WHEN 'true' THEN '"is_crowd":true' END,
                           '"score":' || score) AS a, concat_ws(',', {", ".join(marks)}) AS e FROM t)"""
        found = query(sql, t=table).combine_chunks()
        return found.column("attributes").chunk(0), found.column("extra").chunk(0)

    def _all_null(self, *names: str) -> bool:
        return all(self.table.column(n).null_count == len(self.texts) for n in names)

    def _plain_texts(self) -> tuple[pa.Array, pa.Array]:
        """What _texts gives where nothing but iscrowd and area is told."""
        crowd = self.column("iscrowd").dictionary_encode()
        said = {"0": '{"is_crowd":false}', "false": '{"is_crowd":false}', "1": '{"is_crowd":true}'}
        said["true"] = said["1"]
        words = pa.array([said.get(w) for w in crowd.dictionary.to_pylist()], pa.string())
        extra = pc.binary_join_element_wise('{"coco":{"area":', self.column("area").cast(pa.string()), "}}", "")
        return words.take(crowd.indices), extra

    def _lay_out(
        self,
        keep: Ints,
        label: pa.Array,
        shapes: pa.ListArray,
        has_box: npt.NDArray[np.bool_],
        keypoints: pa.ListArray | None,
        visibility: pa.ListArray | None,
        first: int,
    ) -> Rows:
        """One row for each box, polygon, mask, set of key points, caption; a label where there is none of them."""
        if not len(self.texts):
            empty = np.zeros(0, np.int64)
            return Rows(annotation_rows(0), empty, empty, empty, empty, self.errors)
        attributes, extra = self._texts()
        n_shapes = pc.list_value_length(shapes).to_numpy(zero_copy_only=False)
        kinds: list[tuple[T, npt.NDArray[Any]]] = []
        if self.masks is not None:
            kinds.append((T.mask, self.masks.is_valid().to_numpy(zero_copy_only=False)))
        if keypoints is not None:
            kinds.append((T.points, keypoints.is_valid().to_numpy(zero_copy_only=False)))
        captions = self.column("caption")
        if captions.null_count < len(captions):
            kinds.append((T.caption, captions.is_valid().to_numpy(zero_copy_only=False)))
        per = n_shapes + sum(k[1].astype(np.int64) for k in kinds)
        bare = per == 0
        if bare.any():
            kinds.append((T.label, bare))
            per = per + bare
        per = np.where(self.keep, per, 0)
        order, types = _order(len(per), n_shapes, has_box, kinds, self.keep)
        owner = np.repeat(np.arange(len(per)), per)
        leads = np.zeros(len(owner), bool)
        leads[(np.cumsum(per) - per)[per > 0]] = True
        ids = self.numpy("id", -1)
        missing = self.column("id").is_null().to_numpy(zero_copy_only=False)
        ids = np.where(missing, -1 - first - self.number, ids)
        group = np.where(ids == 0, ZERO_GROUP, ids)
        ungrouped = np.isin(types, [int(T.caption), int(T.label)])
        taken = pa.array(owner)
        columns: dict[str, Any] = {
            "type": types,
            "id": ids[owner],
            "group": np.where(ungrouped, 0, group[owner]),
            "label": label.take(taken),
            "attributes": attributes.take(taken),
            "extra": extra.take(pa.array(owner, mask=~leads)),
        }
        columns |= self._geometry(shapes, keypoints, visibility, captions, order, types, owner)
        rows = annotation_rows(len(owner), **columns)
        annotation = (np.cumsum(self.keep) - 1)[owner]
        number = self.records.first + self.number[keep]
        return Rows(rows, self.numpy("image_id", -1)[owner], ids[keep], number, annotation, self.errors)

    def _geometry(
        self,
        shapes: pa.ListArray,
        keypoints: pa.ListArray | None,
        visibility: pa.ListArray | None,
        captions: pa.Array,
        order: Ints,
        types: npt.NDArray[np.int8],
        owner: Ints,
    ) -> dict[str, Any]:
        flat_shapes = shapes.flatten()
        spatial = np.isin(types, [int(T.bbox), int(T.polygon)])
        if spatial.all() and len(order) == len(flat_shapes):
            return {"points": flat_shapes}
        source: pa.Array = flat_shapes
        index = np.where(spatial, order, -1)
        out: dict[str, Any] = {}
        if keypoints is not None:
            is_points = types == T.points
            source = pa.concat_arrays([flat_shapes, keypoints.cast(flat_shapes.type)])
            index = np.where(is_points, len(flat_shapes) + owner, index)
            assert visibility is not None
            out["visibility"] = visibility.take(pa.array(owner, mask=~is_points))
        out["points"] = source.take(pa.array(index, mask=index < 0))
        if self.masks is not None:
            out["mask"] = self.masks.take(pa.array(owner, mask=types != T.mask))
        if (types == T.caption).any():
            out["text"] = captions.take(pa.array(owner, mask=types != T.caption))
        return out


def _prepend(bbox: pa.ListArray, seg: pa.ListArray, has_box: npt.NDArray[np.bool_]) -> pa.ListArray:
    """Lists of shapes: the box, where there is one, before the polygons of each record."""
    polygons = seg.flatten()
    counts = pc.fill_null(pc.list_value_length(seg), 0).to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(polygons), 0).to_numpy(zero_copy_only=False)
    firsts = np.cumsum(counts) - counts
    lengths = np.insert(lengths, firsts[has_box], 4)
    is_box = np.zeros(len(lengths), bool)
    is_box[firsts[has_box] + np.arange(int(has_box.sum()))] = True
    ends = np.cumsum(lengths)
    values = np.empty(int(ends[-1]) if len(ends) else 0)
    boxed = np.zeros(len(values), bool)
    boxed[((ends - lengths)[is_box][:, None] + np.arange(4)).ravel()] = True
    four = pc.fill_null(pc.list_value_length(bbox), 0).to_numpy(zero_copy_only=False)
    coordinates = bbox if has_box.all() else bbox.filter(pa.array(has_box & (four == 4)))
    values[boxed] = coordinates.flatten().fill_null(np.nan).to_numpy(zero_copy_only=False)
    values[~boxed] = polygons.flatten().fill_null(np.nan).to_numpy(zero_copy_only=False)
    return list_of(list_of(pa.array(values), lengths), counts + has_box)


def _order(
    n: int,
    n_shapes: Ints,
    has_box: npt.NDArray[np.bool_],
    kinds: Sequence[tuple[T, npt.NDArray[Any]]],
    keep: npt.NDArray[np.bool_],
) -> tuple[Ints, npt.NDArray[np.int8]]:
    """(number of the flat shape of each row, -1 for others; type of each row), rows of a record together."""
    shape_owner = np.repeat(np.arange(n), n_shapes)
    starts = np.cumsum(n_shapes) - n_shapes
    is_box = np.zeros(len(shape_owner), bool)
    is_box[starts[has_box]] = True
    types = [np.where(is_box, T.bbox, T.polygon).astype(np.int8)]
    owners = [shape_owner]
    shape = [np.arange(len(shape_owner))]
    rank = [np.zeros(len(shape_owner), np.int64)]
    for k, (kind, has) in enumerate(kinds):
        who = np.flatnonzero(has)
        owners.append(who)
        types.append(np.full(len(who), kind, np.int8))
        shape.append(np.full(len(who), -1))
        rank.append(np.full(len(who), k + 1))
    owner, type_, index = np.concatenate(owners), np.concatenate(types), np.concatenate(shape)
    if kinds:
        order = np.lexsort((np.concatenate(rank), owner))
        owner, type_, index = owner[order], type_[order], index[order]
    kept = keep[owner]
    return index[kept], type_[kept]


def members_sql(keys: Sequence[str]) -> str:
    """SQL that gives some members of the JSON object j as text: '"k":v,"k2":v2', null when it has none of them."""
    parts = []
    for key in keys:
        name = json.dumps(key).replace("'", "''")
        path = ('$."' + key.replace("\\", "\\\\").replace('"', '\\"') + '"').replace("'", "''")
        parts.append(f"'{name}:' || json_extract(j, '{path}')::VARCHAR")
    return f"nullif(concat_ws(',', {', '.join(parts)}), '')"

