"""One item of the versions that several annotators made of it: what they agree on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayds.annotations import Annotation
from rayds.item import DatasetItem
from rayds.losses import LOST, REPORT
from rayds.ops._iou import alike_pairs, two_boxes_iou
from rayds.schema import AnnotationType as T

# labels, then shapes as they are drawn on one another, then what has no place
KINDS = (
    T.label,
    T.caption,
    T.mask,
    T.polygon,
    T.bbox,
    T.rotated_bbox,
    T.ellipse,
    T.polyline,
    T.points,
    T.cuboid_3d,
)
SHAPES = frozenset(KINDS) - {T.label, T.caption, T.cuboid_3d}


@dataclass(frozen=True)
class Rules:
    """How annotators are brought together; labels: all names."""

    sources: int
    iou_thresh: float = 0.25
    conf_thresh: float = 0.0
    quorum: int = 0
    groups: Sequence[Sequence[str]] = ()
    close_distance: float = 0.75
    labels: Sequence[str] = ()


@dataclass
class Cluster:
    """Annotations of one thing: at most one of each source."""

    members: dict[int, Annotation] = field(default_factory=dict)


Messages = list[tuple[str, str, list[int]]]  # kind, text, sources


def intersected(versions: Mapping[int, DatasetItem], rules: Rules) -> DatasetItem:
    """The item that the versions (by source) agree on. Its `extra` tells what they did not."""
    first = next(iter(versions.values()))
    key = f"{(first.id, first.subset)}"
    messages: Messages = []
    if absent := [k for k in range(rules.sources) if k not in versions]:
        messages.append(
            ("NoMatchingItemError", f"Item {key}: can't find matching item in sources {absent}", absent)
        )
    clusters: list[tuple[Cluster, Annotation]] = []
    for kind in KINDS:
        found = {k: [a for a in v.annotations if a.type is kind] for k, v in versions.items()}
        if not any(found.values()):
            continue
        for cluster in _clusters(kind, found, rules.iou_thresh):
            made = _agreed(kind, cluster, rules, key, messages)
            if made is not None:
                clusters.append((cluster, made))
            if kind in SHAPES and (missing := [k for k in versions if k not in cluster.members]):
                text = f"Item {key}: can't find matching annotation in sources {missing}, annotation is {next(iter(cluster.members.values()))}"
                messages.append(("NoMatchingAnnError", text, missing))
    _group(clusters, rules, key, messages)
    made_annotations = [a for _, a in clusters]
    _too_close(made_annotations, rules, key, messages)
    attributes: dict[str, Any] = {}
    for version in versions.values():
        attributes = {**version.attributes, **attributes}
    media = next((v.media for v in versions.values() if v.media is not None), None)
    extra: dict[str, Any] = {}
    for version in versions.values():
        extra = {**version.extra, **extra}
    if messages:
        kinds = Counter(f"{kind} in the merge" for kind, _, _ in messages)
        extra = {**extra, LOST: dict(kinds), REPORT: [[text, sources] for _, text, sources in messages]}
    return first.wrap(annotations=made_annotations, attributes=attributes, media=media, extra=extra)


def _clusters(kind: T, found: Mapping[int, Sequence[Annotation]], thresh: float) -> list[Cluster]:
    """The annotations of all sources, brought together: the most alike first, where all of a cluster are alike."""
    nodes = [(k, a) for k, annotations in found.items() for a in annotations]
    source = [k for k, _ in nodes]
    i, j, value = alike_pairs(kind, [a for _, a in nodes], thresh if kind in SHAPES else 1.0)
    pairs = set(zip(i.tolist(), j.tolist(), strict=True))
    of = list(range(len(nodes)))
    members: dict[int, list[int]] = {k: [k] for k in of}
    order = np.lexsort((j, i, -value))
    for one, other in zip(i[order].tolist(), j[order].tolist(), strict=True):
        low, high = sorted((of[one], of[other]))
        if low == high or {source[k] for k in members[low]} & {source[k] for k in members[high]}:
            continue
        if any((min(a, b), max(a, b)) not in pairs for a in members[low] for b in members[high]):
            continue
        members[low] = sorted(members[low] + members.pop(high))
        for k in members[low]:
            of[k] = low
    return [Cluster({nodes[i][0]: nodes[i][1] for i in members[c]}) for c in sorted(members)]


def _agreed(kind: T, cluster: Cluster, rules: Rules, key: str, messages: Messages) -> Annotation | None:
    """The annotation that a cluster stands for; None where it is left out."""
    members = list(cluster.members.values())
    if kind in (T.label, T.caption):
        score = len(members) / rules.sources
        votes = {_named(members[0], rules): len(members)}
        if len(members) < rules.quorum:
            messages.append(
                ("FailedLabelVotingError", _voting(key, "", votes, cluster), list(cluster.members))
            )
            return None
        shape_score, label, label_score = 1.0, getattr(members[0], "label", None), score
        chosen = members[0]
    else:
        chosen, shape_score = _nearest_to_mean(members)
        label, label_score = _label(chosen, cluster, rules, key, messages)
    attributes = _attributes(cluster, rules, key, messages)
    score = label_score * shape_score
    if score < rules.conf_thresh:
        return None
    changes: dict[str, Any] = {"attributes": {**attributes, "score": score}, "group": 0, "extra": {}}
    if kind is not T.caption:
        changes["label"] = label
    return chosen.wrap(**changes)


def _nearest_to_mean(members: Sequence[Annotation]) -> tuple[Annotation, float]:
    """(the annotation whose box is nearest to the mean box of all, how alike all are to that)."""
    boxes = [m.get_bbox() if m.type is not T.cuboid_3d else (0, 0, 1, 1) for m in members]
    n = len(boxes)
    left, top = sum(b[0] for b in boxes) / n, sum(b[1] for b in boxes) / n
    right, bottom = sum(b[0] + b[2] for b in boxes) / n, sum(b[1] + b[3] for b in boxes) / n
    alike = [two_boxes_iou(b, (left, top, right - left, bottom - top)) for b in boxes]
    best = max(alike)
    if not best:  # flat boxes
        return members[0], 1.0
    return members[alike.index(best)], sum(alike) / n


def _label(
    chosen: Annotation, cluster: Cluster, rules: Rules, key: str, messages: Messages
) -> tuple[int | None, float]:
    """(the label with most votes, each weighted by its score; its share of them)."""
    votes: dict[Any, float] = defaultdict(float)
    for member in cluster.members.values():
        votes[getattr(member, "label", None)] += _score(member)
    label, best = max(votes.items(), key=lambda v: v[1])
    total = sum(votes.values())
    if best < rules.quorum:
        named = {_name(k, rules): n for k, n in votes.items()}
        messages.append(
            (
                "FailedLabelVotingError",
                _voting(key, f" for ann {chosen}", named, cluster),
                list(cluster.members),
            )
        )
        return None, 0.0
    return label, best / total if total else 0.0


def _score(annotation: Annotation) -> float:
    try:
        return float(annotation.attributes.get("score", 1))
    except (TypeError, ValueError):
        return 1.0


def _attributes(cluster: Cluster, rules: Rules, key: str, messages: Messages) -> dict[str, Any]:
    """The attributes that enough members agree on."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    values: dict[tuple[str, str], Any] = {}
    for member in cluster.members.values():
        for name, value in member.attributes.items():
            if name != "score":
                votes[name][repr(value)] += 1
                values[name, repr(value)] = value
    made = {}
    for name, counts in votes.items():
        text, n = counts.most_common(1)[0]
        if n >= rules.quorum:
            made[name] = values[name, text]
        else:
            one = next(iter(cluster.members.values()))
            told = f"Item {key}: attribute voting failed for ann {one}, votes {dict(counts)}, sources {list(cluster.members)}"
            messages.append(("FailedAttrVotingError", told, list(cluster.members)))
    return made


