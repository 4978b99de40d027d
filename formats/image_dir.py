"""image_dir: a folder of images, without annotations.

Images are found in all folders below; the id of an item is the path of its image without the extension.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.categories import Categories
from rayds.engine.base import Position
from rayds.errors import DataError, UsageError
from rayds.format import (
    Capabilities,
    Confidence,
    Format,
    Plan,
    PlanContext,
    ReadContext,
    Shard,
    WriteContext,
    item_id,
)
from rayds.formats._hashes import hashes
from rayds.listing import Listing
from rayds.media import is_image
from rayds.options import Options, SaveMedia, option
from rayds.schema import DEFAULT_SUBSET, item_table, media_field, media_rows, single_chunk

SHARD_FILES = 5000
DETECT_FILES = 1000


# Files about a folder that don't make it another format.
_BESIDE = re.compile(r"(licen[cs]e|copying|notice|readme|origin|attribution|thumbs)\b.*", re.IGNORECASE)


class ImageDir(Format):
    """Images by name; nothing else is read or written."""

    name = "image_dir"
    title = "a folder of images (no annotations)"
    family = "image_dir"
    holds = Capabilities(subsets=False)

    @dataclass(frozen=True)
    class ReadOptions(Options):
        subset: str = option(DEFAULT_SUBSET, help="name of the subset that the images become")

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        save_media: bool = option(
            True, aliases=("save-images",), help="write the images (always: this format is nothing else)"
        )

    # reading

    def detect(self, files: Listing) -> Confidence:
        if files.file:
            return (
                Confidence(5, "an image file") if is_image(files.file) else Confidence.no("not an image file")
            )
        found = 0
        for name in islice(_visible(files), DETECT_FILES):
            if is_image(name):
                found += 1
            elif not _BESIDE.match(posixpath.basename(name)):
                return Confidence.no(f"{name} is not an image")
        return Confidence(5, "only image files") if found else Confidence.no("no image files")

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        names = [files.file] if files.file else sorted(n for n in _visible(files) if is_image(n))
        if not names or not is_image(names[0]):
            raise DataError(
                "no image files in it or in the folders below",
                file=files.root.path(files.file or ""),
                remedy="Check the path",
            )
        first: dict[str, str] = {}  # one file for each id
        again: dict[str, str] = {}  # the others -> the one that has their id already
        for name in names:
            if (kept := first.setdefault(item_id(name), name)) != name:
                again[name] = kept
        shards = []
        for start in range(0, len(names), SHARD_FILES):
            part = names[start : start + SHARD_FILES]
            taken = {n: again[n] for n in part if n in again} if again else {}
            # one text pickles faster, and is smaller, than a list of thousands
            shards.append(Shard(part[0], ("\0".join(part), ctx.options.subset, taken), items=len(part)))
        return Plan(Categories(), shards, ids="none")

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        text, subset, taken = shard.data
        names = text.split("\0")
        for name, kept in taken.items():
            ctx.bad(
                DataError(
                    f"two images would be one item: {name} and {kept}",
                    file=ctx.root.path(name),
                    item=item_id(name),
                    remedy="Rename one of them, or leave the second out with --on-error skip",
                ),
                subset,
            )
        if taken:
            names = [n for n in names if n not in taken]
        for start in range(0, len(names), ctx.block_rows):
            yield self._table(names[start : start + ctx.block_rows], subset, ctx)

    def _table(self, part: list[str], subset: str, ctx: ReadContext) -> pa.Table:
        try:
            names = pa.array(part, pa.string())
        except UnicodeEncodeError:
            names = pa.array([n for n in part if self._is_text(n, subset, ctx)], pa.string())
        ids = pc.replace_substring_regex(pc.replace_substring(names, "\\", "/"), r"\.[^./]*$", "")
        paths = pc.binary_join_element_wise(ctx.root.url.rstrip("/"), names, "/")
        return item_table(len(names), id=ids, subset=subset, media=media_rows(len(names), path=paths))

    def _is_text(self, name: str, subset: str, ctx: ReadContext) -> bool:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode("utf-8", "backslashreplace").decode()
            ctx.bad(DataError("the file name is not UTF-8", file=shown, remedy="Rename the file"), subset)
            return False
        return True

    # writing

    def prepare(self, ctx: WriteContext) -> None:
        if not ctx.options.save_media:
            raise UsageError("image_dir holds images only: leave --save-media at its default, true")

    def media_names(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        names = super().media_names(block, ctx)
        images = pc.equal(media_field(block, "kind"), "image")
        return pc.if_else(pc.fill_null(images, False), names, pa.scalar(None, pa.string()))

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> npt.NDArray[np.uint64]:
        """The images are written already; returns a hash of the id of each."""
        del position
        has = pc.is_valid(media_field(block, "kind"))
        ids = single_chunk(block, "id")
        without = ids.filter(pc.invert(has))
        if len(without):
            ctx.lose("items without an image", len(without), f"item {without[0].as_py()!r}")
        return hashes(ids.filter(has))

    def finish(self, fragments: Sequence[Any], ctx: WriteContext) -> None:
        """Raises DataError when items of different subsets have one id: one image would replace the other."""
        values, counts = np.unique(
            np.concatenate([hashes(pa.array([], pa.string())), *fragments]), return_counts=True
        )
        twice = values[counts > 1]
        if not len(twice):
            return
        ids = pa.array([item_id(n) for n in Listing(ctx.out.url).walk()], pa.string())
        example = next(iter(ids.filter(pa.array(np.isin(hashes(ids), twice))).to_pylist()), None)
        raise DataError(
            f"{len(twice):,} ids occur in more than one subset, and image_dir has no subsets: images would be lost",
            item=example,
            remedy="Export one subset at a time, or rename the items first",
        )


def _visible(files: Listing) -> Iterator[str]:
    return (n for n in files.walk() if not posixpath.basename(n).startswith("."))
