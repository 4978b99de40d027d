"""Changes of an image that are told now and made when its pixels are read: the field `edits` of media.

It holds a JSON list of steps, done in this order to the decoded image; each is an object with one member:

    {"resize": [width, height]}
    {"crop": [x, y, width, height]}
    {"hide": {"method": "blur", "strength": 0.25, "margin": 0, "size": [width, height], "regions": [...]}}
    {"mosaic": {"size": [width, height], "at": [x, y, width, height],
                "others": [{"at": [...], "path": "...", "edits": [...]}, ...]}}

A mosaic puts the image as it is so far, and those of other files, side by side into a larger one; their paths are as that of
media (a `data:` URL holds an image in memory).

The size of a hide is that which the image must have: regions of another one would hide something else.

A region is an object with one member, in the pixels that the steps before give: {"bbox": [x, y, w, h]},
{"ellipse": [x1, y1, x2, y2]}, {"polygon": [x0, y0, ...]}, {"polyline": [...]}, {"points": [...]} or
{"mask": {"size": [height, width], "counts": compressed run lengths}}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayds.annotations import decode_rle
from rayds.errors import DataError

Pixels = npt.NDArray[Any]
Edits = list[dict[str, Any]]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

MAX_PIXELS = int(os.environ.get("RAYDS_MAX_PIXELS", 512 << 20))  # a decompression bomb guard
METHODS = ("blur", "pixelate", "fill")


def dump_edits(edits: Sequence[Mapping[str, Any]]) -> str | None:
    """The text that the column holds; None for no edits."""
    return json.dumps(list(edits), separators=(",", ":")) if edits else None


def load_edits(text: str | None) -> Edits:
    """The inverse of dump_edits. Raises DataError for what is no list of steps."""
    if not text:
        return []
    try:
        steps = json.loads(text)
        _need(isinstance(steps, list))
        for step in steps:
            [(name, value)] = step.items()
            _CHECKS[name](value)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"the edits of the image are not known or damaged: {text[:80]}") from e
    return list(steps)


def _need(true: Any) -> None:
    if not true:
        raise ValueError


def _check_size(value: Any) -> None:
    width, height = value
    _need(all(type(n) is int and n > 0 for n in value))
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the image would be resized to {width}x{height} pixels, more than the limit of {MAX_PIXELS}",
            remedy="Raise RAYDS_MAX_PIXELS if the dataset is trusted",
        )


def _check_crop(value: Any) -> None:
    x, y, width, height = value
    _need(all(type(n) is int for n in value))
    _need(x >= 0 <= y)
    _need(width > 0 < height)


def _check_hide(value: Any) -> None:
    _need(value["method"] in METHODS)
    _need(0 < float(value.get("strength") or 1) <= 1)
    _need(0 <= int(value.get("margin") or 0) <= 1 << 16)
    _need(len(value.get("size") or (0, 0)) == 2)
    for region in value["regions"]:
        [(kind, numbers)] = region.items()
        _need(kind in ("mask", *_DRAW))
        _need(kind == "mask" or all(np.isfinite(float(n)) for n in numbers))


def _check_mosaic(value: Any) -> None:
    _check_size(value["size"])
    _check_crop(value["at"])
    for other in value["others"]:
        _check_crop(other["at"])
        _need(isinstance(other["path"], str))
        load_edits(json.dumps(other.get("edits") or []))


_CHECKS = {"resize": _check_size, "crop": _check_crop, "hide": _check_hide, "mosaic": _check_mosaic}


def edited_size(size: tuple[int, int], edits: Edits) -> tuple[int, int]:
    """(height, width) of an image of the size (height, width) after the edits."""
    for step in edits:
        if "resize" in step:
            size = (step["resize"][1], step["resize"][0])
        elif "crop" in step:
            size = (step["crop"][3], step["crop"][2])
        elif "mosaic" in step:
            size = (step["mosaic"]["size"][1], step["mosaic"]["size"][0])
    return size


Reader = Callable[[str, Edits], Pixels]


def apply_edits(pixels: Pixels, edits: Edits, name: str | None = None, read: Reader | None = None) -> Pixels:
    """The image (H, W) or (H, W, C) after the edits, of the same dtype; the one given is not changed.

    read: gives the image of another path after other edits, for mosaics. Raises DataError, which names the file `name`, when a step does not fit the image.
    """
    import cv2

    try:
        for step in edits:
            [(kind, value)] = step.items()
            if kind == "resize":
                pixels = resized(pixels, *value)
            elif kind == "crop":
                pixels = cropped(pixels, value, name)
            elif kind == "hide":
                pixels = hidden(pixels, value, name)
            else:
                pixels = mosaic(pixels, value, name, read)
    except cv2.error as e:
        raise DataError(f"{pixels.shape} {pixels.dtype} pixels can't be edited ({e.err})", file=name) from e
    return pixels


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """The image in another size: sides that shrink by averaging areas, sides that grow by cubic interpolation."""
    import cv2

    less = (min(width, pixels.shape[1]), min(height, pixels.shape[0]))
    if less != (pixels.shape[1], pixels.shape[0]):
        pixels = cv2.resize(pixels, less, interpolation=cv2.INTER_AREA)
    if less != (width, height):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    return pixels


def cropped(pixels: Pixels, window: Sequence[int], name: str | None = None) -> Pixels:
    """The part x, y, width, height of the image."""
    x, y, width, height = window
    if y + height > pixels.shape[0] or x + width > pixels.shape[1]:
        raise DataError(
            f"the image has {pixels.shape[1]}x{pixels.shape[0]} pixels: the part {x}, {y}, {width}, {height} "
            "is not in it",
            file=name,
            remedy="The dataset says another size than the image file has: correct it and crop again",
        )
    return np.ascontiguousarray(pixels[y : y + height, x : x + width])


def mosaic(pixels: Pixels, value: Mapping[str, Any], name: str | None, read: Reader | None) -> Pixels:
    """The image, and others, side by side in one of value["size"]; where they overlap the first is seen."""
    if read is None:
        raise DataError("an image of several files can't be put together here", file=name)
    width, height = value["size"]
    others = [(o["at"], read(o["path"], o.get("edits") or []), o["path"]) for o in value["others"]]
    parts = [(value["at"], pixels, name), *others]
    channels = max(1 if p.ndim == 2 else p.shape[2] for _, p, _ in parts)
    out = np.zeros((height, width) if channels == 1 else (height, width, channels), pixels.dtype)
    for (x, y, w, h), part, file in reversed(parts):
        if part.shape[:2] != (h, w) or part.dtype != pixels.dtype or x + w > width or y + h > height:
            raise DataError(
                f"{part.shape[1]}x{part.shape[0]} pixels of {part.dtype} can't be the part {x}, {y}, {w}, {h} of an "
                f"image of {width}x{height}",
                file=file,
                remedy="The file was replaced: tile the images again",
            )
        out[y : y + h, x : x + w] = _with_channels(part, channels)
    return out


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    have = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 1 or have == channels:
        return pixels.reshape(pixels.shape[:2]) if channels == 1 else pixels
    if have == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), min(channels, 3), axis=2)
    if pixels.shape[2] < channels:  # opaque
        full = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
        pixels = np.concatenate([pixels, np.full((*pixels.shape[:2], 1), full, pixels.dtype)], axis=2)
    return pixels


def hidden(pixels: Pixels, hide: Mapping[str, Any], name: str | None = None) -> Pixels:
    """The image with regions made unreadable; pixels outside of them, and an alpha channel, stay."""
    size = hide.get("size")
    if size and list(size) != [pixels.shape[1], pixels.shape[0]]:
        raise DataError(
            f"the image has {pixels.shape[1]}x{pixels.shape[0]} pixels, but the areas to hide are those of one "
            f"of {size[0]}x{size[1]}",
            file=name,
            remedy="The dataset says another size than the image file has: correct it and anonymize again",
        )
    out: Pixels = pixels.copy()
    colors = out[:, :, :3] if out.ndim == 3 else out
    for top, left, where in _regions(pixels.shape[:2], hide, name):
        height, width = where.shape
        part = colors[top : top + height, left : left + width]
        part[where] = _unreadable(pixels, top, left, where, hide)[where]
    return out


def _unreadable(pixels: Pixels, top: int, left: int, where: Bools, hide: Mapping[str, Any]) -> Pixels:
    """The pixels that take the place of a region; strength is a part of the region's shorter side."""
    import cv2

    height, width = where.shape
    image = pixels[:, :, :3] if pixels.ndim == 3 else pixels
    made: Pixels = np.zeros((height, width, *image.shape[2:]), pixels.dtype)
    if hide["method"] == "fill":
        return made
    side = max(2, round(float(hide.get("strength") or 0.25) * min(height, width)))
    if hide["method"] == "pixelate":
        part = np.ascontiguousarray(image[top : top + height, left : left + width])
        small = (max(1, width // side), max(1, height // side))
        coarse = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    # three box filters are a Gaussian as far as an eye can tell, and take the same time however wide they are
    kernel = 2 * side + 1
    y, x = max(0, top - 3 * side), max(0, left - 3 * side)
    part = np.ascontiguousarray(image[y : top + height + 3 * side, x : left + width + 3 * side])
    for _ in range(3):
        part = cv2.blur(part, (kernel, kernel), borderType=cv2.BORDER_REPLICATE)
    return part[top - y : top - y + height, left - x : left - x + width]


def _regions(
    shape: Sequence[int], hide: Mapping[str, Any], name: str | None
) -> Iterator[tuple[int, int, Bools]]:
    """(top, left, which pixels) of every region that has pixels in an image of this shape."""
    margin = int(hide.get("margin") or 0)
    for region in hide["regions"]:
        [(kind, value)] = region.items()
        if kind == "mask":
            found = _mask_region(shape, value, name)
        else:
            found = _drawn(shape, kind, np.asarray(value, np.float64), margin)
        if found is not None:
            yield _widened(shape, found, margin) if kind != "bbox" else found


Region = tuple[int, int, Bools]


def _mask_region(shape: Sequence[int], rle: Mapping[str, Any], name: str | None) -> Region | None:
    try:
        mask = decode_rle(dict(rle))
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"a mask of a region to hide is broken ({e})", file=name) from e
    if mask.shape != tuple(shape):
        raise DataError(
            f"a mask of a region to hide has {mask.shape[1]}x{mask.shape[0]} pixels, the image has "
            f"{shape[1]}x{shape[0]}",
            file=name,
            remedy="The dataset says another size than the image file has",
        )
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    return top, left, mask[top : rows[-1] + 1, left : columns[-1] + 1]


def _ellipse_outline(numbers: Floats) -> Floats:
    x1, y1, x2, y2 = numbers
    angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    return np.stack(
        [(x1 + x2) / 2 + (x2 - x1) / 2 * np.cos(angle), (y1 + y2) / 2 + (y2 - y1) / 2 * np.sin(angle)], 1
    )


_DRAW: dict[str, Callable[[Floats], Floats]] = {
    "bbox": lambda v: np.array([[v[0], v[1]], [v[0] + v[2], v[1] + v[3]]]),
    "ellipse": _ellipse_outline,
    "polygon": lambda v: v.reshape(-1, 2),
    "polyline": lambda v: v.reshape(-1, 2),
    "points": lambda v: v.reshape(-1, 2),
}


def _drawn(shape: Sequence[int], kind: str, numbers: Floats, margin: int) -> Region | None:
    """A shape as pixels: all that it touches. Boxes with their margin; others need it added."""
    import cv2

    points = _DRAW[kind](numbers)
    if not len(points):
        return None
    wide = margin if kind == "bbox" else 0
    low = np.floor(points.min(0)).astype(int) - wide
    high = np.maximum(np.ceil(points.max(0)).astype(int), low + 1 + wide) + wide
    left, top = np.maximum(low - (0 if kind == "bbox" else 1), 0)
    right, bottom = np.minimum(high + (0 if kind == "bbox" else 1), [shape[1], shape[0]])
    if left >= right or top >= bottom:
        return None
    if kind == "bbox":
        return int(top), int(left), np.ones((bottom - top, right - left), bool)
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    # drawing counts from pixel centres, in 1/16 pixels; far points are of no use to it
    at = np.clip(points - [left + 0.5, top + 0.5], -30000, 30000)
    fixed = [np.rint(at * 16).astype(np.int32).reshape(-1, 1, 2)]
    if kind == "points":
        for x, y in np.floor(points - [left, top]).astype(int):
            if 0 <= y < canvas.shape[0] and 0 <= x < canvas.shape[1]:
                canvas[y, x] = 1
    else:
        if kind != "polyline":
            cv2.fillPoly(canvas, fixed, 1, shift=4)
        cv2.polylines(canvas, fixed, kind != "polyline", 1, 1, shift=4)
    return int(top), int(left), canvas.astype(bool)


def _widened(shape: Sequence[int], region: Region, margin: int) -> Region:
    """A region with all pixels at most `margin` away from it."""
    import cv2

    if not margin:
        return region
    top, left, where = region
    y, x = min(top, margin), min(left, margin)
    below = min(margin, shape[0] - top - where.shape[0])
    right = min(margin, shape[1] - left - where.shape[1])
    padded = np.pad(where.astype(np.uint8), ((y, below), (x, right)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    return top - y, left - x, cv2.dilate(padded, disk).astype(bool)
