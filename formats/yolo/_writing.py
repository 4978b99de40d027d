"""A block of items to label files, list entries and images.meta lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
from rayds.format import WriteContext
from rayds.formats._images_meta import FILE as META_FILE
from rayds.formats._images_meta import images_meta_lines, subset_line
from rayds.formats.yolo._labels import LIMIT, Floats, Ints, line_texts, ranges, starts_of
from rayds.formats.yolo._shapes import corners_of, fractions_of
from rayds.schema import AnnotationType, Flat, flat, media_field, single_chunk

FRAGMENTS = ".fragments"

TYPES = AnnotationType


@dataclass
class Text:
    """Lines to be written, flat: annotation, class, numbers (counts[k] of them), item of each; items ascend."""

    rows: Ints
    label: npt.NDArray[Any]
    values: Floats
    counts: Ints
    item: Ints


def usable(block: pa.Table, ctx: WriteContext, types: Sequence[AnnotationType]) -> pa.Table:
    """The block without the items that can't be written, which are reported: unsafe ids, unknown sizes, bad numbers."""
    view = flat(block)
    wanted = np.isin(view.type, [int(t) for t in types]) & (view.numpy("label", -1) >= 0)
    unsized = np.zeros(block.num_rows, bool)
    unsized[view.item[wanted]] = True
    known = pc.and_(pc.is_valid(media_field(block, "width")), pc.is_valid(media_field(block, "height")))
    unsized &= ~known.to_numpy(zero_copy_only=False)
    unsafe = unsafe_ids(single_chunk(block, "id"))
    odd = np.zeros(block.num_rows, bool)
    odd[view.item[wanted & _odd_points(view)]] = True
    wrong = np.flatnonzero(unsized | unsafe | odd)
    if not len(wrong):
        return block
    ids, subsets = single_chunk(block, "id"), single_chunk(block, "subset")
    paths = media_field(block, "path")
    for i in wrong.tolist():
        item = ids[i].as_py()
        if unsafe[i]:
            error = DataError("the id is no safe file name", item=item, remedy="Rename the item")
        elif unsized[i]:
            error = DataError(
                "the image size, which YOLO boxes need, is not known",
                file=paths[i].as_py(),
                item=item,
                remedy="Put the image in its place or give its size in the source",
            )
        else:
            error = DataError("a coordinate is not a number or far too large", item=item)
        ctx.bad(error, subsets[i].as_py())
    keep = np.ones(block.num_rows, bool)
    keep[wrong] = False
    return block.filter(pa.array(keep)).combine_chunks()


def unsafe_ids(ids: pa.Array) -> npt.NDArray[np.bool_]:
    """Whether each id would leave the output folder, or break a list of files, as a file name."""
    found = pc.match_substring_regex(ids, r"(^|/)\.\.?(/|$)|^/|//|[\\\x00\r\n]|^[A-Za-z]:|^$|/$")
    unsafe: npt.NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return unsafe


def _odd_points(view: Flat) -> npt.NDArray[np.bool_]:
    """Whether each annotation has a coordinate that is no number, or too large to print."""
    lists = view.column("points")
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy()[offsets[0] : offsets[-1]] if len(offsets) else np.zeros(0)
    odd = np.zeros(len(view), bool)
    wrong = np.flatnonzero(~(np.abs(values) < LIMIT))
    if len(wrong):
        odd[np.searchsorted(offsets - offsets[0], wrong, side="right") - 1] = True
    return odd


class View:
    """The annotations of a block with the image sizes, ready to be turned into lines."""

    def __init__(self, block: pa.Table) -> None:
        self.flat = flat(block)
        self.items = block.num_rows
        self.type = self.flat.type
        self.label = self.flat.numpy("label", -1)
        self.width = (
            media_field(block, "width").fill_null(1).to_numpy(zero_copy_only=False).astype(np.float64)
        )
        self.height = (
            media_field(block, "height").fill_null(1).to_numpy(zero_copy_only=False).astype(np.float64)
        )
        lists = self.flat.column("points")
        self.offsets = lists.offsets.to_numpy().astype(np.int64)
        self.values = lists.values.to_numpy()

    def rows(self, *types: AnnotationType) -> Ints:
        """The labelled annotations of some types."""
        return np.flatnonzero(np.isin(self.type, [int(t) for t in types]) & (self.label >= 0))

    def points(self, rows: Ints, n: int) -> Floats:
        """The points of rows that have n numbers each, shape (rows, n)."""
        points: Floats = self.values[self.offsets[rows][:, None] + np.arange(n)]
        return points

    def sizes(self, rows: Ints) -> tuple[Floats, Floats]:
        """(width, height) of the image of each row."""
        item = self.flat.item[rows]
        return self.width[item], self.height[item]

    def scaled(self, rows: Ints) -> tuple[Floats, Ints]:
        """(x y fractions of all points of rows, how many numbers each has)."""
        counts = np.diff(self.offsets)[rows]
        values = self.values[ranges(self.offsets[:-1][rows], counts)]
        width, height = self.sizes(rows)
        is_y = (ranges(np.zeros(len(rows), np.int64), counts) % 2).astype(bool)
        return values / np.where(is_y, np.repeat(height, counts), np.repeat(width, counts)), counts


