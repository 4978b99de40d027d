"""Shapes into boxes and polygons: shapes_to_boxes, boxes_to_polygons, bbox_values_decrement. On columns, no pixels."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayds.engine.base import Block
from rayds.format import with_errors
from rayds.geometry import enclosing_boxes
from rayds.losses import lose
from rayds.op import Op
from rayds.ops._geometry import (
    Bools,
    Floats,
    Ints,
    Numbers,
    T,
    any_of,
    broken_masks,
    columns_of,
    objects_of,
    replaced,
    rows_of,
    visibilities,
    without_stale,
)
from rayds.ops._shapes import corners_of
from rayds.schema import MASK_TYPE, Flat, flat, list_of, with_annotations

SHAPES = (T.polygon, T.polyline, T.points, T.mask, T.ellipse, T.rotated_bbox)
STALE = {"coco": ("area", "bbox"), "voc": ("bndbox",)}


class ShapesToBoxes(Op):
    """Replaces polygons, polylines, points, masks, ellipses and rotated boxes by the boxes that enclose them.

    Rows of one object (those that share a group, an id and a label) become one box: the box that the object has, or the one
    that encloses all its shapes. Points that are absent don't count. What encloses nothing, as an empty mask, is left
    out, and counted in the report.
    """

    name = "shapes_to_boxes"
    title = "replace shapes and masks by the boxes that enclose them"

    def apply(self, block: Block) -> Block:
        block, errors = self.good_rows(block, broken_masks(block))
        made = self._boxed(block)
        return with_errors(made, errors) if errors else made

    def _boxed(self, block: Block) -> Block:
        view = flat(block)
        columns = columns_of(view.rows)
        types = view.type
        shape = np.isin(types, SHAPES)
        if not shape.any():
            return block
        rows = np.flatnonzero(shape)
        boxes, some = np.zeros((len(view), 4)), np.ones(len(view), bool)
        boxes[rows], some[rows] = enclosing(view, columns, rows)
        objects = objects_of(view.item, columns)
        boxed = any_of(objects, types == T.bbox)
        empty = shape & ~some & ~boxed
        # the first shape of an object that has no box stands for all
        keep = ~shape
        free = np.flatnonzero(shape & some & ~boxed)
        if len(free):
            leaders, of = np.unique(objects[free], return_inverse=True)
            first = np.full(len(leaders), len(view))
            np.minimum.at(first, of, free)
            low = np.full((len(leaders), 2), np.inf)
            high = np.full((len(leaders), 2), -np.inf)
            np.minimum.at(low, of, boxes[free, :2])
            np.maximum.at(high, of, boxes[free, :2] + boxes[free, 2:])
            boxes[first] = np.hstack([low, high - low])
            keep[first] = True
        made = np.flatnonzero(keep & shape)
        values = list_of(pa.array(boxes[made].ravel()), np.full(len(made), 4))
        columns["points"] = replaced(columns["points"], made, values)
        columns["type"] = replaced(
            columns["type"], made, pa.array(np.full(len(made), int(T.bbox)), pa.int8())
        )
        columns["mask"] = replaced(columns["mask"], made, pa.nulls(len(made), MASK_TYPE))
        columns["visibility"] = replaced(
            columns["visibility"], made, pa.nulls(len(made), columns["visibility"].type)
        )
        gone = any_of(objects, shape)  # COCO's area is that of the shape
        columns["extra"] = without_stale(columns["extra"], gone, STALE)
        counts = np.bincount(view.item[keep], minlength=block.num_rows)
        out = with_annotations(block, rows_of(columns).filter(pa.array(keep)), counts)
        return lose(
            out,
            "shapes that enclose nothing, left out",
            np.bincount(view.item[empty], minlength=block.num_rows),
        )


def enclosing(view: Flat, columns: dict[str, pa.Array], rows: Ints) -> tuple[Floats, Bools]:
    """(x, y, width, height that encloses each of some shapes, whether it encloses anything)."""
    from pycocotools import mask as coco_mask

    types = view.type[rows]
    boxes, some = np.zeros((len(rows), 4)), np.zeros(len(rows), bool)
    plain = np.flatnonzero(np.isin(types, (T.polygon, T.polyline, T.ellipse)))
    numbers = Numbers.of(columns["points"].take(pa.array(rows[plain])))
    boxes[plain], some[plain] = enclosing_boxes(numbers.values, numbers.lengths), numbers.lengths >= 2
    dots = np.flatnonzero(types == T.points)
    if len(dots):
        numbers = Numbers.of(columns["points"].take(pa.array(rows[dots])))
        lengths = np.zeros(len(view), np.int64)
        lengths[rows[dots]] = numbers.lengths
        seen = visibilities(columns, rows[dots], lengths) > 0
        n = np.bincount(numbers.owner[::2][seen], minlength=len(dots))
        values = numbers.values.reshape(-1, 2)[seen].ravel()
        boxes[dots], some[dots] = enclosing_boxes(values, 2 * n), n > 0
    turned = np.flatnonzero(types == T.rotated_bbox)
    if len(turned):
        corners = corners_of(Numbers.of(columns["points"]).matrix(rows[turned], 5))
        low, high = corners.min(1), corners.max(1)
        boxes[turned], some[turned] = np.hstack([low, high - low]), True
    masks = np.flatnonzero(types == T.mask)
    if len(masks):
        found = columns["mask"].take(pa.array(rows[masks])).to_pylist()
        rles = [{"size": [m["height"], m["width"]], "counts": m["counts"]} for m in found]
        boxes[masks] = coco_mask.toBbox(rles)
        some[masks] = coco_mask.area(rles) > 0
    return boxes, some


class BoxesToPolygons(Op):
    """Replaces boxes and rotated boxes by polygons of their four corners."""

    name = "boxes_to_polygons"
    title = "replace boxes by polygons"

    def apply(self, block: Block) -> Block:
        view = flat(block)
        columns = columns_of(view.rows)
        numbers = Numbers.of(columns["points"])
        for type_, width in ((T.bbox, 4), (T.rotated_bbox, 5)):
            rows = np.flatnonzero(view.type == type_)
            if not len(rows):
                continue
            boxes = numbers.matrix(rows, width)
            if type_ is T.bbox:
                x, y, w, h = boxes.T
                corners = np.stack([x, y, x + w, y, x + w, y + h, x, y + h], 1)
            else:
                corners = corners_of(boxes).reshape(-1, 8)
            values = list_of(pa.array(corners.ravel()), np.full(len(rows), 8))
            columns["points"] = replaced(columns["points"], rows, values)
            columns["type"] = replaced(
                columns["type"], rows, pa.array(np.full(len(rows), int(T.polygon)), pa.int8())
            )
        return with_annotations(block, rows_of(columns), np.diff(view.offsets))


class BboxValuesDecrement(Op):
    """Moves boxes by one pixel to the left and up: for sources that count pixels from 1."""

    name = "bbox_values_decrement"
    title = "subtract one from the x and y of boxes"

    def apply(self, block: Block) -> Block:
        view = flat(block)
        columns = columns_of(view.rows)
        rows = np.flatnonzero(view.type == T.bbox)
        if not len(rows):
            return block
        points: pa.ListArray = columns["points"]
        numbers = Numbers.of(points)
        numbers.put(rows, numbers.matrix(rows, 4) - [1, 1, 0, 0])
        columns["points"] = numbers.column(points)
        moved = np.zeros(len(view), bool)
        moved[rows] = True
        columns["extra"] = without_stale(columns["extra"], moved, {"coco": ("bbox",), "voc": ("bndbox",)})
        return with_annotations(block, rows_of(columns), np.diff(view.offsets))
