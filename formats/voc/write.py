"""Writing of VOC blocks: XML files and masks, and the fragments that `finish` joins into the ImageSets lists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.categories import LabelCategories
from rayds.errors import DataError, UsageError
from rayds.format import WriteContext
from rayds.formats._meta import write_meta
from rayds.formats.voc.labels import (
    BACKGROUND,
    Entry,
    colors_of,
    format_label_map,
    from_categories,
    parse_label_map,
    to_categories,
    voc_entries,
)
from rayds.formats.voc.layout import ACTION, CLASS_DIR, IMAGE_SETS, LAYOUT, MAIN, OBJECT_DIR, SEGMENTATION
from rayds.formats.voc.masks import MAX_INSTANCE, MaskPainter
from rayds.formats.voc.objects import Objects, object_texts, xml_texts
from rayds.formats.voc.tasks import TASKS
from rayds.schema import AnnotationType, Flat, flat, single_chunk
from rayds.sql import joined_bytes, query, text_column
from rayds.storage import read_url

FRAGMENTS = ".fragments"
MAX_CLASS_LISTS = 256  # with more labels, class lists name only the images that have the label
_XML_TASKS = frozenset({"detection", "action_classification", "person_layout"})
_BAD_ID = r"(^|[/\\])\.\.([/\\]|$)|^/|[\x00-\x1f\x7f]|^$"

Bools = npt.NDArray[np.bool_]


def prepare_state(ctx: WriteContext, tasks: tuple[str, ...]) -> dict[str, Any]:
    """What every write call needs of options and categories. Raises UsageError for a bad label map."""
    entries = _entries(ctx)
    if not ctx.options.apply_colormap and BACKGROUND not in {e.name for e in entries}:
        entries.insert(0, Entry(BACKGROUND, (0, 0, 0)))  # index 0 says "no label" in a grayscale mask
    known = to_categories(entries).labels
    labels = ctx.categories.labels
    slots = {e.name: i for i, e in enumerate(entries)}
    names = labels.names()
    return {
        "tasks": tasks,
        "entries": entries,
        "names": names,
        "held": np.array([n in known for n in names], bool),
        "slots": np.array([slots.get(n, -1) for n in names], np.int64),
        "parent": np.array([_index(labels, known, n) for n in names], np.int64),
        "actions": [_actions(known, n) | _actions(labels, n) for n in names],
    }


def _entries(ctx: WriteContext) -> list[Entry]:
    choice = ctx.options.label_map
    if choice == "source":
        return from_categories(ctx.categories)
    if choice == "voc":
        return voc_entries()
    try:
        text = read_url(choice).decode("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as e:
        raise UsageError(
            f"--label-map: {choice!r} is neither 'source' nor 'voc' nor a readable text file"
        ) from e
    entries = parse_label_map(text, choice)
    if not entries:
        raise UsageError(f"--label-map: {choice!r} has no labels")
    return [Entry(e.name, c, e.parts, e.actions) for e, c in zip(entries, colors_of(entries), strict=True)]


def _index(labels: LabelCategories, known: LabelCategories, name: str) -> int:
    """The source's index of the label that a label is a part of; -1 for none."""
    parent = known[known.index(name)].parent if name in known else ""
    return labels.index(parent) if parent in labels else -1


def _actions(labels: LabelCategories, name: str) -> set[str]:
    found = labels.find(name)[1]
    return set() if found is None else set(found.attributes)


def write_block(block: pa.Table, file_names: pa.Array, index: int, ctx: WriteContext) -> dict[str, Any]:
    """Write the files of a block; returns {(folder, subset): ...} of the list fragments written."""
    usable = _usable(block, ctx)
    if not usable.all():
        block, file_names = block.filter(pa.array(usable)), file_names.filter(pa.array(usable))
    tasks = set(ctx.state["tasks"])
    view = flat(block)
    n = block.num_rows
    ids = single_chunk(block, "id")
    lists = listed(block)
    drawn = labelled = np.zeros(n, bool)
    objects = None
    if tasks & _XML_TASKS:
        objects = object_texts(view, n, ctx)
    if "segmentation" in tasks:
        drawn = write_masks(view, ids, objects, index, ctx)
    if "classification" in tasks:
        labelled = np.bincount(view.item[view.type == AnnotationType.label], minlength=n) > 0
    members = _members(lists, drawn, labelled, objects, ctx)
    if objects is not None:
        wanted = members["Main"] | members["Layout"] | members["Action"] if lists.any() else np.ones(n, bool)
        _write_xml(block, file_names, objects, drawn, wanted, index, ctx)
    return _write_lists(block, view, members, index, ctx)


