"""COCO records -> annotation rows, many at a time: DuckDB parses, NumPy and Arrow lay out.

A COCO annotation becomes its box, then its polygons or mask, then its key points: rows of one group.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.annotations import normal_rle, rle_runs
from rayds.errors import DataError
from rayds.formats._records import Records
from rayds.formats.coco.checks import (
    broken,
    checked_json,
    constants_in,
    distinct_keys,
    in_file_order,
    integers,
    members_sql,
)
from rayds.formats.coco.shapes import prepend, row_order
from rayds.schema import AnnotationType as T
from rayds.schema import annotation_rows, mask_rows
from rayds.sql import query

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Groups are numbers over 0: an annotation whose id is 0 or less gets this one minus its id.
ZERO_GROUP = 1 << 62
# Ids from here down stand for "none" until all ids of a subset are known.
NO_ID = -(1 << 61)

_INTEGERS = ("id", "image_id", "category_id")
_FIELDS = {
    **dict.fromkeys(_INTEGERS, '"DOUBLE"'),
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
_TYPED = [k for k, v in _FIELDS.items() if "JSON" not in v and k != "segmentation"]
_LOOSE = [k for k, v in _FIELDS.items() if "JSON" in v]
_CROWD = {"0": False, "false": False, "0.0": False, "1": True, "true": True, "1.0": True}
_CROWD |= {f'"{k}"': v for k, v in _CROWD.items()}
# Tasks whose records go back to the file of their own, not to that of instances.
MARKED = ("stuff", "panoptic", "person_keypoints")


def groups_of(ids: Ints) -> Ints:
    """The group of the rows of annotations with these ids."""
    return np.where(ids > 0, ids, ZERO_GROUP - ids)


def labels_of(categories: Ints, category_labels: dict[int, int]) -> tuple[npt.NDArray[np.int32], Bools]:
    """(the label of each category id, whether there is one)."""
    ids = np.array(sorted(category_labels), np.int64)
    if not len(ids):
        return np.zeros(len(categories), np.int32), np.zeros(len(categories), bool)
    at = np.minimum(np.searchsorted(ids, categories), len(ids) - 1)
    return np.array([category_labels[int(k)] for k in ids], np.int32)[at], ids[at] == categories


@dataclass
class Rows:
    """Annotation rows of some records.

    image: image id of each row; annotation: running number of each row's annotation. Of each annotation: ids (from
    NO_ID down: it has none) and the place (byte) of its record. errors: bad records, which are left out.
    """

    rows: pa.StructArray
    image: Ints
    annotation: Ints
    ids: Ints
    places: Ints
    errors: list[DataError] = field(default_factory=list)


def parsed_rows(
    records: Records,
    file: str,
    category_labels: dict[int, int],
    mark: str | None,
    numbers: Ints,
    exclude: frozenset[int] = frozenset(),
) -> Rows:
    """The annotation rows of some records of a file; exclude: places of records to leave out.

    mark: the task, where it is to be remembered; numbers: of the records, to count those without an id by.
    """
    errors: list[DataError] = []
    texts, number = records.texts(), np.arange(len(records))
    sql = f"SELECT unnest(r) FROM (SELECT from_json(j, '{_SPEC}') AS r FROM t)"
    try:
        table = query(sql, t=pa.table({"j": texts}))
    except broken():
        texts, number = checked_json(records, file, errors)
        table = query(sql, t=pa.table({"j": texts}))
    parser = _Parser(table.combine_chunks(), texts, number, records, file, mark, errors)
    if exclude:
        parser.keep &= ~np.isin(parser.places, sorted(exclude))
    made = parser.rows(category_labels, numbers[parser.number])
    in_file_order(errors)
    return made


class _Parser:
    """Turns one parsed table into rows; bad records are dropped on the way and listed in `errors`."""

    def __init__(
        self,
        table: pa.Table,
        texts: pa.Array,
        number: Ints,
        records: Records,
        file: str,
        mark: str | None,
        errors: list[DataError],
    ) -> None:
        self.table, self.texts, self.number = table, texts, number
        self.records, self.file, self.mark, self.errors = records, file, mark, errors
        self.places: Ints = records.base + records.starts[number]
        self.keep = np.ones(len(texts), bool)
        self.unknown: pa.Array = pa.nulls(len(texts), pa.string())
        self.masks: pa.StructArray | None = None
        self.listed_rle = np.zeros(len(texts), bool)
        self.wrong = {k: self._to_integers(k) for k in _INTEGERS}

    def _to_integers(self, name: str) -> Bools:
        values, wrong = integers(self.column(name), self.texts, name)
        self.table = self.table.set_column(self.table.column_names.index(name), name, values)
        return wrong

    def column(self, name: str) -> pa.Array:
        column = self.table.column(name)
        return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)

    def numpy(self, name: str, null: int) -> Ints:
        out: Ints = self.column(name).fill_null(null).to_numpy(zero_copy_only=False).astype(np.int64)
        return out

    def bad(self, rows: Any, reason: Callable[[int], str] | str) -> None:
        """Leave out the records where `rows` is true (a mask, or the numbers of the rows)."""
        rows = np.asarray(rows)
        for i in np.flatnonzero(rows) if rows.dtype == bool else rows:
            if not self.keep[i]:
                continue
            image = self.column("image_id")[int(i)].as_py()
            why = reason(int(i)) if callable(reason) else reason
            id = self.column("id")[int(i)].as_py()
            what = f"annotation {id}: {why}" if id is not None else why
            place = f"byte {self.places[i]}"
            item = None if image is None else f"image {image}"
            self.errors.append(DataError(what, file=self.file, place=place, item=item))
            self.keep[i] = False

    def _present(self) -> Ints:
        """How many keys, and texts, of each record the known columns explain."""
        count = np.zeros(len(self.texts), np.int64)
        for name in _FIELDS:
            column = self.column(name)
            if column.null_count < len(column):
                there = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else 1
                count += 2 * there if name == "caption" else there
        return count

    def rows(self, category_labels: dict[int, int], numbers: Ints) -> Rows:
        for k, wrong in self.wrong.items():
            if wrong.any():
                self.bad(wrong, lambda i, k=k: f"{k!r} is not an integer: {self._raw(i, k)}")  # type: ignore[misc]
        quotes = self.records.quotes[self.number]
        irregular = np.flatnonzero(quotes != 2 * self._present())
        if len(irregular):
            self._irregular(irregular)
        self._check_loose()
        self.bad(self.column("image_id").is_null(), "the key 'image_id' is missing")
        label = self._labels(category_labels)
        shapes, boxes = self._shapes()
        keypoints, visibility = self._keypoints()
        return self._lay_out(label, shapes, boxes, keypoints, visibility, numbers)

    def _irregular(self, rows: Ints) -> None:
        """Records with other keys, or with values that are not of the expected type."""
        part = self.table.take(pa.array(rows)).append_column("j", self.texts.take(pa.array(rows)))
        unknown = sorted(k for k in distinct_keys(part.column("j")) if k not in _FIELDS)
        if unknown:
            found = query(f"SELECT {members_sql(unknown)} AS text FROM t", t=part.select(["j"])).column(
                "text"
            )
            self._set_unknown(rows, found)
        checks = ", ".join(
            f"({k} IS NULL AND coalesce(json_extract(j, '$.{k}')::VARCHAR, 'null') <> 'null') AS {k}"
            for k in [*_TYPED, "segmentation"]
        )
        wrong = query(f"SELECT {checks} FROM t", t=part)
        for k in _TYPED:
            flagged = rows[wrong.column(k).combine_chunks().to_numpy(zero_copy_only=False).astype(bool)]
            self.bad(flagged, lambda i, k=k: f"{k!r} has the wrong type: {self._raw(i, k)}")  # type: ignore[misc]
        objects = rows[
            wrong.column("segmentation").combine_chunks().to_numpy(zero_copy_only=False).astype(bool)
        ]
        if len(objects):
            self._rle(objects)

    def _check_loose(self) -> None:
        """Members that are kept as JSON text: NaN, crowds that are neither 0 nor 1, attributes that are no object."""
        for texts in [*map(self.column, _LOOSE), pc.binary_join_element_wise("{", self.unknown, "}", "")]:
            if texts.null_count < len(texts):
                found = constants_in(texts)
                self.bad(np.array(list(found), np.int64), lambda i, found=found: found[i])  # type: ignore[misc]
        crowd = self.column("iscrowd").dictionary_encode()
        odd = [i for i, w in enumerate(crowd.dictionary.to_pylist()) if w not in _CROWD]
        if odd:
            codes = crowd.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            self.bad(
                np.isin(codes, odd), lambda i: f"'iscrowd' is neither 0 nor 1: {self._raw(i, 'iscrowd')}"
            )
        attributes = self.column("attributes")
        if attributes.null_count < len(attributes):
            object_ = pc.or_(pc.starts_with(attributes, "{"), pc.equal(attributes, "[]"))
            odd_ = pc.invert(pc.fill_null(object_, True)).to_numpy(zero_copy_only=False)
            self.bad(odd_, lambda i: f"'attributes' is no object: {self._raw(i, 'attributes')}")

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
            if r["counts"] is None or r["n"] != 2 or r["h"] is None or r["w"] is None:
                self.bad(
                    [i],
                    lambda i: f"'segmentation' is neither polygons nor RLE: {self._raw(i, 'segmentation')}",
                )
                continue
            try:
                counts = json.loads(r["counts"])
                rle = normal_rle({"size": [r["h"], r["w"]], "counts": counts})
                rle_runs(rle)  # pycocotools, which meets it later, trusts counts and crashes on broken ones
            except (ValueError, TypeError) as e:
                self.bad([i], f"'segmentation' is a broken RLE: {e}")
                continue
            self.listed_rle[i] = isinstance(counts, list)
            texts[i] = rle["counts"]
            sizes[:, i] = r["h"], r["w"]
        self.masks = mask_rows(len(texts), sizes[0], sizes[1], pa.array(texts, pa.string()))

    def _labels(self, category_labels: dict[int, int]) -> pa.Array:
        """The label index of every record, null where it names no category."""
        ids = self.column("category_id")
        if ids.null_count:
            self._check_category_key(ids)
        if ids.null_count == len(ids):
            return pa.nulls(len(ids), pa.int32())
        if not category_labels:
            self.bad(
                ids.is_valid(), lambda i: f"the category id {ids[i]} is unknown: the file lists no categories"
            )
            return pa.nulls(len(ids), pa.int32())
        values = self.numpy("category_id", next(iter(category_labels)))
        labels, known = labels_of(values, category_labels)
        self.bad(~known, lambda i: f"the category id {values[i]} is unknown")
        return pa.array(labels, mask=ids.is_null().to_numpy(zero_copy_only=False))

    def _check_category_key(self, ids: pa.Array) -> None:
        """Null says that an annotation has no category; only captions may say nothing of it."""
        missing = pc.and_(ids.is_null(), self.column("caption").is_null())
        rows = np.flatnonzero(missing.to_numpy(zero_copy_only=False))
        said = pc.match_substring(self.texts.take(pa.array(rows)), '"category_id"')
        wrong = np.zeros(len(ids), bool)
        wrong[rows[~said.to_numpy(zero_copy_only=False)]] = True
        self.bad(wrong, "the key 'category_id' is missing")

    def _shapes(self) -> tuple[pa.ListArray, npt.NDArray[np.bool_]]:
        """(the box, if any, and the polygons of each record as a list of lists, whether it has a box)."""
        bbox, seg = self.column("bbox"), self.column("segmentation")
        size = pc.fill_null(pc.list_value_length(bbox), 0).to_numpy(zero_copy_only=False)
        has_box = size > 0
        self.bad(has_box & (size != 4), lambda i: f"a box has 4 numbers, this one {size[i]}")
        self._check_numbers(bbox, "bbox")
        shapes = prepend(bbox, seg, has_box & (size == 4))
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
            self.bad(
                bad, lambda i: f"{what!r} holds something that is no finite number: {self._raw(i, what)}"
            )

    def _check_polygons(self, seg: pa.ListArray) -> None:
        polygons = seg.flatten()
        lengths = pc.fill_null(pc.list_value_length(polygons), -1).to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(seg)), pc.fill_null(pc.list_value_length(seg), 0))
        short = np.zeros(len(seg), bool)
        short[owner[(lengths < 6) | (lengths % 2 == 1)]] = True

        def why(i: int) -> str:
            length = next(n for n in lengths[owner == i] if n < 6 or n % 2)
            if length % 2:
                return (
                    f"a polygon has an odd number of coordinates ({length})"
                    if length > 0
                    else "a polygon is no list"
                )
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

        odd = ~np.isin(triples[:, 2], (0, 1, 2))
        if odd.any():
            self._keep_visibility(np.unique(np.repeat(np.arange(len(count)), count)[odd]))
        seen = np.clip(np.ceil(triples[:, 2]), 0, 2).astype(np.int8)
        return lists_of(pa.array(triples[:, :2].ravel()), 2), lists_of(pa.array(seen), 1)

    def _keep_visibility(self, rows: Ints) -> None:
        """Third numbers that are no visibility (detectors put confidences there) are kept beside."""
        texts = self.unknown.to_pylist()
        for i in rows.tolist():
            own = f'"@visibility":{json.dumps(self.column("keypoints")[i].as_py()[2::3])}'
            texts[i] = own if texts[i] is None else f"{texts[i]},{own}"
        self.unknown = pa.array(texts, pa.string())

    def _texts(self) -> tuple[pa.Array, pa.Array]:
        """(attributes, extra) of each record as JSON text."""
        plain = self.unknown.null_count == len(self.unknown) and not self.listed_rle.any()
        if plain and self.mark is None and self._all_null("score", "attributes", "num_keypoints"):
            return self._plain_texts()
        marks = [f'\'"@task":"{self.mark}"\''] if self.mark else []
        marks += ["'\"area\":' || area", "'\"num_keypoints\":' || num_keypoints", "u"]
        marks.append('CASE WHEN listed THEN \'"@counts":"list"\' END')
        table = self.table.select(["score", "attributes", "area", "num_keypoints"])
        table = table.append_column("crowd", self._crowd())
        table = table.append_column("u", self.unknown).append_column("listed", pa.array(self.listed_rle))
        sql = f"""SELECT CASE WHEN a = '' THEN NULL ELSE '{{' || a || '}}' END AS attributes,
                         CASE WHEN e = '' THEN NULL ELSE '{{"coco":{{' || e || '}}}}' END AS extra
                  FROM (SELECT concat_ws(',',
                           CASE WHEN attributes LIKE '{{%' AND json_keys(attributes) <> []
                                THEN substr(attributes, 2, length(attributes) - 2) END,
                           crowd, '"score":' || score) AS a, concat_ws(',', {", ".join(marks)}) AS e FROM t)"""
        found = query(sql, t=table).combine_chunks()
        return found.column("attributes").chunk(0), found.column("extra").chunk(0)

    def _crowd(self) -> pa.Array:
        """The attribute is_crowd as a member of a JSON object."""
        crowd = self.column("iscrowd").dictionary_encode()
        said = [_CROWD.get(w) for w in crowd.dictionary.to_pylist()]
        members = [None if s is None else f'"is_crowd":{json.dumps(s)}' for s in said]
        return pa.array(members, pa.string()).take(crowd.indices)

    def _all_null(self, *names: str) -> bool:
        return all(self.table.column(n).null_count == len(self.texts) for n in names)

    def _plain_texts(self) -> tuple[pa.Array, pa.Array]:
        """What _texts gives where nothing but iscrowd and area is told."""
        crowd = self._crowd().dictionary_encode()
        objects = pc.binary_join_element_wise("{", crowd.dictionary, "}", "")
        area = self.column("area").cast(pa.string())
        return objects.take(crowd.indices), pc.binary_join_element_wise('{"coco":{"area":', area, "}}", "")

    def _kinds(self, keypoints: pa.ListArray | None, n_shapes: Ints) -> list[tuple[T, Bools]]:
        """What records have besides boxes and polygons, in the order of rows; a label where there is nothing."""
        found = [(T.mask, self.masks), (T.points, keypoints), (T.caption, self.column("caption"))]
        kinds: list[tuple[T, Bools]] = []
        for kind, values in found:
            if values is not None and values.null_count < len(values):
                kinds.append((kind, values.is_valid().to_numpy(zero_copy_only=False)))
        bare = n_shapes == 0
        for _, has in kinds:
            bare = bare & ~has
        return [*kinds, (T.label, bare)] if bare.any() else kinds

    def _lay_out(
        self,
        label: pa.Array,
        shapes: pa.ListArray,
        has_box: Bools,
        keypoints: pa.ListArray | None,
        visibility: pa.ListArray | None,
        numbers: Ints,
    ) -> Rows:
        """One row for each box, polygon, mask, set of key points, caption; a label where there is none of them."""
        if not len(self.texts):
            empty = np.zeros(0, np.int64)
            return Rows(annotation_rows(0), empty, empty, empty, empty, self.errors)
        attributes, extra = self._texts()
        n_shapes = pc.list_value_length(shapes).to_numpy(zero_copy_only=False)
        kinds = self._kinds(keypoints, n_shapes)
        per = np.where(self.keep, n_shapes + sum(k[1].astype(np.int64) for k in kinds), 0)
        order, types = row_order(len(per), n_shapes, has_box, kinds, self.keep)
        owner = np.repeat(np.arange(len(per)), per)
        leads = np.zeros(len(owner), bool)
        leads[(np.cumsum(per) - per)[per > 0]] = True
        missing = self.column("id").is_null().to_numpy(zero_copy_only=False)
        ids = np.where(missing, NO_ID - numbers, self.numpy("id", 0))
        group = np.where(missing, ids, groups_of(ids))
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
        columns |= self._geometry(shapes, keypoints, visibility, order, types, owner)
        rows = annotation_rows(len(owner), **columns)
        annotation = (np.cumsum(self.keep) - 1)[owner]
        image = self.numpy("image_id", -1)[owner]
        return Rows(rows, image, annotation, ids[self.keep], self.places[self.keep], self.errors)

    def _geometry(
        self,
        shapes: pa.ListArray,
        keypoints: pa.ListArray | None,
        visibility: pa.ListArray | None,
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
            out["text"] = self.column("caption").take(pa.array(owner, mask=types != T.caption))
        return out
