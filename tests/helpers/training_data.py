"""Items with decoded images of known content, for training loops."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from rayds import Bbox, Dataset, DatasetItem, Image, Label

LABELS = ["cat", "dog", "cow"]


def png(pixels: Any, ext: str = ".png") -> Image:
    return Image.from_bytes(cv2.imencode(ext, np.asarray(pixels))[1].tobytes())


def numbered(n: int, engine: Any = "local") -> Dataset:
    """n items of gray images of different sizes, whose gray is their number, one label each."""
    items = [
        DatasetItem(
            f"{i:03d}",
            subset="val" if i % 4 == 0 else "train",
            media=png(np.full((20 + i % 3, 30, 3), i, np.uint8)),
            annotations=[Label(i % 3), Bbox(1, 2, 3 + i, 4, label=i % 3)][: 1 + i % 2],
        )
        for i in range(n)
    ]
    return Dataset.from_iterable(items, LABELS, engine=engine)
