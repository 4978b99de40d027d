"""Columns of shapes for operations that change images: numbers of points, sizes of items, what `extra` says no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.checks import finite_coordinates
from rayds.edits import dump_edits, load_edits
from rayds.engine.base import Block
from rayds.errors import DataError
from rayds.geometry import broken_rles
from rayds.item import dump_json
from rayds.schema import ANNOTATION_TYPE, AnnotationType, Flat, flat, media_field, single_chunk, with_media
from rayds.sizes import fill_sizes

T = AnnotationType
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PLACELESS = (T.label, T.caption, T.cuboid_3d)  # annotations that have no place in the image


@dataclass
class Numbers:
    """The `points` of annotations: all numbers, how many each has and where they begin."""

    values: Floats
    lengths: Ints
    starts: Ints

    @classmethod
    def of(cls, points: pa.ListArray) -> Numbers:
        """A copy of the numbers of a `points` column; null is an empty list."""
        lengths = pc.list_value_length(points).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        values = np.array(points.flatten().to_numpy(zero_copy_only=False), np.float64)
        return cls(values, lengths, np.cumsum(lengths) - lengths)

    @cached_property
    def owner(self) -> Ints:
        """The annotation of each number."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position(self) -> Ints:
        """Which one of its annotation each number is."""
        return np.arange(len(self.values)) - np.repeat(self.starts, self.lengths)

    def matrix(self, rows: Ints, width: int) -> Floats:
        """The numbers of annotations that have `width` each, shape (rows, width); a copy."""
        made: Floats = self.values[self.starts[rows][:, None] + np.arange(width)]
        return made

    def put(self, rows: Ints, matrix: Floats) -> None:
        """The inverse of `matrix`."""
        self.values[self.starts[rows][:, None] + np.arange(matrix.shape[1])] = matrix

    def column(self, like: pa.ListArray) -> pa.ListArray:
        """A `points` column, null where `like` is."""
        offsets = np.append(0, np.cumsum(self.lengths)).astype(np.int32)
        null = like.is_null() if like.null_count else None
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(self.values), mask=null)


def columns_of(rows: pa.StructArray) -> dict[str, pa.Array]:
    """The fields of annotations by name."""
    view = Flat(rows, np.zeros(0, np.int64), np.zeros(1, np.int64))
    return {f.name: view.column(f.name) for f in ANNOTATION_TYPE}


def rows_of(columns: Mapping[str, pa.Array]) -> pa.StructArray:
    """The inverse of columns_of."""
    return pa.StructArray.from_arrays(
        [columns[f.name] for f in ANNOTATION_TYPE], fields=list(ANNOTATION_TYPE)
    )


def replaced(column: pa.Array, rows: Ints, values: pa.Array) -> pa.Array:
    """The column with other values in some rows."""
    if not len(rows):
        return column
    index = np.arange(len(column))
    index[rows] = len(column) + np.arange(len(rows))
    return pa.concat_arrays([column, values.cast(column.type)]).take(pa.array(index))


def visibilities(columns: Mapping[str, pa.Array], rows: Ints, lengths: Ints) -> npt.NDArray[np.int8]:
    """The visibility of every point of some annotations, one after the other; 2 where it is not told."""
    told = columns["visibility"].take(pa.array(rows))
    n = pc.list_value_length(told).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    want = lengths[rows] // 2
    out = np.full(int(want.sum()), 2, np.int8)
    same = n == want
    given = told.filter(pa.array(same)).flatten().to_numpy(zero_copy_only=False)
    out[np.repeat(same, want)] = given
    return out


# items


def sized(block: Block) -> tuple[Block, dict[int, DataError]]:
    """(the block with the sizes of its images, the rows that can't be changed as theirs is not known).

    Only items that have an image, or annotations with a place in one, need a size. Masks that are broken, or are of
    another size than the image, and coordinates that are not finite make a row bad, too.
    """
    block, failed = fill_sizes(block)
    view = flat(block)
    kind = media_field(block, "kind")
    cloud = pc.fill_null(pc.equal(kind, "point_cloud"), False).to_numpy(zero_copy_only=False)
    unknown = media_field(block, "width").is_null().to_numpy(zero_copy_only=False)
    placed = np.zeros(block.num_rows, bool)
    placed[view.item[~np.isin(view.type, PLACELESS)]] = True
    has = kind.is_valid().to_numpy(zero_copy_only=False)
    ids, paths = single_chunk(block, "id"), media_field(block, "path")
    for row in np.flatnonzero(unknown & ~cloud & (has | placed)).tolist():
        failed.setdefault(
            row,
            DataError(
                "the size of its image is not known, and there is no image to ask",
                file=paths[row].as_py(),
                item=ids[row].as_py(),
                remedy="Give the images with the dataset, or read it in a format that tells their sizes",
            ),
        )
    _check_masks(block, view, ids, unknown, failed)
    _check_coordinates(view, ids, failed)
    return block, failed


def _check_coordinates(view: Flat, ids: pa.Array, failed: dict[int, DataError]) -> None:
    for i in np.flatnonzero(~finite_coordinates(view)).tolist():
        row = int(view.item[i])
        what = "a coordinate of an annotation is no finite number"
        failed.setdefault(
            row, DataError(what, item=ids[row].as_py(), remedy="Correct or remove the annotation")
        )


