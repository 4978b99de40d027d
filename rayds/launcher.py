"""The launcher plug-in kind: what a class must say and do to run a model over the images of a dataset.

A Launcher is made on the driver, sent to each worker, and loads its model there once.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds import options as base
from rayds.annotations import Annotation
from rayds.categories import Categories, LabelCategories
from rayds.engine.base import Block
from rayds.errors import DataError, EngineError, OnError, UsageError
from rayds.format import with_errors
from rayds.item import annotation_to_row
from rayds.media import row_pixels
from rayds.registry import load
from rayds.schema import ANNOTATION_TYPE, AnnotationType, flat, single_chunk, with_annotations
from rayds.storage import io_threads

Pixels = npt.NDArray[np.uint8]


class Launcher(ABC):
    """Base of launchers: annotations from images by a model.

    name: its entry point in the group rayds.launchers. title: one line for lists. `Launcher(**options)` checks
    the options; self.options has them.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""

    @dataclass(frozen=True)
    class Options(base.Options):
        """Options of the launcher."""

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.make(options)

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in vars(self.options).items())
        return f"{type(self).__name__}({given})"

    def load(self) -> None:
        """Load the model: once on every worker, before the first `infer`. What it keeps on self stays there."""

    @abstractmethod
    def infer(self, images: list[Pixels]) -> list[list[Annotation]]:
        """The annotations of each image. Images are (H, W, 3) uint8, BGR, each of its own size, as stored."""

    def categories(self) -> Categories | None:
        """What the labels of the annotations mean, asked on the driver; None: the same as in the dataset."""
        return None


def make_launcher(launcher: Launcher | str, options: Mapping[str, Any]) -> Launcher:
    """A launcher by name or as an object."""
    if isinstance(launcher, str):
        made: Launcher = load("launchers", launcher)(**options)
        return made
    if options:
        raise UsageError(f"{launcher!r} has its options already; give {', '.join(options)} where it is made")
    return launcher


def joined_categories(
    model: Categories | None, own: Categories, keep: bool
) -> tuple[Categories, npt.NDArray[np.int32]]:
    """(the categories of the result, the index in it of each label of the model).

    With `keep` labels of the same name are one, and new ones follow the dataset's; colours and key points
    stay those of the dataset.
    """
    if model is None:
        return own, np.arange(len(own.labels), dtype=np.int32)
    if not keep:
        return model, np.arange(len(model.labels), dtype=np.int32)
    labels = LabelCategories(list(own.labels), set(own.labels.attributes))
    index = [
        labels.index(c.name) if c.name in labels else labels.add(c.name, c.parent, c.attributes)
        for c in model.labels
    ]
    return Categories({**own, AnnotationType.label: labels}), np.asarray(index, np.int32)


class Inference:
    """The stage of `Dataset.run_model`, made once a worker: decodes images, asks the launcher, sets annotations."""

    def __init__(
        self, launcher: Launcher, index: npt.NDArray[np.int32], *, keep: bool, on_error: OnError
    ) -> None:
        self.launcher = copy.copy(launcher)  # what `load` keeps is this worker's
        self.index, self.keep, self.on_error = index, keep, on_error
        self.launcher.load()

    def __call__(self, block: Block) -> Block:
        ids = single_chunk(block, "id")
        media = single_chunk(block, "media").to_pylist()
        with ThreadPoolExecutor(io_threads(*(row["path"] for row in media if row))) as pool:
            found = list(pool.map(_pixels, ids.to_pylist(), media))
        bad = {i: f for i, f in enumerate(found) if isinstance(f, DataError)}
        if bad and self.on_error is OnError.RAISE:
            raise next(iter(bad.values()))
        good = block.filter(pa.array([i not in bad for i in range(len(found))])) if bad else block
        out = self._annotated(good, [f for f in found if not isinstance(f, DataError)])
        if self.on_error is OnError.RAISE:
            return out
        subsets = single_chunk(block, "subset")
        return with_errors(out, [{"subset": subsets[i].as_py(), **e.record()} for i, e in bad.items()])

    def _annotated(self, block: Block, images: Sequence[Pixels]) -> Block:
        if not images:
            return block
        made = self.launcher.infer(list(images))
        if len(made) != len(images):
            raise EngineError(
                f"the launcher {self.launcher.name!r} returned annotations for {len(made)} images, "
                f"not for the {len(images)} that it was given"
            )
        rows = pa.array([self._row(a) for anns in made for a in anns], ANNOTATION_TYPE)
        item = np.repeat(np.arange(len(made)), [len(anns) for anns in made])
        if self.keep:
            own = flat(block)
            groups = np.zeros(block.num_rows, np.int64)  # the highest of each item
            np.maximum.at(groups, own.item, own.numpy("group"))
            rows = _regrouped(rows, groups[item])
            item = np.concatenate([own.item, item])
            order = np.argsort(item, kind="stable")
            rows, item = pa.concat_arrays([own.rows, rows]).take(pa.array(order)), item[order]
        return with_annotations(block, rows, np.bincount(item, minlength=block.num_rows))

    def _row(self, annotation: Annotation) -> dict[str, Any]:
        row = annotation_to_row(annotation)
        label = annotation.label
        if label is not None:
            if not 0 <= label < len(self.index):
                raise EngineError(
                    f"the launcher {self.launcher.name!r} returned the label {label}, "
                    f"but its categories have {len(self.index)} labels"
                )
            row["label"] = int(self.index[label])
        return row


def _pixels(id: str, media: dict[str, Any] | None) -> Pixels | DataError:
    """The image of an item as (H, W, 3) uint8, BGR; or what is wrong with it."""
    import cv2

    if media is None or media["kind"] != "image" or not (media["data"] or media["path"]):
        return DataError(
            "the item has no image", item=id, remedy="A model needs the images: read them with the dataset"
        )
    try:
        # not turned by EXIF: annotations are of the image as stored
        return row_pixels(media, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except DataError as e:
        return DataError(e.reason, file=e.file, item=id, remedy=e.remedy)


def _regrouped(rows: pa.StructArray, above: npt.NDArray[np.int64]) -> pa.StructArray:
    """The annotations with their groups raised above those that are in their items already."""
    if not len(rows):
        return rows
    group = np.asarray(rows.field("group"))
    fields = {f.name: rows.field(f.name) for f in ANNOTATION_TYPE}
    fields["group"] = pa.array(np.where(group > 0, group + above, 0), pa.int64())
    return pa.StructArray.from_arrays(list(fields.values()), fields=list(ANNOTATION_TYPE))
