"""drop_small_boxes: removes small objects. An example of an operation plug-in for rayds, complete.

It works on the columns of all annotations of a block at once: no Python loop over annotations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

import rayds
from rayds.errors import UsageError
from rayds.schema import flat, with_annotations


class DropSmallBoxes(rayds.Op):
    """Removes boxes below an area, with the polygons and masks of the same object; other annotations stay."""

    name = "drop_small_boxes"
    title = "remove objects whose box is small (an example plug-in)"

    @dataclass(frozen=True)
    class Options(rayds.Options):
        """Options of the operation."""

        min_area: float = rayds.option(help="smallest area of a box that stays, in square pixels")
        drop_empty: bool = rayds.option(False, help="also remove items that have no annotation left")

    def prepare(self, categories: rayds.Categories) -> rayds.Categories:
        if self.options.min_area < 0:
            raise UsageError(f"min_area: {self.options.min_area} is negative")
        return categories  # labels stay what they are

    def apply(self, block: pa.Table) -> pa.Table:
        view = flat(block)  # the annotations of the block: a struct array, and the row of the item of each
        boxes = np.flatnonzero(view.type == rayds.AnnotationType.bbox)
        points = view.column("points").take(pa.array(boxes))  # x, y, w, h of every box
        xywh = points.flatten().to_numpy().reshape(-1, 4)

        drop = np.zeros(len(view), bool)
        drop[boxes] = xywh[:, 2] * xywh[:, 3] < self.options.min_area
        # annotations of one object share a group: it goes as a whole (group 0 is none)
        group = view.numpy("group").astype(np.int64)
        keys = np.stack([view.item, group], axis=1)
        _, of = np.unique(keys, axis=0, return_inverse=True)
        of = of.reshape(-1)
        dropped = np.zeros(of.max(initial=-1) + 1, bool)
        dropped[of[drop & (group != 0)]] = True
        keep = ~(drop | dropped[of])

        counts = np.bincount(view.item[keep], minlength=block.num_rows)
        made = with_annotations(block, view.rows.filter(pa.array(keep)), counts)
        return made.filter(pa.array(counts > 0)) if self.options.drop_empty else made
