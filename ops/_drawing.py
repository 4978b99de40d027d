"""Shapes drawn as masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayds.ops._geometry import Floats, Ints, Numbers, T
from rayds.ops._shapes import corners_of, outlines_of_ellipses


def outlines(columns: dict[str, pa.Array], types: Any, rows: Ints) -> list[Floats]:
    """The outline of each of some shapes as x0, y0, x1, y1, ..."""
    numbers = Numbers.of(columns["points"].take(pa.array(rows)))
    made = np.split(numbers.values, numbers.starts[1:]) if len(rows) else []
    kinds = types[rows]
    boxes = np.flatnonzero(kinds == T.bbox)
    if len(boxes):
        x, y, w, h = numbers.matrix(boxes, 4).T
        corners = np.stack([x, y, x + w, y, x + w, y + h, x, y + h], 1)
        for k, corner in zip(boxes.tolist(), corners, strict=True):
            made[k] = corner
    turned = np.flatnonzero(kinds == T.rotated_bbox)
    if len(turned):
        for k, corner in zip(turned.tolist(), corners_of(numbers.matrix(turned, 5)), strict=True):
            made[k] = corner.ravel()
    round_ = np.flatnonzero(kinds == T.ellipse)
    if len(round_):
        for k, outline in zip(round_.tolist(), outlines_of_ellipses(numbers.matrix(round_, 4)), strict=True):
            made[k] = outline
    return made


def drawn(shapes: Sequence[Floats], sizes: Ints) -> list[str]:
    """The compressed run lengths of outlines, each drawn on an image of its (height, width)."""
    from pycocotools import mask as coco_mask

    out: list[str] = []
    lists = [shape.tolist() for shape in shapes]
    ends = np.flatnonzero((sizes[1:] != sizes[:-1]).any(1)) + 1  # one call for each run of one size
    for lo, hi in zip([0, *ends.tolist()], [*ends.tolist(), len(lists)], strict=True):
        if lo == hi:
            continue
        height, width = sizes[lo].tolist()
        flat_ones = [k for k in range(lo, hi) if len(lists[k]) < 6]  # no area: pycocotools refuses them
        full = [lists[k] for k in range(lo, hi) if len(lists[k]) >= 6]
        made = iter(coco_mask.frPyObjects(full, height, width) if full else [])
        empty = _empty(height, width) if flat_ones else ""
        out += [empty if len(lists[k]) < 6 else next(made)["counts"].decode("ascii") for k in range(lo, hi)]
    return out


def _empty(height: int, width: int) -> str:
    from pycocotools import mask as coco_mask

    counts: bytes = coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))["counts"]
    return counts.decode("ascii")
