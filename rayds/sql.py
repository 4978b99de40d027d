"""DuckDB on Arrow tables: one in-memory connection a thread, one core each (rayds runs many threads itself)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import duckdb

_local = threading.local()
_root: duckdb.DuckDBPyConnection | None = None
_lock = threading.Lock()


def connection() -> duckdb.DuckDBPyConnection:
    """This thread's connection to the one database of the process (to make a database takes 50 ms)."""
    global _root
    if not hasattr(_local, "connection"):
        with _lock:
            if _root is None:
                import duckdb

                config: dict[str, Any] = {"threads": 1, "autoinstall_known_extensions": False}
                _root = duckdb.connect(":memory:", config=config)
            _local.connection = _root.cursor()
    con: duckdb.DuckDBPyConnection = _local.connection
    return con


def begin() -> None:
    """Load DuckDB in a thread of its own: that takes 70 ms, in which a reader can look for its first records."""
    if _root is None:
        threading.Thread(target=connection, name="rayds-duckdb").start()


def query(sql: str, **tables: pa.Table) -> pa.Table:
    """The result of a SELECT over Arrow tables, which the text names by their keywords.

    Rows keep the order of the input for plain projections. Raises duckdb.Error.
    """
    con = connection()
    for name, table in tables.items():
        con.register(name, table)
    try:
        return con.sql(sql).to_arrow_table()
    finally:
        for name in tables:
            con.unregister(name)


def text_column(table: pa.Table, name: str = "text") -> pa.Array:
    """A column of a query's result as one array."""
    column = table.column(name)
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])
    )


def joined_bytes(texts: pa.Array) -> memoryview:
    """All texts one after the other, without a copy (the separators must be part of them); of nulls, anything or nothing."""
    offsets, data = texts.buffers()[1:]
    if not len(texts) or data is None:
        return memoryview(b"")
    width = 8 if texts.type == pa.large_string() else 4
    ends = memoryview(offsets).cast("B").cast("q" if width == 8 else "i")
    return memoryview(data)[ends[texts.offset] : ends[texts.offset + len(texts)]]
