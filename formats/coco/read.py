"""Reading COCO subsets: images and annotations of all tasks, brought together by image in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
from rayds.format import ReadContext, Shard
from rayds.formats._records import Records, RecordScanner
from rayds.formats.coco.layout import SECTIONS, image_folder
from rayds.formats.coco.rows import ZERO_GROUP, Rows, annotations_of, checked_json, members_sql
from rayds.parallel import ordered_map
from rayds.schema import ANNOTATION_TYPE, AnnotationType, annotation_rows, item_table, media_rows
from rayds.sql import query
from rayds.storage import safe_relative

Ints = npt.NDArray[np.int64]
SPILL_BYTES = 768 << 20

_IMAGE = {"id": '"BIGINT"', "file_name": '"VARCHAR"', "width": '"INTEGER"', "height": '"INTEGER"'}
_IMAGE_SPEC = "{" + ",".join(f'"{k}":{v}' for k, v in _IMAGE.items()) + ',"attributes":"JSON"}'


@dataclass
class Images:
    """The images of a subset, one row each in file order; columns as in `columns_of`."""

    tables: list[pa.Table] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)


def images_of(records: Records, file: str) -> tuple[pa.Table, list[DataError]]:
    """(id, file_name, width, height, attributes, extra) of some image records, and the bad ones left out."""
    errors: list[DataError] = []
    texts, number = records.texts(), np.arange(len(records))
    table = pa.table({"j": texts})
    try:
        keys = query("SELECT DISTINCT unnest(json_keys(j)) AS k FROM t", t=table).column("k").to_pylist()
    except duckdb.Error:
        texts, number = checked_json(records, file, errors)
        table = pa.table({"j": texts})
        keys = query("SELECT DISTINCT unnest(json_keys(j)) AS k FROM t", t=table).column("k").to_pylist()
    unknown = sorted(k for k in keys if k not in _IMAGE and k != "attributes")
    members = members_sql(unknown) if unknown else "NULL"
    sql = f"""SELECT r.id, r.file_name, r.width, r.height,
                '{{"id":' || r.id || CASE WHEN r.attributes LIKE '{{%' AND json_keys(r.attributes) <> []
                   THEN ',' || substr(trim(r.attributes), 2) ELSE '}}' END AS attributes,
                CASE WHEN e IS NOT NULL THEN '{{"coco":{{' || e || '}}}}' END AS extra
              FROM (SELECT from_json(j, '{_IMAGE_SPEC}') AS r, {members} AS e FROM t)"""
    found = query(sql, t=table).combine_chunks()
    bad = np.zeros(len(texts), bool)
    names = found.column("file_name").to_pylist()
    for i, (id, name) in enumerate(zip(found.column("id").to_pylist(), names, strict=True)):
        reason = None
        if id is None:
            reason = "an image needs an integer 'id'"
        elif not name:
            reason = "the key 'file_name' is missing"
        elif name[0] in "./\\" or ".." in name or "\\" in name or ":" in name:
            try:
                names[i] = safe_relative(name)
            except DataError as e:
                reason = e.reason
        if reason:
            bad[i] = True
            place = records.place(int(number[i]))
            errors.append(DataError(reason, file=file, place=place, item=name or (None if id is None else f"image {id}")))
    found = found.set_column(1, "file_name", pa.array(names, pa.string()))
    return found.filter(pa.array(~bad)), errors


class Grouping:
    """Annotation rows by item: kept in buckets of `size` consecutive items, spilled to disk over a budget."""

    def __init__(self, size: int, folder: Path, budget: int = SPILL_BYTES) -> None:
        self.size, self.folder, self.budget = size, folder, budget
        self.held: dict[int, list[tuple[pa.StructArray, Ints]]] = {}
        self.spilled: list[dict[int, list[int]]] = []
        self.bytes = 0

    def add(self, rows: pa.StructArray, item: Ints) -> None:
        """Rows with the number of the item of each."""
        if not len(item):
            return
        if np.any(item[1:] < item[:-1]):
            order = np.argsort(item, kind="stable")
            rows, item = rows.take(pa.array(order)), item[order]
        buckets = item // self.size
        cuts = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(item)]
        for lo, hi in zip(cuts, cuts[1:], strict=False):
            self.held.setdefault(int(buckets[lo]), []).append((rows.slice(lo, hi - lo), item[lo:hi]))
        self.bytes += rows.nbytes + item.nbytes
        if self.bytes > self.budget:
            self._spill()

    def _spill(self) -> None:
        path = self.folder / f"{len(self.spilled)}.arrow"
        schema = pa.schema([("rows", ANNOTATION_TYPE), ("item", pa.int64())])
        places: dict[int, list[int]] = {}
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, schema) as writer:
            n = 0
            for bucket in sorted(self.held):
                for rows, item in self.held[bucket]:
                    writer.write_batch(pa.record_batch([rows, pa.array(item)], schema=schema))
                    places.setdefault(bucket, []).append(n)
                    n += 1
        self.spilled.append(places)
        self.held, self.bytes = {}, 0

    def bucket(self, i: int) -> tuple[pa.StructArray, Ints]:
        """(rows in order of their items, item of each, counted from the bucket's first)."""
        parts: list[tuple[pa.StructArray, Ints]] = []
        for k, places in enumerate(self.spilled):
            if i in places:
                with pa.memory_map(str(self.folder / f"{k}.arrow")) as f:
                    reader = pa.ipc.open_file(f)
                    batches = [reader.get_batch(n) for n in places[i]]
                    parts += [(b.column(0), b.column(1).to_numpy()) for b in batches]
        parts += self.held.pop(i, [])
        if not parts:
            return annotation_rows(0), np.zeros(0, np.int64)
        rows = pa.concat_arrays([p[0] for p in parts]) if len(parts) > 1 else parts[0][0]
        item = np.concatenate([p[1] for p in parts])
        if np.any(item[1:] < item[:-1]):
            order = np.argsort(item, kind="stable")
            rows, item = rows.take(pa.array(order)), item[order]
        return rows, item - i * self.size


class SubsetReader:
    """Reads one subset: the files of all its tasks."""

    def __init__(self, shard: Shard, ctx: ReadContext) -> None:
        self.shard, self.ctx = shard, ctx
        self.again = False
        self.subset: str = shard.data["subset"]
        self.files: list[tuple[str, str]] = [tuple(f) for f in shard.data["files"]]
        self.labels: dict[int, int] = shard.data["labels"]
        self.images: list[pa.Table] = []
        self.image_ids = np.zeros(0, np.int64)
        self.ids: dict[str, list[Ints]] = {}
        self.numbers: dict[str, list[Ints]] = {}
        self.waiting: list[Rows] = []
        self.counted = 0
        self.exclude: dict[str, frozenset[int]] = {}  # numbers of the records of each task to leave out

    def read(self) -> Iterator[pa.Table]:
        """The item tables of the subset, in the order of its images."""
        with tempfile.TemporaryDirectory(prefix="rayds-") as folder:
            grouping = Grouping(self.ctx.block_rows, Path(folder))
            for task, file in self.files:
                self._read_file(task, file, grouping)
            if not self.exclude:
                yield from self._blocks(grouping)
                return
        # Ids that occur twice show only at the end of a file: read again, without the later ones.
        again = SubsetReader(self.shard, self.ctx)
        again.exclude, again.again = self.exclude, True
        yield from again.read_without()

    def read_without(self) -> Iterator[pa.Table]:
        """Like read, for the second time: what is wrong has been reported."""
        reported = len(self.ctx.errors)
        with tempfile.TemporaryDirectory(prefix="rayds-") as folder:
            grouping = Grouping(self.ctx.block_rows, Path(folder))
            for task, file in self.files:
                self._read_file(task, file, grouping)
            del self.ctx.errors[reported:]
            yield from self._blocks(grouping)

    def _bad(self, error: DataError) -> None:
        self.ctx.bad(error, self.subset)

    def _read_file(self, task: str, file: str, grouping: Grouping) -> None:
        from rayds.formats.coco.panoptic import panoptic_rows

        path = self.ctx.root.path(file)
        exclude = self.exclude.get(task, frozenset())
        new_images: list[pa.Table] = []

        def parse(records: Records) -> Any:
            if records.section == "images":
                return images_of(records, path)
            if task == "panoptic":
                return panoptic_rows(records, file, self.ctx, self.labels)
            return annotations_of(records, path, self.labels, task, records.first + self.counted, exclude)

        seen = 0
        with self.ctx.root.open(file) as f:
            scanner = RecordScanner(f, path, SECTIONS)
            for made in ordered_map(parse, scanner.records(), self.ctx.workers):
                if isinstance(made, Rows):
                    for error in made.errors:
                        self._bad(error)
                    self.ids.setdefault(task, []).append(made.ids)
                    self.numbers.setdefault(task, []).append(made.number)
                    seen += len(made.ids)
                    if new_images:
                        self._take_images(new_images, path)
                        new_images = []
                    self._place(made, path, grouping, final=False)
                else:
                    table, errors = made
                    for error in errors:
                        self._bad(error)
                    new_images.append(table)
        self._take_images(new_images, path)
        for rows in self.waiting:
            self._place(rows, path, grouping, final=True)
        self.waiting = []
        self.counted += seen
        if task not in ("captions", "image_info"):
            self._check_ids(task, path)
        if "images" not in scanner.skeleton:
            self._bad(DataError("the key 'images' is missing", file=path, remedy="Is this a COCO annotation file?"))

    def _take_images(self, tables: list[pa.Table], path: str) -> None:
        """Add the images of a file that earlier files of the subset don't have."""
        if not tables:
            return
        table = pa.concat_tables(tables).combine_chunks()
        ids = table.column("id").to_numpy()
        unique, first, counts = np.unique(ids, return_index=True, return_counts=True)
        keep = np.zeros(len(ids), bool)
        keep[first] = True
        for i in np.flatnonzero(~keep):
            name = table.column("file_name")[int(i)].as_py()
            self._bad(DataError(f"the image id {ids[i]} occurs twice", file=path, item=name))
        if len(self.image_ids):
            keep &= ~np.isin(ids, self.image_ids)
        table = table.filter(pa.array(keep))
        self.images.append(table)
        self.image_ids = np.concatenate([self.image_ids, table.column("id").to_numpy()])
        self._order = np.argsort(self.image_ids, kind="stable")
        self._sorted = self.image_ids[self._order]

    def _place(self, made: Rows, path: str, grouping: Grouping, final: bool) -> None:
        """Put rows where their images are; those whose image has not come yet wait for the end of the file."""
        if not len(made.image):
            return
        if not len(self.image_ids):
            at = np.zeros(len(made.image), np.int64)
            known = np.zeros(len(made.image), bool)
        else:
            at = np.minimum(np.searchsorted(self._sorted, made.image), len(self._sorted) - 1)
            known = self._sorted[at] == made.image
        if not known.all():
            unknown = np.flatnonzero(~known)
            if not final:
                self.waiting.append(_part(made, unknown))
            else:
                rows = unknown[np.unique(made.annotation[unknown], return_index=True)[1]]
                for row in rows:
                    id = made.ids[made.annotation[row]]
                    reason = f"annotation {id}: the image id {made.image[row]} is not among the images"
                    self._bad(DataError(reason, file=path))
            made, at = _part(made, np.flatnonzero(known)), at[known]
        if len(made.image):
            grouping.add(made.rows, self._order[at])

    def _check_ids(self, task: str, path: str) -> None:
        """Annotation ids must be unique in a file; the records of later ones are noted in `exclude`."""
        if self.again or task not in self.ids:
            return
        ids, numbers = np.concatenate(self.ids[task]), np.concatenate(self.numbers[task])
        order = np.lexsort((numbers, ids))
        later = order[1:][ids[order][1:] == ids[order][:-1]]
        if not len(later):
            return
        for row in later[:1000]:
            self._bad(
                DataError(
                    f"the annotation id {ids[row]} occurs more than once",
                    file=path,
                    item=f"annotation {ids[row]}",
                    place=f"record {numbers[row]}",
                    remedy="Give every annotation its own id",
                )
            )
        self.exclude[task] = frozenset(numbers[later].tolist())

    def _blocks(self, grouping: Grouping) -> Iterator[pa.Table]:
        if not self.images:
            return
        images = pa.concat_tables(self.images).combine_chunks()
        columns = self._image_columns(images)
        largest = max((int(i.max()) for parts in self.ids.values() for i in parts if len(i)), default=0)
        several = len([t for t in self.ids if t != "captions"]) > 1
        size = grouping.size

        def block(i: int) -> pa.Table:
            rows, item = grouping.bucket(i)
            n = min(size, images.num_rows - i * size)
            if several:
                rows, item = merge_tasks(rows, item)
            rows = _number_missing(rows, largest)
            counts = np.bincount(item, minlength=n)
            part = {k: v.slice(i * size, n) for k, v in columns.items()}
            return item_table(n, rows, counts, subset=self.subset, **part)

        yield from ordered_map(block, range(-(-images.num_rows // size)), self.ctx.workers)

    def _image_columns(self, images: pa.Table) -> dict[str, pa.Array]:
        names = images.column("file_name").combine_chunks()
        ids = pc.replace_substring_regex(names, r"\.[^./]*$", "")
        if pc.count_distinct(ids).as_py() < len(ids):
            counts = pc.value_counts(ids)
            twice = next(v["values"] for v in counts.to_pylist() if v["counts"] > 1)
            self._bad(
                DataError(
                    "two images of a subset differ in their extension only, or have one file name",
                    file=self.ctx.root.path(self.files[0][1]),
                    item=twice,
                    remedy="Rename one of them",
                )
            )
            first = np.sort(np.unique(np.array(ids.to_pylist(), object), return_index=True)[1])
            lost = np.setdiff1d(np.arange(len(ids)), first)
            ids = _renamed(ids, lost)
        folder = image_folder(self.ctx.root, self.subset, names[0].as_py(), _parent(self.files[0][1])) if len(names) else ""
        base = self.ctx.root.path(folder)
        path = pc.binary_join_element_wise(pa.scalar(base), names, "/")
        width, height = images.column("width").combine_chunks(), images.column("height").combine_chunks()
        known = pc.and_(pc.greater(pc.fill_null(width, 0), 0), pc.greater(pc.fill_null(height, 0), 0))
        media = media_rows(
            len(names),
            path=path,
            width=pc.if_else(known, width, None),
            height=pc.if_else(known, height, None),
        )
        return {
            "id": ids,
            "media": media,
            "attributes": images.column("attributes").combine_chunks(),
            "extra": images.column("extra").combine_chunks(),
        }


def _renamed(ids: pa.Array, rows: Ints) -> pa.Array:
    """ids that would be taken twice get their row number appended (only met under skip and quarantine)."""
    texts = ids.to_pylist()
    for row in rows:
        texts[row] = f"{texts[row]}~{row}"
    return pa.array(texts, pa.string())


def _parent(path: str) -> str:
    return path.rsplit("/", 1)[0] if "/" in path else ""


def _part(made: Rows, rows: Ints) -> Rows:
    return Rows(made.rows.take(pa.array(rows)), made.image[rows], made.ids, made.number, made.annotation[rows])


def _replace(rows: pa.StructArray, **columns: pa.Array) -> pa.StructArray:
    arrays = [columns.get(f.name, rows.field(f.name) if not rows.offset else pc.struct_field(rows, f.name)) for f in ANNOTATION_TYPE]
    return pa.StructArray.from_arrays(arrays, fields=list(ANNOTATION_TYPE))


def _number_missing(rows: pa.StructArray, largest: int) -> pa.StructArray:
    """Annotations that came without an id (negative here) get the numbers after the largest one."""
    id = pc.struct_field(rows, "id").to_numpy()
    if not np.any(id < 0):
        return rows
    fresh = np.where(id < 0, max(largest, 0) - id, id)
    group = pc.struct_field(rows, "group").to_numpy()
    return _replace(rows, id=pa.array(fresh), group=pa.array(np.where(group < 0, max(largest, 0) - group, group)))


def merge_tasks(rows: pa.StructArray, item: Ints) -> tuple[pa.StructArray, Ints]:
    """Rows of several task files of the same images: an object that two files tell is one.

    person_keypoints repeats the boxes and polygons of instances under the same annotation id: the repeated rows
    go, the key points join the group. Other objects of one number get a group of their own.
    """
    kind = pc.struct_field(rows, "type").to_numpy()
    group = pc.struct_field(rows, "group").to_numpy()
    spatial = np.flatnonzero(group != 0)
    if not len(spatial):
        return rows, item
    table = pa.table(
        {
            "item": item[spatial],
            "g": group[spatial],
            "type": kind[spatial],
            "label": pc.struct_field(rows, "label").take(pa.array(spatial)),
            "points": pc.struct_field(rows, "points").take(pa.array(spatial)),
            "mask": pc.struct_field(pc.struct_field(rows, "mask"), "counts").take(pa.array(spatial)),
            "row": spatial,
        }
    )
    repeated = query(
        """SELECT row FROM (SELECT row, row_number() OVER (
             PARTITION BY item, g, type, label, points, mask ORDER BY row) AS k FROM t) WHERE k > 1""",
        t=table,
    ).column("row")
    keep = np.ones(len(item), bool)
    keep[repeated.to_numpy()] = False
    rows, item = rows.filter(pa.array(keep)), item[keep]
    return _split_strangers(rows, item), item


def _split_strangers(rows: pa.StructArray, item: Ints) -> pa.StructArray:
    """Rows of one group whose labels differ are different objects: the later label gets a new group."""
    group = pc.struct_field(rows, "group").to_numpy().copy()
    label = pc.struct_field(rows, "label").fill_null(-1).to_numpy()
    grouped = np.flatnonzero(group > 0)
    order = grouped[np.lexsort((grouped, group[grouped], item[grouped]))]
    same = (item[order][1:] == item[order][:-1]) & (group[order][1:] == group[order][:-1])
    if not np.any(same & (label[order][1:] != label[order][:-1])):
        return rows
    first: dict[tuple[int, int], int] = {}
    for row in order.tolist():
        key = (int(item[row]), int(group[row]))
        lead = first.setdefault(key, int(label[row]))
        if lead != label[row]:
            group[row] = ZERO_GROUP + 1 + int(label[row]) * (1 << 40) % (1 << 60) + int(group[row]) % (1 << 40)
    return _replace(rows, group=pa.array(group))


def keep_types(rows: pa.StructArray, item: Ints, types: Iterable[AnnotationType]) -> tuple[pa.StructArray, Ints]:
    """The rows of some types only."""
    keep = np.isin(pc.struct_field(rows, "type").to_numpy(), [int(t) for t in types])
    return rows.filter(pa.array(keep)), item[keep]
