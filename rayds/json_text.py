"""JSON of strings, integers, members and of lists of numbers, many at once.

Nearly all coordinates of real datasets have at most two decimals and are below some thousands: their texts are looked up in a
table, which is five times as fast as printing each. Other numbers are printed by DuckDB.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.sql import joined_bytes, query, text_column

Ints = npt.NDArray[np.int64]

_SCALE = 100
_SMALLEST, _LARGEST = 1 << 16, 1 << 19  # entries of the table: numbers below 655.36, and below 5242.88
_AROUND = (("", ","), ("", "]"), ("[", ","), ("", "],"), ("", "]]"))  # what stands before and behind a number
_NEXT, _LAST, _INNER_FIRST, _INNER_LAST, _LAST_OF_ALL = range(len(_AROUND))
_PRINT = "SELECT substr(to_json(list)::VARCHAR, 2) AS text FROM lists"

_table: tuple[int, pa.Array] = (
    0,
    None,
)  # (numbers in it, the numbers 0, 0.01, ... with each pair of _AROUND, pair by pair)
_lock = threading.Lock()


def list_texts(lists: pa.Array) -> pa.Array:
    """The JSON of lists of numbers, or of lists of such lists, behind the bracket that opens each; null for null.

    [[1.5, 2], []] gives "1.5,2.0]", "]". lists: of float64 that are finite and not null; within lists, no null.
    """
    nested = pa.types.is_list(lists.type.value_type)
    lengths = _lengths(lists)
    bounds, inner = _bounds(lengths), lists.flatten()
    inner_lengths = _lengths(inner) if nested else None
    if inner_lengths is not None:
        ends = _bounds(inner_lengths)
        bounds, inner = ends[bounds], inner.flatten()
    short = (
        inner_lengths is not None and inner_lengths.min(initial=2) < 2
    )  # its first number is also its last
    codes = None if short else _codes(inner)
    table = None if codes is None else _table_of(codes)
    if codes is None or table is None:
        return text_column(query(_PRINT, lists=pa.table({"list": lists})))
    size, texts = table
    lasts = bounds[1:][lengths > 0] - 1
    if inner_lengths is not None:
        codes[ends[:-1]] += _INNER_FIRST * size
        codes[ends[1:] - 1] += _INNER_LAST * size
        codes[lasts] += (_LAST_OF_ALL - _INNER_LAST) * size
    else:
        codes[lasts] += _LAST * size
    return _slices(texts.take(pa.array(codes)), bounds, lists, lengths)


def string_texts(strings: pa.Array) -> pa.Array:
    """The JSON of strings; null for null."""
    if pc.any(pc.match_substring_regex(strings, r'["\\\x00-\x1f]')).as_py():
        return text_column(
            query("SELECT to_json(string)::VARCHAR AS text FROM t", t=pa.table({"string": strings}))
        )
    return pc.binary_join_element_wise('"', strings, '"', "")


def integer_texts(integers: Any) -> pa.Array:
    """The JSON of integers; null for null."""
    return pa.array(integers).cast(pa.string())


def member(name: str, values: pa.Array) -> pa.Array:
    """Texts with something before each, such as ',"width":'; null for null."""
    return pc.binary_join_element_wise(name, values, "")


def joined(parts: Sequence[pa.Array | str | None]) -> pa.Array:
    """The parts (texts for all rows, or one for each row) one after the other; nothing for null."""
    return pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="")


def may_hold(texts: pa.Array, part: str) -> bool:
    """Whether a text occurs in a column: in one of its texts, or where one ends and the next begins. False spares a look at each."""
    return texts.null_count < len(texts) and part.encode() in bytes(joined_bytes(texts))


def spans(texts: pa.Array, bounds: Ints) -> pa.Array:
    """The texts bounds[i]:bounds[i + 1] as one text, without a copy: they stand one after the other. texts: whole, not a slice."""
    ends, data = texts.buffers()[1:]
    offsets = np.frombuffer(ends, np.int32)[bounds]
    return pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(offsets), data)


def _slices(entries: pa.Array, bounds: Ints, lists: pa.Array, lengths: Ints) -> pa.Array:
    """The text of each list: entries bounds[i]:bounds[i + 1] together, "]" where there are none, null for null."""
    texts = spans(entries, bounds)
    if lengths.min(initial=1) == 0:
        texts = pc.if_else(pa.array(lengths == 0), "]", texts)
    return pc.if_else(lists.is_valid(), texts, pa.scalar(None, pa.string())) if lists.null_count else texts


def _lengths(lists: pa.Array) -> Ints:
    found: Ints = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _bounds(lengths: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)])


def _codes(values: pa.Array) -> npt.NDArray[np.int32] | None:
    """The place in the table of each number; None where there are none, or some that can't be in it."""
    numbers = values.to_numpy(zero_copy_only=False)
    # As integers, -0.0 and all numbers below it are negative; NaN is below nothing.
    if not len(numbers) or numbers.view(np.int64).min() < 0 or not numbers.max() < _LARGEST / _SCALE:
        return None
    codes = np.rint(numbers * _SCALE)
    return codes.astype(np.int32) if np.array_equal(codes / _SCALE, numbers) else None


def _table_of(codes: npt.NDArray[np.int32]) -> tuple[int, pa.Array] | None:
    """A table (see _table) that has all of some places; None where there is none, and too few places to make one for."""
    global _table
    largest = int(codes.max())
    with _lock:
        if largest >= _table[0]:
            size = max(_SMALLEST, 1 << largest.bit_length())
            if 2 * len(codes) < size:
                return None
            plain = _printed(size)
            _table = (
                size,
                pa.concat_arrays([pc.binary_join_element_wise(a, plain, b, "") for a, b in _AROUND]),
            )
        return _table


def _printed(n: int) -> pa.Array:
    """The JSON of 0, 0.01, 0.02, ..., n of them, as DuckDB prints them (Arrow leaves out the point where nothing is behind it)."""
    texts = pa.array(np.arange(n) / _SCALE).cast(pa.string())
    whole = pa.array(np.arange(n) % _SCALE == 0)
    return pc.if_else(whole, pc.binary_join_element_wise(texts, ".0", ""), texts)
