"""Writing COCO: records of a block printed as columns into fragment files, joined in the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.annotations import rle_runs
from rayds.engine.base import Position
from rayds.errors import DataError
from rayds.format import Format, WriteContext
from rayds.formats._meta import write_meta
from rayds.formats.coco.ids import Ids, image_ids
from rayds.formats.coco.layout import TASKS, category_entries, category_ids
from rayds.formats.coco.records import (
    Grouped,
    areas,
    boxes,
    extra_members,
    first_of,
    group_records,
    identified,
    lead_texts,
    mask_rles,
    other_attributes,
    own_members,
    polygon_lists,
    split_attributes,
)
from rayds.formats.coco.tasks import kinds_of, pick_tasks
from rayds.item import dump_json
from rayds.json_text import integer_texts, joined, list_texts, member, string_texts
from rayds.schema import AnnotationType as T
from rayds.schema import Flat, flat, media_field, single_chunk
from rayds.sql import joined_bytes, query, text_column

FRAGMENTS = ".fragments"
SEPARATOR = b",\n"
_DEFAULT_TOP: dict[str, Any] = {
    "info": {"description": "", "url": "", "version": "", "year": 0, "contributor": "", "date_created": ""},
    "licenses": [],
}

Bools = npt.NDArray[np.bool_]


def prepare(fmt: Format, ctx: WriteContext) -> None:
    """Check the options, decide on ids as far as the source's format tells."""
    fmt.capabilities(ctx.options)
    keep = ctx.ids == "unique" and not ctx.options.reindex
    ctx.state["ids"] = Ids(keep, keep, keep)
    ctx.state["categories"] = category_ids(ctx.categories)


def count(block: pa.Table) -> dict[str, int]:
    """Images and records of a block, by subset: what running ids advance by."""
    found = group_records(flat(block), list(T))
    subsets = single_chunk(block, "subset").to_numpy(zero_copy_only=False)
    owners = subsets[found.view.item[found.first]]
    out = {f"images/{v['values']}": v["counts"] for v in pc.value_counts(pa.array(subsets)).to_pylist()}
    for v in pc.value_counts(pa.array(owners, pa.string())).to_pylist():
        out[f"annotations/{v['values']}"] = v["counts"]
    return out


@dataclass
class Block:
    """What the tasks of one block share. owner: subset of each item; image: image id of each item."""

    found: Grouped
    owner: npt.NDArray[np.object_]
    image: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    numbered: Bools  # whether the id of each record is good
    extra: pa.Table
    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]


def write(
    fmt: Any, block: pa.Table, position: Position, ctx: WriteContext
) -> dict[str, dict[str, list[str]]]:
    """Write a block's fragments; returns {subset: {task or "images": [fragment file]}}."""
    made: dict[str, dict[str, list[str]]] = {}
    shared = share_block(block, position, ctx)
    names = fmt.file_names(block, ctx)
    for subset in dict.fromkeys(shared.owner.tolist()):
        items = np.flatnonzero(shared.owner == subset)
        stem = f"{FRAGMENTS}/{subset}/{position.index:08d}"
        made[subset] = {"images": [f"{stem}-images.json"]}
        texts = _image_texts(block, names, shared.image, items, ctx)
        ctx.out.write_bytes(f"{stem}-images.json", body_of(texts))
        for task, records in _tasks(fmt, shared, subset, ctx).items():
            if task == "panoptic":
                from rayds.formats.coco.drawing import draw_panoptic

                texts = draw_panoptic(block, shared, records, subset, ctx)
            else:
                if not shared.numbered[records].all():
                    raise _no_id()
                texts = _record_texts(shared, records, task, ctx)
            if len(texts):
                ctx.out.write_bytes(f"{stem}-{task}.json", body_of(texts))
                made[subset][task] = [f"{stem}-{task}.json"]
    return made


def body_of(texts: pa.Array) -> memoryview:
    """The texts, which all end with the separator, without the last one."""
    body = joined_bytes(texts)
    return body[: len(body) - len(SEPARATOR)] if len(body) else body


