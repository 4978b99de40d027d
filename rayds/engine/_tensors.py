"""Samples as Ray Data's own tensor columns. Import it where Ray is used, not before."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data.extensions import (
    ArrowTensorArray,
    ArrowVariableShapedTensorArray,
    ArrowVariableShapedTensorType,
)

from rayds.engine.base import Block
from rayds.samples import Recipe, Spec, decoded, on_worker
from rayds.schema import ERROR_COLUMN, single_chunk

_log = logging.getLogger("rayds")


def samples(recipe: Recipe, block: Block) -> Block:
    """The samples of a piece of items with Ray's tensor types; bad items are logged, and left out."""
    made = on_worker(recipe, block)
    for text in pc.drop_null(made.column(ERROR_COLUMN)).to_pylist():
        record = json.loads(text)
        _log.warning("left out: item %r of %s: %s", record.get("item"), record["subset"], record["reason"])
    good = made.filter(pc.is_null(made.column(ERROR_COLUMN))).drop_columns([ERROR_COLUMN])
    for name, spec in recipe.tensors.items():
        if spec.shape:
            i = good.schema.get_field_index(name)
            good = good.set_column(i, name, _tensors(single_chunk(good, name), spec))
    return good


def _tensors(column: pa.Array, spec: Spec) -> pa.ExtensionArray:
    values: Any = decoded(column, spec)
    if spec.fixed:
        return ArrowTensorArray.from_numpy(np.asarray(values))
    if not len(values):  # Ray makes no ragged tensors of nothing
        made = ArrowVariableShapedTensorType(pa.from_numpy_dtype(np.dtype(spec.dtype)), len(spec.shape))
        return made.wrap_array(pa.array([], made.storage_type))
    return ArrowVariableShapedTensorArray.from_numpy(values)
