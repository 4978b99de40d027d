"""filter: items and annotations by an XPath expression, by SQL, or by a function. See docs/operations/filter.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds import options as base
from rayds.categories import Categories
from rayds.engine.base import Block
from rayds.errors import DataError, UnknownNameError, UsageError
from rayds.format import with_errors
from rayds.op import Op
from rayds.ops import _sql
from rayds.ops._predicates import Context, Selected
from rayds.ops._representation import BrokenMasksError, Document
from rayds.ops._xpath import NotCompilableError, Path, may_select, parse, tree_of
from rayds.options import option
from rayds.schema import flat, single_chunk, with_annotations

Bools = npt.NDArray[np.bool_]

MODES = {
    "i": "items", "items": "items", "a": "annotations", "annotations": "annotations",
    "i+a": "items+annotations", "a+i": "items+annotations", "items+annotations": "items+annotations",
    "annotations+items": "items+annotations",
}  # fmt: skip


def mode_of(name: str) -> str:
    """The mode of one of its spellings; raises UnknownNameError for another text."""
    if name not in MODES:
        raise UnknownNameError("filter mode", name, MODES)
    return MODES[name]


class Filter(Op):
    """Keeps the items, or the annotations, that an expression selects.

    --expression is XPath 1.0 over the representation of an item (`rayds filter --dry-run` prints it). Mode items keeps the items
    for which it selects anything or is true; annotations keeps the annotations that it selects, in all items;
    items+annotations removes the items, too, that are left without any. --where is an SQL expression over items, or
    over annotations in the other modes.
    """

    name = "filter"
    title = "keep items or annotations by an XPath or SQL expression"
    keeps_items = False

    @dataclass(frozen=True)
    class Options(base.Options):
        expression: str | None = option(
            None, short="e", aliases=("xpath",), help="XPath, e.g. '/item/annotation[label=\"cat\"]'"
        )
        where: str | None = option(
            None, help="SQL, e.g. 'width > 100' or, of annotations, \"label = 'cat' and area > 50\""
        )
        mode: str = option("items", short="m", help=f"what to keep: {', '.join(MODES)}")

    def prepare(self, categories: Categories) -> Categories:
        self.mode = mode_of(self.options.mode)
        self.labels = categories.labels.names()
        if (self.options.expression is None) == (self.options.where is None):
            raise UsageError("filter: give an XPath expression, or --where with an SQL expression")
        if self.options.where is not None:
            self.columns = _sql.check(self.options.where, self.over_annotations)
            return categories
        tree = tree_of(self.options.expression)
        if self.over_annotations and not may_select(tree, "annotation"):
            _no_annotations(self.options.expression)
        try:
            self.tree: Any = parse(self.options.expression)
        except NotCompilableError:
            self.tree = None
            _check_xpath(self.options.expression)
        return categories

    @property
    def over_annotations(self) -> bool:
        return self.mode != "items"

    def apply(self, block: Block) -> Block:
        try:
            return self._applied(block)
        except BrokenMasksError as e:
            ids = single_chunk(block, "id")
            good, errors = self.good_rows(block, {row: _broken(ids[row].as_py()) for row in e.items})
            return with_errors(self._applied(good), errors)

    def _applied(self, block: Block) -> Block:
        keep = self.selected(block)
        if keep.all() and self.mode != "items+annotations":
            return block  # nothing goes: nothing is copied
        if not self.over_annotations:
            return block.filter(pa.array(keep))
        view = flat(block)
        counts = np.bincount(view.item[keep], minlength=block.num_rows)
        made = with_annotations(block, view.rows.filter(pa.array(keep)), counts)
        return made.filter(pa.array(counts > 0)) if self.mode == "items+annotations" else made

    @staticmethod
    def represented(block: Block, labels: list[str]) -> Iterator[str]:
        """The items as a filter sees them, as XML texts."""
        from lxml import etree

        document = Document(block, labels)
        try:
            made = document.elements()
            first = next(made, None)
        except BrokenMasksError as e:
            raise _broken(single_chunk(block, "id")[e.items[0]].as_py()) from e
        for item in chain([] if first is None else [first], made):
            for annotation in item.iter("annotation"):
                del annotation.attrib["row"]
            yield str(etree.tostring(item, encoding="unicode", pretty_print=True))

    def selected(self, block: Block) -> Bools:
        """Which items (mode items) or annotations of a block stay."""
        document = Document(block, self.labels)
        if self.options.where is not None:
            return _sql.selected(document, self.options.where, self.over_annotations, self.columns)
        if self.tree is not None:
            try:
                return self.by_columns(document)
            except NotCompilableError:
                pass
        return self.by_elements(document)

    def by_columns(self, document: Document) -> Bools:
        """The same as by_elements, for expressions that are evaluated on columns; raises NotCompilableError for others."""
        context = Context(document, "item")
        value = context.value(self.tree)
        if not self.over_annotations:
            return context.boolean(value)
        keep = np.zeros(document.annotations, bool)
        if isinstance(value, Selected) and value.kind == "annotation":
            keep[value.rows] = True
        elif not isinstance(self.tree, Path):
            raise NotCompilableError("what is selected")  # lxml tells what is wrong with it
        else:
            _no_annotations(self.options.expression)
        return keep

    def by_elements(self, document: Document) -> Bools:
        """Which items or annotations stay, by lxml, item by item."""
        from lxml import etree

        find = etree.XPath(self.options.expression)
        keep = np.zeros(document.annotations if self.over_annotations else document.items, bool)
        for row, item in enumerate(document.elements()):
            try:
                found = find(etree.ElementTree(item))
            except etree.XPathError as e:
                raise _no_xpath(self.options.expression, e) from e
            if not self.over_annotations:
                keep[row] = bool(found) if not isinstance(found, float) else found != 0 and found == found
                continue
            if not isinstance(found, list):
                _no_annotations(self.options.expression)
            for element in found:
                if getattr(element, "tag", None) != "annotation":
                    _no_annotations(self.options.expression)
                keep[int(element.get("row"))] = True
        return keep


def _broken(item: str) -> DataError:
    return DataError(
        "the run lengths of a mask are broken, so that it has no area and no box",
        item=item,
        remedy="Correct or remove the annotation, or leave such items out with --on-error skip",
    )


def _no_annotations(expression: str) -> None:
    raise UsageError(
        f"{expression!r} does not select annotation elements, as the mode needs; write /item/annotation[...], or use the mode items"
    )


def _check_xpath(expression: str) -> None:
    from lxml import etree

    try:
        etree.XPath(expression)(etree.ElementTree(etree.Element("item")))
    except etree.XPathError as e:
        raise _no_xpath(expression, e) from e


def _no_xpath(expression: str, error: Exception) -> UsageError:
    return UsageError(f"{expression!r} is no XPath 1.0 expression: {error}")
