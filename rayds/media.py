"""Images and point clouds: locate, probe (header only), decode, encode, copy.

No function here reads pixels unless its name says so. Arrays are OpenCV's: (H, W) or (H, W, C), BGR or
BGRA, in the depth of the file (uint8 or uint16, float32 for HDR formats).
"""

from __future__ import annotations

import base64
import binascii
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rayds.edits import MAX_PIXELS, Edits, apply_edits, dump_edits, edited_size, load_edits
from rayds.errors import DataError
from rayds.headers import guess_encoding, probe_bytes
from rayds.storage import Storage, is_url, read_url, safe_output
from rayds.urls import normal

Pixels = npt.NDArray[Any]

IMAGE_EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".bmp", ".dib", ".tif", ".tiff", ".tga", ".webp",
    ".pfm", ".sr", ".ras", ".exr", ".hdr", ".pic", ".pbm", ".pgm", ".ppm", ".pxm", ".pnm",
))  # fmt: skip
PROBE_BYTES = 64 << 10
FLOAT_EXTENSIONS = frozenset((".exr", ".hdr", ".pic", ".pfm", ".tif", ".tiff"))
DEEP_EXTENSIONS = FLOAT_EXTENSIONS | {".png", ".jp2", ".pgm", ".ppm", ".pnm", ".pxm"}  # hold 16 bits
_NO_ALPHA = frozenset(
    (".jpg", ".jpeg", ".jpe", ".ppm", ".pnm", ".pxm", ".pfm", ".hdr", ".pic", ".ras", ".sr")
)
_NO_GRAY = frozenset((".ppm", ".ras", ".sr"))


def is_image(name: str) -> bool:
    """Whether a file name has the extension of an image."""
    return posixpath.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def same_encoding(a: str, b: str) -> bool:
    """Whether two file extensions name one encoding (".jpg" and ".JPEG" do)."""
    alike = {".jpeg": ".jpg", ".jpe": ".jpg", ".tiff": ".tif", ".dib": ".bmp"}
    a, b = a.lower(), b.lower()
    return alike.get(a, a) == alike.get(b, b)


class Media:
    """Base of Image and PointCloud."""

    kind: ClassVar[str]

    def to_row(self) -> dict[str, Any]:
        """The media as a dict of the columns of MEDIA_TYPE."""
        raise NotImplementedError

    @staticmethod
    def from_row(row: dict[str, Any]) -> Media:
        """The inverse of to_row."""
        if row["kind"] == PointCloud.kind:
            return PointCloud(row["path"] or "", related=list(row["related"] or ()))
        size = (row["height"], row["width"]) if row["height"] is not None else None
        edits = load_edits(row.get("edits"))
        return Image(row["path"] or "", row["data"], size, row["encoding"], edits)


