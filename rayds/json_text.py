"""JSON of strings and of lists of numbers, many at once.

Nearly all coordinates of real datasets have at most two decimals and are below some thousands: their texts are looked up in a
table, which is five times as fast as printing each. Other numbers are printed by DuckDB, as the table's are.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.sql import query, text_column

Ints = npt.NDArray[np.int64]

_SCALE = 100
_SMALLEST, _LARGEST = 1 << 16, 1 << 19  # entries of the table: numbers below 655.36, and below 5242.88
_AROUND = (("", ","), ("", "]"), ("[", ","), ("", "],"), ("", "]]"))  # what stands before and behind a number
_NEXT, _LAST, _INNER_FIRST, _INNER_LAST, _LAST_OF_ALL = range(len(_AROUND))
_PRINT = "SELECT substr(to_json(list)::VARCHAR, 2) AS text FROM lists"

_tables: dict[int, pa.Array] = {}
_lock = threading.Lock()


def list_texts(lists: pa.Array) -> pa.Array:
    """The JSON of lists of numbers, or of lists of such lists, behind the bracket that opens each; null for null.

    [[1.5, 2], []] gives "1.5,2.0]", "]". lists: of float64 that are finite and not null; within lists, no null.
    """
    nested = pa.types.is_list(lists.type.value_type)
    lengths = _lengths(lists)
    inner = lists.flatten()
    if nested:
        inner_lengths = _lengths(inner)
        ends = np.cumsum(inner_lengths)
        bounds = np.concatenate([[0], ends])[_bounds(lengths)]
        codes = None if inner_lengths.min(initial=2) < 2 else _codes(inner.flatten())
    else:
        bounds = _bounds(lengths)
        codes = _codes(inner)
    if codes is None:
        return text_column(query(_PRINT, lists=pa.table({"list": lists})))
    size = _table_size(codes)
    if nested:
        codes[ends - inner_lengths] += _INNER_FIRST * size
        codes[ends - 1] += _INNER_LAST * size
        codes[bounds[1:][lengths > 0] - 1] += (_LAST_OF_ALL - _INNER_LAST) * size
    else:
        codes[bounds[1:][lengths > 0] - 1] += _LAST * size
    return _slices(_table(size).take(pa.array(codes)), bounds, lists, lengths)


def string_texts(strings: pa.Array) -> pa.Array:
    """The JSON of strings; null for null."""
    if pc.any(pc.match_substring_regex(strings, r'["\\\x00-\x1f]')).as_py():
        return text_column(
            query("SELECT to_json(string)::VARCHAR AS text FROM t", t=pa.table({"string": strings}))
        )
    return pc.binary_join_element_wise('"', strings, '"', "")


def _slices(entries: pa.Array, bounds: Ints, lists: pa.Array, lengths: Ints) -> pa.Array:
    """The text of each list: entries bounds[i]:bounds[i + 1] together, "]" where there are none, null for null."""
    ends, data = entries.buffers()[1:]
    offsets = np.frombuffer(ends, np.int32)[bounds] if len(entries) else np.zeros(len(bounds), np.int32)
    texts = pa.StringArray.from_buffers(
        len(lists), pa.py_buffer(offsets), data if data is not None else pa.py_buffer(b"")
    )
    if lengths.min(initial=1) == 0:
        texts = pc.if_else(pa.array(lengths == 0), "]", texts)
    return pc.if_else(lists.is_valid(), texts, pa.scalar(None, pa.string())) if lists.null_count else texts


def _lengths(lists: pa.Array) -> Ints:
    found: Ints = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _bounds(lengths: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)])


def _codes(values: pa.Array) -> npt.NDArray[np.int32] | None:
    """The place of each number in the table; None where the table has not all of them, or is not worth making."""
    numbers = values.to_numpy(zero_copy_only=False)
    if not len(numbers):
        return np.zeros(0, np.int32)
    if numbers.view(np.int64).min() < 0 or not numbers.max() < _LARGEST / _SCALE:  # also -0.0, NaN
        return None
    codes = np.rint(numbers * _SCALE)
    if not np.array_equal(codes / _SCALE, numbers):
        return None
    size = _table_size(codes)
    return codes.astype(np.int32) if size in _tables or 2 * len(codes) > size else None


def _table_size(codes: npt.NDArray[Any]) -> int:
    return max(_SMALLEST, 1 << int(codes.max(initial=0)).bit_length())


def _table(size: int) -> pa.Array:
    """The numbers 0, 0.01, ... as text, `size` of them, with each pair of _AROUND around them, pair by pair."""
    with _lock:
        if size not in _tables:
            numbers = pa.table({"number": np.arange(size) / _SCALE})
            plain = text_column(
                query("SELECT to_json(number)::VARCHAR AS text FROM numbers", numbers=numbers)
            )
            forms = [pc.binary_join_element_wise(before, plain, after, "") for before, after in _AROUND]
            _tables[size] = pa.concat_arrays(forms)
        return _tables[size]
