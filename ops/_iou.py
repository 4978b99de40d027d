"""How alike annotations of one type are: from 0 (nothing in common) to 1 (equal), for all pairs of two lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rayds.annotations import Annotation, Points, Polygon, PolyLine
from rayds.schema import AnnotationType as T

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AREAS = frozenset((T.bbox, T.rotated_bbox, T.ellipse, T.polygon, T.mask))
PAIRS = 1 << 20  # pairs of boxes that are looked at at a time

SIGMA = 0.1  # of key points, where a dataset does not tell
PIXELS = 4 << 20  # of the canvas on which polygons without an image are drawn


def box_iou(a: Any, b: Any) -> Floats:
    """IoU of boxes x, y, w, h, shape (n, 4) and (m, 4): (n, m)."""
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    return _pairwise_box_iou(a[:, None], b[None])


def _pairwise_box_iou(a: Floats, b: Floats) -> Floats:
    """IoU of boxes, shape (..., 4) each, one with one."""
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    either = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both
    return np.where(either > 0, both / np.where(either > 0, either, 1), 0.0)


def two_boxes_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """The same for two boxes, in plain Python: NumPy takes ten times as long for so few numbers."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = a[2] * a[3] + b[2] * b[3] - both
    return both / either if either > 0 else 0.0


