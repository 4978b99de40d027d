"""tile: every image as a grid of overlapping parts, each an item of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds import options as base
from rayds.categories import Categories
from rayds.engine.base import Block
from rayds.errors import DataError, UsageError
from rayds.format import with_errors
from rayds.item import dump_json
from rayds.losses import lose
from rayds.op import Op
from rayds.ops._cutting import cut, running
from rayds.ops._geometry import (
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
)
from rayds.ops._tiles import FAMILY, IMAGE, OUTER, ROI, TILE_ID, TILE_IDX
from rayds.schema import annotation_rows, flat, single_chunk, with_annotations


class Tile(Op):
    """Divides every image into a grid of parts that overlap; annotations are cut at their borders.

    The parts of an item `a` are `a_tile_0`, `a_tile_1`, ..., row by row. Attributes of each: tile_id, the id of the
    whole; tile_idx, its number; roi, x, y, width, height in the whole; tile_image, width and height of the whole.
    merge_tile is the inverse. Raises DataError, under the policy for bad items, for an image with fewer pixels than
    the grid has rows or columns, and for one whose size is not known. Items without an image stay.
    """

    name = "tile"
    title = "images divided into a grid of overlapping parts"
    keeps_ids = False
    keeps_items = False

    @dataclass(frozen=True)
    class Options(base.Options):
        grid_size: tuple[int, ...] = base.option(help="rows and columns of the grid", words=2)
        overlap: tuple[float, ...] = base.option(
            (0.1, 0.1), help="part of a tile's height, and width, that it shares with the next", words=2
        )
        threshold_drop_ann: float = base.option(
            0.5, help="leave out objects of which a smaller share is in a tile"
        )

    def prepare(self, categories: Categories) -> Categories:
        o = self.options
        if len(o.grid_size) != 2 or min(o.grid_size) < 1:
            raise UsageError("--grid-size: rows and columns, each 1 or more")
        if len(o.overlap) != 2 or not all(0 <= v < 1 for v in o.overlap):
            raise UsageError("--overlap: two numbers from 0 to below 1, of the height and of the width")
        if not 0 <= o.threshold_drop_ann <= 1:
            raise UsageError("--threshold-drop-ann: a number from 0 to 1")
        return categories

    def apply(self, block: Block) -> Block:
        block, failed = sized(block)
        size = sizes_of(block)
        rows, columns = self.options.grid_size
        ids = single_chunk(block, "id")
        for row in np.flatnonzero(
            (size > 0).all(1) & ((size[:, 0] < rows) | (size[:, 1] < columns))
        ).tolist():
            told = DataError(
                f"an image of {size[row, 1]}x{size[row, 0]} pixels has no {rows} rows and {columns} columns of tiles",
                item=ids[row].as_py(),
                remedy="Take a coarser grid, or leave such items out (--on-error skip)",
            )
            failed.setdefault(row, told)
        good = np.array([i not in failed for i in range(block.num_rows)], bool)
        block, errors = self.good_rows(block, failed)
        if block.num_rows:
            block = self._tiles(block, size[good])
        return with_errors(block, errors) if errors else block

    def _tiles(self, block: Block, size: Ints) -> Block:
        o = self.options
        spans = [_spans(size[:, k], o.grid_size[k], o.overlap[k]) for k in (0, 1)]
        each = o.grid_size[0] * o.grid_size[1]
        divided: Bools = np.asarray((size > 0).all(1))
        counts = np.where(divided, each, 1)
        item = np.repeat(np.arange(block.num_rows), counts)
        number = running(counts)
        windows = _windows(spans, item, number, o.grid_size[1])
        view = flat(block)
        annotation, tile = _pairs(view, spans, divided)
        first = np.cumsum(counts) - counts
        target = first[view.item[annotation]] + tile
        order = np.lexsort([annotation, target])
        annotation, target = annotation[order], target[order]
        whole = view.rows.take(pa.array(annotation))
        made = cut(whole, target, windows[target], o.threshold_drop_ann, annotation)
        source = annotation[made.source]
        rows = _marked(made.rows, source - view.offsets[view.item[source]], made.parted)
        rest = np.flatnonzero(~divided[view.item])  # what has no image stays as it is
        rows = pa.concat_arrays([rows, view.rows.take(pa.array(rest))])
        owner = np.concatenate([target[made.source], first[view.item[rest]]])
        rows = rows.take(pa.array(np.argsort(owner, kind="stable")))
        gone = divided[view.item]
        gone[annotation[made.source]] = False
        lost = np.bincount(first[view.item[gone]], minlength=len(item))
        bare = with_annotations(block, annotation_rows(0), np.zeros(block.num_rows, np.int64))
        out = with_annotations(bare.take(pa.array(item)), rows, np.bincount(owner, minlength=len(item)))
        out = lose(out, "annotations with too small a share in every tile", lost)
        steps = [{"crop": w} if d else None for d, w in zip(divided[item], windows.tolist(), strict=True)]
        out = with_edits(out, steps, windows[:, :1:-1])
        return _named(out, number, windows, size[item], divided[item])


def _spans(length: Ints, n: int, overlap: float) -> tuple[Ints, Ints]:
    """Begin and end of n tiles along a side of some images, shape (images, n) each: equal ones, up to a pixel.

    n tiles of the length t that share `overlap` of it with the next are t * (n - (n - 1) * overlap) long together.
    """
    t = length / (n - (n - 1) * overlap)
    begin = np.outer(t * (1 - overlap), np.arange(n))
    low, high = np.floor(begin + 0.5).astype(np.int64), np.floor(begin + t[:, None] + 0.5).astype(np.int64)
    # two roundings of one place may differ
    high[:, :-1] = np.maximum(high[:, :-1], low[:, 1:]) if overlap else low[:, 1:]
    high[:, -1] = length
    return low, np.maximum(high, low + 1)


def _windows(spans: list[tuple[Ints, Ints]], item: Ints, number: Ints, columns: int) -> Ints:
    """x, y, width, height of tiles by their item and number, shape (tiles, 4)."""
    row, column = number // columns, number % columns
    (top, bottom), (left, right) = spans
    y, x = top[item, row], left[item, column]
    return np.stack([x, y, right[item, column] - x, bottom[item, row] - y], 1)


def _pairs(view: Any, spans: list[tuple[Ints, Ints]], divided: Bools) -> tuple[Ints, Ints]:
    """(annotation, number of the tile) wherever an annotation may reach into a tile of its item."""
    low, high = enclosing(view)
    touches = []
    for axis, (begin, end) in ((1, spans[0]), (0, spans[1])):
        a, b = low[:, axis, None], high[:, axis, None]
        touches.append((b >= begin[view.item]) & (a <= end[view.item]))
    pairs = touches[0][:, :, None] & touches[1][:, None, :]
    pairs[~divided[view.item]] = False
    annotation, row, column = np.nonzero(pairs)
    return annotation, row * pairs.shape[2] + column


def enclosing(view: Any) -> tuple[Floats, Floats]:
    """The lowest and highest x and y of annotations, shape (n, 2) each; without bounds for those that have no
    place, and for key points, which may be absent."""
    n = len(view)
    low, high = np.full((n, 2), -np.inf), np.full((n, 2), np.inf)
    numbers, types = Numbers.of(view.column("points")), view.type
    which = np.flatnonzero(types == T.bbox)
    boxes = numbers.matrix(which, 4)
    low[which], high[which] = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    which = np.flatnonzero(types == T.ellipse)
    boxes = numbers.matrix(which, 4).reshape(-1, 2, 2)
    low[which], high[which] = boxes.min(1), boxes.max(1)
    which = np.flatnonzero(types == T.rotated_bbox)
    boxes = numbers.matrix(which, 5)
    around = np.hypot(boxes[:, 2], boxes[:, 3])[:, None] / 2
    low[which], high[which] = boxes[:, :2] - around, boxes[:, :2] + around
    which = np.flatnonzero(np.isin(types, (T.polygon, T.polyline)) & (numbers.lengths >= 2))
    if len(which):
        lengths = numbers.lengths[which]
        points = numbers.values[np.repeat(numbers.starts[which], lengths) + running(lengths)].reshape(-1, 2)
        starts = np.cumsum(lengths // 2) - lengths // 2
        low[which], high[which] = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    _enclose_masks(view, np.flatnonzero(types == T.mask), low, high)
    return low, high


def _enclose_masks(view: Any, which: Ints, low: Floats, high: Floats) -> None:
    from pycocotools import mask as coco_mask

    if not len(which):
        return
    told = view.column("mask").take(pa.array(which)).to_pylist()
    rles = [{"size": [m["height"], m["width"]], "counts": m["counts"]} for m in told]
    boxes = np.asarray(coco_mask.toBbox(rles), np.float64).reshape(-1, 4)
    low[which], high[which] = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]


def _marked(rows: pa.StructArray, place: Ints, parted: Bools) -> pa.StructArray:
    """The annotations with their place in the whole item, by which merge_tile finds those that belong together."""
    columns = columns_of(rows)
    extra = columns["extra"]
    tails = pa.array(np.where(parted, ',"ungrouped":true}}', "}}"), pa.string())
    texts = pa.array(place).cast(pa.string())
    own = pc.binary_join_element_wise(f'"{FAMILY}":{{"tile":', texts, tails, "")
    before = pc.coalesce(
        pc.binary_join_element_wise(pc.utf8_slice_codeunits(extra, 0, -1), ",", ""), pa.scalar("{")
    )
    made = pc.binary_join_element_wise(before, own, "")
    told = pc.fill_null(pc.match_substring(extra, f'"{FAMILY}":'), False).to_numpy(zero_copy_only=False)
    again = np.flatnonzero(told)  # parts of parts
    nested = []
    for row in again.tolist():
        values = json.loads(extra[row].as_py())
        outer = values.pop(FAMILY)
        member = {"tile": int(place[row]), **({"ungrouped": True} if parted[row] else {}), "outer": outer}
        nested.append(dump_json({**values, FAMILY: member}))
    columns["extra"] = replaced(made, again, pa.array(nested, pa.string()))
    return rows_of(columns)


def _named(block: Block, number: Ints, windows: Ints, size: Ints, divided: Bools) -> Block:
    """The tiles with their ids and attributes."""
    ids, attributes = single_chunk(block, "id").to_pylist(), single_chunk(block, "attributes").to_pylist()
    for i in np.flatnonzero(divided).tolist():
        own = {
            TILE_ID: ids[i],
            TILE_IDX: int(number[i]),
            ROI: windows[i].tolist(),
            IMAGE: size[i, ::-1].tolist(),
        }
        text = attributes[i]
        if text and f'"{TILE_ID}":' in text:  # a tile of a tile
            told = json.loads(text)
            outer = {k: told.pop(k) for k in (TILE_ID, TILE_IDX, ROI, IMAGE, OUTER) if k in told}
            text, own = dump_json(told), {**own, OUTER: outer}
        more = json.dumps(own, ensure_ascii=False, separators=(",", ":"))
        attributes[i] = f"{text[:-1]},{more[1:]}" if text else more
        ids[i] = f"{ids[i]}_tile_{number[i]}"
    for name, values in (("id", ids), ("attributes", attributes)):
        index = block.schema.get_field_index(name)
        block = block.set_column(index, block.schema.field(name), pa.array(values, pa.string()))
    return block
