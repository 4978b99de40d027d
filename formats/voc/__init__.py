"""Pascal VOC: one XML file of objects an image, PNG masks, ImageSets lists of the images of each subset and task.

Specification: the development kit document of VOC2012. Extensions: labelmap.txt (labels with their colours, parts
and actions), any subset names, <attributes> of objects. Every list file is a subset of its own: trainval.txt
beside train.txt gives the images of `train` a second time, in the subset `trainval`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from rayds.engine.base import Position
from rayds.errors import DataError
from rayds.format import (
    Capabilities,
    Confidence,
    Format,
    Plan,
    PlanContext,
    ReadContext,
    Shard,
    WriteContext,
    without_outside_boxes,
)
from rayds.formats._meta import read_meta
from rayds.formats.voc import layout
from rayds.formats.voc.labels import NATIVE, VOC_ACTIONS, find_label_map
from rayds.formats.voc.layout import ACTION, FOLDERS, LAYOUT, MAIN, SEGMENTATION
from rayds.formats.voc.read import Scope, XmlNamer, read_part
from rayds.formats.voc.tasks import TASKS, chosen
from rayds.formats.voc.write import finish_dataset, prepare_state, write_block
from rayds.listing import Listing
from rayds.options import SaveMedia, option
from rayds.schema import AnnotationType
from rayds.storage import Storage

_TYPES = {
    "classification": AnnotationType.label,
    "detection": AnnotationType.bbox,
    "action_classification": AnnotationType.bbox,
    "person_layout": AnnotationType.bbox,
    "segmentation": AnnotationType.mask,
}
_OBJECT_TASKS = {"detection", "action_classification", "person_layout"}


class Voc(Format):
    """All tasks together: an item is what every list that names it in a subset says of it."""

    name = "voc"
    title = "Pascal VOC: XML objects, PNG masks, classification lists"
    family = "voc"
    scope: ClassVar[Scope] = Scope(
        MAIN | LAYOUT | ACTION | SEGMENTATION, labels=True, objects=True, masks=True
    )
    tasks: ClassVar[tuple[str, ...]] = tuple(TASKS)

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        apply_colormap: bool = option(
            True, help="write masks in the label map's colours instead of label indices"
        )
        label_map: str = option(
            "source", help="'source' (the dataset's labels), 'voc' or a file: label:r,g,b:parts:actions"
        )
        allow_attributes: bool = option(True, help="write attributes that VOC itself doesn't have")
        keep_empty: bool = option(False, help="write subset lists even if they are empty")
        tasks: tuple[str, ...] = option(
            (),
            help="the tasks to write (default: all that the format has)",
            choices=(
                *TASKS,
                "action=action_classification",
                "layout=person_layout",
                "instance_segmentation=segmentation",
            ),
            aliases=("task",),
        )

    # reading

    def detect(self, files: Listing) -> Confidence:
        try:
            files = layout.dataset_root(files)
        except DataError as e:
            return Confidence.no(e.reason)
        lists = layout.task_lists(files, self.scope.lists)
        if lists:
            return Confidence(80 if type(self) is Voc else 10, f"ImageSets/{next(iter(lists))} has lists")
        if not self._flat_ok():
            folders = ", ".join(f for f, flag in FOLDERS.items() if flag & self.scope.lists)
            return Confidence.no(f"no lists in ImageSets/ ({folders})")
        return self._detect_flat(files)

    def _detect_flat(self, files: Listing) -> Confidence:
        for folder, ids in layout.flat_xml(files, limit=3).items():
            name = f"{folder}/{ids[0]}.xml" if folder else f"{ids[0]}.xml"
            head = files.root.head(name)
            if (
                b"<annotation" in head
                and (b"<bndbox" in head or b"<size>" in head)
                and b"<polygon" not in head
            ):
                return Confidence(
                    40 if type(self) is Voc else 8, f"{name} looks like a VOC annotation; no ImageSets lists"
                )
        return Confidence.no("no lists in ImageSets/, and no VOC annotation files")

    def _flat_ok(self) -> bool:
        return self.scope.objects and not self.scope.only

    def root(self, files: Listing) -> Storage:
        return layout.dataset_root(files).root

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        files = layout.dataset_root(files)
        scope = self.scope
        entries = find_label_map(files)
        meta = read_meta(files)
        names = meta.names if meta else [e.name for e in entries or ()]
        if layout.task_lists(files, scope.lists):
            shards = layout.listed_shards(files, scope.lists, frozenset(names), scope.labels)
        else:
            shards = layout.flat_shards(files) if self._flat_ok() else []
            if not shards:
                folders = ", ".join(
                    f"ImageSets/{f}/*.txt" for f, flag in FOLDERS.items() if flag & scope.lists
                )
                raise DataError(f"no dataset of the format {self.name}: no {folders}", file=files.root.url)
        return Plan(layout.find_categories(files, shards, entries, ctx, scope.objects), shards, ids="none")

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        table = read_part(shard.data, self.scope, ctx)
        yield without_outside_boxes(table, shard, XmlNamer(shard.data, ctx))  # type: ignore[arg-type]

    # writing

    def capabilities(self, options: Any) -> Capabilities:
        tasks = chosen(self.tasks, options.tasks)
        return Capabilities(
            annotations=frozenset(_TYPES[t] for t in tasks),
            attributes=True if options.allow_attributes else frozenset((*NATIVE, *VOC_ACTIONS)),
            groups=True,
            unlabeled=False,
            needs_size=bool(_OBJECT_TASKS & set(tasks)),
        )

    def prepare(self, ctx: WriteContext) -> None:
        ctx.state.update(prepare_state(ctx, chosen(self.tasks, ctx.options.tasks)))

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        del subset, ctx  # one folder for all
        return "JPEGImages"

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> Any:
        return write_block(block, self.file_names(block, ctx), position.index, ctx)

    def finish(self, fragments: Sequence[Any], ctx: WriteContext) -> None:
        finish_dataset(fragments, ctx)


class VocClassification(Voc):
    """Classes of whole images, from the lists ImageSets/Main/<label>_<subset>.txt."""

    name = "voc_classification"
    title = "Pascal VOC, image classification only"
    scope = Scope(MAIN, labels=True)
    tasks = ("classification",)


class VocDetection(Voc):
    """Objects of the images in ImageSets/Main, without their parts."""

    name = "voc_detection"
    title = "Pascal VOC, object detection only"
    scope = Scope(MAIN, objects=True, parts=False)
    tasks = ("detection",)


class VocAction(Voc):
    """Objects with actions, of the images in ImageSets/Action."""

    name = "voc_action"
    title = "Pascal VOC, action classification only"
    scope = Scope(ACTION, objects=True, parts=False, only="actions")
    tasks = ("action_classification",)


class VocLayout(Voc):
    """Objects with parts, of the images in ImageSets/Layout."""

    name = "voc_layout"
    title = "Pascal VOC, person layout only"
    scope = Scope(LAYOUT, objects=True, only="parts")
    tasks = ("person_layout",)


class VocSegmentation(Voc):
    """Masks of the images in ImageSets/Segmentation, by instance where there are instance masks."""

    name = "voc_segmentation"
    title = "Pascal VOC, class and instance segmentation only"
    scope = Scope(SEGMENTATION, masks=True)
    tasks = ("segmentation",)


class VocInstanceSegmentation(VocSegmentation):
    """As voc_segmentation, masks that belong to no instance left out."""

    name = "voc_instance_segmentation"
    title = "Pascal VOC, instance segmentation only"
    scope = Scope(SEGMENTATION, masks=True, only="instances")


__all__ = [
    "Voc",
    "VocAction",
    "VocClassification",
    "VocDetection",
    "VocInstanceSegmentation",
    "VocLayout",
    "VocSegmentation",
]
