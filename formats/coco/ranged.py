"""Reading the annotation files of a COCO subset by byte ranges, in tasks side by side; equal to what SubsetReader gives.

1. Every range is scanned for its marks (rayds.formats._ranges), every image read for its id: then the driver knows which
   bytes hold what, and the number of every image. Where a job may start again, ranges of annotations that seem to be in order
   are not scanned (rayds.formats._sketch): the tasks prove that they are. 2. Where annotations surely come in the order of the
   images, each task reads those of some consecutive images. Else every task reads the annotations of a range, and the
   engine brings the rows of `block_rows` consecutive images together.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import Block, Blocks, Engine
from rayds.errors import DataError, OnError
from rayds.format import ReadContext, Restart, Shard, read_checked
from rayds.formats._ranges import PieceScanner, Run, file_changed, find_marks, reader, whole_files
from rayds.formats._sketch import sketch_marks
from rayds.formats.coco.cuts import aligned_cuts
from rayds.formats.coco.items import SPATIAL, Assembly, Ints, part_of, skeleton_errors, stranger_errors
from rayds.formats.coco.layout import SECTIONS, TASKS
from rayds.formats.coco.merge import SOURCES, Grouping, ascending
from rayds.formats.coco.order import Ids, Order, ids_of, order_between, order_of
from rayds.formats.coco.panoptic import panoptic_rows
from rayds.formats.coco.plain import annotations_of
from rayds.formats.coco.ranged_ids import find_repeated
from rayds.formats.coco.ranged_images import Images, MarkedFile, number_images
from rayds.formats.coco.rows import MARKED, NO_ID, Rows
from rayds.schema import ANNOTATION_TYPE, empty_table

ONLY_IMAGES = 16  # blocks of images without annotations that one task reads

_EXCHANGED = pa.schema(
    [("bucket", pa.int64()), ("key", pa.int64()), ("row", ANNOTATION_TYPE), ("problem", pa.string())]
)


@dataclass(frozen=True)
class Proof:
    """What annotation records that were not scanned must show: ids that rise, from `low` on and below `high` (None: any), and what
    stands behind the last one (see PieceScanner)."""

    low: int | None
    high: int | None
    ends_with: bytes


@dataclass(frozen=True)
class Source:
    """Some annotation records of one file of a subset. first: their number among all annotation records."""

    file: int
    task: str
    name: str
    run: Run
    first: int
    proof: Proof | None = None

    def doubt(self, error: DataError) -> Exception:
        """What to raise instead of an error: where something was taken for granted, all is read again without that."""
        return error if self.proof is None else Restart(str(error))


@dataclass(frozen=True)
class Span:
    """Consecutive items lo:hi with the records that hold all their annotations. first_item: lo, where it was chosen (Engine.align)."""

    name: str
    lo: int
    hi: int
    source: Source | None
    size: int | None = None
    file: str | None = None
    first_item: int | None = None


@dataclass(frozen=True)
class Part:
    """What one task of the exchange reads; None: it names the buckets, so that those without annotations are made too."""

    name: str
    source: Source | None
    size: int


@dataclass
class RangeReader:
    """Reads parts of a subset in tasks. exclude: by task, the places of records to leave out."""

    shard: Shard
    ctx: ReadContext
    images: Images
    assembly: Assembly
    labels: dict[int, int]
    exclude: dict[str, frozenset[int]] = field(default_factory=dict)

    def parse(self, source: Source) -> Iterator[Rows]:
        """The rows of some annotation records, a window's worth at a time."""
        ctx, path, proof = self.ctx, self.ctx.root.path(source.name), source.proof
        mark = source.task if source.task in MARKED else None
        ends_with = proof.ends_with if proof else None
        scanner = PieceScanner(
            reader(ctx.root, source.name), path, source.run, "annotations", ends_with=ends_with
        )
        first, low = source.first, proof.low if proof else None
        try:
            for records in scanner.records():
                if source.task == "panoptic":
                    yield panoptic_rows(records, source.name, ctx, self.labels)
                else:
                    made = annotations_of(records, path, self.labels, mark, first)
                    if proof:
                        low = _proved(made, low, proof.high, path)
                    yield made
                first += len(records)
        except DataError as e:
            raise source.doubt(e) from e

    def placed(self, source: Source, ctx: ReadContext) -> Iterator[tuple[Rows, Ints]]:
        """(rows, item of each); what is wrong is reported."""
        exclude = sorted(self.exclude.get(source.task, ()))
        for made in self.parse(source):
            for error in made.errors:
                ctx.bad(error, self.assembly.subset)
            item, known = self.images.find(made.image, source.file)
            if not known.all():
                strange = np.flatnonzero(~known)
                for error in stranger_errors(made, strange, ctx.root.path(source.name)):
                    if source.proof:
                        raise source.doubt(error)
                    ctx.bad(error, self.assembly.subset)
                made, item = part_of(made, np.flatnonzero(known)), item[known]
            if exclude:  # only now: what else is wrong with these records is told too
                left = np.flatnonzero(~np.isin(made.places[made.annotation], exclude))
                made, item = part_of(made, left), item[left]
            yield made, item

    def table(self, lo: int, hi: int, rows: pa.StructArray, item: Ints, source: Ints) -> pa.Table:
        """The item table of items lo:hi; item: counted from lo."""
        if lo == hi:
            return empty_table()
        return self.assembly.table(rows, item, source, self.images.columns(lo, hi), self.images.keep(lo, hi))

    # in order

    def read_span(self, span: Span) -> Iterator[Block]:
        """The items of a span."""

        def read(shard: Shard, ctx: ReadContext) -> Iterator[Block]:
            del shard
            return self._span(span, ctx)

        return read_checked(read, self.shard, self.ctx, True)

    def _span(self, span: Span, ctx: ReadContext) -> Iterator[Block]:
        size = ctx.block_rows
        with tempfile.TemporaryDirectory(prefix="rayds-") as folder:
            grouping = Grouping(size, Path(folder))
            sent = 0

            def block() -> Block:
                lo = span.lo + sent * size
                return self.table(lo, min(lo + size, span.hi), *grouping.bucket(sent))

            for made, item in self.placed(span.source, ctx) if span.source else ():
                assert span.source is not None
                if not len(item):
                    continue
                if item[0] < span.lo + sent * size or item[-1] >= span.hi or np.any(item[1:] < item[:-1]):
                    raise span.source.doubt(file_changed(ctx.root.path(span.source.name), span.source.run))
                grouping.add(made.rows, item - span.lo, TASKS.index(span.source.task))
                while sent < (int(item[-1]) - span.lo) // size:
                    yield block()
                    sent += 1
            while span.lo + sent * size < span.hi:
                yield block()
                sent += 1

    # by exchange

    def buckets(self) -> int:
        """How many buckets of `block_rows` items there are; one where there are no items, for what is wrong."""
        return max(1, -(-self.images.total // self.ctx.block_rows))

    def read_part(self, part: Part) -> Iterator[Block]:
        """Annotation rows with the number of their bucket; what is wrong in rows of the first one."""
        if part.source is None:
            yield _exchanged(np.arange(self.buckets()))
            return
        ctx = replace(self.ctx, errors=[])
        source = TASKS.index(part.source.task)
        for made, item in self.placed(part.source, ctx):
            key = item * SOURCES + source
            yield _exchanged(item // ctx.block_rows, pa.array(key), made.rows)
            if ctx.errors:
                problems = pa.array([json.dumps(e) for e in ctx.errors], pa.string())
                yield _exchanged(np.zeros(len(problems), np.int64), problem=problems)
                ctx.errors.clear()

    def make(self, block: Block) -> Block:
        """The items of the buckets whose rows a block holds."""
        problems = block.column("problem").drop_null().to_pylist()

        def read(shard: Shard, ctx: ReadContext) -> Iterator[Block]:
            del shard
            ctx.errors += map(json.loads, problems)
            return self._made(block)

        return pa.concat_tables(read_checked(read, self.shard, self.ctx, True))

    def _made(self, block: Block) -> Iterator[Block]:
        size = self.ctx.block_rows
        present = pc.unique(block.column("bucket")).to_numpy()
        block = block.filter(block.column("key").is_valid())
        rows = pa.concat_arrays([pa.array([], ANNOTATION_TYPE), *block.column("row").chunks])
        rows, key = ascending(rows, block.column("key").to_numpy())
        yield empty_table()
        for i in np.sort(present).tolist():
            lo, hi = i * size, min((i + 1) * size, self.images.total)
            a, b = np.searchsorted(key, (lo * SOURCES, hi * SOURCES)).tolist()
            own = key[a:b]
            yield self.table(lo, hi, rows.slice(a, b - a), own // SOURCES - lo, own % SOURCES)


def _proved(made: Rows, low: int | None, high: int | None, path: str) -> int | None:
    """The id that the next ones must be above; raises DataError when these records are not all good ones, with ids that rise."""
    ids = made.ids
    right = not made.errors and bool(np.all(ids > NO_ID)) and bool(np.all(ids[1:] > ids[:-1]))
    if right and len(ids):
        right = (low is None or ids[0] >= low) and (high is None or ids[-1] < high)
        low = int(ids[-1]) + 1
    if not right:
        raise made.errors[0] if made.errors else DataError("annotation ids do not rise", file=path)
    return low


def _exchanged(
    bucket: Ints, key: pa.Array | None = None, rows: pa.Array | None = None, problem: pa.Array | None = None
) -> Block:
    columns = {"bucket": pa.array(bucket), "key": key, "row": rows, "problem": problem}
    arrays = [
        pa.nulls(len(bucket), f.type) if columns[f.name] is None else columns[f.name] for f in _EXCHANGED
    ]
    return pa.Table.from_arrays(arrays, schema=_EXCHANGED)


def read_by_ranges(
    engine: Engine, shard: Shard, ctx: ReadContext, range_size: int, found: dict[Any, Any], forced: bool
) -> Blocks | None:
    """The blocks of a subset read by ranges; None where its files can't be: then one task reads them.

    found: keeps what the ranges say for another time. forced: whether the user asked for ranges (then None is told).
    """
    subset: str = shard.data["subset"]
    reason = whole_files(ctx.root)
    files: list[MarkedFile] = []
    ids: dict[int, int] | None = None
    if reason is None:
        files, ids = _sketched(engine, ctx, shard, range_size, found)
        files = files or [_marked(engine, ctx, t, f, range_size, found) for t, f in shard.data["files"]]
        reason = _unfit(files, shard.data["categories"], ctx)
    if reason:
        if forced:
            warnings.warn(f"{shard.file}: read by one task, not by ranges: {reason}", stacklevel=2)
        return None
    images, errors = number_images(ctx.root, subset, files, engine.fold_inputs)
    several = len([f for f in files if f.task in SPATIAL]) > 1
    own = RangeReader(shard, ctx, images, Assembly(subset, several, 0, True), shard.data["labels"])
    ctx = replace(ctx, errors=[])
    for error in errors:
        ctx.bad(error, subset)
    sources = list(_sources(files))
    spans = _in_order(sources, images, shard, ctx, ids, engine.cpus)
    if spans is None and ids is not None:
        raise Restart("annotations do not come in order")
    if spans is not None:
        blocks = engine.source(spans, own.read_span)
    else:
        blocks = _exchange(engine, own, sources, ctx)
    if ctx.errors:
        told = engine.source([ctx.errors], partial(_tell, shard, own.ctx))
        blocks = engine.chain([told, blocks])
    return blocks


def _tell(shard: Shard, ctx: ReadContext, errors: list[dict[str, Any]]) -> Iterator[Block]:
    def read(shard: Shard, ctx: ReadContext) -> Iterator[Block]:
        del shard
        ctx.errors += errors
        return iter(())

    return read_checked(read, shard, ctx, False)


def _sketched(
    engine: Engine, ctx: ReadContext, shard: Shard, range_size: int, found: dict[Any, Any]
) -> tuple[list[MarkedFile], dict[int, int] | None]:
    """(the file of a subset, the id of some annotations by their place), when a look at some of it is enough; else nothing."""
    task, name = shard.data["files"][0]
    if not ctx.restartable or len(shard.data["files"]) > 1 or task == "panoptic":
        return [], None
    if ctx.on_error is not OnError.RAISE:  # one bad record would have everything read again
        return [], None
    key = ("sketch", name, ctx.root.size(name), range_size)
    if key not in found:
        found[key] = sketch_marks(
            ctx.root, name, SECTIONS, range_size, engine.fold_inputs, order_of, ids_of, order_between
        )
    if found[key] is None:
        return [], None
    marks, glimpses = found[key]
    if any(p.count < 0 and p.section != "annotations" for p in marks.pieces):
        return [], None
    ids: dict[int, int] = {}
    for one in glimpses:
        seen: Ids = one.seen
        assert seen.ids is not None
        ids |= {int(seen.places[k]): int(seen.ids[k]) for k in (0, seen.turn)}
    return [MarkedFile(task, name, marks)], ids


def _marked(
    engine: Engine, ctx: ReadContext, task: str, name: str, range_size: int, found: dict[Any, Any]
) -> MarkedFile:
    key = (name, ctx.root.size(name), range_size)
    if key not in found:
        found[key] = find_marks(ctx.root, name, SECTIONS, range_size, engine.fold_inputs, order_of)
    return MarkedFile(task, name, found[key])


def _unfit(files: Sequence[MarkedFile], categories: Mapping[str, Any], ctx: ReadContext) -> str | None:
    """Why the files are better read whole: what is broken is told best by the reader of whole files."""
    for file in files:
        told = skeleton_errors(file.marks.skeleton, file.name, categories.get(file.task))
        error = file.marks.error or next(told, None)
        if error is not None:
            if ctx.on_error is OnError.RAISE and file.marks.error is not None and file is files[0]:
                raise file.marks.error
            return str(error)
        changes = [section for section, _ in groupby(file.marks.pieces, key=lambda p: p.section)]
        if len(set(changes)) < len(changes):
            return f"{file.name}: a section occurs twice"
    return None


def _sources(files: Sequence[MarkedFile]) -> Iterator[Source]:
    """The annotation records of all files."""
    first = 0
    for i, file in enumerate(files):
        for piece in file.marks.of("annotations"):
            yield Source(i, file.task, file.name, piece, first)
            first += piece.count


def _in_order(
    sources: list[Source],
    images: Images,
    shard: Shard,
    ctx: ReadContext,
    ids: dict[int, int] | None,
    cpus: int,
) -> list[Span] | None:
    """The spans to read, when annotations surely come in the order of the images; else None.

    ids: of annotations by their place, where that is still to be proved by those who read them.
    """
    total, name = images.total, shard.data["subset"]
    if not sources:
        step = ONLY_IMAGES * ctx.block_rows
        cuts = [*range(0, total, step), total]
        return [Span(f"{name} from item {a}", a, b, None, file=shard.file) for a, b in pairwise(cuts)]
    order: Order = reduce(Order.merge, [s.run.seen for s in sources])
    sure = images.order is None and order.images is not None and order.images.level
    sure = sure and (sources[0].task == "panoptic" or (order.ids is not None and order.ids.rising))
    if not sure or len({s.file for s in sources}) > 1:
        return None
    places = _cuts(sources, images)
    found = None
    if ctx.align:
        found = aligned_cuts(ctx.root, sources[0].name, places, images.ids, ctx.align, cpus)
    if found is not None:
        places = [(start, lo) for start, lo, _ in found]
        ids = ids and {**ids, **{start: id for start, _, id in found if id is not None}}
    spans = []
    for (start, lo), (end, hi) in pairwise(places):
        proof = None
        if ids is not None:
            proof = Proof(ids.get(start), ids.get(end), b"" if end == places[-1][0] else b",")
        own = Source(sources[0].file, sources[0].task, sources[0].name, Run(start, end, -1, None), 0, proof)
        first = lo if found is not None else None
        spans.append(Span(f"{name} from byte {start}", lo, hi, own, end - start, shard.file, first))
    return spans


def _cuts(sources: list[Source], images: Images) -> list[tuple[int, int]]:
    """(byte, item) where annotations of another item begin, one for about each source, and the end of all."""
    made = [(sources[0].run.start, 0)]
    for before, source in pairwise(sources):
        edge, last = source.run.seen.images, before.run.seen.images.last
        if edge.first != last:
            made.append((source.run.start, int(np.searchsorted(images.ids, edge.first))))
        elif edge.turn >= 0:  # else the whole piece belongs to the image that the last one ended with
            made.append((edge.turn, int(np.searchsorted(images.ids, edge.first, side="right"))))
    return [*made, (sources[-1].run.end, images.total)]


def _exchange(engine: Engine, own: RangeReader, sources: list[Source], ctx: ReadContext) -> Blocks:
    """Rows of ranges brought together by bucket of items."""
    repeated = find_repeated(engine, own.ctx.root, sources, own.parse)
    own.exclude = repeated.exclude
    own.assembly = replace(own.assembly, largest=repeated.largest)
    for error in repeated.errors:
        ctx.bad(error, own.assembly.subset)
    parts = [Part(f"{own.assembly.subset}: buckets", None, 0)]
    parts += [Part(f"{s.name} from byte {s.run.start}", s, s.run.end - s.run.start) for s in sources]
    rows = engine.source(parts, own.read_part)
    return engine.by_number(rows, "bucket", own.buckets(), own.make)
