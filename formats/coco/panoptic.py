"""COCO panoptic segmentation: PNGs whose colour is the segment's id (R + 256 G + 65536 B), and segments_info."""

from __future__ import annotations

import json
import posixpath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds.annotations import encode_mask
from rayds.errors import DataError
from rayds.format import ReadContext
from rayds.formats._records import Records
from rayds.formats.coco.checks import checked_json
from rayds.formats.coco.rows import NO_ID, Rows
from rayds.item import dump_json
from rayds.media import decode
from rayds.schema import ANNOTATION_TYPE, AnnotationType
from rayds.storage import Storage, safe_relative

_KNOWN = ("id", "category_id", "iscrowd")


def panoptic_rows(records: Records, file: str, ctx: ReadContext, labels: dict[int, int]) -> Rows:
    """The masks of some panoptic records: one row a segment, its group and id the segment's id."""
    errors: list[DataError] = []
    path = ctx.root.path(file)
    texts, number = checked_json(records, path, errors)
    folder = posixpath.splitext(file)[0]
    rows: list[dict[str, Any]] = []
    image: list[int] = []
    places: list[int] = []
    found_records = [json.loads(text) for text in texts.to_pylist()]
    images = ctx.root.read_ahead([_image_name(record, folder) for record in found_records])
    for record, data, i in zip(found_records, images, number, strict=True):
        try:
            found = _segments(record, folder, ctx.root, labels, data)
        except DataError as e:
            reason = f"{e.file}: {e.reason}" if e.file else e.reason
            item = str(record.get("file_name") or record.get("image_id"))
            place = records.place(int(i))
            errors.append(DataError(reason, file=path, item=item, place=place, remedy=e.remedy))
            continue
        except (KeyError, TypeError, ValueError) as e:
            errors.append(DataError(f"broken panoptic record: {e!r}", file=path, place=records.place(int(i))))
            continue
        rows += found
        image += [int(record["image_id"])] * len(found)
        places += [int(records.base + records.starts[i])] * len(found)
    table = pa.array(rows, ANNOTATION_TYPE)
    # Segment ids are colours: unique in an image only, so they take no part in the check for ids given twice.
    n = np.arange(len(rows))
    return Rows(table, np.array(image, np.int64), n, NO_ID - n, np.array(places, np.int64), errors)


def _image_name(record: dict[str, Any], folder: str) -> str | None:
    """The PNG of a record; None where the name is no usable one, which `_segments` reports."""
    try:
        return posixpath.join(folder, safe_relative(str(record["file_name"])))
    except (DataError, KeyError, TypeError):
        return None


def _segments(
    record: dict[str, Any], folder: str, root: Storage, labels: dict[int, int], data: bytes | None
) -> list[dict[str, Any]]:
    name = safe_relative(str(record["file_name"]))
    path = posixpath.join(folder, name)
    if data is None:
        raise DataError("the id PNG is missing", file=root.path(path), remedy="Put it beside the JSON file")
    ids = read_ids(data, root.path(path))
    rows = []
    for segment in record["segments_info"]:
        if segment["category_id"] not in labels:
            raise DataError(f"the category id {segment['category_id']} is unknown")
        rle = encode_mask(ids == segment["id"])
        extra = {"@task": "panoptic", **{k: v for k, v in segment.items() if k not in _KNOWN}}
        attributes = {"is_crowd": bool(segment["iscrowd"])} if "iscrowd" in segment else {}
        rows.append(
            {
                "type": int(AnnotationType.mask),
                "id": segment["id"],
                "group": segment["id"],
                "label": labels[segment["category_id"]],
                "z_order": 0,
                "mask": {"height": rle["size"][0], "width": rle["size"][1], "counts": rle["counts"]},
                "attributes": dump_json(attributes),
                "extra": dump_json({"coco": extra}),
            }
        )
    return rows


def read_ids(data: bytes, name: str) -> npt.NDArray[np.int64]:
    """The (H, W) segment ids of a panoptic PNG."""
    pixels = decode(data, name)
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise DataError("a panoptic PNG is RGB", file=name)
    bgr = pixels[:, :, :3].astype(np.int64)
    ids: npt.NDArray[np.int64] = bgr[:, :, 2] + 256 * bgr[:, :, 1] + 65536 * bgr[:, :, 0]
    return ids
