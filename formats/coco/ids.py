"""Which ids a COCO output gets: those of the source where they are unique, else new ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.format import WriteContext
from rayds.schema import AnnotationType, flat, single_chunk
from rayds.sql import query

Ints = npt.NDArray[np.int64]

# A survey holds 8 bytes an id on the driver: beyond so many, ids of unknown origin are given anew.
MAX_SURVEY = 20_000_000


@dataclass(frozen=True)
class Ids:
    """keep_*: use the source's; complete: it has all of them; next_*: from where others are numbered."""

    keep_images: bool = False
    keep_annotations: bool = False
    complete: bool = False
    next_image: int = 1
    next_annotation: int = 1


@dataclass
class Survey:
    """The ids that occur: of images by subset, of annotations by file; missing: something has none."""

    images: dict[str, list[Ints]] = field(default_factory=dict)
    annotations: dict[str, list[Ints]] = field(default_factory=dict)
    missing: bool = False
    size: int = 0

    def merge(self, other: Survey) -> Survey:
        """The ids of both."""
        for own, others in ((self.images, other.images), (self.annotations, other.annotations)):
            for subset, parts in others.items():
                own.setdefault(subset, []).extend(parts)
        self.missing |= other.missing
        self.size += other.size
        if self.size > MAX_SURVEY:
            self.images, self.annotations = {}, {}
        return self

    def decide(self) -> Ids:
        """What to do about ids."""
        if self.size > MAX_SURVEY:
            return Ids()
        keep_images, next_image = _unique(self.images)
        keep_annotations, next_annotation = _unique(self.annotations)
        complete = keep_images and keep_annotations and not self.missing
        return Ids(keep_images, keep_annotations, complete, next_image, next_annotation)


def _unique(parts: dict[str, list[Ints]]) -> tuple[bool, int]:
    """(whether the ids of every subset are unique, the number after the largest)."""
    largest = 0
    for arrays in parts.values():
        ids = np.concatenate(arrays)
        if len(ids):
            largest = max(largest, int(ids.max()))
            if len(np.unique(ids)) < len(ids):
                return False, 1
    return True, largest + 1


def image_ids(block: pa.Table) -> pa.Array:
    """The integer item attribute `id` of every item, null where there is none."""
    column = single_chunk(block, "attributes")
    if column.null_count == len(column):
        return pa.nulls(len(column), pa.int64())
    if is_only_id(column).all():
        return pc.utf8_slice_codeunits(column, len('{"id":'), -1).cast(pa.int64())
    sql = "SELECT TRY_CAST(json_extract_string(a, '$.id') AS BIGINT) AS id FROM t"
    found = query(sql, t=pa.table({"a": column})).column("id").combine_chunks()
    return found.chunk(0) if isinstance(found, pa.ChunkedArray) else found


def is_only_id(attributes: pa.Array) -> npt.NDArray[np.bool_]:
    """Which attributes of items are nothing but an integer `id`, written as rayds writes it; null counts as that."""
    found = pc.fill_null(pc.match_substring_regex(attributes, r'^\{"id":-?[0-9]{1,18}\}$'), True)
    plain: npt.NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return plain


def survey(fmt: Any, block: pa.Table, ctx: WriteContext) -> Survey:
    """The ids of a block: images by subset, annotations by the file that they go to."""
    from rayds.formats.coco.records import extra_members, group_records, identified, lead_texts
    from rayds.formats.coco.tasks import pick_tasks

    made = Survey()
    images = image_ids(block)
    subsets = single_chunk(block, "subset").to_numpy(zero_copy_only=False)
    records = group_records(flat(block), list(AnnotationType))
    ids, has = identified(records)
    owner = subsets[records.view.item[records.first]]
    picked = pick_tasks(fmt, records, extra_members(lead_texts(records)[1]).column("task"), ctx.options)
    # A panoptic segment's id is a colour, unique in its image only.
    picked.pop("panoptic", None)
    written = np.zeros(len(ids), bool)
    for subset in dict.fromkeys(subsets.tolist()):
        made.images[subset] = [images.filter(pa.array(subsets == subset)).drop_null().to_numpy()]
        for task, mine in picked.items():
            written |= mine
            made.annotations[f"{subset}/{task}"] = [ids[mine & has & (owner == subset)]]
    made.missing = images.null_count > 0 or bool(np.any(written & ~has))
    made.size = len(images) + len(ids)
    return made
