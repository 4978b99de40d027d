"""Reading of VOC items: XML trees straight into the columns of an item table, no object an annotation."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pyarrow as pa

from rayds.errors import DataError, UnknownNameError
from rayds.format import ReadContext
from rayds.formats.voc.columns import BOX, LABEL, MASK, Columns
from rayds.formats.voc.fast import Fast
from rayds.formats.voc.head import ItemHead
from rayds.formats.voc.layout import ACTION, LAYOUT, MAIN, SEGMENTATION, Part
from rayds.formats.voc.masks import MaskReader
from rayds.formats.voc.xml import new_parser, parse_element, parse_xml, place_of, text_of
from rayds.item import dump_json
from rayds.media import is_image

READ_MANY = 256
OBJECTS = MAIN | LAYOUT | ACTION
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = ("truncated", "occluded", "difficult")
_SIMPLE = {"pose", *_FLAGS, "actions", "attributes"}
_TRUTH = {"1": True, "0": False, "true": True, "false": False, "yes": True, "no": False}
_BAD = (DataError, ValueError, KeyError, IndexError, TypeError, OverflowError)


@dataclass(frozen=True)
class Scope:
    """What a task variant reads: classification labels, objects, masks; which objects and whether their parts."""

    lists: int
    labels: bool = False
    objects: bool = False
    masks: bool = False
    parts: bool = True
    only: str = ""  # "parts", "actions": objects without are left out; "instances": masks of none are


def read_part(part: Part, scope: Scope, ctx: ReadContext) -> pa.Table:
    """The item table of a shard."""
    errors = len(ctx.errors)
    try:
        return _read_part(part, scope, ctx, fast=not scope.only)
    except ValueError as e:  # a number that only the careful way can tell of
        if isinstance(e, DataError):
            raise
        del ctx.errors[errors:]
        return _read_part(part, scope, ctx, fast=False)


class XmlNamer:
    """Stands for a ReadContext where boxes are checked, so that reports name the annotation file of the item."""

    def __init__(self, part: Part, ctx: ReadContext) -> None:
        self.part, self.ctx, self.root = part, ctx, ctx.root

    def bad(self, error: DataError, subset: str) -> None:
        """Report a bad box."""
        file = self.root.path(self.part.xml_name(error.item or ""))
        self.ctx.bad(DataError(error.reason, file=file, item=error.item, remedy=error.remedy), subset)


def _read_part(part: Part, scope: Scope, ctx: ReadContext, fast: bool) -> pa.Table:
    reader = ItemReader(part, scope, ctx, fast)
    ids, images = part.id_list(), part.images.split("\0")
    for start in range(0, len(ids), READ_MANY):
        some = range(start, min(start + READ_MANY, len(ids)))
        wants = [i for i in some if scope.objects and part.flags[i] & OBJECTS and i not in part.bad]
        data = dict(
            zip(
                wants,
                ctx.root.read_many([part.xml_name(ids[i]) for i in wants], missing_ok=True),
                strict=True,
            )
        )
        if reader.masks:
            reader.masks.fetch([ids[i] for i in some if part.flags[i] & SEGMENTATION])
        for i in some:
            reader.item(i, ids[i], images[i], data.get(i))
    return reader.columns.table(part.subset)


class ItemReader:
    """Turns the files of one item after the other into rows of `columns`."""

    def __init__(self, part: Part, scope: Scope, ctx: ReadContext, fast: bool = True) -> None:
        self.part, self.scope, self.ctx = part, scope, ctx
        self.columns = Columns()
        self.parser = new_parser()
        self.index = {name: i for i, name in enumerate(ctx.categories.labels.names())}
        self.masks = MaskReader(ctx.root, ctx.categories) if scope.masks else None
        self.flag_texts: dict[tuple[str | None, ...], tuple[str, str | None]] = {}
        self.image_root = ctx.root.path(part.image_dir)
        self.fast = Fast(self.index, self._kind) if fast else None

    def item(self, i: int, id: str, image: str, data: bytes | None) -> None:
        """One item; when its files are bad it is reported and left out."""
        columns, part = self.columns, self.part
        rows, corners = len(columns.types), len(columns.corners)
        file = self.ctx.root.path(part.xml_name(id))
        try:
            if i in part.bad:
                reason, file, place = part.bad[i]
                raise DataError(reason, file=file, place=place)
            self._labels(part.labels.get(i, ()))
            head = ItemHead()
            if data is not None and not (self.fast and self.fast.read(data, head, columns)):
                self._objects(parse_xml(data, self.parser), head)
            if self.masks is not None and part.flags[i] & SEGMENTATION:
                head.size = self._masks(id) or head.size
            path = self._path(id, image, head)
            drawn = any(t == MASK for t in columns.types[rows:]) if self.masks else False
            extra = head.extra(id, path, part.flags[i], drawn)
        except _BAD as e:
            columns.rewind(rows, corners)
            with self.ctx.guard(file=file, item=id, subset=part.subset):
                raise e
            return  # type: ignore[unreachable]  # the guard may swallow it
        columns.ids.append(id)
        columns.paths.append(path or self._missing(id, head))
        columns.widths.append(head.size[0])
        columns.heights.append(head.size[1])
        columns.extras.append(extra)
        columns.counts.append(len(columns.types) - rows)

    def _path(self, id: str, image: str, head: ItemHead) -> str | None:
        if image:
            return f"{self.image_root}/{image}"
        if self.part.flat and head.filename and "/" not in head.filename and "\\" not in head.filename:
            name = posixpath.join(self.part.image_dir, posixpath.dirname(id), head.filename)
            if self.ctx.root.is_file(name):
                return self.ctx.root.path(name)
        return None

    def _missing(self, id: str, head: ItemHead) -> str | None:
        """Where an image that is not there should be, so that whoever needs it can say so."""
        return (
            f"{self.image_root}/{id}{posixpath.splitext(head.filename)[1]}"
            if is_image(head.filename)
            else None
        )

    def _labels(self, labels: Any) -> None:
        for name, difficult in labels:
            attributes = '{"difficult":true}' if difficult else None
            self.columns.add(LABEL, 0, self._label(name, None), attributes, None)

    def _label(self, name: str, element: Any) -> int:
        label = self.index.get(name)
        if label is None:
            raise DataError(
                f"the label {name!r} is not in the label map",
                place=place_of(element),
                remedy=str(UnknownNameError("label", name, self.index)),
            )
        return label

    def _masks(self, id: str) -> tuple[int, int] | None:
        assert self.masks is not None
        columns = self.columns
        size = None
        for group, label, mask in self.masks.read(id):
            if self.scope.only == "instances" and not group:
                continue
            columns.masks[len(columns.types)] = mask
            columns.add(MASK, group, label, None, None)
            size = (mask[1], mask[0])
        return size

    def _objects(self, root: Any, head: ItemHead) -> None:
        number = 0
        for child in root:
            if child.tag == "object":
                number += 1
                self._object(child, number)
            else:
                head.take(child)
        if root.attrib:
            head.rest["root"] = dict(root.attrib)

    def _object(self, element: Any, number: int) -> None:
        name = box = pose = truncated = occluded = difficult = actions = attributes = None
        parts: list[Any] = []
        other: list[Any] = []
        for e in element:
            tag = e.tag
            if tag == "name":
                name = e.text
            elif tag == "bndbox":
                box = e
            elif tag == "pose":
                pose = e.text or ""
            elif tag == "truncated":
                truncated = e.text or ""
            elif tag == "difficult":
                difficult = e.text or ""
            elif tag == "occluded":
                occluded = e.text or ""
            elif tag == "part":
                parts.append(e)
            elif tag == "actions":
                actions = e
            elif tag == "attributes":
                attributes = e
            else:
                other.append(e)
        only = self.scope.only
        if only and not (parts if only == "parts" else actions is not None):
            return
        label = self._named(name, element, f"object {number}")
        key = (pose, truncated, occluded, difficult)
        text, note = self.flag_texts.get(key) or self._flags(key)
        if actions is not None or attributes is not None:
            text = _with_values(text, actions, attributes)
        if box is None or len(box) != 4 or other or element.attrib:
            note = self._note(note, element, box, other)
        self._corners(box, element, f"object {number} ({name})")
        self.columns.add(BOX, number, label, text, note)
        if parts and self.scope.parts:
            for p in parts:
                self._part(p, number, f"part of object {number} ({name})")

    def _kind(self, inner: bytes) -> tuple[str, str | None] | None:
        """(attributes, extra) of an object with these elements beside name and bndbox; None: too odd to be shared."""
        try:
            element = parse_element(b"<object>" + inner + b"</object>", self.parser)
        except DataError:
            return None
        found = {e.tag: e for e in element}
        if len(found) != len(element) or not found.keys() <= _SIMPLE:
            return None
        key = tuple(found[t].text or "" if t in found else None for t in ("pose", *_FLAGS))
        text, note = self.flag_texts.get(key) or self._flags(key)
        if "actions" in found or "attributes" in found:
            text = _with_values(text, found.get("actions"), found.get("attributes"))
        return text, note

    def _named(self, name: str | None, element: Any, what: str) -> int:
        if name is not None:
            label = self.index.get(name)
            if label is not None:
                return label
        if not name or not name.strip():
            raise DataError(f"{what} has no name", place=place_of(element))
        return self._label(name.strip(), element)

    def _part(self, element: Any, group: int, what: str) -> None:
        label = self._named(element.findtext("name"), element, what)
        self._corners(element.find("bndbox"), element, what)
        other = [e for e in element if e.tag not in ("name", "bndbox", "attributes")]
        attributes = element.find("attributes")
        text = _with_values("{}", None, attributes) if attributes is not None else None
        self.columns.add(
            BOX, group, label, text or None, dump_json({"voc": {"xml": _texts(other)}}) if other else None
        )

    def _corners(self, box: Any, element: Any, what: str) -> None:
        if box is None:
            raise DataError(f"{what} has no bndbox", place=place_of(element))
        found = {e.tag: e.text for e in box}
        try:
            corners = [float(found[c]) for c in _CORNERS]
            if not all(map(isfinite, corners)):
                raise ValueError
        except KeyError as e:
            raise DataError(f"the bndbox of {what} has no {e.args[0]}", place=place_of(box)) from None
        except (ValueError, TypeError):
            shown = ", ".join(f"{c}={found[c]!r}" for c in _CORNERS if c in found)
            raise DataError(
                f"the bndbox of {what} has a coordinate that is no number: {shown}", place=place_of(box)
            ) from None
        self.columns.corners += [repr(c).encode() for c in corners]

    def _flags(self, key: tuple[str | None, ...]) -> tuple[str, str | None]:
        """(attributes, extra) as JSON of an object's pose, truncated, occluded and difficult; remembered."""
        pose, *flags = key
        values: dict[str, Any] = {} if pose is None else {"pose": pose}
        odd = {}
        for name, text in zip(_FLAGS, flags, strict=True):
            value, plain = truth(text)
            values[name] = value
            if not plain and text is not None:
                odd[name] = text
        made = dump_json(values) or "", dump_json({"voc": {"flags": odd}} if odd else {})
        if len(self.flag_texts) < 4096:
            self.flag_texts[key] = made
        return made

    def _note(self, note: str | None, element: Any, box: Any, other: list[Any]) -> str | None:
        """`extra` of an object: what is in it beyond what the model holds."""
        values = json.loads(note)["voc"] if note else {}
        if other:
            values["xml"] = _texts(other)
        if box is not None and (more := [e for e in box if e.tag not in _CORNERS]):
            values["bndbox"] = _texts(more)
        if element.attrib:
            values["tag"] = dict(element.attrib)
        return dump_json({"voc": values}) if values else None


