"""XPath expressions evaluated on the columns of a block: every value for all items, or all annotations, at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.ops._representation import Column, Document, joined, number_of, text_of
from rayds.ops._xpath import Call, Literal, NotCompilableError, Path

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_TREES = ("bbox", "position", "rotation", "scale")


@dataclass
class Texts:
    """A text for every node of the context."""

    values: pa.Array


@dataclass
class Selected:
    """Elements with children: of what kind, whose (node of the context), and which item or annotation."""

    kind: str
    owner: Ints
    rows: Ints


class Context:
    """What expressions are evaluated for: all "item" or all "annotation" elements of a document."""

    def __init__(self, document: Document, kind: str) -> None:
        self.document, self.kind = document, kind
        self.size = document.items if kind == "item" else document.annotations

    def inner(self, kind: str) -> Context:
        return self if kind == self.kind else Context(self.document, kind)

    # values

    def value(self, node: Any) -> Any:
        """The value of an expression: bools or floats (arrays of the size of the context), Texts, a Column or Selected."""
        if isinstance(node, Literal):
            if isinstance(node.value, str):
                return Texts(pa.repeat(pa.scalar(node.value), self.size))
            return np.full(self.size, node.value)
        if isinstance(node, Path):
            return self.path(node)
        return self.call(node)

    def truth(self, node: Any) -> Bools:
        """The value as booleans."""
        return self.boolean(self.value(node))

    def boolean(self, value: Any) -> Bools:
        if isinstance(value, (Column, Selected)):
            return np.asarray(np.bincount(value.owner, minlength=self.size) > 0, bool)
        if isinstance(value, Texts):
            lengths: Bools = pc.greater(pc.utf8_length(value.values), 0).to_numpy(zero_copy_only=False)
            return lengths
        if value.dtype == bool:
            return np.asarray(value, bool)
        return np.asarray((value != 0) & ~np.isnan(value), bool)

    def number(self, value: Any) -> npt.NDArray[np.float64]:
        if isinstance(value, Column):
            out = np.full(self.size, np.nan)
            first = _firsts(value.owner)
            out[value.owner[first]] = value.numbers()[first]
            return out
        if isinstance(value, Texts):
            encoded = value.values.dictionary_encode()
            numbers = np.array([number_of(t) for t in encoded.dictionary.to_pylist()], float)
            return numbers[encoded.indices.to_numpy()] if self.size else np.zeros(0)
        if isinstance(value, Selected):
            raise NotCompilableError("the text of an element with children")
        return np.asarray(value, float)

    def string(self, value: Any) -> pa.Array:
        if isinstance(value, Texts):
            return value.values
        if isinstance(value, Column):
            first = _firsts(value.owner)
            index = np.full(self.size, -1)
            index[value.owner[first]] = first
            texts = value.texts().take(pa.array(index, mask=index < 0))
            return pc.fill_null(texts, "")
        if isinstance(value, Selected):
            raise NotCompilableError("the text of an element with children")
        if value.dtype == bool:
            return pa.array(np.where(value, "true", "false"), pa.string())
        return pa.array([_computed_text(v) for v in value.tolist()], pa.string())

    # functions and operators

    def call(self, node: Call) -> Any:
        name, args = node.name, node.args
        if name in ("and", "or"):
            a, b = self.truth(args[0]), self.truth(args[1])
            return a & b if name == "and" else a | b
        if name in ("=", "!=", "<", "<=", ">", ">="):
            return self.compared(name, self.value(args[0]), self.value(args[1]))
        if name in ("+", "-", "*", "div", "mod", "neg", "floor", "ceiling", "round", "number", "sum"):
            return self.arithmetic(name, [self.value(a) for a in args])
        if name in ("true", "false"):
            return np.full(self.size, name == "true")
        if name in ("not", "boolean"):
            made = self.truth(args[0])
            return ~made if name == "not" else made
        if name == "count":
            found = self.value(args[0])
            if not isinstance(found, (Column, Selected)):
                raise NotCompilableError("count() of a value")
            return np.bincount(found.owner, minlength=self.size).astype(float)
        if name == "|":
            return self.union([self.value(a) for a in args])
        return self.text_call(name, [self.string(self.value(a)) for a in args])

    def text_call(self, name: str, texts: list[pa.Array]) -> Any:
        if name == "string":
            return Texts(texts[0])
        if name == "string-length":
            return pc.utf8_length(texts[0]).to_numpy(zero_copy_only=False).astype(float)
        patterns = texts[1].unique().to_pylist()
        out = np.zeros(self.size, bool)
        match = pc.match_substring if name == "contains" else pc.starts_with
        for pattern in patterns if len(patterns) <= 16 else _too_many():
            same = pc.equal(texts[1], pattern).to_numpy(zero_copy_only=False)
            out |= same & match(texts[0], pattern).to_numpy(zero_copy_only=False)
        return out

    def arithmetic(self, name: str, values: list[Any]) -> Any:
        if name == "sum":
            if not isinstance(values[0], Column):
                raise NotCompilableError("sum() of a value")
            return np.bincount(values[0].owner, values[0].numbers(), minlength=self.size)
        a = self.number(values[0])
        with np.errstate(all="ignore"):
            if len(values) == 1:
                return _rounded(name, a)
            b = self.number(values[1])
            if name == "mod":
                return np.fmod(a, b)
            return {"+": np.add, "-": np.subtract, "*": np.multiply, "div": np.divide}[name](a, b)

    def union(self, values: list[Any]) -> Selected:
        a, b = values
        if isinstance(a, Selected) and isinstance(b, Selected) and a.kind == b.kind:
            pairs = np.unique(np.stack([np.append(a.owner, b.owner), np.append(a.rows, b.rows)]), axis=1)
            return Selected(a.kind, pairs[0], pairs[1])
        raise NotCompilableError("a union of values")

    def compared(self, sign: str, a: Any, b: Any) -> Bools:
        """XPath 1.0, section 3.4: node-sets compare true when any of their nodes does."""
        if isinstance(a, Selected) or isinstance(b, Selected):
            if (isinstance(a, np.ndarray) and a.dtype == bool) or (
                isinstance(b, np.ndarray) and b.dtype == bool
            ):
                return self._compared_values(sign, self.boolean(a), self.boolean(b))
            raise NotCompilableError("the text of an element with children")
        if isinstance(a, Column) and isinstance(b, Column):
            return self._compared_columns(sign, a, b)
        if isinstance(b, Column):
            swapped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
            return self.compared(swapped.get(sign, sign), b, a)
        if isinstance(a, Column):
            if isinstance(b, np.ndarray) and b.dtype == bool:
                return self._compared_values(sign, self.boolean(a), b)
            if isinstance(b, Texts) and sign in ("=", "!="):
                hits = _compare_texts(sign, a.texts(), b.values.take(pa.array(a.owner)))
            else:
                hits = _compare(sign, a.numbers(), self.number(b)[a.owner])
            return np.bincount(a.owner[hits], minlength=self.size) > 0
        return self._compared_values(sign, a, b)

    def _compared_values(self, sign: str, a: Any, b: Any) -> Bools:
        if sign in ("=", "!="):
            if any(isinstance(v, np.ndarray) and v.dtype == bool for v in (a, b)):
                return _compare(sign, self.boolean(a).astype(float), self.boolean(b).astype(float))
            if isinstance(a, Texts) and isinstance(b, Texts):
                return _compare_texts(sign, a.values, b.values)
        return _compare(sign, self.number(a), self.number(b))

    def _compared_columns(self, sign: str, a: Column, b: Column) -> Bools:
        n = np.bincount(b.owner, minlength=self.size)
        if n.max(initial=0) > 1:
            if np.bincount(a.owner, minlength=self.size).max(initial=0) > 1:
                raise NotCompilableError("two sets of several nodes")
            swapped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
            return self._compared_columns(swapped.get(sign, sign), b, a)
        partner = np.full(self.size, -1)
        partner[b.owner] = np.arange(len(b))
        with_partner = np.flatnonzero(partner[a.owner] >= 0)
        other = partner[a.owner[with_partner]]
        if sign in ("=", "!="):
            hits = _compare_texts(
                sign, a.texts().take(pa.array(with_partner)), b.texts().take(pa.array(other))
            )
        else:
            hits = _compare(sign, a.numbers()[with_partner], b.numbers()[other])
        return np.bincount(a.owner[with_partner[hits]], minlength=self.size) > 0

    # paths

    def path(self, path: Path) -> Any:
        if not path.steps:
            everything = np.arange(self.size)
            return Selected(self.kind, everything, everything)
        if path.absolute:
            return self._from_document(path)
        current: Any = Selected(self.kind, np.arange(self.size), np.arange(self.size))
        for step in path.steps:
            current = self._step(current, step)
        return current

    def _from_document(self, path: Path) -> Any:
        items = self.inner("item")
        if path.steps[0].name != "item":
            return Column(np.zeros(0, np.int64), np.zeros(0))
        current: Any = Selected("item", np.arange(items.size), np.arange(items.size))
        current = items._kept(current, path.steps[0].predicates)
        for step in path.steps[1:]:
            current = items._step(current, step)
        if self.kind == "item":
            return current
        # what belongs to an item belongs to all its annotations
        order = np.argsort(current.owner, kind="stable")
        counts = np.bincount(current.owner, minlength=items.size)
        starts = np.cumsum(counts) - counts
        item = self.document.view.item
        owner = np.repeat(np.arange(self.size), counts[item])
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts[item]) - counts[item], counts[item])
        rows = order[starts[item][owner] + within]
        if isinstance(current, Selected):
            return Selected(current.kind, owner, current.rows[rows])
        return current.take(rows, owner)

    def _kept(self, selected: Selected, predicates: tuple[Any, ...]) -> Selected:
        for predicate in predicates:
            if selected.kind not in ("item", "annotation"):
                raise NotCompilableError("a predicate of a value")
            inner = self.inner(selected.kind)
            value = inner.value(predicate)
            if isinstance(value, np.ndarray) and value.dtype != bool:
                raise NotCompilableError("a predicate that is a position")
            keep = inner.boolean(value)[selected.rows]
            selected = Selected(selected.kind, selected.owner[keep], selected.rows[keep])
        return selected

    def _step(self, current: Any, step: Any) -> Any:
        if not isinstance(current, Selected):
            return Column(np.zeros(0, np.int64), np.zeros(0))  # values have no children
        found = self._child(current, step.name)
        if step.predicates:
            if not isinstance(found, Selected):
                raise NotCompilableError("a predicate of a value")
            found = self._kept(found, step.predicates)
        return found

    def _child(self, of: Selected, name: str) -> Any:
        document = self.document
        if of.kind == "item":
            if name == "annotation":
                return self._annotations(of)
            if name in ("image", "attributes"):
                return self._present(of, name)
            return _placed(of, document.item_child(name))
        if of.kind == "image":
            return _placed(of, document.image_child(name))
        if of.kind == "attributes":
            return _placed(of, document.attributes("items", name))
        if of.kind == "annotation":
            own, tree = document.annotation_child(name), document.tree(name)
            told = document.attributes("annotations", name)
            if tree is not None:
                if len(told):
                    raise NotCompilableError("an attribute that is called like an element")
                rows, owner = _matched(of, tree)
                return Selected(name, owner, tree[rows])
            # in document order: the first of several is the value as a number or a text
            both = (own, told) if name in ("id", "type") else (told, own)
            return _placed(of, joined([c for c in both if c is not None]))
        if of.kind == "bbox":
            return _placed(of, document.box_child(name))
        if of.kind in _TREES:
            return _placed(of, document.triple_child(of.kind, name))
        if of.kind == "point":
            unique = Selected("point", *_unique(of))
            return _placed(unique, document.point_child(name))
        raise NotCompilableError(of.kind)

    def _annotations(self, of: Selected) -> Selected:
        offsets = self.document.view.offsets
        counts = (offsets[1:] - offsets[:-1])[of.rows]
        owner = np.repeat(of.owner, counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return Selected("annotation", owner, np.repeat(offsets[of.rows], counts) + within)

    def _present(self, of: Selected, name: str) -> Selected:
        if name == "image":
            column = self.document.image_child("has_data")
            has = np.zeros(self.document.items, bool)
            has[column.owner if column else []] = True
        else:
            texts = self.document.block.column("attributes")
            has = pc.is_valid(texts).to_numpy()
        keep = has[of.rows]
        return Selected(name, of.owner[keep], of.rows[keep])


def _unique(of: Selected) -> tuple[Ints, Ints]:
    pairs = np.unique(np.stack([of.owner, of.rows]), axis=1)
    return pairs[0], pairs[1]


def _matched(of: Selected, owners: Ints) -> tuple[Ints, Ints]:
    """(number of each entry of `owners`, ascending, that belongs to a selected row; owner of that in the context)."""
    lo = np.searchsorted(owners, of.rows, "left")
    counts = np.searchsorted(owners, of.rows, "right") - lo
    owner = np.repeat(of.owner, counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(lo, counts) + within, owner


def _placed(of: Selected, column: Column | None) -> Column:
    if column is None:
        return Column(np.zeros(0, np.int64), np.zeros(0))
    rows, owner = _matched(of, column.owner)
    return column.take(rows, owner)


def _firsts(owner: Ints) -> Ints:
    """The position of the first value of each owner."""
    return np.unique(owner, return_index=True)[1]


def _compare(sign: str, a: Any, b: Any) -> Bools:
    table = {
        "=": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
    }  # fmt: skip
    made: Bools = table[sign](a, b)
    return made


def _compare_texts(sign: str, a: pa.Array, b: pa.Array) -> Bools:
    same: Bools = pc.equal(a, b).to_numpy(zero_copy_only=False).astype(bool)
    return same if sign == "=" else ~same


def _rounded(name: str, a: Any) -> Any:
    if name == "neg":
        return -a
    if name == "number":
        return a
    return {"floor": np.floor, "ceiling": np.ceil}[name](a) if name != "round" else np.floor(a + 0.5)


def _computed_text(value: float) -> str:
    """A number that was computed as text, where XPath's (15 digits, and its own rule for exponents) is ours."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4 or float(f"{value:.15g}") != value:
        raise NotCompilableError("the text of a number with many digits")
    return text_of(value)


def _too_many() -> list[str]:
    raise NotCompilableError("a search for many texts")
