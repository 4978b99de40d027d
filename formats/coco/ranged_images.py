"""The images of COCO files that are read by ranges: numbered on the driver, their records read again where they are needed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError
from rayds.formats._ranges import Fold, Marks, Piece, PieceScanner, Run, reader
from rayds.formats.coco.images import images_of, item_columns
from rayds.formats.coco.items import Bools, Ints, first_ones, image_twice, look_up, name_twice
from rayds.formats.coco.layout import EXTENSION, image_folder
from rayds.sql import query
from rayds.storage import Storage

CHUNK = 4096  # image records that are read together


@dataclass(frozen=True)
class MarkedFile:
    """An annotation file and what its ranges say."""

    task: str
    name: str
    marks: Marks


@dataclass
class _Part:
    """The images of some pieces: id and a hash of the item's id of each; chunks: (start, end, records, images) rows."""

    ids: Ints
    hashes: npt.NDArray[np.uint64]
    chunks: Ints
    errors: list[DataError] = field(default_factory=list)


@dataclass
class Images:
    """The images of a subset in the order of items; sent to every task.

    ids: ascending; order: the item number of each, None where that is its place. 8 or 16 bytes an image. known: how
    many items the files up to each one tell. chunks: (file, start, end, records, first item) of about CHUNK records each;
    partly: of chunks of which not all images are items, which are. dropped: items whose id an earlier one has.
    base: where the image files are.
    """

    root: Storage
    names: tuple[str, ...]
    ids: Ints
    order: Ints | None
    known: Ints
    chunks: Ints
    partly: dict[int, Bools]
    dropped: Ints
    base: str = ""

    @property
    def total(self) -> int:
        """The number of items, with the dropped ones."""
        return len(self.ids)

    def find(self, wanted: Ints, file: int) -> tuple[Ints, Bools]:
        """(item of each wanted image id, whether there is one in this file or an earlier one)."""
        item, known = look_up(self.ids, self.order, wanted)
        if self.known[file] < self.total:
            known &= item < self.known[file]
        return item, known

    def rows(self, lo: int, hi: int) -> pa.Table:
        """The images (as `images_of` has them) of items lo:hi, read from their files."""
        first = self.chunks[:, 4]
        at = max(int(np.searchsorted(first, lo, side="right")) - 1, 0)
        until = int(np.searchsorted(first, hi, side="left"))
        tables = [self._chunk(k) for k in range(at, until)]
        start = lo - int(first[at])
        return pa.concat_tables(tables).slice(start, hi - lo).combine_chunks()

    def _chunk(self, k: int) -> pa.Table:
        file, start, end, records, _ = self.chunks[k].tolist()
        table = chunk_images(self.root, self.names[file], Run(start, end, records, None))
        return table.filter(pa.array(self.partly[k])) if k in self.partly else table

    def columns(self, lo: int, hi: int) -> dict[str, pa.Array]:
        """The columns of items lo:hi that their images tell."""
        return item_columns(self.rows(lo, hi), self.base)

    def keep(self, lo: int, hi: int) -> Bools:
        """Which of items lo:hi stay."""
        keep = np.ones(hi - lo, bool)
        keep[self.dropped[(self.dropped >= lo) & (self.dropped < hi)] - lo] = False
        return keep


def chunk_images(root: Storage, name: str, run: Run) -> pa.Table:
    """The good images of some records."""
    path = root.path(name)
    scanner = PieceScanner(reader(root, name), path, run, "images")
    return pa.concat_tables([images_of(records, path)[0] for records in scanner.records()])


