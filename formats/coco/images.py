"""The images section of COCO files: records -> columns of items, and where the image files are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
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

_KNOWN = {"id": '"DOUBLE"', "file_name": '"VARCHAR"', "width": '"INTEGER"', "height": '"INTEGER"'}
_SPEC = "{" + ",".join(f'"{k}":{v}' for k, v in _KNOWN.items()) + ',"attributes":"JSON"}'


def images_of(records: Records, file: str) -> tuple[pa.Table, list[DataError]]:
    """(id, file_name, width, height, attributes, extra, place) of some image records, and the bad ones left out."""
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
    id, no_integer = integers(_array(found, "id"), texts, "id")
    constants = constants_in(texts)
    bad = np.zeros(len(texts), bool)
    names = found.column("file_name").to_pylist()
    places = records.base + records.starts[number]
    unsized = _odd_sizes(texts, _array(found, "width"), _array(found, "height"))
    suspects = _suspects(id, no_integer, _array(found, "file_name"), {**constants, **unsized})
    for i in np.flatnonzero(suspects):
        reason = constants.get(int(i)) or unsized.get(int(i))
        if no_integer[i] or id[int(i)].as_py() is None:
            reason = "an image needs an integer 'id'"
        elif not names[i]:
            reason = "the key 'file_name' is missing"
        elif reason is None:
            try:
                names[i] = safe_relative(names[i])
            except DataError as e:
                reason = e.reason
        if reason:
            bad[i] = True
            item = names[i] or (f"image {id[int(i)]}" if id[int(i)].is_valid else None)
            errors.append(DataError(reason, file=file, place=f"byte {places[i]}", item=item))
    in_file_order(errors)
    attributes = pc.binary_join_element_wise('{"id":', id.cast(pa.string()), _array(found, "attributes"), "")
    table = pa.table(
        {
            "id": id,
            "file_name": pa.array(names, pa.string()),
            "width": found.column("width"),
            "height": found.column("height"),
            "attributes": attributes,
            "extra": found.column("extra").cast(pa.string()),
            "place": places,
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


def _suspects(id: pa.Array, no_integer: Any, names: pa.Array, constants: dict[int, str]) -> Any:
    """The records that need a closer look: most don't."""
    odd = pc.or_(
        pc.fill_null(pc.match_substring_regex(names, r"^$|^[./\\]|\.\.|[\\:]|/\.?/|/$|\x00"), True),
        id.is_null(),
    )
    out = no_integer | odd.to_numpy(zero_copy_only=False)
    out[list(constants)] = True
    return out


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
