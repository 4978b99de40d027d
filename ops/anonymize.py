"""anonymize: sensitive areas of images made unreadable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds import options as base
from rayds.annotations import RotatedBbox
from rayds.categories import Categories
from rayds.edits import METHODS
from rayds.engine.base import Block
from rayds.errors import UsageError
from rayds.format import with_errors
from rayds.op import Op
from rayds.ops._geometry import (
    Bools,
    Numbers,
    T,
    columns_of,
    sized,
    sizes_of,
    visibilities,
    with_edits,
)
from rayds.schema import Flat, flat, media_field, single_chunk, with_annotations, with_media

PLACED = (T.bbox, T.polygon, T.polyline, T.points, T.ellipse, T.rotated_bbox, T.mask)


class Anonymize(Op):
    """Blurs, pixelates or fills areas: those of the annotations of some labels, and boxes that are the same in all images.

    The pixels are changed when they are read or saved; files that are there stay as they are. Annotations stay, too.
    Raises DataError, under the policy for bad items, where the size of an image that has such an area is not known.
    """

    name = "anonymize"
    title = "sensitive areas of images blurred, pixelated or filled"

    @dataclass(frozen=True)
    class Options(base.Options):
        label: tuple[str, ...] = base.option(
            (), short="l", split=False, help="hide the areas of the annotations of a label"
        )
        box: tuple[str, ...] = base.option(
            (), split=False, help="hide x,y,width,height, in pixels, of every image"
        )
        method: str = base.option("blur", choices=METHODS, help="what is done to the pixels")
        strength: float | None = base.option(
            None,
            help="how coarse blur and pixelate are: a part of the area's shorter side, up to 1 (default: 0.25)",
        )
        margin: int = base.option(0, help="pixels around each area that are hidden with it")

    def prepare(self, categories: Categories) -> Categories:
        o = self.options
        if not o.label and not o.box:
            raise UsageError("anonymize needs something to hide: --label NAME, or --box x,y,width,height")
        if o.strength is not None and o.method == "fill":
            raise UsageError("--strength is for blur and pixelate: fill leaves nothing of an area")
        if o.strength is not None and not 0 < o.strength <= 1:
            raise UsageError(f"--strength: {o.strength} is not above 0 and up to 1")
        if not 0 <= o.margin <= 1 << 12:
            raise UsageError(f"--margin: {o.margin} is not 0 to {1 << 12}")
        self.labels = np.array([categories.labels.index(name) for name in dict.fromkeys(o.label)], np.int64)
        self.boxes = [_box(text) for text in o.box]
        return categories

    def apply(self, block: Block) -> Block:
        hides = self._hidden(flat(block))
        wanted = np.zeros(block.num_rows, bool)
        wanted[flat(block).item[hides]] = True
        image = pc.fill_null(pc.equal(media_field(block, "kind"), "image"), False).to_numpy(
            zero_copy_only=False
        )
        wanted = (wanted | bool(self.boxes)) & image
        known, failed = sized(_shown(block, wanted, hides))
        failed = {row: e for row, e in failed.items() if wanted[row]}
        block = with_media(
            block,
            **{
                n: pc.if_else(pa.array(wanted), media_field(known, n), media_field(block, n))
                for n in ("height", "width")
            },
        )
        good = np.array([i not in failed for i in range(block.num_rows)], bool)
        block, errors = self.good_rows(block, failed)
        regions = self._regions(flat(block), image[good])
        sizes = sizes_of(block)
        steps = [
            self._step(found, (width, height)) if found else None
            for found, (height, width) in zip(regions, sizes.tolist(), strict=True)
        ]
        if any(steps):
            block = with_edits(block, steps, sizes)
        return with_errors(block, errors) if errors else block

    def _hidden(self, view: Flat) -> Bools:
        chosen: Bools = np.isin(view.numpy("label", -1), self.labels) & np.isin(view.type, PLACED)
        return chosen

    def _step(self, regions: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
        o = self.options
        how: dict[str, Any] = {"method": o.method}
        if o.method != "fill":
            how["strength"] = o.strength or 0.25
        return {"hide": {**how, "margin": o.margin, "size": list(size), "regions": regions}}

    def _regions(self, view: Flat, image: Bools) -> list[list[dict[str, Any]]]:
        """The areas to hide of every item, as rayds.edits has them."""
        out: list[list[dict[str, Any]]] = [
            [{"bbox": box} for box in self.boxes] if has else [] for has in image.tolist()
        ]
        rows = np.flatnonzero(self._hidden(view) & image[view.item])
        if not len(rows):
            return out
        columns = {n: c.take(pa.array(rows)) for n, c in columns_of(view.rows).items()}
        numbers = Numbers.of(columns["points"])
        masks = columns["mask"].to_pylist()
        types = view.type[rows].tolist()
        for k, (row, kind) in enumerate(zip(view.item[rows].tolist(), types, strict=True)):
            begin = numbers.starts[k]
            values = numbers.values[begin : begin + numbers.lengths[k]]
            region = _region(kind, values, masks[k], columns, k, numbers)
            if region is not None:
                out[row].append(region)
        return out


def _region(
    kind: int,
    values: Any,
    mask: dict[str, Any] | None,
    columns: dict[str, pa.Array],
    k: int,
    numbers: Numbers,
) -> dict[str, Any] | None:
    if kind == T.mask:
        assert mask is not None
        return {"mask": {"size": [mask["height"], mask["width"]], "counts": mask["counts"]}}
    if kind == T.rotated_bbox:
        return {"polygon": RotatedBbox(*values.tolist()).corners()}
    if kind == T.points:
        seen = visibilities(columns, np.array([k]), numbers.lengths) > 0
        values = values.reshape(-1, 2)[seen].ravel()
    return {T(kind).name: values.tolist()} if len(values) else None


def _shown(block: Block, wanted: Bools, hides: Bools) -> Block:
    """The block with nothing of items that are not changed, and only the annotations that are areas: what needs a size."""
    view = flat(block)
    keep = hides & wanted[view.item]
    bare = with_annotations(
        block, view.rows.filter(pa.array(keep)), np.bincount(view.item[keep], minlength=block.num_rows)
    )
    media = single_chunk(bare, "media")
    shown = pc.if_else(pa.array(wanted), media, pa.scalar(None, media.type))
    return bare.set_column(bare.schema.get_field_index("media"), bare.schema.field("media"), shown)


def _box(text: str) -> list[float]:
    try:
        x, y, w, h = (float(v) for v in text.strip("()[] ").split(","))
        if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
            raise ValueError
    except ValueError:
        raise UsageError(f"--box: {text!r} is not x,y,width,height, such as 10,20,100,50") from None
    return [x, y, w, h]
