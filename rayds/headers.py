"""What the first bytes of an image file say: its encoding, and its size."""

from __future__ import annotations

import io
import re
import struct
from functools import cache

from rayds.errors import DataError


def guess_encoding(data: bytes) -> str:
    """The file extension of encoded image bytes by their first bytes; ".bin" when unknown."""
    signatures = {
        b"\xff\xd8\xff": ".jpg",
        b"\x89PNG": ".png",
        b"BM": ".bmp",
        b"II*\0": ".tif",
        b"MM\0*": ".tif",
        b"GIF8": ".gif",
        b"P5": ".pgm",
        b"P6": ".ppm",
        b"#?RADIANCE": ".hdr",
    }
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((ext for sig, ext in signatures.items() if data.startswith(sig)), ".bin")


def probe_bytes(data: bytes, name: str | None = None) -> tuple[int, int]:
    """(height, width) of the pixels that `decode` gives, from the first bytes of an image.

    That is as stored, EXIF rotation not applied, but for TIFF, whose decoder applies it.
    Raises DataError when the header can't be read.
    """
    found = _own_header(bytes(data[:4096]))
    if found is None:
        found = _imagesize(data) or _pillow_size(data)
    if found is None or found[0] <= 0 or found[1] <= 0:
        raise DataError("not an image, or its header is damaged", file=name)
    return found


_NETPBM = re.compile(rb"P[1-6Ff](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")
_RADIANCE = re.compile(rb"\n[-+]Y +(\d{1,9}) +[-+]X +(\d{1,9})\n")
_EXR = re.compile(rb"\0dataWindow\0box2i\0\x10\0\0\0(.{16})", re.DOTALL)


def _own_header(head: bytes) -> tuple[int, int] | None:
    """(height, width) of the formats that imagesize and Pillow don't know whole; (0, 0) for a damaged one."""
    if re.match(rb"P[1-6Ff]\s", head):
        netpbm = _NETPBM.match(head)
        return (int(netpbm[2]), int(netpbm[1])) if netpbm else (0, 0)
    if head.startswith(b"#?"):
        radiance = _RADIANCE.search(head)
        return (int(radiance[1]), int(radiance[2])) if radiance else (0, 0)
    if head.startswith(b"v/1\x01"):
        exr = _EXR.search(head)
        if not exr:
            return 0, 0
        left, top, right, bottom = struct.unpack("<4i", exr[1])
        return bottom - top + 1, right - left + 1
    return None


@cache
def _rotation_options() -> dict[str, bool]:
    import inspect

    import imagesize

    return {"exif_rotation": False} if "exif_rotation" in inspect.signature(imagesize.get).parameters else {}


def _imagesize(data: bytes) -> tuple[int, int] | None:
    import imagesize

    tiff = bytes(data[:4]) in (b"II*\0", b"MM\0*")
    try:
        width, height = imagesize.get(io.BytesIO(data), **({} if tiff else _rotation_options()))
    except (ValueError, OSError, LookupError, OverflowError, SyntaxError, TypeError, struct.error):
        return None  # a cut or unknown header: let Pillow try
    return (int(height), int(width)) if width > 0 and height > 0 else None


def _pillow_size(data: bytes) -> tuple[int, int] | None:
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(data)) as im:
            return int(im.height), int(im.width)
    except (OSError, ValueError, SyntaxError, struct.error, Pillow.DecompressionBombError):
        return None