def _usable(block: pa.Table, ctx: WriteContext) -> Bools:
    """Which items can be written; the others are reported."""
    ids, subsets = single_chunk(block, "id"), single_chunk(block, "subset")
    view = flat(block)
    bad: dict[int, str] = {}
    for i in np.flatnonzero(pc.match_substring_regex(ids, _BAD_ID).to_numpy(zero_copy_only=False)):
        bad[int(i)] = "the id can't be the name of a file"
    wrong = pc.match_substring_regex(subsets, r"[/\\\x00-\x1f]|^$").to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(wrong):
        bad[int(i)] = f"the subset {subsets[int(i)].as_py()!r} can't be the name of a file"
    boxes = view.type == AnnotationType.bbox
    finite = np.isfinite(view.column("points").values.to_numpy(zero_copy_only=False))
    if not finite.all():
        offsets = view.column("points").offsets.to_numpy()
        sums = np.concatenate([[0], np.cumsum(~finite)])
        odd = boxes & (sums[offsets[1:]] > sums[offsets[:-1]])
        for row in np.unique(view.item[odd]).tolist():
            bad.setdefault(row, "a box has a coordinate that is no finite number")
    for row, shapes in _mixed_sizes(view).items():
        bad.setdefault(row, f"the masks of an item have different sizes: {shapes}")
    for number, reason in sorted(bad.items()):
        ctx.bad(
            DataError(reason, item=ids[number].as_py(), remedy="Rename or repair the item"),
            subsets[number].as_py(),
        )
    keep = np.ones(block.num_rows, bool)
    keep[list(bad)] = False
    return keep


def _mixed_sizes(view: Flat) -> dict[int, str]:
    """The items whose masks have different sizes."""
    rows = np.flatnonzero(view.type == AnnotationType.mask)
    if not len(rows):
        return {}
    masks = view.column("mask").take(pa.array(rows))
    sizes = np.stack(
        [pc.struct_field(masks, n).to_numpy(zero_copy_only=False) for n in ("height", "width")], 1
    )
    item = view.item[rows]
    first = np.searchsorted(item, item)  # the first mask of the item of each
    odd = np.flatnonzero((sizes != sizes[first]).any(axis=1))
    shown = {int(item[k]): (sizes[first[k]], sizes[k]) for k in odd[::-1]}
    return {i: f"{a[1]}x{a[0]} and {b[1]}x{b[0]}" for i, (a, b) in shown.items()}


def listed(block: pa.Table) -> npt.NDArray[np.int64]:
    """Which lists named each item in its source (MAIN, ...), where that is not what its annotations say; else 0."""
    extra = single_chunk(block, "extra")
    made = np.zeros(block.num_rows, np.int64)
    has = pc.fill_null(pc.match_substring(extra, '"lists":'), False)
    for i in np.flatnonzero(has.to_numpy(zero_copy_only=False)):
        own = json.loads(extra[int(i)].as_py()).get("voc")
        flags = own.get("lists") if isinstance(own, dict) else None
        made[i] = flags if isinstance(flags, int) else 0
    return made


def _members(
    lists: npt.NDArray[np.int64], drawn: Bools, labelled: Bools, objects: Objects | None, ctx: WriteContext
) -> dict[str, Bools]:
    """Which items stand in the lists of each folder; every item stands in one at least."""
    none = np.zeros(len(lists), bool)
    boxes, parts, acts = (
        (objects.has_any, objects.has_parts, objects.has_actions) if objects else (none, none, none)
    )
    folders = list(dict.fromkeys(TASKS[t] for t in TASKS if t in ctx.state["tasks"]))
    has = {
        "Main": (lists == 0) | (lists & MAIN > 0) | labelled | boxes,
        "Layout": (lists & LAYOUT > 0) | parts,
        "Action": (lists & ACTION > 0) | acts,
        "Segmentation": (lists & SEGMENTATION > 0) | drawn,
    }
    anywhere = np.any([has[f] for f in folders], axis=0)
    has[folders[0]] = has[folders[0]] | ~anywhere
    return {f: has[f] if f in folders else none for f in has}


