"""What labels mean: names and hierarchy, mask colours, key point names.

Categories are small and live with the Dataset; annotations refer to them by label index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rayds.errors import UnknownNameError
from rayds.schema import AnnotationType

Rgb = tuple[int, int, int]


@dataclass
class Category:
    """One label: name, name of its parent ('' = none), names of its attributes.

    extra: what source formats say of it, by format name, e.g. {"coco": {"id": 18}}.
    """

    name: str
    parent: str = ""
    attributes: set[str] = field(default_factory=set)
    extra: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass
class LabelCategories:
    """The labels of a dataset in index order. Iteration gives Category objects; names are unique."""

    items: list[Category] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    _index: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for i, item in enumerate(self.items):
            if item.name in self._index:
                raise ValueError(f"the label {item.name!r} occurs twice")
            self._index[item.name] = i

    @classmethod
    def from_iterable(cls, labels: Iterable[str | Category | tuple[Any, ...]]) -> LabelCategories:
        """Labels from names, (name, parent[, attributes]) tuples or Category objects."""
        made = []
        for label in labels:
            if isinstance(label, Category):
                made.append(label)
            elif isinstance(label, str):
                made.append(Category(label))
            else:
                name, parent, *rest = (*label, "") if len(label) == 1 else label
                made.append(Category(name, parent or "", set(rest[0]) if rest else set()))
        return cls(made)

    def add(self, name: str, parent: str = "", attributes: Iterable[str] = (), **extra: Any) -> int:
        """Append a label; returns its index. Raises ValueError when the name is there already."""
        if name in self._index:
            raise ValueError(f"the label {name!r} is there already")
        self._index[name] = len(self.items)
        self.items.append(Category(name, parent, set(attributes), extra))
        return self._index[name]

    def find(self, name: str) -> tuple[int | None, Category | None]:
        """(index, category) of a name, or (None, None)."""
        i = self._index.get(name)
        return (None, None) if i is None else (i, self.items[i])

    def index(self, name: str) -> int:
        """The index of a name; raises UnknownNameError with the nearest names."""
        if name not in self._index:
            raise UnknownNameError("label", name, self._index)
        return self._index[name]

    def names(self) -> list[str]:
        """All names in index order."""
        return [c.name for c in self.items]

    def __getitem__(self, i: int) -> Category:
        return self.items[i]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Category]:
        return iter(self.items)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        first = ", ".join(c.name for c in self.items[:10])
        more = f", ... ({len(self.items) - 10} more)" if len(self.items) > 10 else ""
        return f"LabelCategories({len(self.items)}: {first}{more})"


@dataclass
class MaskCategories:
    """The colour of each label index in mask images: {label: (r, g, b)}."""

    colormap: dict[int, Rgb] = field(default_factory=dict)

    @classmethod
    def generate(cls, size: int = 256, include_background: bool = True) -> MaskCategories:
        """The Pascal VOC colour map of `size` labels (index 0 is black; left out without background)."""
        colors = voc_colormap(size + (not include_background))
        if not include_background:
            colors = colors[1:]
        return cls({i: (int(r), int(g), int(b)) for i, (r, g, b) in enumerate(colors)})

    @property
    def inverse_colormap(self) -> dict[Rgb, int]:
        """{(r, g, b): label}; the lowest label where two share a colour."""
        return {c: i for i, c in sorted(self.colormap.items(), reverse=True)}

    def __repr__(self) -> str:
        return f"MaskCategories({len(self.colormap)} colours)"


@dataclass
class PointsCategory:
    """Names of the key points of one label, and the pairs (1-based) that are joined by a line."""

    labels: list[str] = field(default_factory=list)
    joints: set[tuple[int, int]] = field(default_factory=set)


@dataclass
class PointsCategories:
    """Key point names and joints by label index."""

    items: dict[int, PointsCategory] = field(default_factory=dict)

    @classmethod
    def from_iterable(cls, entries: Iterable[tuple[Any, ...]]) -> PointsCategories:
        """From (label index, names[, joints]) tuples."""
        made = cls()
        for label, *rest in entries:
            made.add(label, *rest)
        return made

    def add(self, label: int, labels: Iterable[str] = (), joints: Iterable[Iterable[int]] = ()) -> None:
        """Set the key points of a label index."""
        pairs = {(int(a), int(b)) for a, b in joints}
        self.items[label] = PointsCategory(list(labels), pairs)

    def __repr__(self) -> str:
        return f"PointsCategories({len(self.items)} labels)"


AnyCategories = LabelCategories | MaskCategories | PointsCategories


class Categories(dict[AnnotationType, AnyCategories]):
    """The categories of a dataset: by AnnotationType label, mask and points."""

    @property
    def labels(self) -> LabelCategories:
        """The label categories (empty when there are none)."""
        found = self.get(AnnotationType.label)
        return found if isinstance(found, LabelCategories) else LabelCategories()

    @property
    def masks(self) -> MaskCategories | None:
        """The mask colours, or None."""
        found = self.get(AnnotationType.mask)
        return found if isinstance(found, MaskCategories) else None

    @property
    def points(self) -> PointsCategories | None:
        """The key points, or None."""
        found = self.get(AnnotationType.points)
        return found if isinstance(found, PointsCategories) else None

    @classmethod
    def of(cls, value: Any) -> Categories:
        """Categories from a mapping by type, from label names, from LabelCategories or from None."""
        if value is None:
            return cls()
        if isinstance(value, Mapping):
            return cls({AnnotationType(k): v for k, v in value.items()})
        if isinstance(value, LabelCategories):
            return cls({AnnotationType.label: value})
        return cls({AnnotationType.label: LabelCategories.from_iterable(value)})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Categories:
        """The inverse of to_json."""
        made = cls()
        if "label" in value:
            items = [
                Category(c["name"], c.get("parent", ""), set(c.get("attributes", ())), c.get("extra", {}))
                for c in value["label"]["labels"]
            ]
            made[AnnotationType.label] = LabelCategories(items, set(value["label"].get("attributes", ())))
        if "mask" in value:
            colors = {int(c["label_id"]): (c["r"], c["g"], c["b"]) for c in value["mask"]["colormap"]}
            made[AnnotationType.mask] = MaskCategories(colors)
        if "points" in value:
            made[AnnotationType.points] = PointsCategories.from_iterable(
                (p["label_id"], p["labels"], p["joints"]) for p in value["points"]["items"]
            )
        return made

    def to_json(self) -> dict[str, Any]:
        """A JSON-like dict: {"label": {"labels": [...]}, "mask": {"colormap": [...]}, "points": {"items": [...]}}."""
        out: dict[str, Any] = {}
        if AnnotationType.label in self:
            labels = []
            for c in self.labels:
                entry: dict[str, Any] = {
                    "name": c.name,
                    "parent": c.parent,
                    "attributes": sorted(c.attributes),
                }
                labels.append({**entry, "extra": c.extra} if c.extra else entry)
            out["label"] = {"labels": labels, "attributes": sorted(self.labels.attributes)}
        if self.masks is not None:
            colors = sorted(self.masks.colormap.items())
            out["mask"] = {"colormap": [{"label_id": i, "r": r, "g": g, "b": b} for i, (r, g, b) in colors]}
        if self.points is not None:
            out["points"] = {
                "items": [
                    {"label_id": i, "labels": p.labels, "joints": [list(j) for j in sorted(p.joints)]}
                    for i, p in sorted(self.points.items.items())
                ]
            }
        return out


def voc_colormap(size: int = 256) -> npt.NDArray[np.uint8]:
    """The first `size` colours of the Pascal VOC colour map, shape (size, 3), RGB (bit-interleaved index)."""
    index = np.arange(size)
    colors = np.zeros((size, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors
