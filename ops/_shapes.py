"""Corners and outlines of shapes."""

from __future__ import annotations

import numpy as np

from rayds.ops._geometry import Floats

ELLIPSE_CORNERS = 64


def corners_of(boxes: Floats) -> Floats:
    """The corners of rotated boxes (centre, size, degrees), shape (n, 4, 2), as RotatedBbox.corners has them."""
    cx, cy, w, h, r = boxes.T
    cos, sin = np.cos(np.radians(r)), np.sin(np.radians(r))
    dx = np.stack([-w, w, w, -w], 1) / 2
    dy = np.stack([-h, -h, h, h], 1) / 2
    x = cx[:, None] + dx * cos[:, None] - dy * sin[:, None]
    y = cy[:, None] + dx * sin[:, None] + dy * cos[:, None]
    return np.stack([x, y], 2)


def outlines_of_ellipses(boxes: Floats) -> list[Floats]:
    """Polygons of 64 corners on ellipses given by x1, y1, x2, y2, shape (n, 4)."""
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
    x1, y1, x2, y2 = (boxes[:, k, None] for k in range(4))
    x = (x1 + x2) / 2 + (x2 - x1) / 2 * np.cos(angle)
    y = (y1 + y2) / 2 + (y2 - y1) / 2 * np.sin(angle)
    return list(np.stack([x, y], 2).reshape(len(boxes), 2 * ELLIPSE_CORNERS))
