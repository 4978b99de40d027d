"""Polygons as masks, exactly as COCO's rasteriser (rleFrPoly of pycocotools) draws them, many at a time.

pycocotools draws one polygon at a time and keeps all other threads from running meanwhile. It walks along every edge on a grid five
times as fine as the pixels; what counts of it is the row at which an edge crosses the middle of each column. Here only
these crossings are computed, for all edges at once, with the same numbers: a mask changes at each of them, down the columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SCALE = 5  # the grid: fine steps in a pixel
MIDDLE = SCALE // 2  # a column is crossed between this step and the next one
FAR = float(1 << 40)  # coordinates beyond are drawn as if they were there
CROSSINGS = 1 << 17  # about as many are computed at a time, so that they stay in the cache
PIXELS = 1 << 32  # of all masks of a chunk: places are numbered through with 32 bits
TEXT_BYTES = 1 << 31


def polygon_rles(values: Floats, lengths: Ints, height: Ints, width: Ints) -> pa.Array:
    """The compressed run lengths of polygons, each drawn alone on an image of height x width pixels.

    values: x0, y0, x1, y1, ... of all, finite; lengths: how many numbers each has. Polygons of less than three points are empty.
    """
    texts, sizes = [], []
    for chunk in _chunks(values, lengths, height, width):
        text, size = _texts(*_runs(_crossings(chunk), chunk))
        texts.append(text)
        sizes.append(size)
    data = np.concatenate([np.zeros(0, np.uint8), *texts])
    offsets = np.cumsum(np.concatenate([[0], *sizes]))
    kind, width_of = (pa.string(), np.int32) if len(data) < TEXT_BYTES else (pa.large_string(), np.int64)
    buffers = [None, pa.py_buffer(offsets.astype(width_of)), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind, len(lengths), buffers)


@dataclass(frozen=True)
class _Chunk:
    """Some polygons. points: (n, 2); first: where those of each begin; base: the number of its first pixel among all."""

    points: Floats
    first: Ints
    height: Ints
    width: Ints
    base: Ints


def _chunks(values: Floats, lengths: Ints, height: Ints, width: Ints) -> Iterator[_Chunk]:
    """The polygons, some at a time: at least one, or so many that bounds of crossings and pixels hold."""
    points = (
        values[: len(values) // 2 * 2].reshape(-1, 2) if not (lengths & 1).any() else _even(values, lengths)
    )
    number = lengths // 2
    ends = np.cumsum(number)
    pixels = height * width + 1  # and one for the end
    spans = np.cumsum(_widths(points, ends, number))
    areas = np.cumsum(pixels)
    lo = 0
    while lo < len(lengths):
        done, covered = (int(spans[lo - 1]), int(areas[lo - 1])) if lo else (0, 0)
        few = int(np.searchsorted(spans, done + CROSSINGS, side="right"))
        small = int(np.searchsorted(areas, covered + PIXELS - 1, side="right"))
        hi = max(lo + 1, min(few, small))
        start = int(ends[lo] - number[lo])
        yield _Chunk(
            points[start : int(ends[hi - 1])],
            ends[lo:hi] - number[lo:hi] - start,
            height[lo:hi],
            width[lo:hi],
            areas[lo:hi] - pixels[lo:hi] - covered,
        )
        lo = hi


def _even(values: Floats, lengths: Ints) -> Floats:
    """The points of lists of which some have a number too many."""
    keep = np.ones(len(values), bool)
    keep[np.cumsum(lengths)[lengths & 1 == 1] - 1] = False
    return values[keep].reshape(-1, 2)


def _widths(points: Floats, ends: Ints, number: Ints) -> Ints:
    """About how often the edges of each polygon cross columns: twice its width."""
    some = np.flatnonzero(number)
    out = np.ones(len(number), np.int64)
    if len(some):
        starts = (ends - number)[some]
        extent = np.maximum.reduceat(points[:, 0], starts) - np.minimum.reduceat(points[:, 0], starts)
        out[some] += (2 * np.minimum(extent, CROSSINGS)).astype(np.int64)
    return out


def _crossings(chunk: _Chunk) -> npt.NDArray[np.uint32]:
    """The numbers of the pixels at which masks change, in no order."""
    number = np.diff(np.append(chunk.first, len(chunk.points)))
    fine = np.trunc(SCALE * np.clip(chunk.points, -FAR, FAR) + 0.5)
    following = np.arange(1, len(fine) + 1)
    some = number > 0
    following[(chunk.first + number)[some] - 1] = chunk.first[some]
    owner = np.repeat(np.arange(len(number)), np.where(number < 3, 0, number))
    if (number < 3).any():
        long = np.repeat(number >= 3, number)
        begin, end = fine[long], fine[following[long]]
    else:
        begin, end = fine, fine[following]
    xs, ys, xe, ye = begin[:, 0], begin[:, 1], end[:, 0], end[:, 1]
    dx, dy = np.abs(xe - xs), np.abs(ye - ys)
    flat = dx >= dy
    swap = np.where(flat, xs > xe, ys > ye)
    xs, xe = np.where(swap, xe, xs), np.where(swap, xs, xe)
    ys, ye = np.where(swap, ye, ys), np.where(swap, ys, ye)
    low, high = np.minimum(xs, xe), np.maximum(xs, xe)
    first = np.maximum(np.ceil((low - MIDDLE) / SCALE), 0)
    last = np.minimum(np.floor((high - MIDDLE - 1) / SCALE), chunk.width[owner] - 1)
    count = np.maximum(last - first + 1, 0).astype(np.int64)
    slope = np.where(flat, ye - ys, xe - xs) / np.maximum(np.where(flat, dx, dy), 1)
    rows = _Edges(xs, ys, slope, first, count, chunk.height[owner], chunk.base[owner])
    return np.concatenate([rows.of(flat & (count > 0)).flat(), rows.of(~flat & (count > 0)).steep()])


@dataclass(frozen=True)
class _Edges:
    """Edges on the fine grid. count: the columns that each crosses, from `first` on; slope: by steps of its longer side."""

    x: Floats
    y: Floats
    slope: Floats
    first: Floats
    count: Ints
    height: Ints
    base: Ints

    def of(self, which: npt.NDArray[np.bool_]) -> _Edges:
        """Some of the edges."""
        return _Edges(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def flat(self) -> npt.NDArray[np.uint32]:
        """The crossings of edges that are at least as wide as high: the grid's row before or after the middle, the upper of both."""
        start = SCALE * self.first + MIDDLE - self.x + (self.slope < 0)
        step = self._each(start - SCALE * self._places()) + SCALE * np.arange(
            self.count.sum(), dtype=np.float64
        )
        step *= self._each(self.slope)
        step += self._each(self.y)
        step += 0.5
        return self._pixels(step)

    def steep(self) -> npt.NDArray[np.uint32]:
        """The crossings of edges that are higher than wide: the grid's row of the last step before the middle of a column."""
        x, slope = self._each(self.x), self._each(self.slope)
        middle = self._each(SCALE * (self.first - self._places()) + MIDDLE + 1)
        middle += SCALE * np.arange(len(middle), dtype=np.float64)
        right = slope > 0
        step = (middle - 0.5 - x) / slope
        step = np.where(right, np.ceil(step), np.floor(step) + 1)  # the first step beyond, but for rounding:
        step -= (x + slope * (step - 1) + 0.5 >= middle) == right
        step += (x + slope * step + 0.5 >= middle) != right
        step += self._each(self.y) - 1
        return self._pixels(step)

    def _places(self) -> Ints:
        """Where the crossings of each edge begin."""
        return np.cumsum(self.count) - self.count

    def _each(self, values: Any) -> Any:
        """A value of the edges for each of their crossings."""
        return np.repeat(values, self.count)

    def _pixels(self, rows: Floats) -> npt.NDArray[np.uint32]:
        """The numbers of the pixels on the rows of the fine grid, columns following one another."""
        height = self._each(self.height.astype(np.int32))
        row = np.clip(rows, -SCALE, SCALE * (height + 1.0)).astype(
            np.int32
        )  # beyond, it does not matter where
        row += SCALE - 1 - MIDDLE
        row //= SCALE
        np.clip(row, 0, height, out=row)
        column = np.arange(len(row), dtype=np.int64)
        column += self._each(self.first.astype(np.int64) - self._places())
        column *= height
        column += self._each(self.base)
        column += row
        return column.astype(np.uint32)


