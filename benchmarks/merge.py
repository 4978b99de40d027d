"""Intersect merge: seconds by number of items, and by annotations of one item; the pairs of annotations there are.

usage: python benchmarks/merge.py [--items 10000 100000] [--crowd 300 3000] [--annotators 3] [--engine local]

Every annotator draws each of about 7 boxes of an item (and of --crowd boxes of one single item) a little differently, and leaves out one
in twenty. Two annotations are a candidate pair when they are of one item and of two annotators and their boxes overlap;
all pairs of an item are shown beside them.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import rayds

from rayds import Categories, Dataset
from rayds.schema import AnnotationType, annotation_rows, item_table, list_of, media_rows

LABELS = [f"class_{i:02d}" for i in range(80)]
SIDE = 640  # pixels of an image


class Boxes:
    """What is in the images: boxes and labels by item."""

    def __init__(self, items: int, each: int | None, seed: int = 0) -> None:
        self.random = random = np.random.default_rng(seed)
        counts = random.geometric(1 / 7.3, items) if each is None else np.full(items, each)
        self.item = np.repeat(np.arange(items), counts)
        self.items, self.label = items, random.integers(0, len(LABELS), len(self.item))
        largest = SIDE / 3 if each is None else 3 * SIDE / each**0.5
        size = random.uniform(largest / 4, largest, (len(self.item), 2))
        self.box = np.hstack([random.uniform(0, 1, size.shape) * (SIDE - size), size])

    def seen(self, folder: Path) -> Any:
        """Write the dataset of one annotator; returns (item, box) of what it has."""
        kept = self.random.random(len(self.item)) > 0.05
        item, box = self.item[kept], self.box[kept] + self.random.normal(0, 2, (int(kept.sum()), 4))
        box = np.round(np.maximum(box, 0.5), 2)
        n = len(item)
        rows = annotation_rows(
            n,
            type=np.full(n, int(AnnotationType.bbox)),
            id=np.arange(n) + 1,
            group=np.arange(n) + 1,
            label=self.label[kept],
            points=list_of(pa.array(box.ravel()), np.full(n, 4)),
        )
        names = [f"{i:09d}" for i in range(self.items)]
        media = media_rows(
            self.items,
            path=pa.array([f"{name}.jpg" for name in names]),
            width=np.full(self.items, SIDE),
            height=np.full(self.items, SIDE),
        )
        counts = np.bincount(item, minlength=self.items)
        table = item_table(self.items, rows, counts, id=pa.array(names), subset="train", media=media)
        Dataset.from_arrow(table, Categories.of(LABELS), engine="local").export(str(folder), "rayds")
        return item, box


def pairs(parts: list[Any]) -> tuple[int, int]:
    """(pairs of annotations of two annotators in one item, those whose boxes overlap)."""
    everything = overlapping = 0
    for k, (item, box) in enumerate(parts):
        for other, others in parts[k + 1 :]:
            starts, ends = (np.searchsorted(other, item, side=s) for s in ("left", "right"))
            count = ends - starts
            everything += int(count.sum())
            a = np.repeat(np.arange(len(item)), count)
            b = np.arange(len(a)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(starts, count)
            low = np.maximum(box[a, :2], others[b, :2])
            high = np.minimum(box[a, :2] + box[a, 2:], others[b, :2] + others[b, 2:])
            overlapping += int((high > low).all(1).sum())
    return everything, overlapping


def prepare(folder: str, items: int, each: int | None, annotators: int) -> tuple[int, int, int]:
    """Write the datasets of all annotators; returns (objects, all pairs, candidate pairs)."""
    boxes = Boxes(items, each)
    everything, overlapping = pairs([boxes.seen(Path(folder) / str(k)) for k in range(annotators)])
    return len(boxes.item), everything, overlapping


def count(folder: str) -> int:
    """The annotations of a rayds dataset."""
    return sum(
        len(b.column("annotations").combine_chunks().flatten()) for b in Dataset.import_from(folder).blocks()
    )


def run(items: int, each: int | None, annotators: int, engine: str) -> None:
    """One line of the results."""
    # In another process: what this one holds would count as memory of those that it starts.
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as apart:
        objects, everything, overlapping = apart.submit(prepare, folder, items, each, annotators).result()
        out = str(Path(folder) / "out")
        inputs = [f"{folder}/{k}:rayds" for k in range(annotators)]
        done = rayds("merge", *inputs, "-m", "intersect", "-o", out, "-f", "rayds", "--engine", engine)
        left = apart.submit(count, out).result()
    print(
        f"{items:9,} {objects:11,} {overlapping:11,} {everything:13,} {left:9,} {done.seconds:8.1f} {done.mib:7,.0f}"
        f" {overlapping / done.seconds:12,.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--crowd", type=int, nargs="*", default=[300, 3_000])
    parser.add_argument("--annotators", type=int, default=3)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    args = parser.parse_args()
    print(
        "    items     objects  candidates     all pairs    merged  seconds     MiB  candidates/s",
    )
    for items in args.items:
        run(items, None, args.annotators, args.engine)
    for each in args.crowd:
        run(1, each, args.annotators, args.engine)


if __name__ == "__main__":
    main()