def box_lines(view: View, *_: Any) -> Text:
    """`class xc yc w h` of the boxes."""
    rows = view.rows(TYPES.bbox)
    values = fractions_of(view.points(rows, 4), *view.sizes(rows))
    return Text(rows, view.label[rows], values.ravel(), np.full(len(rows), 4), view.flat.item[rows])


def polygon_lines(view: View, *_: Any) -> Text:
    """`class x1 y1 x2 y2 ...` of the polygons."""
    rows = view.rows(TYPES.polygon)
    values, counts = view.scaled(rows)
    return Text(rows, view.label[rows], values, counts, view.flat.item[rows])


def rotated_lines(view: View, ctx: WriteContext, ids: pa.Array) -> Text:
    """`class x1 y1 ... x4 y4` of the rotated boxes, and of polygons with 4 points."""
    rows = view.rows(TYPES.rotated_bbox, TYPES.polygon)
    quad = (view.type[rows] == int(TYPES.polygon)) & (np.diff(view.offsets)[rows] != 8)
    if quad.any():
        example = f"item {ids[int(view.flat.item[rows[quad][0]])].as_py()!r}"
        ctx.lose("polygons that have not 4 points", int(quad.sum()), example)
        rows = rows[~quad]
    rotated = view.type[rows] == int(TYPES.rotated_bbox)
    corners = np.empty((len(rows), 4, 2))
    corners[rotated] = corners_of(view.points(rows[rotated], 5))
    corners[~rotated] = view.points(rows[~rotated], 8).reshape(-1, 4, 2)
    width, height = view.sizes(rows)
    corners /= np.stack([width, height], axis=1)[:, None, :]
    return Text(rows, view.label[rows], corners.ravel(), np.full(len(rows), 8), view.flat.item[rows])


def pose_lines(view: View, ctx: WriteContext, ids: pa.Array) -> Text:
    """`class xc yc w h px py v ...`: each box with the key points of its group; the box of those without one."""
    n = int(ctx.state["keypoints"])
    boxes, keys = view.rows(TYPES.bbox), view.rows(TYPES.points)
    fits = np.diff(view.offsets)[keys] <= 2 * n
    if not fits.all():
        example = f"item {ids[int(view.flat.item[keys[~fits][0]])].as_py()!r}"
        ctx.lose(f"points annotations with more than {n} points", int((~fits).sum()), example)
        keys = keys[fits]
    points = _padded_points(view, keys, n)
    mate = _group_mates(view, keys, boxes)
    alone = mate < 0
    lead = np.concatenate([boxes, keys[alone]])  # the annotation that a line stands for
    xywh = np.concatenate([view.points(boxes, 4), _seen_boxes(points[alone])])
    width, height = view.sizes(lead)
    values = np.zeros((len(lead), 4 + 3 * n))
    values[:, :4] = fractions_of(xywh, width, height)
    line = np.where(alone, len(boxes) + np.cumsum(alone) - 1, mate)
    points[:, :, 0] /= width[line][:, None]
    points[:, :, 1] /= height[line][:, None]
    values[line, 4:] = points.reshape(len(keys), -1)
    order = np.argsort(lead, kind="stable")
    lead = lead[order]
    return Text(
        lead, view.label[lead], values[order].ravel(), np.full(len(lead), 4 + 3 * n), view.flat.item[lead]
    )


def _padded_points(view: View, rows: Ints, n: int) -> Floats:
    """x, y, visibility of n points of each row, shape (rows, n, 3); zeros after its last point."""
    counts = np.diff(view.offsets)[rows] // 2
    made = np.zeros((len(rows), n, 3))
    row, key = np.repeat(np.arange(len(rows)), counts), ranges(np.zeros(len(rows), np.int64), counts)
    made[row, key, 0] = view.values[ranges(view.offsets[:-1][rows], 2 * counts)[0::2]]
    made[row, key, 1] = view.values[ranges(view.offsets[:-1][rows], 2 * counts)[1::2]]
    made[row, key, 2] = 2
    lists = view.flat.column("visibility")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    sizes = np.diff(offsets)[rows] * lists.is_valid().to_numpy(zero_copy_only=False)[rows]
    given = sizes == counts
    if given.any():
        seen = lists.values.to_numpy()[ranges(offsets[:-1][rows[given]], sizes[given])]
        own = given[row]
        made[row[own], key[own], 2] = seen
    return made


