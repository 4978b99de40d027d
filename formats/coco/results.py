"""COCO result files: a bare list of detections, {image_id, category_id, bbox | segmentation | keypoints, score} or
{image_id, caption}. Specification: https://cocodataset.org/#format-results.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.categories import Categories, LabelCategories
from rayds.engine.base import Position
from rayds.errors import FormatError
from rayds.format import ReadContext, Shard, WriteContext
from rayds.formats._meta import write_meta
from rayds.formats._records import Records, RecordScanner
from rayds.formats.coco.checks import broken
from rayds.formats.coco.images import images_of
from rayds.formats.coco.layout import SECTIONS, TASKS
from rayds.formats.coco.merge import Grouping
from rayds.formats.coco.plain import annotations_of
from rayds.formats.coco.read import SubsetReader
from rayds.formats.coco.records import extra_members, lead_texts, split_attributes
from rayds.formats.coco.rows import Rows
from rayds.formats.coco.tasks import SHAPES, kinds_of
from rayds.formats.coco.write import (
    FRAGMENTS,
    SEPARATOR,
    Block,
    body_of,
    join_files,
    keypoint_columns,
    only_records,
    shape_columns,
    share_block,
)
from rayds.json_text import integer_texts, joined, member, string_texts
from rayds.listing import Listing
from rayds.schema import DEFAULT_SUBSET, AnnotationType
from rayds.sql import query
from rayds.storage import Storage

# In each subset one file a task is read, so that the names that COCO's tools give stand for tasks too.
_KINDS = {t: t for t in TASKS} | {"bbox": "instances", "segm": "stuff", "keypoints": "person_keypoints"}
_NAME = re.compile(rf"^(?:({'|'.join(_KINDS)})_)?(?:(.+)_)?results$")
_HEAD = re.compile(rb'^\s*\[\s*(\]|\{[^{}]*"image_id"\s*:)')
_WRITTEN = ("instances", "person_keypoints", "captions", "labels")


def is_results(storage: Storage, name: str) -> bool:
    """Whether a file begins like a list of records with an image id (or like an empty list)."""
    head = storage.head(name).removeprefix(b"\xef\xbb\xbf")
    return bool(_HEAD.match(head))


def find_results(files: Listing) -> list[tuple[str, list[tuple[str, str]]]]:
    """(subset, its (task, file) pairs) of the result files in a folder, in results/ of it, or of one file."""
    if files.file:
        match = _NAME.match(posixpath.splitext(files.file)[0])
        kind, subset = match.groups() if match else (None, None)
        return [(subset or DEFAULT_SUBSET, [(_KINDS[kind or "instances"], files.file)])]
    for pattern in ("*.json", "results/*.json"):
        found: dict[str, dict[str, str]] = {}
        for name in filter(lambda f: is_results(files.root, f), files.glob(pattern)):
            stem = posixpath.splitext(posixpath.basename(name))[0]
            match = _NAME.match(stem)
            kind, subset = match.groups() if match else (None, stem)
            tasks = found.setdefault(subset or DEFAULT_SUBSET, {})
            other = tasks.setdefault(_KINDS[kind or "instances"], name)
            if other != name:
                raise FormatError(
                    f"{files.root.path(name)} and {other} are one task of one subset: give one of them"
                )
        if found:
            return [
                (s, sorted(t.items(), key=lambda tf: TASKS.index(tf[0]))) for s, t in sorted(found.items())
            ]
    raise FormatError(f"{files.root.url}: no JSON list of records with 'image_id'")


def category_numbers(storage: Storage, name: str) -> set[int]:
    """The category ids that occur in a result file."""
    found: set[int] = set()
    with storage.open(name) as f:
        for records in RecordScanner(f, storage.path(name), ("",), bare=True).records():
            sql = "SELECT DISTINCT TRY_CAST(json_extract_string(j, '$.category_id') AS BIGINT) AS c FROM t"
            try:
                ids = query(sql, t=pa.table({"j": records.texts()})).column("c")
            except broken():  # the reader tells of it
                sql = sql.replace("FROM t", "FROM (SELECT j FROM t WHERE json_valid(j))")
                ids = query(sql, t=pa.table({"j": records.texts()})).column("c")
            found |= set(ids.drop_null().to_pylist())
    return found


def made_categories(ids: set[int]) -> Categories:
    """A label "category_<id>" for every id."""
    labels = LabelCategories()
    for id in sorted(ids):
        labels.add(f"category_{id}", coco={"id": id, "@no_supercategory": True})
    return Categories({AnnotationType.label: labels})


class ResultsReader(SubsetReader):
    """Reads the result files of one subset; items in the order in which their images occur, or of the ground truth."""

    bare = True
    give_ids = False  # results have none

    def __init__(self, shard: Shard, ctx: ReadContext) -> None:
        super().__init__(shard, ctx)
        truth: str | None = shard.data["ground_truth"]
        self.truth = Listing(truth) if truth else None

    def read(self) -> Iterator[pa.Table]:
        if self.truth is not None:
            self._read_truth(self.truth)
        yield from super().read()

    def _read_truth(self, files: Listing) -> None:
        assert files.file
        path = files.root.path(files.file)
        with files.root.open(files.file) as f:
            for records in RecordScanner(f, path, SECTIONS).records():
                if records.section == "images":
                    table, errors = images_of(records, path)
                    for error in errors:
                        self._bad(error)
                    self._take_images([table], path)

    def _parse(self, task: str, file: str, records: Records, first: int) -> Any:
        exclude = self.exclude.get(task, frozenset())
        return annotations_of(records, self.ctx.root.path(file), self.labels, None, first, exclude)

    def _place(self, made: Rows, task: str, path: str, grouping: Grouping, final: bool) -> None:
        if self.truth is None:
            ids, first = np.unique(made.image, return_index=True)
            new = ids[np.argsort(first)]
            new = new[~np.isin(new, self.image_ids)]
            if len(new):
                self._take_images([pa.table({"id": new, "file_name": pa.nulls(len(new), pa.string())})], path)
        super()._place(made, task, path, grouping, final)

    def _columns(self, images: pa.Table) -> dict[str, pa.Array]:
        if self.truth is not None:
            near = self.truth.up() if self.truth.root.name == "annotations" else self.truth
            return self._item_columns(images, near.root, posixpath.dirname(str(near.file)))
        id = images.column("id").combine_chunks().cast(pa.string())
        return {"id": id, "attributes": pc.binary_join_element_wise('{"id":', id, "}", "")}


def write_results(block: pa.Table, position: Position, ctx: WriteContext) -> dict[str, dict[str, list[str]]]:
    """Write a block's fragments; returns {subset: {task: [fragment file]}}."""
    shared = share_block(block, position, ctx)
    has = kinds_of(shared.found)
    shaped = has[SHAPES[0]] | has[SHAPES[1]] | has[SHAPES[2]]
    points, captions = has[AnnotationType.points], has[AnnotationType.caption]
    picked = {
        "instances": shaped & ~points,
        "person_keypoints": points,
        "captions": captions & ~shaped & ~points,
        "labels": has[AnnotationType.label] & ~shaped & ~points & ~captions,
    }
    owner = shared.owner[shared.found.view.item[shared.found.first]]
    listed = np.zeros(block.num_rows, bool)
    made: dict[str, dict[str, list[str]]] = {}
    for subset in dict.fromkeys(shared.owner.tolist()):
        made[subset] = {}
        for task, mine in picked.items():
            records = np.flatnonzero(mine & (owner == subset))
            if len(records):
                listed[shared.found.view.item[shared.found.first[records]]] = True
                name = f"{FRAGMENTS}/{subset}/{position.index:08d}-{task}.json"
                ctx.out.write_bytes(name, body_of(_texts(shared, records, task, ctx)))
                made[subset][task] = [name]
    if not listed.all():
        example = block.column("id")[int(np.argmin(listed))].as_py()
        ctx.lose(
            "items without annotations (a result file lists no images)",
            int((~listed).sum()),
            f"item {example!r}",
        )
    return made