@dataclass(eq=False)
class Image(Media):
    """An image: by path or URL, by encoded bytes, by an array (H, W[, C] BGR) or by a callable that returns one.

    size: (height, width) in pixels where known; read from the header when asked and not known.
    edits: steps that change the image when its pixels are read (see rayds.edits); size is that after them.
    """

    kind = "image"

    path: str = ""
    data: Any = field(default=None, repr=False)
    size: tuple[int, int] | None = None
    encoding: str | None = None
    edits: Edits = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, value: Any) -> Image:
        """An Image from an Image, a path, encoded bytes, an array or a callable."""
        if isinstance(value, Image):
            return value
        if isinstance(value, (str, os.PathLike)):
            return cls(path=os.fspath(value))
        return cls(data=value)

    @classmethod
    def from_file(cls, path: str) -> Image:
        """An image by path or URL."""
        return cls(path=path)

    @classmethod
    def from_numpy(cls, data: Pixels) -> Image:
        """An image from an array (H, W[, C]), BGR."""
        return cls(data=data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Image:
        """An image from the bytes of a file."""
        return cls(data=data)

    @property
    def pixels(self) -> Pixels:
        """The decoded image after its edits, (H, W) or (H, W, C), BGR. Raises DataError when it can't be decoded."""
        pixels = self._stored
        return (
            apply_edits(pixels, self.edits, self.path or None, partial(_part, None)) if self.edits else pixels
        )

    @property
    def _stored(self) -> Pixels:
        if callable(self.data):
            return np.asarray(self.data())
        if isinstance(self.data, np.ndarray):
            return self.data
        return decode(self.data if self.data is not None else read_url(self.path), self.path or None)

    def get_size(self) -> tuple[int, int] | None:
        """(height, width), from the header of the file when not known; None when there is no such file."""
        if self.size is None and (stored := self._stored_size()) is not None:
            self.size = edited_size(stored, self.edits)
        return self.size

    def _stored_size(self) -> tuple[int, int] | None:
        if isinstance(self.data, np.ndarray) or callable(self.data):
            height, width = self._stored.shape[:2]
            return int(height), int(width)
        if self.data is not None:
            return probe_bytes(self.data, self.path or None)
        return probe(self.path) if self.path else None

    @property
    def has_data(self) -> bool:
        """Whether there are pixels: bytes, an array, or a file that is there."""
        return self.data is not None or bool(self.path and _exists(self.path))

    def to_row(self) -> dict[str, Any]:
        data, encoding, size, edits = self.data, self.encoding, self.size, self.edits
        if data is not None and not isinstance(data, (bytes, bytearray)):
            pixels = self.pixels
            data, encoding, edits = encode(pixels, ".png"), ".png", []
            size = (int(pixels.shape[0]), int(pixels.shape[1]))
        elif data is not None:
            encoding = encoding or guess_encoding(bytes(data[:16]))
            try:
                size = self.get_size()
            except DataError:  # whoever needs the size will say that the bytes are damaged
                size = None
        return {
            "kind": self.kind,
            "path": self.path or None,
            "data": data,
            "encoding": encoding,
            "height": size[0] if size else None,
            "width": size[1] if size else None,
            "edits": dump_edits(edits),
        }

    def __eq__(self, other: object) -> bool:
        """Equal pixels where both hold data, else the same path and edits and no conflicting size."""
        if not isinstance(other, Image):
            return NotImplemented
        if self.data is not None and other.data is not None:
            stored = isinstance(self.data, bytes) and isinstance(other.data, bytes)
            if stored and self.data == other.data and self.edits == other.edits:
                return True
            return bool(np.array_equal(self.pixels, other.pixels))
        sizes = (self.size, other.size)
        same = self.path == other.path and self.edits == other.edits
        return same and (None in sizes or sizes[0] == sizes[1])

    def __repr__(self) -> str:
        what = self.path or ("data" if self.data is not None else "")
        size = f", {self.size[1]}x{self.size[0]}" if self.size else ""
        return f"Image({what}{size})"


@dataclass(repr=False)
class PointCloud(Media):
    """A point cloud by path or URL; related: the images that belong to it, each a path, a URL, or (for pixels in
    memory) a `data:` URL, as `of` makes them."""

    kind = "point_cloud"

    path: str = ""
    related: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, value: Any, related: Iterable[Any] = ()) -> PointCloud:
        """A PointCloud from one or from a path; related: Images, paths, encoded bytes, arrays or callables."""
        made = value if isinstance(value, PointCloud) else cls(os.fspath(value))
        return cls(made.path, [*made.related, *map(_related, related)])

    @property
    def related_images(self) -> list[Image]:
        """The images that belong to it."""
        return [Image(data=_inline_bytes(p)) if is_inline(p) else Image(path=p) for p in self.related]

    def to_row(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "related": self.related}

    def __repr__(self) -> str:
        n = len(self.related)
        return f"PointCloud({self.path}{f', {n} related image' + 's' * (n > 1) if n else ''})"


def is_inline(path: str) -> bool:
    """Whether a path is a `data:` URL, which holds the bytes themselves (RFC 2397)."""
    return path.startswith("data:")


def _related(value: Any) -> str:
    """An image of a point cloud as a path, or as a data: URL when it is in memory."""
    row = Image.of(value).to_row()
    if row["data"] is None:
        return str(row["path"] or "")
    return inline_url(row["data"], row["encoding"])