def _group_mates(view: View, rows: Ints, others: Ints) -> Ints:
    """For each row the position in `others` of the first one of its item and group; -1 for none."""
    group = view.flat.numpy("group").astype(np.int64)
    item = view.flat.item
    if not len(rows) or not len(others):
        return np.full(len(rows), -1, np.int64)
    tied = np.flatnonzero(group[others] > 0)
    keys = np.stack([item[others[tied]], group[others[tied]]], axis=1)
    mine = np.stack([item[rows], group[rows]], axis=1)
    _, code = np.unique(np.concatenate([keys, mine]), axis=0, return_inverse=True)
    code = code.ravel()
    first = np.full(int(code.max()) + 1, -1, np.int64)
    first[code[: len(tied)][::-1]] = tied[::-1]
    mates = np.where(group[rows] > 0, first[code[len(tied) :]], -1)
    kept = np.full(len(mates), -1, np.int64)
    _, where = np.unique(mates, return_index=True)  # a second row of the same group stands alone
    kept[where] = mates[where]
    return kept


def _seen_boxes(points: Floats) -> Floats:
    """x, y, w, h around the points of each row that are not absent."""
    if not len(points):
        return np.zeros((0, 4))
    seen = (points[:, :, 2] > 0) | (points[:, :, 2] == 0).all(axis=1)[:, None]
    low = np.where(seen[:, :, None], points[:, :, :2], np.inf).min(axis=1)
    high = np.where(seen[:, :, None], points[:, :, :2], -np.inf).max(axis=1)
    return np.concatenate([low, high - low], axis=1)


def with_scores(text: Text, view: View) -> Text:
    """The lines with the attribute `score` of each as a last number, where it has one."""
    scores = _scores(view, text.rows)
    has = ~np.isnan(scores)
    counts = text.counts + has
    values = np.empty(int(counts.sum()))
    last = starts_of(counts)[1:][has] - 1
    is_score = np.zeros(len(values), bool)
    is_score[last] = True
    values[last], values[~is_score] = scores[has], text.values
    return Text(text.rows, text.label, values, counts, text.item)


def _scores(view: View, rows: Ints) -> Floats:
    """The attribute `score` of annotations, NaN where there is none."""
    column = view.flat.column("attributes").take(pa.array(rows))
    if column.null_count == len(column):
        return np.full(len(rows), np.nan)
    found = pc.struct_field(pc.extract_regex(column, r'"score":\s*(?P<v>-?[0-9.eE+-]+)'), "v")
    scores: Floats = found.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return scores


def write_labels(block: pa.Table, text: Text, folders: dict[str, str], ctx: WriteContext) -> None:
    """Write the label file of every item into the folder of its subset."""
    lines, bounds = line_texts(text.label, text.values, text.counts, text.item, block.num_rows)
    names = pc.binary_join_element_wise(single_chunk(block, "id"), ".txt", "").to_pylist()
    ends = bounds.tolist()
    subsets = single_chunk(block, "subset").dictionary_encode()
    codes = subsets.indices.to_numpy()
    for code, subset in enumerate(subsets.dictionary.to_pylist()):
        rows = np.flatnonzero(codes == code).tolist()
        ctx.out.write_files(folders[subset], [(names[i], lines[ends[i] : ends[i + 1]]) for i in rows])


def by_subset(block: pa.Table) -> list[tuple[str, pa.Table]]:
    """The items of each subset, in the order in which subsets occur."""
    subsets = pc.unique(block.column("subset")).to_pylist()
    if len(subsets) == 1:
        return [(subsets[0], block)]
    return [(s, block.filter(pc.equal(block.column("subset"), s)).combine_chunks()) for s in subsets]


def write_meta_part(block: pa.Table, subset: str, index: int, ctx: WriteContext) -> str | None:
    """Write the images.meta lines of the items as a fragment; returns its name, None for no lines."""
    ids = single_chunk(block, "id")
    lines = images_meta_lines(ids, media_field(block, "height"), media_field(block, "width"))
    if not lines:
        return None
    name = f"{FRAGMENTS}/meta-{fragment_word(subset)}-{index:08d}"
    ctx.out.write_bytes(name, lines)
    return name


def fragment_word(subset: str) -> str:
    """A subset's name as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", lambda m: f"%{ord(m.group()):x}", subset)


def join_meta(parts: dict[str, list[str]], ctx: WriteContext) -> None:
    """Join the images.meta fragments of each subset; the subset is named when there are several."""
    pieces: list[bytes | str] = [b"# <ID> <height> <width>\n"]
    for subset, names in parts.items():
        if len(parts) > 1:
            pieces.append(subset_line(subset))
        pieces += names
    if len(pieces) > 1:
        ctx.out.concatenate(pieces, META_FILE)


def check_subset(subset: str, reserved: Sequence[str] = ()) -> None:
    """Raise DataError when a subset's name can't be that of a list or folder."""
    if subset in reserved or not re.fullmatch(r"[^\s/\\=#:\x00]+", subset) or subset in (".", ".."):
        raise DataError(
            f"a subset can't be named {subset!r} in a YOLO dataset",
            remedy="Rename it with the transform map_subsets",
        )
