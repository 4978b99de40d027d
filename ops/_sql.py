"""SQL expressions over items or annotations, by DuckDB; they see two tables of columns and nothing else."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import UsageError
from rayds.ops._representation import Document
from rayds.schema import media_field, single_chunk

Bools = npt.NDArray[np.bool_]

ITEM_COLUMNS = {
    "id": pa.string(), "subset": pa.string(), "path": pa.string(), "width": pa.int32(), "height": pa.int32(),
    "attributes": pa.string(), "n_annotations": pa.int64(),
}  # fmt: skip
ANNOTATION_COLUMNS = {
    "type": pa.string(), "id": pa.int64(), "group": pa.int64(), "label": pa.string(), "z_order": pa.int32(),
    "x": pa.float64(), "y": pa.float64(), "w": pa.float64(), "h": pa.float64(), "area": pa.float64(),
    "caption": pa.string(), "attributes": pa.string(), "item_id": pa.string(), "subset": pa.string(),
    "path": pa.string(), "width": pa.int32(), "height": pa.int32(), "item_attributes": pa.string(),
}  # fmt: skip

_local = threading.local()


def _connection() -> Any:
    """A database of its own that reads no files, for texts that users write."""
    if not hasattr(_local, "connection"):
        import duckdb

        config: dict[str, Any] = {"threads": 1, "enable_external_access": False, "lock_configuration": True}
        _local.connection = duckdb.connect(":memory:", config=config)
    return _local.connection


def _statement(where: str) -> str:
    return f"SELECT coalesce(({where}\n)::BOOLEAN, false) AS keep FROM t"


def check(where: str, annotations: bool) -> None:
    """Raise UsageError unless the text is one expression over the columns of items or of annotations."""
    import duckdb

    columns = ANNOTATION_COLUMNS if annotations else ITEM_COLUMNS
    try:
        parsed = _connection().extract_statements(_statement(where))
        if not where.strip() or len(parsed) != 1 or "select" in where.lower().replace("(", " ").split():
            raise UsageError(f"--where: {where!r} is not one expression")
        _run(where, pa.schema(columns.items()).empty_table())
    except duckdb.Error as e:
        of = "annotations" if annotations else "items"
        raise UsageError(f"--where: {where!r}: {e}\nThe columns of {of}: {', '.join(columns)}") from e


def _run(where: str, table: pa.Table) -> pa.Table:
    connection = _connection()
    connection.register("t", table)
    try:
        return connection.sql(_statement(where)).to_arrow_table()
    finally:
        connection.unregister("t")


def selected(document: Document, where: str, annotations: bool) -> Bools:
    """Which items or annotations the expression is true for; one that it fails for raises UsageError."""
    import duckdb

    table = _annotations(document) if annotations else _items(document)
    try:
        keep: Bools = _run(where, table).column("keep").to_numpy().astype(bool)
    except duckdb.Error as e:
        raise UsageError(f"--where: {where!r}: {e}") from e
    return keep


def _items(document: Document) -> pa.Table:
    block = document.block
    found = {
        "id": single_chunk(block, "id"),
        "subset": single_chunk(block, "subset"),
        "path": media_field(block, "path"),
        "width": media_field(block, "width"),
        "height": media_field(block, "height"),
        "attributes": single_chunk(block, "attributes"),
        "n_annotations": pa.array(np.diff(document.view.offsets)),
    }
    return pa.table(found, schema=pa.schema(ITEM_COLUMNS.items()))


def _annotations(document: Document) -> pa.Table:
    n, item = document.annotations, pa.array(document.view.item)

    def full(name: str) -> pa.Array:
        column = document.annotation_child(name)
        index = np.full(n, -1)
        if column is None:
            return pa.nulls(n)
        index[column.owner] = np.arange(len(column))
        values = pa.array(column.number) if column.text is None else column.text
        return values.take(pa.array(index, mask=index < 0))

    boxes = {name: full(name) for name in "xywh"}
    for name in "xywh":  # of shapes those of the box that encloses them
        column = document.box_child(name)
        if column is not None and len(column):
            values = np.full(n, np.nan)
            values[column.owner] = column.number
            boxes[name] = pc.coalesce(boxes[name].cast(pa.float64()), pa.array(values, mask=np.isnan(values)))
    block = document.block
    found = {
        "type": full("type"),
        "label": full("label"),
        **boxes,
        "area": full("area"),
        "caption": document.columns["text"],
        "attributes": document.columns["attributes"],
        "item_id": single_chunk(block, "id").take(item),
        "subset": single_chunk(block, "subset").take(item),
        "path": media_field(block, "path").take(item),
        "width": media_field(block, "width").take(item),
        "height": media_field(block, "height").take(item),
        "item_attributes": single_chunk(block, "attributes").take(item),
        **{name: document.columns[name] for name in ("id", "group", "z_order")},
    }
    schema = pa.schema(ANNOTATION_COLUMNS.items())
    return pa.table(
        {name: found[name].cast(schema.field(name).type) for name in ANNOTATION_COLUMNS}, schema=schema
    )
