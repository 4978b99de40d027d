"""Annotations of tiles put together again: those that are parts of one annotation become one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.annotations import decode_rle, encode_mask
from rayds.ops._clipping import Cuts, Line, clip_line, clip_polygon, join_lines, join_rings
from rayds.ops._cutting import highest_groups, tied
from rayds.ops._geometry import (
    Bools,
    Ints,
    Numbers,
    T,
    changed_texts,
    columns_of,
    replaced,
    rows_of,
    visibilities,
)
from rayds.schema import mask_rows

MARK = r'\{?,?"rayds":\{"tile":(?P<place>[0-9]+)(?P<loose>,"ungrouped":true)?\}\}$'
BY_PLACE, BY_ID, ALONE = 0, 1, 2  # how it is known which annotations of tiles are one


@dataclass
class Tiled:
    """Annotations of tiles, ordered by the item they go to, then by tile. item, tile: of each; rois: x, y, width,
    height of each one's tile in the whole; sizes: (height, width) of the whole, of each."""

    rows: pa.StructArray
    item: Ints
    tile: Ints
    rois: Ints
    sizes: Ints


def merged(tiled: Tiled) -> tuple[pa.StructArray, Ints]:
    """(the annotations of whole items, the item of each)."""
    if not len(tiled.rows):
        return tiled.rows, tiled.item
    return _Merging(tiled).result()