def _write_xml(
    block: pa.Table,
    names: pa.Array,
    objects: Objects,
    drawn: Bools,
    wanted: Bools,
    index: int,
    ctx: WriteContext,
) -> None:
    texts = xml_texts(block, names, objects, drawn, ctx)
    ids = single_chunk(block, "id")
    if not wanted.all():
        ids, texts = ids.filter(pa.array(wanted)), texts.filter(pa.array(wanted))
    if not len(ids):
        return
    data = memoryview(texts.buffers()[2])
    ends = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4).tolist()
    files = pc.binary_join_element_wise(ids, ".xml", "").to_pylist()
    ctx.out.write_files(
        "Annotations", [(f, data[a:b]) for f, a, b in zip(files, ends[:-1], ends[1:], strict=True)]
    )
    _write_hashes("xml", index, ids, texts, ctx)


def _write_hashes(kind: str, index: int, ids: pa.Array, texts: pa.Array, ctx: WriteContext) -> None:
    """Hashes of ids and contents: they tell in `finish` whether a file was written twice, differently."""
    made = query("SELECT hash(id) AS id, hash(text) AS text FROM t", t=pa.table({"id": ids, "text": texts}))
    pairs = np.stack([text_column(made, n).to_numpy() for n in ("id", "text")], axis=1)
    ctx.out.write_files(FRAGMENTS, {f"{index}.{kind}": pairs.tobytes()})


def write_masks(view: Flat, ids: pa.Array, objects: Objects | None, index: int, ctx: WriteContext) -> Bools:
    """Draw the masks of every item that has any; returns which items those are."""
    slots = ctx.state["slots"]
    labels = view.numpy("label", -1)
    rows = np.flatnonzero((view.type == AnnotationType.mask) & (labels >= 0))
    drawn = np.zeros(len(ids), bool)
    if not len(rows):
        return drawn
    held = slots[labels[rows]] >= 0
    lost = labels[rows[~held]]
    ctx.lose("mask annotations whose label is not in the label map", len(lost), _first_name(lost, ctx))
    rows = rows[held]
    painter = MaskPainter(colors_of(ctx.state["entries"]), ctx.options.apply_colormap)
    group, order = view.numpy("group"), view.numpy("z_order")
    attributes = view.column("attributes").take(pa.array(rows))
    ctx.lose("attributes of masks", len(rows) - attributes.null_count, "PNG masks have none")
    numbers = _object_numbers(view, objects)
    files: list[tuple[str, bytes]] = []
    for item in np.unique(view.item[rows]):
        own = rows[view.item[rows] == item] if len(rows) < 64 else _range(rows, view, int(item))
        own = own[np.argsort(order[own], kind="stable")]
        name = ids[int(item)].as_py()
        masks = view.column("mask").take(pa.array(own)).to_pylist()
        instances = _instances(group[own], slots[labels[own]], numbers.get(int(item), {}), name, ctx)
        made = _paint(painter, masks, slots[labels[own]].tolist(), instances)
        drawn[item] = True
        ctx.lose("masks that others cover in part", made[2], f"item {name!r}")
        files.append((f"{CLASS_DIR}/{name}.png", made[0]))
        if made[1] is not None:
            files.append((f"{OBJECT_DIR}/{name}.png", made[1]))
    ctx.out.write_files("", files)
    _write_hashes(
        "png",
        index,
        pa.array([f for f, _ in files], pa.string()),
        pa.array([d for _, d in files], pa.binary()),
        ctx,
    )
    return drawn


def _first_name(labels: npt.NDArray[Any], ctx: WriteContext) -> str:
    return repr(ctx.state["names"][int(labels[0])]) if len(labels) else ""


def _range(rows: npt.NDArray[np.int64], view: Flat, item: int) -> npt.NDArray[np.int64]:
    a, b = np.searchsorted(rows, [view.offsets[item], view.offsets[item + 1]])
    return rows[a:b]


def _object_numbers(view: Flat, objects: Objects | None) -> dict[int, dict[int, int]]:
    """{item: {group: number of the object in its file}}; 0: the number of objects."""
    made: dict[int, dict[int, int]] = {}
    if objects is None:
        return made
    for item, group in zip(objects.items.tolist(), view.numpy("group")[objects.rows].tolist(), strict=True):
        own = made.setdefault(item, {0: 0})
        own[0] += 1
        if group:
            own.setdefault(group, own[0])
    return made


