"""From items to samples: decoded, resized images and their targets, as a table that any engine carries.

A tensor column holds the bytes of each row (row-major); one whose shape differs from row to row holds the shape, too.
Decoding is by OpenCV; what comes out is RGB, as models are trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.errors import DataError, OnError, UnknownNameError, UsageError
from rayds.headers import probe_bytes
from rayds.media import Decoded, Pixels, decode, row_pixels
from rayds.schema import ERROR_COLUMN, ITEM_SCHEMA, list_of, single_chunk, split_errors
from rayds.sizes import size_of
from rayds.storage import io_threads, is_url, read_url
from rayds.targets import KINDS, Bad, Ints, Placed, class_masks, classes, objects

PAD = 114  # gray of the bars of a letterbox
FITS = ("stretch", "letterbox")


class Spec(NamedTuple):
    """The dtype and shape of a tensor column; None: differs from row to row."""

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def fixed(self) -> bool:
        return None not in self.shape

    @property
    def arrow(self) -> pa.DataType:
        """How the table carries it: numbers as they are, tensors as bytes, with shapes where those vary."""
        if not self.shape:
            return pa.from_numpy_dtype(np.dtype(self.dtype))
        data = pa.large_binary()
        return data if self.fixed else pa.struct([("data", data), ("shape", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class Recipe:
    """What samples are made of; a stage from item tables to tables of `schema`. Picklable.

    columns: those of the item table that stay. size: (height, width) of the images, None: as they are.
    labels: how many there are. A call leaves bad items out, or raises, by on_error; they are rows with `error`.
    """

    columns: tuple[str, ...]
    decode: bool
    size: tuple[int, int] | None
    letterbox: bool
    targets: str | None
    multi_label: bool
    labels: int
    on_error: OnError

    @classmethod
    def of(
        cls,
        columns: Sequence[str] | None,
        decode: bool,
        resize: Any,
        fit: str,
        targets: str | None,
        multi_label: bool,
        labels: int,
        on_error: OnError,
    ) -> Recipe:
        """A recipe of what a user asks for. Raises UsageError."""
        for name in columns or ():
            if name not in ITEM_SCHEMA.names:
                raise UnknownNameError("column", name, ITEM_SCHEMA.names)
        if targets is not None and targets not in KINDS:
            raise UnknownNameError("kind of targets", targets, KINDS)
        if fit not in FITS:
            raise UnknownNameError("fit", fit, FITS)
        size = (resize, resize) if isinstance(resize, int) else resize
        if size is not None and not (
            isinstance(size, (tuple, list))
            and len(size) == 2
            and all(isinstance(n, (int, np.integer)) and n > 0 for n in size)
        ):
            raise UsageError(f"resize is (height, width) in pixels, or one number for both, not {resize!r}")
        if size is None and fit != "stretch":
            raise UsageError(f"fit={fit!r} says how images are resized: it needs resize=(height, width)")
        if size is not None and not decode and targets not in ("detection", "segmentation"):
            raise UsageError(
                "resize has nothing to resize: take decode=True, or targets that have coordinates"
            )
        if multi_label and targets != "classification":
            raise UsageError("multi_label is for targets='classification'")
        kept = ("id", "subset") if columns is None else tuple(dict.fromkeys(columns))
        made = None if size is None else (int(size[0]), int(size[1]))
        return cls(kept, decode, made, fit == "letterbox", targets, multi_label, labels, on_error)

    @property
    def needs(self) -> frozenset[str]:
        """The columns of the item table that must be read."""
        wanted = {"id", "subset", *self.columns}
        if self.decode or self.targets == "segmentation" or (self.targets == "detection" and self.size):
            wanted.add("media")
        return frozenset(wanted | ({"annotations"} if self.targets else set()))

    @property
    def tensors(self) -> dict[str, Spec]:
        """The tensor columns."""
        specs: dict[str, Spec] = {}
        size = self.size or (None, None)
        if self.decode:
            specs["image"] = Spec("uint8", (*size, 3))
        if self.targets == "classification":
            kind = (
                {"labels": Spec("float32", (self.labels,))}
                if self.multi_label
                else {"label": Spec("int64", ())}
            )
            specs |= kind
        elif self.targets == "detection":
            specs |= {
                "boxes": Spec("float32", (None, 4)),
                "labels": Spec("int64", (None,)),
                "area": Spec("float32", (None,)),
                "iscrowd": Spec("int64", (None,)),
            }
        elif self.targets == "segmentation":
            specs["mask"] = Spec("uint8" if self.labels < 256 else "int32", size)
        return specs

    @property
    def schema(self) -> pa.Schema:
        """Kept columns, tensors, and `error`, null for a good row."""
        tensors = [pa.field(name, spec.arrow) for name, spec in self.tensors.items()]
        kept = [ITEM_SCHEMA.field(name) for name in self.columns]
        return pa.schema([*kept, *tensors, pa.field(ERROR_COLUMN, pa.string())])

    def __call__(self, block: pa.Table) -> pa.Table:
        """The samples of a piece of items (error rows included), bad ones last."""
        good, carried = split_errors(block)
        records = [] if carried is None else carried.column(ERROR_COLUMN).to_pylist()
        columns, bad = self._columns(good) if good.num_rows else ({}, {})
        if bad and self.on_error is OnError.RAISE:
            raise bad[min(bad)]
        subsets = good.column("subset")
        records += [json.dumps({"subset": subsets[i].as_py(), **e.record()}) for i, e in sorted(bad.items())]
        made = [self._table(good, columns, bad)] if good.num_rows > len(bad) else []
        rows = [{ERROR_COLUMN: text} for text in records]
        return pa.concat_tables([*made, pa.Table.from_pylist(rows, self.schema)])

    def _table(self, block: pa.Table, columns: dict[str, Sequence[Any]], bad: Bad) -> pa.Table:
        keep = [i for i in range(block.num_rows) if i not in bad]
        kept = block.take(pa.array(keep, pa.int64())) if bad else block
        arrays = [kept.column(name) for name in self.columns]
        arrays += [encoded([columns[n][i] for i in keep], spec) for n, spec in self.tensors.items()]
        return pa.Table.from_arrays([*arrays, pa.nulls(len(keep), pa.string())], schema=self.schema)

    def _columns(self, block: pa.Table) -> tuple[dict[str, Sequence[Any]], Bad]:
        """The values of the tensor columns, and what is bad (whose values are anything)."""
        columns: dict[str, Sequence[Any]] = {}
        images, sizes, bad = self._images(block)
        placed = Placed.of(sizes, self.size, self.letterbox)
        if self.decode:
            columns["image"] = [self._fitted(im, placed, i) for i, im in enumerate(images)]
        if self.targets == "classification":
            name = "labels" if self.multi_label else "label"
            found_classes, wrong = classes(block, self.labels, self.multi_label)
            columns[name] = list(found_classes)
        elif self.targets == "detection":
            found, wrong = objects(block, placed)
            bounds = np.searchsorted(found.item, np.arange(1, block.num_rows))
            columns["boxes"] = np.split(found.boxes.astype(np.float32), bounds)
            columns["labels"] = np.split(found.label, bounds)
            columns["area"] = np.split(found.area.astype(np.float32), bounds)
            columns["iscrowd"] = np.split(found.crowd.astype(np.int64), bounds)
        elif self.targets == "segmentation":
            columns["mask"], wrong = class_masks(block, placed, self.tensors["mask"].dtype)
        else:
            wrong = {}
        return columns, {**wrong, **bad}

    def _images(self, block: pa.Table) -> tuple[list[Pixels | None], Ints, Bad]:
        """(the decoded images, as scaled by the decoder; their sizes as stored; those that can't be read)."""
        n = block.num_rows
        images: list[Pixels | None] = [None] * n
        sizes = np.ones((n, 2), np.int64)
        bad: Bad = {}
        if "media" not in self.needs:
            return images, sizes, bad
        media = single_chunk(block, "media").to_pylist()
        ids = single_chunk(block, "id").to_pylist()
        known = [(m or {}).get("height") and m["width"] for m in media]
        asked = [m if self.decode or not known[i] else {} for i, m in enumerate(media)]
        kept = Decoded()
        for i, data in enumerate(_fetched(asked, whole=self.decode)):
            try:
                if isinstance(data, DataError):
                    raise data
                if self.decode:
                    images[i], sizes[i] = self._decoded(data, media[i], kept)
                else:
                    sizes[i] = data or (media[i]["height"], media[i]["width"])
            except DataError as e:
                bad[i] = DataError(e.reason, file=e.file, item=ids[i], place=e.place, remedy=e.remedy)
        return images, sizes, bad

    def _decoded(self, data: bytes, row: dict[str, Any], kept: Decoded) -> tuple[Pixels, tuple[int, int]]:
        """(RGB pixels, the size as stored and edited). A JPEG that has no edits and is much larger than wanted is
        decoded at a half, quarter or eighth."""
        import cv2

        name = row["path"]
        if row["edits"] or not data.startswith(b"\xff\xd8\xff"):
            pixels = row_pixels(row, data=data, kept=kept)
            return _rgb(pixels), (pixels.shape[0], pixels.shape[1])
        size = probe_bytes(data, name)
        factor = self._reduction(size)
        flags = getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}") if factor > 1 else cv2.IMREAD_COLOR
        # not turned by EXIF: annotations are of the image as stored
        pixels = decode(data, name, flags | cv2.IMREAD_IGNORE_ORIENTATION)
        # a last pixel that stands for less than half of a whole one would shift the others
        pixels = pixels[: max(1, round(size[0] / factor)), : max(1, round(size[1] / factor))]
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), size

    def _reduction(self, size: tuple[int, int]) -> int:
        """The largest of 8, 4, 2 and 1 by which a JPEG may be reduced and still be no smaller than wanted."""
        if self.size is None:
            return 1
        [(height, width)] = Placed.of(np.array([size]), self.size, self.letterbox).inner
        return next(f for f in (8, 4, 2, 1) if f == 1 or (size[0] >= f * height and size[1] >= f * width))

    def _fitted(self, image: Pixels | None, placed: Placed, row: int) -> Pixels | None:
        if image is None or self.size is None:
            return image
        import cv2

        height, width = map(int, placed.inner[row])
        if image.shape[:2] != (height, width):
            shrinks = image.shape[0] > height or image.shape[1] > width
            how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, (width, height), interpolation=how)
        if (height, width) == self.size:
            return image
        out = np.full((*self.size, 3), PAD, np.uint8)
        top, left = placed.offset[row]
        out[top : top + height, left : left + width] = image
        return out