class _Merging:
    def __init__(self, tiled: Tiled) -> None:
        self.tiled = tiled
        self.columns = columns_of(tiled.rows)
        self.types = self.columns["type"].to_numpy(zero_copy_only=False)
        self._move()
        self.place, self.loose = self._take_marks()
        self.first, self.how = self._clusters()
        self.shapes: dict[int, list[Line]] = {}  # of polygons and lines of several parts, by first row

    def _move(self) -> None:
        """Coordinates of the whole instead of the tile; absent points have none."""
        n = Numbers.of(self.columns["points"])
        types = self.types[n.owner]
        moves = np.isin(types, (T.polygon, T.polyline, T.points, T.ellipse))
        moves |= np.isin(types, (T.bbox, T.rotated_bbox)) & (n.position < 2)
        points = np.flatnonzero(self.types == T.points)
        self.seen = visibilities(self.columns, points, n.lengths)
        moves[np.flatnonzero(types == T.points)[np.repeat(self.seen == 0, 2)]] = False
        n.values[moves] += self.tiled.rois[n.owner, n.position % 2][moves]
        self.numbers = n

    def _take_marks(self) -> tuple[Ints, Bools]:
        """(the place in the whole item that `tile` has noted, -1 where it has not; whether the group is new);
        the notes are taken out of `extra`."""
        extra = self.columns["extra"]
        found = pc.extract_regex(extra, MARK)
        noted = pc.struct_field(found, "place")
        has = noted.is_valid().to_numpy(zero_copy_only=False)
        place = noted.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False).copy()
        loose = pc.fill_null(pc.equal(pc.struct_field(found, "loose"), ',"ungrouped":true'), False)
        loose = loose.to_numpy(zero_copy_only=False).copy()
        bare = pc.replace_substring_regex(extra, MARK, "}")
        bare = pc.if_else(pc.equal(bare, "}"), pa.scalar(None, pa.string()), bare)
        self.columns["extra"] = pc.if_else(pa.array(has), bare, extra)
        other = pc.fill_null(pc.match_substring(extra, '"rayds":{"tile":'), False).to_numpy(
            zero_copy_only=False
        )
        odd = np.flatnonzero(other & ~has)  # tiles of tiles, or with fields after it
        for row in odd.tolist():
            mark = json.loads(extra[row].as_py())["rayds"]
            place[row], loose[row] = int(mark["tile"]), bool(mark.get("ungrouped"))
        self.columns["extra"] = changed_texts(self.columns["extra"], odd, _unmarked)
        return place, loose

    def _clusters(self) -> tuple[Ints, Ints]:
        """(the first row of those that are one annotation with it, how that is known), of every row."""
        group, id_, label = (
            self.columns[n].fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            for n in ("group", "id", "label")
        )
        how = np.where(self.place >= 0, BY_PLACE, np.where((group > 0) | (id_ > 0), BY_ID, ALONE))
        zero = np.zeros(len(how), np.int64)
        keys = [self.tiled.item, self.types.astype(np.int64), how]
        keys += [np.where(how == BY_PLACE, self.place, np.where(how == BY_ID, group, np.arange(len(how))))]
        keys += [np.where(how == BY_ID, v, zero) for v in (id_, label)]
        first = _same(keys)
        # Two boxes of one group in one tile can't be parts of one box: then nobody knows which belong together.
        several = np.isin(self.types, (T.polygon, T.polyline, T.mask)) | (how != BY_ID)
        twice = _twice(first, self.tiled.tile) & ~several
        unclear = np.isin(first, first[twice])
        how = np.where(unclear, ALONE, how)
        alone = np.flatnonzero(how == ALONE)
        first = first.copy()
        first[alone] = alone
        # what has nothing to be known by is one where it is the same in every respect (where tiles overlap)
        known: dict[Any, int] = {}
        names = ("type", "label", "id", "group", "z_order", "text", "attributes")
        texts = [self.columns[n].take(pa.array(alone)).to_pylist() for n in names]
        for k, row in enumerate(alone.tolist()):
            begin = self.numbers.starts[row]
            at = tuple(np.round(self.numbers.values[begin : begin + self.numbers.lengths[row]], 6).tolist())
            if self.types[row] == T.mask:
                at = (row,)
            key = (int(self.tiled.item[row]), *(t[k] for t in texts), at)
            other = known.setdefault(key, row)
            if other == row or self.tiled.tile[other] != self.tiled.tile[row]:
                first[row] = other
        return first, how

    def result(self) -> tuple[pa.StructArray, Ints]:
        size = np.bincount(self.first, minlength=len(self.first))
        several = size[self.first] > 1
        self._boxes(np.flatnonzero(several & (self.types == T.bbox) & (self.how != ALONE)))
        for kind, work in (
            (T.points, self._points),
            (T.polygon, self._outlines),
            (T.polyline, self._outlines),
            (T.mask, self._masks),
        ):
            chosen = (self.types == kind) & (several | (kind == T.mask))
            rows = np.flatnonzero(chosen)
            order = rows[np.argsort(self.first[rows], kind="stable")]
            bounds = np.flatnonzero(np.append(True, np.diff(self.first[order]) != 0)) if len(order) else order
            clusters = np.split(order, bounds[1:]) if len(order) else []
            if clusters:
                work(clusters)
        return self._assembled()

    def _boxes(self, rows: Ints) -> None:
        if not len(rows):
            return
        rows = rows[np.argsort(self.first[rows], kind="stable")]
        starts = np.flatnonzero(np.append(True, np.diff(self.first[rows]) != 0))
        boxes = self.numbers.matrix(rows, 4)
        low = np.minimum.reduceat(boxes[:, :2], starts)
        high = np.maximum.reduceat(boxes[:, :2] + boxes[:, 2:], starts)
        self.numbers.put(self.first[rows[starts]], np.hstack([low, high - low]))

    def _points(self, clusters: Sequence[Ints]) -> None:
        """Of each point what the first tile says in which it is not absent."""
        rows = np.flatnonzero(self.types == T.points)
        begins = np.cumsum(self.numbers.lengths[rows] // 2) - self.numbers.lengths[rows] // 2
        at = dict(zip(rows.tolist(), begins.tolist(), strict=True))
        seen = self.seen.copy()
        changed = False
        for cluster in clusters:
            head = int(cluster[0])
            n = int(self.numbers.lengths[head]) // 2
            for row in cluster[1:].tolist():
                if self.numbers.lengths[row] != 2 * n:
                    continue
                own, other = seen[at[head] : at[head] + n], self.seen[at[row] : at[row] + n]
                for k in np.flatnonzero((own == 0) & (other > 0)).tolist():
                    own[k] = other[k]
                    begin, source = self.numbers.starts[head] + 2 * k, self.numbers.starts[row] + 2 * k
                    self.numbers.values[begin : begin + 2] = self.numbers.values[source : source + 2]
                    changed = True
        if changed:
            offsets = np.append(0, np.cumsum(self.numbers.lengths[rows] // 2)).astype(np.int32)
            made = pa.ListArray.from_arrays(pa.array(offsets), pa.array(seen, pa.int8()))
            self.columns["visibility"] = replaced(self.columns["visibility"], rows, made)

    def _shape(self, row: int) -> Line:
        begin = self.numbers.starts[row]
        return self.numbers.values[begin : begin + self.numbers.lengths[row]].reshape(-1, 2)

    def _outlines(self, clusters: Sequence[Ints]) -> None:
        """Polygons and lines: whole where a tile has them whole, else cut into pieces that don't overlap, and joined."""
        for cluster in clusters:
            head = int(cluster[0])
            closed = self.types[head] == T.polygon
            if self.how[head] != BY_ID:
                whole = next((r for r in cluster.tolist() if self._is_whole(r)), None)
                if whole is not None:
                    self.shapes[head] = [self._shape(whole)]
                    continue
            pieces, cuts = self._pieces(cluster, clip_polygon if closed else clip_line)
            made = join_rings(pieces, cuts) if closed else join_lines(pieces, cuts)
            self.shapes[head] = made if made else pieces

    def _is_whole(self, row: int) -> bool:
        """Whether a shape does not reach the borders at which its tile was cut."""
        x, y, w, h = self.tiled.rois[row].tolist()
        height, width = self.tiled.sizes[row].tolist()
        (left, top), (right, bottom) = self._shape(row).min(0), self._shape(row).max(0)
        return bool(
            (x == 0 or left > x)
            and (y == 0 or top > y)
            and (x + w == width or right < x + w)
            and (y + h == height or bottom < y + h)
        )

    def _pieces(self, cluster: Ints, clip: Callable[..., list[Line]]) -> tuple[list[Line], Cuts]:
        """The parts of a shape in the fields that all borders of its tiles make: of each field those of one tile."""
        rois = {
            int(t): r
            for t, r in zip(self.tiled.tile[cluster], self.tiled.rois[cluster].tolist(), strict=True)
        }
        xs = sorted({v for x, _, w, _ in rois.values() for v in (x, x + w)})
        ys = sorted({v for _, y, _, h in rois.values() for v in (y, y + h)})
        found: list[Line] = []
        told: set[bytes] = set()
        for x0, x1 in itertools.pairwise(xs):
            for y0, y1 in itertools.pairwise(ys):
                tile = next(
                    (
                        t
                        for t, (x, y, w, h) in rois.items()
                        if x <= x0 and x1 <= x + w and y <= y0 and y1 <= y + h
                    ),
                    None,
                )
                for row in cluster[self.tiled.tile[cluster] == tile].tolist() if tile is not None else ():
                    for part in clip(self._shape(row), (x0, y0, x1, y1)):
                        if part.tobytes() not in told:  # a line along a border is in the fields of both sides
                            told.add(part.tobytes())
                            found.append(part)
        return found, (frozenset(map(float, xs)), frozenset(map(float, ys)))

    def _masks(self, clusters: Sequence[Ints]) -> None:
        heads, texts = [], []
        for cluster in clusters:
            head = int(cluster[0])
            image = np.zeros(tuple(self.tiled.sizes[head]), bool)
            for row, told in zip(
                cluster.tolist(), self.columns["mask"].take(pa.array(cluster)).to_pylist(), strict=True
            ):
                part = decode_rle({"size": [told["height"], told["width"]], "counts": told["counts"]})
                x, y, _, _ = self.tiled.rois[row]
                part = part[: image.shape[0] - y, : image.shape[1] - x]
                image[y : y + part.shape[0], x : x + part.shape[1]] |= part
            heads.append(head)
            texts.append(encode_mask(image)["counts"])
        rows = np.array(heads, np.int64)
        sizes = self.tiled.sizes[rows]
        made = mask_rows(len(rows), sizes[:, 0], sizes[:, 1], pa.array(texts, pa.string()))
        self.columns["mask"] = replaced(self.columns["mask"], rows, made)

    def _assembled(self) -> tuple[pa.StructArray, Ints]:
        heads = np.flatnonzero(self.first == np.arange(len(self.first)))
        loose = np.zeros(len(self.first), bool)
        np.logical_or.at(loose, self.first, self.loose)
        group = self.columns["group"].fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        group[loose] = 0
        self.columns["group"] = pa.array(group)
        place = np.where(self.place[heads] >= 0, self.place[heads], 1 << 40)
        heads = heads[np.lexsort([heads, place, self.tiled.item[heads]])]
        n_parts = np.array([len(self.shapes.get(h, [0])) for h in heads.tolist()], np.int64)
        source = np.repeat(heads, n_parts)
        cut_heads = [h for h in heads.tolist() if h in self.shapes]
        shapes = [p for h in cut_heads for p in self.shapes[h]]
        points = self.numbers.column(self.columns["points"])
        offsets = np.append(0, np.cumsum([p.size for p in shapes])).astype(np.int32)
        values = np.concatenate([p.ravel() for p in shapes]) if shapes else np.zeros(0)
        both = pa.concat_arrays([points, pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))])
        index = source.copy()
        index[np.isin(source, cut_heads)] = len(points) + np.arange(len(shapes))
        out = {n: c.take(pa.array(source)) for n, c in self.columns.items() if n != "points"}
        out["points"] = both.take(pa.array(index))
        item = self.tiled.item[source]
        out["group"], _ = tied(out["group"], source, item, highest_groups(group, self.tiled.item))
        return rows_of(out), item


def _unmarked(told: dict[str, Any]) -> dict[str, Any]:
    outer = told["rayds"].get("outer")
    return {**{k: v for k, v in told.items() if k != "rayds"}, **({"rayds": outer} if outer else {})}


def _same(keys: Sequence[Ints]) -> Ints:
    """The first row with the same keys, of every row."""
    order = np.lexsort(list(keys)[::-1])
    ordered = np.stack([k[order] for k in keys])
    new = np.append(True, (ordered[:, 1:] != ordered[:, :-1]).any(0))
    first = np.empty(len(order), np.int64)
    first[order] = np.minimum.reduceat(order, np.flatnonzero(new))[np.cumsum(new) - 1]
    return first


def _twice(first: Ints, tile: Ints) -> Bools:
    """Whether a row is not the only one of its cluster in its tile."""
    codes = _same([first, tile])
    counts = np.bincount(codes, minlength=len(codes))
    found: Bools = counts[codes] > 1
    return found