def mask_iou(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> Floats:
    """IoU of compressed run lengths: (n, m); 0 between masks of different sizes."""
    from pycocotools import mask as coco_mask

    out = np.zeros((len(a), len(b)))
    sizes = {tuple(m["size"]) for m in (*a, *b)}
    for size in sizes:
        rows = [i for i, m in enumerate(a) if tuple(m["size"]) == size]
        columns = [j for j, m in enumerate(b) if tuple(m["size"]) == size]
        if rows and columns:
            found = coco_mask.iou([a[i] for i in rows], [b[j] for j in columns], [0] * len(columns))
            out[np.ix_(rows, columns)] = found
    return out


def polygon_iou(a: Sequence[Polygon], b: Sequence[Polygon]) -> Floats:
    """IoU of polygons: (n, m), drawn on a canvas around those that overlap; finer than pixels where they are small."""
    boxes_a, boxes_b = ([p.get_bbox() for p in some] for some in (a, b))
    out = np.zeros((len(a), len(b)))
    for i, j in zip(*np.nonzero(box_iou(boxes_a, boxes_b)), strict=True):
        out[i, j] = _drawn_iou(a[i].points, b[j].points)
    return out


def _drawn_iou(a: Sequence[float], b: Sequence[float]) -> float:
    import cv2

    pair = [np.asarray(points, float).reshape(-1, 2) for points in (a, b)]
    if pair[0].shape == pair[1].shape and (pair[0] == pair[1]).all():
        return 1.0
    low = np.minimum(pair[0].min(0), pair[1].min(0))
    size = np.maximum(pair[0].max(0), pair[1].max(0)) - low
    scale = min(16.0, 512 / max(float(size.max()), 1e-9), (PIXELS / max(float(size.prod()), 1e-9)) ** 0.5)
    width, height = (np.ceil(size * scale).astype(int) + 2).tolist()
    drawn = []
    for points in pair:
        canvas = np.zeros((height, width), np.uint8)
        # corners in sixteenths of a pixel
        cv2.fillPoly(canvas, [np.round((points - low) * scale * 16).astype(np.int32)], 1, shift=4)
        drawn.append(canvas)
    either = int(np.count_nonzero(drawn[0] | drawn[1]))
    return float(np.count_nonzero(drawn[0] & drawn[1]) / either) if either else 0.0


def points_oks(a: Sequence[Points], b: Sequence[Points], sigma: float = SIGMA) -> Floats:
    """Object key point similarity, over the points that are not absent in the first: (n, m)."""
    out = np.zeros((len(a), len(b)))
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            if len(one.points) != len(other.points):
                continue
            p, q = (np.asarray(x.points, float).reshape(-1, 2) for x in (one, other))
            seen = np.asarray(one.visibility) > 0
            if not seen.any():
                continue
            x, y, w, h = one.get_bbox()
            del x, y
            area = max(w * h, 1.0)
            apart = ((p - q) ** 2).sum(1)[seen]
            out[i, j] = float(np.exp(-apart / (2 * area * (2 * sigma) ** 2)).mean())
    return out


def line_likeness(a: Sequence[PolyLine], b: Sequence[PolyLine], steps: int = 32) -> Floats:
    """1 minus the mean distance of polylines, at `steps` places along them, in parts of their extent: (n, m)."""
    out = np.zeros((len(a), len(b)))
    paths_a, paths_b = ([_along(line.points, steps) for line in some] for some in (a, b))
    for i, p in enumerate(paths_a):
        for j, q in enumerate(paths_b):
            both = np.concatenate([p, q])
            extent = max(float(np.ptp(both, axis=0).max()), 1.0)
            apart = min(np.hypot(*(p - q).T).mean(), np.hypot(*(p - q[::-1]).T).mean())
            out[i, j] = max(0.0, 1 - apart / extent)
    return out


def _along(points: Sequence[float], steps: int) -> Floats:
    p = np.asarray(points, float).reshape(-1, 2)
    lengths = np.append(0, np.cumsum(np.hypot(*np.diff(p, axis=0).T))) if len(p) > 1 else np.zeros(1)
    at = np.linspace(0, lengths[-1], steps)
    return np.stack([np.interp(at, lengths, p[:, k]) for k in (0, 1)], 1)


def likeness(kind: T, a: Sequence[Annotation], b: Sequence[Annotation]) -> Floats:
    """How alike the annotations of two lists of one type are: (n, m)."""
    some_a: Any = a
    some_b: Any = b
    if kind is T.mask:
        return mask_iou([m.rle for m in some_a], [m.rle for m in some_b])
    if kind is T.polygon:
        return polygon_iou(some_a, some_b)
    if kind is T.points:
        return points_oks(some_a, some_b)
    if kind is T.polyline:
        return line_likeness(some_a, some_b)
    if kind in (T.bbox, T.ellipse, T.rotated_bbox):
        return box_iou([x.get_bbox() for x in a], [x.get_bbox() for x in b])
    return np.array([[float(_bare(x) == _bare(y)) for y in b] for x in a]).reshape(len(a), len(b))


def alike_pairs(kind: T, annotations: Sequence[Annotation], least: float) -> tuple[Ints, Ints, Floats]:
    """(i, j, how alike) of the pairs i < j of a list that are `least` alike or more, and not 0.

    Of shapes with an area only those are looked at whose boxes overlap: memory and time are theirs, not those of all pairs.
    """
    if kind not in AREAS:
        found = np.triu(likeness(kind, annotations, annotations), 1)
        i, j = np.nonzero((found >= least) & (found > 0))
        return i, j, found[i, j]
    boxes = np.array([x.get_bbox() for x in annotations], float).reshape(-1, 4)
    parts = [(i, j, _area_likeness(kind, annotations, boxes, i, j)) for i, j in _overlapping(boxes)]
    kept = [(i[keep], j[keep], v[keep]) for i, j, v in parts for keep in [(v >= least) & (v > 0)]]
    none = np.zeros(0, np.int64)
    i, j, value = (np.concatenate([none, *(p[k] for p in kept)]) for k in range(3))
    order = np.lexsort((j, i))
    return i[order].astype(np.int64), j[order].astype(np.int64), value[order]


def _area_likeness(kind: T, annotations: Sequence[Annotation], boxes: Floats, i: Ints, j: Ints) -> Floats:
    """IoU of the pairs i, j of shapes of one of the types AREAS."""
    some: Any = annotations
    if kind is T.polygon:
        return np.array(
            [_drawn_iou(some[a].points, some[b].points) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
        )
    if kind is not T.mask:
        return _pairwise_box_iou(boxes[i], boxes[j])
    out = np.zeros(len(i))
    order = np.argsort(i, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(i[order]) != 0)) if len(i) else order
    for rows in np.split(order, starts[1:]):
        if len(rows):
            out[rows] = mask_iou([some[i[rows[0]]].rle], [some[k].rle for k in j[rows].tolist()])[0]
    return out


def _overlapping(boxes: Floats) -> Iterator[tuple[Ints, Ints]]:
    """The pairs i < j of boxes that overlap, some at a time."""
    order = np.argsort(boxes[:, 0], kind="stable")
    low, high = boxes[order, :2], boxes[order, :2] + boxes[order, 2:]
    # A box overlaps those that begin after it and before its end, along x.
    count = np.maximum(np.searchsorted(low[:, 0], high[:, 0]) - np.arange(len(boxes)) - 1, 0)
    sums = np.cumsum(count)
    cuts = np.searchsorted(sums, np.arange(PAIRS, int(sums[-1]) if len(sums) else 0, PAIRS))
    for start, end in pairwise([0, *np.unique(cuts[cuts > 0]).tolist(), len(boxes)]):
        n = count[start:end]
        a = np.repeat(np.arange(start, end), n)
        b = a + 1 + np.arange(len(a)) - np.repeat(np.cumsum(n) - n, n)
        both = (low[a, 1] < high[b, 1]) & (low[b, 1] < high[a, 1])
        i, j = order[a[both]], order[b[both]]
        yield np.minimum(i, j), np.maximum(i, j)


def _bare(annotation: Annotation) -> Annotation:
    """An annotation without what does not make it another one."""
    return annotation.wrap(id=0, group=0, attributes={}, z_order=0, extra={})
