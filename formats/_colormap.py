"""Mask images: colours of labels, index images to run lengths and back. Arrays are (H, W) or (H, W, 3) RGB, uint8."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayds.categories import Rgb, voc_colormap
from rayds.errors import DataError
from rayds.media import decode

Index = npt.NDArray[np.int64]


def fill_colors(colors: Sequence[Rgb | None], black_for: int | None = None) -> list[Rgb]:
    """The colours with those that are missing filled from the Pascal VOC colour map, all different.

    black_for: the position that may be black (the background); others never get black.
    """
    used = {c for c in colors if c is not None}
    free = ((int(r), int(g), int(b)) for r, g, b in _endless())
    made: list[Rgb] = []
    for i, color in enumerate(colors):
        if color is None and i == black_for and (0, 0, 0) not in used:
            color = (0, 0, 0)
        elif color is None:
            color = next(c for c in free if c not in used and c != (0, 0, 0))
        used.add(color)
        made.append(color)
    return made


def _endless() -> Iterator[Any]:
    yield from voc_colormap(256)
    for i in range(1, 1 << 24):  # more labels than the map has colours
        yield (i * 97) & 255, (i >> 8) & 255, (i * 31 + (i >> 16)) & 255


def read_values(data: bytes, name: str | None = None) -> tuple[Index, bool]:
    """(values, whether they are colours) of a mask image: (H, W) indices, or colours packed as r<<16 | g<<8 | b.

    Palette images give colours, grayscale ones indices. Raises DataError when it can't be decoded.
    """
    pixels = decode(data, name)
    if pixels.ndim == 2:
        return pixels.astype(np.int64), False
    if pixels.dtype != np.uint8:
        raise DataError(f"a mask of {pixels.dtype} colours is not supported", file=name)
    blue, green, red = (pixels[:, :, i].astype(np.int64) for i in range(3))
    return red << 16 | green << 8 | blue, True


def palette_indices(data: bytes) -> Index | None:
    """The palette indices of a paletted image, (H, W); None when it has no palette."""
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data)) as image:
        return np.asarray(image, np.int64) if image.mode == "P" else None


def pack(color: Rgb) -> int:
    """A colour as one number, as in `read_values`."""
    return color[0] << 16 | color[1] << 8 | color[2]


def runs(values: Index) -> tuple[Index, Index]:
    """(start of every run of equal values in column order, its value), the order of run-length masks."""
    column = values.ravel(order="F")
    starts = (
        np.concatenate([[0], np.flatnonzero(column[1:] != column[:-1]) + 1]) if len(column) else column[:0]
    )
    return starts, column[starts]


def run_lengths(starts: Index, wanted: npt.NDArray[np.bool_], shape: tuple[int, int]) -> str:
    """COCO's compressed counts of the mask of the wanted runs."""
    from pycocotools import mask as coco_mask

    height, width = shape
    inside = np.concatenate([[False], wanted, [False]])
    edges = np.append(starts, height * width)[np.flatnonzero(inside[1:] != inside[:-1])]
    counts = np.diff(edges, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    text: str = rle["counts"].decode("ascii")
    return text


def encode_png(pixels: npt.NDArray[Any], palette: Mapping[int, Rgb] | None = None) -> bytes:
    """A PNG of (H, W) uint8 or uint16 indices, paletted when a palette {index: colour} is given, or of RGB."""
    from PIL import Image as Pillow

    image = Pillow.fromarray(np.ascontiguousarray(pixels))
    if palette is not None:
        table = np.zeros((256, 3), np.uint8)
        for index, color in palette.items():
            table[index] = color
        image.putpalette(table.tobytes())
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=4)
    return sink.getvalue()
