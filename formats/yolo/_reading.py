"""One shard of images and label files to an item table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayds.categories import LabelCategories
from rayds.errors import DataError
from rayds.format import ReadContext
from rayds.formats._images_meta import FILE as META_FILE
from rayds.formats._images_meta import load_images_meta
from rayds.formats.yolo._labels import BadLine, parse, read_labels
from rayds.formats.yolo._paths import Part, Resolver, below, read_list, set_base, split_entry
from rayds.formats.yolo._scan import labels_beside, stem
from rayds.formats.yolo._shapes import Setting, annotations_of, check, outside
from rayds.media import probe
from rayds.schema import AnnotationType, annotation_rows, item_table, media_rows
from rayds.storage import Storage

PROBE_THREADS = 8


@dataclass(frozen=True)
class Images:
    """The images of a shard: item ids, paths of images and label files relative to the dataset."""

    ids: list[str]
    paths: list[str]
    labels: list[str]


def images_of(part: Part, root: Storage) -> Images:
    """The images that a shard names."""
    if part.list_file is None:
        return Images(list(part.ids), list(part.names), list(part.labels))
    data = root.read_range(part.list_file, part.start, part.end)
    entries = [split_entry(e) for e in read_list(data, root.path(part.list_file))]
    resolver = Resolver(root)
    where: dict[
        str, tuple[str, str]
    ] = {}  # folder in the list -> folders, with a slash, of the path and of the id
    for folder in {f for f, _ in entries}:
        inside = resolver.folder(folder)
        base = set_base(inside)
        own = below(inside + "/", part.base if base is None else base).lstrip("/")
        where[folder] = (f"{inside}/" if inside else "", own)
    paths = [where[f][0] + n for f, n in entries]
    ids = [stem(where[f][1] + n) for f, n in entries]
    return Images(ids, paths, labels_beside(paths, root))


def read_images(part: Part, ctx: ReadContext, setting: Setting) -> Iterator[pa.Table]:
    """The items of a shard with the annotations of their label files."""
    images = images_of(part, ctx.root)
    n = len(images.ids)
    if not n:
        return
    lines, bad = parse(read_labels(ctx.root, images.labels))
    bad.update({i: b for i, b in check(lines, setting).items() if i not in bad or b.number < bad[i].number})
    wrong = {i: _line_error(b, ctx.root.path(images.labels[i]), images.ids[i]) for i, b in bad.items()}
    for i, number in part.again:
        wrong[i] = DataError(
            "the list names the image a second time",
            file=ctx.root.path(part.list_file or ""),
            item=images.ids[i],
            place=f"line {number}",
            remedy="Take the line out, or leave it out with --on-error skip",
        )
    needed = np.zeros(n, bool)
    needed[lines.file] = True
    needed[list(wrong)] = False
    height, width = _sizes(part, images, needed, ctx, wrong)
    good = np.ones(n, bool)
    for i in sorted(wrong):
        ctx.bad(wrong[i], part.subset)
        good[i] = False
    if not good[lines.file].all():
        lines = lines.only(good[lines.file])
    if (off := outside(lines, setting)).any():
        for k in np.flatnonzero(off):  # the item stays, without the box
            i = int(lines.file[k])
            line = BadLine(int(lines.number[k]), "the box lies outside the image")
            ctx.bad(_line_error(line, ctx.root.path(images.labels[i]), images.ids[i]), part.subset)
        lines = lines.only(~off)
    rows, item = annotations_of(
        lines, setting, width[lines.file].astype(np.float64), height[lines.file].astype(np.float64)
    )
    root = ctx.root.path()
    table = item_table(
        n,
        rows,
        np.bincount(item, minlength=n),
        id=images.ids,
        subset=part.subset,
        media=media_rows(
            n,
            path=[f"{root}/{p}" for p in images.paths],
            height=pa.array(height, mask=height < 0),
            width=pa.array(width, mask=width < 0),
        ),
    )
    yield table if good.all() else table.filter(pa.array(good))


def read_classes(part: Part, ctx: ReadContext, labels: LabelCategories) -> Iterator[pa.Table]:
    """The items of a shard of class folders: the first folder below the set's names the class."""
    ids = list(part.ids)
    index = [labels.index(below(n, part.base).split("/", 1)[0]) for n in part.names]
    n = len(ids)
    rows = annotation_rows(n, type=int(AnnotationType.label), label=pa.array(index, pa.int32()))
    root = ctx.root.path()
    media = media_rows(n, path=[f"{root}/{p}" for p in part.names])
    yield item_table(n, rows, np.ones(n, np.int32), id=ids, subset=part.subset, media=media)


def _line_error(bad: BadLine, file: str, item: str) -> DataError:
    return DataError(
        bad.reason,
        file=file,
        item=item,
        place=f"line {bad.number}",
        remedy="Correct the line, or leave such items out with --on-error skip",
    )


def _sizes(
    part: Part, images: Images, needed: np.ndarray, ctx: ReadContext, wrong: dict[int, DataError]
) -> tuple[np.ndarray, np.ndarray]:
    """(height, width) of the images: of all from images.meta, of those needed also from their headers; -1 unknown."""
    n = len(images.ids)
    height, width = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    if part.token:
        meta = load_images_meta(ctx.root, part.token)
        height, width = meta.find(part.subset, pa.array(images.ids, pa.string()))
        if (left := np.flatnonzero(height < 0)).size:
            others = pa.array([images.paths[i] for i in left], pa.string())
            height[left], width[left] = meta.find(part.subset, others)
    todo = np.flatnonzero(needed & (height < 0)).tolist()

    def one(i: int) -> tuple[int, int] | DataError:
        path = ctx.root.path(images.paths[i])
        try:
            size = probe(path)
        except DataError as e:
            return DataError(e.reason, file=e.file or path, item=images.ids[i], remedy=e.remedy)
        if size is not None:
            return size
        remedy = (
            f"Put the images in their place, or give the size in {META_FILE} ('<ID> <height> <width>' a line)"
        )
        return DataError(
            "the image, whose size its boxes need, is missing", file=path, item=images.ids[i], remedy=remedy
        )

    for i, size in zip(todo, _threaded(one, todo), strict=True):
        if isinstance(size, DataError):
            wrong[i] = size
        else:
            height[i], width[i] = size
    return height, width


def _threaded(
    one: Callable[[int], tuple[int, int] | DataError], todo: list[int]
) -> Sequence[tuple[int, int] | DataError]:
    if len(todo) < 2:
        return [one(i) for i in todo]
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        return list(pool.map(one, todo))
