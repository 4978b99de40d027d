"""Splits into subsets: random_split, and split by task (classification, detection, segmentation, re-identification)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds.categories import Categories
from rayds.engine.base import Block, Blocks, Engine, Stage
from rayds.errors import UsageError
from rayds.numbering import check_unique
from rayds.op import Surveying
from rayds.ops._allot import dealt, packed
from rayds.options import Options, option
from rayds.schema import AnnotationType as T
from rayds.schema import flat, single_chunk, split_errors, with_column
from rayds.sharding import hashed

Ints = npt.NDArray[np.int64]

_BITS = 62
KINDS = {
    "classification": (T.label,),
    "detection": (T.bbox, T.rotated_bbox),
    "segmentation": (T.mask, T.polygon),
    "reid": tuple(T),
}
_SEED_HELP = "another number gives another split; the same number always the same"


@dataclass
class Seen:
    """What a split looks at of some items.

    keys: the hash of seed, subset and id, 8 bytes an item; ids: a hash of the id alone; groups: of the value that keeps
    items together (where asked for), else the key; (item, label, count): how many annotations of a label an item has;
    values: names of the labels, where they are values of an attribute.
    """

    keys: Ints
    ids: Ints
    groups: Ints
    item: Ints
    label: Ints
    count: Ints
    values: list[str] = field(default_factory=list)

    def merge(self, other: Seen) -> Seen:
        label, values = other.label, self.values
        if other.values:
            places = {v: i for i, v in enumerate(self.values)}
            for value in other.values:
                places.setdefault(value, len(places))
            values = list(places)
            label = np.array([places[v] for v in other.values], np.int64)[other.label]
        return Seen(
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.groups, other.groups]),
            np.concatenate([self.item, other.item + len(self.keys)]),
            np.concatenate([self.label, label]),
            np.concatenate([self.count, other.count]),
            values,
        )


def parse_ratios(texts: Sequence[str], names: Sequence[str] | None = None) -> tuple[list[str], list[float]]:
    """(names, ratios) of texts `name:ratio`; raises UsageError unless the ratios sum to 1."""
    made: dict[str, float] = {}
    for text in texts:
        name, colon, number = text.rpartition(":")
        try:
            ratio = float(number)
        except ValueError:
            ratio = -1
        if not colon or not name or not 0 <= ratio <= 1:
            raise UsageError(f"--subset: {text!r} is not NAME:RATIO with a ratio from 0 to 1")
        if name in made:
            raise UsageError(f"--subset: {name!r} is given twice")
        if names and name not in names:
            raise UsageError(f"--subset: {name!r} is none of {', '.join(names)}, which this task makes")
        made[name] = ratio
    if abs(sum(made.values()) - 1) > 1e-7:
        raise UsageError(f"--subset: the ratios sum to {sum(made.values()):g}, not to 1")
    return list(made), list(made.values())


class _Split(Surveying):
    """A split: looks at all items, then gives each its subset.

    statistics: subset -> label -> annotations, when it has run; copies of the operation share them.
    """

    columns = frozenset(("id", "subset"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**_with_texts(options))
        self.statistics: dict[str, dict[str, int]] = {}

    def prepare(self, categories: Categories) -> Categories:
        self.names, self.ratios = parse_ratios(self.options.subset)
        self.labels = categories.labels.names()
        return categories

    def seen(self, block: Block) -> Seen:
        """What is looked at of a block."""
        raise NotImplementedError

    def parts(self, seen: Seen) -> tuple[list[str], Ints]:
        """(names of the subsets, the subset of each item)."""
        raise NotImplementedError

    def look(self, engine: Engine, blocks: Blocks) -> Any:
        return engine.fold(blocks, partial(_seen, self.seen), Seen.merge)

    def use(self, found: Seen | None) -> Stage:
        if found is None:
            return _same
        names, part = self.parts(found)
        self.statistics.update(_statistics(found, names, part, found.values or self.labels))
        order = np.argsort(found.keys, kind="stable")
        self.collides = _repeated(found.ids, part)
        return partial(assign, self.options.seed, found.keys[order], part[order].astype(np.uint8), names)

    def finish(self, engine: Engine, blocks: Blocks, stage: Stage) -> Blocks:
        if getattr(self, "collides", False):  # only then is it worth a pass
            check_unique(engine, blocks, stage, self.name)
        return engine.map(blocks, stage)


def _repeated(ids: Ints, part: Ints) -> bool:
    """Whether two items have the same id and subset."""
    order = np.lexsort((part, ids))
    same = (ids[order][1:] == ids[order][:-1]) & (part[order][1:] == part[order][:-1])
    return bool(same.any())


def _same(block: Block) -> Block:
    return block


def _seen(look: Any, block: Block) -> Seen:
    seen: Seen = look(split_errors(block)[0])
    return seen


def keys_of(seed: int, block: Block) -> Ints:
    """A hash of (seed, subset, id) of every item: what stands for chance."""
    keys: Ints = hashed(block, f"'{seed}/' || subset || '/' || id", 1 << _BITS).to_numpy()
    return keys


def assign(seed: int, keys: Ints, parts: npt.NDArray[np.uint8], names: Sequence[str], block: Block) -> Block:
    """The block with the subsets that were found for the keys (ascending)."""
    if not block.num_rows:
        return block
    part = parts[np.searchsorted(keys, keys_of(seed, block))]
    return with_column(block, "subset", pa.array(names, pa.string()).take(pa.array(part)))


def _statistics(
    seen: Seen, names: Sequence[str], part: Ints, labels: Sequence[str]
) -> dict[str, dict[str, int]]:
    made: dict[str, dict[str, int]] = {name: {} for name in names}
    if len(seen.item):
        counts = np.zeros((len(names), int(seen.label.max()) + 1), np.int64)
        np.add.at(counts, (part[seen.item], seen.label), seen.count)
        for i, label in zip(*np.nonzero(counts), strict=True):
            made[names[i]][labels[label] if label < len(labels) else str(label)] = int(counts[i, label])
    return made


def _nothing() -> Ints:
    return np.zeros(0, np.int64)


class RandomSplit(_Split):
    """Gives items subsets by chance: exactly as many as the ratios say, the same ones for the same seed."""

    name = "random_split"
    title = "split into subsets by chance"

    @dataclass(frozen=True)
    class Options(Options):
        subset: tuple[str, ...] = option(
            ("train:0.67", "test:0.33"), short="s", aliases=("splits",), help="NAME:RATIO, repeatable; the ratios sum to 1"
        )  # fmt: skip
        seed: int = option(0, help=_SEED_HELP)

    def seen(self, block: Block) -> Seen:
        keys = keys_of(self.options.seed, block)
        return Seen(keys, _ids(block), keys, _nothing(), _nothing(), _nothing())

    def parts(self, seen: Seen) -> tuple[list[str], Ints]:
        n = len(seen.keys)
        return self.names, dealt(np.zeros(n, np.int64), np.zeros(n), seen.keys, self.ratios)


def _with_texts(options: dict[str, Any]) -> dict[str, Any]:
    """(name, ratio) pairs, as the manuals' Python examples have them, as texts."""
    for name in ("subset", "splits"):
        if isinstance(given := options.get(name), (list, tuple)):
            options[name] = tuple(t if isinstance(t, str) else f"{t[0]}:{t[1]}" for t in given)
    return options