def _instances(
    groups: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    numbers: Mapping[int, int],
    item: str,
    ctx: WriteContext,
) -> list[int]:
    """The instance index of every mask: that of the object with its group, else its group, else the next free one.

    Masks without group are class masks (0), unless there are several of a label.
    """
    alone = labels[groups == 0]
    plain = len(np.unique(alone)) == len(alone)
    made: list[int] = []
    given: dict[int, int] = {}
    boxes = numbers.get(0, 0)
    used = set(range(boxes + 1))
    keep = {g for g in groups.tolist() if boxes < g <= MAX_INSTANCE}
    for g in groups.tolist():
        if g == 0 and plain:
            made.append(0)
            continue
        number = given.get(g) if g else None
        if number is None:
            number = numbers.get(g) if g else None
            if number is None and g in keep:
                number = g
            if number is None:
                number = next(
                    i for i in range(1, len(used) + len(keep) + 2) if i not in used and i not in keep
                )
            used.add(number)
            given[g] = number
        made.append(number)
    over = sum(i > MAX_INSTANCE for i in made)
    ctx.lose(
        f"instances beyond {MAX_INSTANCE} of an image, as VOC's masks have 8 bits", over, f"item {item!r}"
    )
    return [i if i <= MAX_INSTANCE else 0 for i in made]


def _paint(
    painter: MaskPainter, masks: list[dict[str, Any]], labels: list[int], instances: list[int]
) -> tuple[bytes, bytes | None, int]:
    from rayds.annotations import decode_rle

    shape = masks[0]["height"], masks[0]["width"]
    decoded = [decode_rle({"size": [m["height"], m["width"]], "counts": m["counts"]}) for m in masks]
    return painter.paint(list(zip(decoded, labels, instances, strict=True)), shape)


def quoted(ids: pa.Array) -> pa.Array:
    """Ids as lists hold them: in quotes where they would not be read back as they are."""
    odd = pc.match_substring_regex(ids, r'[\s"\\]|^#')
    if not pc.any(odd).as_py():
        return ids
    return pc.if_else(
        odd, pc.binary_join_element_wise('"', pc.replace_substring(ids, '"', '\\"'), '"', ""), ids
    )


def _write_lists(
    block: pa.Table, view: Flat, members: Mapping[str, Bools], index: int, ctx: WriteContext
) -> dict[str, Any]:
    """Write the block's part of every list; returns what was written."""
    names = quoted(single_chunk(block, "id"))
    encoded = single_chunk(block, "subset").dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    files: dict[str, Any] = {}
    lists, classes = [], []
    values = _class_values(view, block.num_rows, ctx) if "classification" in ctx.state["tasks"] else {}
    for code, subset in enumerate(encoded.dictionary.to_pylist()):
        inside = codes == code
        for folder, wanted in members.items():
            if folder not in {TASKS[t] for t in ctx.state["tasks"]}:
                continue
            chosen = names.filter(pa.array(inside & wanted))
            file = f"{index}-{folder}-{code}.txt" if len(chosen) else ""
            if file:
                files[file] = joined_bytes(pc.binary_join_element_wise(chosen, "\n", ""))
            lists.append((folder, subset, file))
        classes += [
            (subset, slot, f)
            for slot, f in _class_fragments(names, inside, values, f"{index}-{code}", files, ctx)
        ]
    ctx.out.write_files(FRAGMENTS, files)
    return {"index": index, "lists": lists, "classes": classes}


def _class_values(view: Flat, items: int, ctx: WriteContext) -> dict[int, npt.NDArray[np.int8]]:
    """{label map position: 1, 0 (difficult) or -1 of every item}; -2 for items without any label, under -1."""
    labels = view.numpy("label", -1)
    rows = np.flatnonzero((view.type == AnnotationType.label) & (labels >= 0))
    if not len(rows):
        return {}
    slots = ctx.state["slots"][labels[rows]]
    lost = labels[rows[slots < 0]]
    ctx.lose("label annotations whose label is not in the label map", len(lost), _first_name(lost, ctx))
    rows, slots = rows[slots >= 0], slots[slots >= 0]
    difficult = _difficult(view.column("attributes").take(pa.array(rows)), ctx)
    made = {-1: np.full(items, -2, np.int8)}
    made[-1][view.item[rows]] = -1
    for slot in np.unique(slots):
        values = made[-1].copy()
        values[view.item[rows[(slots == slot) & difficult]]] = 0
        values[view.item[rows[(slots == slot) & ~difficult]]] = 1
        made[int(slot)] = values
    return made


