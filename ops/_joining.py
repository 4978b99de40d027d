"""Categories of several datasets as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rayds.categories import (
    AnyCategories,
    Categories,
    Category,
    LabelCategories,
    MaskCategories,
    PointsCategories,
)
from rayds.errors import UsageError
from rayds.schema import AnnotationType as T

Ints = npt.NDArray[np.int64]


def joined(parts: Sequence[Categories]) -> tuple[Categories, list[Ints]]:
    """(the categories of all, labels by name in the order in which they come; the new label index of each old one, for each).

    Raises UsageError where two say different things of one label: its parent, its colour, its key points.
    """
    made: dict[str, Category] = {}
    for k, part in enumerate(parts):
        for label in part.labels:
            had = made.get(label.name)
            if had is None:
                made[label.name] = replace(label, attributes=set(label.attributes))
                continue
            if label.parent and had.parent and label.parent != had.parent:
                raise _conflict("parent", label.name, had.parent, label.parent, k)
            had.parent = had.parent or label.parent
            had.attributes |= label.attributes
    places = {name: i for i, name in enumerate(made)}
    index = [np.array([places[n] for n in part.labels.names()], np.int64) for part in parts]
    attributes = {a for part in parts for a in part.labels.attributes}
    out: dict[T, AnyCategories] = {}
    if any(T.label in part for part in parts):
        out[T.label] = LabelCategories(list(made.values()), attributes)
    colors: dict[int, Any] = {}
    points: dict[int, Any] = {}
    names = list(made)
    for k, (part, new) in enumerate(zip(parts, index, strict=True)):
        for told, found, what in (
            (part.masks.colormap if part.masks else {}, colors, "mask colour"),
            (part.points.items if part.points else {}, points, "key points"),
        ):
            for old, value in told.items():
                at = int(new[old]) if old < len(new) else old
                if found.setdefault(at, value) != value:
                    raise _conflict(what, names[at] if at < len(names) else str(at), found[at], value, k)
    if any(part.masks is not None for part in parts):
        out[T.mask] = MaskCategories(dict(sorted(colors.items())))
    if any(part.points is not None for part in parts):
        out[T.points] = PointsCategories(dict(sorted(points.items())))
    return Categories(out), index


def _conflict(what: str, label: str, a: Any, b: Any, source: int) -> UsageError:
    return UsageError(
        f"the {what} of the label {label!r} is {a!r} in one dataset and {b!r} in source {source}; make them the same "
        "first, e.g. with the transform remap_labels"
    )