def inline_url(data: bytes, encoding: str | None) -> str:
    """The `data:` URL of the bytes of an image; encoding: a file extension."""
    kind = (encoding or ".bin").removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _inline_bytes(path: str) -> bytes:
    try:
        return base64.b64decode(path.partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as e:
        raise DataError(f"the data: URL is damaged ({e})", file=f"{path[:40]}...") from e


def extension(path: str) -> str:
    """The extension of the file that a path names, or that a data: URL should have."""
    if is_inline(path):
        return guess_encoding(_inline_bytes(path)[:16])
    return posixpath.splitext(path)[1]


def _exists(path: str) -> bool:
    return Storage(path).exists() if is_url(path) else os.path.isfile(path)


def probe(path: str) -> tuple[int, int] | None:
    """(height, width) of an image file from its header; None when the file is not there.

    Raises DataError when the file is not an image.
    """
    folder, _, base = _plain(path).rpartition("/")
    storage = Storage(folder or (os.sep if path.startswith("/") else "."))
    size = PROBE_BYTES
    try:
        while True:
            data = storage.head(base, size)
            try:
                return probe_bytes(data, path)
            except DataError:  # a long header (EXIF thumbnails, colour profiles): take more of the file
                if len(data) < size:
                    raise
            size *= 8
    except FileNotFoundError:
        return None


@contextmanager
def _unwatched(data: bytes, name: str | None) -> Iterator[None]:
    del data, name
    yield


# Entered around each call of the image decoder. A process that is there to find out which image crashes it sets its own.
watch: Callable[[bytes, str | None], AbstractContextManager[None]] = _unwatched


def decode(data: bytes, name: str | None = None, flags: int | None = None) -> Pixels:
    """The pixels of encoded bytes, as stored: (H, W) or (H, W, C), BGR. Raises DataError when unreadable."""
    import cv2

    if not data:
        raise DataError("the image file is empty", file=name)
    try:
        height, width = probe_bytes(data, name)
    except DataError:
        height = width = 0  # let the decoder say it
    if height * width > MAX_PIXELS:
        raise DataError(
            f"the image has {width}x{height} pixels, more than the limit of {MAX_PIXELS}",
            file=name,
            remedy="Raise RAYDS_MAX_PIXELS if the file is trusted",
        )
    try:
        with watch(data, name):
            pixels = cv2.imdecode(
                np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED if flags is None else flags
            )
    except cv2.error as e:
        raise DataError(f"the image can't be decoded ({e.err})", file=name) from e
    if pixels is None:
        raise DataError(
            "the image can't be decoded", file=name, remedy="Replace the file or leave the item out"
        )
    return pixels


def encode(pixels: Pixels, ext: str, quality: int = 95) -> bytes:
    """The bytes of an image file of the extension's encoding. Raises DataError when it can't hold the pixels."""
    import cv2

    pixels = np.asarray(pixels)
    ext = ext.lower()
    if pixels.dtype.kind == "f" and ext in FLOAT_EXTENSIONS:
        pixels = pixels.astype(np.float32)
    elif pixels.dtype == np.uint16 and ext not in DEEP_EXTENSIONS:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype.kind in "bfiu" and pixels.dtype not in (np.uint8, np.uint16):
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 4 and ext in _NO_ALPHA:
        pixels = pixels[:, :, :3]
    if pixels.ndim == 2 and ext in _NO_GRAY:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if same_encoding(ext, ".jpg") else []
    try:
        done, out = cv2.imencode(ext, pixels, options)
    except cv2.error as e:
        raise _unwritable(pixels, ext, f" ({e.err})") from e
    if not done:
        raise _unwritable(pixels, ext)
    return bytes(out.tobytes())


class Decoded:
    """The image that was decoded last, kept for the next one: the parts of an image follow one another. For one thread."""

    def __init__(self) -> None:
        self._key: tuple[str, int | None] | None = None
        self._pixels: Pixels | None = None

    def get(self, path: str, flags: int | None, make: Callable[[], Pixels]) -> Pixels:
        """The stored image of a path, which must not be changed; made if it is not the last."""
        if self._key != (path, flags) or self._pixels is None:
            self._pixels = None  # never two
            self._key, self._pixels = (path, flags), make()
        return self._pixels


def load(
    row: dict[str, Any],
    ext: str,
    *,
    make: Callable[[Pixels], Pixels] | None = None,
    kept: Decoded | None = None,
) -> bytes:
    """The bytes of a file of the media of a row of MEDIA_TYPE, in the encoding of the extension `ext`.

    They are the source's own when that has the same encoding, else decoded and encoded again (always when it has
    edits, or `make`, which changes the pixels, is given). kept: see row_pixels. Raises DataError when the media is
    missing or unreadable.
    """
    if make is None and _as_it_is(row, ext):
        return stored_bytes(row)
    pixels = row_pixels(row, kept=kept)
    if pixels.dtype.kind == "f" and ext.lower() not in FLOAT_EXTENSIONS:
        pixels = pixels * 255  # 1.0 is white
    return encode(make(pixels) if make else pixels, ext)


def stored_bytes(row: dict[str, Any]) -> bytes:
    """The encoded bytes of the media of a row of MEDIA_TYPE, without its edits. Raises DataError when it is missing."""
    path, data = row["path"], row["data"]
    if data is not None:
        return bytes(data)
    if not path:
        raise DataError("the item has no media to save")
    try:
        return _inline_bytes(path) if is_inline(path) else read_url(path)
    except FileNotFoundError as e:
        raise _missing(path) from e


def row_pixels(
    row: dict[str, Any], flags: int | None = None, *, data: bytes | None = None, kept: Decoded | None = None
) -> Pixels:
    """The pixels of the image of a row of MEDIA_TYPE, its edits made: (H, W) or (H, W, C), BGR.

    flags: as in `decode`; data: the encoded bytes, where they were read already; kept: what is given from call to call,
    where several images may be parts of one. Raises DataError when the image is missing, unreadable, or not as its
    edits expect it.
    """
    path = row["path"]
    edits = load_edits(row.get("edits"))

    def stored() -> Pixels:
        return decode(stored_bytes(row) if data is None else data, path, flags)

    if not edits:
        return stored()
    whole = kept.get(path, flags, stored) if kept is not None and path and row["data"] is None else stored()
    return apply_edits(whole, edits, path, partial(_part, flags))


def _part(flags: int | None, path: str, edits: Edits) -> Pixels:
    """The image of a path after some edits."""
    return row_pixels({"path": path, "data": None, "edits": dump_edits(edits)}, flags)


def _as_it_is(row: dict[str, Any], ext: str) -> bool:
    """Whether the bytes of a row's media are those of a file with the extension `ext`."""
    if row["kind"] != "image":
        return True
    return not row.get("edits") and same_encoding(ext, _source_ext(row))


def save(
    row: dict[str, Any],
    out: Storage,
    name: str,
    *,
    make: Callable[[Pixels], Pixels] | None = None,
    kept: Decoded | None = None,
) -> None:
    """Write the media of a row of MEDIA_TYPE to `name` in a storage.

    Bytes are copied when the extension names the same encoding and there are no edits, else decoded and encoded again.
    kept: see row_pixels. Raises DataError when the media is missing or unreadable, or when `name` would leave its folder.
    """
    safe_output(name)  # it comes from ids and subsets of untrusted data
    ext = posixpath.splitext(name)[1]
    path = row["path"]
    copied = make is None and _as_it_is(row, ext)
    if not copied or row["data"] is not None or not path or is_inline(path):
        out.write_bytes(name, load(row, ext, make=make, kept=kept))
        return
    try:
        out.copy_in(path, name)
    except FileNotFoundError as e:
        raise _missing(path) from e


def _source_ext(row: dict[str, Any]) -> str:
    found = row["encoding"] if row["data"] is not None else extension(_plain(row["path"] or ""))
    return found or ""


def _plain(path: str) -> str:
    """A path that ends with the name of the file: fsspec's chained URLs have it in the middle."""
    return normal(path) if "::" in path else path


def _unwritable(pixels: Pixels, ext: str, why: str = "") -> DataError:
    what = f"can't write {pixels.shape} {pixels.dtype} pixels as {ext}{why}"
    return DataError(what, remedy="Choose another encoding with --image-ext, such as .png")


def _missing(path: str) -> DataError:
    return DataError("the image file is missing", file=path, remedy="Check the path of the images")