def share_block(block: pa.Table, position: Position, ctx: WriteContext) -> Block:
    found = group_records(flat(block), list(T))
    ctx.lose("annotations tied to others by group (a COCO annotation has one box)", found.split)
    owner = single_chunk(block, "subset").to_numpy(zero_copy_only=False)
    ids: Ids = ctx.state["ids"]
    images = image_ids(block)
    running = _running(owner, "images", position, ids.next_image)
    image = images.fill_null(-1).to_numpy(zero_copy_only=False) if ids.keep_images else running
    image = (
        np.where(images.is_null().to_numpy(zero_copy_only=False), running, image)
        if ids.keep_images
        else running
    )
    record_owner = owner[found.view.item[found.first]]
    numbers = _running(record_owner, "annotations", position, ids.next_annotation)
    own, has = identified(found)
    if ids.keep_annotations:
        numbers = np.where(has, own, numbers)
    if ids.complete and images.null_count:
        raise _no_id()
    extra = extra_members(lead_texts(found)[1])

    def size(name: str) -> npt.NDArray[np.int64]:
        return np.asarray(media_field(block, name).fill_null(0), np.int64)

    return Block(found, owner, image, numbers, has | (not ids.complete), extra, size("width"), size("height"))


def _no_id() -> DataError:
    return DataError(
        "an image or annotation has no id although the others of the source have",
        remedy="Write with --reindex true",
    )


def _running(owner: Any, what: str, position: Position, start: int) -> npt.NDArray[np.int64]:
    """Consecutive numbers within each subset, going on from those of earlier blocks."""
    out = np.zeros(len(owner), np.int64)
    for subset in dict.fromkeys(owner.tolist()):
        rows = np.flatnonzero(owner == subset)
        out[rows] = start + position.offsets.get(f"{what}/{subset}", 0) + np.arange(len(rows))
    return out


def _image_texts(
    block: pa.Table,
    names: pa.Array,
    image: npt.NDArray[np.int64],
    items: npt.NDArray[np.int64],
    ctx: WriteContext,
) -> pa.Array:
    rows = pa.array(items)
    width, height = (media_field(block, name).take(rows).cast(pa.string()) for name in ("width", "height"))
    parts = ['{"id":', integer_texts(image[items]), ',"file_name":', string_texts(names.take(rows))]
    parts += [member(',"width":', width), member(',"height":', height)]
    if ctx.options.allow_attributes:
        others = other_attributes(single_chunk(block, "attributes").take(rows))
        parts.append(member(',"attributes":', others))
    parts += [member(",", own_members(single_chunk(block, "extra").take(rows))), f"}}{SEPARATOR.decode()}"]
    return joined(parts)


def _tasks(fmt: Any, shared: Block, subset: str, ctx: WriteContext) -> dict[str, npt.NDArray[np.int64]]:
    """The records that each task's file gets."""
    found = shared.found
    mine = shared.owner[found.view.item[found.first]] == subset
    picked = pick_tasks(fmt, found, shared.extra.column("task"), ctx.options)
    used = np.zeros(len(mine), bool)
    for records in picked.values():
        used |= records
    has = kinds_of(found)
    spatial = np.zeros(len(mine), bool)
    for kind in (T.bbox, T.polygon, T.mask, T.points):
        if kind in fmt.capabilities(ctx.options).annotations:  # the others are counted by their kind
            spatial |= has[kind]
    if len(lost := np.flatnonzero(mine & spatial & ~used)):
        example = f"image {shared.image[found.view.item[found.first[lost[0]]]]}"
        ctx.lose("annotations that the chosen tasks have no place for", len(lost), example)
    return {task: np.flatnonzero(picked[task] & mine) for task in TASKS if task in picked}


def only_records(found: Grouped, records: npt.NDArray[np.int64]) -> Grouped:
    """Some records only."""
    if len(records) == len(found.first):
        return found
    chosen = np.zeros(len(found.first), bool)
    chosen[records] = True
    rows = np.flatnonzero(chosen[found.owner])
    view = Flat(found.view.rows.take(pa.array(rows)), found.view.item[rows], found.view.offsets)
    sizes = found.sizes[records]
    return Grouped(view, np.cumsum(sizes) - sizes, sizes)


