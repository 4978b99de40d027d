"""Users' functions over items, as stages over blocks, under the error policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayds.annotations import Annotation
from rayds.engine.base import Block
from rayds.errors import DataError, OnError
from rayds.format import with_errors
from rayds.item import DatasetItem, from_table, to_table
from rayds.schema import ITEM_SCHEMA, flat, with_annotations


def _record(error: Exception, item: DatasetItem, policy: OnError) -> dict[str, Any]:
    """The record of a bad item; under raise, raise a DataError that names it."""
    named = DataError(f"the function given failed with {type(error).__name__}: {error}", item=item.id)
    if policy is OnError.RAISE:
        raise named from error
    return {"subset": item.subset, **named.record()}


def named(fn: Callable[..., Any]) -> str:
    """What a function is called, with the arguments it is bound to: equal for equal work, as far as that can be told."""
    if isinstance(fn, partial):
        args = [named(a) if callable(a) else repr(a) for a in fn.args]
        args += [f"{k}={v!r}" for k, v in fn.keywords.items()]
        return f"{named(fn.func)}({', '.join(args)})"
    return getattr(fn, "__qualname__", None) or repr(fn)


def map_items(fn: Callable[[DatasetItem], DatasetItem | None], policy: OnError, block: Block) -> Block:
    made: list[DatasetItem] = []
    errors: list[dict[str, Any]] = []
    for item in from_table(block):
        try:
            out = fn(item)
        except Exception as e:
            errors.append(_record(e, item, policy))
            continue
        if out is not None:
            made.append(out)
    table = to_table(made) if made else ITEM_SCHEMA.empty_table()
    return table if policy is OnError.RAISE else with_errors(table, errors)


def select_items(fn: Callable[[DatasetItem], bool], policy: OnError, block: Block) -> Block:
    keep: list[bool] = []
    errors: list[dict[str, Any]] = []
    for item in from_table(block):
        try:
            keep.append(bool(fn(item)))
        except Exception as e:
            keep.append(False)
            errors.append(_record(e, item, policy))
    table = block.filter(pa.array(keep, pa.bool_()))
    return table if policy is OnError.RAISE else with_errors(table, errors)


def select_annotations(
    fn: Callable[[DatasetItem, Annotation], bool], remove_empty: bool, policy: OnError, block: Block
) -> Block:
    """The block with the annotations for which fn is true; the rows themselves stay as they are."""
    view = flat(block)
    keep = np.zeros(len(view), bool)
    good = np.ones(block.num_rows, bool)
    errors: list[dict[str, Any]] = []
    for row, item in enumerate(from_table(block)):
        start = int(view.offsets[row])
        try:
            for i, annotation in enumerate(item.annotations):
                keep[start + i] = bool(fn(item, annotation))
        except Exception as e:
            good[row] = False
            errors.append(_record(e, item, policy))
    counts = np.bincount(view.item[keep], minlength=block.num_rows)
    made = with_annotations(block, view.rows.filter(pa.array(keep)), counts)
    table = made.filter(pa.array(good & (counts > 0) if remove_empty else good))
    return table if policy is OnError.RAISE else with_errors(table, errors)
