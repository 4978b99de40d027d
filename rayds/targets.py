"""What a model shall learn from an image, as columns: its class, its boxes, or its mask of classes.

Objects are what ITEM_SCHEMA calls instances: rows of one group are one object, a row without a group is one by itself.
All coordinates are pixels of the image as the model sees it (resized).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.annotations import Mask, decode_rle
from rayds.errors import DataError
from rayds.geometry import enclosing_boxes, polygon_areas, polygons_to_rle
from rayds.schema import AnnotationType, Flat, flat, single_chunk

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bad = dict[int, DataError]  # by row of the block

KINDS = ("classification", "detection", "segmentation")
_SHAPES = [
    int(t)
    for t in (
        AnnotationType.bbox,
        AnnotationType.polygon,
        AnnotationType.mask,
        AnnotationType.rotated_bbox,
        AnnotationType.ellipse,
    )
]
_UNLABELLED = "Give it one, or leave it out with Dataset.map"


@dataclass(frozen=True)
class Placed:
    """How the image of each row of a block came to its new size.

    source, inner: (n, 2) height and width before, and of the scaled image; offset: (n, 2) top and left of it in a
    result of size `size` (None: each its own, `inner`).
    """

    source: Ints
    inner: Ints
    offset: Ints
    size: tuple[int, int] | None

    @classmethod
    def of(cls, source: Ints, size: tuple[int, int] | None, letterbox: bool) -> Placed:
        """Where images of the sizes `source` go when they are resized to `size`."""
        if size is None:
            return cls(source, source, np.zeros_like(source), None)
        if not letterbox:
            return cls(source, np.broadcast_to(np.array(size), source.shape), np.zeros_like(source), size)
        factor = (np.array(size) / np.maximum(source, 1)).min(axis=1, keepdims=True)
        inner = np.clip(np.rint(source * factor).astype(np.int64), 1, size)
        return cls(source, inner, (np.array(size) - inner) // 2, size)

    @property
    def scale(self) -> Floats:
        """(n, 2): factors of height and width."""
        scale: Floats = self.inner / np.maximum(self.source, 1)
        return scale


def classes(block: pa.Table, labels: int, multi: bool) -> tuple[npt.NDArray[Any], Bad]:
    """The class of each row by its Label annotations: int64, or with `multi` (n, labels) float32 of 0 and 1.

    Bad are, without `multi`, items with no or with different labels.
    """
    view = flat(block)
    found = np.flatnonzero(
        (view.type == AnnotationType.label) & pc.is_valid(view.column("label")).to_numpy(False)
    )
    pairs = np.unique(np.stack([view.item[found], view.numpy("label")[found]], axis=1), axis=0)
    item, label = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    ids = single_chunk(block, "id")
    bad: Bad = {}
    for i in np.flatnonzero((label < 0) | (label >= labels)):
        reason = f"the label {label[i]} is not one of the {labels} categories"
        bad[int(item[i])] = DataError(reason, item=ids[int(item[i])].as_py())
    if multi:
        good = (label >= 0) & (label < labels)
        hot = np.zeros((block.num_rows, labels), np.float32)
        hot[item[good], label[good]] = 1
        return hot, bad
    counts = np.bincount(item, minlength=block.num_rows)
    for row in np.flatnonzero(counts != 1):
        what = f"{counts[row]} different labels" if counts[row] else "no Label annotation"
        bad[int(row)] = DataError(
            f"the item has {what}, and classification needs one",
            item=ids[int(row)].as_py(),
            remedy="Take multi_label=True, select the items that have one, or skip the others with on_error='skip'",
        )
    result = np.zeros(block.num_rows, np.int64)
    result[item] = label
    return result, bad


@dataclass(frozen=True)
class Objects:
    """The objects of a block in order; item: the row of each. boxes: (m, 4) x1, y1, x2, y2; area: pixels."""

    item: Ints
    label: Ints
    boxes: Floats
    area: Floats
    crowd: npt.NDArray[np.bool_]


def objects(block: pa.Table, placed: Placed) -> tuple[Objects, Bad]:
    """The objects that have a box, or a shape from which one follows.

    An object's box is its Bbox row; without one, what encloses its polygons, masks, ellipses and rotated boxes. Its
    area is that of its polygons and masks; without them, that of its box (ellipse, rotated box). Bad are items with
    an object without a label.
    """
    view = flat(block)
    rows = np.flatnonzero(np.isin(view.type, _SHAPES))
    sub = Flat(view.rows.take(pa.array(rows)), view.item[rows], view.offsets)
    number, m = _instances(sub)
    types = sub.type
    boxes, area, bad = _shape_boxes(sub, block)
    is_box = types == AnnotationType.bbox
    has_box = np.zeros(m, bool)
    has_box[number[is_box]] = True
    counted = np.where(has_box[number], is_box, True)
    low, high = np.full((m, 2), np.inf), np.full((m, 2), -np.inf)
    np.minimum.at(low, number[counted], boxes[counted, :2])
    np.maximum.at(high, number[counted], boxes[counted, 2:])
    outlined = np.isin(types, [AnnotationType.polygon, AnnotationType.mask])
    areas = np.bincount(number[outlined], area[outlined], m)
    rest = np.bincount(number, outlined, m) == 0
    first = _first(number, np.where(is_box, 0, 1), m)
    areas[rest] = area[first[rest]]
    item = sub.item[first]
    label, labelled = _labels(sub, number, m)
    bad |= _unlabelled(block, item[~labelled])
    crowd = np.zeros(m, bool)
    crowd[number[_crowds(sub)]] = True
    scale, offset = placed.scale[item][:, ::-1], placed.offset[item][:, ::-1]  # of x, y
    made = np.concatenate([low * scale + offset, high * scale + offset], axis=1)
    return Objects(item, label, made, areas * scale.prod(axis=1), crowd), bad


def _instances(view: Flat) -> tuple[Ints, int]:
    """(the object of each row, numbered by their first rows; how many there are)."""
    n = len(view)
    group = view.numpy("group").astype(np.int64)
    key = np.where(group > 0, group, -1 - np.arange(n))
    order = np.lexsort((np.arange(n), key, view.item))
    begins = np.ones(n, bool)
    begins[1:] = (np.diff(view.item[order]) != 0) | (np.diff(key[order]) != 0)
    first = order[begins]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    number = np.empty(n, np.int64)
    number[order] = rank[np.cumsum(begins) - 1]
    return number, len(first)


def _first(number: Ints, preference: Ints, m: int) -> Ints:
    """The first row of each object among those with the lowest preference."""
    order = np.lexsort((np.arange(len(number)), preference, number))
    first = np.zeros(m, np.int64)
    first[number[order][::-1]] = order[::-1]
    return first


def _labels(view: Flat, number: Ints, m: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """(the label of each object: of its box, else of its first row that has one; whether there is any)."""
    valid = pc.is_valid(view.column("label")).to_numpy(zero_copy_only=False)
    preference = np.where(valid, np.where(view.type == AnnotationType.bbox, 0, 1), 2)
    first = _first(number, preference, m)
    return view.numpy("label")[first].astype(np.int64), valid[first]


def _unlabelled(block: pa.Table, rows: Ints) -> Bad:
    ids = single_chunk(block, "id")
    return {
        int(row): DataError("an object has no label", item=ids[int(row)].as_py(), remedy=_UNLABELLED)
        for row in np.unique(rows)
    }


def _crowds(view: Flat) -> Ints:
    """The rows that say of themselves that they are a crowd."""
    column = view.column("attributes")
    maybe = np.flatnonzero(
        pc.match_substring(column, '"is_crowd"').fill_null(False).to_numpy(zero_copy_only=False)
    )
    texts = column.take(pa.array(maybe)).to_pylist()
    return maybe[[bool(json.loads(t).get("is_crowd")) for t in texts]] if len(maybe) else maybe


def _shape_boxes(view: Flat, block: pa.Table) -> tuple[Floats, Floats, Bad]:
    """(x1, y1, x2, y2 of each row of a view into the block, its area, items with broken masks)."""
    boxes, area = np.zeros((len(view), 4)), np.zeros(len(view))
    points, types = view.column("points"), view.type
    bad: Bad = {}

    def numbers(rows: Ints) -> Floats:
        taken: Floats = points.take(pa.array(rows)).flatten().to_numpy(zero_copy_only=False)
        return taken

    if len(rows := np.flatnonzero(types == AnnotationType.bbox)):
        x, y, w, h = numbers(rows).reshape(-1, 4).T
        boxes[rows], area[rows] = np.stack([x, y, x + w, y + h], 1), w * h
    if len(rows := np.flatnonzero(types == AnnotationType.ellipse)):
        boxes[rows] = found = numbers(rows).reshape(-1, 4)
        area[rows] = np.pi / 4 * (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    if len(rows := np.flatnonzero(types == AnnotationType.rotated_bbox)):
        cx, cy, w, h, degrees = numbers(rows).reshape(-1, 5).T
        cos, sin = np.abs(np.cos(np.deg2rad(degrees))), np.abs(np.sin(np.deg2rad(degrees)))
        dx, dy = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
        boxes[rows], area[rows] = np.stack([cx - dx, cy - dy, cx + dx, cy + dy], 1), w * h
    if len(rows := np.flatnonzero(types == AnnotationType.polygon)):
        values = numbers(rows)
        lengths = (
            pc.list_value_length(points.take(pa.array(rows))).to_numpy(zero_copy_only=False).astype(np.int64)
        )
        found = enclosing_boxes(values, lengths)
        boxes[rows] = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)
        area[rows] = polygon_areas(values, lengths)
    for row in np.flatnonzero(types == AnnotationType.mask):  # run lengths are not columns
        try:
            mask = Mask(rle=_rle(view.rows[int(row)]["mask"].as_py()))
            x0, y0, w0, h0 = mask.get_bbox()
            boxes[row], area[row] = (x0, y0, x0 + w0, y0 + h0), mask.get_area()
        except ValueError as e:
            item = int(view.item[row])
            bad[item] = DataError(str(e), item=block.column("id")[item].as_py(), remedy="Correct the mask")
    return boxes, area, bad


def _rle(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": [row["height"], row["width"]], "counts": row["counts"]}


def class_masks(block: pa.Table, placed: Placed, dtype: str) -> tuple[list[npt.NDArray[Any] | None], Bad]:
    """For each row the (H, W) image of its classes: 0 where nothing is, else the label + 1 of the topmost shape.

    Shapes are masks and polygons, the lowest z_order first, rows of one z_order in their order. Bad are items with a
    shape without a label, or with a mask of another size than the image.
    """
    view = flat(block)
    drawn = np.flatnonzero(np.isin(view.type, [AnnotationType.mask, AnnotationType.polygon]))
    valid = pc.is_valid(view.column("label")).to_numpy(zero_copy_only=False)
    bad = _unlabelled(block, view.item[drawn[~valid[drawn]]])
    drawn = drawn[np.lexsort((drawn, view.numpy("z_order")[drawn], view.item[drawn]))]
    bounds = np.searchsorted(view.item[drawn], np.arange(block.num_rows + 1))
    labels, ids = view.numpy("label"), single_chunk(block, "id")
    out: list[npt.NDArray[Any] | None] = []
    for row in range(block.num_rows):
        made = np.zeros(placed.size or tuple(placed.inner[row]), dtype)
        try:
            for i in drawn[bounds[row] : bounds[row + 1]] if row not in bad else ():
                _paint(made, view.rows[int(i)].as_py(), int(labels[i]) + 1, placed, row)
        except ValueError as e:
            bad[row] = DataError(str(e), item=ids[row].as_py(), remedy="Correct the annotation")
        out.append(None if row in bad else made)
    return out, bad


def _paint(image: npt.NDArray[Any], shape: Mapping[str, Any], value: int, placed: Placed, row: int) -> None:
    import cv2

    (height, width), (inner_h, inner_w), (top, left) = (
        placed.source[row],
        placed.inner[row],
        placed.offset[row],
    )
    if shape["type"] == AnnotationType.mask:
        mask = decode_rle(_rle(shape["mask"]))
        if mask.shape != (height, width):
            raise ValueError(
                f"a mask has {mask.shape[1]}x{mask.shape[0]} pixels, but the image has {width}x{height}"
            )
        if (height, width) != (inner_h, inner_w):
            size = (int(inner_w), int(inner_h))
            mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
        image[top : top + inner_h, left : left + inner_w][mask] = value
        return
    points = np.asarray(shape["points"], float).reshape(-1, 2)
    if len(points) < 3:
        raise ValueError(f"a polygon has {len(points)} points, and needs three")
    points = points * placed.scale[row][::-1] + (left, top)
    image[decode_rle(polygons_to_rle([points.ravel().tolist()], *image.shape))] = value
