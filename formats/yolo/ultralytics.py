"""The Ultralytics layout: data.yaml, images/<subset>, labels/<subset>; boxes, polygons, key points, rotated boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.categories import Categories
from rayds.engine.base import Position
from rayds.errors import DataError, UsageError
from rayds.format import Capabilities, Confidence, Format, Plan, PlanContext, ReadContext, WriteContext
from rayds.formats._images_meta import FILE as META_FILE
from rayds.formats._meta import write_meta
from rayds.formats.yolo import _yaml
from rayds.formats.yolo._categories import FAMILY, with_meta, written_names
from rayds.formats.yolo._paths import new_token
from rayds.formats.yolo._reading import read_classes, read_images
from rayds.formats.yolo._shapes import TASKS, Setting
from rayds.formats.yolo._writing import (
    FRAGMENTS,
    View,
    box_lines,
    by_subset,
    check_subset,
    join_meta,
    polygon_lines,
    pose_lines,
    rotated_lines,
    usable,
    with_scores,
    write_labels,
    write_meta_part,
)
from rayds.listing import Listing
from rayds.options import Options, SaveMedia, option
from rayds.schema import AnnotationType, flat, media_field, single_chunk
from rayds.storage import Storage

T = AnnotationType

_HELD = {
    "detect": frozenset({T.bbox}),
    "segment": frozenset({T.polygon}),
    "pose": frozenset({T.bbox, T.points}),
    "obb": frozenset({T.rotated_bbox, T.polygon}),
    "classify": frozenset({T.label}),
}
_LINES = {"detect": box_lines, "segment": polygon_lines, "pose": pose_lines, "obb": rotated_lines}


@dataclass
class _Fragment:
    """What one block wrote: its subsets, and the fragments of images.meta by subset."""

    subsets: list[str] = field(default_factory=list)
    metas: list[tuple[str, str]] = field(default_factory=list)


class YoloUltralytics(Format):
    """YOLO as Ultralytics has it (v5 to v12, Roboflow's exports too): `data.yaml`, images and labels in twin folders.

    Specification: https://docs.ultralytics.com/datasets/. A line of 9 numbers is a polygon of 4 points or a rotated
    box: it is a rotated box only if the task is `obb` (option, `task:` in data.yaml, or "obb" or "dota" in the name
    of the file or folder). images.meta with the image sizes is an extension of ours: see rayds.formats._images_meta.
    """

    name = "yolo_ultralytics"
    title = "YOLO (Ultralytics): data.yaml; detect, segment, pose, obb, classify"
    family = FAMILY
    holds: ClassVar[Capabilities | None] = Capabilities(
        annotations=_HELD["detect"], unlabeled=False, needs_size=True
    )

    @dataclass(frozen=True)
    class ReadOptions(Options):
        """Options of the reader."""

        task: str = option(
            "auto",
            choices=TASKS,
            help="what the numbers of a line are; auto: by data.yaml, else 5 numbers are a box, 7 or more a polygon",
        )

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        """Options of the writer."""

        task: str = option(
            "detect",
            choices=TASKS[1:],
            help="what is written: detect: boxes; segment: polygons, one a line; pose: boxes with key points; "
            "obb: rotated boxes; classify: images in class folders (needs --save-media)",
        )
        keypoints: int | None = option(
            None, help="task pose: the number of key points (default: by the categories)"
        )
        save_conf: bool = option(
            False, help="write the attribute 'score' as a last number, as predictions have it"
        )

    # reading

    def detect(self, files: Listing) -> Confidence:
        if files.file is not None and not files.file.endswith((".yaml", ".yml")):
            return Confidence.no("the file is no .yaml file")
        found = _yaml.find(files)
        if found is not None:
            usual = found.name.rsplit("/", 1)[-1] in _yaml.USUAL
            return Confidence(90 if usual else 85, f"{found.name} with the class names")
        if "labels" in files.dirs() and files.exists("classes.txt"):
            return Confidence(60, "classes.txt and a folder labels, but no data.yaml")
        return Confidence.no("no data.yaml with the class names (names: ...)")

    def root(self, files: Listing) -> Storage:
        found = _yaml.find(files)
        return files.root.sub(found.folder) if found else files.root

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        found = _yaml.find(files)
        if found and found.folder:
            files = Listing(self.root(files).path(found.name.rsplit("/", 1)[-1]))
            found = _yaml.find(files)
        settings = found.values if found else {}
        path = files.root.path(found.name if found else "")
        task = ctx.options.task if ctx.options.task != "auto" else _yaml.task(settings, path)
        if task == "classify":
            names, shards = _yaml.class_folders(files, settings)
            return Plan(with_meta(names, files), shards, ids="none", infos=_infos(task, settings))
        keypoints = _yaml.keypoints(settings, path)
        if task == "pose" and not keypoints[0]:
            raise DataError(
                "the number of key points is not known",
                file=path,
                remedy="Give kpt_shape: [number, 3] in data.yaml",
            )
        categories = with_meta(_yaml.names(files, settings, path), files)
        if points := _yaml.points_categories(settings, keypoints[0], len(categories.labels)):
            categories[T.points] = points
        token = new_token() if files.exists(META_FILE) else ""
        shards = _yaml.shards(files, settings, path, token)
        setting = Setting(task, keypoints, len(categories.labels))
        return Plan(
            categories,
            [_yaml.with_setting(s, setting) for s in shards],
            ids="none",
            infos=_infos(task, settings),
        )

    def read(self, shard: Any, ctx: ReadContext) -> Iterator[pa.Table]:
        part, setting = shard.data
        if setting is None:
            yield from read_classes(part, ctx, ctx.categories.labels)
        else:
            yield from read_images(part, ctx, setting)

    # writing

    def capabilities(self, options: Any) -> Capabilities:
        return Capabilities(
            annotations=_HELD[options.task],
            attributes=frozenset({"score"}) if options.save_conf else False,
            groups=options.task == "pose",
            unlabeled=False,
            needs_size=options.task != "classify",
        )

    def prepare(self, ctx: WriteContext) -> None:
        names = written_names(ctx.categories.labels)
        task = ctx.options.task
        if task == "classify":
            if not ctx.options.save_media:
                raise UsageError(
                    "the task classify writes nothing but images in class folders: add --save-media"
                )
            for name in names:
                if "/" in name or "\\" in name or name in ("", ".", ".."):
                    raise DataError(
                        f"the label {name!r} can't be a folder", remedy="Rename it with remap_labels"
                    )
        elif task == "pose":
            points = ctx.categories.points
            known = max((len(p.labels) for p in points.items.values()), default=0) if points else 0
            ctx.state["keypoints"] = ctx.options.keypoints or known
            if not ctx.state["keypoints"]:
                raise UsageError(
                    "the number of key points is not known: the dataset has no key point categories. Give --keypoints N"
                )

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        return subset if ctx.options.task == "classify" else f"images/{subset}"

    def media_names(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        if ctx.options.task != "classify":
            return super().media_names(block, ctx)
        names = written_names(ctx.categories.labels)
        first = _first_labels(block)
        files = zip(
            first.tolist(),
            single_chunk(block, "subset").to_pylist(),
            single_chunk(block, "id").to_pylist(),
            self.extensions(block, ctx).to_pylist(),
            strict=True,
        )
        return pa.array(
            [f"{s}/{_in_class(names[c], i)}{e}" if c >= 0 else None for c, s, i, e in files], pa.string()
        )

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> _Fragment:
        task = ctx.options.task
        block = usable(block, ctx, () if task == "classify" else tuple(_HELD[task]))
        made = _Fragment()
        if not block.num_rows:
            return made
        parts = by_subset(block)
        for subset, _ in parts:
            check_subset(subset, _yaml.SETTINGS)
            made.subsets.append(subset)
        if task == "classify":
            _class_losses(block, ctx)
            return made
        view = View(block)
        text = _LINES[task](view, ctx, single_chunk(block, "id"))
        if ctx.options.save_conf:
            text = with_scores(text, view)
        write_labels(block, text, {s: f"labels/{s}" for s, _ in parts}, ctx)
        for subset, part in parts:
            if meta := write_meta_part(part, subset, position.index, ctx):
                made.metas.append((subset, meta))
        return made

    def finish(self, fragments: Sequence[_Fragment], ctx: WriteContext) -> None:
        subsets = list(dict.fromkeys(s for f in fragments for s in f.subsets))
        metas: dict[str, list[str]] = {}
        for fragment in fragments:
            for subset, name in fragment.metas:
                metas.setdefault(subset, []).append(name)
        own = ctx.infos.get(FAMILY, {}).get("yaml", {})
        text = _yaml.text(ctx.options.task, subsets, ctx.categories, ctx.state.get("keypoints", 0), own)
        ctx.out.write_text("data.yaml", text)
        join_meta(metas, ctx)
        if ctx.options.save_dataset_meta:
            write_meta(ctx.out, Categories(ctx.categories))
        ctx.out.remove(FRAGMENTS)


def _infos(task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What data.yaml says beyond what the model holds, for the writer."""
    own = _yaml.other_settings(settings)
    return {FAMILY: {"task": task, **({"yaml": own} if own else {})}}


def _first_labels(block: pa.Table) -> np.ndarray:
    """The class of the first labelled Label of each item, -1 for none."""
    view = flat(block)
    label = view.numpy("label", -1)
    rows = np.flatnonzero((view.type == int(T.label)) & (label >= 0))
    first = np.full(block.num_rows, -1, np.int64)
    first[view.item[rows][::-1]] = label[rows][::-1]
    return first


def _in_class(name: str, item: str) -> str:
    """An item's file in its class folder; an id that begins with the folder has it only once."""
    return item if item.startswith(name + "/") else f"{name}/{item}"


def _class_losses(block: pa.Table, ctx: WriteContext) -> None:
    """Report what class folders can't hold."""
    ids = single_chunk(block, "id")
    view = flat(block)
    labelled = (view.type == int(T.label)) & (view.numpy("label", -1) >= 0)
    counts = np.bincount(view.item[labelled], minlength=block.num_rows)
    no_image = pc.is_null(media_field(block, "kind")).to_numpy(zero_copy_only=False)
    for what, rows, n in (
        ("images without a class", counts == 0, None),
        ("classes of an image beyond its first", counts > 1, int((counts - 1).clip(0).sum())),
        ("items without an image", no_image, None),
    ):
        where = np.flatnonzero(rows)
        if len(where):
            ctx.lose(what, len(where) if n is None else n, f"item {ids[int(where[0])].as_py()!r}")
