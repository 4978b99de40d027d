"""Users' functions over items, as stages over blocks, under the error policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa

from rayds.engine.base import Block
from rayds.errors import DataError, OnError
from rayds.format import with_errors
from rayds.item import DatasetItem, from_table, to_table
from rayds.schema import ITEM_SCHEMA


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
