"""The images section of COCO files: records -> columns of items, and where the image files are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
from rayds.formats import _compiled
from rayds.formats._records import Records
from rayds.formats.coco.checks import (
    broken,
    checked_json,
    constants_in,
    distinct_keys,
    in_file_order,
    integers,
    members_sql,
)
from rayds.formats.coco.layout import EXTENSION
from rayds.schema import media_rows
from rayds.sql import query
from rayds.storage import safe_relative

Ints = npt.NDArray[np.int64]

_KNOWN = {"id": '"DOUBLE"', "file_name": '"VARCHAR"', "width": '"INTEGER"', "height": '"INTEGER"'}
# The flags of the compiled scanner's images
_HAS_WIDTH, _HAS_HEIGHT, _HAS_EXTRA = 1, 2, 4
_SPEC = "{" + ",".join(f'"{k}":{v}' for k, v in _KNOWN.items()) + ',"attributes":"JSON"}'


def images_of(records: Records, file: str) -> tuple[pa.Table, list[DataError]]:
    """(id, file_name, width, height, attributes, extra, place) of some image records, and the bad ones left out."""
    return _checked(_plain_images(records) or _parsed_images(records, file), file)


@dataclass
class _Parsed:
    """Image records as columns, before what they say is looked at.

    attributes: the end of the JSON object that begins with the image's id; places: of the records; wrong: what is wrong
    with some, by number; errors: of those left out.
    """

    id: pa.Array
    file_name: pa.Array
    width: pa.Array
    height: pa.Array
    attributes: pa.Array
    extra: pa.Array
    places: Ints
    wrong: dict[int, str] = field(default_factory=dict)
    errors: list[DataError] = field(default_factory=list)


def _plain_images(records: Records) -> _Parsed | None:
    """Records that are plain, all of them, by the compiled scanner; else None."""
    if not len(records) or not _compiled.takes(records.data):
        return None
    found = _compiled.jsonscan.images(records.data, records.starts, records.ends)
    if found is None:
        return None
    n = len(records)
    flags = np.frombuffer(found[0], np.uint8)
    ids, sizes = np.frombuffer(found[1], np.int64), np.frombuffer(found[2], np.int32).reshape(-1, 2)
    names, extra = (
        pa.StringArray.from_buffers(n, *map(pa.py_buffer, pair)) for pair in (found[3:5], found[5:7])
    )
    try:
        names.validate(full=True)
        extra.validate(full=True)
    except pa.ArrowInvalid:  # not UTF-8
        return None
    if not (flags & _HAS_EXTRA).all():
        extra = pc.if_else(pa.array((flags & _HAS_EXTRA) != 0), extra, None)
    width, height = (
        pa.array(sizes[:, k], mask=(flags & flag) == 0) for k, flag in enumerate((_HAS_WIDTH, _HAS_HEIGHT))
    )
    attributes = pa.repeat(pa.scalar("}"), n)
    return _Parsed(pa.array(ids), names, width, height, attributes, extra, records.base + records.starts)


def _parsed_images(records: Records, file: str) -> _Parsed:
    """Any records, by DuckDB."""
    errors: list[DataError] = []
    texts, number = records.texts(), np.arange(len(records))
    try:
        keys = distinct_keys(texts)
    except broken():
        texts, number = checked_json(records, file, errors)
        keys = distinct_keys(texts)
    unknown = sorted(k for k in keys if k not in _KNOWN and k != "attributes")
    members = members_sql(unknown) if unknown else "NULL"
    sql = f"""SELECT r.id, r.file_name, r.width, r.height,
                CASE WHEN r.attributes LIKE '{{%' AND json_keys(r.attributes) <> []
                     THEN ',' || substr(r.attributes, 2) ELSE '}}' END AS attributes,
                CASE WHEN e IS NOT NULL THEN '{{"coco":{{' || e || '}}}}' END AS extra
              FROM (SELECT from_json(j, '{_SPEC}') AS r, {members} AS e FROM t)"""
    found = query(sql, t=pa.table({"j": texts})).combine_chunks()
    id, _ = integers(_array(found, "id"), texts, "id")
    names, width, height, attributes, extra = (
        _array(found, name) for name in ("file_name", "width", "height", "attributes", "extra")
    )
    wrong = _odd_sizes(texts, width, height) | constants_in(texts)
    places = records.base + records.starts[number]
    return _Parsed(id, names, width, height, attributes, extra.cast(pa.string()), places, wrong, errors)


def _checked(found: _Parsed, file: str) -> tuple[pa.Table, list[DataError]]:
    """The good images, and what is wrong with the others."""
    id, errors = found.id, found.errors
    bad = np.zeros(len(id), bool)
    names = found.file_name
    suspects = _suspects(id, names, found.wrong)
    if len(suspects):
        texts = names.to_pylist()
        for i in suspects.tolist():
            reason = found.wrong.get(i)
            if not id[i].is_valid:
                reason = "an image needs an integer 'id'"
            elif not texts[i]:
                reason = "the key 'file_name' is missing"
            elif reason is None:
                try:
                    texts[i] = safe_relative(texts[i])
                except DataError as e:
                    reason = e.reason
            if reason:
                bad[i] = True
                item = texts[i] or (f"image {id[i]}" if id[i].is_valid else None)
                errors.append(DataError(reason, file=file, place=f"byte {found.places[i]}", item=item))
        names = pa.array(texts, pa.string())
    in_file_order(errors)
    table = pa.table(
        {
            "id": id,
            "file_name": names,
            "width": found.width,
            "height": found.height,
            "attributes": pc.binary_join_element_wise('{"id":', id.cast(pa.string()), found.attributes, ""),
            "extra": found.extra,
            "place": found.places,
        }
    )
    return (table.filter(pa.array(~bad)) if bad.any() else table), errors


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)


def _odd_sizes(texts: pa.Array, width: pa.Array, height: pa.Array) -> dict[int, str]:
    """What is wrong with the sizes that are there but no whole numbers, by record."""
    unread = np.flatnonzero(pc.or_(width.is_null(), height.is_null()).to_numpy(zero_copy_only=False))
    if not len(unread):
        return {}
    named = pc.match_substring_regex(texts.take(pa.array(unread)), r'"(width|height)"\s*:\s*[^\sn]')
    found = {}
    for i in unread[named.to_numpy(zero_copy_only=False)].tolist():
        record = json.loads(texts[i].as_py())
        for key, read in (("width", width[i]), ("height", height[i])):
            if not read.is_valid and record.get(key) is not None:
                found[i] = f"{key!r} is no whole number: {json.dumps(record[key])[:60]}"
    return found


def _suspects(id: pa.Array, names: pa.Array, wrong: dict[int, str]) -> Ints:
    """The records that need a closer look: most don't."""
    odd = pc.fill_null(pc.match_substring_regex(names, r"^$|^[./\\]|\.\.|[\\:]|/\.?/|/$|\x00"), True)
    out = pc.or_(odd, id.is_null()).to_numpy(zero_copy_only=False)
    out[list(wrong)] = True
    return np.flatnonzero(out)


def item_columns(images: pa.Table, base: str) -> dict[str, pa.Array]:
    """id, media, attributes and extra of items; base: the folder of the image files."""
    names = _array(images, "file_name")
    width, height = _array(images, "width"), _array(images, "height")
    known = pc.and_(pc.greater(pc.fill_null(width, 0), 0), pc.greater(pc.fill_null(height, 0), 0))
    return {
        "id": pc.replace_substring_regex(names, EXTENSION, r"\1"),
        "media": media_rows(
            len(names),
            path=pc.binary_join_element_wise(pa.scalar(base), names, "/"),
            width=pc.if_else(known, width, None),
            height=pc.if_else(known, height, None),
        ),
        "attributes": _array(images, "attributes"),
        "extra": _array(images, "extra"),
    }
