"""What tests of operations on images share: an item with every type of annotation, and short ways to run."""

from __future__ import annotations

from typing import Any

import numpy as np

import rayds
from rayds import annotations as anns

H, W = 60, 80


def pixels(seed: int = 0, height: int = H, width: int = W) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square_mask(x0: int, y0: int, x1: int, y1: int, height: int = H, width: int = W) -> np.ndarray[Any, Any]:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def one_of_each() -> list[anns.Annotation]:
    """An annotation of every type, with ids, groups and attributes of its own."""
    made: list[anns.Annotation] = [
        anns.Label(0),
        anns.Caption("two things"),
        anns.Bbox(10, 20, 30, 16, label=1),
        anns.Polygon([8, 8, 40, 8, 40, 40, 8, 40], label=1),
        anns.PolyLine([4, 4, 60, 4, 60, 50], label=0),
        anns.Points([5, 6, 70, 50, 0, 0], [2, 1, 0], label=0),
        anns.Mask(square_mask(8, 12, 48, 40), label=1),
        anns.Ellipse(20, 10, 44, 30, label=0),
        anns.RotatedBbox(30, 30, 20, 10, 90, label=0),
        anns.Cuboid3d([1, 2, 3], [0.1, 0.2, 0.3], [4, 5, 6], label=1),
    ]
    return [a.wrap(id=i + 1, group=i + 11, attributes={"n": i}, z_order=i % 3) for i, a in enumerate(made)]


def of(items: list[rayds.DatasetItem], engine: Any = None, **options: Any) -> rayds.Dataset:
    return rayds.Dataset.from_iterable(items, ["cat", "dog"], engine=engine, **options)


def single(annotations: Any, size: tuple[int, int] = (H, W), **more: Any) -> rayds.Dataset:
    """A dataset of one item, whose image is told but not there."""
    image = rayds.Image("/nowhere/a.jpg", size=size)
    return of([rayds.DatasetItem("a", annotations, image=image, **more)])


def changed(annotations: Any, op: str, **options: Any) -> list[anns.Annotation]:
    """The annotations of one item after an operation."""
    [item] = single(annotations).transform(op, **options)
    return item.annotations


def numbers(annotation: Any) -> list[float]:
    """All coordinates of an annotation as its row has them."""
    from rayds.item import annotation_to_row

    return list(annotation_to_row(annotation)["points"])
