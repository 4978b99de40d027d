"""The Arrow schema of an item table, and flat, copy-free views of its nested annotations.

An item table has one row an item; ``annotations`` is a list of structs, so that an item never needs
a join to find its annotations. ``flat`` gives the annotations of a whole block as columns with the
row that each belongs to: hot code works on those with NumPy, Arrow or DuckDB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


class AnnotationType(IntEnum):
    """The kind of an annotation; the numbers are those in the ``type`` column and are never reused."""

    label = 1
    mask = 2
    points = 3
    polygon = 4
    polyline = 5
    bbox = 6
    caption = 7
    cuboid_3d = 8
    ellipse = 11
    rotated_bbox = 14


DEFAULT_SUBSET = "default"

MASK_TYPE = pa.struct([("height", pa.int32()), ("width", pa.int32()), ("counts", pa.string())])

MEDIA_TYPE = pa.struct(
    [
        ("kind", pa.string()),  # image | point_cloud
        ("path", pa.string()),  # fsspec URL or local path
        ("data", pa.binary()),  # encoded bytes, for packed formats
        ("encoding", pa.string()),  # file extension of `data`, with dot: .jpg, .png, ...
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("related", pa.list_(pa.string())),
        ("edits", pa.string()),  # JSON list of steps that change the decoded image (rayds.edits), null: none
    ]
)

ANNOTATION_TYPE = pa.struct(
    [
        ("type", pa.int8()),
        ("id", pa.int64()),  # 0: none
        ("group", pa.int64()),  # 0: none; rows of one object share it, unique in the item
        ("label", pa.int32()),  # index into LabelCategories
        ("z_order", pa.int32()),
        ("points", pa.list_(pa.float64())),
        ("visibility", pa.list_(pa.int8())),
        ("mask", MASK_TYPE),
        ("text", pa.string()),
        ("attributes", pa.string()),  # JSON object, null when empty
        ("extra", pa.string()),  # JSON object {format family: {...}}, null when empty
    ]
)

ITEM_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("subset", pa.string()),
        ("media", MEDIA_TYPE),
        ("attributes", pa.string()),
        ("annotations", pa.list_(ANNOTATION_TYPE)),
        ("extra", pa.string()),
    ]
)

# In flight only, and only under the policies skip and quarantine: a JSON record of what is wrong with
# the item. Engines carry such rows past every stage; they are counted, and written, at the end.
ERROR_COLUMN = "error"

IntArray = npt.NDArray[np.int64]


def _column(value: Any, n: int, type_: pa.DataType) -> pa.Array:
    """An Arrow array of length n from an array, a scalar or None (nulls)."""
    if value is None:
        return pa.nulls(n, type_)
    if isinstance(value, pa.ChunkedArray):
        value = value.combine_chunks()
        if isinstance(value, pa.ChunkedArray):  # pyarrow keeps zero chunks as a chunked array
            value = pa.concat_arrays(value.chunks) if value.num_chunks else pa.nulls(0, type_)
    if isinstance(value, pa.Array):
        return value if value.type == type_ else value.cast(type_)
    if isinstance(value, (np.ndarray, list, tuple)):
        return pa.array(value, type_)
    return pa.repeat(pa.scalar(value, type_), n)


def _struct(type_: pa.StructType, n: int, columns: Mapping[str, Any]) -> pa.StructArray:
    unknown = set(columns) - {f.name for f in type_}
    if unknown:
        raise KeyError(f"no such columns: {sorted(unknown)}")
    return pa.StructArray.from_arrays(
        [_column(columns.get(f.name), n, f.type) for f in type_], fields=list(type_)
    )


def annotation_rows(n: int, **columns: Any) -> pa.StructArray:
    """n annotation structs from columns (arrays, or scalars to repeat); ids, groups and z_order default to 0."""
    return _struct(ANNOTATION_TYPE, n, {"id": 0, "group": 0, "z_order": 0, **columns})


def media_rows(n: int, **columns: Any) -> pa.StructArray:
    """n media structs from columns (arrays, or scalars to repeat); kind defaults to "image"."""
    return _struct(MEDIA_TYPE, n, {"kind": "image", **columns})


def with_fields(rows: pa.StructArray, **columns: Any) -> pa.StructArray:
    """Annotation structs with some of their fields replaced (arrays, scalars to repeat, or None for nulls)."""
    fields = {f.name: pc.struct_field(rows, f.name) for f in ANNOTATION_TYPE}
    unknown = set(columns) - set(fields)
    if unknown:
        raise KeyError(f"no such columns: {sorted(unknown)}")
    for name, value in columns.items():
        fields[name] = _column(value, len(rows), ANNOTATION_TYPE.field(name).type)
    return pa.StructArray.from_arrays(list(fields.values()), fields=list(ANNOTATION_TYPE))


def mask_rows(n: int, height: Any, width: Any, counts: Any) -> pa.StructArray:
    """n mask structs; rows whose `counts` is null become null masks."""
    arrays = [_column(v, n, t) for v, t in ((height, pa.int32()), (width, pa.int32()), (counts, pa.string()))]
    return pa.StructArray.from_arrays(arrays, fields=list(MASK_TYPE), mask=pc.is_null(arrays[2]))


def list_of(values: pa.Array, counts: npt.NDArray[Any]) -> pa.ListArray:
    """A list array over `values`, the i-th list holding `counts[i]` of them (no copy)."""
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def item_table(
    n: int, annotations: pa.StructArray | None = None, counts: Any = None, **columns: Any
) -> pa.Table:
    """An item table of n rows from columns; `annotations` flat, `counts[i]` of them belonging to row i."""
    if annotations is None:
        annotations, counts = annotation_rows(0), np.zeros(n, np.int32)
    columns = {"subset": DEFAULT_SUBSET, **columns, "annotations": list_of(annotations, counts)}
    arrays = [_column(columns.pop(f.name, None), n, f.type) for f in ITEM_SCHEMA]
    if columns:
        raise KeyError(f"no such columns: {sorted(columns)}")
    return pa.Table.from_arrays(arrays, schema=ITEM_SCHEMA)


def empty_table() -> pa.Table:
    """An item table without rows."""
    return ITEM_SCHEMA.empty_table()


@dataclass(frozen=True)
class Flat:
    """The annotations of a block as one struct array.

    rows: StructArray of ANNOTATION_TYPE, length = annotations; item: row in the block of each, int64;
    offsets: annotations of row i are offsets[i]:offsets[i + 1], int64, length = items + 1.
    """

    rows: pa.StructArray
    item: IntArray
    offsets: IntArray
    _columns: dict[str, pa.Array] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> pa.Array:
        """One field of all annotations, e.g. "label" or "points"."""
        if name not in self._columns:
            whole = self.rows.offset == 0
            self._columns[name] = self.rows.field(name) if whole else pc.struct_field(self.rows, name)
        return self._columns[name]

    def numpy(self, name: str, null: int = 0) -> npt.NDArray[Any]:
        """One integer field as NumPy; nulls become `null`."""
        column = self.column(name)
        if column.null_count:
            column = column.fill_null(null)
        values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return values

    @property
    def type(self) -> npt.NDArray[np.int8]:
        return self.numpy("type")


def single_chunk(table: pa.Table, name: str) -> pa.Array:
    """A column of a block as one array."""
    column = table.column(name)
    if column.num_chunks == 1:
        return column.chunk(0)
    if column.num_chunks == 0:
        return pa.nulls(0, column.type)
    return pa.concat_arrays(column.chunks)


def flat(block: pa.Table) -> Flat:
    """The flat annotation view of a block; no copy when the block is one chunk."""
    lists = single_chunk(block, "annotations")
    if lists.null_count:
        lists = pc.coalesce(lists, pa.scalar([], lists.type))
    offsets = lists.offsets.to_numpy().astype(np.int64)
    rows = lists.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    offsets = offsets - offsets[0]
    item = np.repeat(np.arange(len(lists)), np.diff(offsets))
    return Flat(rows, item, offsets)


def with_annotations(block: pa.Table, rows: pa.StructArray, counts: npt.NDArray[Any]) -> pa.Table:
    """The block with other annotations: `rows` flat, `counts[i]` of them for row i."""
    i = block.schema.get_field_index("annotations")
    return block.set_column(i, ITEM_SCHEMA.field("annotations"), list_of(rows, counts))


def with_column(block: pa.Table, name: str, values: Any) -> pa.Table:
    """The block with one of its columns replaced (an array, or a scalar to repeat)."""
    field = ITEM_SCHEMA.field(name)
    return block.set_column(
        block.schema.get_field_index(name), field, _column(values, block.num_rows, field.type)
    )


def media_field(block: pa.Table, name: str) -> pa.Array:
    """One field of the media column; null where an item has no media."""
    return pc.struct_field(single_chunk(block, "media"), name)


def with_media(block: pa.Table, **columns: Any) -> pa.Table:
    """The block with some fields of its media replaced (arrays, scalars or None); null media stay null."""
    media = single_chunk(block, "media")
    fields = {f.name: pc.struct_field(media, f.name) for f in MEDIA_TYPE}
    unknown = set(columns) - set(fields)
    if unknown:
        raise KeyError(f"no such columns: {sorted(unknown)}")
    for name, value in columns.items():
        fields[name] = _column(value, len(media), MEDIA_TYPE.field(name).type)
    made = pa.StructArray.from_arrays(list(fields.values()), fields=list(MEDIA_TYPE), mask=pc.is_null(media))
    return block.set_column(block.schema.get_field_index("media"), ITEM_SCHEMA.field("media"), made)


def split_errors(block: pa.Table) -> tuple[pa.Table, pa.Table | None]:
    """(good rows without the error column, bad rows or None)."""
    if ERROR_COLUMN not in block.schema.names:
        return block, None
    column = block.column(ERROR_COLUMN)
    good = block.drop_columns([ERROR_COLUMN])
    if column.null_count == len(column):
        return good, None
    bad = pc.is_valid(column)
    return good.filter(pc.invert(bad)), block.filter(bad)


def conform(table: pa.Table) -> pa.Table:
    """The table with exactly the columns and types of an item table (and the error column if it has one).

    Missing columns become null; raises ValueError when a column can't be cast or is unknown.
    """
    schema = ITEM_SCHEMA
    if ERROR_COLUMN in table.schema.names:
        schema = schema.append(pa.field(ERROR_COLUMN, pa.string()))
    unknown = set(table.schema.names) - set(schema.names)
    if unknown:
        raise ValueError(f"not columns of an item table: {sorted(unknown)}; have {schema.names}")
    if "id" not in table.schema.names:
        raise ValueError("an item table needs a column 'id'")
    if table.schema.equals(schema):
        return table
    arrays = []
    for wanted in schema:
        if wanted.name in table.schema.names:
            try:
                arrays.append(table.column(wanted.name).cast(wanted.type))
            except pa.ArrowException as e:
                have = table.column(wanted.name).type
                raise ValueError(
                    f"the column {wanted.name!r} is {have}, which is not {wanted.type}: {e}"
                ) from e
        elif wanted.name == "subset":
            arrays.append(_column(DEFAULT_SUBSET, table.num_rows, pa.string()))
        else:
            arrays.append(pa.nulls(table.num_rows, wanted.type))
    return pa.Table.from_arrays(arrays, schema=schema)