def _texts(elements: list[Any]) -> str:
    return "\n\t\t".join(text_of(e) for e in elements)


def truth(text: str | None) -> tuple[bool, bool]:
    """(value, whether the text is a plain 0 or 1) of a flag; anything that is not clearly true is false."""
    if text == "0" or text == "1":
        return text == "1", True
    word = (text or "").strip().lower()
    if word in _TRUTH:
        return _TRUTH[word], False
    try:
        return float(word) > 0, False
    except ValueError:
        return False, False


def _with_values(text: str, actions: Any, attributes: Any) -> str:
    """The attributes with those of <actions> (booleans) and <attributes> (typed values) added."""
    values: dict[str, Any] = json.loads(text)
    if actions is not None:
        values.update({a.tag: truth(a.text)[0] for a in actions})
    if attributes is not None:
        for a in attributes.iterfind("attribute"):
            name = a.findtext("name")
            if name is None:
                raise DataError("an attribute has no name", place=place_of(a))
            values[name] = _typed(a.find("value"))
    return dump_json(values) or ""


_WORDS: Mapping[str, Any] = {"true": True, "True": True, "false": False, "False": False}


def _typed(element: Any) -> Any:
    """The value of an attribute: a boolean or number where the text is the usual one of such, else the text."""
    text = "" if element is None else element.text or ""
    kind = element.get("type") if element is not None and element.attrib else None
    if kind == "string":
        return text
    if kind == "json":
        return json.loads(text)
    if text in _WORDS:
        return _WORDS[text]
    for make, show in ((int, str), (float, repr)):
        try:
            value = make(text)
        except ValueError:
            continue
        if show(value) == text and (make is int or isfinite(value)):
            return value
    return text
