"""Checks of items before any format writes them: what no format can hold is a bad item everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError, OnError
from rayds.format import with_errors
from rayds.geometry import broken_rles
from rayds.schema import Flat, flat


def writable_items(known: int, policy: OnError, block: pa.Table) -> pa.Table:
    """The block without bad items: with a label index beyond the `known` labels, a coordinate that is not finite, or
    a mask whose run lengths don't fill it (libraries crash on those)."""
    view = flat(block)
    labels = view.numpy("label", -1)
    finite = finite_coordinates(view)
    wrong = np.flatnonzero((labels >= known) | ~finite | _broken_masks(view))
    errors: list[dict[str, Any]] = []
    keep = np.ones(block.num_rows, bool)
    for row in wrong:
        item = int(view.item[row])
        if not keep[item]:
            continue
        keep[item] = False
        error = _error(int(labels[row]), known, bool(finite[row]), block.column("id")[item].as_py())
        if policy is OnError.RAISE:
            raise error
        errors.append({"subset": block.column("subset")[item].as_py(), **error.record()})
    good = block.filter(pa.array(keep)) if errors else block
    return good if policy is OnError.RAISE else with_errors(good, errors)


def finite_coordinates(view: Flat) -> Any:
    """Whether all coordinates of each annotation are finite numbers."""
    points = view.column("points")
    good = np.ones(len(view), bool)
    finite = pc.is_finite(points.flatten()).fill_null(False)
    if not pc.all(finite).as_py():
        lengths = pc.fill_null(pc.list_value_length(points), 0).to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(view)), lengths)
        good[owner[~finite.to_numpy(zero_copy_only=False)]] = False
    return good


def _broken_masks(view: Flat) -> Any:
    """Whether each annotation is a mask with broken run lengths."""
    masks = view.column("mask")
    broken = np.zeros(len(view), bool)
    rows = np.flatnonzero(pc.is_valid(masks).to_numpy(zero_copy_only=False))
    if len(rows):
        some = masks.take(pa.array(rows))
        height, width = (
            pc.fill_null(pc.struct_field(some, n), -1).to_numpy(zero_copy_only=False)
            for n in ("height", "width")
        )
        broken[rows] = broken_rles(pc.struct_field(some, "counts"), height, width)
    return broken


def _error(label: int, known: int, finite: bool, item: str) -> DataError:
    if label >= known:
        return DataError(
            f"the label index {label} of an annotation is beyond the {known} labels of the categories",
            item=item,
            remedy="Give categories with all labels, or correct the index",
        )
    what = (
        "the run lengths of a mask are broken"
        if finite
        else "a coordinate of an annotation is no finite number"
    )
    return DataError(
        what,
        item=item,
        remedy="Correct or remove the annotation",
    )
