"""crop: a part of every image, and of its annotations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayds import options as base
from rayds.categories import Categories
from rayds.engine.base import Block
from rayds.errors import DataError, UsageError
from rayds.format import with_errors
from rayds.losses import lose
from rayds.op import Op
from rayds.ops._cutting import cut
from rayds.ops._geometry import Bools, Ints, sized, sizes_of, with_edits
from rayds.schema import flat, single_chunk, with_annotations


class Crop(Op):
    """Cuts a window out of every image; annotations are cut at its borders, those outside of it removed.

    Pixels are cropped when they are read or saved. A window that reaches over the image is cut at its border.
    Raises DataError, under the policy for bad items, for an image wholly outside of the window, and for one
    whose size is not known.
    """

    name = "crop"
    title = "a part of every image, with the annotations that are in it"

    @dataclass(frozen=True)
    class Options(base.Options):
        width: int = base.option(short="dw", help="width of the window in pixels")
        height: int = base.option(short="dh", help="height of the window in pixels")
        x: int = base.option(0, short="dx", help="left border of the window in pixels")
        y: int = base.option(0, short="dy", help="upper border of the window in pixels")

    def prepare(self, categories: Categories) -> Categories:
        if self.options.width < 1 or self.options.height < 1:
            raise UsageError("crop: width and height are 1 pixel or more")
        return categories

    def apply(self, block: Block) -> Block:
        block, failed = sized(block)
        size, windows = sizes_of(block), self._windows(sizes_of(block))
        known = (size > 0).all(1)
        outside = known & (windows[:, 2:] < 1).any(1)
        ids = single_chunk(block, "id")
        for row in np.flatnonzero(outside).tolist():
            o = self.options
            failed.setdefault(
                row,
                DataError(
                    f"the window {o.x}, {o.y}, {o.width}, {o.height} lies outside of the image of "
                    f"{size[row, 1]}x{size[row, 0]}",
                    item=ids[row].as_py(),
                    remedy="Choose another window, or leave such items out (--on-error skip)",
                ),
            )
        good = np.array([i not in failed for i in range(block.num_rows)], bool)
        block, errors = self.good_rows(block, failed)
        block = cropped(block, windows[good], size[good])
        return with_errors(block, errors) if errors else block

    def _windows(self, size: Ints) -> Ints:
        """x, y, width, height of the part of each image, shape (items, 4); nothing for a width or height below 1."""
        o = self.options
        left, top = max(0, o.x), max(0, o.y)
        right = np.minimum(size[:, 1], o.x + o.width)
        bottom = np.minimum(size[:, 0], o.y + o.height)
        n = len(size)
        return np.stack([np.full(n, left), np.full(n, top), right - left, bottom - top], 1).astype(np.int64)


def cropped(block: Block, windows: Ints, size: Ints) -> Block:
    """The block with parts of its images. windows: x, y, width, height; size: (height, width), 0 for no image."""
    changes: Bools = (size > 0).all(1) & (windows[:, 2:] != size[:, ::-1]).any(1)
    if not changes.any():
        return block
    view = flat(block)
    touched = np.flatnonzero(changes[view.item])
    made = cut(view.rows.take(pa.array(touched)), view.item[touched], windows[view.item[touched]])
    rest = np.flatnonzero(~changes[view.item])
    rows = pa.concat_arrays([view.rows.take(pa.array(rest)), made.rows])
    item = np.concatenate([view.item[rest], view.item[touched[made.source]]])
    order = np.argsort(item, kind="stable")
    counts = np.bincount(item, minlength=block.num_rows)
    gone = np.ones(len(touched), bool)
    gone[made.source] = False
    block = lose(block, "annotations outside of the window", _counted(view.item[touched[gone]], block))
    block = with_annotations(block, rows.take(pa.array(order)), counts)
    steps = [{"crop": w} if c else None for c, w in zip(changes, windows.tolist(), strict=True)]
    return with_edits(block, steps, windows[:, :1:-1])


def _counted(item: Ints, block: Block) -> Ints:
    counts: Ints = np.bincount(item, minlength=block.num_rows)
    return counts
