"""resize: images in another size, and their annotations with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayds import options as base
from rayds.annotations import BoolMask, decode_rle, encode_mask
from rayds.categories import Categories
from rayds.engine.base import Block
from rayds.errors import UsageError
from rayds.format import with_errors
from rayds.op import Op
from rayds.ops._geometry import (
    PLACELESS,
    Bools,
    Floats,
    Ints,
    Numbers,
    T,
    columns_of,
    replaced,
    rows_of,
    sized,
    sizes_of,
    with_edits,
    without_stale,
)
from rayds.schema import flat, mask_rows, with_annotations

STALE = {"coco": ("area", "bbox"), "voc": ("bndbox",)}


class Resize(Op):
    """Gives every image one size; annotations are scaled with it.

    Pixels are resized when they are read or saved. Raises DataError, under the policy for bad items, for an image
    whose size is neither told nor found in a file.
    """

    name = "resize"
    title = "images of another size, with their annotations"

    @dataclass(frozen=True)
    class Options(base.Options):
        width: int | None = base.option(
            None, short="dw", help="new width in pixels (default: that keeps the shape, by --height)"
        )
        height: int | None = base.option(
            None, short="dh", help="new height in pixels (default: that keeps the shape, by --width)"
        )

    def prepare(self, categories: Categories) -> Categories:
        given = [n for n in (self.options.width, self.options.height) if n is not None]
        if not given:
            raise UsageError("resize needs --width, --height or both")
        if min(given) < 1 or max(given) > 1 << 16:
            raise UsageError(f"an image can't be resized to {given[0]} pixels: give 1 to {1 << 16}")
        return categories

    def apply(self, block: Block) -> Block:
        block, failed = sized(block)
        block, errors = self.good_rows(block, failed)
        old = sizes_of(block)
        new = self._new_sizes(old)
        changed: Bools = np.asarray((old != new).any(1))
        if changed.any():
            rows = scaled(flat(block), old, new, changed)
            counts = np.diff(flat(block).offsets)
            steps = [
                {"resize": [int(w), int(h)]} if c else None
                for c, (h, w) in zip(changed, new.tolist(), strict=True)
            ]
            block = with_edits(with_annotations(block, rows, counts), steps, new)
        return with_errors(block, errors) if errors else block

    def _new_sizes(self, old: Ints) -> Ints:
        width, height = self.options.width, self.options.height
        known: Bools = np.asarray((old > 0).all(1))
        h, w = np.maximum(old, 1).T
        made = np.stack(
            [
                np.full(len(old), height) if height else np.maximum(1, (h * width * 2 + w) // (2 * w)),
                np.full(len(old), width) if width else np.maximum(1, (w * height * 2 + h) // (2 * h)),
            ],
            1,
        )
        return np.where(known[:, None], made, old).astype(np.int64)


def scaled(view: Any, old: Ints, new: Ints, changed: Bools) -> pa.StructArray:
    """The annotations of a flat view for images of other (height, width)."""
    columns = columns_of(view.rows)
    types = view.type
    sy, sx = (np.where(changed[:, None], new / np.maximum(old, 1), 1.0)[view.item]).T
    numbers = Numbers.of(columns["points"])
    rotated = np.flatnonzero(types == T.rotated_bbox)
    boxes = numbers.matrix(rotated, 5)
    flat_types = types[numbers.owner]
    scales = ~np.isin(flat_types, PLACELESS)
    factor = np.where(numbers.position % 2 == 0, sx[numbers.owner], sy[numbers.owner])
    numbers.values[scales] *= factor[scales]
    numbers.put(rotated, scaled_rotated(boxes, sx[rotated], sy[rotated]))
    columns["points"] = numbers.column(columns["points"])
    masks = np.flatnonzero((types == T.mask) & changed[view.item])
    if len(masks):
        columns["mask"] = replaced(
            columns["mask"], masks, _scaled_masks(columns["mask"], masks, new[view.item])
        )
    columns["extra"] = without_stale(columns["extra"], changed[view.item], STALE)
    return rows_of(columns)


def scaled_rotated(boxes: Floats, sx: Floats, sy: Floats) -> Floats:
    """Rotated boxes (n, 5) under factors for x and y.

    A box that does not stand upright becomes a parallelogram where the factors differ. The rotated box of the same
    centre, area and direction of the longer side takes its place; upright boxes, and equal factors, are exact.
    """
    cx, cy, w, h, r = boxes.T
    angle = np.deg2rad(r)
    along = np.stack([sx * np.cos(angle), sy * np.sin(angle)])  # where the sides point
    across = np.stack([-sx * np.sin(angle), sy * np.cos(angle)])
    length, breadth = w * np.hypot(*along), h * np.hypot(*across)
    area = w * h * sx * sy
    longer = length >= breadth
    direction = np.where(longer, np.arctan2(along[1], along[0]), np.arctan2(-across[0], across[1]))
    turn = np.rad2deg(np.remainder(direction - angle + np.pi, 2 * np.pi) - np.pi)
    upright = np.remainder(r, 90) == 0
    sideways = upright & (np.remainder(r, 180) == 90)
    even = sx == sy
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.where(longer, length, np.where(breadth > 0, area / breadth, 0))
        height = np.where(longer, np.where(length > 0, area / length, 0), breadth)
    width = np.where(upright | even, w * np.where(sideways, sy, sx), width)
    height = np.where(upright | even, h * np.where(sideways, sx, sy), height)
    turn = np.where(upright | even, 0, turn)
    return np.stack([cx * sx, cy * sy, width, height, r + turn], 1)


def resized_mask(mask: BoolMask, height: int, width: int) -> BoolMask:
    """A mask in another size: every pixel is that of the old mask under its centre."""
    rows = ((2 * np.arange(height) + 1) * mask.shape[0]) // (2 * height)
    columns = ((2 * np.arange(width) + 1) * mask.shape[1]) // (2 * width)
    out: BoolMask = mask[rows[:, None], columns]
    return out


def _scaled_masks(column: pa.StructArray, rows: Ints, sizes: Ints) -> pa.StructArray:
    made = []
    for row, told in zip(rows.tolist(), column.take(pa.array(rows)).to_pylist(), strict=True):
        rle = {"size": [told["height"], told["width"]], "counts": told["counts"]}
        height, width = map(int, sizes[row])
        made.append(encode_mask(resized_mask(decode_rle(rle), height, width))["counts"])
    return mask_rows(len(rows), sizes[rows, 0], sizes[rows, 1], pa.array(made, pa.string()))
