"""diff: two datasets compared, by matching annotations or as they are. See docs/operations/diff.md."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayds import media
from rayds.annotations import Annotation
from rayds.categories import Categories
from rayds.engine.base import Block, Blocks, Engine
from rayds.errors import DataError
from rayds.item import DatasetItem, from_table
from rayds.media import Image
from rayds.op import Compare
from rayds.ops._evaluation import Boxes, Evaluation, evaluated
from rayds.ops._matching import SHAPES, Ignored, Matched, compared, score_of, unequal
from rayds.options import Options, option
from rayds.schema import flat, single_chunk, split_errors, with_annotations, with_fields
from rayds.storage import Storage

SOURCE, KEY = "__diff_source", "__diff_key"
ITEMS = 10_000


@dataclass
class Found:
    """What was found of some items: counts, and what is told of each that differs (at most ITEMS of them)."""

    common: int = 0
    extra: tuple[int, int] = (0, 0)
    differing: int = 0
    matches: Counter[tuple[str, str]] = field(default_factory=Counter)  # (type, kind of match) -> annotations
    confusion: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    labels: Counter[tuple[int, int]] = field(default_factory=Counter)  # (side, label) -> annotations
    items: list[dict[str, Any]] = field(default_factory=list)
    boxes: Boxes = field(default_factory=Boxes)

    def merge(self, other: Found) -> Found:
        return Found(
            self.common + other.common,
            (self.extra[0] + other.extra[0], self.extra[1] + other.extra[1]),
            self.differing + other.differing,
            self.matches + other.matches,
            self.confusion + other.confusion,
            self.labels + other.labels,
            sorted(self.items + other.items, key=lambda i: (i["subset"], i["id"]))[:ITEMS],
            self.boxes.merge(other.boxes),
        )


@dataclass
class Difference:
    """The result of a comparison. a_labels, b_labels: only there; evaluation: figures of predictions, where there are some."""

    method: str
    found: Found
    names: list[str]
    categories: list[dict[str, str]]
    evaluation: Evaluation | None = None

    @property
    def differs(self) -> bool:
        """Whether anything is different."""
        return bool(self.found.differing or any(self.found.extra) or self.categories)

    def name(self, label: int) -> str | None:
        """The name of a label index; None for -1."""
        return None if label < 0 else self.names[label] if label < len(self.names) else str(label)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-like data."""
        found = self.found
        made: dict[str, Any] = {
            "method": self.method,
            "items": {
                "common": found.common,
                "only in a": found.extra[0],
                "only in b": found.extra[1],
                "different": found.differing,
            },
            "categories": self.categories,
        }
        if self.method == "distance":
            made["annotations"] = {
                kind: {what: found.matches[kind, what] for what in ("matches", "mispred", "a_only", "b_only")}
                for kind in sorted({k for k, _ in found.matches})
            }
            made["confusion"] = {
                kind: [
                    {"a": self.name(a), "b": self.name(b), "count": n}
                    for (k, a, b), n in sorted(found.confusion.items()) if k == kind
                ]
                for kind in sorted({k for k, _, _ in found.confusion})
            }  # fmt: skip
            made["labels"] = [
                {str(self.name(label)): n for (s, label), n in sorted(found.labels.items()) if s == side}
                for side in (0, 1)
            ]
        if self.evaluation is not None:
            made["evaluation"] = self.evaluation.to_json(self.names)
        made["differences"] = found.items
        if (told := found.differing + sum(found.extra)) > len(found.items):
            made["differences not listed"] = told - len(found.items)
        return made

    def matrices(self) -> dict[str, bytes]:
        """The confusion of labels by type, and how often labels occur, as PNG files by their names."""
        from rayds.ops._drawings import confusion_png, labels_png

        made = {}
        for kind in sorted({k for k, _, _ in self.found.confusion}):
            cells = {(a, b): n for (k, a, b), n in self.found.confusion.items() if k == kind}
            made[f"{kind}_confusion.png"] = confusion_png(kind, cells, self.name)
        if self.found.labels:
            sides = [{k: n for (s, k), n in self.found.labels.items() if s == side} for side in (0, 1)]
            made["label_distribution.png"] = labels_png(sides, self.name)
        return made

    def picture(self, a: DatasetItem, b: DatasetItem) -> bytes | None:
        """The image of an item with what the two say of it side by side, as PNG; None where it can't be read."""
        from rayds.ops._drawings import side_by_side

        for item in (a, b):
            image = item.media
            try:
                if isinstance(image, Image) and image.has_data:
                    return side_by_side(image.pixels, a, b, self.name)
            except (DataError, OSError):
                continue
        return None

    def log(self, out: Storage, pictures: Mapping[str, bytes]) -> None:
        """Write pictures as TensorBoard logs into `logs/diff` of a local folder. Raises UsageError without tensorboard."""
        from rayds.ops._tensorboard import write_images

        write_images(out.path("logs/diff"), pictures)

    def __str__(self) -> str:
        found = self.found
        lines = [
            f"{found.common:,} items in both, {found.extra[0]:,} only in the first, {found.extra[1]:,} only in the second; "
            f"{found.differing:,} of those in both differ"
        ]
        lines += [f"categories ({c['type']}): {c['message']}" for c in self.categories]
        for kind in sorted({k for k, _ in found.matches}):
            n = {what: found.matches[kind, what] for what in ("matches", "mispred", "a_only", "b_only")}
            lines.append(
                f"{kind}: {n['matches']:,} match, {n['mispred']:,} with another label, {n['a_only']:,} only in the first, "
                f"{n['b_only']:,} only in the second"
            )
        if self.evaluation is not None:
            lines.append(self.evaluation.text(self.names))
        return "\n".join(lines)


