"""Item tables, written as rayds datasets and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from rayds.annotations import (
    Bbox,
)
from rayds.categories import Categories, LabelCategories, MaskCategories, PointsCategories
from rayds.dataset import Dataset
from rayds.item import DatasetItem, to_table
from rayds.schema import AnnotationType

CATEGORIES = Categories(
    {
        AnnotationType.label: LabelCategories.from_iterable([("a",), ("b", "a", ["x"]), ("ü \N{SNOWMAN}",)]),
        AnnotationType.mask: MaskCategories({0: (1, 2, 3), 2: (0, 0, 255)}),
        AnnotationType.points: PointsCategories.from_iterable([(1, ["nose", "ear"], {(1, 2)})]),
    }
)


def written(table: pa.Table | list[pa.Table], path: Path, **options: Any) -> Path:
    Dataset.from_arrow(table, CATEGORIES, engine="local").export(str(path), "rayds", **options)
    return path


def read(path: Path | str, **options: Any) -> pa.Table:
    return Dataset.import_from(str(path), "rayds", engine="local", **options).to_arrow()


def boxes(n: int, subset: str = "train") -> pa.Table:
    """n items with i % 3 boxes each."""
    made = [
        DatasetItem(f"{i:05d}", [Bbox(i, k, 1.5, 2.25, label=k) for k in range(i % 3)], subset)
        for i in range(n)
    ]
    return to_table(made)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
