"""XML texts of a whole block at once: strings joined by Arrow over the columns of its boxes, not box by box.

What differs from row to row in other ways than its numbers (label, attributes) is made once for each
combination that occurs; rows with `extra` of this format are made one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.format import WriteContext
from rayds.formats.voc.head import DEFAULT_FOLDER, DEFAULT_SOURCE
from rayds.formats.voc.read import truth
from rayds.schema import AnnotationType, Flat, media_field, single_chunk

Ints = npt.NDArray[np.int64]

FLAGS = ("truncated", "occluded", "difficult")
_XML_NAME = re.compile(r"[A-Za-z_][\w.-]*$")
_BETWEEN = ("</xmin>\n\t\t\t<ymin>", "</ymin>\n\t\t\t<xmax>", "</xmax>\n\t\t\t<ymax>")
_CLOSE, _PART_CLOSE = "\t</object>\n", "\t\t</part>\n"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def escape(text: str) -> str:
    """Text for an XML element; characters that XML can't hold become U+FFFD."""
    if _CONTROL.search(text):
        text = _CONTROL.sub("\ufffd", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")


def escape_attribute(text: str) -> str:
    """Text for a quoted XML attribute."""
    return escape(text).replace('"', "&quot;").replace("\n", "&#10;").replace("\t", "&#9;")


def has_control(text: str) -> bool:
    """Whether the text has characters that XML can't hold."""
    return bool(_CONTROL.search(text))


@dataclass
class Objects:
    """The boxes of a block as texts: texts[i] the objects of item i; has_parts, has_actions: of item i; count: objects.

    number: {(item, group): number of the object in its item}, of those that share a group with a mask.
    """

    texts: pa.Array
    has_any: npt.NDArray[np.bool_]
    has_parts: npt.NDArray[np.bool_]
    has_actions: npt.NDArray[np.bool_]
    rows: Ints  # of the annotations, main objects only, in order
    items: Ints  # of those rows


def object_texts(view: Flat, items: int, ctx: WriteContext) -> Objects:
    """The <object> elements of all items of a block."""
    state = ctx.state
    labels = view.numpy("label", -1).astype(np.int64)
    rows = np.flatnonzero((view.type == AnnotationType.bbox) & (labels >= 0))
    held = np.array([*state["held"], False], bool)[labels[rows]]
    if not held.all():
        lost = labels[rows[~held]]
        ctx.lose(
            "bbox annotations whose label is not in the label map",
            len(lost),
            repr(state["names"][int(lost[0])]),
        )
        rows = rows[held]
    owner = _owners(view, rows, labels[rows], state["parent"])
    order = (
        np.lexsort((np.arange(len(rows)), owner != np.arange(len(rows)), owner))
        if owner is not None
        else None
    )
    if order is not None and owner is not None:
        rows, nested = rows[order], (owner != np.arange(len(owner)))[order]
    else:
        nested = np.zeros(len(rows), bool)
    _report_shared_groups(view, rows[~nested], ctx)
    texts, acted = _row_texts(view, rows, labels[rows], nested, ctx)
    item = view.item[rows]
    offsets = np.zeros(items + 1, np.int64)
    np.cumsum(np.bincount(item, minlength=items), out=offsets[1:])
    return Objects(
        _joined(texts, offsets),
        np.diff(offsets) > 0,
        np.bincount(item[nested], minlength=items) > 0,
        np.bincount(item[acted], minlength=items) > 0,
        rows[~nested],
        item[~nested],
    )


def _joined(texts: pa.Array, offsets: Ints) -> pa.Array:
    """texts[offsets[i]:offsets[i + 1]] as one text each, without a copy."""
    if not len(texts):
        return pa.repeat("", len(offsets) - 1)
    ends = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4)
    made = np.ascontiguousarray(ends[offsets])
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(made), texts.buffers()[2])


