"""What becomes of polygons and masks in a COCO annotation: the modes guess, polygons and mask; crop-covered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds import geometry
from rayds.errors import DataError
from rayds.format import WriteContext
from rayds.formats.coco.records import Grouped

if TYPE_CHECKING:
    from rayds.formats.coco.write import Block

Rle = dict[str, Any]


def choose(
    found: Grouped,
    polygons: pa.ListArray,
    masks: list[list[Rle]] | None,
    item: npt.NDArray[np.int64],
    shared: Block,
    ctx: WriteContext,
) -> tuple[list[Rle | None], pa.ListArray]:
    """(the RLE of each record or None, the polygons of those that have none).

    guess: a record with a mask becomes one RLE (its polygons drawn into it), others keep their polygons.
    """
    mode = ctx.options.segmentation_mode
    n = len(found.first)
    own = masks or [[] for _ in range(n)]
    lists: list[list[list[float]]] = polygons.to_pylist()

    def size(i: int) -> tuple[int, int]:
        if own[i]:
            h, w = own[i][0]["size"]
            return int(h), int(w)
        h, w = int(shared.height[item[i]]), int(shared.width[item[i]])
        if not h or not w:
            raise DataError(
                "drawing polygons needs the size of the image, which is not known",
                item=str(int(shared.image[item[i]])),
                remedy="Give the images, or sizes in the source",
            )
        return h, w

    def whole(i: int) -> Rle:
        parts = list(own[i])
        if lists[i]:
            parts.append(geometry.polygons_to_rle(lists[i], *size(i)))
        return geometry.merge_rles(parts)

    rles: list[Rle | None] = [None] * n
    cropped = _crop(found, item, own, lists, whole) if ctx.options.crop_covered else {}
    for i in range(n):
        if i in cropped:
            rle = cropped[i]
        elif (own[i] or lists[i]) and (mode == "mask" or (own[i] and (mode == "guess" or not lists[i]))):
            rle = whole(i)
        else:
            continue
        wants_outline = mode == "polygons" or (mode == "guess" and not own[i])
        outline = geometry.rle_to_polygons(rle) if wants_outline and rle else []
        if wants_outline and (outline or rle is None):
            lists[i] = outline
        else:
            rles[i], lists[i] = rle, []
    return rles, pa.array(lists, polygons.type)


def _crop(
    found: Grouped,
    item: npt.NDArray[np.int64],
    own: list[list[Rle]],
    lists: list[list[list[float]]],
    whole: Any,
) -> dict[int, Rle | None]:
    """The visible part of each segment that another one of its image covers in part."""
    z = found.view.numpy("z_order")[found.first]
    out: dict[int, Rle | None] = {}
    segments = np.array([bool(own[i] or lists[i]) for i in range(len(item))], bool)
    for image in np.unique(item[segments]):
        rows = np.flatnonzero(segments & (item == image))
        if len(rows) < 2:
            continue
        rows = rows[np.argsort(z[rows], kind="stable")]
        before = [whole(int(i)) for i in rows]
        for i, old, new in zip(rows, before, geometry.crop_covered(before), strict=True):
            if new is None or new["counts"] != old["counts"]:
                out[int(i)] = new
    return out
