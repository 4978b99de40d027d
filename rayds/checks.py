"""Checks of items before any format writes them: what no format can hold is a bad item everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError, OnError
from rayds.format import with_errors
from rayds.schema import Flat, flat


def writable_items(known: int, policy: OnError, block: pa.Table) -> pa.Table:
    """The block without bad items: with a label index beyond the `known` labels, or a coordinate that is not finite."""
    view = flat(block)
    labels = view.numpy("label", -1)
    wrong = np.flatnonzero((labels >= known) | ~_finite(view))
    errors: list[dict[str, Any]] = []
    keep = np.ones(block.num_rows, bool)
    for row in wrong:
        item = int(view.item[row])
        if not keep[item]:
            continue
        keep[item] = False
        error = _error(int(labels[row]), known, block.column("id")[item].as_py())
        if policy is OnError.RAISE:
            raise error
        errors.append({"subset": block.column("subset")[item].as_py(), **error.record()})
    good = block.filter(pa.array(keep)) if errors else block
    return good if policy is OnError.RAISE else with_errors(good, errors)


def _finite(view: Flat) -> Any:
    """Whether all coordinates of each annotation are finite numbers."""
    points = view.column("points")
    good = np.ones(len(view), bool)
    finite = pc.is_finite(points.flatten()).fill_null(False)
    if not pc.all(finite).as_py():
        lengths = pc.fill_null(pc.list_value_length(points), 0).to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(view)), lengths)
        good[owner[~finite.to_numpy(zero_copy_only=False)]] = False
    return good


def _error(label: int, known: int, item: str) -> DataError:
    if label >= known:
        return DataError(
            f"the label index {label} of an annotation is beyond the {known} labels of the categories",
            item=item,
            remedy="Give categories with all labels, or correct the index",
        )
    return DataError(
        "a coordinate of an annotation is no finite number",
        item=item,
        remedy="Correct or remove the annotation",
    )
