"""rayds: the library's own format: item tables as Parquet files, and one JSON file about the whole dataset.

    data/part-00000.parquet ...   item tables (the columns of rayds.ITEM_SCHEMA), readable by anything
    images/<subset>/<id><ext>     the images, when they were saved
    rayds.json                    version, categories, counts, the list of the files; written last

It holds everything that an item can hold. Parquet follows https://parquet.apache.org/docs/file-format/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayds import media
from rayds.categories import Categories
from rayds.engine.base import Position
from rayds.errors import DataError, FormatError, UsageError
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
from rayds.listing import Listing
from rayds.options import Options, SaveMedia, option
from rayds.schema import (
    ITEM_SCHEMA,
    AnnotationType,
    conform,
    flat,
    media_field,
    single_chunk,
    with_annotations,
    with_media,
)
from rayds.storage import Storage, io_threads, is_url, safe_relative

VERSION = 1
INDEX = "rayds.json"
ROW_GROUP_ROWS = 2500
ROW_GROUP_BYTES = 64 << 20  # of embedded images
SHARD_BYTES = 256 << 20  # a bigger file is read by several tasks
READ_AHEAD = 64  # images

# How media.path is meant: as it was in the source, relative to the dataset, or not at all.
REFERENCED, SAVED, EMBEDDED = "referenced", "saved", "embedded"


def _leaves(name: str, type_: pa.DataType) -> Iterator[str]:
    """The Parquet column paths of an Arrow field."""
    if pa.types.is_struct(type_):
        for f in type_:
            yield from _leaves(f"{name}.{f.name}", f.type)
    elif pa.types.is_list(type_):
        yield from _leaves(f"{name}.list.element", type_.value_type)
    else:
        yield name


COLUMNS = [leaf for f in ITEM_SCHEMA for leaf in _leaves(f.name, f.type)]
BLOB = "media.data"
# Values that differ in every row gain nothing from a dictionary. Coordinates do: those with two decimals halve,
# and where there are too many different ones the writer falls back by itself.
DICTIONARY = [c for c in COLUMNS if c not in ("id", "media.path", BLOB)]
NUMBERS = {
    AnnotationType.bbox: (4,),
    AnnotationType.ellipse: (4,),
    AnnotationType.rotated_bbox: (5,),
    AnnotationType.cuboid_3d: (9, 10),
}
STATISTICS = ["id", "subset", "annotations.list.element.type", "annotations.list.element.label"]


class RaydsParquet(Format):
    """Sharded Parquet item tables with an index; see the module."""

    name = "rayds"
    title = "rayds: sharded Parquet, holds everything"
    family = "rayds"
    all_infos = True
    checks_boxes = False  # what rayds wrote it reads, whatever it is
    holds = Capabilities(
        annotations=frozenset(AnnotationType),
        attributes=True,
        item_attributes=True,
        ids=True,
        groups=True,
        z_order=True,
        media=frozenset({"image", "point_cloud"}),
        extra=True,
        edits=True,
    )

    @dataclass(frozen=True)
    class ReadOptions(Options):
        columns: tuple[str, ...] = option(
            (),
            help="read only these columns (and id and subset); the others come empty",
            choices=ITEM_SCHEMA.names,
        )

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        shard_size: int | None = option(None, help="items a file (default: 10000, or 1000 with --embed)")
        embed: bool = option(False, help="write the images into the Parquet files instead of beside them")
        compression: str = option("zstd", help="of the Parquet files", choices=("zstd", "snappy", "none"))

        def __post_init__(self) -> None:
            if self.embed:  # the images have their place: no copies beside the files
                object.__setattr__(self, "save_media", False)

    # reading

    def detect(self, files: Listing) -> Confidence:
        if files.file not in (None, INDEX):
            return Confidence.no(f"{files.file} is not {INDEX}")
        if files.exists(INDEX):
            try:
                _load_index(files.root)
            except DataError as e:
                return Confidence(50, f"{INDEX} is there, but {e.reason}")
            return Confidence(95, f"{INDEX} lists the files")
        if files.glob("data/part-*.parquet"):
            return Confidence(30, f"data/part-*.parquet, but {INDEX} is missing")
        return Confidence.no(f"no {INDEX}")

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        del ctx
        if files.file not in (None, INDEX):
            raise FormatError(f"{files.root.path(files.file)}: give the dataset's folder, or its {INDEX}")
        index = _load_index(files.root)
        file = files.root.path(INDEX)
        try:
            shards = [s for entry in index["shards"] for s in _shards(entry, index["media"], files.root)]
            categories = Categories.from_json(index["categories"])
            infos = dict(index["infos"])
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(f"damaged ({type(e).__name__}: {e})", file=file, remedy=_AGAIN) from e
        missing = [s.data[0] for s in shards if not files.exists(s.data[0])]
        if missing:
            raise DataError(
                f"{len(set(missing))} of the files in {INDEX} are missing",
                file=files.root.path(missing[0]),
                remedy="Copy the dataset again, whole",
            )
        ids: Ids = index["ids"] if index["ids"] in ("unique", "none") else "unknown"
        return Plan(categories, shards, ids, infos)

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        name, groups, rows, relative = shard.data
        file = ctx.root.path(name)
        wanted = {"id", "subset", *ctx.options.columns} if ctx.options.columns else set(ITEM_SCHEMA.names)
        if ctx.columns is not None:
            wanted &= ctx.columns
        done = 0
        for table in _tables(ctx, name, groups, wanted):
            try:
                block = conform(table)
            except (ValueError, pa.ArrowException) as e:
                raise DataError(f"not an item table ({e})", file=file, remedy=_AGAIN) from e
            if "annotations" not in wanted:
                empty = flat(block).rows.slice(0, 0)
                block = with_annotations(block, empty, np.zeros(block.num_rows, np.int32))
            _check(block, ctx, file)
            done += block.num_rows
            yield _resolve(block, ctx, file) if relative else block
        if done != rows:
            raise DataError(
                f"{done} items, but {INDEX} says {rows}", file=file, remedy="The file was replaced: " + _AGAIN
            )

    # writing

    def rows_per_block(self, options: Any) -> int | None:
        return int(options.shard_size or (1000 if options.embed else 10000))

    def prepare(self, ctx: WriteContext) -> None:
        if ctx.options.shard_size is not None and ctx.options.shard_size < 1:
            raise UsageError(f"--shard-size: {ctx.options.shard_size} is not 1 or more")

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        del ctx
        return f"images/{subset}"

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> dict[str, Any]:
        parts = chain.from_iterable(self._parts(chunk, ctx) for chunk in _chunks(block))
        name = f"data/part-{position.index:05d}.parquet"
        found: dict[str, Any] = {"file": name, "items": 0, "annotations": 0, "subsets": {}, "row_groups": []}
        with ctx.out.create(name) as f:
            with pq.ParquetWriter(f, ITEM_SCHEMA, **_properties(ctx.options.compression)) as writer:
                for group in _row_groups(parts):
                    group = group.combine_chunks().replace_schema_metadata(None)
                    writer.write_table(group, row_group_size=group.num_rows)
                    found["row_groups"].append(group.num_rows)
                    found["items"] += group.num_rows
                    found["annotations"] += len(flat(group))
                    for v in pc.value_counts(group.column("subset")).to_pylist():
                        found["subsets"][v["values"]] = found["subsets"].get(v["values"], 0) + v["counts"]
            found["bytes"] = f.tell()
        return found

    def _parts(self, chunk: pa.Table, ctx: WriteContext) -> Iterable[pa.Table]:
        if ctx.options.embed:
            return self._embedded(chunk, ctx)
        if ctx.options.save_media:
            return [
                with_media(chunk, path=self.media_names(chunk, ctx), data=None, encoding=None, edits=None)
            ]
        return [chunk]

    def _embedded(self, block: pa.Table, ctx: WriteContext) -> Iterator[pa.Table]:
        """The block in small parts, with the bytes of the images in the place of their paths."""
        ids, subsets = single_chunk(block, "id"), single_chunk(block, "subset")
        extensions = self.extensions(block, ctx)
        with ThreadPoolExecutor(io_threads(*media_field(block, "path").to_pylist())) as pool:
            for start in range(0, block.num_rows, READ_AHEAD):
                part = block.slice(start, READ_AHEAD)
                rows = single_chunk(part, "media").to_pylist()
                names = extensions.slice(start, READ_AHEAD).to_pylist()
                data: list[bytes | None] = []
                keep = np.ones(len(rows), bool)
                for i, loaded in enumerate(pool.map(_load_media, rows, names)):
                    if isinstance(loaded, DataError):
                        keep[i] = False
                        ctx.bad(
                            DataError(
                                loaded.reason,
                                file=loaded.file,
                                item=ids[start + i].as_py(),
                                remedy=loaded.remedy,
                            ),
                            subsets[start + i].as_py(),
                        )
                        loaded = None
                    data.append(loaded)
                part = with_media(
                    part, path=None, data=pa.array(data, pa.binary()), encoding=names, edits=None
                )
                yield part if keep.all() else part.filter(pa.array(keep))

    def finish(self, fragments: Sequence[Any], ctx: WriteContext) -> None:
        shards = list(fragments)
        if not shards:  # nothing was written, yet other programs expect a table with these columns
            shards = [self.write(ITEM_SCHEMA.empty_table(), Position(0), ctx)]
        subsets: dict[str, int] = {}
        for shard in shards:
            for name, n in shard["subsets"].items():
                subsets[name] = subsets.get(name, 0) + n
        index = {
            "format": "rayds",
            "version": VERSION,
            "items": sum(s["items"] for s in shards),
            "annotations": sum(s["annotations"] for s in shards),
            "subsets": subsets,
            "source_format": ctx.source_format,
            "ids": ctx.ids,
            "media": EMBEDDED if ctx.options.embed else SAVED if ctx.options.save_media else REFERENCED,
            "categories": ctx.categories.to_json(),
            "infos": ctx.infos,
            "shards": shards,
        }
        ctx.out.write_text(INDEX, json.dumps(index, ensure_ascii=False, indent=1) + "\n")


_AGAIN = "Write the dataset again"


def _load_index(root: Storage) -> dict[str, Any]:
    """rayds.json, checked for its format and version."""
    file = root.path(INDEX)
    try:
        index = json.loads(root.read_text(INDEX))
    except FileNotFoundError:
        raise DataError(
            f"{INDEX} is missing: the dataset is not complete, the job that wrote it did not finish",
            file=root.url,
            remedy="Run that job again; the Parquet files alone don't say what the labels mean",
        ) from None
    except (json.JSONDecodeError, RecursionError) as e:
        raise DataError(f"it is not JSON ({e})", file=file, remedy=_AGAIN) from e
    if (
        not isinstance(index, dict)
        or index.get("format") != "rayds"
        or not isinstance(index.get("version"), int)
    ):
        raise DataError('it does not say "format": "rayds" and a version', file=file, remedy=_AGAIN)
    if index["version"] > VERSION:
        raise DataError(
            f"it has version {index['version']}, and this release reads up to {VERSION}",
            file=file,
            remedy="Install a newer release of rayds",
        )
    absent = [k for k in ("shards", "categories", "media") if k not in index]
    if absent:
        raise DataError(f"it lacks {', '.join(map(repr, absent))}", file=file, remedy=_AGAIN)
    return {"ids": "unknown", "infos": {}, **index}


def _shards(entry: dict[str, Any], media_mode: str, root: Storage) -> Iterator[Shard]:
    """The read tasks of one file: itself, or groups of its row groups when it is big."""
    name = safe_relative(entry["file"])
    relative = media_mode == SAVED
    groups, size = [int(n) for n in entry["row_groups"]], int(entry["bytes"])
    tasks = min(len(groups), -(-size // SHARD_BYTES)) if size else 1
    if tasks <= 1:
        rows = int(entry["items"])
        yield Shard(name, (name, None, rows, relative), size, root.path(name), rows)
        return
    for part in np.array_split(np.arange(len(groups)), tasks):
        chosen = part.tolist()
        rows = sum(groups[g] for g in chosen)
        yield Shard(
            f"{name}#{chosen[0]}", (name, chosen, rows, relative), size // tasks, root.path(name), rows
        )


def _tables(ctx: ReadContext, name: str, groups: list[int] | None, wanted: set[str]) -> Iterator[pa.Table]:
    """The item tables of a file, ctx.block_rows rows each or less (less where images are embedded)."""
    file = ctx.root.path(name)
    try:
        with ctx.root.open(name) as f, pq.ParquetFile(f, pre_buffer=not ctx.root.local) as parquet:
            meta = parquet.metadata
            columns = [c for c in parquet.schema_arrow.names if c in wanted]
            for g in range(meta.num_row_groups) if groups is None else groups:
                table = parquet.read_row_group(g, columns=columns, use_threads=ctx.workers > 1)
                mean = table.nbytes / max(1, table.num_rows)
                rows = max(1, min(ctx.block_rows, int(ROW_GROUP_BYTES / max(1.0, mean))))
                for start in range(0, table.num_rows, rows):
                    yield table.slice(start, rows)
    except FileNotFoundError as e:
        raise DataError("the file is missing", file=file, remedy="Copy the dataset again, whole") from e
    except (pa.ArrowException, OSError, ValueError, IndexError) as e:
        if isinstance(e, DataError):
            raise
        reason = re.sub(r"\s+", " ", str(e))[:200]
        raise DataError(
            f"not a whole Parquet file ({reason})",
            file=file,
            remedy="Copy the file again, or write the dataset again",
        ) from e


def _check(block: pa.Table, ctx: ReadContext, file: str) -> None:
    """Raise DataError for values that would break what works on the columns."""
    for name in ("id", "subset"):
        if block.column(name).null_count:
            raise DataError(f"an item has no {name}", file=file, remedy=_AGAIN)
    view = flat(block)
    if not len(view):
        return
    types, labels = view.type, view.numpy("label", -1)
    known = len(ctx.categories.labels)
    numbers = pc.fill_null(pc.list_value_length(view.column("points")), 0).to_numpy(zero_copy_only=False)
    masks = pc.is_valid(view.column("mask")).to_numpy(zero_copy_only=False)
    wrong = (types == AnnotationType.mask) & ~masks
    for kind, lengths in NUMBERS.items():
        wrong |= (types == kind) & ~np.isin(numbers, lengths)
    for kind in (AnnotationType.polygon, AnnotationType.polyline, AnnotationType.points):
        wrong |= (types == kind) & (numbers % 2 == 1)
    for bad, what in (
        (~np.isin(types, [int(t) for t in AnnotationType]), "an annotation has a type that is not known"),
        (wrong, "an annotation has too many or too few numbers for its type"),
        ((labels >= known) & (known > 0), f"a label is not one of the {known} in {INDEX}"),
    ):
        if bad.any():
            item = single_chunk(block, "id")[int(view.item[np.argmax(bad)])].as_py()
            raise DataError(what, file=file, item=item, remedy=_AGAIN)


def _resolve(block: pa.Table, ctx: ReadContext, file: str) -> pa.Table:
    """The block with media paths that are relative to the dataset made full."""
    paths = media_field(block, "path")
    odd = pc.match_substring_regex(paths, r"^/|^[a-zA-Z0-9+.-]+:|(^|[/\\])\.\.?([/\\]|$)|\\|\x00")
    full = pc.binary_join_element_wise(ctx.root.url.rstrip("/"), paths, "/")
    if pc.any(odd).as_py():
        ids = single_chunk(block, "id")
        odd_rows = np.flatnonzero(odd.fill_null(False).to_numpy(zero_copy_only=False))
        replaced = full.to_pylist()
        for row in odd_rows:
            path = paths[int(row)].as_py()
            if not is_url(path):
                path = ctx.root.path(safe_relative(path, file=file, item=ids[int(row)].as_py()))
            replaced[row] = path
        full = pa.array(replaced, pa.string())
    return with_media(block, path=full)


def _properties(compression: str) -> dict[str, Any]:
    """Fixed writer properties, so that the same items give the same bytes."""
    codecs = dict.fromkeys(COLUMNS, compression) | {BLOB: "none"}  # images are compressed already
    return {
        "compression": codecs,
        "compression_level": {c: 1 for c in COLUMNS if c != BLOB} if compression == "zstd" else None,
        "use_dictionary": DICTIONARY,
        "write_statistics": STATISTICS,
        "version": "2.6",
        "data_page_size": 1 << 20,
        "store_schema": True,
    }


def _load_media(row: dict[str, Any] | None, ext: str) -> bytes | DataError | None:
    if row is None:
        return None
    try:
        return media.load(row, ext)
    except DataError as e:
        return e


def _chunks(block: pa.Table) -> Iterator[pa.Table]:
    """A block as tables of one chunk: blocks of packed images pass the 2 GB that one Arrow array holds."""
    return (pa.Table.from_batches([batch]) for batch in block.to_batches())


def _row_groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of tables in groups of ROW_GROUP_ROWS, fewer where their images pass ROW_GROUP_BYTES."""
    held: list[pa.Table] = []
    rows = size = 0
    for part in parts:
        lengths = pc.fill_null(pc.binary_length(media_field(part, "data")), 0).to_numpy(zero_copy_only=False)
        ends = np.cumsum(lengths, dtype=np.int64)
        start = 0
        while start < part.num_rows:
            before = ends[start - 1] if start else 0
            full = (
                int(np.searchsorted(ends, before + ROW_GROUP_BYTES - size)) + 1
            )  # the row that fills the group
            end = min(start + ROW_GROUP_ROWS - rows, full, part.num_rows)
            held.append(part.slice(start, end - start))
            rows, size = rows + end - start, size + int(ends[end - 1] - before)
            if rows == ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
                yield pa.concat_tables(held)
                held, rows, size = [], 0, 0
            start = end
    if held:
        yield pa.concat_tables(held)
