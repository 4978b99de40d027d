"""Operations on labels: remap_labels, project_labels, anns_to_labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds.categories import (
    AnyCategories,
    Categories,
    Category,
    LabelCategories,
    MaskCategories,
    PointsCategories,
)
from rayds.engine.base import Block
from rayds.errors import DataError, UsageError
from rayds.format import with_errors
from rayds.op import Op
from rayds.ops._pairs import parse_pairs
from rayds.options import Options as Base
from rayds.options import option
from rayds.schema import AnnotationType, annotation_rows, flat, single_chunk, with_annotations, with_fields


def relabelled(block: Block, index: npt.NDArray[np.int64], unlabelled: bool = True) -> Block:
    """The block with the labels index[label]; annotations whose new label is -1 go.

    unlabelled: whether annotations that have no label stay.
    """
    view = flat(block)
    if not len(view):
        return block
    old = view.numpy("label", -1).astype(np.int64)
    none = old < 0
    new = np.full(len(old), -1, np.int64)
    new[~none] = index[old[~none]]
    keep = np.where(none, unlabelled, new >= 0)
    rows = view.rows if keep.all() else view.rows.filter(pa.array(keep))
    new, none = new[keep], none[keep]
    rows = with_fields(rows, label=pa.array(new, pa.int32(), mask=none))
    return with_annotations(block, rows, np.bincount(view.item[keep], minlength=block.num_rows))


def reordered(old: Categories, labels: LabelCategories, index: Sequence[int]) -> Categories:
    """Categories with other labels; index: the new label of each old one, -1 for none. Of several old labels that
    become one, the first gives its mask colour and its key points."""
    made: dict[AnnotationType, AnyCategories] = {AnnotationType.label: labels}
    if old.masks is not None:
        colors: dict[int, Any] = {}
        for label, color in sorted(old.masks.colormap.items()):
            if label < len(index) and index[label] >= 0:
                colors.setdefault(index[label], color)
        made[AnnotationType.mask] = MaskCategories(dict(sorted(colors.items())))
    if old.points is not None:
        points: dict[int, Any] = {}
        for label, one in sorted(old.points.items.items()):
            if label < len(index) and index[label] >= 0:
                points.setdefault(index[label], one)
        made[AnnotationType.points] = PointsCategories(dict(sorted(points.items())))
    return Categories(made)


class Relabelling(Op):
    """An operation that gives annotations other labels: `index` has the new one of each, or -1."""

    index: npt.NDArray[np.int64]

    def apply(self, block: Block) -> Block:
        good, errors = self.good_rows(block, undefined_labels(block, len(self.index)))
        return with_errors(relabelled(good, self.index, self._keeps_unlabelled()), errors)

    def _keeps_unlabelled(self) -> bool:
        return True


def undefined_labels(block: Block, n: int) -> dict[int, DataError]:
    """The items, by row, with an annotation whose label is none of the n labels."""
    view = flat(block)
    labels = view.numpy("label", -1)
    rows, first = np.unique(view.item[labels >= n], return_index=True)
    ids, bad = single_chunk(block, "id"), labels[labels >= n]
    return {
        int(row): DataError(
            f"an annotation has the label {bad[at]}, but there are {n} labels, from 0 on",
            item=ids[int(row)].as_py(),
            remedy="Add labels to the categories first, or leave the item out with --on-error skip",
        )
        for row, at in zip(rows, first, strict=True)
    }


class RemapLabels(Relabelling):
    """Renames labels, merges several into one, deletes them with their annotations."""

    name = "remap_labels"
    title = "rename, merge or delete labels"

    @dataclass(frozen=True)
    class Options(Base):
        label: tuple[str, ...] = option(
            (), short="l", split=False, aliases=("mapping",),
            help="SOURCE:DESTINATION, repeatable; with nothing after the colon the label and its annotations are deleted",
        )  # fmt: skip
        default: str = option(
            "keep",
            choices=("keep", "delete"),
            help="what happens to the other labels, and to annotations without a label",
        )

    def __init__(self, **options: Any) -> None:
        for name in ("mapping", "label"):  # a dict, as the manuals' Python examples have it
            if isinstance(given := options.get(name), Mapping):
                options[name] = tuple(f"{_escaped(a)}:{_escaped(b)}" for a, b in given.items())
        super().__init__(**options)

    def prepare(self, categories: Categories) -> Categories:
        wanted = parse_pairs(self.options.label, "--label")
        if not wanted and self.options.default == "keep":
            raise UsageError("remap_labels: give --label SOURCE:DESTINATION, or --default delete")
        if unknown := [name for name in wanted if name not in categories.labels]:
            warnings.warn(
                f"remap_labels: not among the labels: {', '.join(map(repr, unknown[:10]))}", stacklevel=2
            )
        keep = self.options.default == "keep"
        names = [wanted.get(c.name, c.name if keep else "") for c in categories.labels]
        made: dict[str, Category] = {}
        for label, name in zip(categories.labels, names, strict=True):
            if name and name not in made:
                made[name] = replace(label, name=name, attributes=set(label.attributes))
            elif name:
                made[name].attributes |= label.attributes
        for label in made.values():
            parent = wanted.get(label.parent, label.parent)
            label.parent = parent if parent in made and parent != label.name else ""
        labels = LabelCategories(list(made.values()), set(categories.labels.attributes))
        places = {name: i for i, name in enumerate(made)}
        index = [places.get(name, -1) for name in names]
        self.index = np.array(index, np.int64)
        return reordered(categories, labels, index)

    def _keeps_unlabelled(self) -> bool:
        return bool(self.options.default == "keep")


def _escaped(name: str) -> str:
    return name.replace(":", "\\:")


class ProjectLabels(Relabelling):
    """Makes the labels exactly those of a list, in its order; annotations of others go."""

    name = "project_labels"
    title = "make the labels those of a list, removing the annotations of others"

    @dataclass(frozen=True)
    class Options(Base):
        label: tuple[str, ...] = option(
            short="l", split=False, aliases=("dst-labels",), help="a label, repeatable; new ones are added"
        )

    def prepare(self, categories: Categories) -> Categories:
        wanted = list(dict.fromkeys(self.options.label))
        if not wanted:
            raise UsageError("project_labels: give the labels with --label")
        old = categories.labels
        made = []
        for name in wanted:
            _, found = old.find(name)
            parent = found.parent if found and found.parent in wanted else ""
            made.append(replace(found, parent=parent) if found else Category(name))
        places = {name: i for i, name in enumerate(wanted)}
        index = [places.get(name, -1) for name in old.names()]
        self.index = np.array(index, np.int64)
        return reordered(categories, LabelCategories(made, set(old.attributes)), index)


class AnnsToLabels(Op):
    """Replaces the annotations of an item by one Label for each label that they have."""

    name = "anns_to_labels"
    title = "replace all annotations by labels of the image"
    keeps_ids = False

    def apply(self, block: Block) -> Block:
        view = flat(block)
        label = view.numpy("label", -1).astype(np.int64)
        has = label >= 0
        pairs = np.unique(np.stack([view.item[has], label[has]], axis=1), axis=0)
        rows = annotation_rows(
            len(pairs), type=int(AnnotationType.label), label=pa.array(pairs[:, 1], pa.int32())
        )
        return with_annotations(block, rows, np.bincount(pairs[:, 0], minlength=block.num_rows))
