"""What an output format can't hold: counted by kind with one example each, never lost silently."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import add_counts
from rayds.format import Capabilities
from rayds.json_text import may_hold
from rayds.schema import AnnotationType, Flat, flat, media_field, single_chunk, with_column
from rayds.sql import query

Losses = dict[str, tuple[int, str]]
NOTE = "note: "  # kinds that begin with it are told, but are no loss under --strict
EDITS = "image edits: not written without --save-media"

_FEW = 256
_ONE_NUMBER = r'^\{"([^"\\]*)":-?[0-9][0-9.eE+-]*\}$'
LOST = "rayds_lost"  # in an item's extra: what operations could not keep of it, on its way to the report
REPORT = "rayds_merge"  # likewise: what a merge has to say of it


@dataclass
class Summary:
    """Counts of what went through a writer; mergeable, small."""

    items: int = 0
    annotations: dict[str, int] = field(default_factory=dict)
    objects: int = 0
    subsets: dict[str, int] = field(default_factory=dict)
    losses: Losses = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def merge(self, other: Summary) -> Summary:
        """The sum of both, examples of the first."""
        return Summary(
            self.items + other.items,
            add_counts(self.annotations, other.annotations),
            self.objects + other.objects,
            add_counts(self.subsets, other.subsets),
            merge_losses(self.losses, other.losses),
            self.errors + other.errors,
        )


def merge_losses(a: Losses, b: Losses) -> Losses:
    """Counts added, the first example kept."""
    out = dict(a)
    for kind, (n, example) in b.items():
        had = out.get(kind)
        out[kind] = (n + had[0], had[1]) if had else (n, example)
    return out


def lose(block: pa.Table, kind: str, counts: Any) -> pa.Table:
    """The block, with a note for the report that an operation could not keep `counts[i]` things of a kind of row i."""
    rows = np.flatnonzero(counts)
    if not len(rows):
        return block
    extra = single_chunk(block, "extra").to_pylist()
    for row in rows:
        made = json.loads(extra[row]) if extra[row] else {}
        lost = made.setdefault(LOST, {})
        lost[kind] = lost.get(kind, 0) + int(counts[row])
        extra[row] = json.dumps(made)
    return with_column(block, "extra", pa.array(extra, pa.string()))


def take_lost(block: pa.Table) -> tuple[pa.Table, Losses]:
    """(the block without the notes that `lose` made, what they say)."""
    column = single_chunk(block, "extra")
    if not may_hold(column, f'"{LOST}"'):
        return block, {}
    rows = np.flatnonzero(
        pc.fill_null(pc.match_substring(column, f'"{LOST}"'), False)
    )  # REPORT is never alone
    if not len(rows):
        return block, {}
    extra, ids = column.to_pylist(), single_chunk(block, "id")
    losses: Losses = {}
    for row in rows:
        made = json.loads(extra[row])
        for kind, n in made.pop(LOST, {}).items():
            losses = merge_losses(losses, {NOTE + kind: (n, f"item {ids[int(row)].as_py()!r}")})
        made.pop(REPORT, None)
        extra[row] = json.dumps(made) if made else None
    return with_column(block, "extra", pa.array(extra, pa.string())), losses


def summarize(block: pa.Table, caps: Capabilities | None = None, family: str | None = None) -> Summary:
    """The counts of a block, and what an output of these capabilities would lose of it."""
    view = flat(block)
    counts = np.bincount(view.type, minlength=32)
    annotations = {t.name: int(counts[t]) for t in AnnotationType if counts[t]}
    subsets = {v["values"]: v["counts"] for v in pc.value_counts(block.column("subset")).to_pylist()}
    losses = block_losses(block, view, caps, family) if caps else {}
    return Summary(block.num_rows, annotations, count_objects(view), subsets, losses)


def instance_keys(view: Flat) -> tuple[Any, Any]:
    """(item, group) of every annotation as int64 arrays, group made unique (negative) where it is 0."""
    group = view.numpy("group").astype(np.int64)
    alone = group == 0
    return view.item, np.where(alone, -1 - np.arange(len(group)), group)


def count_objects(view: Flat) -> int:
    """The number of objects: annotations that share a group in an item are one."""
    group = view.numpy("group")
    alone = int((group == 0).sum())
    if alone == len(group):
        return alone
    rows = np.flatnonzero(group != 0)
    same = np.diff(view.item[rows]) == 0
    steps = np.diff(group[rows])
    if not np.any(same & (steps < 0)):  # the usual case: those of an object follow one another
        return alone + 1 + int((~same | (steps > 0)).sum())
    codes = pa.array(group[rows]).dictionary_encode()
    keys = view.item[rows] * len(codes.dictionary) + codes.indices.to_numpy()
    return alone + int(pc.count_distinct(pa.array(keys)).as_py())


def block_losses(block: pa.Table, view: Flat, caps: Capabilities, family: str | None = None) -> Losses:
    """What of a block an output with these capabilities can't hold, by kind, with an example each."""
    losses: Losses = {}
    ids = single_chunk(block, "id")

    def lose(kind: str, rows: Any, rows_are_items: bool = False) -> None:
        where = np.flatnonzero(rows)
        if len(where):
            item = where[0] if rows_are_items else view.item[where[0]]
            losses[kind] = (len(where), f"item {ids[int(item)].as_py()!r}")

    types = view.type
    held = np.isin(types, [int(t) for t in caps.annotations])
    for t in AnnotationType:
        if t not in caps.annotations:
            lose(f"{t.name} annotations", types == t)
    if not caps.unlabeled:
        needs = np.isin(types, [int(t) for t in caps.annotations - {AnnotationType.caption}])
        lose("annotations without a label", needs & (view.numpy("label", -1) < 0))
    if not caps.ids:
        lose("annotation ids", held & (view.numpy("id") != 0))
    if not caps.z_order:
        lose("z_order values", held & (view.numpy("z_order") != 0))
    if not caps.groups:
        lose("annotations tied to others by group", held & _in_shared_group(view, held))
    losses |= _attribute_losses("attribute", view.column("attributes"), caps.attributes, held, view.item, ids)
    every = np.ones(block.num_rows, bool)
    losses |= _attribute_losses(
        "item attribute",
        single_chunk(block, "attributes"),
        caps.item_attributes,
        every,
        np.arange(len(ids)),
        ids,
    )
    losses |= _item_losses(block, caps, ids)
    if not caps.extra:
        losses |= _extra_notes(block, view, family)
    return losses


