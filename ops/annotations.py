"""Operations on single annotations and attributes: reindex_annotations, remove_annotations, remove_attributes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.categories import Categories
from rayds.engine.base import Block, Blocks, Engine
from rayds.errors import UsageError
from rayds.losses import instance_keys
from rayds.numbering import with_starts
from rayds.op import Op
from rayds.options import Options as Base
from rayds.options import option
from rayds.schema import Flat, flat, single_chunk, with_annotations, with_fields


class ReindexAnnotations(Op):
    """Numbers the objects: START, START + 1, ... Annotations of one object (a box and its mask) get the same number."""

    name = "reindex_annotations"
    title = "number the annotations"

    @dataclass(frozen=True)
    class Options(Base):
        start: int = option(1, short="s", help="the first number")
        reindex_each_item: bool = option(False, short="r", help="begin with START in every item")

    def run(self, engine: Engine, blocks: Blocks) -> Blocks:
        if self.options.reindex_each_item:
            return engine.map(blocks, self._checked)
        return with_starts(engine, blocks, count_objects, partial(renumbered, self.options.start))

    def apply(self, block: Block) -> Block:
        view = flat(block)
        objects, of = objects_of(view)
        counts = np.bincount(objects, minlength=block.num_rows)
        first = np.cumsum(counts) - counts
        ids = of - first[view.item] + self.options.start
        return with_ids(block, view, ids)


def objects_of(view: Flat) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(item of every object, object of every annotation), objects numbered as they begin."""
    item, group = instance_keys(view)
    if not len(item):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    keys = np.stack([item, group], axis=1)
    _, first, of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    order = np.argsort(first, kind="stable")
    rank[order] = np.arange(len(first))
    return item[first[order]], rank[of.reshape(-1)]


def count_objects(block: Block) -> int:
    """The number of objects in a block."""
    return len(objects_of(flat(block))[0])


def renumbered(start: int, block: Block, before: int) -> Block:
    """The block with the ids of its objects counted on from `before`."""
    view = flat(block)
    return with_ids(block, view, objects_of(view)[1] + before + start)


def with_ids(block: Block, view: Flat, ids: npt.NDArray[np.int64]) -> Block:
    """The block with other annotation ids."""
    rows = with_fields(view.rows, id=pa.array(ids, pa.int64()))
    return with_annotations(block, rows, np.diff(view.offsets))


class RemoveAnnotations(Op):
    """Removes annotations: all, those of some items, or single ones by their id."""

    name = "remove_annotations"
    title = "remove annotations of all or some items"

    @dataclass(frozen=True)
    class Options(Base):
        id: tuple[str, ...] = option(
            (), split=False, aliases=("ids",), help="ID:SUBSET or ID:SUBSET:ANNOTATION, repeatable; none: all annotations"
        )  # fmt: skip

    def __init__(self, **options: Any) -> None:
        super().__init__(**_joined(options, "id", "ids"))

    def prepare(self, categories: Categories) -> Categories:
        self.whole: set[str] = set()
        self.single: dict[str, set[int]] = {}
        for text in self.options.id:
            parts = text.rsplit(":", 2)
            if len(parts) == 3 and parts[2].lstrip("-").isdigit():
                self.single.setdefault(":".join(parts[:2]), set()).add(int(parts[2]))
            elif ":" in text:
                self.whole.add(text)
            else:
                raise UsageError(f"--id: {text!r} is not ID:SUBSET or ID:SUBSET:ANNOTATION")
        return categories

    def apply(self, block: Block) -> Block:
        view = flat(block)
        if not self.options.id:
            return with_annotations(block, view.rows.slice(0, 0), np.zeros(block.num_rows, np.int64))
        keys = _keys(block).to_pylist()
        whole = np.array([k in self.whole for k in keys], bool)
        drop = whole[view.item]
        ids = view.numpy("id")
        for row, key in enumerate(keys):
            if key in self.single:
                part = slice(int(view.offsets[row]), int(view.offsets[row + 1]))
                drop[part] |= np.isin(ids[part], list(self.single[key]))
        counts = np.bincount(view.item[~drop], minlength=block.num_rows)
        return with_annotations(block, view.rows.filter(pa.array(~drop)), counts)


class RemoveAttributes(Op):
    """Removes attributes of annotations: all or some, in all or some items."""

    name = "remove_attributes"
    title = "remove attributes of annotations"

    @dataclass(frozen=True)
    class Options(Base):
        id: tuple[str, ...] = option(
            (), split=False, aliases=("ids",), help="ID:SUBSET, repeatable; none: in all items"
        )
        attr: tuple[str, ...] = option(
            (), short="a", split=False, aliases=("attributes",), help="name, repeatable; none: all attributes"
        )

    def __init__(self, **options: Any) -> None:
        super().__init__(**_joined(options, "id", "ids"))

    def apply(self, block: Block) -> Block:
        view = flat(block)
        column = view.column("attributes")
        if column.null_count == len(column):
            return block
        chosen = np.ones(block.num_rows, bool)
        if self.options.id:
            wanted = pa.array(self.options.id, pa.string())
            chosen = pc.is_in(_keys(block), wanted).to_numpy(zero_copy_only=False)
        encoded = column.dictionary_encode()
        texts = pa.array([self._left(text) for text in encoded.dictionary.to_pylist()], pa.string())
        made = pc.if_else(pa.array(chosen[view.item]), texts.take(encoded.indices), column)
        rows = with_fields(view.rows, attributes=made)
        return with_annotations(block, rows, np.diff(view.offsets))

    def _left(self, text: str) -> str | None:
        if not self.options.attr:
            return None
        values = json.loads(text)
        kept = {k: v for k, v in values.items() if k not in self.options.attr}
        return text if len(kept) == len(values) else json.dumps(kept) if kept else None


def _keys(block: Block) -> pa.Array:
    return pc.binary_join_element_wise(single_chunk(block, "id"), single_chunk(block, "subset"), ":")


def _joined(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options with tuples such as (id, subset, annotation) as texts."""

    def text(value: Any) -> Any:
        return (
            ":".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
        )

    for name in names:
        if isinstance(given := options.get(name), (list, tuple)):
            options[name] = tuple(map(text, given))
    return options
