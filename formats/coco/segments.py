"""What becomes of polygons and masks in a COCO annotation: the modes guess, polygons and mask; crop-covered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds import geometry
from rayds.format import WriteContext
from rayds.formats.coco.records import Grouped

if TYPE_CHECKING:
    from rayds.formats.coco.write import Block

Rle = dict[str, Any]
Ints = npt.NDArray[np.int64]


@dataclass
class _Segments:
    """The masks and polygons of every record, and the size of its image (0: not known)."""

    masks: list[list[Rle]]
    polygons: list[list[list[float]]]
    height: Ints
    width: Ints

    def __len__(self) -> int:
        return len(self.masks)

    def some(self, i: int) -> bool:
        """Whether record i has any."""
        return bool(self.masks[i] or self.polygons[i])

    def drawable(self, i: int) -> bool:
        """Whether record i can become one mask."""
        return bool(self.masks[i] or not self.polygons[i] or (self.height[i] and self.width[i]))

    def whole(self, i: int) -> Rle:
        """Record i as one mask."""
        parts = list(self.masks[i])
        if self.polygons[i]:
            height, width = parts[0]["size"] if parts else (int(self.height[i]), int(self.width[i]))
            parts.append(geometry.polygons_to_rle(self.polygons[i], height, width))
        return geometry.merge_rles(parts)


def choose(
    found: Grouped,
    polygons: pa.ListArray,
    masks: list[list[Rle]] | None,
    item: Ints,
    shared: Block,
    ctx: WriteContext,
) -> tuple[list[Rle | None], pa.ListArray]:
    """(the RLE of each record or None, the polygons of those that have none).

    guess: a record with a mask becomes one RLE (its polygons drawn into it), others keep their polygons. Polygons
    that can't be drawn, as nobody knows the size of their image, stay as they are.
    """
    mode = ctx.options.segmentation_mode
    n = len(found.first)
    own = _Segments(
        masks or [[] for _ in range(n)], polygons.to_pylist(), shared.height[item], shared.width[item]
    )
    rles: list[Rle | None] = [None] * n
    cropped = _crop(own, item, found.view.numpy("z_order")[found.first]) if ctx.options.crop_covered else {}
    undrawn = 0
    for i in range(n):
        has_mask = bool(own.masks[i])
        if i in cropped:
            rle = cropped[i]
        elif own.some(i) and (mode == "mask" or (has_mask and (mode == "guess" or not own.polygons[i]))):
            if not own.drawable(i):
                undrawn += 1
                continue
            rle = own.whole(i)
        else:
            continue
        wants_outline = mode == "polygons" or (mode == "guess" and not has_mask)
        outline = geometry.rle_to_polygons(rle) if wants_outline and rle else []
        if wants_outline and (outline or rle is None):
            own.polygons[i] = outline
        else:
            rles[i], own.polygons[i] = rle, []
    ctx.lose("masks of polygons whose image size is not known (left as polygons)", undrawn)
    return rles, pa.array(own.polygons, polygons.type)


def _crop(own: _Segments, item: Ints, z_order: npt.NDArray[np.int32]) -> dict[int, Rle | None]:
    """The visible part of each segment that another one of its image covers in part."""
    out: dict[int, Rle | None] = {}
    segments = np.array([own.some(i) and own.drawable(i) for i in range(len(own))], bool)
    for image in np.unique(item[segments]):
        rows = np.flatnonzero(segments & (item == image))
        if len(rows) < 2:
            continue
        rows = rows[np.argsort(z_order[rows], kind="stable")]
        before = [own.whole(int(i)) for i in rows]
        for i, old, new in zip(rows, before, geometry.crop_covered(before), strict=True):
            if new is None or new["counts"] != old["counts"]:
                out[int(i)] = new
    return out
