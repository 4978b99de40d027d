"""Writing a dataset: the writer that engines drive, staging, strictness, quarantine, publishing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds import media
from rayds.checks import writable_items
from rayds.engine.base import Blocks, Engine, Position, Stage, guarded
from rayds.errors import DataError, LossError, OnError, ResumeError
from rayds.format import Capabilities, Format, WriteContext
from rayds.losses import NOTE, Summary, merge_losses, summarize, take_lost
from rayds.partial import Partial
from rayds.reading import Source
from rayds.report import Report
from rayds.resume import Job, Keeping, identity
from rayds.schema import DEFAULT_SUBSET, media_field, single_chunk, split_errors, with_media
from rayds.sizes import fill_sizes as known_sizes
from rayds.storage import Storage, io_threads
from rayds.units import (
    NumberingReader,
    Rest,
    ShardRecord,
    Unit,
    UnitWriter,
    error_records,
    in_order,
    load_shards,
    other_items,
    rest_of,
)

QUARANTINE = "quarantine.parquet"


@dataclass
class Part:
    """What one write call returns: the format's fragment, and the counts."""

    fragment: Any
    summary: Summary


class ExportWriter:
    """Drives a format's `write` block by block: sizes and media first, then the annotations."""

    def __init__(self, fmt: Format, ctx: WriteContext) -> None:
        self.fmt, self.ctx = fmt, ctx
        self.caps = fmt.capabilities(ctx.options)
        self.rows = fmt.rows_per_block(ctx.options)
        self.needs_offsets = fmt.uses_offsets(ctx)

    def count(self, block: pa.Table) -> dict[str, int]:
        return self.fmt.count(split_errors(block)[0], self.ctx)

    def write(self, block: pa.Table, position: Position, lost: Mapping[int, DataError] | None = None) -> Part:
        """Write a block; lost: rows that can't be written, and why."""
        ctx = replace(self.ctx, losses={}, errors=[])
        if lost:
            block = _keep(block, dict(lost), ctx)
        block, bad = split_errors(block)
        block, lost_before = take_lost(block)
        if self.caps.needs_size:
            block = fill_sizes(block, ctx)
        if ctx.options.save_media and not self.fmt.own_media:
            block = save_media(self.fmt, block, ctx)
        before = len(ctx.errors)  # those rows are not in the block any more
        fragment = self.fmt.write(block, position, ctx)
        summary = summarize(block, self.caps, self.fmt.family)
        summary.items -= len(ctx.errors) - before
        summary.errors = error_records(bad) + ctx.errors
        return Part(fragment, summary.merge(Summary(losses=merge_losses(lost_before, ctx.losses))))

    def trial(self, block: pa.Table, position: Position) -> None:
        """Write a block to nowhere, whatever is bad about it: whether the process survives it is the question."""
        with tempfile.TemporaryDirectory(prefix="rayds-") as folder, suppress(Exception):
            self.to(folder).write(block, position)

    def to(self, folder: str) -> ExportWriter:
        """The same writer for another folder."""
        return ExportWriter(self.fmt, replace(self.ctx, out=Storage(folder), on_error=OnError.SKIP))


def _keep(block: pa.Table, failed: dict[int, DataError], ctx: WriteContext) -> pa.Table:
    """The block without the failed rows, which are reported as bad items."""
    if not failed:
        return block
    subsets = single_chunk(block, "subset")
    for row, error in sorted(failed.items()):
        ctx.bad(error, subsets[row].as_py())
    keep = np.ones(block.num_rows, bool)
    keep[list(failed)] = False
    return block.filter(pa.array(keep))


def fill_sizes(block: pa.Table, ctx: WriteContext) -> pa.Table:
    """The block with the image sizes that are not known read from the headers; unreadable files are bad items.

    A file that is missing leaves its size unknown: whether that matters is the format's to say.
    """
    block, failed = known_sizes(block)
    return _keep(block, failed, ctx)