class Diff(Compare):
    """Compares two datasets, item by item.

    distance: annotations of one type are matched by their likeness (IoU), and counted by label. equality: items are
    compared as they are, but for what is ignored.
    """

    name = "diff"
    title = "compare two datasets"

    @dataclass(frozen=True)
    class Options(Options):
        method: str = option(
            "distance", choices=("distance", "equality"), help="match annotations, or compare as they are"
        )
        iou_thresh: float = option(0.5, help="distance: how alike annotations that match are, at least")
        conf_thresh: float = option(
            0.5, help="distance: leave out predictions (with a score) of less than that"
        )
        ignore_item_attr: tuple[str, ...] = option(
            (), split=False, help="equality: item attributes that don't count"
        )
        ignore_attr: tuple[str, ...] = option(
            (), split=False, help="equality: attributes of annotations that don't count"
        )
        ignore_field: tuple[str, ...] = option(
            ("id", "group"), help="equality: fields of annotations that don't count"
        )
        match_images: bool = option(
            False, help="equality: items are the same when their images are, whatever their ids"
        )
        all: bool = option(False, help="equality: list the items that are equal, too")

    def prepare(self, a: Categories, b: Categories) -> None:
        names = list(dict.fromkeys([*a.labels.names(), *b.labels.names()]))
        places = {name: i for i, name in enumerate(names)}
        self.names = names
        self.index = [np.array([places[n] for n in c.labels.names()], np.int64) for c in (a, b)]
        self.categories = category_errors(a, b)
        o = self.options
        self.ignored = Ignored(
            frozenset(o.ignore_item_attr), frozenset(o.ignore_attr), frozenset(o.ignore_field)
        )

    def run(self, engine: Engine, a: Blocks, b: Blocks) -> Difference:
        both = engine.chain([engine.map(x, partial(self._marked, k)) for k, x in enumerate((a, b))])
        keys = [KEY] if self._by_image else ["id", "subset"]
        blocks = engine.by_key(both, keys, self._compared)
        found = engine.fold(blocks, _unpickled, Found.merge) or Found()
        evaluation = None
        if self.options.method == "distance" and found.boxes.scored:
            evaluation = evaluated(found.boxes, found.confusion)
        return Difference(self.options.method, found, self.names, self.categories, evaluation)

    @property
    def _by_image(self) -> bool:
        return bool(self.options.match_images and self.options.method == "equality")

    def _marked(self, side: int, block: Block) -> Block:
        view = flat(block)
        label, index = view.numpy("label", -1).astype(np.int64), self.index[side]
        none = label < 0
        new = (
            np.where(none, 0, index[np.where(none, 0, label)])
            if len(index)
            else np.zeros(len(label), np.int64)
        )
        block = with_annotations(
            block, with_fields(view.rows, label=pa.array(new, pa.int32(), mask=none)), np.diff(view.offsets)
        )
        if self._by_image:
            block = block.append_column(KEY, pa.array(image_hashes(block), pa.string()))
        return block.append_column(SOURCE, pa.array(np.full(block.num_rows, side), pa.int64()))

    def _compared(self, block: Block) -> Block:
        """What is found of the items of a block, as one row."""
        sources = block.column(SOURCE).to_pylist()
        keys = block.column(KEY).to_pylist() if self._by_image else None
        plain = block.drop_columns([SOURCE, *([KEY] if keys else [])])
        found = Found()
        group: list[list[DatasetItem]] = [[], []]
        last: Any = None
        for row, item in enumerate(from_table(plain)):
            key = keys[row] if keys else (item.id, item.subset)
            if key != last and row:
                self._group(group, found)
                group = [[], []]
            last = key
            group[sources[row]].append(item)
        self._group(group, found)
        return pa.table({"found": pa.array([pickle.dumps(found)], pa.large_binary())})

    def _group(self, group: list[list[DatasetItem]], found: Found) -> None:
        paired = min(len(group[0]), len(group[1]))
        for a, b in zip(group[0][:paired], group[1][:paired], strict=True):
            found.common += 1
            told = self._distance(a, b, found) if self.options.method == "distance" else self._equality(a, b)
            if told:
                found.differing += "same" not in told
                found.items.append({"id": a.id, "subset": a.subset, **told})
        for side, name in ((0, "a"), (1, "b")):
            for item in group[side][paired:]:
                found.extra = (found.extra[0] + (side == 0), found.extra[1] + (side == 1))
                found.items.append({"id": item.id, "subset": item.subset, "only in": name})
        found.items = sorted(found.items, key=lambda i: (i["subset"], i["id"]))[:ITEMS]

    def _equality(self, a: DatasetItem, b: DatasetItem) -> dict[str, Any]:
        told = unequal(a, b, self.ignored)
        if not told and self.options.all:
            return {"same": True}
        return told

    def _distance(self, a: DatasetItem, b: DatasetItem, found: Found) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for side, item in enumerate((a, b)):
            for x in item.annotations:
                if (label := getattr(x, "label", None)) is not None:
                    found.labels[side, label] += 1
        found.boxes.add(a, b)
        for kind, m in compared(a, b, self.options.iou_thresh, self.options.conf_thresh).items():
            for what in ("matches", "mispred", "a_only", "b_only"):
                if n := len(getattr(m, what)):
                    found.matches[kind.name, what] += n
            for (first, second), times in m.confusion().items():
                found.confusion[kind.name, first, second] += times
            if m.differs:
                told[kind.name] = self._told(m)
        return told

    def _told(self, m: Matched) -> dict[str, Any]:
        def shown(x: Annotation) -> dict[str, Any]:
            label = getattr(x, "label", None)
            made: dict[str, Any] = {"label": None if label is None else self.names[label]}
            if x.type in SHAPES:
                made["bbox"] = [round(v, 2) for v in x.get_bbox()]
            if (s := score_of(x)) is not None:
                made["score"] = s
            return made

        out: dict[str, Any] = {}
        if m.mispred:
            out["mispred"] = [{"a": shown(x), "b": shown(y)} for x, y in m.mispred]
        for what in ("a_only", "b_only"):
            if some := getattr(m, what):
                out[what] = [shown(x) for x in some]
        return out


