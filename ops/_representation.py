"""What a filter sees of an item: elements for lxml, and the same values as columns.

item: id, subset, path, image (width, height, has_data, path), attributes (one element each), annotation (any number).
annotation: id, type, one element for each attribute, group, label, label_id, z_order, then what its type has.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import Block
from rayds.geometry import broken_rles, enclosing_boxes, polygon_areas
from rayds.ops._geometry import Numbers, T, columns_of, visibilities
from rayds.ops._shapes import corners_of
from rayds.schema import flat, media_field, single_chunk

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_BOX = ("x", "y", "w", "h")
_TRIPLES = ("position", "rotation", "scale")
# what an annotation has of its own: its names are those of elements that attributes may have, too
VISIBLE = {0: "absent", 1: "hidden", 2: "visible"}


def text_of(value: Any) -> str:
    """A value as the text of an element: 10 and not 10.0, True and False, JSON for lists."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isfinite(number) and number == int(number) and abs(number) < 1e16:
            return str(int(number))
        return (
            repr(number)
            if math.isfinite(number)
            else {"inf": "Infinity", "-inf": "-Infinity"}.get(str(number), "NaN")
        )
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)


_START = (
    "A-Z_a-z\xc0-\xd6\xd8-\xf6\xf8-\u02ff\u0370-\u037d\u037f-\u1fff\u200c\u200d\u2070-\u218f\u2c00-\u2fef"
    "\u3001-\ud7ff\uf900-\ufdcf\ufdf0-\ufffd\U00010000-\U000effff"
)
_NO_NAME = re.compile(f"[^{_START}.0-9\xb7\u0300-\u036f\u203f-\u2040-]")
_NO_START = re.compile(f"[^{_START}]")


def element_name(name: str) -> str:
    """The name of the element of an attribute: spaces become -, other characters that no name in XML has _; a digit
    and what else can't begin one comes after _, and so does `annotation`, which is always an annotation."""
    made = _NO_NAME.sub("_", name.replace(" ", "-"))
    return f"_{made}" if not made or _NO_START.match(made) or made == "annotation" else made


class BrokenMasksError(Exception):
    """Masks whose run lengths don't fill them, by the rows of their items in the block."""

    def __init__(self, items: list[int]) -> None:
        super().__init__(items)
        self.items = items


def number_of(text: str) -> float:
    """XPath's number() of a text; like libxml2, exponents are read, too."""
    stripped = text.strip(" \t\r\n")
    return float(stripped) if re.fullmatch(r"-?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", stripped) else math.nan


@dataclass
class Column:
    """Values of nodes: `owner` is the item or annotation that each belongs to. One of numbers and texts is there."""

    owner: Ints
    number: Floats | Ints | None = None
    text: pa.Array | None = None

    def __post_init__(self) -> None:
        if self.text is not None:
            self.text = _cleaned(self.text)

    def numbers(self) -> Floats:
        if self.number is not None:
            return self.number.astype(float, copy=False)
        assert self.text is not None
        encoded = self.text.dictionary_encode()
        values = np.array([number_of(t) for t in encoded.dictionary.to_pylist()], float)
        return values[encoded.indices.to_numpy()] if len(values) else np.zeros(0)

    def texts(self) -> pa.Array:
        if self.text is None:
            assert self.number is not None
            # what number() makes of these texts again is the same number
            self.text = pa.array([text_of(v) for v in self.number.tolist()], pa.string())
        return self.text

    def take(self, rows: Ints, owner: Ints) -> Column:
        """The values of some rows, with other owners."""
        return Column(
            owner,
            None if self.number is None else self.number[rows],
            None if self.text is None else self.text.take(pa.array(rows)),
        )

    def __len__(self) -> int:
        return len(self.owner)


def joined(columns: list[Column]) -> Column:
    """Several columns as one, in the order of their owners."""
    columns = [c for c in columns if len(c)]
    if len(columns) == 1:
        return columns[0]
    if not columns:
        return Column(np.zeros(0, np.int64), np.zeros(0))
    owner = np.concatenate([c.owner for c in columns])
    order = np.argsort(owner, kind="stable")
    texts = pa.concat_arrays([c.texts() for c in columns]).take(pa.array(order))
    return Column(owner[order], text=texts)


