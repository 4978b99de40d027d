"""COCO: one JSON file for each task and subset, annotations/<task>_<subset>.json, images in images/<subset>/.

Specification: https://cocodataset.org/#format-data and #format-results. Extensions that CVAT and Datumaro write are
understood: `attributes` of annotations (and of images), `labels_<subset>.json` (annotations without geometry),
`score`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import Block, Blocks, Engine, Position
from rayds.errors import FormatError, OnError, UnknownNameError
from rayds.format import (
    Capabilities,
    Confidence,
    Format,
    Ids,
    Plan,
    PlanContext,
    ReadContext,
    Shard,
    WriteContext,
)
from rayds.formats.coco import layout
from rayds.formats.coco.top import Top, peek
from rayds.infos import Later
from rayds.listing import Listing
from rayds.options import Options, SaveMedia, option
from rayds.schema import AnnotationType as T
from rayds.schema import media_field
from rayds.storage import Storage

_SHAPES = frozenset({T.bbox, T.polygon, T.mask})
_HOLDS = {
    "instances": _SHAPES,
    "person_keypoints": _SHAPES | {T.points},
    "stuff": _SHAPES,
    "panoptic": frozenset({T.mask, T.polygon}),
    "captions": frozenset({T.caption}),
    "labels": frozenset({T.label}),
    "image_info": frozenset(),
}


_NUMBERED = {"instances", "person_keypoints", "stuff", "panoptic"}


class Coco(Format):
    """COCO: annotations/<task>_<subset>.json, images in images/<subset>/; all tasks of a subset merged by image.

    Tasks: instances, person_keypoints, captions, labels (an extension), image_info, panoptic, stuff. The year
    belongs to the subset's name. Image, annotation and category ids are kept.
    """

    name = "coco"
    title = "COCO, all tasks of a subset merged by image"
    family = "coco"
    tasks: ClassVar[tuple[str, ...]] = layout.TASKS
    holds = Capabilities(
        annotations=frozenset().union(*_HOLDS.values()),
        attributes=True,
        item_attributes=True,
        ids=True,
        groups=True,
    )

    @dataclass(frozen=True)
    class ReadOptions(Options):
        """Options of the reader."""

        keep_original_category_ids: bool = option(
            False, help="add dummy labels so that label indexes equal the category ids of the file"
        )
        range_size: str = option(
            "auto",
            help="read annotation files by byte ranges of this size (64MB) in tasks side by side; none: one task a "
            "subset; auto: ranges for big files",
        )

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        """Options of the writer."""

        segmentation_mode: str = option(
            "guess",
            choices=("guess", "polygons", "mask", "masks=mask"),
            help="guess: as the source has it; polygons: masks become outlines; mask: polygons become RLE",
        )
        crop_covered: bool = option(False, help="cut from every segment what segments above it cover")
        allow_attributes: bool = option(
            True, help="write the attributes (an extension that other tools ignore)"
        )
        reindex: bool | None = option(
            None,
            help="give images and annotations new ids; default: only where the source has none that are unique",
        )
        merge_images: bool = option(False, help="save all images in images/, not in a folder for each subset")
        tasks: tuple[str, ...] = option(
            (), help=f"tasks to write: {', '.join(layout.TASKS)}; default: those for which there is something"
        )

    # reading

    def detect(self, files: Listing) -> Confidence:
        if files.file and layout.is_list(files.root, files.file):
            return Confidence.no("the file is a bare list, as COCO results are")
        if files.file:
            match = re.match(rf"({'|'.join(self.tasks)})_.+\.json$", files.file)
            if not match:
                return Confidence.no(f"the file is not called {self.tasks[0]}_<subset>.json")
            return Confidence(
                60 if len(self.tasks) > 1 else 50, f"the file is called {match.group(1)}_<subset>.json"
            )
        try:
            root, subsets = layout.find_subsets(files, self.tasks)
        except FormatError:
            return Confidence.no(f"no annotations/{'|'.join(self.tasks[:3])}..._<subset>.json")
        names = sorted({t for s in subsets for t, _ in s.files})
        if all(layout.is_list(root, f) for s in subsets for _, f in s.files):
            return Confidence.no("the annotation files are bare lists, as COCO results are")
        return Confidence(
            60 if len(self.tasks) > 1 else 20, f"annotation files of the tasks {', '.join(names)}"
        )

    def subsets(self, files: Listing) -> tuple[Storage, list[layout.SubsetFiles]]:
        """The root and the annotation files by subset."""
        return layout.find_subsets(files, self.tasks)

    def root(self, files: Listing) -> Storage:
        return self.subsets(files)[0]

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        layout.range_size(ctx.options, 0, None)  # a mistake in it is told now
        storage, subsets = self.subsets(files)
        tops: dict[str, dict[str, Top]] = {}
        known: list[tuple[str, dict[str, Any]]] = []
        for s in subsets:
            for task, file in s.files:
                top = peek(storage, file, ctx.on_error is not OnError.RAISE, ctx.fold)
                tops.setdefault(s.subset, {})[task] = top
                known.append((storage.path(file), top.known))
        categories = layout.join_categories(known, ctx.options.keep_original_category_ids)
        with_meta(files, categories)
        labels = layout.labels_by_id(categories)
        shards = [
            Shard(
                s.subset,
                {
                    "subset": s.subset,
                    "files": s.files,
                    "labels": labels,
                    "categories": {t: top.known.get("categories") for t, top in tops[s.subset].items()},
                },
                size=sum(storage.size(f) for _, f in s.files),
                file=storage.path(s.files[0][1]),
            )
            for s in subsets
        ]
        # A panoptic segment's id is a colour: unique in its image only.
        ids: Ids = "unknown" if any(t == "panoptic" for s in subsets for t, _ in s.files) else "unique"
        return Plan(categories, shards, ids=ids, infos={"coco": Later(partial(_infos, tops))})

    def estimate(self, shard: Shard, root: Storage) -> int | None:
        from rayds.formats._estimate import about_records

        # A segment list stands in each record of an image's annotations, where the name stands a second time.
        keys = {"panoptic": b'"segments_info"'}
        found = [about_records(root, f, keys.get(t, b'"file_name"')) for t, f in shard.data["files"]]
        return max((n for n in found if n is not None), default=None)  # the tasks have most images in common

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        from rayds.formats.coco.read import SubsetReader

        return SubsetReader(shard, ctx).read()

    def by_shards(self, plan: Plan, options: Any, engine: Engine) -> bool:
        return not any(layout.range_size(options, s.size or 0, engine)[0] for s in plan.shards)

    def source(
        self, engine: Engine, plan: Plan, ctx: ReadContext, read: Callable[[Shard], Iterable[Block]]
    ) -> Blocks:
        parts: list[Blocks] = []
        whole: list[Shard] = []

        def flush() -> None:
            if whole:
                parts.append(engine.source(list(whole), read))
                whole.clear()

        for shard in plan.shards:
            size, forced = layout.range_size(ctx.options, shard.size or 0, engine)
            blocks = None
            if size:
                from rayds.formats.coco.ranged import read_by_ranges

                blocks = read_by_ranges(engine, shard, ctx, size, plan.found, forced)
            if blocks is None:
                whole.append(shard)
            else:
                flush()
                parts.append(blocks)
        flush()
        return parts[0] if len(parts) == 1 else engine.chain(parts)

    # writing

    def written_tasks(self, options: Any) -> Sequence[str]:
        """The tasks that may be written; raises UnknownNameError for another."""
        chosen = tuple(options.tasks) or self.tasks
        for task in chosen:
            if task not in self.tasks:
                raise UnknownNameError(f"{self.name} task", task, self.tasks)
        return chosen

    def capabilities(self, options: Any) -> Capabilities:
        held = frozenset().union(*(_HOLDS[t] for t in self.written_tasks(options)))
        allow = bool(options.allow_attributes)
        return Capabilities(
            annotations=held,
            attributes=True if allow else frozenset({"is_crowd", "score"}),
            item_attributes=True if allow else frozenset({"id"}),
            ids=not options.reindex,
            groups=True,
            needs_size=True,
        )

    def prepare(self, ctx: WriteContext) -> None:
        from rayds.formats.coco.write import prepare

        prepare(self, ctx)

    def uses_offsets(self, ctx: WriteContext) -> bool:
        return not ctx.state["ids"].complete

    def needs_survey(self, ctx: WriteContext) -> bool:
        from rayds.formats.coco.tasks import chosen_tasks

        # Ids are unique in each file of the source: that helps as long as no records of two files become one file.
        mixed = any(len(_NUMBERED & set(tasks)) > 1 for tasks in ctx.infos.get("coco", {}).values())
        unknown = ctx.ids == "unknown" or (ctx.ids == "unique" and mixed and chosen_tasks(self, ctx.options))
        return unknown and not ctx.options.reindex

    def survey(self, block: pa.Table, ctx: WriteContext) -> Any:
        from rayds.formats.coco.ids import survey

        return survey(self, block, ctx)

    def use_survey(self, found: Any, ctx: WriteContext) -> None:
        ctx.state["ids"] = found.decide()

    def annotation_path(self, task: str, subset: str) -> str:
        """Where the annotation file of a task goes."""
        return f"annotations/{task}_{subset}.json"

    def extensions(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        made = super().extensions(block, ctx)
        if ctx.options.image_ext:
            return made
        # COCO names its images: one whose file has no extension stays without.
        path, encoding = media_field(block, "path"), media_field(block, "encoding")
        named = pc.match_substring_regex(path, layout.EXTENSION)
        bare = pc.and_(pc.is_null(encoding), pc.invert(named))
        return pc.if_else(pc.fill_null(bare, False), "", made)

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        return "images" if ctx.options.merge_images else f"images/{subset}"

    def count(self, block: pa.Table, ctx: WriteContext) -> dict[str, int]:
        from rayds.formats.coco.write import count

        return count(block)

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> Any:
        from rayds.formats.coco.write import write

        return write(self, block, position, ctx)

    def finish(self, fragments: Sequence[Any], ctx: WriteContext) -> None:
        from rayds.formats.coco.write import finish

        finish(self, fragments, ctx)


def _infos(tops: dict[str, dict[str, Top]]) -> dict[str, Any]:
    """What the files say besides categories and records: {subset: {task: {"top": {key: value}}}}."""
    return {
        subset: {
            task: {"top": {k: v for k, v in top.whole().items() if k != "categories"}}
            for task, top in tasks.items()
        }
        for subset, tasks in tops.items()
    }


def with_meta(files: Listing, categories: Any) -> None:
    """Take the colours of dataset_meta.json, if there is one, for the labels of the same names."""
    from rayds.categories import MaskCategories
    from rayds.formats._meta import read_meta

    meta = read_meta(files)
    if meta is None or not meta.colors:
        return
    own = categories.get(T.mask) or MaskCategories()
    for i, color in meta.colors.items():
        found = categories.labels.find(meta.names[i])[0] if i < len(meta.names) else None
        if found is not None:
            own.colormap[found] = color
    categories[T.mask] = own


class CocoInstances(Coco):
    """COCO object instances: boxes, polygons, masks; annotations/instances_<subset>.json."""

    name, title, tasks = "coco_instances", "COCO instances: boxes, polygons, masks", ("instances",)


class CocoPersonKeypoints(Coco):
    """COCO key points: instances with named points; annotations/person_keypoints_<subset>.json."""

    name, title, tasks = "coco_person_keypoints", "COCO key points", ("person_keypoints",)


class CocoCaptions(Coco):
    """COCO captions: texts of images; annotations/captions_<subset>.json."""

    name, title, tasks = "coco_captions", "COCO captions", ("captions",)


class CocoLabels(Coco):
    """COCO with labels of whole images, an extension; annotations/labels_<subset>.json."""

    name, title, tasks = "coco_labels", "COCO with image labels (an extension)", ("labels",)


class CocoImageInfo(Coco):
    """COCO images without annotations; annotations/image_info_<subset>.json."""

    name, title, tasks = "coco_image_info", "COCO images without annotations", ("image_info",)


class CocoPanoptic(Coco):
    """COCO panoptic segmentation: annotations/panoptic_<subset>.json and id PNGs in annotations/panoptic_<subset>/."""

    name, title, tasks = "coco_panoptic", "COCO panoptic segmentation (id PNGs)", ("panoptic",)


class CocoStuff(Coco):
    """COCO stuff: masks of regions without instances; annotations/stuff_<subset>.json."""

    name, title, tasks = "coco_stuff", "COCO stuff segmentation", ("stuff",)


class RoboflowCoco(Coco):
    """COCO as Roboflow exports it: <subset>/_annotations.coco.json beside the images of the subset."""

    name, title, tasks = "roboflow_coco", "COCO as Roboflow exports it", ("instances",)
    annotation_file = "_annotations.coco.json"

    def detect(self, files: Listing) -> Confidence:
        if files.file == self.annotation_file or files.glob(f"*/{self.annotation_file}"):
            return Confidence(90, f"<subset>/{self.annotation_file}")
        return Confidence.no(f"no <subset>/{self.annotation_file}")

    def subsets(self, files: Listing) -> tuple[Storage, list[layout.SubsetFiles]]:
        files = files.up() if files.file == self.annotation_file else files
        found = [files.file] if files.file else files.glob(f"*/{self.annotation_file}")
        if not found:
            raise FormatError(f"{files.root.url}: no <subset>/{self.annotation_file}")
        order = sorted(found, key=lambda f: (not f.startswith("train"), f))
        return files.root, [layout.SubsetFiles(f.split("/")[0], (("instances", f),)) for f in order]

    def annotation_path(self, task: str, subset: str) -> str:
        return f"{subset}/{self.annotation_file}"

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        return subset


class CocoResults(Coco):
    """COCO results: <task>_<subset>_results.json, bare lists of detections with score, by image id.

    One record an object, in the file instances, person_keypoints, captions or labels. A detection without score gets 1.
    """

    name, title = "coco_results", "COCO results: lists of scored boxes, masks, key points, captions"
    tasks = ("instances", "person_keypoints", "captions", "labels")

    @dataclass(frozen=True)
    class ReadOptions(Options):
        """Options of the reader."""

        ground_truth: str | None = option(
            None, help="annotation file with the images and categories; without it ids stand for names"
        )

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        """Options of the writer."""

        segmentation_mode: str = option(
            "guess",
            choices=("guess", "polygons", "mask", "masks=mask"),
            help="guess: as the source has it; polygons: masks become outlines; mask: polygons become RLE",
        )
        crop_covered: bool = option(False, help="cut from every segment what segments above it cover")
        allow_attributes: bool = option(
            True, help="write the attributes (an extension that other tools ignore)"
        )
        reindex: bool | None = option(
            None, help="give images new ids; default: only where the source has none that are unique"
        )

    def detect(self, files: Listing) -> Confidence:
        from rayds.formats.coco.results import find_results, is_results

        if files.file:
            if files.file.endswith(".json") and is_results(files.root, files.file):
                return Confidence(70, "a list of records with 'image_id'")
            return Confidence.no("not a JSON list of records with 'image_id'")
        try:
            find_results(files)
        except FormatError:
            return Confidence.no("no JSON list of records with 'image_id' here or in results/")
        return Confidence(50, "JSON lists of records with 'image_id'")

    def root(self, files: Listing) -> Storage:
        return files.root

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        from rayds.formats.coco.results import category_numbers, find_results, made_categories

        found = find_results(files)
        names = [file for _, tasks in found for _, file in tasks]
        truth = Listing(ctx.options.ground_truth) if ctx.options.ground_truth else None
        if truth is not None:
            if not truth.file:
                raise FormatError(f"{truth.root.url}: ground-truth is the path of one annotation file")
            categories = layout.join_categories([(truth.file, peek(truth.root, truth.file).known)], False)
        else:
            ids = ctx.fold(names, partial(category_numbers, files.root), lambda a, b: a | b)
            categories = made_categories(ids or set())
        data = {
            "labels": layout.labels_by_id(categories),
            "ground_truth": truth.root.path(truth.file) if truth is not None and truth.file else None,
        }
        shards = [
            Shard(s, {"subset": s, "files": tasks, **data}, size=sum(files.root.size(f) for _, f in tasks))
            for s, tasks in found
        ]
        return Plan(categories, shards, ids="unknown")

    def estimate(self, shard: Shard, root: Storage) -> int | None:
        return None  # records are detections: how many share an image is not known

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        from rayds.formats.coco.results import ResultsReader

        return ResultsReader(shard, ctx).read()

    def by_shards(self, plan: Plan, options: Any, engine: Engine) -> bool:
        return True

    def source(
        self, engine: Engine, plan: Plan, ctx: ReadContext, read: Callable[[Shard], Iterable[Block]]
    ) -> Blocks:
        return engine.source(plan.shards, read)  # a bare list is read by one task

    def written_tasks(self, options: Any) -> Sequence[str]:
        return self.tasks

    def capabilities(self, options: Any) -> Capabilities:
        held = frozenset().union(*(_HOLDS[t] for t in self.tasks))
        attributes: bool | frozenset[str] = (
            True if options.allow_attributes else frozenset({"is_crowd", "score"})
        )
        ids = frozenset({"id"})
        return Capabilities(
            annotations=held, attributes=attributes, item_attributes=ids, groups=True, media=frozenset()
        )

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> Any:
        from rayds.formats.coco.results import write_results

        return write_results(block, position, ctx)

    def finish(self, fragments: Sequence[Any], ctx: WriteContext) -> None:
        from rayds.formats.coco.results import finish_results

        finish_results(fragments, ctx)
