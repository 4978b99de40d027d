"""Which of a dataset's records go to the file of which task."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.formats.coco.records import Grouped
from rayds.formats.coco.rows import MARKED
from rayds.schema import AnnotationType as T

Bools = npt.NDArray[np.bool_]

SHAPES = (T.bbox, T.polygon, T.mask)


def kinds_of(found: Grouped) -> dict[T, Bools]:
    """Which records have a row of each type that COCO holds."""
    n = len(found.first)
    return {
        t: np.bincount(found.owner[found.view.type == t], minlength=n) > 0
        for t in (*SHAPES, T.points, T.caption, T.label)
    }


def chosen_tasks(fmt: Any, options: Any) -> bool:
    """Whether the user named the tasks: then records go there whatever file they came from."""
    return bool(getattr(options, "tasks", ())) or len(fmt.tasks) == 1


def pick_tasks(fmt: Any, found: Grouped, marks: pa.ChunkedArray, options: Any) -> dict[str, Bools]:
    """The records of each task that may be written. marks: the task that each record's source names."""
    has = kinds_of(found)
    shaped = has[T.bbox] | has[T.polygon] | has[T.mask]
    told = {t: pc.fill_null(pc.equal(marks, t), False).to_numpy(zero_copy_only=False) for t in MARKED}
    every = chosen_tasks(fmt, options)
    elsewhere = (
        np.zeros(len(shaped), bool) if every else told["stuff"] | told["panoptic"] | told["person_keypoints"]
    )
    pick = {
        "instances": shaped & ~elsewhere,
        "person_keypoints": has[T.points] | told["person_keypoints"],
        "stuff": shaped if every else told["stuff"],
        "panoptic": has[T.mask] | has[T.polygon] if every else told["panoptic"],
        "captions": has[T.caption],
        "labels": has[T.label],
        "image_info": np.zeros(len(shaped), bool),
    }
    allowed = fmt.written_tasks(options)
    return {task: mine for task, mine in pick.items() if task in allowed}