def save_media(fmt: Format, block: pa.Table, ctx: WriteContext) -> pa.Table:
    """Write the images of a block where the format wants them; items whose image can't be written are bad.

    What was written has its edits made: the block has them no more.
    """
    names = fmt.media_names(block, ctx).to_pylist()
    rows = single_chunk(block, "media").to_pylist()
    ids = single_chunk(block, "id")
    failed: dict[int, DataError] = {}

    def several(part: Sequence[int]) -> None:
        kept = media.Decoded()
        for i in part:
            try:
                media.save(rows[i], ctx.out, names[i], kept=kept)
            except DataError as e:
                failed[i] = DataError(e.reason, file=e.file, item=ids[i].as_py(), remedy=e.remedy)

    def source(i: int) -> Any:
        row = rows[i]  # parts of one image follow one another: it is decoded once
        return row["path"] if row["edits"] and row["path"] and row["data"] is None else i

    todo = [i for i in range(len(rows)) if rows[i] is not None and names[i] is not None]
    with ThreadPoolExecutor(io_threads(ctx.out.url, *(row["path"] for row in rows if row))) as pool:
        list(pool.map(several, (list(part) for _, part in groupby(todo, source))))
    saved = pa.array([name is not None for name in names])
    block = with_media(block, edits=pc.if_else(saved, None, media_field(block, "edits")))
    return _keep(block, failed, ctx)


def export(
    engine: Engine,
    blocks: Blocks,
    fmt: Format,
    ctx: WriteContext,
    *,
    sources: Sequence[Source] = (),
    steps: Sequence[str] = (),
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
    resume: bool = False,
) -> Report:
    """Write blocks as a dataset of a format to ctx.out: all of it or nothing.

    sources: what the blocks were read from; steps: what was done to them since. resume: go on with an interrupted run of the
    same job, if there is one, and leave what is complete for another run when this one fails.
    Raises OutputExistsError, ResumeError, DataError (a bad item under the policy raise) or LossError (strict).
    """
    start = time.monotonic()
    fmt.capabilities(ctx.options)
    fmt.prepare(ctx)
    check = partial(writable_items, len(ctx.categories.labels), ctx.on_error)
    blocks = engine.map(blocks, check)
    inputs = tuple(source.path for source in sources)
    shards = sources[0] if len(sources) == 1 and not steps and sources[0].by_shards(engine) else None
    what = identity(fmt, ctx, sources, steps) | {"read_shard_by_shard": shards is not None}

    def run() -> Report:
        job = Job(ctx.out, fmt, what, resume=resume)
        with job.held(inputs, overwrite=overwrite, restartable=engine.restartable):
            if job.report is None:
                look_first(engine, blocks, fmt, ctx, job.partial, strict=strict)
                own = replace(ctx, out=job.partial.data)
                written = Writing(engine, fmt, own, job).write(blocks, shards, check, progress)
                finish(fmt, own, job, written, strict=strict)
        assert job.report is not None
        return job.report

    try:
        report = run()
    except ResumeError:
        if not overwrite or shards is not None:
            raise
        report = run()  # from nothing: what was there is gone
    report.seconds = time.monotonic() - start
    return report


def look_first(
    engine: Engine, blocks: Blocks, fmt: Format, ctx: WriteContext, kept: Partial, *, strict: bool
) -> None:
    """The passes over all blocks before the first is written; an earlier run's results are taken over."""
    if strict and kept.noted("strict") is None:
        caps = fmt.capabilities(ctx.options)
        # what is saved has its edits made
        check_losses(engine, blocks, replace(caps, edits=caps.edits or bool(ctx.options.save_media)), fmt)
        kept.note("strict", True)
    if fmt.needs_survey(ctx):
        known = kept.noted("survey")
        found = (
            known[0]
            if known
            else engine.fold(blocks, lambda b: fmt.survey(split_errors(b)[0], ctx), lambda a, b: a.merge(b))
        )
        if not known:
            kept.note("survey", found)
        if found is not None:
            fmt.use_survey(found, ctx)


