"""SQL expressions over items or annotations, by DuckDB; they see two tables of columns and nothing else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import UsageError
from rayds.ops._representation import Column, Document
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

_ROW = "rayds_row"  # not for users: it depends on where blocks end
_local = threading.local()


def _connection() -> Any:
    """A database of its own that reads no files and no variables of Python, for texts that users write."""
    if not hasattr(_local, "connection"):
        import duckdb

        config: dict[str, Any] = {
            "threads": 1,
            "enable_external_access": False,
            "python_enable_replacements": False,
            "lock_configuration": True,
        }
        _local.connection = duckdb.connect(":memory:", config=config)
    return _local.connection


def _statement(where: str) -> str:
    # WHERE takes neither aggregates nor window functions, whose values would depend on where blocks end.
    return f"SELECT {_ROW} FROM t WHERE (\n{where}\n)"


def check(where: str, annotations: bool) -> list[str]:
    """The columns that an expression names. Raises UsageError unless the text is one expression over the columns of
    items or of annotations, without queries, and the same each time."""
    import duckdb

    columns = ANNOTATION_COLUMNS if annotations else ITEM_COLUMNS
    known = f"The columns of {'annotations' if annotations else 'items'}: {', '.join(columns)}"
    try:
        parts = list(_objects(_condition(where)))
        names = _names(where, parts)
        named = [name for name in columns if name in names]
        _run(where, {name: pa.nulls(0, columns[name]) for name in named}, 0)
    except duckdb.Error as e:
        raise UsageError(f"--where: {where!r}: {_first(e)}\n{known}") from e
    return named


def _names(where: str, parts: list[dict[str, Any]]) -> set[str]:
    """The names of columns in a parsed expression; raises UsageError for what may not be in one."""
    names: set[str] = set()
    for part in parts:
        kind, told = part.get("class"), part.get("column_names", ())
        if kind == "SUBQUERY":
            raise UsageError(f"--where: {where!r} is not one expression: it has a query in it")
        if kind == "FUNCTION" and part["function_name"].lower() in _changing():
            raise UsageError(f"--where: {where!r}: {part['function_name']}() is not the same each time")
        if kind == "STAR" or (told and told[-1].lower() in ("t", "rowid", _ROW)):
            raise UsageError(f"--where: {where!r}: name the columns; {told[-1] if told else '*'!r} is none")
        names |= {name.lower() for name in told}
    return names


def _first(error: Exception) -> str:
    """What an error of DuckDB says, without its picture of the statement."""
    return str(error).split("\n\nLINE ")[0].strip()


def _condition(where: str) -> Any:
    """The parsed expression; raises UsageError where the text is more or less than one."""

    def parsed(text: str) -> tuple[Any, str]:
        row = _connection().execute("SELECT json_serialize_sql(?)", [_statement(text)]).fetchall()[0]
        tree = json.loads(row[0])
        if tree.get("error"):
            reason = tree.get("error_message", "").split("\n")[0]
            raise UsageError(f"--where: {where!r} is not one expression: {reason}")
        found = [s["node"].pop("where_clause", None) for s in tree["statements"]]
        frame = re.sub(r'"query_location": \d+', "", json.dumps(tree, sort_keys=True))
        return found[0], frame

    condition, frame = parsed(where)
    if not where.strip() or frame != parsed("true")[1]:
        raise UsageError(f"--where: {where!r} is not one expression")
    return condition


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _objects(part)


@cache
def _changing() -> frozenset[str]:
    """The functions that may give something else for the same row."""
    found = _connection().execute(
        "SELECT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    )
    return frozenset(name for (name,) in found.fetchall())


def _run(where: str, columns: dict[str, pa.Array], n: int) -> Any:
    """The numbers of the rows, of n, for which it is true."""
    connection = _connection()
    connection.register("t", pa.table({**columns, _ROW: pa.array(np.arange(n))}))
    try:
        return connection.execute(_statement(where)).fetchnumpy()[_ROW]
    finally:
        connection.unregister("t")


def selected(document: Document, where: str, annotations: bool, names: list[str]) -> Bools:
    """Which items or annotations the expression is true for; one that it fails for raises UsageError. names: the
    columns that `check` found in it."""
    import duckdb

    columns = ANNOTATION_COLUMNS if annotations else ITEM_COLUMNS
    make = _annotation_column if annotations else _item_column
    n = document.annotations if annotations else document.items
    keep = np.zeros(n, bool)
    try:
        rows = _run(where, {name: make(document, name).cast(columns[name]) for name in names}, n)
    except duckdb.Error as e:
        raise UsageError(f"--where: {where!r}: {_first(e)}") from e
    keep[np.asarray(rows, np.int64)] = True
    return keep


def _item_column(document: Document, name: str) -> pa.Array:
    if name == "n_annotations":
        return pa.array(np.diff(document.view.offsets))
    if name in ("id", "subset", "attributes"):
        return single_chunk(document.block, name)
    return media_field(document.block, name)


def _annotation_column(document: Document, name: str) -> pa.Array:
    if name in ("item_id", "subset", "path", "width", "height", "item_attributes"):
        return _item_column(document, name.removeprefix("item_")).take(pa.array(document.view.item))
    if name in ("id", "group", "z_order", "attributes"):
        return document.columns[name]
    if name == "caption":
        return document.columns["text"]
    found = _spread(document, document.annotation_child(name))
    if name in ("x", "y", "w", "h"):  # of shapes those of the box that encloses them
        found = pc.coalesce(_spread(document, document.box_child(name)), found)
    return found


def _spread(document: Document, column: Column | None) -> pa.Array:
    """The values of a column as one for every annotation, null where there is none."""
    if column is None:
        return pa.nulls(document.annotations)
    index = np.full(document.annotations, -1)
    index[column.owner] = np.arange(len(column))
    values = pa.array(column.number) if column.text is None else column.text
    return values.take(pa.array(index, mask=index < 0))
