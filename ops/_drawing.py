"""Shapes drawn as masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rayds.ops._geometry import Floats, Ints, Numbers, T
from rayds.ops._shapes import corners_of, outlines_of_ellipses
from rayds.raster import polygon_rles


def outlines(columns: dict[str, pa.Array], types: Any, rows: Ints) -> tuple[Floats, Ints]:
    """(x0, y0, x1, y1, ... of the outlines of some shapes, how many numbers each has)."""
    numbers = Numbers.of(columns["points"].take(pa.array(rows)))
    kinds = types[rows]
    made: dict[int, Floats] = {}
    boxes = np.flatnonzero(kinds == T.bbox)
    if len(boxes):
        x, y, w, h = numbers.matrix(boxes, 4).T
        corners = np.stack([x, y, x + w, y, x + w, y + h, x, y + h], 1)
        made.update(zip(boxes.tolist(), corners, strict=True))
    turned = np.flatnonzero(kinds == T.rotated_bbox)
    if len(turned):
        corners = corners_of(numbers.matrix(turned, 5)).reshape(len(turned), -1)
        made.update(zip(turned.tolist(), corners, strict=True))
    round_ = np.flatnonzero(kinds == T.ellipse)
    if len(round_):
        made.update(zip(round_.tolist(), outlines_of_ellipses(numbers.matrix(round_, 4)), strict=True))
    if not made:
        return numbers.values, numbers.lengths
    parts = np.split(numbers.values, numbers.starts[1:])
    parts = [made.get(k, part) for k, part in enumerate(parts)]
    return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)


def drawn(shapes: tuple[Floats, Ints], sizes: Ints) -> pa.Array:
    """The compressed run lengths of outlines, each drawn on an image of its (height, width)."""
    return polygon_rles(*shapes, sizes[:, 0], sizes[:, 1])
