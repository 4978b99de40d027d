"""Dataset: the one class users hold. Lazy and immutable: every method returns a new one; work is done when
items are asked for or written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayds.callbacks import map_items, named, select_items
from rayds.categories import Categories
from rayds.engine import make_engine
from rayds.engine.base import Block, Blocks, Engine, add_counts
from rayds.engine.local import LocalEngine
from rayds.errors import DataError, FormatError, OnError, UnknownNameError
from rayds.export import export
from rayds.format import (
    BLOCK_ROWS,
    Expected,
    Format,
    Ids,
    PlanContext,
    ReadContext,
    Restart,
    WriteContext,
)
from rayds.infos import settled
from rayds.item import DatasetItem, from_table, to_table
from rayds.listing import Listing
from rayds.losses import take_lost
from rayds.operations import Operating
from rayds.reading import ShardReader, Source, expected_items
from rayds.registry import detect_format, get_format
from rayds.report import Report
from rayds.resume import was_restarted
from rayds.samples import Recipe
from rayds.schema import DEFAULT_SUBSET, conform, empty_table, split_errors
from rayds.storage import Storage
from rayds.training import Feeding

Build = Callable[[Engine], Blocks]


class Dataset(Feeding, Operating):
    """A dataset of items: images, frames or point clouds with annotations.

    Make one with `import_from`, `from_iterable`, `from_arrow` or `from_ray`. It is a recipe: nothing is read
    before items are asked for. Iteration gives DatasetItem objects in the order of the source.
    """

    def __init__(
        self,
        build: Build | None = None,
        categories: Any = None,
        *,
        ids: Ids = "unknown",
        infos: Mapping[str, Any] | None = None,
        format: str | None = None,
        path: str | None = None,
        engine: Engine | str | None = None,
        on_error: OnError | str = OnError.RAISE,
        size: int = 0,
        expect: Callable[[], Expected | None] | None = None,
        narrow: Callable[[frozenset[str]], Build] | None = None,
    ) -> None:
        self._build = build or _from_tables([])
        self._narrow = narrow  # how to build it with some columns only, for a source that can
        self._categories, self._ids = Categories.of(categories), ids
        self._infos = dict(infos or {})
        self._format, self._path, self._size, self._expect = format, path, size, expect
        self._engine, self._on_error = engine, OnError(on_error)
        self._counts: dict[str, int] | None = None
        self._steps: tuple[str, ...] = ()  # what was done to what was read
        self._sources: tuple[Source, ...] = ()  # what was read

    def _derive(self, build: Build, step: str, *others: Dataset, **changes: Any) -> Dataset:
        """A dataset made of this one, and of others where it takes several; step: what is done, for --resume."""
        own: dict[str, Any] = {
            "ids": self._ids,
            "infos": self._infos,
            "format": self._format,
            "path": self._path,
            "engine": self._engine,
            "on_error": self._on_error,
            "size": self._size,
        }
        categories = changes.pop("categories", self._categories)
        made = Dataset(build, categories, **{**own, **changes})
        made._steps = (*(s for d in (self, *others) for s in d._steps), step)
        made._sources = tuple(s for d in (self, *others) for s in d._sources)
        return made

    # making

    @classmethod
    def import_from(
        cls,
        path: str,
        format: str | None = None,
        *,
        engine: Engine | str | None = None,
        on_error: OnError | str = OnError.RAISE,
        **options: Any,
    ) -> Dataset:
        """The dataset at a path or URL, in a format (detected when None); options: those of the format's reader.

        Raises FileNotFoundError, FormatError, UsageError, and DataError when the dataset as a whole can't be read.
        """
        files = Listing(path)
        fmt = get_format(format) if format else detect_format(path)
        if not fmt.reads:
            raise FormatError(f"the format {fmt.name!r} can only be written")
        made = fmt.ReadOptions.make(options)
        policy = OnError(on_error)
        runner = make_engine(engine) if engine is not None and engine != "auto" else LocalEngine()
        plan = fmt.plan(files, PlanContext(made, policy, runner.fold_inputs))
        root = fmt.root(files)
        size = sum(s.size or 0 for s in plan.shards)

        def reader(engine: Engine, columns: frozenset[str] | None = None) -> ShardReader:
            ctx = ReadContext(root, made, plan.categories, policy, columns=columns)
            if isinstance(engine, LocalEngine):
                ctx.workers = max(1, engine.workers // max(1, len(plan.shards)))
            ctx.restartable, ctx.align = engine.restartable, engine.align
            return ShardReader(fmt, ctx)

        def blocks(engine: Engine, columns: frozenset[str] | None = None) -> Blocks:
            read = reader(engine, columns)
            return fmt.source(engine, plan, read.ctx, read)

        dataset = cls(
            blocks,
            plan.categories,
            ids=plan.ids,
            infos=plan.infos,
            format=fmt.name,
            path=path,
            engine=engine,
            on_error=policy,
            size=size,
            expect=lambda: expected_items(fmt, plan.shards, root),
            narrow=lambda columns: lambda engine: blocks(engine, columns),
        )
        by_shards = partial(fmt.by_shards, plan, made)
        dataset._sources = (Source(path, plan.shards, fmt.name, made, policy, reader, by_shards),)
        return dataset

    @classmethod
    def from_iterable(
        cls, items: Iterable[DatasetItem], categories: Any = None, *, engine: Engine | str | None = None
    ) -> Dataset:
        """A dataset of items in memory; categories: label names, LabelCategories or a mapping by AnnotationType.

        Raises DataError when two items have the same id and subset.
        """
        tables, held = [], []
        seen: set[tuple[str, str]] = set()
        for item in items:
            if (item.id, item.subset) in seen:
                raise DataError("the id occurs twice in the subset " + repr(item.subset), item=item.id)
            seen.add((item.id, item.subset))
            held.append(item)
            if len(held) == BLOCK_ROWS:
                tables.append(to_table(held))
                held = []
        tables.append(to_table(held))
        return cls(_from_tables(tables), Categories.of(categories), engine=engine)

    @classmethod
    def from_arrow(
        cls,
        tables: pa.Table | Iterable[pa.Table],
        categories: Any = None,
        *,
        engine: Engine | str | None = None,
    ) -> Dataset:
        """A dataset of item tables in memory (see rayds.ITEM_SCHEMA; missing columns become null)."""
        tables = [tables] if isinstance(tables, pa.Table) else list(tables)
        return cls(_from_tables([conform(t) for t in tables]), Categories.of(categories), engine=engine)

    @classmethod
    def from_ray(cls, dataset: Any, categories: Any = None) -> Dataset:
        """A dataset of a ray.data.Dataset whose rows have the columns of rayds.ITEM_SCHEMA."""
        return cls(
            lambda engine: engine.map(engine.adopt(dataset), conform), Categories.of(categories), engine="ray"
        )

    # looking

    def categories(self) -> Categories:
        """The categories, by AnnotationType."""
        return self._categories

    @property
    def format(self) -> str | None:
        """The name of the format it was read in."""
        return self._format

    @property
    def infos(self) -> dict[str, Any]:
        """What the source says of the whole dataset, by format family."""
        return settled(self._infos)

    def expected(self) -> Expected | None:
        """How many items there will be, or about how many, where the source tells it without being read."""
        return self._expect() if self._expect else None

    def _run(self, engine: Engine | str | None = None) -> tuple[Engine, Blocks]:
        found = make_engine(engine if engine is not None else self._engine, size=self._size)
        return found, self._build(found)

    def _filtered(self, fn: Callable[[pa.Table], pa.Table]) -> Dataset:
        """The rows that fn leaves, which looks at id and subset only."""
        narrow = self._narrow
        narrowed = narrow and (lambda columns: lambda engine: engine.map(narrow(columns)(engine), fn))
        return self._derive(lambda engine: engine.map(self._build(engine), fn), named(fn), narrow=narrowed)

    def _narrowed(self, columns: frozenset[str]) -> Dataset:
        """The dataset with these columns only (others may be there, or empty), not to be shown to users."""
        return self if self._narrow is None else self._derive(self._narrow(columns), "some columns")

    def _recipe(self, columns: Any, decode: bool, resize: Any, fit: str, targets: Any, multi: bool) -> Recipe:
        labels = len(self._categories.labels)
        return Recipe.of(columns, decode, resize, fit, targets, multi, labels, self._on_error)

    def blocks(self) -> Iterator[pa.Table]:
        """The item tables, in order, without error rows."""
        engine, blocks = self._run()
        for block in engine.iterate(blocks):
            good = take_lost(split_errors(block)[0])[0]
            if good.num_rows:
                yield good

    def __iter__(self) -> Iterator[DatasetItem]:
        for block in self.blocks():
            yield from from_table(block)

    def _subset_counts(self) -> dict[str, int]:
        if self._counts is None:
            engine, blocks = self._run()
            self._counts = engine.fold(blocks, _count_subsets, add_counts) or {}
        return self._counts

    def __len__(self) -> int:
        return sum(self._subset_counts().values())

    def subsets(self) -> dict[str, Dataset]:
        """The subsets by name, in the order in which they occur."""
        return {name: self.get_subset(name) for name in self._subset_counts()}

    def get_subset(self, name: str) -> Dataset:
        """The items of one subset; raises UnknownNameError for one that is known not to be there."""
        if self._counts is not None and name not in self._counts:
            raise UnknownNameError("subset", name, self._counts)
        made = self._filtered(partial(_only_subset, name))
        if self._counts is not None:
            made._counts = {name: self._counts[name]} if name in self._counts else {}
        return made

    def as_dataset(self) -> Dataset:
        """This dataset (a subset is a dataset)."""
        return self

    def get(self, id: str, subset: str | None = None) -> DatasetItem | None:
        """The item of an id (and a subset), or None. Reads until it is found."""
        for block in self.blocks():
            found = pc.equal(block.column("id"), str(id))
            if subset is not None:
                found = pc.and_(found, pc.equal(block.column("subset"), subset))
            rows = block.filter(found)
            if rows.num_rows:
                return next(from_table(rows))
        return None

    def __contains__(self, key: object) -> bool:
        id, subset = key if isinstance(key, tuple) else (key, None)
        return self.get(str(id), subset) is not None

    def __repr__(self) -> str:
        labels = self._categories.labels
        first = ", ".join(labels.names()[:5]) + (", ..." if len(labels) > 5 else "")
        parts = [f"format={self._format}" if self._format else "in memory" if self._path is None else ""]
        if self._path:
            parts.append(f"{'derived from ' if self._steps else 'path='}{self._path!r}")
        if self._counts is None and self._path is None and self._engine != "ray":
            self._subset_counts()
        if self._counts is not None:
            names = ", ".join(f"{s}: {n:,}" for s, n in self._counts.items())
            parts.append(f"{sum(self._counts.values()):,} items ({names})" if names else "0 items")
        else:
            parts.append("not read yet")
        parts.append(f"{len(labels)} labels" + (f" ({first})" if first else ""))
        return f"Dataset({', '.join(filter(None, parts))})"

    # changing

    def map_batches(self, fn: Callable[[pa.Table], pa.Table], **changes: Any) -> Dataset:
        """fn over item tables; it returns one with the same schema (rows may be fewer or more).

        changes: categories=..., ids=... of the result where fn changes them.
        """
        if "categories" in changes:
            changes["categories"] = Categories.of(changes["categories"])
        return self._derive(lambda engine: engine.map(self._build(engine), fn), named(fn), **changes)

    def map(self, fn: Callable[[DatasetItem], DatasetItem | None], *, categories: Any = None) -> Dataset:
        """fn over items; None leaves the item out. categories: those of the result, when fn changes labels."""
        changes = {} if categories is None else {"categories": Categories.of(categories)}
        return self.map_batches(partial(map_items, fn, self._on_error), ids="unknown", **changes)

    def select(self, fn: Callable[[DatasetItem], bool]) -> Dataset:
        """The items for which fn is true."""
        return self.map_batches(partial(select_items, fn, self._on_error))

    def put(self, item: DatasetItem) -> Dataset:
        """The dataset with an item at its end; one of the same id and subset is replaced."""
        rest = self.remove(item.id, item.subset)
        table = to_table([item])
        return rest._derive(
            lambda engine: engine.chain([rest._build(engine), engine.source([table], _itself)]),
            f"put {item!r}",
            ids="unknown",
        )

    def remove(self, id: str, subset: str | None = None) -> Dataset:
        """The dataset without the item of an id and subset (default: "default")."""
        return self.map_batches(partial(_without, str(id), subset or DEFAULT_SUBSET))

    def materialize(self) -> Dataset:
        """The dataset read into memory (of the cluster, on Ray), so that it is read once only."""
        engine, blocks = self._run()
        held = engine.materialize(blocks)
        return self._derive(lambda other: other.adopt(held), "materialize", engine=engine)

    # leaving

    def to_arrow(self) -> pa.Table:
        """All items as one table (of rayds.ITEM_SCHEMA)."""
        return pa.concat_tables([empty_table(), *self.blocks()])

    def export(
        self,
        path: str,
        format: str,
        save_media: bool | None = None,
        *,
        overwrite: bool = False,
        strict: bool = False,
        resume: bool = False,
        engine: Engine | str | None = None,
        on_error: OnError | str | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Report:
        """Write the dataset to a folder or URL in a format; all of it or nothing. Returns what was written and lost.

        options: those of the format's writer. strict: raise LossError when the format can't hold everything.
        resume: go on with an interrupted run of the same export (else start anew), and if this one fails leave what is
        complete in `<path>.rayds-partial`; raises ResumeError when that is of another export, or the input changed.
        """
        fmt = get_format(format)
        if "save_images" in options:
            save_media = bool(options.pop("save_images"))
        if save_media is not None:
            options["save_media"] = save_media
        return self.write(
            path,
            fmt,
            fmt.WriteOptions.make(options),
            overwrite=overwrite,
            strict=strict,
            resume=resume,
            engine=engine,
            on_error=on_error,
            progress=progress,
        )

    def write(
        self,
        path: str,
        fmt: Format,
        options: Any,
        *,
        overwrite: bool = False,
        strict: bool = False,
        resume: bool = False,
        engine: Engine | str | None = None,
        on_error: OnError | str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Report:
        """Like export, for a format object and its WriteOptions."""
        ctx = WriteContext(
            Storage(path),
            options,
            self._categories,
            ids=self._ids,
            infos=fmt.told(self._infos),
            source_format=self._format,
            on_error=self._on_error if on_error is None else OnError(on_error),
        )

        def run(found: Engine) -> Report:
            return export(
                found,
                self._build(found),
                fmt,
                ctx,
                sources=self._sources,
                steps=self._steps,
                overwrite=overwrite,
                strict=strict,
                resume=resume,
                progress=progress,
            )

        found = make_engine(engine if engine is not None else self._engine, size=self._size)
        whole = ctx.on_error is OnError.RAISE and len(self._sources) == 1 and not self._steps
        align = fmt.rows_per_block(options) if whole else None
        if not (resume and was_restarted(ctx.out)):
            try:  # nothing is published before the end: readers may go ahead of what they know
                return run(found.for_job(restartable=True, align=align))
            except Restart:
                pass
        return run(found.for_job(align=align))


def _from_tables(tables: list[pa.Table]) -> Build:
    return lambda engine: engine.source(tables, lambda table: iter([table]))


def _count_subsets(block: Block) -> dict[str, int]:
    good = split_errors(block)[0]
    return {v["values"]: v["counts"] for v in pc.value_counts(good.column("subset")).to_pylist()}


def _itself(table: pa.Table) -> Iterator[Block]:
    return iter([table])


def _without(id: str, subset: str, block: Block) -> Block:
    same = pc.and_(pc.equal(block.column("id"), id), pc.equal(block.column("subset"), subset))
    return block.filter(pc.invert(same))


def _only_subset(name: str, block: Block) -> Block:
    return block.filter(pc.equal(block.column("subset"), name or DEFAULT_SUBSET))
