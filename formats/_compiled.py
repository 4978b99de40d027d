"""The compiled scanner of JSON (native/jsonscan.h)."""

from __future__ import annotations

from rayds.compiled import load

jsonscan = load("rayds.formats._jsonscan")
