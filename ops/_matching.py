"""Two versions of one item, compared: annotations matched by likeness, or as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayds.annotations import Annotation
from rayds.item import DatasetItem
from rayds.ops._iou import likeness
from rayds.schema import AnnotationType as T

SHAPES = (T.bbox, T.polygon, T.mask, T.points, T.polyline, T.ellipse, T.rotated_bbox)
Pair = tuple[int, int]  # labels of the first and the second; -1 for none


def score_of(annotation: Annotation) -> float | None:
    """The score of a prediction, or None."""
    try:
        return float(annotation.attributes["score"])
    except (KeyError, TypeError, ValueError):
        return None


def _label(annotation: Annotation) -> int:
    label = getattr(annotation, "label", None)
    return -1 if label is None else int(label)


@dataclass
class Matched:
    """Annotations of one type: pairs of equal labels, pairs of different ones, those that have no partner."""

    matches: list[tuple[Annotation, Annotation]] = field(default_factory=list)
    mispred: list[tuple[Annotation, Annotation]] = field(default_factory=list)
    a_only: list[Annotation] = field(default_factory=list)
    b_only: list[Annotation] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        return bool(self.mispred or self.a_only or self.b_only)

    def confusion(self) -> Counter[Pair]:
        """How often each pair of labels met; -1 stands for no partner."""
        pairs = [(_label(a), _label(b)) for a, b in (*self.matches, *self.mispred)]
        return Counter(
            pairs + [(_label(a), -1) for a in self.a_only] + [(-1, _label(b)) for b in self.b_only]
        )


def matched(kind: T, a: Sequence[Annotation], b: Sequence[Annotation], thresh: float) -> Matched:
    """Annotations of one type, those of high score first, each with the one most like it of its label, or else of any."""
    if kind is T.label:
        return _same_labels(a, b)
    out = Matched()
    order_a, order_b = sorted(a, key=_certain_first), sorted(b, key=_certain_first)
    alike = likeness(kind, order_a, order_b)
    free = np.ones(len(order_b), bool)
    labels = np.array([_label(x) for x in order_b])
    for i, one in enumerate(order_a):
        near = free & (alike[i] >= thresh) & (alike[i] > 0) if len(order_b) else free
        own = near & (labels == _label(one))
        among = own if own.any() else near
        if not among.any():
            out.a_only.append(one)
            continue
        j = int(np.where(among, alike[i], -1.0).argmax())
        free[j] = False
        (out.matches if own.any() else out.mispred).append((one, order_b[j]))
    out.b_only = [x for x, left in zip(order_b, free.tolist(), strict=True) if left]
    return out


def _certain_first(annotation: Annotation) -> float:
    score = score_of(annotation)
    return -1.0 if score is None else -score


def _same_labels(a: Sequence[Annotation], b: Sequence[Annotation]) -> Matched:
    first, second = {_label(x): x for x in a}, {_label(x): x for x in b}
    return Matched(
        matches=[(x, second[label]) for label, x in first.items() if label in second],
        a_only=[x for label, x in first.items() if label not in second],
        b_only=[x for label, x in second.items() if label not in first],
    )


def compared(a: DatasetItem, b: DatasetItem, thresh: float, conf: float) -> dict[T, Matched]:
    """The annotations of two versions of an item by type; predictions of a score under `conf` are left out."""
    out = {}
    for kind in (T.label, *SHAPES):
        some = [
            [x for x in item.annotations if x.type is kind and ((s := score_of(x)) is None or s >= conf)]
            for item in (a, b)
        ]
        if some[0] or some[1]:
            out[kind] = matched(kind, some[0], some[1], thresh)
    return out


@dataclass(frozen=True)
class Ignored:
    """What does not count when items are compared as they are."""

    item_attributes: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()


def bare(annotation: Annotation, ignored: Ignored) -> str:
    """An annotation as a text that is equal for equal ones."""
    told: dict[str, Any] = {"type": annotation.type.name}
    for name, value in vars(annotation).items():
        if name in ignored.fields or name == "extra":
            continue
        if name == "attributes":
            value = {k: v for k, v in sorted(value.items()) if k not in ignored.attributes}
        told[name] = value
    return repr(sorted(told.items(), key=lambda kv: kv[0]))


def unequal(a: DatasetItem, b: DatasetItem, ignored: Ignored) -> dict[str, Any]:
    """What differs between two versions of an item, compared as they are; {} for nothing."""
    out: dict[str, Any] = {}
    told = [_attributes(x.attributes, ignored.item_attributes) for x in (a, b)]
    if told[0] != told[1]:
        out["attributes"] = [
            f"{name!r}: {told[0].get(name, '(none)')!r} != {told[1].get(name, '(none)')!r}"
            for name in sorted({*told[0], *told[1]})
            if told[0].get(name) != told[1].get(name)
        ]
    texts = [{} for _ in range(2)]  # type: list[dict[str, list[Annotation]]]
    for side, item in zip(texts, (a, b), strict=True):
        for annotation in item.annotations:
            side.setdefault(bare(annotation, ignored), []).append(annotation)
    for name, mine, others in (("a", texts[0], texts[1]), ("b", texts[1], texts[0])):
        left = [x for text, some in mine.items() for x in some[len(others.get(text, ())) :]]
        if left:
            out[name] = [repr(x) for x in left]
    return out


def _attributes(values: Mapping[str, Any], without: frozenset[str]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in without}