def on_worker(recipe: Recipe, block: pa.Table) -> pa.Table:
    """The recipe in a task that was given one core: OpenCV's own threads would take those of others."""
    import cv2

    cv2.setNumThreads(1)
    return recipe(block)


def _fetched(media: Sequence[dict[str, Any] | None], *, whole: bool) -> Iterable[Any]:
    """For each row of MEDIA_TYPE the encoded bytes (whole) or (height, width), or a DataError; None for {}."""
    fetch = _bytes if whole else _size
    remote = [m["path"] for m in media if m and m["data"] is None and is_url(m["path"] or "")]
    if remote:
        with ThreadPoolExecutor(io_threads(*remote)) as pool:
            return list(pool.map(fetch, media))
    return map(fetch, media)


def _bytes(media: dict[str, Any] | None) -> bytes | DataError:
    if not media or media["kind"] != "image" or not (media["data"] or media["path"]):
        return DataError(
            "the item has no image", remedy="Read the dataset with its images, or select those that have one"
        )
    try:
        return bytes(media["data"]) if media["data"] is not None else read_url(media["path"])
    except FileNotFoundError:
        return DataError(
            "the image file is missing", file=media["path"], remedy="Check the path of the images"
        )


def _size(media: dict[str, Any] | None) -> tuple[int, int] | DataError | None:
    if media == {}:
        return None
    if not media or media["data"] is not None or not media["path"]:
        data = _bytes(media)
        try:
            return data if isinstance(data, DataError) else size_of({**(media or {}), "data": data})
        except DataError as e:
            return e
    try:
        return size_of(media) or DataError(
            "the image file is missing, and its size not known", file=media["path"]
        )
    except DataError as e:
        return e


