"""csv_boxes: one CSV file of boxes a subset. An example of a format plug-in for rayds, complete.

labels.txt      one label name a line
<subset>.csv    image,label,x1,y1,x2,y2: a line a box, those of an image together; no label: an image without boxes
images/         the images, if they are saved
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import rayds
from rayds.engine.base import Position
from rayds.errors import DataError, UsageError
from rayds.format import PlanContext, ReadContext, WriteContext, item_id
from rayds.listing import Listing
from rayds.options import SaveMedia
from rayds.storage import safe_output

HEADER = ["image", "label", "x1", "y1", "x2", "y2"]
LABELS = "labels.txt"
PARTS = ".parts"  # fragments of the CSV files, while they are written


class CsvBoxes(rayds.ItemFormat):
    """One CSV file of boxes a subset, label names in labels.txt.

    Specification: the text at the top of examples/plugin_format/rayds_csv_boxes.py.
    """

    name = "csv_boxes"
    title = "boxes as lines of CSV (an example plug-in)"
    family = "csv_boxes"
    # Whatever is not named here is counted in the loss report; nothing needs to be written for that.
    holds = rayds.Capabilities(annotations=frozenset({rayds.AnnotationType.bbox}), unlabeled=False)

    @dataclass(frozen=True)
    class ReadOptions(rayds.Options):
        """Options of the reader: `--read images=DIR` on the command line, images="DIR" in Python."""

        images: str = rayds.option("images", help="folder of the images")

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        """Options of the writer: `-- --digits 1` on the command line, digits=1 in Python."""

        digits: int | None = rayds.option(None, help="digits after the point of coordinates; default: all")

    # reading: detect and plan run once; read_items runs for each shard, on Ray in tasks side by side

    def detect(self, files: Listing) -> rayds.Confidence:
        for name in files.files():
            if name.endswith(".csv") and files.root.head(name).startswith(",".join(HEADER).encode()):
                return rayds.Confidence(80, f"{name} begins with {','.join(HEADER)}")
        return rayds.Confidence.no(f"no .csv file that begins with {','.join(HEADER)}")

    def plan(self, files: Listing, ctx: PlanContext) -> rayds.Plan:
        if not files.exists(LABELS):
            raise DataError(
                "the file is missing", file=files.root.path(LABELS), remedy="Write the label names to it"
            )
        names = files.root.read_text(LABELS).split("\n")
        shards = [rayds.Shard(n, n, files.root.size(n)) for n in files.files() if n.endswith(".csv")]
        return rayds.Plan(rayds.Categories.of([n for n in names if n]), shards, ids="none")

    def read_items(self, shard: rayds.Shard, ctx: ReadContext) -> Iterator[rayds.DatasetItem]:
        subset = shard.data.removesuffix(".csv")
        with ctx.root.open(shard.data) as raw:
            lines = csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline=""))
            for image, boxes in groupby(lines, key=lambda line: line["image"]):
                # what goes wrong inside is told with file and item, and obeys --on-error
                with ctx.guard(file=ctx.root.path(shard.data), item=item_id(image), subset=subset):
                    yield self._item(image, boxes, subset, ctx)

    def _item(
        self, image: str, lines: Iterable[dict[str, str]], subset: str, ctx: ReadContext
    ) -> rayds.DatasetItem:
        found: list[rayds.Annotation] = []
        for line in lines:
            if line["label"]:
                x1, y1, x2, y2 = (float(line[k]) for k in HEADER[2:])
                label = ctx.categories.labels.index(line["label"])
                found.append(rayds.Bbox(x1, y1, x2 - x1, y2 - y1, label=label))
        path = ctx.root.path(posixpath.join(ctx.options.images, image))
        return rayds.DatasetItem(item_id(image), found, subset=subset, image=path)

    # writing: prepare and finish run once; write_items runs for each block, on Ray in tasks side by side

    def prepare(self, ctx: WriteContext) -> None:
        if ctx.options.digits is not None and ctx.options.digits < 0:
            raise UsageError(f"--digits: {ctx.options.digits} is negative")

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        return "images"  # rayds saves the images there, as media_folder/id.ext

    def write_items(
        self, items: Iterable[rayds.DatasetItem], position: Position, ctx: WriteContext
    ) -> list[tuple[str, str]]:
        """Write a fragment for each run of items of one subset; returns (subset, fragment) of each.

        A task that is run again writes files of the same names: they follow from `position` alone.
        """
        written = []
        for n, (subset, run) in enumerate(groupby(items, key=lambda item: item.subset)):
            text = io.StringIO()
            lines = csv.writer(text, lineterminator="\n")
            for item in run:
                lines.writerows(self._lines(item, ctx))
            name = f"{PARTS}/{position.index:08}-{n}.csv"
            ctx.out.write_text(name, text.getvalue())
            written.append((subset, name))
        return written

    def _lines(self, item: rayds.DatasetItem, ctx: WriteContext) -> Iterator[list[Any]]:
        ext = ctx.options.image_ext or posixpath.splitext(item.image.path if item.image else "")[1] or ".jpg"
        boxes = [a for a in item.annotations if isinstance(a, rayds.Bbox) and a.label is not None]
        for box in boxes:
            points = [p if ctx.options.digits is None else round(p, ctx.options.digits) for p in box.points]
            yield [item.id + ext, ctx.categories.labels[box.label or 0].name, *points]
        if not boxes:
            yield [item.id + ext, *[""] * 5]

    def finish(self, fragments: Sequence[list[tuple[str, str]]], ctx: WriteContext) -> None:
        header = ",".join(HEADER).encode() + b"\n"
        parts: dict[str, list[bytes | str]] = {}
        for subset, name in (entry for fragment in fragments for entry in fragment):
            parts.setdefault(subset, [header]).append(name)
        for subset, names in parts.items():
            # a subset's name comes from the data: it must not lead out of the output folder
            ctx.out.concatenate(names, safe_output(f"{subset}.csv"))
        ctx.out.write_text(LABELS, "".join(f"{c.name}\n" for c in ctx.categories.labels))
        ctx.out.remove(PARTS)
