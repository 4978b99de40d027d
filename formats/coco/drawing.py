"""Writing COCO panoptic: the segments of each image drawn into one id PNG."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds import geometry
from rayds.annotations import BoolMask, decode_rle, encode_mask
from rayds.errors import DataError
from rayds.format import WriteContext
from rayds.formats.coco.records import Grouped, lead_texts, mask_rles, polygon_lists
from rayds.formats.coco.write import SEPARATOR, Block, only_records
from rayds.item import dump_json, load_json
from rayds.media import encode
from rayds.schema import single_chunk

_WRITE_MANY = 64  # images, with one call

MAX_ID = 1 << 24  # ids are colours


@dataclass
class Segment:
    """One object as a mask. id: its own, or 0."""

    id: int
    category: int | None
    crowd: bool
    extra: dict[str, Any]
    image: BoolMask


def draw_panoptic(
    block: pa.Table, shared: Block, records: npt.NDArray[np.int64], subset: str, ctx: WriteContext
) -> pa.Array:
    """One record an image, as text, its id PNG written. Images without segments get none."""
    found = only_records(shared.found, records)
    names = single_chunk(block, "id")
    item = found.view.item[found.first]
    bounds = [0, *(np.flatnonzero(np.diff(item)) + 1).tolist(), len(item)] if len(item) else [0]
    texts = []
    folder, drawn = f"annotations/panoptic_{subset}", list[tuple[str, bytes]]()
    segments = _segments(found, item, shared, ctx)
    for lo, hi in pairwise(bounds):
        mine = [s for s in (next(segments) for _ in range(hi - lo)) if s is not None]
        if not mine:
            continue
        i = int(item[lo])
        name = f"{names[i]}.png"
        if len({s.image.shape for s in mine}) > 1:
            sizes = ", ".join(sorted({f"{s.image.shape[1]}x{s.image.shape[0]}" for s in mine}))
            raise DataError(f"the masks of one image have different sizes: {sizes}", item=str(names[i]))
        ids, entries = _draw(mine)
        ctx.lose("segments that others cover", len(mine) - len(entries), f"item {names[i].as_py()!r}")
        pixels = np.stack([ids >> 16 & 255, ids >> 8 & 255, ids & 255], axis=2).astype(np.uint8)
        drawn.append((name, encode(pixels, ".png")))
        if len(drawn) == _WRITE_MANY:
            ctx.out.write_files(folder, drawn)
            drawn = []
        record = {"image_id": int(shared.image[i]), "file_name": name, "segments_info": entries}
        texts.append((dump_json(record) or "") + SEPARATOR.decode())
    if drawn:
        ctx.out.write_files(folder, drawn)
    return pa.array(texts, pa.string())


def _segments(
    found: Grouped, item: npt.NDArray[np.int64], shared: Block, ctx: WriteContext
) -> Iterator[Segment | None]:
    """Every record as a segment, lower ones first in each image; None for one that can't be drawn."""
    z = found.view.numpy("z_order")[found.first]
    masks, polygons = mask_rles(found), polygon_lists(found)
    ids, label = found.view.numpy("id")[found.first], found.view.numpy("label", -1)[found.first]
    attributes, extra = lead_texts(found)
    for i in np.lexsort((np.arange(len(item)), z, item)).tolist():
        parts = list(masks[i]) if masks else []
        outlines = polygons[i].as_py()
        if outlines:
            size = parts[0]["size"] if parts else [int(shared.height[item[i]]), int(shared.width[item[i]])]
            if not all(size):
                ctx.lose("segments whose image size is not known", 1, f"image {shared.image[item[i]]}")
                yield None
                continue
            parts.append(geometry.polygons_to_rle(outlines, *size))
        told = load_json(extra[i].as_py()).get("coco", {})
        yield Segment(
            id=int(ids[i]),
            category=None if label[i] < 0 else ctx.state["categories"][label[i]],
            crowd=bool(load_json(attributes[i].as_py()).get("is_crowd")),
            extra={k: v for k, v in told.items() if not k.startswith("@") and k != "num_keypoints"},
            image=decode_rle(geometry.merge_rles(parts)),
        )


def _draw(segments: list[Segment]) -> tuple[npt.NDArray[np.int64], list[dict[str, Any]]]:
    """(segment id of every pixel, segments_info of those that are seen): a pixel belongs to the uppermost segment."""
    ids = np.zeros(segments[0].image.shape, np.int64)
    numbers: list[int] = []
    own = {s.id for s in segments}
    fresh = 1
    for s in segments:
        number = s.id
        if not 0 < number < MAX_ID or number in numbers:
            while fresh in own:
                fresh += 1
            number, fresh = fresh, fresh + 1
        numbers.append(number)
        ids[s.image] = number
    entries = []
    for number, s in zip(numbers, segments, strict=True):
        rle = encode_mask(ids == number)
        area = geometry.rle_area(rle)
        if area:
            seen = {"area": area, "bbox": [int(v) for v in geometry.rle_bbox(rle)]}
            entries.append(
                {"id": number, "category_id": s.category, "iscrowd": int(s.crowd), **seen, **s.extra}
            )
    return ids, entries
