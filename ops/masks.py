"""Between shapes and masks: boxes_to_masks, polygons_to_masks, masks_to_polygons. Masks stay run lengths where they can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from rayds.annotations import decode_rle
from rayds.engine.base import Block
from rayds.format import with_errors
from rayds.geometry import mask_outlines
from rayds.losses import lose
from rayds.op import Op
from rayds.ops._drawing import drawn, outlines
from rayds.ops._geometry import (
    T,
    broken_masks,
    columns_of,
    replaced,
    rows_of,
    sized,
    sizes_of,
    without_stale,
)
from rayds.options import Options, option
from rayds.schema import MASK_TYPE, flat, list_of, mask_rows, with_annotations

STALE = {"coco": ("area", "bbox")}


class _ToMasks(Op):
    """Draws shapes as masks of the size of the image, by COCO's rasteriser. The image's size must be known or readable."""

    shapes: ClassVar[tuple[T, ...]]

    def apply(self, block: Block) -> Block:
        view = flat(block)
        concerned = set(view.item[np.isin(view.type, self.shapes)].tolist())
        block, failed = sized(block) if concerned else (block, {})
        failed = {row: error for row, error in failed.items() if row in concerned}
        block, errors = self.good_rows(block, failed)
        view = flat(block)
        rows = np.flatnonzero(np.isin(view.type, self.shapes))
        if len(rows):
            columns = columns_of(view.rows)
            sizes = sizes_of(block)[view.item[rows]]
            counts = drawn(outlines(columns, view.type, rows), sizes)
            masks = mask_rows(len(rows), sizes[:, 0], sizes[:, 1], counts)
            columns["mask"] = replaced(columns["mask"], rows, masks)
            columns["points"] = replaced(columns["points"], rows, pa.nulls(len(rows), columns["points"].type))
            columns["type"] = replaced(
                columns["type"], rows, pa.array(np.full(len(rows), int(T.mask)), pa.int8())
            )
            changed = np.zeros(len(view), bool)
            changed[rows] = True
            columns["extra"] = without_stale(columns["extra"], changed, STALE)
            block = with_annotations(block, rows_of(columns), np.diff(view.offsets))
        return with_errors(block, errors) if errors else block


class BoxesToMasks(_ToMasks):
    """Replaces boxes and rotated boxes by masks of what they cover."""

    name = "boxes_to_masks"
    title = "replace boxes by masks"
    shapes = (T.bbox, T.rotated_bbox)


class PolygonsToMasks(_ToMasks):
    """Replaces each polygon and each ellipse by a mask; merge_instance_segments makes one of the masks of an object."""

    name = "polygons_to_masks"
    title = "replace polygons and ellipses by masks"
    shapes = (T.polygon, T.ellipse)


class MasksToPolygons(Op):
    """Replaces masks by the outlines of their parts.

    A hole is kept by a cut of no width from the outline to it, so that drawing the polygon leaves it out; --holes fill
    makes polygons without holes. Parts too small for a polygon (less than 3 corners, or an area under --min-area) and
    filled holes are counted in the report.
    """

    name = "masks_to_polygons"
    title = "replace masks by polygons"

    @dataclass(frozen=True)
    class Options(Options):
        holes: str = option("keep", choices=("keep", "fill"), help="what becomes of holes")
        min_area: float = option(1.0, help="the smallest area of a part, in pixels")

    def apply(self, block: Block) -> Block:
        view = flat(block)
        masks = np.flatnonzero(view.type == T.mask)
        if not len(masks):
            return block
        block, errors = self.good_rows(block, broken_masks(block))
        view = flat(block)
        masks = np.flatnonzero(view.type == T.mask)
        columns = columns_of(view.rows)
        parts: list[list[list[float]]] = []
        small, filled = np.zeros(block.num_rows, np.int64), np.zeros(block.num_rows, np.int64)
        keep_holes = self.options.holes == "keep"
        for row, mask in zip(masks.tolist(), columns["mask"].take(pa.array(masks)).to_pylist(), strict=True):
            image = decode_rle({"size": [mask["height"], mask["width"]], "counts": mask["counts"]})
            found = mask_outlines(image, self.options.min_area, keep_holes=keep_holes)
            parts.append(found.polygons)
            small[view.item[row]] += found.small
            filled[view.item[row]] += 0 if keep_holes else found.holes
        repeats = np.ones(len(view), np.int64)
        repeats[masks] = [len(p) for p in parts]
        source = np.repeat(np.arange(len(view)), repeats)
        columns = {name: column.take(pa.array(source)) for name, column in columns.items()}
        was_mask = np.zeros(len(view), bool)
        was_mask[masks] = True
        new = np.flatnonzero(was_mask[source])
        polygons = [polygon for part in parts for polygon in part]
        values = list_of(
            pa.array(np.concatenate([np.asarray(p) for p in polygons]) if polygons else np.zeros(0)),
            np.array([len(p) for p in polygons], np.int64),
        )
        columns["points"] = replaced(columns["points"], new, values)
        columns["mask"] = replaced(columns["mask"], new, pa.nulls(len(new), MASK_TYPE))
        columns["type"] = replaced(
            columns["type"], new, pa.array(np.full(len(new), int(T.polygon)), pa.int8())
        )
        columns["extra"] = without_stale(columns["extra"], was_mask[source], STALE)
        counts = np.bincount(view.item[source], minlength=block.num_rows)
        out = with_annotations(block, rows_of(columns), counts)
        out = lose(out, "parts of masks too small for a polygon, left out", small)
        out = lose(out, "holes in masks, filled", filled)
        return with_errors(out, errors) if errors else out
