"""The format plug-in kind: what a class must say and do to be read and written by rayds.

``Format`` works on item tables (for formats whose speed matters); ``ItemFormat`` on DatasetItems.
Instances hold no state: everything that a call needs is in its arguments, which are sent to workers.
"""

from __future__ import annotations

import json
import os
import posixpath
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.categories import Categories
from rayds.engine.base import Block, Blocks, Engine, Position
from rayds.errors import DataError, FormatError, OnError, UsageError
from rayds.infos import DATASET, settled
from rayds.item import DatasetItem, from_table, to_table
from rayds.listing import Listing
from rayds.options import Options, SaveMedia
from rayds.schema import (
    DEFAULT_SUBSET,
    ERROR_COLUMN,
    ITEM_SCHEMA,
    AnnotationType,
    empty_table,
    flat,
    media_field,
    single_chunk,
    with_annotations,
)
from rayds.storage import Storage

T = TypeVar("T")

BLOCK_ROWS = 4096


def block_rows() -> int:
    """Items a block that readers give; RAYDS_BLOCK_ROWS overrides the default."""
    try:
        return max(1, int(os.environ.get("RAYDS_BLOCK_ROWS") or BLOCK_ROWS))
    except ValueError:
        raise UsageError(f"RAYDS_BLOCK_ROWS={os.environ['RAYDS_BLOCK_ROWS']!r} is no number") from None


Ids = Literal["unique", "none", "unknown"]


@dataclass(frozen=True)
class Confidence:
    """How sure a format is that a path holds a dataset of its kind; 0 = it does not, 100 = certain.

    reason: what was seen, or what is missing: shown by `rayds detect`.
    """

    score: int
    reason: str

    @classmethod
    def no(cls, reason: str) -> Confidence:
        """The path is not a dataset of this format, because ..."""
        return cls(0, reason)


@dataclass(frozen=True)
class Capabilities:
    """What an output format can hold. The loss report counts everything else.

    annotations: types. attributes, item_attributes: all (True), none (False) or the named ones.
    ids, groups, z_order: of annotations. unlabeled: annotations without a label. subsets: any (True), none
    (False: all items become one list) or the named ones. media: kinds of MEDIA_TYPE. extra: that of all families.
    edits: of images, see rayds.edits; other formats hold images with their edits made, if they are saved.
    needs_size: image sizes are read from the files where they are not known, before `write` is called.
    """

    annotations: frozenset[AnnotationType] = frozenset()
    attributes: bool | frozenset[str] = False
    item_attributes: bool | frozenset[str] = False
    ids: bool = False
    groups: bool = False
    z_order: bool = False
    unlabeled: bool = True
    subsets: bool | frozenset[str] = True
    media: frozenset[str] = frozenset({"image"})
    extra: bool = False
    edits: bool = False
    needs_size: bool = False


@dataclass(frozen=True)
class Shard:
    """What one read task reads. data: whatever the format's `read` needs, small and picklable.

    items: how many it holds, where that is known without reading; progress tells the time left by it.
    """

    name: str
    data: Any
    size: int | None = None  # bytes
    file: str | None = None  # full path of the file that messages name, where it is one
    items: int | None = None


class Expected(NamedTuple):
    """How many items there will be, with the bad ones. exact: counted, not estimated."""

    items: int
    exact: bool


@dataclass
class Plan:
    """What `Format.plan` found: categories, and the shards in the order of the items.

    ids: whether annotation ids are unique in each subset ("unique"), all 0 ("none") or not known.
    infos: facts about the whole dataset for the same format's writer, {family: JSON-like, or Later}. found: what `source` found out
    besides, so that it need not look again when the dataset is read again.
    """

    categories: Categories
    shards: list[Shard]
    ids: Ids = "unknown"
    infos: dict[str, Any] = field(default_factory=dict)
    found: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass
class PlanContext:
    """options: the format's ReadOptions. fold(inputs, map_fn, merge_fn): work on many files as engine tasks."""

    options: Any
    on_error: OnError = OnError.RAISE
    fold: Callable[[Sequence[Any], Callable[[Any], Any], Callable[[Any, Any], Any]], Any] = lambda i, m, r: (
        plain_fold(i, m, r)
    )


def plain_fold(inputs: Sequence[Any], map_fn: Callable[[Any], T], merge_fn: Callable[[T, T], T]) -> T | None:
    """map_fn over inputs, one after the other, results merged in order; None for no inputs."""
    result: T | None = None
    for i, value in enumerate(inputs):
        result = map_fn(value) if i == 0 else merge_fn(result, map_fn(value))  # type: ignore[arg-type]
    return result