class Document:
    """The items of a block as columns, made when they are asked for."""

    def __init__(self, block: Block, labels: list[str]) -> None:
        self.block, self.labels = block, labels
        self.view = flat(block)
        self.items, self.annotations = block.num_rows, len(self.view)
        self._attributes: dict[str, dict[str, Column]] = {}

    @cached_property
    def columns(self) -> dict[str, pa.Array]:
        return columns_of(self.view.rows)

    # items

    def item_child(self, name: str) -> Column | None:
        """The values of a simple child of every item; None when an item has none of that name."""
        if name in ("id", "subset"):
            return Column(np.arange(self.items), text=single_chunk(self.block, name))
        if name == "path":
            return self._present(media_field(self.block, "path").fill_null(""))
        return None

    def image_child(self, name: str) -> Column | None:
        """The values of a child of the image of every item that has one."""
        kinds = pc.fill_null(pc.equal(media_field(self.block, "kind"), "image"), False)
        rows = np.flatnonzero(kinds.to_numpy(zero_copy_only=False))
        if name in ("width", "height"):
            sizes = media_field(self.block, name).take(pa.array(rows))
            if not sizes.null_count:
                return Column(rows, sizes.to_numpy().astype(float))
            return Column(rows, text=pc.fill_null(sizes.cast(pa.string()), "unknown"))
        if name == "path":
            return Column(rows, text=media_field(self.block, "path").fill_null("").take(pa.array(rows)))
        if name == "has_data":
            has = pc.or_(
                pc.is_valid(media_field(self.block, "data")), pc.is_valid(media_field(self.block, "path"))
            )
            return Column(rows, has.to_numpy(zero_copy_only=False)[rows].astype(float))
        return None

    def _present(self, texts: pa.Array) -> Column:
        return Column(np.arange(len(texts)), text=texts)

    def attributes(self, of: str, name: str) -> Column:
        """The attributes of that element name, of "items" or of "annotations"."""
        if of not in self._attributes:
            texts = single_chunk(self.block, "attributes") if of == "items" else self.columns["attributes"]
            self._attributes[of] = _by_name(texts)
        empty = Column(np.zeros(0, np.int64), np.zeros(0))
        return self._attributes[of].get(name, empty)

    # annotations

    def annotation_child(self, name: str) -> Column | None:
        """The values of a simple child of every annotation that has one, without attributes."""
        if name in ("id", "group", "z_order"):
            return Column(np.arange(self.annotations), self.view.numpy(name).astype(np.int64))
        if name == "type":
            names = np.array([t.name if (t := _TYPES.get(i)) else "" for i in range(32)])
            return self._present(pa.array(names[self.view.type], pa.string()))
        if name in ("label", "label_id"):
            label = self.view.numpy("label", -1).astype(np.int64)
            rows = np.flatnonzero(label >= 0)
            if name == "label_id":
                return Column(rows, label[rows].astype(float))
            names_ = pa.array(
                [*self.labels, *map(str, range(len(self.labels), int(label.max(initial=-1)) + 1))],
                pa.string(),
            )
            return Column(rows, text=names_.take(pa.array(label[rows])))
        if name == "caption":
            rows = np.flatnonzero(self.view.type == T.caption)
            return Column(rows, text=self.columns["text"].take(pa.array(rows)).fill_null(""))
        if name == "area":
            rows = np.flatnonzero(np.isin(self.view.type, _WITH_AREA))
            return Column(rows, self._areas()[rows])
        return self._numbers_named(name) if any(name in own for own in _OWN.values()) else None

    def _numbers_named(self, name: str) -> Column:
        """The numbers of that name, of all types that have one."""
        parts = []
        for type_, names in _OWN.items():
            if name in names:
                rows = np.flatnonzero(self.view.type == type_)
                matrix = self._numbers.matrix(rows, _WIDTHS[type_])
                parts.append((rows, matrix[:, names.index(name)]))
        rows, values = (np.concatenate(x) for x in zip(*parts, strict=True))
        order = np.argsort(rows, kind="stable")
        return Column(rows[order], values[order])

    @cached_property
    def _numbers(self) -> Numbers:
        return Numbers.of(self.columns["points"])

    def box_child(self, name: str) -> Column | None:
        """The values of a child of the `bbox` that shapes have."""
        if name not in (*_BOX, "area"):
            return None
        rows = np.flatnonzero(np.isin(self.view.type, _WITH_BOX))
        boxes = self._boxes()[rows]
        return Column(rows, boxes[:, 2] * boxes[:, 3] if name == "area" else boxes[:, _BOX.index(name)])

    def point_child(self, name: str) -> Column | None:
        """The values of a child of all `point` of shapes, in order."""
        rows = np.flatnonzero(np.isin(self.view.type, (T.polygon, T.polyline, T.points)))
        if name == "visible":
            dots = np.flatnonzero(self.view.type == T.points)
            told = visibilities(self.columns, dots, self._numbers.lengths)
            owner = np.repeat(dots, self._numbers.lengths[dots] // 2)
            names = np.array([VISIBLE[i] for i in range(3)])
            return Column(owner, text=pa.array(names[told], pa.string()))
        if name not in ("x", "y"):
            return None
        chosen = np.zeros(self.annotations, bool)
        chosen[rows] = True
        which = chosen[self._numbers.owner] & (self._numbers.position % 2 == (name == "y"))
        return Column(self._numbers.owner[which], self._numbers.values[which])

    def triple_child(self, of: str, name: str) -> Column | None:
        """The values of x, y or z of the position, rotation or scale of cuboids."""
        if name not in ("x", "y", "z"):
            return None
        rows = np.flatnonzero(self.view.type == T.cuboid_3d)
        matrix = self._numbers.matrix(rows, 9)
        return Column(rows, matrix[:, 3 * _TRIPLES.index(of) + "xyz".index(name)])

    def tree(self, name: str) -> Ints | None:
        """The annotations that have an element of children of that name, one entry for each such element."""
        types = self.view.type
        if name == "bbox":
            return np.flatnonzero(np.isin(types, _WITH_BOX))
        if name in _TRIPLES:
            return np.flatnonzero(types == T.cuboid_3d)
        if name == "point":
            column = self.point_child("x")
            return column.owner if column else None
        return None

    @cached_property
    def _mask_numbers(self) -> tuple[Ints, Floats, Floats]:
        """(rows of masks, their boxes, their areas)."""
        from pycocotools import mask as coco_mask

        rows = np.flatnonzero(self.view.type == T.mask)
        if not len(rows):
            return rows, np.zeros((0, 4)), np.zeros(0)
        masks = self.columns["mask"].take(pa.array(rows))
        height, width = (
            pc.fill_null(pc.struct_field(masks, n), -1).to_numpy(zero_copy_only=False)
            for n in ("height", "width")
        )
        broken = broken_rles(pc.struct_field(masks, "counts"), height, width)
        if broken.any():  # pycocotools trusts them
            raise BrokenMasksError(np.unique(self.view.item[rows[broken]]).tolist())
        found = masks.to_pylist()
        rles = [{"size": [m["height"], m["width"]], "counts": m["counts"]} for m in found]
        return rows, np.asarray(coco_mask.toBbox(rles)), np.asarray(coco_mask.area(rles), float)

    def _boxes(self) -> Floats:
        boxes = enclosing_boxes(self._numbers.values, self._numbers.lengths)
        types = self.view.type
        rows = np.flatnonzero(types == T.rotated_bbox)
        if len(rows):
            corners = corners_of(self._numbers.matrix(rows, 5))
            low, high = corners.min(1), corners.max(1)
            boxes[rows] = np.hstack([low, high - low])
        rows, mask_boxes, _ = self._mask_numbers
        boxes[rows] = mask_boxes
        return boxes

    def _areas(self) -> Floats:
        types, numbers = self.view.type, self._numbers
        areas = np.zeros(len(types))
        rows = np.flatnonzero(types == T.polygon)
        if len(rows):
            points = self.columns["points"].take(pa.array(rows))
            areas[rows] = polygon_areas(
                points.flatten().to_numpy(zero_copy_only=False), numbers.lengths[rows]
            )
        rows = np.flatnonzero(types == T.bbox)
        boxes = numbers.matrix(rows, 4)
        areas[rows] = boxes[:, 2] * boxes[:, 3]
        rows = np.flatnonzero(types == T.rotated_bbox)
        boxes = numbers.matrix(rows, 5)
        areas[rows] = boxes[:, 2] * boxes[:, 3]
        rows = np.flatnonzero(types == T.ellipse)
        boxes = numbers.matrix(rows, 4)
        areas[rows] = np.abs((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) * (np.pi / 4)
        rows, _, mask_areas = self._mask_numbers
        areas[rows] = mask_areas
        return areas

    # elements

    def elements(self) -> Iterator[Any]:
        """The items as lxml elements."""
        return _Elements(self).all()


_TYPES = {int(t): t for t in T}
_WITH_AREA = (T.bbox, T.polygon, T.mask, T.ellipse, T.rotated_bbox)
_WITH_BOX = (T.polygon, T.polyline, T.points, T.mask, T.ellipse, T.rotated_bbox)
_OWN = {T.bbox: _BOX, T.ellipse: ("x1", "y1", "x2", "y2"), T.rotated_bbox: ("cx", "cy", "w", "h", "r")}
_WIDTHS = {T.bbox: 4, T.ellipse: 4, T.rotated_bbox: 5}


def _by_name(texts: pa.Array) -> dict[str, Column]:
    """The values of JSON objects by element name."""
    if texts.null_count == len(texts):
        return {}
    encoded = texts.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
    found: dict[str, list[tuple[Ints, str]]] = {}
    for code, text in enumerate(encoded.dictionary.to_pylist()):
        rows = order[starts[code] : starts[code + 1]]
        for name, value in json.loads(text).items():
            found.setdefault(element_name(name), []).append((rows, text_of(value)))
    made = {}
    for name, parts in found.items():
        owner = np.concatenate([rows for rows, _ in parts])
        values = pa.array([_clean(v) for _, v in parts], pa.string())
        which = np.repeat(np.arange(len(parts)), [len(rows) for rows, _ in parts])
        by_owner = np.argsort(owner, kind="stable")
        made[name] = Column(owner[by_owner], text=values.take(pa.array(which[by_owner])))
    return made


class _Elements:
    """Makes the elements of all items of a document from its columns."""

    def __init__(self, document: Document) -> None:
        self.document = document
        d = document
        names = (
            "id",
            "type",
            "group",
            "label",
            "label_id",
            "z_order",
            *_BOX,
            "x1",
            "y1",
            "x2",
            "y2",
            "cx",
            "cy",
            "r",
            "caption",
            "area",
        )
        self.simple = {n: self._dict(d.annotation_child(n)) for n in names}
        self.box = {n: self._dict(d.box_child(n)) for n in (*_BOX, "area")}
        self.triples = {t: {n: self._dict(d.triple_child(t, n)) for n in "xyz"} for t in _TRIPLES}
        self.points = {n: self._lists(d.point_child(n)) for n in ("x", "y", "visible")}
        self.attributes = d.columns["attributes"].to_pylist()

    @staticmethod
    def _dict(column: Column | None) -> dict[int, str]:
        return (
            {}
            if column is None
            else dict(zip(column.owner.tolist(), column.texts().to_pylist(), strict=True))
        )

    @staticmethod
    def _lists(column: Column | None) -> dict[int, list[str]]:
        made: dict[int, list[str]] = {}
        if column is not None:
            for owner, text in zip(column.owner.tolist(), column.texts().to_pylist(), strict=True):
                made.setdefault(owner, []).append(text)
        return made

    def all(self) -> Iterator[Any]:
        from lxml import etree

        d = self.document

        def add(parent: Any, name: str, text: str | None = None) -> Any:
            made = etree.SubElement(parent, name)
            made.text = None if text is None else _clean(text)
            return made

        simple = {n: self._dict(d.item_child(n)) for n in ("id", "subset", "path")}
        image = {n: self._dict(d.image_child(n)) for n in ("width", "height", "has_data", "path")}
        attributes = single_chunk(d.block, "attributes").to_pylist()
        for row in range(d.items):
            item = etree.Element("item")
            for name, values in simple.items():
                add(item, name, values[row])
            if row in image["width"]:
                shown = add(item, "image")
                for name, values in image.items():
                    add(shown, name, values[row])
            if attributes[row]:
                parent = add(item, "attributes")
                for name, value in json.loads(attributes[row]).items():
                    add(parent, element_name(name), text_of(value))
            for annotation in range(int(d.view.offsets[row]), int(d.view.offsets[row + 1])):
                self._annotation(add(item, "annotation"), annotation, add)
            yield item

    def _annotation(self, element: Any, row: int, add: Callable[..., Any]) -> None:
        element.set("row", str(row))
        for name in ("id", "type"):
            add(element, name, self.simple[name][row])
        if self.attributes[row]:
            for name, value in json.loads(self.attributes[row]).items():
                add(element, element_name(name), text_of(value))
        for name, values in self.simple.items():
            if name not in ("id", "type") and row in values:
                add(element, name, values[row])
        if row in self.box["x"]:
            box = add(element, "bbox")
            for name, values in self.box.items():
                add(box, name, values[row])
        for of, parts in self.triples.items():
            if row in parts["x"]:
                parent = add(element, of)
                for name, values in parts.items():
                    add(parent, name, values[row])
        seen = self.points["visible"].get(row)
        for i, (x, y) in enumerate(
            zip(self.points["x"].get(row, ()), self.points["y"].get(row, ()), strict=True)
        ):
            point = add(element, "point")
            add(point, "x", x)
            add(point, "y", y)
            if seen:
                add(point, "visible", seen[i])


_NO_TEXT = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    """The text without characters that XML can't have."""
    return _NO_TEXT.sub("\ufffd", text)


def _cleaned(texts: pa.Array) -> pa.Array:
    """The same of many."""
    pattern = "[\\x00-\\x08\\x0B\\x0C\\x0E-\\x1F\\x{FFFE}\\x{FFFF}]"
    if not pc.any(pc.match_substring_regex(texts, pattern)).as_py():
        return texts
    return pc.replace_substring_regex(texts, pattern, "\ufffd")
