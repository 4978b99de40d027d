"""Segments that overlap or belong together: crop_covered_segments, merge_instance_segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayds.annotations import decode_rle, encode_mask
from rayds.engine.base import Block
from rayds.errors import DataError
from rayds.format import with_errors
from rayds.geometry import mask_outlines, merge_rles
from rayds.losses import lose
from rayds.op import Op
from rayds.ops._drawing import drawn, outlines
from rayds.ops._geometry import (
    Ints,
    T,
    columns_of,
    replaced,
    rows_of,
    sized,
    sizes_of,
    without_stale,
)
from rayds.options import Options, option
from rayds.schema import MASK_TYPE, Flat, flat, list_of, mask_rows, with_annotations

STALE = {"coco": ("area", "bbox")}
Rle = dict[str, Any]


def rles_of(columns: dict[str, pa.Array], view: Flat, rows: Ints, sizes: Ints) -> list[Rle]:
    """Some masks and polygons as compressed run lengths; sizes: (height, width) of the image of each."""
    types = view.type[rows]
    out: list[Rle] = [{}] * len(rows)
    masks = np.flatnonzero(types == T.mask)
    for k, m in zip(masks.tolist(), columns["mask"].take(pa.array(rows[masks])).to_pylist(), strict=True):
        out[k] = {"size": [m["height"], m["width"]], "counts": m["counts"]}
    shapes = np.flatnonzero(types == T.polygon)
    texts = drawn(outlines(columns, view.type, rows[shapes]), sizes[shapes])
    for k, text in zip(shapes.tolist(), texts.to_pylist(), strict=True):
        out[k] = {"size": sizes[k].tolist(), "counts": text}
    return out


def sized_segments(block: Block) -> tuple[Block, dict[int, DataError]]:
    """(the block with the sizes of its images, the rows with segments that can't be drawn)."""
    view = flat(block)
    concerned = set(view.item[np.isin(view.type, (T.polygon, T.mask))].tolist())
    block, failed = sized(block) if concerned else (block, {})
    return block, {row: error for row, error in failed.items() if row in concerned}


@dataclass
class Changes:
    """What becomes of the annotations of a block: rows that go, masks and polygons that others become."""

    gone: set[int]
    masks: dict[int, Rle]
    polygons: dict[int, list[list[float]]]

    def made(self, block: Block, view: Flat, columns: dict[str, pa.Array]) -> Block:
        """The block with the changes."""
        if not (self.gone or self.masks or self.polygons):
            return block
        repeats = np.ones(len(view), np.int64)
        repeats[list(self.gone)] = 0
        for row, parts in self.polygons.items():
            repeats[row] = len(parts)
        source = np.repeat(np.arange(len(view)), repeats)
        out = {name: column.take(pa.array(source)) for name, column in columns.items()}
        is_mask = np.isin(source, list(self.masks))
        rows = np.flatnonzero(is_mask)
        if len(rows):
            rles = [self.masks[r] for r in source[rows].tolist()]
            size = np.array([r["size"] for r in rles])
            counts = pa.array([r["counts"] for r in rles], pa.string())
            out["mask"] = replaced(out["mask"], rows, mask_rows(len(rows), size[:, 0], size[:, 1], counts))
            out["points"] = replaced(out["points"], rows, pa.nulls(len(rows), out["points"].type))
            out["type"] = replaced(out["type"], rows, pa.array(np.full(len(rows), int(T.mask)), pa.int8()))
        changed = np.flatnonzero(np.isin(source, list(self.polygons)))
        if len(changed):
            parts = [p for row in sorted(self.polygons) for p in self.polygons[row]]
            values = list_of(
                pa.array(np.concatenate([np.asarray(p) for p in parts])),
                np.array([len(p) for p in parts], np.int64),
            )
            out["points"] = replaced(out["points"], changed, values)
            out["mask"] = replaced(out["mask"], changed, pa.nulls(len(changed), MASK_TYPE))
        touched = np.zeros(len(source), bool)
        touched[rows] = touched[changed] = True
        out["extra"] = without_stale(out["extra"], touched, STALE)
        counts_ = np.bincount(view.item[source], minlength=block.num_rows)
        return with_annotations(block, rows_of(out), counts_)


class CropCoveredSegments(Op):
    """Cuts away of polygons and masks what others above them cover.

    Higher z_order is above, and of equals the later one. Segments of one group don't cut each other. A segment that lies
    on another cuts a hole in it. What is covered wholly has nothing to see: it is left out, and counted. Polygons that
    are cut are drawn and traced again, in as many parts as they have now; others stay as they are.
    """

    name = "crop_covered_segments"
    title = "cut away what other segments cover"

    def apply(self, block: Block) -> Block:
        block, failed = sized_segments(block)
        block, errors = self.good_rows(block, failed)
        view = flat(block)
        columns = columns_of(view.rows)
        rows = np.flatnonzero(np.isin(view.type, (T.polygon, T.mask)))
        changes = Changes(set(), {}, {})
        covered = np.zeros(block.num_rows, np.int64)
        small = np.zeros(block.num_rows, np.int64)
        if len(rows):
            sizes = sizes_of(block)[view.item[rows]]
            rles = rles_of(columns, view, rows, sizes)
            z, group = view.numpy("z_order")[rows], view.numpy("group")[rows]
            for mine in _by_item(view.item[rows]):
                order = mine[np.argsort(z[mine], kind="stable")]
                for k, image in _visible([rles[i] for i in order], group[order].tolist()).items():
                    at = int(rows[order[k]])
                    item = int(view.item[at])
                    if image is None:
                        changes.gone.add(at)
                        covered[item] += 1
                    elif view.type[at] == T.mask:
                        changes.masks[at] = encode_mask(image)
                    else:
                        found = mask_outlines(image)
                        small[item] += found.small
                        if found.polygons:
                            changes.polygons[at] = found.polygons
                        else:
                            changes.gone.add(at)
        out = changes.made(block, view, columns)
        out = lose(out, "segments wholly covered by others, left out", covered)
        out = lose(out, "uncovered parts of polygons too small for a polygon, left out", small)
        return with_errors(out, errors) if errors else out


def _by_item(item: Ints) -> list[Ints]:
    """The positions of each item that occurs more than once."""
    starts = np.flatnonzero(np.append(True, item[1:] != item[:-1]))
    return [part for part in np.split(np.arange(len(item)), starts[1:]) if len(part) > 1]


def _visible(rles: list[Rle], groups: list[int]) -> dict[int, Any]:
    """What is left of those of an image's segments, the lowest first, that others cover: an image, or None for nothing."""
    from pycocotools import mask as coco_mask

    boxes = np.asarray(coco_mask.toBbox(rles), float)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    out: dict[int, Any] = {}
    for k in range(len(rles) - 1):
        meet = (low[k + 1 :] < high[k]).all(1) & (high[k + 1 :] > low[k]).all(1)
        above = [
            k + 1 + int(j)
            for j in np.flatnonzero(meet)
            if not groups[k] or groups[k + 1 + int(j)] != groups[k]
        ]
        if not above:
            continue
        top = merge_rles([rles[j] for j in above])
        if not coco_mask.area(coco_mask.merge([rles[k], top], intersect=True)):
            continue
        left = decode_rle(rles[k]) & ~decode_rle(top)
        out[k] = left if left.any() else None
    return out


class MergeInstanceSegments(Op):
    """Makes one mask of the masks (and polygons) of a group; it has the label, id and attributes of the largest of them.

    Annotations without a group stay as they are, and so does a group of a single segment, unless it is a polygon
    that --include-polygons takes in.
    """

    name = "merge_instance_segments"
    title = "merge the masks of each group into one"

    @dataclass(frozen=True)
    class Options(Options):
        include_polygons: bool = option(False, help="merge polygons, too")

    def apply(self, block: Block) -> Block:
        from pycocotools import mask as coco_mask

        view = flat(block)
        kinds = (T.mask, T.polygon) if self.options.include_polygons else (T.mask,)
        if not np.isin(view.type, kinds).any():
            return block
        block, failed = sized_segments(block)
        block, errors = self.good_rows(block, failed)
        view = flat(block)
        columns = columns_of(view.rows)
        group = view.numpy("group").astype(np.int64)
        rows = np.flatnonzero(np.isin(view.type, kinds) & (group > 0))
        changes = Changes(set(), {}, {})
        if len(rows):
            rles = rles_of(columns, view, rows, sizes_of(block)[view.item[rows]])
            areas = np.asarray(coco_mask.area(rles), np.int64)
            order = np.lexsort((rows, group[rows], view.item[rows]))
            keys = np.stack([view.item[rows[order]], group[rows[order]]])
            starts = np.flatnonzero(np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0)))
            for part in np.split(order, starts[1:]):
                if len(part) == 1 and view.type[rows[part[0]]] == T.mask:
                    continue
                leader = int(part[np.argmax(areas[part])])
                changes.masks[int(rows[leader])] = merge_rles([rles[k] for k in part])
                changes.gone |= {int(rows[k]) for k in part} - {int(rows[leader])}
        out = changes.made(block, view, columns)
        return with_errors(out, errors) if errors else out