def _in_shared_group(view: Flat, held: Any) -> Any:
    """Whether each annotation shares its group with another held one of its item."""
    item, group = instance_keys(view)
    shared = np.zeros(len(group), bool)
    rows = np.flatnonzero(held & (group > 0))
    if len(rows):
        order = rows[np.lexsort((group[rows], item[rows]))]
        same = (item[order][1:] == item[order][:-1]) & (group[order][1:] == group[order][:-1])
        shared[order[1:][same]] = True
        shared[order[:-1][same]] = True
    return shared


def _item_losses(block: pa.Table, caps: Capabilities, ids: pa.Array) -> Losses:
    losses: Losses = {}
    subsets = single_chunk(block, "subset")
    if caps.subsets is not True:
        allowed = pa.array(sorted(caps.subsets or {"default"}), pa.string())
        lost = pc.invert(pc.is_in(subsets, allowed))
        if n := pc.sum(lost).as_py() or 0:
            losses["subset names"] = (n, f"subset {subsets.filter(lost)[0].as_py()!r}")
    edits = media_field(block, "edits")
    if not caps.edits and edits.null_count < len(edits):
        edited = pc.is_valid(edits)
        losses[EDITS] = (pc.sum(edited).as_py(), f"item {ids.filter(edited)[0].as_py()!r}")
    kinds = media_field(block, "kind")
    for kind in pc.unique(kinds).drop_null().to_pylist():
        if kind not in caps.media:
            has = pc.fill_null(pc.equal(kinds, kind), False)
            losses[f"{kind} media"] = (pc.sum(has).as_py(), f"item {ids.filter(has)[0].as_py()!r}")
    return losses


