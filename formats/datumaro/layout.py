"""The format's class: detection, plan, files."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds import media
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
)
from rayds.formats._estimate import about_records
from rayds.formats._meta import write_meta
from rayds.formats.datumaro import header, write
from rayds.formats.datumaro.read import read_file
from rayds.infos import DATASET
from rayds.listing import Listing
from rayds.schema import DEFAULT_SUBSET, AnnotationType, media_field, single_chunk
from rayds.storage import Storage

ANNOTATIONS = "annotations"
FRAGMENTS = ".fragments"
MEDIA_FOLDERS = {"image": "images", "point_cloud": "point_clouds"}


class Datumaro(Format):
    """Datumaro's native JSON; see the package."""

    name = "datumaro"
    title = "Datumaro's native JSON, all kinds of annotations"
    family = header.FAMILY
    checks_boxes = (
        False  # it is what other steps of a pipeline leave: what is written is read, whatever it is
    )
    holds = Capabilities(
        annotations=frozenset(AnnotationType),
        attributes=True,
        item_attributes=True,
        ids=True,
        groups=True,
        z_order=True,
        media=frozenset({"image", "point_cloud"}),
    )

    # reading

    def detect(self, files: Listing) -> Confidence:
        names = _files(files)
        if not names:
            return Confidence.no(f"no {ANNOTATIONS}/*.json")
        for name in names:
            if not header.has_keys(_root(files), name):
                return Confidence.no(f"{name} has no top-level keys 'categories' and 'items'")
            return Confidence(90, f"{name} has the keys 'categories' and 'items'")
        return Confidence.no("no files")

    def root(self, files: Listing) -> Storage:
        return _root(files)

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        del ctx
        root, names = _root(files), _files(files)
        if not names:
            raise DataError(
                f"no {ANNOTATIONS}/*.json in it",
                file=files.root.path(files.file or ""),
                remedy="Check the path",
            )
        merged = header.Merged()
        shards = []
        for name in names:
            subset = posixpath.splitext(posixpath.basename(name))[0]
            remap = merged.add(header.read_header(root, name), subset, root.path(name))
            shards.append(Shard(name, (name, subset, remap), root.size(name), file=root.path(name)))
        return Plan(merged.categories(), shards, infos={self.family: merged.own})

    def estimate(self, shard: Shard, root: Storage) -> int | None:
        return about_records(root, shard.data[0], b'"annotations"')

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        name, subset, remap = shard.data
        yield from read_file(name, subset, remap, ctx)

    # writing

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        del ctx
        return f"{MEDIA_FOLDERS['image']}/{subset}"

    def extensions(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        """Point clouds keep their own extension, whatever the images get."""
        images = super().extensions(block, ctx)
        clouds = _is_cloud(block)
        if not pc.any(clouds).as_py():
            return images
        found = pc.struct_field(
            pc.extract_regex(media_field(block, "path"), r"(?P<ext>\.[A-Za-z0-9]{1,5})$"), "ext"
        )
        return pc.if_else(clouds, pc.coalesce(found, pa.scalar(".pcd")), images)

    def media_names(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        names = super().media_names(block, ctx)
        images, clouds = (f"{MEDIA_FOLDERS[k]}/" for k in ("image", "point_cloud"))
        moved = pc.replace_substring_regex(names, f"^{images}", clouds)
        return pc.if_else(_is_cloud(block), moved, names)

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> list[dict[str, Any]]:
        block = write.check(block, ctx)
        subsets = single_chunk(block, "subset")
        fragments: list[dict[str, Any]] = []
        for k, subset in enumerate(pc.unique(subsets).to_pylist()):
            _check_subset(subset)
            only = len(fragments) == 0 and pc.all(pc.equal(subsets, subset)).as_py()
            part = block if only else block.filter(pc.equal(subsets, subset))
            name = f"{FRAGMENTS}/{position.index:06d}-{k}.json"
            kinds = pc.unique(media_field(part, "kind")).drop_null().to_pylist()
            self._write_part(part, name, ctx)
            fragments.append({"subset": subset, "file": name, "kinds": sorted(kinds)})
        return fragments

    def _write_part(self, part: pa.Table, name: str, ctx: WriteContext) -> None:
        saved = bool(ctx.options.save_media)
        if saved:
            _save_related(part, self.media_names(part, ctx), ctx)
        with ctx.out.create(name) as f:
            done = 0
            for piece in write.pieces(part):
                done += piece.num_rows
                texts = write.record_texts(piece, self.file_names(piece, ctx), saved)
                f.write(write.record_bytes(texts, last=done == part.num_rows))

    def finish(self, fragments: Sequence[Any], ctx: WriteContext) -> None:
        own = ctx.infos.get(self.family) or {}
        parts: dict[str, list[bytes | str]] = {}
        kinds: set[str] = set()
        for fragment in (f for block in fragments for f in block):
            kinds.update(fragment["kinds"])
            listed = parts.setdefault(fragment["subset"], [])
            if listed:
                listed.append(b",")
            listed.append(fragment["file"])
        for subset, listed in (parts or {DEFAULT_SUBSET: []}).items():
            head = header.header_text(ctx.categories, own, subset, kinds, ctx.infos.get(DATASET)).encode()
            ctx.out.concatenate([head, *listed, b"]}\n"], f"{ANNOTATIONS}/{subset}.json", used_up=True)
        ctx.out.remove(FRAGMENTS)
        if ctx.options.save_dataset_meta:
            write_meta(ctx.out, ctx.categories)


def _root(files: Listing) -> Storage:
    """The dataset's folder, also when the user names an annotation file in it."""
    return files.root.parent if files.file and files.root.name == ANNOTATIONS else files.root


def _files(files: Listing) -> list[str]:
    """The annotation files, relative to the dataset's folder."""
    if files.file is None:
        return files.glob(f"{ANNOTATIONS}/*.json")
    if not files.file.lower().endswith(".json"):
        return []
    return [f"{ANNOTATIONS}/{files.file}" if files.root.name == ANNOTATIONS else files.file]


def _is_cloud(block: pa.Table) -> pa.Array:
    return pc.fill_null(pc.equal(media_field(block, "kind"), "point_cloud"), False)


def _check_subset(subset: str) -> None:
    """Raise DataError when a subset can't be the name of a file."""
    if not subset or "/" in subset or "\\" in subset or "\0" in subset or subset in (".", ".."):
        raise DataError(
            f"the subset {subset!r} can't be the name of a file in {ANNOTATIONS}/",
            remedy="Rename it with map_subsets",
        )


def _save_related(part: pa.Table, names: pa.Array, ctx: WriteContext) -> None:
    """Copy the images that belong to point clouds; those that are missing are counted as lost."""
    for i in np.flatnonzero(_is_cloud(part).to_numpy(zero_copy_only=False)).tolist():
        row = single_chunk(part, "media")[i].as_py()
        if not row["related"]:
            continue
        subset, item = single_chunk(part, "subset")[i].as_py(), single_chunk(part, "id")[i].as_py()
        stem = posixpath.splitext(names[i].as_py())[0].split("/", 2)[2]
        for source, name in zip(row["related"], write.related_names(stem, row["related"], True), strict=True):
            image = {"kind": "image", "path": source, "data": None, "encoding": None}
            try:
                media.save(image, ctx.out, f"{MEDIA_FOLDERS['image']}/{subset}/{name}")
            except DataError as e:
                ctx.lose("related images that can't be read", 1, f"item {item!r}: {e.file or source}")