def _difficult(attributes: pa.Array, ctx: WriteContext) -> Bools:
    if attributes.null_count == len(attributes):
        return np.zeros(len(attributes), bool)
    encoded = attributes.dictionary_encode()
    values = [json.loads(t) for t in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    odd = np.array(
        [*(bool({k for k, v in value.items() if v is not False} - {"difficult"}) for value in values), False]
    )
    if n := int(odd[codes].sum()):
        ctx.lose("attributes of label annotations", n, "class lists hold `difficult` only")
    held: Bools = np.array([*(value.get("difficult") is True for value in values), False], bool)[codes]
    return held


def _class_fragments(
    names: pa.Array,
    inside: Bools,
    values: Mapping[int, npt.NDArray[np.int8]],
    prefix: str,
    files: dict[str, Any],
    ctx: WriteContext,
) -> list[tuple[int, str]]:
    """[(label map position, fragment)] of the class lists; position -1: that of all labels that no item has."""
    made = []
    all_lines = len(ctx.state["entries"]) <= MAX_CLASS_LISTS
    for slot, column in values.items():
        rows = inside & (column > (-2 if all_lines else -1))
        if not rows.any() or (slot >= 0 and not (column[inside] >= 0).any()):
            continue
        texts = pa.array(["-1\n", " 0\n", " 1\n"]).take(pa.array(column[rows].astype(np.int64) + 1))
        file = f"{prefix}-class{slot}.txt"
        files[file] = joined_bytes(pc.binary_join_element_wise(names.filter(pa.array(rows)), texts, " "))
        made.append((slot, file))
    return made


def finish_dataset(fragments: Sequence[Mapping[str, Any]], ctx: WriteContext) -> None:
    """Join the fragments of the lists, in item order; write the label map. Raises DataError for clashing ids."""
    out = ctx.out
    numbers = [fragment["index"] for fragment in fragments]
    _check_clashes("xml", "annotation file", numbers, ctx)
    _check_clashes("png", "mask", numbers, ctx)
    parts: dict[tuple[str, str], list[str]] = {}
    for fragment in fragments:
        for folder, subset, file in fragment["lists"]:
            found = parts.setdefault((folder, subset), [])
            if file:
                found.append(f"{FRAGMENTS}/{file}")
    for (folder, subset), files in parts.items():
        if files or ctx.options.keep_empty:
            out.concatenate(files, f"{IMAGE_SETS}/{folder}/{subset}.txt")
    _finish_classes(fragments, ctx)
    entries = ctx.state["entries"]
    out.write_text("labelmap.txt", format_label_map(entries))
    if ctx.options.save_dataset_meta:
        write_meta(out, to_categories(entries))
    out.remove(FRAGMENTS)


def _check_clashes(kind: str, what: str, numbers: Sequence[int], ctx: WriteContext) -> None:
    names = [f"{FRAGMENTS}/{i}.{kind}" for i in numbers]
    found = [
        np.frombuffer(d, np.uint64).reshape(-1, 2) for d in ctx.out.read_many(names, missing_ok=True) if d
    ]
    if not found:
        return
    pairs = np.concatenate(found)
    if len(np.unique(pairs[:, 0])) == len(pairs):
        return
    clashing = len(np.unique(pairs, axis=0)) - len(np.unique(pairs[:, 0]))
    if clashing:
        raise DataError(
            f"{clashing:,} items have the id of another item in another subset, but a different {what}: VOC has one for each id",
            remedy="Give the items ids of their own (transform -t rename), or export the subsets one by one",
        )


def _finish_classes(fragments: Sequence[Mapping[str, Any]], ctx: WriteContext) -> None:
    blocks: dict[str, list[dict[int, str]]] = {}
    for fragment in fragments:
        own: dict[str, dict[int, str]] = {}
        for subset, slot, file in fragment["classes"]:
            own.setdefault(subset, {})[slot] = f"{FRAGMENTS}/{file}"
        for subset, files in own.items():
            blocks.setdefault(subset, []).append(files)
    for subset, found in blocks.items():
        for slot, entry in enumerate(ctx.state["entries"]):
            parts = [p for files in found if (p := files.get(slot, files.get(-1, "")))]
            if parts and (entry.name != BACKGROUND or any(slot in files for files in found)):
                label = (
                    quote(entry.name, safe=" ,;+()&'!@#$=[]{}^~`")
                    if "/" in entry.name or "%" in entry.name
                    else entry.name
                )
                ctx.out.concatenate(parts, f"{IMAGE_SETS}/Main/{label}_{subset}.txt")
