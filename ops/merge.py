"""merge: several datasets as one. See docs/operations/merge.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds import options as base
from rayds.categories import Categories
from rayds.engine.base import Block, Blocks, Engine, add_counts
from rayds.errors import DataError, OnError, UsageError
from rayds.format import with_errors
from rayds.item import dump_json, from_table, to_table
from rayds.losses import REPORT
from rayds.numbering import numbered
from rayds.op import Combine
from rayds.ops._intersect import Rules, intersected
from rayds.ops._joining import joined
from rayds.options import option
from rayds.schema import (
    ITEM_SCHEMA,
    flat,
    single_chunk,
    split_errors,
    with_annotations,
    with_column,
    with_fields,
)
from rayds.sql import query

Ints = npt.NDArray[np.int64]

SOURCE, PLACE = "__merge_source", "__merge_place"
POLICIES = ("update", "exact", "union", "intersect")
ERRORS = 10_000  # messages in a report; more are counted


class Merge(Combine):
    """Makes one dataset of several.

    Labels are brought together by name. Items are the same when they have the same id and subset. update: the later item
    replaces the earlier one. exact: their annotations together, equal ones once; what they say of the image must agree.
    union: they stay two items, with -0, -1, ... after their ids. intersect: they are the work of several annotators, of
    whose annotations one is made where they agree.
    """

    name = "merge"
    title = "make one dataset of several"

    @dataclass(frozen=True)
    class Options(base.Options):
        policy: str = option(
            "union", choices=POLICIES, help="what becomes of items with the same id and subset"
        )
        iou_thresh: float = option(
            0.25, help="intersect: how alike annotations of one thing are, at least (0 to 1)"
        )
        output_conf_thresh: float = option(
            0.0, help="intersect: leave out annotations of a lower score (0 to 1)"
        )
        quorum: int = option(0, help="intersect: how many annotators must agree on a label or an attribute")
        groups: tuple[str, ...] = option(
            (),
            split=False,
            help="intersect: labels of a group, 'person,hand?,head?' (? may be missing), repeatable",
        )
        close_distance: float = option(0.75, help="intersect: report merged annotations that are that alike")

    def prepare(self, categories: Sequence[Categories]) -> Categories:
        if len(categories) < 2 and self.options.policy == "intersect":
            raise UsageError("merge: give at least two datasets")
        made, self.index = joined(categories)
        o = self.options
        names = made.labels.names()
        groups = [[part.strip() for part in text.split(",") if part.strip()] for text in o.groups]
        for name in (n.rstrip("?") for group in groups for n in group):
            made.labels.index(name)
        self.rules = Rules(
            len(categories), o.iou_thresh, o.output_conf_thresh, o.quorum, groups, o.close_distance, names
        )
        return made

    def run(self, engine: Engine, parts: Sequence[Blocks]) -> Blocks:
        placed, start = [], 0
        for k, blocks in enumerate(parts):
            relabelled = engine.map(blocks, partial(_relabelled, self.index[k]))
            one, start = numbered(engine, relabelled, PLACE, start)
            placed.append(engine.map(one, partial(_from_source, k)))
        together = engine.by_key(engine.chain(placed), ["id", "subset"], self._merged)
        return engine.map(engine.by_number(together, PLACE, max(start, 1)), _unmarked)

    def _merged(self, block: Block) -> Block:
        """The items of a block, in which all with one key stand together, as one of each."""
        if not block.num_rows:
            return block
        ids, subsets = single_chunk(block, "id"), single_chunk(block, "subset")
        same = pc.and_(pc.equal(ids[1:], ids[:-1]), pc.equal(subsets[1:], subsets[:-1]))
        first = np.append(True, ~same.to_numpy(zero_copy_only=False))
        item = np.cumsum(first) - 1
        policy = self.options.policy
        if policy == "intersect":
            return self._intersected(block, item)
        if first.all():
            return block
        if policy == "union":
            return _told_apart(block, np.bincount(item)[item] > 1)
        if policy == "update":
            last = np.append(first[1:], True)
            places = block.column(PLACE).to_numpy()
            made = block.filter(pa.array(last))
            at = made.schema.get_field_index(PLACE)
            return made.set_column(at, PLACE, pa.array(places[first]))
        return self._exact(block, item, np.flatnonzero(first))

    def _exact(self, block: Block, item: Ints, starts: Ints) -> Block:
        view = flat(block)
        of = item[view.item]
        keep = _unlike(view.rows, of, view.item)
        counts = np.bincount(of[keep], minlength=len(starts))
        merged = np.flatnonzero(np.bincount(item) > 1)
        ends = np.append(starts[1:], block.num_rows)
        columns = {name: block.column(name).to_pylist() for name in ("media", "attributes", "extra")}
        failed: dict[int, DataError] = {}
        chosen = starts.copy()
        for k in merged.tolist():
            rows = range(int(starts[k]), int(ends[k]))
            try:
                values = _agreed([{n: c[r] for n, c in columns.items()} for r in rows])
            except ValueError as e:
                failed[k] = DataError(
                    f"its versions in the merged datasets differ: {e}",
                    item=block.column("id")[int(starts[k])].as_py(),
                    remedy="Make them the same, or merge with the policy update or union",
                )
                continue
            for name, value in values.items():
                columns[name][int(starts[k])] = value
        if failed and self.on_error is OnError.RAISE:
            raise failed[min(failed)]
        made = block.take(pa.array(chosen))
        for name, values in columns.items():
            made = with_column(
                made, name, pa.array([values[r] for r in starts.tolist()], ITEM_SCHEMA.field(name).type)
            )
        made = with_annotations(made, view.rows.filter(pa.array(keep)), counts)
        if not failed:
            return made
        errors = [
            {"subset": made.column("subset")[k].as_py(), **e.record()} for k, e in sorted(failed.items())
        ]
        good = made.filter(pa.array([k not in failed for k in range(made.num_rows)]))
        marked = with_errors(good.drop_columns([SOURCE, PLACE]), errors)
        for name in (SOURCE, PLACE):
            told = good.column(name).to_pylist() + [0] * len(errors)
            marked = marked.append_column(name, pa.array(told, pa.int64()))
        return marked

    def _intersected(self, block: Block, item: Ints) -> Block:
        sources = block.column(SOURCE).to_pylist()
        items = list(from_table(block.drop_columns([SOURCE, PLACE])))
        starts = np.flatnonzero(np.append(True, item[1:] != item[:-1]))
        made = []
        for lo, hi in zip(starts.tolist(), [*starts[1:].tolist(), len(items)], strict=True):
            versions = {sources[r]: items[r] for r in range(lo, hi)}
            made.append(intersected(versions, self.rules))
        table = to_table(made)
        for name in (SOURCE, PLACE):
            table = table.append_column(name, block.column(name).take(pa.array(starts)))
        return table

    def report(self, engine: Engine, blocks: Blocks) -> dict[str, Any]:
        """What an intersect merge could not settle: item errors, source errors, and the messages (at most 10,000)."""
        found = engine.fold(blocks, _reported, _added) or {"items": {}, "sources": {}, "all": [], "n": 0}
        made = {
            "Item errors": found["items"],
            "Source errors": {str(k): n for k, n in sorted(found["sources"].items())},
            "All errors": found["all"],
        }
        left = found["n"] - len(found["all"])
        return {**made, "More errors": left} if left else made


def _relabelled(index: Ints, block: Block) -> Block:
    view = flat(block)
    label = view.numpy("label", -1).astype(np.int64)
    none = label < 0
    if not len(index) or none.all() or (index == np.arange(len(index))).all():
        return block
    new = np.where(none, 0, index[np.where(none, 0, label)])
    rows = with_fields(view.rows, label=pa.array(new, pa.int32(), mask=none))
    return with_annotations(block, rows, np.diff(view.offsets))


def _from_source(k: int, block: Block) -> Block:
    return block.append_column(SOURCE, pa.array(np.full(block.num_rows, k), pa.int64()))


def _unmarked(block: Block) -> Block:
    return block.drop_columns([SOURCE, PLACE])


def _told_apart(block: Block, shared: npt.NDArray[np.bool_]) -> Block:
    named = pc.binary_join_element_wise(
        single_chunk(block, "id"), block.column(SOURCE).cast(pa.string()).combine_chunks(), "-"
    )
    return with_column(block, "id", pc.if_else(pa.array(shared), named, single_chunk(block, "id")))


def _unlike(rows: pa.StructArray, item: Ints, version: Ints) -> npt.NDArray[np.bool_]:
    """Which annotations stay: of equal ones of an item as many as the version with most of them has."""
    if not len(rows):
        return np.zeros(0, bool)
    text = query("SELECT hash(row) AS h FROM t", t=pa.table({"row": rows})).column("h").to_numpy()
    code = np.unique(text, return_inverse=True)[1].reshape(-1)
    order = np.lexsort((np.arange(len(rows)), code, version))
    fresh = np.append(True, (np.diff(code[order]) != 0) | (np.diff(version[order]) != 0))
    starts = np.flatnonzero(fresh)
    nth = np.empty(len(rows), np.int64)
    nth[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    keys = np.stack([item, code, nth], 1)
    _, first = np.unique(keys, axis=0, return_index=True)
    keep = np.zeros(len(rows), bool)
    keep[first] = True
    return keep


def _agreed(versions: list[dict[str, Any]]) -> dict[str, Any]:
    """Media, attributes and extra of several versions of an item; raises ValueError where they contradict each other."""
    media: dict[str, Any] | None = None
    attributes: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for version in versions:
        one = version["media"]
        if one and media:
            for name in ("height", "width"):
                if media[name] is not None and one[name] is not None and media[name] != one[name]:
                    raise ValueError(f"the {name} of the image is {media[name]} and {one[name]}")
            if media["path"] is None and media["data"] is None:
                media = {**one, **{k: v for k, v in media.items() if v}}
            else:
                media = {
                    k: one[k] if media[k] is None and k in ("height", "width") else media[k] for k in media
                }
        media = media or one
        for name, value in json.loads(version["attributes"] or "{}").items():
            if attributes.setdefault(name, value) != value:
                raise ValueError(f"the attribute {name!r} is {attributes[name]!r} and {value!r}")
        extra = {**json.loads(version["extra"] or "{}"), **extra}
    return {"media": media, "attributes": dump_json(attributes), "extra": dump_json(extra)}


def _reported(block: Block) -> dict[str, Any]:
    out: dict[str, Any] = {"items": {}, "sources": {}, "all": [], "n": 0}
    for id, subset, messages in _messages(split_errors(block)[0]):
        out["items"][str((id, subset))] = len(messages)
        for text, sources in messages:
            for k in sources:
                out["sources"][k] = out["sources"].get(k, 0) + 1
            out["all"].append(text)
    out["n"] = len(out["all"])
    out["all"] = out["all"][:ERRORS]
    return out


def _messages(block: Block) -> Iterator[tuple[str, str, list[Any]]]:
    extra = single_chunk(block, "extra")
    for row in np.flatnonzero(pc.fill_null(pc.match_substring(extra, f'"{REPORT}"'), False)).tolist():
        messages = json.loads(extra[row].as_py())[REPORT]
        yield block.column("id")[row].as_py(), block.column("subset")[row].as_py(), messages


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {
        "items": {**a["items"], **b["items"]},
        "sources": add_counts(a["sources"], b["sources"]),
        "all": (a["all"] + b["all"])[:ERRORS],
        "n": a["n"] + b["n"],
    }