def _check_masks(
    block: Block, view: Flat, ids: pa.Array, unknown: Bools, failed: dict[int, DataError]
) -> None:
    rows = np.flatnonzero(view.type == T.mask)
    if not len(rows):
        return
    mask = view.column("mask").take(pa.array(rows))
    height, width = (
        pc.struct_field(mask, n).fill_null(-1).to_numpy(zero_copy_only=False) for n in ("height", "width")
    )
    item = view.item[rows]
    image = [
        media_field(block, n).fill_null(0).to_numpy(zero_copy_only=False)[item] for n in ("height", "width")
    ]
    other = ~unknown[item] & ((height != image[0]) | (width != image[1]))
    broken = broken_rles(pc.struct_field(mask, "counts"), height, width)
    for i in np.flatnonzero(other | broken).tolist():
        what = (
            "the run lengths of a mask are broken"
            if broken[i]
            else f"a mask has {width[i]}x{height[i]} pixels, its image {image[1][i]}x{image[0][i]}"
        )
        row = int(item[i])
        failed.setdefault(
            row, DataError(what, item=ids[row].as_py(), remedy="Correct or remove the annotation")
        )


def broken_masks(block: Block) -> dict[int, DataError]:
    """The rows of a block that have a mask whose run lengths are broken: they must not be decoded."""
    view = flat(block)
    rows = np.flatnonzero(view.type == T.mask)
    if not len(rows):
        return {}
    mask = view.column("mask").take(pa.array(rows))
    height, width = (
        pc.struct_field(mask, n).fill_null(-1).to_numpy(zero_copy_only=False) for n in ("height", "width")
    )
    broken = view.item[rows[broken_rles(pc.struct_field(mask, "counts"), height, width)]]
    ids = single_chunk(block, "id")
    return {
        row: DataError(
            "the run lengths of a mask are broken",
            item=ids[row].as_py(),
            remedy="Correct or remove the annotation",
        )
        for row in np.unique(broken).tolist()
    }


def sizes_of(block: Block) -> Ints:
    """(height, width) of the image of each item, shape (items, 2); 0 where there is none. Point clouds have none."""
    cloud = pc.fill_null(pc.equal(media_field(block, "kind"), "point_cloud"), False)
    size = [media_field(block, n).fill_null(0).to_numpy(zero_copy_only=False) for n in ("height", "width")]
    out = np.stack(size, 1).astype(np.int64)
    out[cloud.to_numpy(zero_copy_only=False)] = 0
    return out


def with_edits(block: Block, steps: Sequence[Mapping[str, Any] | None], sizes: Ints) -> Block:
    """The block with a step more in the edits of images (None: none more), and their new (height, width)."""
    told = media_field(block, "edits").to_pylist()
    for i, step in enumerate(steps):
        if step is not None:
            told[i] = dump_edits([*load_edits(told[i]), step])
    known = [step is not None for step in steps]
    fields: dict[str, Any] = {"edits": pa.array(told, pa.string())}
    for k, name in enumerate(("height", "width")):
        new = pa.array(sizes[:, k], pa.int32())
        fields[name] = pc.if_else(pa.array(known, pa.bool_()), new, media_field(block, name))
    return with_media(block, **fields)


# what is told beside


def without_stale(extra: pa.Array, rows: Bools, names: Mapping[str, Sequence[str]]) -> pa.Array:
    """`extra` texts without what is not true any more. rows: where; names: members by format family."""
    which = rows & extra.is_valid().to_numpy(zero_copy_only=False)
    if not which.any():
        return extra
    told = pc.match_substring_regex(extra, "|".join(f'"{m}"' for ms in names.values() for m in ms))
    which = which & told.fill_null(False).to_numpy(zero_copy_only=False)
    # by far the most frequent: COCO's area and nothing else
    if "area" in names.get("coco", ()):
        alone = pc.match_substring_regex(extra, r'^\{"coco":\{"area":[0-9.eE+-]+\}\}$')
        alone = which & alone.fill_null(False).to_numpy(zero_copy_only=False)
        extra = pc.if_else(pa.array(alone), pa.scalar(None, pa.string()), extra)
        which = which & ~alone
    return changed_texts(extra, np.flatnonzero(which), lambda told: _dropped(told, names))


def _dropped(told: dict[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    out = {}
    for family, members in told.items():
        if family in names and isinstance(members, dict):
            members = {k: v for k, v in members.items() if k not in names[family]}
        if members != {}:
            out[family] = members
    return out


def changed_texts(
    column: pa.Array, rows: Ints, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> pa.Array:
    """JSON texts with some changed, each different one once; an empty object becomes null."""
    if not len(rows):
        return column
    encoded = column.take(pa.array(rows)).dictionary_encode()
    made = []
    for text in encoded.dictionary.to_pylist():
        told = change(json.loads(text))
        made.append(dump_json(told))
    return replaced(column, rows, pa.array(made, pa.string()).take(encoded.indices))


def objects_of(item: Ints, columns: Mapping[str, pa.Array]) -> Ints:
    """A number for every annotation, equal for the rows of one object: those of one item that share a group, a
    label and an id. Rows without a group are objects of their own."""
    group, id_, label = (
        columns[n].fill_null(-1).to_numpy(zero_copy_only=False) for n in ("group", "id", "label")
    )
    out = np.arange(len(item))
    rows = np.flatnonzero(group > 0)
    if len(rows):
        keys = np.stack([item[rows], group[rows], label[rows], id_[rows]])
        order = rows[np.lexsort(keys[::-1])]
        sorted_keys = np.stack([item[order], group[order], label[order], id_[order]])
        first = np.append(True, (sorted_keys[:, 1:] != sorted_keys[:, :-1]).any(0))
        out[order] = np.minimum.reduceat(order, np.flatnonzero(first))[np.cumsum(first) - 1]
    return out


def any_of(objects: Ints, rows: Bools) -> Bools:
    """Whether any row of the object of each row is among `rows`."""
    found = np.zeros(len(objects), bool)
    found[objects[rows]] = True
    return found[objects]