def _extra_notes(block: pa.Table, view: Flat, family: str | None) -> Losses:
    """Fields that only the source format knows: told, as other formats have no place for them."""
    notes: Losses = {}
    for what, column in (("items", single_chunk(block, "extra")), ("annotations", view.column("extra"))):
        if column.null_count == len(column):
            continue
        own = pc.starts_with(column, f'{{"{family}":') if family else pc.equal(pc.is_valid(column), False)
        lost = pc.and_(pc.is_valid(column), pc.invert(pc.fill_null(own, False)))
        if n := pc.sum(lost).as_py() or 0:
            example = column.filter(lost)[0].as_py()
            notes[f"{NOTE}{what} with fields that only their source format has"] = (n, example[:80])
    return notes


def _attribute_losses(
    what: str, column: pa.Array, held: bool | frozenset[str], rows: Any, item: Any, ids: pa.Array
) -> Losses:
    """Attributes (not false, not null) that are not held, by name."""
    if held is True or column.null_count == len(column):
        return {}
    keep = frozenset() if held is False else held
    encoded = column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    there = np.flatnonzero(rows & (codes >= 0))
    texts = _Texts(encoded.dictionary, codes[there], there)
    losses: Losses = {}
    for name, (n, row) in sorted(texts.names().items()):
        if name not in keep:
            value = json.dumps(json.loads(column[row].as_py())[name])
            losses[f"{what} {name!r}"] = (n, f"item {ids[int(item[row])].as_py()!r}: {value[:60]}")
    return losses


_Names = dict[
    str, tuple[int, int]
]  # how many objects have a name with a value but false and null, the first row


class _Texts:
    """JSON objects, each with how often it occurs, and the first row where it does."""

    def __init__(self, texts: pa.Array, codes: Any, rows: Any) -> None:
        self.texts = texts
        self.counts = np.bincount(codes, minlength=len(texts))
        self.firsts = np.zeros(len(texts), np.int64)
        self.firsts[codes[::-1]] = rows[::-1]  # the last that is set stays
        self.present = np.flatnonzero(self.counts)

    def names(self) -> _Names:
        """The names in all objects."""
        if len(self.present) <= _FEW:
            return self._names_of(self.present)
        single = pc.match_substring_regex(self.texts, _ONE_NUMBER).to_numpy(zero_copy_only=False)[
            self.present
        ]
        found = self._single_names(self.present[single])
        for name, (n, first) in self._names_of(self.present[~single]).items():
            had = found.get(name, (0, first))
            found[name] = (n + had[0], min(first, had[1]))
        return found

    def _single_names(self, which: Any) -> _Names:
        """The names in objects that hold nothing but one number, as those of COCO's items do, another for each."""
        names = pc.replace_substring_regex(self.texts.take(pa.array(which)), _ONE_NUMBER, r"\1")
        names = names.dictionary_encode()
        codes = names.indices.to_numpy()
        sums = np.bincount(codes, self.counts[which])
        firsts = np.full(len(sums), np.iinfo(np.int64).max)
        np.minimum.at(firsts, codes, self.firsts[which])
        told = zip(names.dictionary.to_pylist(), sums, firsts, strict=True)
        return {name: (int(n), int(first)) for name, n, first in told}

    def _names_of(self, which: Any) -> _Names:
        """The names in any objects."""
        found: _Names = {}
        if len(which) <= _FEW:
            for i in which.tolist():
                for name, value in json.loads(self.texts[i].as_py()).items():
                    if value is not False and value is not None:
                        n, first = found.get(name, (0, int(self.firsts[i])))
                        found[name] = (n + int(self.counts[i]), min(first, int(self.firsts[i])))
            return found
        columns = {"text": self.texts.take(pa.array(which)), "n": self.counts[which], "i": self.firsts[which]}
        told = query(
            """SELECT m.key AS k, sum(n)::BIGINT AS n, min(i) AS i FROM (
                 SELECT unnest(map_entries(from_json(text, '"MAP(VARCHAR, JSON)"'))) AS m, n, i FROM t
               ) WHERE m.value::VARCHAR NOT IN ('false', 'null') GROUP BY k""",
            t=pa.table(columns),
        )
        return {r["k"]: (r["n"], r["i"]) for r in told.to_pylist()}
