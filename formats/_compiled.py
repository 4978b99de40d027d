"""The compiled scanner of JSON (native/jsonscan.h)."""

from __future__ import annotations

from collections.abc import Sized

from rayds.compiled import load

jsonscan = load("rayds.formats._jsonscan")
_MOST = 1 << 30  # bytes that `annotations` and `images` take


def takes(data: Sized) -> bool:
    """Whether the scanner is there, and some bytes are not too many for it."""
    return jsonscan is not None and len(data) < _MOST