def _texts(shared: Block, records: npt.NDArray[np.int64], task: str, ctx: WriteContext) -> pa.Array:
    found = only_records(shared.found, records)
    item = found.view.item[found.first]
    categories = np.array([*ctx.state["categories"], -1], np.int64)
    label = found.view.numpy("label", -1)[found.first]
    texts, members = lead_texts(found)
    extra = extra_members(members)
    attributes = split_attributes(texts, bool(ctx.options.allow_attributes))
    category = pa.array(categories[label], mask=label < 0).cast(pa.string())
    score, rest = (attributes.column(name).combine_chunks() for name in ("score", "rest"))
    parts = ['{"image_id":', integer_texts(shared.image[item]), member(',"category_id":', category)]
    if task == "captions":
        rows = pa.array(np.flatnonzero(found.view.type == AnnotationType.caption))
        caption = found.view.column("text").take(rows)
        parts += [',"caption":', string_texts(pc.fill_null(caption, ""))]
    elif task != "labels":
        has = kinds_of(found)
        shapes = shape_columns(shared, found, item, extra, attributes, ctx)
        boxed, drawn = pa.array(has[SHAPES[0]]), pa.array(has[SHAPES[1]] | has[SHAPES[2]])
        parts.append(pc.if_else(boxed, member(',"bbox":[', shapes["bbox"]), None))
        parts.append(pc.if_else(drawn, member(',"segmentation":', shapes["segmentation"]), None))
        parts.append(pc.if_else(shapes["crowd"], ',"iscrowd":1', None))
        if task == "person_keypoints":
            parts.append(member(',"keypoints":[', keypoint_columns(found, extra)["points"]))
        score = pc.fill_null(score, "1.0")  # evaluation needs the score of a detection; the truth's is 1
    parts += [member(',"score":', score), member(',"attributes":', rest)]
    parts += [member(",", extra.column("members").combine_chunks()), f"}}{SEPARATOR.decode()}"]
    return joined(parts)


def finish_results(fragments: Sequence[dict[str, dict[str, list[str]]]], ctx: WriteContext) -> None:
    """Join the fragments into <task>_<subset>_results.json."""
    found: dict[str, dict[str, list[str]]] = {}
    for fragment in fragments:
        for subset, tasks in fragment.items():
            own = found.setdefault(subset, {})
            for task, files in tasks.items():
                own.setdefault(task, []).extend(files)
    for subset, tasks in found.items():
        for task in [t for t in _WRITTEN if t in tasks] or ["instances"]:
            parts: list[bytes | str] = [b"[\n", *join_files(tasks.get(task, [])), b"\n]\n"]
            ctx.out.concatenate(parts, f"{task}_{subset}_results.json", used_up=True)
    ctx.out.remove(FRAGMENTS)
    if ctx.options.save_dataset_meta:
        write_meta(ctx.out, ctx.categories)