class Restart(Exception):  # noqa: N818 (no error: a signal)
    """Raised by a reader that took something for granted (see ReadContext.restartable) and was wrong."""


@dataclass
class ReadContext:
    """What `Format.read` gets besides the shard.

    restartable: nothing that the reader yields is final yet; it may yield early what it expects to be true of the
    rest of the source, and raise Restart when it is not: then all is thrown away and read again without this.
    align: see Engine.align.
    columns: those of the item table that are wanted (id and subset among them), None: all; a reader that can may
    leave the others empty.
    root: the dataset's folder. workers: threads that the reader may use itself. bad(): report a bad item;
    under the policy raise it raises, otherwise the reader leaves the item out and goes on.
    """

    root: Storage
    options: Any
    categories: Categories
    on_error: OnError = OnError.RAISE
    workers: int = 1
    block_rows: int = field(default_factory=block_rows)
    restartable: bool = False
    align: int | None = None
    columns: frozenset[str] | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)

    def bad(self, error: DataError, subset: str = DEFAULT_SUBSET) -> None:
        """Report a bad item (error.item names it) or part of one."""
        if self.on_error is OnError.RAISE:
            raise error
        self.errors.append({"subset": subset, **error.record()})

    @contextmanager
    def guard(
        self, *, file: str | None = None, item: str | None = None, subset: str = DEFAULT_SUBSET
    ) -> Iterator[None]:
        """Turn what goes wrong inside into a report of a bad item that names file and item."""
        try:
            yield
        except DataError as e:
            error = DataError(
                e.reason, file=e.file or file, item=e.item or item, place=e.place, remedy=e.remedy
            )
            error.__cause__ = e.__cause__
            self.bad(error, subset)
        except FileNotFoundError as e:
            self.bad(DataError(f"a file is missing: {e.filename or e}", file=file, item=item), subset)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError) as e:
            what = f"the key {e} is missing" if isinstance(e, KeyError) else str(e)
            self.bad(DataError(what, file=file, item=item), subset)


