"""Item records as item tables: parsed and checked in columns, and by ``careful`` where those leave a doubt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
from rayds.format import ReadContext
from rayds.formats._records import Records, RecordScanner
from rayds.formats.datumaro.careful import FAMILY, Careful, is_plain
from rayds.formats.datumaro.columns import Columns, parse, unquoted
from rayds.formats.datumaro.media import Locator
from rayds.formats.datumaro.seen import Seen
from rayds.parallel import ordered_map
from rayds.schema import (
    ITEM_SCHEMA,
    AnnotationType,
    annotation_rows,
    item_table,
    mask_rows,
    media_rows,
    single_chunk,
)

T = AnnotationType


@dataclass
class Made:
    """What some records became. origin: the record of each row of the table; errors: what was left out."""

    records: Records
    table: pa.Table
    origin: npt.NDArray[np.int64]
    errors: list[DataError]


def read_file(name: str, subset: str, remap: list[int], ctx: ReadContext) -> Iterator[pa.Table]:
    """The item tables of one annotation file, in order. remap: the label index of each of the file's labels."""
    file = ctx.root.path(name)
    reader = Reader(file, subset, remap, Locator(ctx.root, subset))
    seen = Seen()
    with ctx.root.open(name) as f:
        scanner = RecordScanner(f, file, ("items",))
        cut: list[DataError] = []
        for made in ordered_map(reader.read, _until_cut(scanner, cut), ctx.workers):
            for error in made.errors:
                ctx.bad(error, subset)
            table = _without_repeated(made, seen, file, subset, ctx)
            for start in range(0, table.num_rows, ctx.block_rows):
                yield table.slice(start, ctx.block_rows)
        if cut:
            raise cut[0]
        left = scanner.skeleton.get("items")
    if left != []:  # no list, or something in it that is no record
        raise DataError(
            f"'items' is {json.dumps(left)[:60]}, not a list of objects", file=file, remedy="Repair it"
        )


def _until_cut(scanner: RecordScanner, cut: list[DataError]) -> Iterator[Records]:
    """The records up to where the file stops being JSON: an error that overtook them on their threads would take them along."""
    try:
        yield from scanner.records()
    except DataError as e:
        cut.append(e)


def _without_repeated(made: Made, seen: Seen, file: str, subset: str, ctx: ReadContext) -> pa.Table:
    """The table without the items whose id was there before, which are reported."""
    ids = single_chunk(made.table, "id")
    again = seen.add(ids)
    if not again.any():
        return made.table
    for i in np.flatnonzero(again).tolist():
        error = DataError(
            f"the id occurs twice in the subset {subset!r}",
            file=file,
            item=ids[i].as_py(),
            place=made.records.place(int(made.origin[i])),
            remedy="Rename one of the items, or leave the second out with --on-error skip",
        )
        ctx.bad(error, subset)
    return made.table.filter(pa.array(~again))


