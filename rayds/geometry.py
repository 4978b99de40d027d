"""Geometry of annotations: run lengths, outlines, areas. Compressed RLE is COCO's, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.annotations import BoolMask, decode_rle, encode_mask, normal_rle
from rayds.sql import joined_bytes

Rle = dict[str, Any]
_CHECKED = 1 << 20  # characters of run lengths that are looked at at a time, so that they stay in the cache
_DIGITS = 7  # characters of the longest number that `rle_runs` takes


def polygons_to_rle(polygons: Sequence[Sequence[float]], height: int, width: int) -> Rle:
    """One mask that covers all polygons (x0, y0, x1, y1, ...), drawn by COCO's rasteriser."""
    from pycocotools import mask as coco_mask

    parts = coco_mask.frPyObjects([list(p) for p in polygons], height, width)
    return normal_rle(coco_mask.merge(parts))


def merge_rles(rles: Sequence[Rle]) -> Rle:
    """The union of masks of one size."""
    from pycocotools import mask as coco_mask

    return rles[0] if len(rles) == 1 else normal_rle(coco_mask.merge(list(rles)))


def broken_rles(
    counts: pa.Array, height: npt.NDArray[np.int64], width: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which masks have compressed run lengths (strings; null: no mask) that do not fill height x width pixels.

    The same as rayds.annotations.rle_runs says of each, for many at a time.
    """
    none = counts.is_null().to_numpy(zero_copy_only=False)
    pixels = np.where(none, 0, height.astype(np.int64) * width)
    broken: npt.NDArray[np.bool_] = ~none & ((height < 0) | (width < 0) | (pixels >= 1 << 32))
    lengths = pc.fill_null(pc.binary_length(counts), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    broken |= (lengths == 0) & (pixels != 0)
    full = np.flatnonzero(lengths)
    if len(full) < len(lengths):
        counts = counts.take(pa.array(full))
    ends = np.cumsum(lengths[full])
    cuts = np.searchsorted(ends, np.arange(_CHECKED, int(ends[-1]) if len(ends) else 0, _CHECKED))
    for lo, hi in pairwise([0, *np.unique(cuts[cuts > 0]).tolist(), len(full)]):
        rows = full[lo:hi]
        codes = np.frombuffer(joined_bytes(counts.slice(lo, hi - lo)), np.uint8) - np.uint8(48)
        broken[rows] |= ~_filled(codes, lengths[rows], pixels[rows])
    return broken


def _filled(
    codes: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64], pixels: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which run lengths are right; codes: their characters less 48, one after the other; lengths: of each, none is 0."""
    if not len(lengths):
        return np.zeros(0, bool)
    more = codes >= 0x20  # a number is 5 bits a character, low ones first; 0x20: more follow
    mask_ends = np.cumsum(lengths)
    good = ~more[mask_ends - 1]
    more[mask_ends - 1] = False  # so that no number runs on into the next mask
    ends = np.flatnonzero(~more)
    numbers, long = _numbers(codes, more, ends)
    good[np.searchsorted(mask_ends, ends[long], side="right")] = False
    if codes.max() > 63:
        good[np.searchsorted(mask_ends, np.flatnonzero(codes > 63), side="right")] = False
    return good & _sums_fit(numbers, np.searchsorted(ends, mask_ends - lengths), pixels)


def _numbers(
    codes: npt.NDArray[np.uint8], more: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(the numbers that end at some characters, which of them are too long)."""
    signed = ((codes & 0x1F) ^ 0x10).astype(np.int8) - np.int8(16)  # as last characters, which have the sign
    numbers = signed[ends].astype(np.int64)
    longer = np.flatnonzero(more[ends - 1] & (ends > 0))
    place = ends[longer] - 1
    for _ in range(1, _DIGITS):
        numbers[longer] = numbers[longer] * 32 + (codes[place] & 0x1F)
        place -= 1
        goes_on = more[place] & (place >= 0)
        longer, place = longer[goes_on], place[goes_on]
        if not len(longer):
            break
    return numbers, longer


def _sums_fit(
    numbers: npt.NDArray[np.int64], first: npt.NDArray[np.int64], pixels: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether the runs of each mask are not negative and sum to its pixels; first: the place of its first number.

    Numbers from the fourth on are differences to the run before the last, so that runs are the sums of every other number;
    the first one stands for itself.
    """
    totals = numbers[first].copy()
    good: npt.NDArray[np.bool_] = totals >= 0
    numbers[first] = 0
    bounds = np.append(first, len(numbers))
    for parity in (0, 1):
        runs = np.cumsum(numbers[parity::2])
        starts = (bounds - parity + 1) // 2
        size = np.diff(starts)
        starts = starts[:-1]
        runs -= np.repeat(np.where(starts > 0, runs[np.maximum(starts - 1, 0)], 0), size) if len(runs) else 0
        some = np.flatnonzero(size)
        if len(some):
            good[some] &= np.minimum.reduceat(runs, starts[some]) >= 0
            totals[some] += np.add.reduceat(runs, starts[some])
    good &= totals == pixels
    return good


def rle_area(rle: Rle) -> int:
    """Pixels in the mask."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(rle))


def rle_bbox(rle: Rle) -> tuple[float, float, float, float]:
    """The enclosing box of a mask: x, y, width, height."""
    from pycocotools import mask as coco_mask

    x, y, w, h = map(float, coco_mask.toBbox(rle))
    return x, y, w, h


def mask_to_polygons(image: BoolMask, min_area: float = 1.0) -> list[list[float]]:
    """The outer outlines of a mask's parts, each x0, y0, x1, y1, ...; parts under min_area pixels are left out.

    Outlines run along pixel centres, so that drawing them gives the mask again up to its border pixels.
    """
    import cv2

    contours, _ = cv2.findContours(image.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    out = []
    for contour in contours:
        points = contour.reshape(-1, 2)
        if len(points) >= 3 and cv2.contourArea(contour) >= min_area:
            out.append(points.astype(float).ravel().tolist())
    return out


@dataclass
class Outlines:
    """The outlines of a mask's parts, each x0, y0, x1, y1, ...; how many parts were too small, how many holes there are."""

    polygons: list[list[float]]
    small: int = 0
    holes: int = 0


def mask_outlines(image: BoolMask, min_area: float = 1.0, keep_holes: bool = True) -> Outlines:
    """The outlines of a mask's parts along pixel centres; parts under min_area pixels are left out.

    keep_holes: a hole is tied to the outline by a line that is passed there and back, so that drawing the polygon (by the even-odd
    or the winding rule) leaves it out; else it is filled.
    """
    import cv2

    contours, tree = cv2.findContours(image.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found = Outlines([])
    for i, contour in enumerate(contours):
        if tree[0][i][3] >= 0:
            continue  # a hole, which comes with what it is in
        holes = [c for c, t in zip(contours, tree[0], strict=True) if t[3] == i]
        found.holes += len(holes)
        if len(contour) < 3 or cv2.contourArea(contour) < min_area:
            found.small += 1
            continue
        ring = contour.reshape(-1, 2)
        for hole in holes if keep_holes else ():
            ring = _tied(ring, hole.reshape(-1, 2))
        found.polygons.append(ring.astype(float).ravel().tolist())
    return found


def _tied(ring: npt.NDArray[Any], hole: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The ring with a way to a hole, around it, and back, from where they are nearest to each other."""
    apart = ((ring[:, None, :] - hole[None, :, :]) ** 2).sum(2)
    i, j = np.unravel_index(int(apart.argmin()), apart.shape)
    return np.concatenate([ring[: i + 1], hole[j:], hole[: j + 1], ring[i:]])


def rle_to_polygons(rle: Rle) -> list[list[float]]:
    """The outer outlines of a compressed RLE."""
    return mask_to_polygons(decode_rle(rle))


def polygon_areas(values: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The area (shoelace formula) of polygons given as one array of x, y and the number of numbers of each."""
    n = lengths // 2
    if not len(n) or not n.sum():
        return np.zeros(len(n))
    x, y = values[::2], values[1::2]
    ends = np.cumsum(n)
    starts = ends - n
    nonempty = n > 0
    following = np.arange(len(x)) + 1
    following[ends[nonempty] - 1] = starts[nonempty]
    cross = x * y[following] - x[following] * y
    sums = np.zeros(len(n))
    sums[nonempty] = np.add.reduceat(cross, starts[nonempty])
    return np.abs(sums) / 2


def enclosing_boxes(
    values: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The enclosing x, y, width, height of point lists, shape (n, 4); zeros for empty ones."""
    out = np.zeros((len(lengths), 4))
    n = lengths // 2
    nonempty = n > 0
    if nonempty.any():
        starts = (np.cumsum(n) - n)[nonempty]
        x, y = values[::2], values[1::2]
        x0, x1 = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
        y0, y1 = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
        out[nonempty] = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    return out


def crop_covered(rles: Sequence[Rle]) -> list[Rle | None]:
    """Masks of one image, the lowest first, each without what the ones above it cover; None where nothing is left."""
    covered: BoolMask | None = None
    out: list[Rle | None] = []
    for rle in reversed(rles):
        image = decode_rle(rle)
        visible = image if covered is None else image & ~covered
        out.append(encode_mask(visible) if visible.any() else None)
        covered = image if covered is None else covered | image
    return out[::-1]