def _runs(crossings: npt.NDArray[np.uint32], chunk: _Chunk) -> tuple[Ints, Ints]:
    """(the run lengths of all masks, how many each has): from crossing to crossing, where two at one place are none."""
    ends = (chunk.base + chunk.height * chunk.width).astype(np.uint32)
    places = np.concatenate([crossings, ends])
    places.sort(kind="stable")  # edges come one after the other, each in order: that one is quick with such
    fresh = np.append(True, places[1:] != places[:-1])
    starts = np.flatnonzero(fresh)
    places = places[starts]
    odd = np.diff(np.append(starts, len(fresh))) & 1 == 1
    odd[np.searchsorted(places, ends)] = True
    places = places[odd]
    last = np.searchsorted(places, ends)
    runs = np.diff(places.astype(np.int64), prepend=-1)
    first = np.append(0, last[:-1] + 1)
    runs[first] -= 1  # the one number for the end
    return runs, last - first + 1


def _texts(runs: Ints, sizes: Ints) -> tuple[npt.NDArray[np.uint8], Ints]:
    """(the characters of all masks, how many each has): from the fourth run on its difference to the one before the last,
    5 bits a character, low ones first, 0x20 where more follow."""
    kind = np.int32 if runs.max(initial=0) < 1 << 30 else np.int64
    runs = runs.astype(kind)
    numbers = runs.copy()
    numbers[2:] -= runs[:-2]
    first = np.cumsum(sizes) - sizes
    for k in range(3):
        at = first[sizes > k] + k
        numbers[at] = runs[at]
    size = np.ones(len(numbers), np.uint8)
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    longer = np.flatnonzero(magnitude >= 1 << 4)
    for bits in (9, 14, 19, 24, 29, 34):
        size[longer] += 1
        longer = longer[magnitude[longer] >= 1 << bits]
        if not len(longer):
            break
    ends = np.cumsum(size, dtype=np.int64)
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    out[ends - 1] = (numbers & 0x1F) + kind(48)  # right where there is one character
    longer = np.flatnonzero(size > 1)
    numbers, left, place = numbers[longer], size[longer], ends[longer] - size[longer]
    while len(numbers):
        out[place] = (numbers & 0x1F) + kind(48) + np.where(left > 1, kind(0x20), kind(0))
        goes_on = left > 1
        numbers, left, place = numbers[goes_on] >> kind(5), left[goes_on] - np.uint8(1), place[goes_on] + 1
    last = np.cumsum(sizes) - 1
    return out, np.diff(ends[last], prepend=0)
