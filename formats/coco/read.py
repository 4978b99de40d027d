"""Reading COCO subsets: images and annotations of all tasks, brought together by image in bounded memory."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds import sql
from rayds.errors import DataError
from rayds.format import ReadContext, Restart, Shard
from rayds.formats import _compiled
from rayds.formats._records import WINDOW, Records, RecordScanner
from rayds.formats.coco.images import images_of, item_columns
from rayds.formats.coco.items import (
    SPATIAL,
    Assembly,
    first_ones,
    id_twice,
    image_twice,
    look_up,
    name_twice,
    part_of,
    repeated_ids,
    skeleton_errors,
    stranger_errors,
)
from rayds.formats.coco.layout import SECTIONS, TASKS, image_folder
from rayds.formats.coco.merge import Grouping
from rayds.formats.coco.plain import annotations_of
from rayds.formats.coco.rows import MARKED, NO_ID, Rows
from rayds.parallel import ordered_map
from rayds.storage import Storage

Ints = npt.NDArray[np.int64]


class SubsetReader:
    """Reads one subset: the files of all its tasks."""

    bare = False  # whether a file is nothing but a list of annotations
    give_ids = True  # whether annotations without an id get one

    def __init__(self, shard: Shard, ctx: ReadContext) -> None:
        self.shard, self.ctx = shard, ctx
        self.again = False
        self.subset: str = shard.data["subset"]
        self.files: list[tuple[str, str]] = [tuple(f) for f in shard.data["files"]]
        self.labels: dict[int, int] = shard.data["labels"]
        self.categories: dict[str, Any] = shard.data.get("categories", {})  # of each task
        self.images: list[pa.Table] = []
        self.image_ids = np.zeros(0, np.int64)
        self._order = self._sorted = self.image_ids
        self.ids: dict[str, list[Ints]] = {}
        self.places: dict[str, list[Ints]] = {}
        self.waiting: list[Rows] = []
        self.counted = 0  # annotation records so far
        self.exclude: dict[str, frozenset[int]] = {}  # places of the records of each task to leave out
        # Blocks may go out before the file is read to its end as long as annotations come in the order of the
        # images; when one comes late after all, the whole export starts again (ctx.restartable).
        self.streaming = ctx.restartable and len(self.files) == 1 and not self.bare
        self.last = 0  # the last image that had an annotation
        self.sent = 0  # blocks that went out
        self._make: Callable[[int], pa.Table] | None = None

    def read(self) -> Iterator[pa.Table]:
        """The item tables of the subset, in the order of its images."""
        if _compiled.jsonscan is None and (self.shard.size or 0) > WINDOW:  # the rest is there at once
            sql.begin()
        reported = len(self.ctx.errors)
        with tempfile.TemporaryDirectory(prefix="rayds-") as folder:
            grouping = Grouping(self.ctx.block_rows, Path(folder))
            for task, file in self.files:
                yield from self._read_file(task, file, grouping)
            if self.again:
                del self.ctx.errors[reported:]  # told the first time
            if self.again or not self.exclude:
                yield from self._blocks(grouping)
                return
        self._stop_streaming()
        # Ids that occur twice show only at the end of a file: read again, without the later ones.
        again = type(self)(self.shard, self.ctx)
        again.exclude, again.again = self.exclude, True
        yield from again.read()

    def _bad(self, error: DataError) -> None:
        self.ctx.bad(error, self.subset)

    def _mark(self, task: str) -> str | None:
        """The task, where records must remember it to go back to its file."""
        return task if task in MARKED else None

    def _parse(self, task: str, file: str, records: Records, first: int) -> Any:
        from rayds.formats.coco.panoptic import panoptic_rows

        path = self.ctx.root.path(file)
        if records.section == "images":
            return images_of(records, path)
        if task == "panoptic":
            return panoptic_rows(records, file, self.ctx, self.labels)
        exclude = self.exclude.get(task, frozenset())
        return annotations_of(records, path, self.labels, self._mark(task), first, exclude)

    def _read_file(self, task: str, file: str, grouping: Grouping) -> Iterator[pa.Table]:
        path = self.ctx.root.path(file)
        new_images: list[pa.Table] = []
        broken: list[DataError] = []
        with self.ctx.root.open(file) as f:
            scanner = RecordScanner(f, path, ("",) if self.bare else SECTIONS, bare=self.bare)

            def records() -> Iterator[tuple[Records, int]]:
                try:
                    for part in scanner.records():
                        yield part, self.counted
                        self.counted += 0 if part.section == "images" else len(part)
                except DataError as e:  # what stands before is still worth reading
                    broken.append(e)

            for made in ordered_map(lambda r: self._parse(task, file, *r), records(), self.ctx.workers):
                for error in made.errors if isinstance(made, Rows) else made[1]:
                    self._bad(error)
                if not isinstance(made, Rows):
                    new_images.append(made[0])
                    continue
                self._take_images(new_images, path)
                new_images = []
                self.ids.setdefault(task, []).append(made.ids)
                self.places.setdefault(task, []).append(made.places)
                self._place(made, task, path, grouping, final=False)
                yield from self._complete(grouping)
        self._take_images(new_images, path)
        for rows in self.waiting:
            self._place(rows, task, path, grouping, final=True)
        self.waiting = []
        if broken:
            self._bad(broken[0])
        elif not self.bare:
            for error in skeleton_errors(scanner.skeleton, path, self.categories.get(task)):
                self._bad(error)
        self._check_ids(task, path)

    def _complete(self, grouping: Grouping) -> Iterator[pa.Table]:
        """The blocks whose annotations are all there, if annotations go on to come in order."""
        if not self.streaming:
            return
        done = self.last // grouping.size
        if self.sent < done:
            self._make = self._make or self._maker(grouping)
            for i in range(self.sent, done):
                self.sent = i + 1
                yield self._make(i)

    def _follow(self, item: Ints, made: Rows) -> None:
        """Take note of how far annotations have come; one that is late ends streaming."""
        if not self.streaming or not len(item):
            return
        late = item[0] < self.last or np.any(item[1:] < item[:-1])
        if late or (self.give_ids and np.any(made.ids <= NO_ID)):
            self._stop_streaming()
        self.last = max(self.last, int(item.max()))

    def _stop_streaming(self) -> None:
        if self.sent:
            raise Restart(f"{self.subset}: annotations are not in the order of the images")
        self.streaming = False

    def _take_images(self, tables: list[pa.Table], path: str) -> None:
        """Add the images of a file that earlier files of the subset don't have."""
        if not tables:
            return
        table = pa.concat_tables(tables).combine_chunks()
        ids = table.column("id").to_numpy()
        keep = first_ones(ids)
        for i in np.flatnonzero(~keep).tolist():
            name, place = (table.column(c)[i].as_py() for c in ("file_name", "place"))
            self._bad(image_twice(ids[i], name, place, path))
        if len(self.image_ids):
            keep &= ~np.isin(ids, self.image_ids)
        table = table.filter(pa.array(keep))
        self.images.append(table)
        self.image_ids = np.concatenate([self.image_ids, table.column("id").to_numpy()])
        self._order = np.argsort(self.image_ids, kind="stable")
        self._sorted = self.image_ids[self._order]

    def _place(self, made: Rows, task: str, path: str, grouping: Grouping, final: bool) -> None:
        """Put rows where their images are; those whose image has not come yet wait for the end of the file."""
        if not len(made.image):
            return
        item, known = look_up(self._sorted, self._order, made.image)
        if not known.all():
            unknown = np.flatnonzero(~known)
            if final:
                for error in stranger_errors(made, unknown, path):
                    self._bad(error)
            else:
                self.waiting.append(part_of(made, unknown))
            made, item = part_of(made, np.flatnonzero(known)), item[known]
        self._follow(item, made)
        grouping.add(made.rows, item, TASKS.index(task))

    def _check_ids(self, task: str, path: str) -> None:
        """Annotation ids must be unique in a file; the records of later ones are noted in `exclude`."""
        if self.again or task not in self.ids:
            return
        ids, places = np.concatenate(self.ids[task]), np.concatenate(self.places[task])
        later = repeated_ids(ids, places)
        if not len(later):
            return
        for row in later:
            self._bad(id_twice(ids[row], places[row], path))
        self.exclude[task] = frozenset(places[later].tolist())

    def _blocks(self, grouping: Grouping) -> Iterator[pa.Table]:
        """The blocks that have not gone out yet."""
        if len(self.image_ids):
            make = self._make or self._maker(grouping)
            total = -(-len(self.image_ids) // grouping.size)
            yield from ordered_map(make, range(self.sent, total), self.ctx.workers)

    def _maker(self, grouping: Grouping) -> Callable[[int], pa.Table]:
        """What makes the item table of a bucket, once all images are known."""
        images = pa.concat_tables(self.images).combine_chunks()
        columns = self._columns(images)
        keep = self._distinct(columns["id"], images)
        largest = max((int(i.max()) for parts in self.ids.values() for i in parts if len(i)), default=0)
        several = len([t for t, _ in self.files if t in SPATIAL]) > 1
        assembly = Assembly(self.subset, several, largest, self.give_ids)
        size = grouping.size

        def block(i: int) -> pa.Table:
            rows, item, source = grouping.bucket(i)
            n = min(size, images.num_rows - i * size)
            part = {k: v.slice(i * size, n) for k, v in columns.items()}
            return assembly.table(rows, item, source, part, keep[i * size : i * size + n])

        return block

    def _columns(self, images: pa.Table) -> dict[str, pa.Array]:
        return self._item_columns(images, self.ctx.root, posixpath.dirname(self.files[0][1]))

    def _item_columns(self, images: pa.Table, root: Storage, near: str) -> dict[str, pa.Array]:
        tried = [images.column("file_name")[i].as_py() for i in (0, images.num_rows // 2, -1)]
        return item_columns(images, root.path(image_folder(root, self.subset, tried, near)))

    def _distinct(self, ids: pa.Array, images: pa.Table) -> npt.NDArray[np.bool_]:
        """The images whose id no earlier one has."""
        keep = np.ones(len(ids), bool)
        if pc.count_distinct(ids).as_py() == len(ids):
            return keep
        keep[:] = False
        codes = ids.dictionary_encode().indices.to_numpy()
        keep[np.unique(codes, return_index=True)[1]] = True
        for i in np.flatnonzero(~keep).tolist():
            place = images.column("place")[i].as_py()
            self._bad(name_twice(ids[i].as_py(), place, self.ctx.root.path(self.files[0][1])))
        return keep
