"""SegmentationClass and SegmentationObject: PNG images of labels and instances <-> masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayds.categories import Categories, Rgb, voc_colormap
from rayds.errors import DataError
from rayds.formats._colormap import Index, encode_png, pack, palette_indices, read_values, run_lengths, runs
from rayds.formats.voc.labels import BACKGROUND
from rayds.formats.voc.layout import CLASS_DIR, OBJECT_DIR
from rayds.storage import Storage

MAX_INSTANCE = 255  # what an 8-bit index image holds
Rle = tuple[int, int, str]  # height, width, counts

VOID = (224, 224, 192)  # the border between objects in VOC's own files, index 255

_NONE = -1


class MaskReader:
    """Reads the masks of items: one for each pair of instance and label; the background is none."""

    def __init__(self, root: Storage, categories: Categories) -> None:
        self.root = root
        names = categories.labels.names()
        self.background = names.index(BACKGROUND) if BACKGROUND in names else _NONE
        colormap = categories.masks.inverse_colormap if categories.masks else {}
        self.labels = {pack(c): i for c, i in colormap.items()}
        self.labels.setdefault(0, self.background)
        self.labels.setdefault(pack(VOID), _NONE)
        self.instances = {
            pack((int(c[0]), int(c[1]), int(c[2]))): i
            for i, c in reversed(list(enumerate(voc_colormap(256))))
        }
        self.count = len(names)
        self.held: dict[str, bytes | None] = {}

    def fetch(self, ids: Sequence[str]) -> None:
        """Read the images of some items of a remote dataset many at a time; `read` takes them."""
        if not self.root.local:
            names = [f"{folder}/{id}.png" for folder in (CLASS_DIR, OBJECT_DIR) for id in ids]
            self.held = dict(zip(names, self.root.read_many(names, missing_ok=True), strict=True))

    def read(self, id: str) -> Iterator[tuple[int, int | None, Rle]]:
        """(instance, label, mask) of an item, by instance and label; instance 0 = none, label None = not known."""
        classes = self._image(f"{CLASS_DIR}/{id}.png", self._class_values)
        objects = self._image(f"{OBJECT_DIR}/{id}.png", self._instance_values)
        if classes is None and objects is None:
            return
        if classes is not None and objects is not None and classes.shape != objects.shape:
            raise DataError(
                f"the class mask is {classes.shape[1]}x{classes.shape[0]}, the instance mask {objects.shape[1]}x{objects.shape[0]}",
                file=self.root.path(f"{OBJECT_DIR}/{id}.png"),
            )
        shape = (classes if classes is not None else objects).shape  # type: ignore[union-attr]
        label = classes if classes is not None else np.full(shape, _NONE, np.int64)
        group = objects if objects is not None else np.zeros(shape, np.int64)
        starts, values = runs(group << 24 | label + 1)
        for value in np.unique(values):
            instance, found = int(value >> 24), int(value & 0xFFFFFF) - 1
            if (instance == 0 and found == self.background) or (instance in (0, 255) and found == _NONE):
                continue
            counts = run_lengths(starts, values == value, (shape[0], shape[1]))
            yield instance, None if found == _NONE else found, (int(shape[0]), int(shape[1]), counts)

    def _image(self, name: str, convert: Any) -> Index | None:
        data = self.held.pop(name) if name in self.held else self.root.read_many([name], missing_ok=True)[0]
        if data is None:
            return None
        file = self.root.path(name)
        values, colored = read_values(data, file)
        made: Index = convert(values, colored, data, file)
        return made

    def _class_values(self, values: Index, colored: bool, data: bytes, file: str) -> Index:
        """Label indices, -1 for what is background without being a label."""
        if colored:
            known = self.labels
            found, where = _unique(values)
            if all(int(v) in known for v in found):
                return np.array([known[int(v)] for v in found], np.int64)[where]
            indices = palette_indices(data)
            if indices is None:
                bad = next(int(v) for v in found if int(v) not in known)
                raise DataError(
                    f"the colour {_rgb(bad)} is not in the label map",
                    file=file,
                    remedy="Add it to labelmap.txt",
                )
            values = indices
        return self._indices(values, file)

    def _indices(self, values: Index, file: str) -> Index:
        top = int(values.max(initial=0))
        if top == 255 and self.count <= 255:  # the void border of VOC masks
            values = np.where(values == 255, _NONE, values)
            top = int(values.max(initial=0))
        if top >= self.count:
            raise DataError(
                f"the index {top} is beyond the {self.count} labels",
                file=file,
                remedy="Add a line to labelmap.txt for every index",
            )
        return values

    def _instance_values(self, values: Index, colored: bool, data: bytes, _file: str) -> Index:
        if not colored:
            return values
        found, where = _unique(values)
        if all(int(v) in self.instances for v in found):
            return np.array([self.instances[int(v)] for v in found], np.int64)[where]
        indices = palette_indices(data)
        if indices is not None:
            return indices
        order = {int(v): i for i, v in enumerate(sorted(int(v) for v in found if v))}  # any colours: numbered
        return np.array([order[int(v)] + 1 if v else 0 for v in found], np.int64)[where]


def _unique(values: Index) -> tuple[Index, Index]:
    """(the values that occur, the position of each pixel's among them); sorts runs, not pixels."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if len(flat) else flat[:0]
    found, where = np.unique(flat[starts], return_inverse=True)
    return found, np.repeat(where, np.diff(starts, append=len(flat))).reshape(values.shape)


def _rgb(packed: int) -> Rgb:
    return packed >> 16, packed >> 8 & 255, packed & 255


class MaskPainter:
    """Draws the masks of an item as a class image and an instance image, PNG.

    colors: of every label; colored: whether class colours are written (a palette, where 256 colours do) or indices.
    """

    def __init__(self, colors: Sequence[Rgb], colored: bool) -> None:
        self.colors, self.colored = list(colors), colored
        palette = [(int(r), int(g), int(b)) for r, g, b in voc_colormap(256)]
        self.palette = dict(enumerate(palette))
        if colored and len(set(self.colors)) == len(self.colors) and set(self.colors) <= set(palette):
            self.indices = [
                palette.index(c) for c in self.colors
            ]  # as VOC's own files: 255 is the void border
            self.class_palette = self.palette
        else:
            self.indices = list(range(len(self.colors)))
            self.class_palette = dict(enumerate(self.colors[:256]))

    def paint(
        self, masks: Sequence[tuple[npt.NDArray[np.bool_], int, int]], shape: tuple[int, int]
    ) -> tuple[bytes, bytes | None, int]:
        """(class PNG, instance PNG or None without instances, masks partly covered) of (mask, label, instance)."""
        classes = np.full(shape, -1, np.int32)
        objects = np.zeros(shape, np.int32)
        covered = 0
        for mask, label, instance in masks:
            covered += bool((classes[mask] >= 0).any())
            classes[mask] = label
            objects[mask] = instance
        instances = any(i for _, _, i in masks)
        return self._class_png(classes), self._object_png(objects) if instances else None, covered

    def _class_png(self, classes: npt.NDArray[np.int32]) -> bytes:
        empty = classes < 0
        if self.colored and (len(self.colors) > 256 or not self._has_free_zero(empty)):
            table = np.array([*self.colors, (0, 0, 0)], np.uint8)
            return encode_png(table[classes])
        table = np.array([*self.indices, 0], np.uint16)
        pixels = table[classes]
        if self.colored:
            return encode_png(pixels.astype(np.uint8), self.class_palette)
        return encode_png(pixels.astype(np.uint8) if len(self.colors) <= 256 else pixels)

    def _has_free_zero(self, empty: npt.NDArray[np.bool_]) -> bool:
        """Whether index 0 of the palette is black, so that it can stand for pixels without a mask."""
        return self.class_palette.get(0) == (0, 0, 0) or not empty.any()

    def _object_png(self, objects: npt.NDArray[np.int32]) -> bytes:
        pixels = objects.astype(np.uint8)
        return encode_png(pixels, self.palette if self.colored else None)