def number_images(
    root: Storage, subset: str, files: Sequence[MarkedFile], fold: Fold
) -> tuple[Images, list[DataError]]:
    """The images of a subset, and what is wrong with them in the order in which a reader of whole files tells it."""
    errors: list[DataError] = []
    chunks: list[Ints] = []
    all_ids: list[Ints] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    partly: dict[int, Bools] = {}
    known, n_chunks = [], 0
    for i, file in enumerate(files):
        pieces = file.marks.of("images")
        part = fold(pieces, partial(_part_of, root, file.name), list.__add__) if pieces else []
        path = root.path(file.name)
        errors += [e for p in part for e in p.errors]
        if part:
            ids, rows = np.concatenate([p.ids for p in part]), np.concatenate([p.chunks for p in part])
            keep = first_ones(ids)
            ends = np.cumsum(rows[:, 3])
            for k in np.flatnonzero(~keep).tolist():
                errors.append(_twice(root, file.name, path, rows, ends, k))
            for earlier in all_ids:
                keep &= ~np.isin(ids, earlier)
            kept = np.add.reduceat(np.append(keep, False), np.append(0, ends)[:-1]) * (rows[:, 3] > 0)
            some = np.flatnonzero(kept)
            for new, k in enumerate(some.tolist()):
                if kept[k] < rows[k, 3]:
                    partly[n_chunks + new] = keep[ends[k] - rows[k, 3] : ends[k]]
            n_chunks += len(some)
            chunks.append(np.column_stack([np.full(len(some), i), rows[some, :3], kept[some]]))
            all_ids.append(ids[keep])
            hashes += [p[keep_] for p, keep_ in _split([q.hashes for q in part], keep)]
        known.append(sum(map(len, all_ids)))
    none = np.zeros(0, np.int64)
    ids = np.concatenate([none, *all_ids])
    table = np.concatenate([np.zeros((0, 5), np.int64), *chunks])
    table[:, 4] = np.cumsum(table[:, 4]) - table[:, 4]
    order = None
    if np.any(ids[1:] < ids[:-1]):
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
    names = tuple(f.name for f in files)
    images = Images(root, names, ids, order, np.array(known), table, partly, none)
    if images.total:
        found = np.concatenate(hashes)
        del hashes
        errors += _drop_same_names(images, found)
        tried = [
            images.rows(k, k + 1).column("file_name")[0].as_py()
            for k in (0, images.total // 2, images.total - 1)
        ]
        images.base = root.path(image_folder(root, subset, tried, posixpath.dirname(names[0])))
    return images, errors


def _split(parts: Sequence[Any], keep: Bools) -> Iterator[tuple[Any, Bools]]:
    at = 0
    for part in parts:
        yield part, keep[at : at + len(part)]
        at += len(part)


def _part_of(root: Storage, name: str, piece: Piece) -> list[_Part]:
    path = root.path(name)
    parts = []
    for records in PieceScanner(reader(root, name), path, piece, "images").records():
        table, errors = images_of(records, path)
        names = pc.replace_substring_regex(table.column("file_name"), EXTENSION, r"\1")
        hashes = query("SELECT hash(j) AS h FROM t", t=pa.table({"j": names})).column("h").to_numpy()
        lo = np.arange(0, len(records), CHUNK)
        hi = np.minimum(lo + CHUNK, len(records))
        starts, ends = records.base + records.starts[lo], records.base + records.ends[hi - 1]
        places = table.column("place").to_numpy()
        images = np.searchsorted(places, ends) - np.searchsorted(places, starts)
        chunks = np.column_stack([starts, ends, hi - lo, images])
        parts.append(_Part(table.column("id").to_numpy(), hashes, chunks, errors))
    return parts


def _twice(root: Storage, name: str, path: str, chunks: Ints, ends: Ints, k: int) -> DataError:
    """The error of the k-th image of a file, whose id an earlier one has."""
    chunk = int(np.searchsorted(ends, k, side="right"))
    start, end, records, images = chunks[chunk].tolist()
    table = chunk_images(root, name, Run(start, end, records, None))
    row = k - (int(ends[chunk]) - images)
    id, file_name, place = (table.column(c)[row].as_py() for c in ("id", "file_name", "place"))
    return image_twice(id, file_name, place, path)


def _drop_same_names(images: Images, hashes: npt.NDArray[np.uint64]) -> list[DataError]:
    """Note the items to drop because an earlier one has their id; the errors to tell."""
    by_hash = np.argsort(hashes, kind="stable")
    ascending = hashes[by_hash]
    same = ascending[1:] == ascending[:-1]
    if not same.any():
        return []
    suspects = np.sort(by_hash[np.append(False, same) | np.append(same, False)])
    seen: set[str] = set()
    errors: list[DataError] = []
    dropped = []
    path = images.root.path(images.names[0])
    for item in suspects.tolist():
        row = images.rows(item, item + 1)
        id = pc.replace_substring_regex(row.column("file_name"), EXTENSION, r"\1")[0].as_py()
        if id in seen:
            dropped.append(item)
            errors.append(name_twice(id, row.column("place")[0].as_py(), path))
        seen.add(id)
    images.dropped = np.array(dropped, np.int64)
    return errors
