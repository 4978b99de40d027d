"""The shapes of COCO records laid flat: the box before the polygons of each record, then the other kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.schema import AnnotationType as T
from rayds.schema import list_of

Ints = npt.NDArray[np.int64]


def prepend(bbox: pa.ListArray, seg: pa.ListArray, has_box: npt.NDArray[np.bool_]) -> pa.ListArray:
    """Lists of shapes: the box, where there is one, before the polygons of each record."""
    polygons = seg.flatten()
    counts = pc.fill_null(pc.list_value_length(seg), 0).to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(polygons), 0).to_numpy(zero_copy_only=False)
    firsts = np.cumsum(counts) - counts
    lengths = np.insert(lengths, firsts[has_box], 4)
    is_box = np.zeros(len(lengths), bool)
    is_box[firsts[has_box] + np.arange(int(has_box.sum()))] = True
    ends = np.cumsum(lengths)
    values = np.empty(int(ends[-1]) if len(ends) else 0)
    boxed = np.zeros(len(values), bool)
    boxed[((ends - lengths)[is_box][:, None] + np.arange(4)).ravel()] = True
    four = pc.fill_null(pc.list_value_length(bbox), 0).to_numpy(zero_copy_only=False)
    coordinates = bbox if has_box.all() else bbox.filter(pa.array(has_box & (four == 4)))
    values[boxed] = coordinates.flatten().fill_null(np.nan).to_numpy(zero_copy_only=False)
    values[~boxed] = polygons.flatten().fill_null(np.nan).to_numpy(zero_copy_only=False)
    return list_of(list_of(pa.array(values), lengths), counts + has_box)


def row_order(
    n: int,
    n_shapes: Ints,
    has_box: npt.NDArray[np.bool_],
    kinds: Sequence[tuple[T, npt.NDArray[Any]]],
    keep: npt.NDArray[np.bool_],
) -> tuple[Ints, npt.NDArray[np.int8]]:
    """(number of the flat shape of each row, -1 for others; type of each row), rows of a record together."""
    shape_owner = np.repeat(np.arange(n), n_shapes)
    starts = np.cumsum(n_shapes) - n_shapes
    is_box = np.zeros(len(shape_owner), bool)
    is_box[starts[has_box]] = True
    types = [np.where(is_box, T.bbox, T.polygon).astype(np.int8)]
    owners = [shape_owner]
    shape = [np.arange(len(shape_owner))]
    rank = [np.zeros(len(shape_owner), np.int64)]
    for k, (kind, has) in enumerate(kinds):
        who = np.flatnonzero(has)
        owners.append(who)
        types.append(np.full(len(who), kind, np.int8))
        shape.append(np.full(len(who), -1))
        rank.append(np.full(len(who), k + 1))
    owner, type_, index = np.concatenate(owners), np.concatenate(types), np.concatenate(shape)
    if kinds:
        order = np.lexsort((np.concatenate(rank), owner))
        owner, type_, index = owner[order], type_[order], index[order]
    kept = keep[owner]
    return index[kept], type_[kept]