@dataclass
class WriteContext:
    """What `Format.write` and `finish` get besides the items.

    out: the staging folder. ids: see Plan. infos: the source's facts about the whole dataset (see Format.told). subsets: the names
    that occur, when known. lose(): report what was left out. bad(): report an item that can't be written.
    """

    out: Storage
    options: Any
    categories: Categories
    ids: Ids = "unknown"
    infos: dict[str, Any] = field(default_factory=dict)
    source_format: str | None = None
    on_error: OnError = OnError.RAISE
    state: dict[str, Any] = field(default_factory=dict)  # set by Format.prepare
    losses: dict[str, tuple[int, str]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def lose(self, kind: str, n: int, example: str = "") -> None:
        """Count n things of a kind that the output can't hold; example: one of them."""
        if n:
            had = self.losses.get(kind)
            self.losses[kind] = (n + (had[0] if had else 0), had[1] if had else example)

    def bad(self, error: DataError, subset: str = DEFAULT_SUBSET) -> None:
        """Report an item that can't be written; raises under the policy raise, else leave the item out."""
        if self.on_error is OnError.RAISE:
            raise error
        self.errors.append({"subset": subset, **error.record()})


class Format(ABC):
    """Base of formats that read and write item tables.

    name: what the user types. title: one line for `rayds formats`. family: key of `extra` and `infos`, shared
    by task variants (coco, coco_instances, ...). holds: None for a format that can't be written; reads: False
    for one that can't be read. default_ext: extension of images whose source has none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str]
    holds: ClassVar[Capabilities | None] = None
    reads: ClassVar[bool] = True
    default_ext: ClassVar[str] = ".jpg"
    block_rows: ClassVar[int | None] = None  # write blocks of exactly so many items
    needs_offsets: ClassVar[bool] = False  # whether `write` uses Position.offsets
    checks_boxes: ClassVar[bool] = (
        True  # whether boxes that `read` gives wholly outside their image are bad items
    )
    own_media: ClassVar[bool] = False  # whether `write` saves the images itself
    all_infos: ClassVar[bool] = False  # whether the output holds the facts of all families

    def __repr__(self) -> str:
        return f"<format {self.name}: {self.title}>"

    @dataclass(frozen=True)
    class ReadOptions(Options):
        """Options of the reader."""

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        """Options of the writer."""

    # reading

    def detect(self, files: Listing) -> Confidence:
        """How sure this is the format of a path; looks at names and the heads of few files only."""
        return Confidence.no("this format can't be detected; name it")

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        """Categories and shards, on the driver. Raises DataError or FormatError when there is no such dataset."""
        raise FormatError(f"the format {self.name!r} can't be read")

    def root(self, files: Listing) -> Storage:
        """The folder that `read` gets as ctx.root."""
        return files.root

    def estimate(self, shard: Shard, root: Storage) -> int | None:
        """About how many items a shard of this format's plan has, where it doesn't say (Shard.items); None: unknown.

        Called only where progress is shown; must be cheap: a few small reads, whatever the size.
        """
        del root
        return shard.items

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        """The item tables of a shard, in order, of about ctx.block_rows rows each."""
        raise NotImplementedError

    def source(
        self, engine: Engine, plan: Plan, ctx: ReadContext, read: Callable[[Shard], Iterable[Block]]
    ) -> Blocks:
        """The blocks of all shards: one task a shard, which calls `read` (read_shard under ctx).

        A format may divide the work in another way; `by_shards` then says so.
        """
        del ctx
        return engine.source(plan.shards, read)

    def by_shards(self, plan: Plan, options: Any, engine: Engine) -> bool:
        """Whether `source` reads every shard by itself: an interrupted export then need not read finished ones again."""
        del plan, options, engine
        return True

    # writing

    def told(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        """What the writer gets of the facts about the whole dataset: those of its family, and those that are nobody's."""
        return settled(infos, None if self.all_infos else (self.family, DATASET))

    def capabilities(self, options: Any) -> Capabilities:
        """What the output holds with these options."""
        if self.holds is None:
            raise FormatError(f"the format {self.name!r} can't be written")
        return self.holds

    def rows_per_block(self, options: Any) -> int | None:
        """Blocks handed to `write` have exactly so many items (the last may have fewer); None: any number."""
        del options
        return self.block_rows

    def prepare(self, ctx: WriteContext) -> None:
        """Check options and categories before anything is written; may set ctx.state (small, picklable)."""

    def count(self, block: pa.Table, ctx: WriteContext) -> dict[str, int]:
        """What the block adds to the offsets of later blocks, when needs_offsets."""
        return {}

    def uses_offsets(self, ctx: WriteContext) -> bool:
        """Whether `write` needs Position.offsets, now that options and survey are known."""
        del ctx
        return self.needs_offsets

    def needs_survey(self, ctx: WriteContext) -> bool:
        """Whether all blocks must be looked at once before the first is written."""
        del ctx
        return False

    def survey(self, block: pa.Table, ctx: WriteContext) -> Any:
        """What must be known of a block before writing: small, picklable, with a method merge(other)."""
        raise NotImplementedError

    def use_survey(self, found: Any, ctx: WriteContext) -> None:
        """Keep in ctx.state what the merged survey says."""

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        """The folder of a subset's images, relative to the output."""
        return ""

    def media_names(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        """The path of each item's image relative to the output: folder of its subset / id + extension."""
        subsets = single_chunk(block, "subset").dictionary_encode()
        folders = pa.array([self.media_folder(s, ctx) for s in subsets.dictionary.to_pylist()], pa.string())
        folders = folders.take(subsets.indices)
        prefix = pc.if_else(pc.equal(folders, ""), "", pc.binary_join_element_wise(folders, "", "/"))
        return pc.binary_join_element_wise(prefix, self.file_names(block, ctx), "")

    def file_names(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        """The file name of each item's image: id + extension (may hold folders, as ids do)."""
        return pc.binary_join_element_wise(single_chunk(block, "id"), self.extensions(block, ctx), "")

    def extensions(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        """The extension that each item's image gets: --image-ext, the source's, or the format's own."""
        if ctx.options.image_ext:
            ext = ctx.options.image_ext
            return pa.repeat(ext if ext.startswith(".") else f".{ext}", block.num_rows)
        found = pc.struct_field(
            pc.extract_regex(media_field(block, "path"), r"(?P<ext>\.[A-Za-z0-9]{1,5})$"), "ext"
        )
        return pc.coalesce(found, media_field(block, "encoding"), pa.scalar(self.default_ext))

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> Any:
        """Write a block; returns a small picklable fragment. Names of files must follow from `position`."""
        raise NotImplementedError

    def finish(self, fragments: Sequence[Any], ctx: WriteContext) -> None:
        """Join the fragments (in item order) into the dataset's final files, on the driver."""


class ItemFormat(Format):
    """Base of formats that read and write DatasetItems, where rarity or pixels outweigh a Python loop."""

    def read_items(self, shard: Shard, ctx: ReadContext) -> Iterator[DatasetItem]:
        """The items of a shard, in order."""
        raise NotImplementedError

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        held: list[DatasetItem] = []
        for item in self.read_items(shard, ctx):
            held.append(item)
            if len(held) >= min(ctx.block_rows, 1024):
                yield to_table(held)
                held = []
        if held:
            yield to_table(held)

    def write_items(self, items: Iterable[DatasetItem], position: Position, ctx: WriteContext) -> Any:
        """Write some items; returns a small picklable fragment."""
        raise NotImplementedError

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> Any:
        return self.write_items(from_table(block), position, ctx)


def read_shard(fmt: Format, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
    """The item tables of a shard; under skip and quarantine with the error column and a row for each bad item."""
    return read_checked(fmt.read, shard, ctx, fmt.checks_boxes)


def read_checked(
    read: Callable[[Shard, ReadContext], Iterator[pa.Table]], shard: Shard, ctx: ReadContext, boxes: bool
) -> Iterator[pa.Table]:
    """What `read` gives for a shard as `read_shard` gives it; boxes: whether those outside their image are bad."""
    ctx = replace(ctx, errors=[])
    check = partial(without_outside_boxes, shard=shard, ctx=ctx) if boxes else lambda table: table
    if ctx.on_error is OnError.RAISE:
        yield from map(check, read(shard, ctx))
        return
    try:
        for table in map(check, read(shard, ctx)):
            yield with_errors(table, ctx.errors)
            ctx.errors.clear()
    except DataError as e:  # the shard itself is bad: what was read of it stands
        ctx.errors.append({"subset": DEFAULT_SUBSET, **e.record()})
    if ctx.errors:
        yield with_errors(empty_table(), ctx.errors)


def without_outside_boxes(table: pa.Table, shard: Shard, ctx: ReadContext) -> pa.Table:
    """The table without boxes that lie wholly outside their image (where its size is known): those are bad.

    A box that reaches over the border stays as it is.
    """
    view = flat(table)
    boxes = np.flatnonzero(view.type == AnnotationType.bbox)
    if not len(boxes):
        return table
    points = view.column("points").take(pa.array(boxes)) if len(boxes) < len(view) else view.column("points")
    x, y, w, h = points.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).T
    item = view.item[boxes]
    width, height = (
        media_field(table, n).fill_null(0).to_numpy(zero_copy_only=False)[item] for n in ("width", "height")
    )
    known = (width > 0) & (height > 0)
    outside = known & ((x > width) | (y > height) | (x + w < 0) | (y + h < 0))
    if not outside.any():
        return table
    ids, subsets = single_chunk(table, "id"), single_chunk(table, "subset")
    for i in np.flatnonzero(outside):
        row = int(item[i])
        reason = (
            f"the box {x[i]:g}, {y[i]:g}, {w[i]:g}, {h[i]:g} lies outside the image of {width[i]}x{height[i]}"
        )
        error = DataError(
            reason,
            file=shard.file or f"{ctx.root.url} ({shard.name})",
            item=ids[row].as_py(),
            remedy="Correct it, or read with --on-error skip",
        )
        ctx.bad(error, subsets[row].as_py())
    keep = np.ones(len(view), bool)
    keep[boxes[outside]] = False
    group = view.numpy("group")
    for i in boxes[outside]:  # the other rows of the object go with its box
        if group[i]:
            keep &= ~((view.item == view.item[i]) & (group == group[i]))
    return with_annotations(
        table, view.rows.filter(pa.array(keep)), np.bincount(view.item[keep], minlength=len(ids))
    )


def with_errors(table: pa.Table, errors: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The table with the error column, and one row more for every error."""
    good = table.append_column(ERROR_COLUMN, pa.nulls(table.num_rows, pa.string()))
    if not errors:
        return good
    bad = pa.Table.from_pylist(
        [{"id": e.get("item") or "", "subset": e["subset"]} for e in errors], schema=ITEM_SCHEMA
    )
    return pa.concat_tables(
        [good, bad.append_column(ERROR_COLUMN, pa.array([json.dumps(e) for e in errors]))]
    )


def item_id(file_name: str) -> str:
    """The id of an item from the relative name of its image: without extension, "/" between folders."""
    return posixpath.splitext(file_name.replace("\\", "/"))[0]
