"""The compiled parts of rayds (native/), which are faster than what Python does without them, and give the same."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """A compiled module; None where there is none for this platform, or RAYDS_PURE_PYTHON=1 says to do without."""
    if os.environ.get("RAYDS_PURE_PYTHON", "") not in ("", "0"):
        return None
    try:
        return import_module(name)
    except ImportError:
        return None