def _owners(view: Flat, rows: Ints, labels: Ints, parent: Ints) -> Ints | None:
    """The position in `rows` of the object that each box stands in: its own, or for a part that of its owner.

    None when nothing is a part.
    """
    if not (parent >= 0).any():
        return None
    group = view.numpy("group")[rows]
    wanted = np.flatnonzero((parent[labels] >= 0) & (group > 0))
    if not len(wanted):
        return None
    item = view.item[rows]
    key = list(zip(item.tolist(), group.tolist(), labels.tolist(), strict=True))
    first: dict[tuple[int, int, int], int] = {}
    for i in range(len(rows) - 1, -1, -1):
        first[key[i]] = i
    owner = np.arange(len(rows))
    for i in wanted.tolist():
        found = first.get((key[i][0], key[i][1], int(parent[labels[i]])), i)
        if parent[labels[found]] < 0 or owner[found] == found:
            owner[i] = found
    nested_owner = owner[owner] != owner  # a part of a part stands beside it
    owner[nested_owner] = owner[owner[nested_owner]]
    return owner


def _report_shared_groups(view: Flat, rows: Ints, ctx: WriteContext) -> None:
    group = view.numpy("group")[rows].astype(np.uint64)
    tied = group > 0
    key = view.item[rows][tied].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + group[tied]
    more = len(key) - len(np.unique(key))
    ctx.lose("bbox annotations that share a group", more, "each becomes an object of its own")