@dataclass
class Reader:
    """Makes item tables of records; safe on threads."""

    file: str
    subset: str
    remap: list[int]
    locator: Locator

    def read(self, records: Records) -> Made:
        """The items of some records."""
        texts = records.texts()
        items, broken = parse(texts)
        columns = Columns(items)
        doubt = columns.doubts(texts, records.quotes, len(self.remap)) | broken
        every = np.arange(len(doubt))
        if not doubt.any():
            return Made(records, self._table(columns), every, [])
        careful = Careful(self.file, self.subset, self.remap, self.locator)
        rows, origin = [], []
        for i in np.flatnonzero(doubt).tolist():
            data = records.data[records.starts[i] : records.ends[i]].tobytes()
            row = careful.row(data, records.place(i))
            if row is not None:
                rows.append(row)
                origin.append(i)
        table = pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)
        both = np.concatenate([every[~doubt], np.array(origin, np.int64)])
        if not doubt.all():
            sure = self._table(Columns(items.filter(pa.array(~doubt))))
            table = pa.concat_tables([sure, table]).combine_chunks()
        order = np.argsort(both)
        if len(rows) and not doubt.all():
            table = table.take(pa.array(order))
        return Made(records, table, both[order], careful.errors)

    def _table(self, c: Columns) -> pa.Table:
        ids = pc.replace_substring(unquoted(c.field("id")), "\\", "/")
        label = c.integer("label_id")
        if self.remap != list(range(len(self.remap))):
            label = pa.array(self.remap, pa.int32()).take(label)
        annotations = annotation_rows(
            len(c.type),
            type=c.type,
            id=c.integer("id").fill_null(0),
            group=c.integer("group").fill_null(0),
            label=label,
            z_order=c.integer("z_order").fill_null(0),
            points=_points(c),
            visibility=c.lists["visibility"],
            mask=_masks(c),
            text=unquoted(c.row_field("caption")),
            attributes=_not_empty(c.row_field("attributes")),
            extra=_object_ids(c.row_field("object_id")),
        )
        media, extra = self._media(c, ids)
        return item_table(
            len(ids),
            annotations,
            np.diff(c.offsets),
            id=ids,
            subset=self.subset,
            media=media,
            attributes=_not_empty(c.field("attr")),
            extra=extra,
        )

    def _media(self, c: Columns, ids: pa.Array) -> tuple[pa.Array, pa.Array]:
        """(media structs, extra texts); a loop over items, as each file is looked for."""
        n = len(ids)
        has = c.has_image | c.has_cloud
        kinds = np.where(c.has_cloud, "point_cloud", "image").tolist()
        names = unquoted(pc.if_else(pa.array(c.has_cloud), c.cloud_path, c.image_path)).to_pylist()
        listed = ids.to_pylist()
        paths: list[str | None] = [None] * n
        extra: list[str | None] = [None] * n
        for i in np.flatnonzero(has).tolist():
            item, name, kind = listed[i], names[i], kinds[i]
            if not name:
                name = f"{item}.jpg"
            elif not is_plain(item, name):
                extra[i] = json.dumps(
                    {FAMILY: {kind: {"path": name}}}, ensure_ascii=False, separators=(",", ":")
                )
            paths[i] = self.locator.path(name, kind, file=self.file, item=item)
        known = c.image_size.is_valid()
        sizes = np.zeros((n, 2), np.int32)
        sizes[known.to_numpy(zero_copy_only=False)] = _matrix(c.image_size, 2)
        unknown = ~known.to_numpy(zero_copy_only=False)
        height, width = (pa.array(sizes[:, k], mask=unknown) for k in (0, 1))
        media = media_rows(n, kind=pa.array(kinds, pa.string()), path=paths, height=height, width=width)
        if not has.all():
            media = pa.StructArray.from_arrays(media.flatten(), fields=list(media.type), mask=pa.array(~has))
        return media, pa.array(extra, pa.string())


def _matrix(lists: pa.Array, n: int) -> npt.NDArray[np.float64]:
    """The lists that are not null, all of length n, as the rows of a matrix."""
    values: npt.NDArray[np.float64] = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, n)
    return values


def _points(c: Columns) -> pa.Array:
    points = pc.coalesce(c.lists["points"], c.lists["bbox"])
    cuboids = np.flatnonzero(c.type == T.cuboid_3d)
    if not len(cuboids):
        return points
    values = np.concatenate([_matrix(c.lists[k], 3) for k in ("position", "rotation", "scale")], axis=1)
    ends = np.arange(len(cuboids) + 1, dtype=np.int32) * 9
    nine = pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel()))
    order = np.arange(len(points))
    order[cuboids] = len(points) + np.arange(len(cuboids))
    return pa.concat_arrays([points.cast(nine.type), nine]).take(pa.array(order))


def _masks(c: Columns) -> pa.Array | None:
    if not c.has_rle.any():
        return None
    sizes = np.zeros((len(c.type), 2), np.int32)
    sizes[c.has_rle] = _matrix(c.rle_size, 2)
    return mask_rows(len(c.type), sizes[:, 0], sizes[:, 1], unquoted(c.rle_counts))


def _not_empty(texts: pa.Array) -> pa.Array:
    """The texts of JSON objects, null for empty ones."""
    empty = pc.equal(texts, "{}")
    if pc.all(empty.fill_null(True)).as_py():
        return pa.nulls(len(texts), pa.string())
    if not pc.any(empty).as_py():
        return texts
    return pc.if_else(empty.fill_null(False), pa.scalar(None, pa.string()), texts)


def _object_ids(texts: pa.Array) -> pa.Array | None:
    """The `extra` of annotations that have an object id."""
    if texts.null_count == len(texts):
        return None
    return pc.binary_join_element_wise(f'{{"{FAMILY}":{{"object_id":', texts, "}}", "")