def _unpickled(block: Block) -> Found:
    good = split_errors(block)[0]
    out = Found()
    if "found" in good.schema.names:
        for value in good.column("found"):
            out = out.merge(pickle.loads(value.as_py()))
    return out


def image_hashes(block: Block) -> Iterator[str]:
    """A hash of the bytes of the image of each item; of one without an image its key."""
    import hashlib

    ids, subsets = single_chunk(block, "id").to_pylist(), single_chunk(block, "subset").to_pylist()
    for row, id, subset in zip(single_chunk(block, "media").to_pylist(), ids, subsets, strict=True):
        try:
            data = media.stored_bytes(row) if row else None
        except (DataError, FileNotFoundError):
            data = None
        yield hashlib.sha256(data).hexdigest() if data is not None else f"{subset}/{id}"


def category_errors(a: Categories, b: Categories) -> list[dict[str, str]]:
    """What differs between the categories of two datasets."""
    out = []
    first, second = a.labels.names(), b.labels.names()
    for some, others, which in ((first, second, "first"), (second, first, "second")):
        if left := [n for n in some if n not in others]:
            out.append({"type": "labels", "message": f"only in the {which}: {', '.join(left)}"})
    if not out and first != second:
        out.append({"type": "labels", "message": "the same in another order"})
    for name in set(first) & set(second):
        x, y = a.labels[a.labels.index(name)], b.labels[b.labels.index(name)]
        if x.parent != y.parent or x.attributes != y.attributes:
            out.append({"type": "labels", "message": f"{name}: {x} != {y}"})
    colors = [_by_name(c, c.masks.colormap if c.masks else {}) for c in (a, b)]
    points = [_by_name(c, c.points.items if c.points else {}) for c in (a, b)]
    for what, (x_, y_) in (("colormap", colors), ("points", points)):
        differing = sorted(n for n in {*x_, *y_} if x_.get(n) != y_.get(n))
        if differing:
            out.append({"type": what, "message": f"different for {', '.join(differing[:20])}"})
    return sorted(out, key=lambda e: (e["type"], e["message"]))


def _by_name(categories: Categories, values: Any) -> dict[str, Any]:
    names: Sequence[str] = categories.labels.names()
    return {names[i] if i < len(names) else str(i): v for i, v in values.items()}