def _record_texts(shared: Block, records: npt.NDArray[np.int64], task: str, ctx: WriteContext) -> pa.Array:
    found = only_records(shared.found, records)
    if not len(records):
        return pa.array([], pa.string())
    item = found.view.item[found.first]
    categories = np.array([*ctx.state["categories"], -1], np.int64)
    label = found.view.numpy("label", -1)[found.first]
    if (
        task == "person_keypoints"
    ):  # the points row has what that file said, where another one said something too
        texts, members = lead_texts(found, T.points)
        extra = extra_members(members)
    else:
        texts, extra = lead_texts(found)[0], shared.extra.take(pa.array(records))
    attributes = split_attributes(texts, bool(ctx.options.allow_attributes))
    category = pa.array(categories[label], mask=label < 0).cast(pa.string())
    parts = ['{"id":', integer_texts(shared.ids[records]), ',"image_id":', integer_texts(shared.image[item])]
    computed = []  # members that the source may have told: they stand where those stand
    if task in ("captions", "labels"):
        parts.append(member(',"category_id":', category))
        if task == "captions":
            caption = found.view.column("text").take(pa.array(first_of(found, T.caption)))
            parts += [',"caption":', string_texts(pc.fill_null(caption, ""))]
        parts.append(pc.if_else(attributes.column("crowd").combine_chunks(), ',"iscrowd":1', None))
    else:
        shapes = shape_columns(shared, found, item, extra, attributes, ctx)
        parts += [
            ',"category_id":',
            pc.fill_null(category, "null"),
            ',"segmentation":',
            shapes["segmentation"],
        ]
        parts += [',"bbox":[', shapes["bbox"], ',"iscrowd":', pc.if_else(shapes["crowd"], "1", "0")]
        computed.append(member(',"area":', shapes["area"]))
        if task == "person_keypoints":
            points = keypoint_columns(found, extra)
            parts.append(member(',"keypoints":[', points["points"]))
            computed.append(member(',"num_keypoints":', points["visible"]))
    score, rest = (attributes.column(name).combine_chunks() for name in ("score", "rest"))
    parts += [member(',"score":', score), member(',"attributes":', rest), *computed]
    parts += [member(",", extra.column("members").combine_chunks()), f"}}{SEPARATOR.decode()}"]
    return joined(parts)


def shape_columns(
    shared: Block,
    found: Grouped,
    item: npt.NDArray[np.int64],
    extra: pa.Table,
    attributes: pa.Table,
    ctx: WriteContext,
) -> dict[str, pa.Array]:
    """JSON texts: bbox behind its bracket, segmentation, area where extra does not tell it (else null); and crowd."""
    polygons = polygon_lists(found)
    box = boxes(found)
    rles: list[dict[str, Any] | None] = [None] * len(found)
    masks = mask_rles(found)
    special = masks is not None or ctx.options.segmentation_mode != "guess" or ctx.options.crop_covered
    if special:
        from rayds.formats.coco.segments import choose

        rles, polygons = choose(found, polygons, masks, item, shared, ctx)
    segmentation = member("[", list_texts(polygons))
    if special:
        listed = extra.column("listed").to_pylist()
        texts = pa.array([_rle_text(r, k) for r, k in zip(rles, listed, strict=True)], pa.string())
        segmentation = pc.coalesce(texts, segmentation)
    told = extra.column("area").combine_chunks()
    area = pa.nulls(len(found), pa.string())
    if not pc.all(told).as_py():
        numbers = pa.table({"area": areas(polygons, box, rles)})
        area = pc.if_else(told, area, text_column(query("SELECT area::VARCHAR AS text FROM t", t=numbers)))
    crowd = pc.fill_null(attributes.column("crowd").combine_chunks(), False)
    return {"bbox": list_texts(list_rows(box)), "segmentation": segmentation, "area": area, "crowd": crowd}


def list_rows(values: npt.NDArray[np.float64]) -> pa.ListArray:
    """The rows of a matrix as a list array."""
    n, k = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * k), pa.array(values.ravel()))