def _voting(key: str, of: str, votes: Mapping[Any, float], cluster: Cluster) -> str:
    return f"Item {key}: label voting failed{of}, votes {dict(votes)}, sources {list(cluster.members)}"


def _name(label: int | None, rules: Rules) -> str | None:
    return None if label is None else rules.labels[label] if label < len(rules.labels) else str(label)


def _named(annotation: Annotation, rules: Rules) -> Any:
    return getattr(annotation, "text", None) or _name(getattr(annotation, "label", None), rules)


def _group(
    clusters: Sequence[tuple[Cluster, Annotation]], rules: Rules, key: str, messages: Messages
) -> None:
    """Give clusters that share a group of any source a group, and check the groups for the labels that they need."""
    of = list(range(len(clusters)))

    def top(i: int) -> int:
        while of[i] != i:
            i = of[i]
        return i

    seen: dict[tuple[int, int], int] = {}
    for i, (cluster, _) in enumerate(clusters):
        for k, member in cluster.members.items():
            if member.group:
                other = seen.setdefault((k, member.group), i)
                of[top(i)] = top(other)
    grouped: dict[int, list[int]] = defaultdict(list)
    for i, (cluster, _) in enumerate(clusters):
        if any(m.group for m in cluster.members.values()):
            grouped[top(i)].append(i)
    for number, members in enumerate(grouped.values(), 1):
        for i in members:
            clusters[i][1].group = number
        found = {_name(getattr(clusters[i][1], "label", None), rules) for i in members} - {None}
        for group in rules.groups:
            names = {n.rstrip("?") for n in group}
            needed = {n for n in group if not n.endswith("?")}
            if found & names and not needed <= found:
                text = f"Item {key}: annotation group has wrong labels: found {sorted(map(str, found))}, expected {list(group)}, group {number}"
                messages.append(
                    ("WrongGroupError", text, sorted({k for i in members for k in clusters[i][0].members}))
                )


def _too_close(annotations: Sequence[Annotation], rules: Rules, key: str, messages: Messages) -> None:
    for kind in SHAPES:
        some = [a for a in annotations if a.type is kind]
        if len(some) < 2:
            continue
        for i, j, value in zip(*alike_pairs(kind, some, rules.close_distance), strict=True):
            text = f"Item {key}: annotations are too close: {some[i]}, {some[j]}, distance = {value:g}"
            messages.append(("AnnotationsTooCloseError", text, []))