@dataclass
class Writing:
    """The writing of all units that are missing."""

    engine: Engine
    fmt: Format
    ctx: WriteContext
    job: Job

    def write(
        self, blocks: Blocks, source: Source | None, check: Stage, progress: Callable[[int], None] | None
    ) -> list[Unit | ShardRecord]:
        """Write; returns what the output consists of, in item order."""
        inner = ExportWriter(self.fmt, self.ctx)
        if source is None:
            rest = Rest([], resumed=bool(self.job.units))
            written = self._run(blocks, inner, rest, progress)
            if self.job.units.keys() - {u.number for u in written}:
                raise other_items("there are fewer")
            by_number = {u.number: u for u in written}
            return [by_number[n] for n in sorted(by_number)]
        shards, kept = list(source.shards), self.job.partial
        known = load_shards(kept) if self.job.units else {}
        rest = rest_of(shards, self.job.units, known, inner)
        if progress and self.job.units:
            todo = {s.number: s.first for s in rest.shards}
            progress(sum(r.items for n, r in known.items() if n not in todo) + sum(todo.values()))
        reader = NumberingReader(source.reader(self.engine), guarded(check), kept)
        written = self._run(self.engine.source(rest.shards, reader), inner, rest, progress)
        if inner.rows is None:
            units = {**self.job.units, **{u.number: u for u in written}}
        else:
            units = {n: u for n, u in self.job.units.items() if n < rest.number}
            units |= {u.number: u for u in written}
        return in_order(units.values(), load_shards(kept), len(shards))

    def _run(
        self, blocks: Blocks, inner: ExportWriter, rest: Rest, progress: Callable[[int], None] | None
    ) -> list[Unit]:
        """Write the rest; units that had been written come with what their records say."""
        in_place = inner.rows is not None and inner.rows == self.engine.align
        writer = UnitWriter(inner, self.job.partial, rest, self.job.run, in_place)
        found: list[list[Unit]] = self.engine.write(blocks, writer, progress)
        return [self.job.units[u.number] if u.part is None else u for units in found for u in units]


def finish(
    fmt: Format, ctx: WriteContext, job: Job, written: list[Unit | ShardRecord], *, strict: bool
) -> None:
    """Join the fragments, and publish."""
    summary = Summary()
    fragments = []
    for one in written:
        if isinstance(one, Unit):
            summary = summary.merge(one.part.summary)
            fragments.append(one.part.fragment)
        else:
            summary = summary.merge(Summary(errors=one.errors))
    out = Keeping(ctx.out, use_up=job.give_up_units())
    final = replace(ctx, out=out, losses={}, errors=[])
    fmt.finish(fragments, final)
    summary = summary.merge(Summary(losses=final.losses, errors=final.errors))
    report = Report.of(summary, fmt.name, job.target.url)
    if strict and report.losses:
        raise LossError(f"{fmt.name} can't hold everything: {_named(report.losses)}")
    if ctx.on_error is OnError.QUARANTINE and report.errors:
        write_quarantine(ctx.out, report.errors)
        report.quarantine = job.target.path(QUARANTINE)
    mine = {id(u) for u in job.units.values()}
    report.resumed = sum(one.rows for one in written if isinstance(one, Unit) and id(one) in mine)
    job.finish(report, out.removed)


def check_losses(engine: Engine, blocks: Blocks, caps: Capabilities, fmt: Format) -> None:
    """Raise LossError when an output of these capabilities would lose anything of the blocks."""

    def lost(block: pa.Table) -> Summary:
        return Summary(losses=summarize(split_errors(block)[0], caps, fmt.family).losses)

    found = engine.fold(blocks, lost, Summary.merge) or Summary()
    losses = {k: v for k, v in found.losses.items() if not k.startswith(NOTE)}
    if losses:
        raise LossError(f"{fmt.name} can't hold everything, nothing was written: {_named(losses)}")


def _named(losses: dict[str, tuple[int, str]]) -> str:
    return "".join(f"\n  {n:>9,}  {kind}  (e.g. {example})" for kind, (n, example) in sorted(losses.items()))


def write_quarantine(out: Storage, errors: list[dict[str, Any]]) -> None:
    """The bad items with their reasons as a Parquet file: item, subset, reason, file, place."""
    import io

    import pyarrow.parquet as pq

    names = ("item", "subset", "reason", "file", "place")
    rows = [{n: e.get(n) for n in names} | {"subset": e.get("subset") or DEFAULT_SUBSET} for e in errors]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([(n, pa.string()) for n in names])), sink)
    out.write_bytes(QUARANTINE, sink.getvalue())