def _row_texts(
    view: Flat, rows: Ints, labels: Ints, nested: npt.NDArray[np.bool_], ctx: WriteContext
) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """(the text of every box, whether it has actions)."""
    if not len(rows):
        return pa.array([], pa.string()), np.zeros(0, bool)
    corners = corner_texts(view, rows)
    attributes = view.column("attributes").take(pa.array(rows)).dictionary_encode()
    codes = attributes.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    span = len(attributes.dictionary) + 1
    kinds, kind = np.unique((labels * span + codes) * 2 + nested, return_inverse=True)
    values = [None, *attributes.dictionary.to_pylist()]
    maker = ObjectMaker(ctx)
    made = [maker.make(int(k // 2 // span), values[int(k // 2 % span)], bool(k % 2), {}) for k in kinds]
    heads, tails, acted = (list(column) for column in zip(*made, strict=True))
    head, tail = (
        pa.array(heads, pa.string()).take(pa.array(kind)),
        pa.array(tails, pa.string()).take(pa.array(kind)),
    )
    has_actions = np.array(acted, bool)[kind]
    own = _own_extra(view.column("extra").take(pa.array(rows)))
    if own is not None:
        changed = {
            i: maker.make(int(labels[i]), values[codes[i]], bool(nested[i]), extra)
            for i, extra in own.items()
        }
        mask = np.zeros(len(rows), bool)
        mask[list(changed)] = True
        head = pc.replace_with_mask(
            head, pa.array(mask), pa.array([v[0] for v in changed.values()], pa.string())
        )
        tail = pc.replace_with_mask(
            tail, pa.array(mask), pa.array([v[1] for v in changed.values()], pa.string())
        )
    maker.report()
    close: Any = _CLOSE
    if nested.any():
        last = np.append(~nested[1:], True)  # the next row is an object of its own
        ends = ["", _CLOSE, _PART_CLOSE, _PART_CLOSE + _CLOSE]
        close = pa.array(ends, pa.string()).take(pa.array(nested * 2 + last))
    pieces = [
        head,
        corners[0],
        _BETWEEN[0],
        corners[1],
        _BETWEEN[1],
        corners[2],
        _BETWEEN[2],
        corners[3],
        tail,
        close,
        "",
    ]
    return pc.binary_join_element_wise(*pieces), has_actions


def corner_texts(view: Flat, rows: Ints) -> list[pa.Array]:
    """xmin, ymin, xmax, ymax of boxes as the shortest texts that give the same numbers."""
    points = view.column("points")
    start = points.offsets.to_numpy()[rows].astype(np.int64)
    numbers = points.values.to_numpy(zero_copy_only=False)
    x, y, w, h = (numbers[start + i] for i in range(4))
    return [pa.array(c).cast(pa.string()) for c in (x, y, x + w, y + h)]


def _own_extra(column: pa.Array) -> dict[int, dict[str, Any]] | None:
    """{row: what `extra` says of this format}; None when no row has any."""
    if column.null_count == len(column):
        return None
    mine = pc.fill_null(pc.match_substring(column, '"voc":'), False)
    found = np.flatnonzero(mine.to_numpy(zero_copy_only=False))
    texts = column.take(pa.array(found)).to_pylist()
    made = {int(i): json.loads(t).get("voc") for i, t in zip(found, texts, strict=True)}
    return {i: v for i, v in made.items() if isinstance(v, dict) and v} or None


class ObjectMaker:
    """Makes what stands before and after the numbers of an <object> or <part>."""

    def __init__(self, ctx: WriteContext) -> None:
        self.ctx, self.state = ctx, ctx.state
        self.allow = ctx.options.allow_attributes
        self.controls = 0

    def make(
        self, label: int, attributes: str | None, nested: bool, extra: Mapping[str, Any]
    ) -> tuple[str, str, bool]:
        """(text up to the first number, text after the last, whether it has actions)."""
        values: dict[str, Any] = json.loads(attributes) if attributes else {}
        actions = self.state["actions"][label]
        acts = {k: v for k, v in values.items() if k in actions and _is_bool(v) and _XML_NAME.match(k)}
        name = self._escape(self.state["names"][label])
        more = "".join(f"\t\t\t{x}\n" for x in [extra.get("bndbox")] if x)
        after = f"</ymax>\n{more}\t\t</bndbox>\n"
        own = f"\t\t{extra['xml']}\n" if extra.get("xml") else ""
        if nested:
            rest = {k: v for k, v in values.items() if self.allow}
            head = f"\t\t<part>\n\t\t\t<name>{name}</name>\n\t\t<bndbox>\n\t\t\t<xmin>"
            return head, after + self._attributes(rest) + own, False
        tag = "".join(f' {k}="{escape_attribute(str(v))}"' for k, v in (extra.get("tag") or {}).items())
        pose = (
            f"\t\t<pose>{self._escape(str(values['pose']))}</pose>\n"
            if values.get("pose") is not None
            else ""
        )
        flags = "".join(f"\t\t<{f}>{self._flag(f, values.get(f), extra)}</{f}>\n" for f in FLAGS)
        head = f"\t<object{tag}>\n\t\t<name>{name}</name>\n{pose}{flags}\t\t<bndbox>\n\t\t\t<xmin>"
        rest = {k: v for k, v in values.items() if k not in acts and not _native(k, v)} if self.allow else {}
        done = "".join(f"\t\t\t<{k}>{int(v)}</{k}>\n" for k, v in acts.items())
        done = f"\t\t<actions>\n{done}\t\t</actions>\n" if acts else ""
        return head, after + done + self._attributes(rest) + own, bool(acts)

    def _attributes(self, values: Mapping[str, Any]) -> str:
        if not values:
            return ""
        each = "".join(
            f"\t\t\t<attribute>\n\t\t\t\t<name>{self._escape(k)}</name>\n\t\t\t\t{self._value(v)}\n\t\t\t</attribute>\n"
            for k, v in values.items()
        )
        return f"\t\t<attributes>\n{each}\t\t</attributes>\n"

    def _flag(self, name: str, value: Any, extra: Mapping[str, Any]) -> str:
        text = (extra.get("flags") or {}).get(name)
        if isinstance(text, str) and truth(text)[0] == bool(value):
            return self._escape(text)  # as the source had it: "Unspecified", "true", ...
        return "1" if _true(value) else "0"

    def _value(self, value: Any) -> str:
        if isinstance(value, bool):
            return f"<value>{str(value).lower()}</value>"
        if isinstance(value, (int, float)):
            return f"<value>{value!r}</value>"
        if isinstance(value, str):
            kind = ' type="string"' if _looks_typed(value) else ""
            return f"<value{kind}>{self._escape(value)}</value>"
        return f'<value type="json">{self._escape(json.dumps(value, ensure_ascii=False))}</value>'

    def _escape(self, text: str) -> str:
        self.controls += has_control(text)
        return escape(text)

    def report(self) -> None:
        """Tell of characters that could not be written."""
        self.ctx.lose(
            "texts with control characters, which XML can't hold", self.controls, "written as U+FFFD"
        )


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _true(value: Any) -> bool:
    return truth(value)[0] if isinstance(value, str) else bool(value)


def _native(name: str, value: Any) -> bool:
    """Whether an attribute is wholly said by its own element; 0.35 of truncated is not."""
    if name == "pose":
        return isinstance(value, str)
    return name in FLAGS and (isinstance(value, bool) or value is None)


def _looks_typed(text: str) -> bool:
    """Whether a reader would take a text for a boolean or a number."""
    if text.lower() in ("true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def xml_texts(
    block: pa.Table, names: pa.Array, objects: Objects, segmented: npt.NDArray[np.bool_], ctx: WriteContext
) -> pa.Array:
    """The annotation files of all items of a block; names: file names of the images."""
    escaped = names
    if pc.any(pc.match_substring_regex(names, "[&<>]")).as_py():
        escaped = pa.array([escape(n) for n in names.to_pylist()], pa.string())
    drawn = pa.array(np.where(segmented, "1", "0"))
    source = f"</filename>\n\t{DEFAULT_SOURCE}\n"
    opening = f"<annotation>\n\t<folder>{DEFAULT_FOLDER}</folder>\n\t<filename>"
    sizes = size_texts(block)
    start = pc.binary_join_element_wise(
        opening, escaped, source, sizes, "\t<segmented>", drawn, "</segmented>\n", ""
    )
    own = _own_extra(single_chunk(block, "extra"))
    if own is not None:
        mask = np.zeros(block.num_rows, bool)
        mask[list(own)] = True
        at = pa.array(list(own))
        rows = zip(
            own.values(),
            escaped.take(at).to_pylist(),
            sizes.take(at).to_pylist(),
            drawn.take(at).to_pylist(),
            strict=True,
        )
        changed = [_start(extra, name, size, flag, ctx) for extra, name, size, flag in rows]
        start = pc.replace_with_mask(start, pa.array(mask), pa.array(changed, pa.string()))
    return pc.binary_join_element_wise(start, objects.texts, "</annotation>\n", "")


def size_texts(block: pa.Table) -> pa.Array:
    """The <size> elements; "" where the size is not known."""
    width, height = (media_field(block, n).cast(pa.string()) for n in ("width", "height"))
    made = pc.binary_join_element_wise(
        "\t<size>\n\t\t<width>",
        width,
        "</width>\n\t\t<height>",
        height,
        "</height>\n\t\t<depth>3</depth>\n\t</size>\n",
        "",
    )
    return pc.fill_null(made, "")


def _start(extra: Mapping[str, Any], name: str, size: str, segmented: str, ctx: WriteContext) -> str:
    """The text before the objects, with what the source's file had beside the usual elements."""
    tag = "".join(f' {k}="{escape_attribute(str(v))}"' for k, v in (extra.get("root") or {}).items())
    folder = escape(str(extra.get("folder", DEFAULT_FOLDER)))
    if "filename" in extra and not ctx.options.save_media:
        name = escape(str(extra["filename"]))
    xml = str(extra.get("xml", ""))
    source = "" if re.search(r"<source[\s>/]", xml) else f"\t{DEFAULT_SOURCE}\n"
    xml = f"\t{xml}\n" if xml else ""
    if "depth" in extra:
        size = size.replace("<depth>3<", f"<depth>{escape(str(extra['depth']))}<")
    segmented = escape(str(extra.get("segmented", segmented)))
    return (
        f"<annotation{tag}>\n\t<folder>{folder}</folder>\n\t<filename>{name}</filename>\n{source}{xml}{size}"
        f"\t<segmented>{segmented}</segmented>\n"
    )