def _rgb(pixels: Pixels) -> Pixels:
    """uint8 RGB of an image as stored: 16 bits lose the low ones, floats are 0 to 1, alpha is dropped, gray is repeated."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype.kind == "f":
        pixels = np.rint(np.clip(np.nan_to_num(pixels), 0, 1) * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return np.repeat(pixels.reshape(*pixels.shape[:2], -1)[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, 2::-1])


def encoded(values: Sequence[Any], spec: Spec) -> pa.Array:
    """A tensor column of arrays of the spec's shape."""
    if not spec.shape:
        return pa.array(np.asarray(values, spec.dtype))
    arrays = [np.ascontiguousarray(v, spec.dtype) for v in values]
    ends = np.cumsum([0, *(a.nbytes for a in arrays)])
    joined = (
        np.concatenate([a.reshape(-1).view(np.uint8) for a in arrays]) if arrays else np.zeros(0, np.uint8)
    )
    data = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(arrays), [None, pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(joined)]
    )
    if spec.fixed:
        return data
    shapes = np.array([n for a in arrays for n in a.shape], np.int32)
    shape = list_of(pa.array(shapes), np.full(len(arrays), len(spec.shape)))
    return pa.StructArray.from_arrays([data, shape], fields=list(spec.arrow))


def decoded(column: pa.Array, spec: Spec) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
    """The inverse of `encoded`, without nulls: one array where the shape is fixed, else one for each row. No copy."""
    if not spec.shape:
        numbers: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return numbers
    data = column if spec.fixed else pc.struct_field(column, "data")
    n = len(data)
    offsets = (
        np.frombuffer(data.buffers()[1], np.int64, n + 1, 8 * data.offset) if n else np.zeros(1, np.int64)
    )
    raw = data.buffers()[2] if n else None
    size = np.dtype(spec.dtype).itemsize
    values = np.frombuffer(raw if raw is not None else b"", np.uint8)[offsets[0] : offsets[-1]]
    typed = values.view(spec.dtype)
    if spec.fixed:
        return typed.reshape(n, *spec.shape)
    shapes = pc.struct_field(column, "shape").flatten().to_numpy().reshape(n, len(spec.shape))
    parts = np.split(typed, (offsets[1:-1] - offsets[0]) // size)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)] if n else []
