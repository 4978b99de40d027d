"""Small VOC datasets, made and read again."""

from __future__ import annotations

import numpy as np

from rayds.dataset import Dataset
from rayds.item import DatasetItem
from rayds.media import Image


def item(id, *annotations, subset="train", size=(40, 60), **more):
    return DatasetItem(
        id, subset=subset, media=Image(path=f"/nowhere/{id}.jpg", size=size), annotations=annotations, **more
    )


def dataset(*items, labels=("cat", "dog")):
    return Dataset.from_iterable(items, labels, engine="local")


def roundtrip(path, made, format="voc", **options):
    report = made.export(str(path), format, overwrite=True, **options)
    return Dataset.import_from(str(path), format, engine="local"), report


def read(root, format="voc", **options):
    return Dataset.import_from(str(root), format, engine="local", **options)


def disc(x, y, r=8):
    yy, xx = np.mgrid[:40, :60]
    return (xx - x) ** 2 + (yy - y) ** 2 < r * r
