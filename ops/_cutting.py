"""Annotations of a part of an image: all types cut at the borders of the part, in its coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.annotations import RotatedBbox, decode_rle, encode_mask
from rayds.geometry import polygon_areas
from rayds.ops._clipping import Line, Rect, area, clip_line, clip_polygon, length
from rayds.ops._geometry import (
    PLACELESS,
    Bools,
    Floats,
    Ints,
    Numbers,
    T,
    any_of,
    columns_of,
    objects_of,
    replaced,
    rows_of,
    visibilities,
    without_stale,
)
from rayds.schema import mask_rows

# What `extra` says that is no longer so where the part begins elsewhere, and where a shape is smaller than it was.
MOVED = {"coco": ("bbox",), "voc": ("bndbox",)}
CUT = {"coco": ("area", "bbox", "num_keypoints", "@visibility"), "voc": ("bndbox",)}
AREAS = (T.polygon, T.mask)
FOLLOWERS = (T.polygon, T.mask, T.bbox, T.ellipse, T.rotated_bbox)


@dataclass
class Pieces:
    """The annotations of parts. rows: what is there; source: the row each was cut from, ascending; parted: whether
    it is one of several of a row that had no group, tied by a new one."""

    rows: pa.StructArray
    source: Ints
    parted: Bools


def cut(
    rows: pa.StructArray, item: Ints, windows: Ints, threshold: float = 0.0, origin: Ints | None = None
) -> Pieces:
    """The annotations of parts of images.

    item: the item of each annotation, ascending; windows: the part of the image of each annotation, x, y, width,
    height, shape (n, 4); origin: equal for rows that are one annotation, which spares work. threshold: objects of which a smaller share is in the part are left out, and at 0 those
    wholly outside. The share is of the area of an object's masks and polygons where it has any (its boxes stay and go with them), else
    of that of the shape, of the length of a line, of the number of points that are not absent. Labels, captions and
    cuboids have no place: they stay.
    """
    return _Cutting(rows, item, windows, origin).pieces(threshold)


class _Cutting:
    def __init__(self, rows: pa.StructArray, item: Ints, windows: Ints, origin: Ints | None) -> None:
        n = len(rows)
        self.origin = np.arange(n) if origin is None else origin
        self.columns = columns_of(rows)
        self.types = self.columns["type"].to_numpy(zero_copy_only=False)
        self.item, self.windows = item, windows
        self.size = windows[:, 2:].astype(np.float64)
        self.total, self.visible = np.zeros(n), np.zeros(n)  # in the unit of the type
        self.there = np.isin(self.types, PLACELESS)  # whether anything of the row is in the part
        self.changed = np.zeros(n, bool)  # smaller than it was
        self.parts: dict[int, list[Line]] = {}  # polygons and lines that were cut
        self.masks: dict[int, str] = {}
        self.numbers = Numbers.of(self.columns["points"])
        self.seen: dict[int, Any] = {}
        self._move()
        for kind, work in (
            (T.bbox, self._boxes),
            (T.polygon, self._outlines),
            (T.polyline, self._outlines),
            (T.points, self._points),
            (T.ellipse, self._ellipses),
            (T.rotated_bbox, self._rotated),
            (T.mask, self._masks),
        ):
            which = np.flatnonzero(self.types == kind)
            if len(which):
                work(which)

    def _move(self) -> None:
        """Coordinates of the part instead of the image; absent points stay where they are."""
        n = self.numbers
        types = self.types[n.owner]
        moves = np.isin(types, (T.polygon, T.polyline, T.points, T.ellipse))
        moves |= np.isin(types, (T.bbox, T.rotated_bbox)) & (n.position < 2)
        which = np.flatnonzero(self.types == T.points)
        self.point_rows = which
        self.point_seen = visibilities(self.columns, which, n.lengths)
        if len(which):
            where = np.flatnonzero(types == T.points)
            moves[where[np.repeat(self.point_seen == 0, 2)]] = False
        origin = self.windows[n.owner, n.position % 2]
        n.values[moves] -= origin[moves]

    def _boxes(self, which: Ints) -> None:
        boxes = self.numbers.matrix(which, 4)
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        size = self.size[which]
        new_low, new_high = np.clip(low, 0, size), np.clip(high, 0, size)
        self.total[which] = boxes[:, 2] * boxes[:, 3]
        extent = new_high - new_low
        self.visible[which] = extent.prod(1)
        flat = (boxes[:, 2:] <= 0).any(1)
        within = ((low >= 0) & (high <= size)).all(1)
        self.there[which] = np.where(flat, within, (extent > 0).all(1))
        self.changed[which] = ~within
        made = np.hstack([new_low, extent])
        self.numbers.put(which[~within], made[~within])

    def _enclosing(self, which: Ints) -> tuple[Floats, Floats]:
        """The lowest and highest x and y of rows that have points, shape (n, 2) each."""
        n = self.numbers
        lengths = n.lengths[which]
        index = np.repeat(n.starts[which], lengths) + running(lengths)
        points = n.values[index].reshape(-1, 2)
        starts = np.cumsum(lengths // 2) - lengths // 2
        return np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)

    def _outlines(self, which: Ints) -> None:
        """Polygons and polylines."""
        which = which[self.numbers.lengths[which] >= 2]
        if not len(which):
            return
        closed = self.types[which[0]] == T.polygon
        low, high = self._enclosing(which)
        size = self.size[which]
        within = ((low >= 0) & (high <= size)).all(1)
        outside = ((low >= size) | (high <= 0)).any(1) & ~within
        self.there[which[within]] = True
        self.total[which] = 1
        if closed:
            lengths = self.numbers.lengths[which]
            index = np.repeat(self.numbers.starts[which], lengths) + running(lengths)
            self.total[which] = polygon_areas(self.numbers.values[index], lengths)
        self.visible[which[within]] = self.total[which[within]]
        for row in which[~within & ~outside].tolist():
            begin = self.numbers.starts[row]
            shape = self.numbers.values[begin : begin + self.numbers.lengths[row]].reshape(-1, 2)
            self._cut_outline(row, shape, closed)

    def _cut_outline(self, row: int, shape: Line, closed: bool) -> None:
        rect: Rect = (0.0, 0.0, float(self.size[row, 0]), float(self.size[row, 1]))
        parts = clip_polygon(shape, rect) if closed else clip_line(shape, rect)
        measure = area if closed else length
        self.total[row] = abs(measure(shape))
        self.visible[row] = sum(abs(measure(p)) for p in parts)
        self.there[row] = bool(parts)
        self.changed[row] = True
        self.parts[row] = parts

    def _points(self, which: Ints) -> None:
        n = self.numbers
        lengths = n.lengths[which]
        index = np.repeat(n.starts[which], lengths) + running(lengths)
        points = n.values[index].reshape(-1, 2)
        owner = np.repeat(np.arange(len(which)), lengths // 2)
        size = self.size[which][owner]
        inside = ((points >= 0) & (points <= size)).all(1)
        seen = self.point_seen
        self.total[which] = np.bincount(owner[seen > 0], minlength=len(which))
        self.visible[which] = np.bincount(owner[(seen > 0) & inside], minlength=len(which))
        self.there[which] = (self.visible[which] > 0) | (self.total[which] == 0)
        gone = (seen > 0) & ~inside
        n.values[index[np.repeat(gone, 2)]] = 0
        self.changed[which] = self.visible[which] < self.total[which]
        if gone.any():
            offsets = np.append(0, np.cumsum(lengths // 2)).astype(np.int32)
            made = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.where(gone, 0, seen), pa.int8()))
            self.columns["visibility"] = replaced(self.columns["visibility"], which, made)

    def _ellipses(self, which: Ints) -> None:
        """An ellipse stays whole, also where it reaches over a border; there: whether a point of it is inside."""
        x1, y1, x2, y2 = self.numbers.matrix(which, 4).T
        size = self.size[which]
        center, radius = np.stack([x1 + x2, y1 + y2], 1) / 2, np.abs(np.stack([x2 - x1, y2 - y1], 1)) / 2
        nearest = np.clip(center, 0, size)  # in a space where it is a circle, the part is still a rectangle
        with np.errstate(divide="ignore", invalid="ignore"):
            away = np.where(radius > 0, (nearest - center) / radius, np.where(nearest == center, 0, np.inf))
        self.there[which] = np.hypot(*away.T) < 1
        within = ((center - radius >= 0) & (center + radius <= size)).all(1)
        self.total[which] = self.visible[which] = 1
        angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        circle = np.stack([np.cos(angle), np.sin(angle)], 1)
        for k in np.flatnonzero(self.there[which] & ~within).tolist():
            self._share(int(which[k]), center[k] + circle * radius[k])

    def _rotated(self, which: Ints) -> None:
        """A rotated box stays whole, also where it reaches over a border."""
        self.total[which] = 1
        for row, (cx, cy, w, h, r) in zip(
            which.tolist(), self.numbers.matrix(which, 5).tolist(), strict=True
        ):
            corners = np.array(RotatedBbox(cx, cy, w, h, r).corners()).reshape(4, 2)
            self.there[row] = True
            self._share(row, corners)

    def _share(self, row: int, outline: Line) -> None:
        """The share in the part of a shape that is not cut itself, by its outline."""
        size = self.size[row]
        if area(outline) == 0:
            self.there[row] = bool(((outline >= 0) & (outline <= size)).all(1).any())
            return
        inside = sum(abs(area(p)) for p in clip_polygon(outline, (0.0, 0.0, float(size[0]), float(size[1]))))
        self.total[row], self.visible[row] = abs(area(outline)), inside
        self.there[row] &= inside > 0

    def _masks(self, which: Ints) -> None:
        which = which[np.argsort(self.origin[which], kind="stable")]  # each is decoded once
        told = self.columns["mask"].take(pa.array(which))
        texts = pc.struct_field(told, "counts").to_pylist()
        sizes = zip(*(pc.struct_field(told, n).to_pylist() for n in ("height", "width")), strict=True)
        known, image = -1, np.zeros((0, 0), bool)
        for row, counts, size in zip(which.tolist(), texts, sizes, strict=True):
            if self.origin[row] != known:
                known, image = self.origin[row], decode_rle({"size": list(size), "counts": counts})
            x, y, w, h = self.windows[row].tolist()
            part = image[y : y + h, x : x + w]
            self.total[row], self.visible[row] = np.count_nonzero(image), np.count_nonzero(part)
            self.there[row] = self.visible[row] > 0
            self.changed[row] = self.visible[row] < self.total[row]
            if self.there[row]:
                self.masks[row] = encode_mask(part)["counts"]

    # what stays

    def pieces(self, threshold: float) -> Pieces:
        objects = objects_of(self.item, self.columns)
        keep = self._kept(objects, threshold)
        changed = any_of(objects, self.changed)
        extra = without_stale(self.columns["extra"], changed, CUT)
        moved = ~changed & (self.windows[:, :2] != 0).any(1)
        self.columns["extra"] = without_stale(extra, moved, MOVED)
        self._put_masks()
        whole = keep.copy()
        whole[list(self.parts)] = False
        cut_rows = [r for r in sorted(self.parts) if keep[r]]
        shapes = [p for r in cut_rows for p in self.parts[r]]
        owner = np.repeat(np.array(cut_rows, np.int64), [len(self.parts[r]) for r in cut_rows])
        points = self.numbers.column(self.columns["points"])
        offsets = np.append(0, np.cumsum([p.size for p in shapes])).astype(np.int32)
        values = np.concatenate([p.ravel() for p in shapes]) if shapes else np.zeros(0)
        both = pa.concat_arrays([points, pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))])
        kept = np.flatnonzero(whole)
        source = np.concatenate([kept, owner])
        order = np.argsort(source, kind="stable")
        place = np.concatenate([kept, len(points) + np.arange(len(owner))])[order]
        source = source[order]
        taken = pa.array(source)
        out = {name: column.take(taken) for name, column in self.columns.items() if name != "points"}
        out["points"] = both.take(pa.array(place))
        parted = self._tie(out, source)
        return Pieces(rows_of(out), source, parted)

    def _kept(self, objects: Ints, threshold: float) -> Bools:
        shape = np.isin(self.types, AREAS)
        n = len(objects)
        total = np.bincount(objects[shape], self.total[shape], n)[objects]
        visible = np.bincount(objects[shape], self.visible[shape], n)[objects]
        follows = np.isin(self.types, FOLLOWERS) & (total > 0)
        total, visible = np.where(follows, total, self.total), np.where(follows, visible, self.visible)
        with np.errstate(divide="ignore", invalid="ignore"):
            # a shape of no area is there or not; what sums of floats lose is not to decide
            share = np.where(total > 0, visible / total, 1.0) + 1e-9
        placeless = np.isin(self.types, PLACELESS)
        enough = (share >= threshold) & ((visible > 0) | (total == 0) | placeless)
        keep: Bools = self.there & (enough | placeless)
        points = self.types == T.points  # they stay, all absent, while others of their object do
        companions = objects != np.arange(n)
        np.logical_or.at(companions, objects[companions], True)
        keep |= points & companions & any_of(objects, keep & ~points)
        return keep

    def _put_masks(self) -> None:
        rows = np.array(sorted(self.masks), np.int64)
        counts = pa.array([self.masks[r] for r in rows.tolist()], pa.string())
        made = mask_rows(len(rows), self.windows[rows, 3], self.windows[rows, 2], counts)
        self.columns["mask"] = replaced(self.columns["mask"], rows, made)

    def _tie(self, out: dict[str, pa.Array], source: Ints) -> Bools:
        own = self.columns["group"].fill_null(0).to_numpy(zero_copy_only=False)
        out["group"], loose = tied(out["group"], source, self.item[source], highest_groups(own, self.item))
        return loose


def highest_groups(group: Ints, item: Ints) -> Ints:
    """The highest group of each item (ascending), by its number."""
    highest = np.zeros(int(item[-1]) + 1 if len(item) else 0, np.int64)
    np.maximum.at(highest, item, group)
    return highest


def tied(column: pa.Array, source: Ints, item: Ints, highest: Ints) -> tuple[pa.Array, Bools]:
    """(groups of annotations, those that are new): parts of one annotation without a group, that is rows that follow
    one another and have one source, are one object still. item: of each row, ascending; highest: group of each item."""
    group = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    again = np.zeros(len(source), bool)
    again[1:] = source[1:] == source[:-1]
    several = again.copy()
    several[:-1] |= again[1:]
    loose: Bools = several & (group == 0)
    if not loose.any():
        return column, loose
    rows = np.flatnonzero(loose)
    first = rows[~again[rows]]
    number = np.arange(len(first)) - np.searchsorted(item[first], item[first]) + 1
    group[rows] = (highest[item[first]] + number)[np.searchsorted(first, rows, side="right") - 1]
    return pa.array(group, pa.int64()), loose


def running(lengths: Ints) -> Ints:
    """0 to length - 1 for each length, one after the other."""
    running: Ints = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return running