def _ids(block: Block) -> Ints:
    ids: Ints = hashed(block, "id", 1 << _BITS).to_numpy()
    return ids


class Split(_Split):
    """Gives items subsets so that each has its share of every label.

    classification: by the label of the image. detection: by boxes; segmentation: by masks and polygons. reid: by identity, a
    label or the value of --attr: the identities in test are in no other subset, and each is divided into test-gallery and
    test-query. Items that say nothing (no label, several labels) are split by chance.
    """

    name = "split"
    title = "split into subsets by task, so that each has its share of every label"
    columns = frozenset(("id", "subset", "annotations", "attributes"))

    @dataclass(frozen=True)
    class Options(Options):
        task: str = option(
            "classification",
            short="t",
            choices=("classification", "detection", "segmentation", "reid"),
            help="what the dataset is for",
        )
        subset: tuple[str, ...] = option(
            ("train:0.5", "val:0.2", "test:0.3"), short="s", aliases=("splits",), help="NAME:RATIO, repeatable; the ratios sum to 1"
        )  # fmt: skip
        query: float = option(0.5, help="reid: the part of each test identity that becomes test-query")
        attr: str | None = option(
            None, help="an attribute of the annotations to split by, instead of the label", aliases=("attr-for-id",)
        )  # fmt: skip
        group_by: str | None = option(
            None, help="an attribute of items; those with the same value stay together, e.g. a scene"
        )
        seed: int = option(0, help=_SEED_HELP)

    def prepare(self, categories: Categories) -> Categories:
        made = super().prepare(categories)
        if self.options.task == "reid":
            parse_ratios(self.options.subset, ("train", "val", "test"))
            if self.options.group_by:
                raise UsageError("--group-by: reid keeps identities together already")
        if not 0 <= self.options.query <= 1:
            raise UsageError(f"--query: {self.options.query:g} is not from 0 to 1")
        return made

    def seen(self, block: Block) -> Seen:
        keys = keys_of(self.options.seed, block)
        groups = keys
        if self.options.group_by:
            groups = _groups(block, self.options.group_by, keys)
        view = flat(block)
        rows = np.flatnonzero(np.isin(view.type, [int(t) for t in KINDS[self.options.task]]))
        values: list[str] = []
        if self.options.attr:
            label, values = _values(view.column("attributes").take(pa.array(rows)), self.options.attr)
        else:
            label = view.numpy("label", -1)[rows].astype(np.int64)
        rows, label = rows[label >= 0], label[label >= 0]
        width = int(label.max(initial=0)) + 1
        pairs, count = np.unique(view.item[rows] * width + label, return_counts=True)
        return Seen(keys, _ids(block), groups, pairs // width, pairs % width, count, values)

    def parts(self, seen: Seen) -> tuple[list[str], Ints]:
        if self.options.task == "reid":
            return self._reid(seen)
        if self.options.group_by:
            return self.names, self._grouped(seen)
        n = len(seen.keys)
        strata, order = np.full(n, -1, np.int64), np.zeros(n)
        if self.options.task == "classification":
            kinds = np.bincount(seen.item, seen.count, minlength=n)
            single = kinds[seen.item] == 1
            strata[seen.item[single]] = seen.label[single]
        elif len(seen.item):
            strata, order = _rarest(seen, n)
        return self.names, dealt(strata, order, seen.keys, self.ratios)

    def _grouped(self, seen: Seen) -> Ints:
        hashes, unit, sizes = np.unique(seen.groups, return_inverse=True, return_counts=True)
        unit = unit.reshape(-1)
        pairs, of = np.unique(np.stack([unit[seen.item], seen.label]), axis=1, return_inverse=True)
        counts = np.bincount(of.reshape(-1), seen.count, minlength=pairs.shape[1])
        return packed(sizes, pairs[0], pairs[1], counts.astype(np.int64), hashes, self.ratios)[unit]

    def _reid(self, seen: Seen) -> tuple[list[str], Ints]:
        ratio = dict(zip(self.names, self.ratios, strict=True))
        names = ["train", "val", "test-gallery", "test-query", "not-supported"]
        n = len(seen.keys)
        annotations = np.bincount(seen.item, seen.count, minlength=n)
        identity = np.full(n, -1, np.int64)
        single = annotations[seen.item] == 1
        identity[seen.item[single]] = seen.label[single]
        part = np.full(n, names.index("not-supported"), np.int64)
        known = np.flatnonzero(identity >= 0)
        ids, of, sizes = np.unique(identity[known], return_inverse=True, return_counts=True)
        of = of.reshape(-1)
        test = ratio.get("test", 0.0)
        first = np.full(len(ids), np.iinfo(np.int64).max)
        np.minimum.at(first, of, seen.keys[known])
        in_test = packed(sizes, _nothing(), _nothing(), _nothing(), first, [1 - test, test]) == 1
        tested = in_test[of]
        for rows, ratios, names_ in (
            (known[~tested], [ratio.get("train", 0.0), ratio.get("val", 0.0)], ("train", "val")),
            (known[tested], [1 - self.options.query, self.options.query], ("test-gallery", "test-query")),
        ):
            if len(rows):
                scaled = np.array(ratios) / (sum(ratios) or 1)
                found = dealt(identity[rows], np.zeros(len(rows)), seen.keys[rows], scaled.tolist())
                part[rows] = np.array([names.index(x) for x in names_])[found]
        return names, part


def _rarest(seen: Seen, n: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """(the rarest label of each item, how many annotations it has, negative): items with most of a label are dealt first."""
    totals = np.bincount(seen.label, seen.count)
    rank = np.empty(len(totals), np.int64)
    rank[np.argsort(totals, kind="stable")] = np.arange(len(totals))
    strata = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(strata, seen.item, rank[seen.label])
    strata[strata == np.iinfo(np.int64).max] = -1
    return strata, -np.bincount(seen.item, seen.count, minlength=n).astype(float)


def _groups(block: Block, attribute: str, keys: Ints) -> Ints:
    """A hash of the value of an item attribute; of items without it their key."""
    texts = single_chunk(block, "attributes").to_pylist()
    found = [json.loads(t).get(attribute) if t else None for t in texts]
    values = pa.array([None if v is None else json.dumps(v) for v in found], pa.string())
    hashes = hashed(block.set_column(block.schema.get_field_index("id"), "id", values), "id", 1 << _BITS)
    none = values.is_null().to_numpy(zero_copy_only=False)
    return np.where(none, keys, hashes.fill_null(0).to_numpy())


def _values(column: pa.Array, attribute: str) -> tuple[Ints, list[str]]:
    """(number of the value of an attribute in each of some annotations, -1 for none; the values)."""
    encoded = column.dictionary_encode()
    found = [json.loads(t).get(attribute) for t in encoded.dictionary.to_pylist()]
    places: dict[str, int] = {}
    codes = [-1 if v is None else places.setdefault(str(v), len(places)) for v in found]
    index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.array([*codes, -1], np.int64)[index], list(places)
