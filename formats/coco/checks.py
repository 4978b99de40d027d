"""What every COCO record must pass before its values are looked at: JSON, UTF-8, no NaN; its other members as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
from rayds.formats._records import Records
from rayds.sql import joined_bytes, query

Ints = npt.NDArray[np.int64]

_CONSTANT = r"(?i)nan|inf"  # DuckDB reads these as numbers; strings may hold them too
_EXACT = float(1 << 53)


def broken() -> tuple[type[Exception], ...]:
    """What DuckDB raises for broken JSON; the second when its message would quote bytes that are not UTF-8."""
    import duckdb  # takes 40 ms: not before the first records are on their way

    return duckdb.Error, UnicodeDecodeError


def checked_json(records: Records, file: str, bad: list[DataError]) -> tuple[pa.Array, Ints]:
    """(texts of the records that are valid JSON, their numbers); the others go to `bad`."""
    texts = records.texts()
    keep = np.arange(len(records))
    table = query("SELECT json_valid(j) AS ok FROM t", t=pa.table({"j": texts}))
    ok = table.column("ok").combine_chunks().to_numpy(zero_copy_only=False).astype(bool)
    raw = texts.cast(pa.binary())
    for i in np.flatnonzero(~ok):
        data: bytes = raw[int(i)].as_py()
        place, text = records.place(int(i)), data.decode(errors="replace")
        try:
            json.loads(data.decode(), parse_constant=_no_constant)
            reason = "not valid JSON"
        except UnicodeDecodeError as e:
            place = f"byte {records.base + int(records.starts[i]) + e.start}"
            reason = f"the byte 0x{data[e.start]:02x} is not UTF-8"
        except ValueError as e:
            reason = f"not valid JSON ({e})"
        bad.append(
            DataError(reason, file=file, place=place, item=_guess_item(text), remedy="Repair the file")
        )
    return texts.filter(pa.array(ok)), keep[ok]


def in_file_order(errors: list[DataError]) -> None:
    """Sort errors by the byte that each names: what is told first must not depend on which check runs first."""
    errors.sort(key=lambda e: int((e.place or "byte 0").split()[1]))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _guess_item(text: str) -> str | None:
    """The image that a broken record speaks of, for the message."""
    name = re.search(r'"file_name"\s*:\s*"([^"]{1,200})"', text)
    if name:
        return name.group(1)
    id = re.search(r'"image_id"\s*:\s*"?(-?\d+)', text)
    return f"image {id.group(1)}" if id else None


def constants_in(texts: pa.Array) -> dict[int, str]:
    """The rows of JSON texts that hold NaN or an infinity as a number, each with what is wrong."""
    if not np.any(np.frombuffer(joined_bytes(texts), np.uint8) >= ord("A")):  # digits, most likely
        return {}
    suspects = pc.fill_null(pc.match_substring_regex(texts, _CONSTANT), False).to_numpy(zero_copy_only=False)
    found: dict[int, str] = {}
    for i in np.flatnonzero(suspects):
        try:
            json.loads(texts[int(i)].as_py(), parse_constant=_no_constant)
        except ValueError as e:
            found[int(i)] = str(e)
    return found


def integers(values: pa.Array, texts: pa.Array, key: str) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """(int64 of numbers that were read as doubles, which of them are no integers).

    Doubles tell 1.5 from 2, which DuckDB's own integers don't; those beyond 2**53 are read again.
    """
    if values.null_count == len(values):
        return pa.nulls(len(values), pa.int64()), np.zeros(len(values), bool)
    null = values.is_null().to_numpy(zero_copy_only=False)
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    wrong = (np.floor(numbers) != numbers) | (np.abs(numbers) >= 2.0**63)  # NaN is unequal too
    whole = np.where(wrong, 0, numbers).astype(np.int64)
    large = np.flatnonzero((np.abs(numbers) >= _EXACT) & ~wrong)
    if len(large):
        sql = f"SELECT TRY_CAST(json_extract_string(j, '$.{key}') AS BIGINT) AS v FROM t"
        again = query(sql, t=pa.table({"j": texts.take(pa.array(large))})).column("v").to_pylist()
        for i, value in zip(large, again, strict=True):
            wrong[i] |= value is None
            whole[i] = value or 0
    return pa.array(whole, mask=null | wrong), wrong & ~null


def members_sql(keys: Sequence[str]) -> str:
    """SQL that gives some members of the JSON object j as text: '"k":v,"k2":v2', null when it has none of them."""
    names, paths = [], []
    for key in keys:
        names.append(json.dumps(key, ensure_ascii=False).replace("'", "''"))
        # DuckDB's paths have no empty names; its pointers do.
        path = (
            "/"
            if not key
            else ('$."' + key.replace("\\", "\\\\").replace('"', '\\"') + '"').replace("'", "''")
        )
        paths.append(f"'{path}'")
    found = f"json_extract(j, [{', '.join(paths)}])"  # one look at j, as it is the same expression for all
    parts = [f"'{name}:' || {found}[{i + 1}]::VARCHAR" for i, name in enumerate(names)]
    return f"nullif(concat_ws(',', {', '.join(parts)}), '')"


def distinct_keys(texts: pa.Array | pa.ChunkedArray) -> list[str]:
    """The keys that some JSON objects have."""
    table = pa.table({"j": texts})
    return list(query("SELECT DISTINCT unnest(json_keys(j)) AS k FROM t", t=table).column("k").to_pylist())
