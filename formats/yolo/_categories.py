"""Label names of YOLO datasets: the index is what counts, so that a name given twice is kept apart."""

from __future__ import annotations

from collections.abc import Iterable

from rayds.categories import Categories, Category, LabelCategories
from rayds.errors import DataError
from rayds.formats._meta import read_meta
from rayds.listing import Listing
from rayds.schema import AnnotationType

FAMILY = "yolo"


def label_categories(names: Iterable[str]) -> LabelCategories:
    """Labels in index order; a name that occurs again gets a number, and keeps its own name for writing."""
    items: list[Category] = []
    seen: set[str] = set()
    for name in names:
        unique, n = name, 1
        while unique in seen:
            n += 1
            unique = f"{name}_{n}"
        seen.add(unique)
        items.append(Category(unique, extra={FAMILY: {"name": name}} if unique != name else {}))
    return LabelCategories(items)


def written_names(labels: LabelCategories) -> list[str]:
    """The label names in index order, as the YOLO source had them. Raises DataError for one with a line break."""
    names = [str(c.extra.get(FAMILY, {}).get("name", c.name)) for c in labels]
    for name in names:
        if "\n" in name or "\r" in name:
            raise DataError(
                f"the label {name!r} has a line break", remedy="Rename it with the transform remap_labels"
            )
    return names


def with_meta(names: Iterable[str], files: Listing, folder: str = "") -> Categories:
    """The categories of label names; dataset_meta.json comes first where there is one."""
    meta = read_meta(files, folder)
    if meta is not None:
        return meta.categories()
    return Categories({AnnotationType.label: label_categories(names)})