def _rle_text(rle: dict[str, Any] | None, listed: bool) -> str | None:
    if rle is None:
        return None
    counts: Any = rle_runs(rle).tolist() if listed else rle["counts"]
    return json.dumps({"size": rle["size"], "counts": counts}, separators=(",", ":"))


def keypoint_columns(found: Grouped, extra: pa.Table) -> dict[str, pa.Array]:
    """points: x, y, visibility triples (JSON behind the bracket); visible: how many are not absent, as text, where extra does not
    tell that. Both are null where there are no points."""
    first = first_of(found, T.points)
    rows = pa.array(first, mask=first < 0)
    xy = found.view.column("points").take(rows)
    seen = found.view.column("visibility").take(rows)
    lengths = pc.fill_null(pc.list_value_length(xy), 0).to_numpy(zero_copy_only=False) // 2
    flat_xy = xy.flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
    flat_seen = seen.flatten().to_numpy(zero_copy_only=False)
    if len(flat_seen) != len(flat_xy):
        raise DataError("key points and their visibility differ in number", remedy="Repair the dataset")
    own = extra.column("visibility").to_pylist() if extra.column("visibility").null_count < len(found) else []
    starts = np.cumsum(lengths) - lengths
    third = flat_seen.astype(float)
    for i, text in enumerate(own):
        values = json.loads(text) if text else []
        if len(values) == lengths[i]:
            third[starts[i] : starts[i] + lengths[i]] = values
    triples = np.column_stack([flat_xy, third]).ravel()
    offsets = np.concatenate([[0], np.cumsum(lengths * 3)]).astype(np.int32)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(triples), mask=pa.array(first < 0))
    untold = pc.and_(pa.array(first >= 0), pc.invert(extra.column("keypoints").combine_chunks()))
    visible = integer_texts(np.bincount(owner[flat_seen > 0], minlength=len(lengths)))
    return {"points": list_texts(lists), "visible": pc.if_else(untold, visible, None)}


def finish(fmt: Any, fragments: Sequence[dict[str, dict[str, list[str]]]], ctx: WriteContext) -> None:
    """Join the fragments of every subset and task into annotations/<task>_<subset>.json."""
    found: dict[str, dict[str, list[str]]] = {}
    for fragment in fragments:
        for subset, written in fragment.items():
            for task, names in written.items():
                found.setdefault(subset, {}).setdefault(task, []).extend(names)
    for subset, files in found.items():
        named = tuple(ctx.options.tasks) or (fmt.tasks if len(fmt.tasks) == 1 else ())
        told = ctx.infos.get("coco", {}).get(subset, {})  # files that the source has are written though empty
        tasks = [t for t in fmt.tasks if t in named or (not named and (files.get(t) or t in told))]
        chosen = tasks or ["image_info"]
        for task in chosen:
            parts: list[bytes | str] = [
                _head(subset, task, ctx, tasks == ["captions"]),
                b'"images":[\n',
                *join_files(files["images"]),
            ]
            parts += [b'\n],\n"annotations":[\n', *join_files(files.get(task, [])), b"\n]}\n"]
            ctx.out.concatenate(parts, fmt.annotation_path(task, subset), used_up=task == chosen[-1])
    ctx.out.remove(FRAGMENTS)
    if ctx.options.save_dataset_meta:
        write_meta(ctx.out, ctx.categories)


def join_files(files: Sequence[str]) -> list[bytes | str]:
    out: list[bytes | str] = []
    for file in files:
        out += [SEPARATOR, file] if out else [file]
    return out


def _head(subset: str, task: str, ctx: WriteContext, alone: bool) -> bytes:
    """The beginning of an annotation file: info, licenses, what else the source had, categories.

    Captions need no categories; they stand there when no other file of the subset can tell the labels (alone).
    """
    told = ctx.infos.get("coco", {}).get(subset, {})
    source: dict[str, Any] = told.get(task) or next(iter(told.values()), {})
    top = dict(source.get("top") or _DEFAULT_TOP)
    if task != "captions" or (alone and len(ctx.categories.labels)):
        top["categories"] = category_entries(ctx.categories, task)
    text = dump_json(top) or "{}"
    return (text[:-1] + (",\n" if len(text) > 2 else "")).encode()
