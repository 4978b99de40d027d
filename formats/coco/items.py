"""Items from images and annotation rows, and what is wrong with them: shared by the readers of whole files and of ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds.errors import DataError
from rayds.formats.coco.layout import SECTIONS
from rayds.formats.coco.merge import merge_tasks, number_missing
from rayds.formats.coco.rows import NO_ID, Rows
from rayds.schema import item_table

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SPATIAL = ("instances", "person_keypoints", "stuff", "panoptic")


@dataclass(frozen=True)
class Assembly:
    """Makes item tables of a subset. several: whether more than one file may tell of the same object; largest: the
    largest annotation id of the subset; give_ids: whether annotations without an id get one."""

    subset: str
    several: bool
    largest: int
    give_ids: bool

    def table(
        self,
        rows: pa.StructArray,
        item: Ints,
        source: Ints,
        columns: Mapping[str, pa.Array],
        keep: Bools,
    ) -> pa.Table:
        """The table of len(keep) items: rows in order of items (numbers from 0) and files (source); keep: which of the items stay."""
        if self.several:
            rows, item = merge_tasks(rows, item, source)
        rows = number_missing(rows, self.largest, self.give_ids)
        made = item_table(
            len(keep), rows, np.bincount(item, minlength=len(keep)), subset=self.subset, **columns
        )
        return made if keep.all() else made.filter(pa.array(keep))


def first_ones(values: npt.NDArray[Any]) -> Bools:
    """Which values no earlier one equals."""
    keep = np.ones(len(values), bool)
    if not np.all(values[1:] > values[:-1]):  # the usual case, and np.unique loads numpy.ma
        keep[:] = False
        keep[np.unique(values, return_index=True)[1]] = True
    return keep


def look_up(ids: Ints, order: Ints | None, wanted: Ints) -> tuple[Ints, Bools]:
    """(number of the image of each wanted id, whether there is one); ids: ascending, order: the number of each."""
    at = np.searchsorted(ids, wanted)
    known = np.zeros(len(at), bool)
    if len(ids):
        at = np.minimum(at, len(ids) - 1)
        known = ids[at] == wanted
        at = at if order is None else order[at]
    return at, known


def part_of(made: Rows, rows: Ints) -> Rows:
    """Some of the rows."""
    return Rows(
        made.rows.take(pa.array(rows)), made.image[rows], made.annotation[rows], made.ids, made.places
    )


def stranger_errors(made: Rows, rows: Ints, path: str) -> Iterator[DataError]:
    """Annotations of images that the file does not list."""
    for row in rows[np.unique(made.annotation[rows], return_index=True)[1]]:
        annotation, image = made.annotation[row], made.image[row]
        id = made.ids[annotation]
        what = f"annotation {id}: " if id > NO_ID else ""
        reason = f"{what}the image id {image} is not among the images"
        place = f"byte {made.places[annotation]}"
        yield DataError(reason, file=path, item=f"image {image}", place=place)


def image_twice(id: int, name: str, place: int, path: str) -> DataError:
    """The error of an image whose id an earlier one of its file has."""
    return DataError(f"the image id {id} occurs twice", file=path, item=name, place=f"byte {place}")


def name_twice(id: str, place: int, path: str) -> DataError:
    """The error of an image whose name makes the id of an earlier item."""
    return DataError(
        "two images of a subset differ in their extension only, or have one file name",
        file=path,
        item=id,
        place=f"byte {place}",
        remedy="Rename one of them",
    )


def repeated_ids(ids: Ints, places: Ints) -> Ints:
    """The annotations whose id another one at an earlier place has, by id and place."""
    own = np.flatnonzero(ids > NO_ID)
    order = own[np.lexsort((places[own], ids[own]))]
    later: Ints = order[1:][ids[order][1:] == ids[order][:-1]]
    return later


def id_twice(id: int, place: int, path: str) -> DataError:
    """The error of an annotation whose id an earlier one of its file has."""
    return DataError(
        f"the annotation id {id} occurs more than once",
        file=path,
        place=f"byte {place}",
        remedy="Give every annotation its own id",
    )


def skeleton_errors(skeleton: Mapping[str, Any], path: str, categories: Any) -> Iterator[DataError]:
    """What the scanner did not take for records must be no list of something else; categories: those of the plan."""
    if "images" not in skeleton:
        yield DataError("the key 'images' is missing", file=path, remedy="Is this a COCO annotation file?")
    for section in SECTIONS:
        rest = skeleton.get(section) or []
        if not isinstance(rest, list) or any(r != {} for r in rest):
            reason = f"{section!r} is no list of objects: {str(rest)[:60]}"
            yield DataError(reason, file=path, remedy="Repair the file")
    if repr(skeleton.get("categories")) != repr(categories):  # nan is not equal to itself
        yield DataError("'categories' stands twice", file=path, remedy="Make them one list")
