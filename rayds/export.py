"""Writing a dataset: the writer that engines drive, staging, strictness, quarantine, publishing."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds import media
from rayds.checks import writable_items
from rayds.engine.base import Blocks, Engine, Position
from rayds.errors import DataError, LossError, OnError
from rayds.format import Capabilities, Format, WriteContext
from rayds.losses import NOTE, Summary, summarize
from rayds.report import Report
from rayds.schema import DEFAULT_SUBSET, MEDIA_TYPE, media_field, single_chunk, split_errors
from rayds.storage import Storage, check_output, io_threads

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

    def write(self, block: pa.Table, position: Position) -> Part:
        ctx = replace(self.ctx, losses={}, errors=[])
        block, bad = split_errors(block)
        if self.caps.needs_size:
            block = fill_sizes(block, ctx)
        if ctx.options.save_media and not self.fmt.own_media:
            block = save_media(self.fmt, block, ctx)
        before = len(ctx.errors)  # those rows are not in the block any more
        fragment = self.fmt.write(block, position, ctx)
        summary = summarize(block, self.caps, self.fmt.family)
        summary.items -= len(ctx.errors) - before
        summary.errors = error_records(bad) + ctx.errors
        return Part(fragment, summary.merge(Summary(losses=ctx.losses)))


def error_records(bad: pa.Table | None) -> list[dict[str, Any]]:
    """The records of error rows."""
    return [json.loads(text) for text in bad.column("error").to_pylist()] if bad is not None else []


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
    known = pc.is_valid(media_field(block, "width"))
    rows = np.flatnonzero(~known.to_numpy(zero_copy_only=False))
    if not len(rows):
        return block
    column = single_chunk(block, "media")
    ids = single_chunk(block, "id")
    todo = column.take(pa.array(rows)).to_pylist()
    failed: dict[int, DataError] = {}

    def one(k: int) -> tuple[int, int] | None:
        row = todo[k]
        if not row or row["kind"] != "image":
            return None
        try:
            if row["data"] is not None:
                return media.probe_bytes(row["data"], row["path"])
            return media.probe(row["path"]) if row["path"] else None
        except DataError as e:
            failed[int(rows[k])] = DataError(
                e.reason, file=e.file, item=ids[int(rows[k])].as_py(), remedy=e.remedy
            )
            return None

    with ThreadPoolExecutor(io_threads(*(row["path"] for row in todo if row))) as pool:
        sizes = list(pool.map(one, range(len(rows))))
    height = np.array(media_field(block, "height").fill_null(-1), np.int32)
    width = np.array(media_field(block, "width").fill_null(-1), np.int32)
    for row, size in zip(rows, sizes, strict=True):
        if size:
            height[row], width[row] = size
    fields = {f.name: pc.struct_field(column, f.name) for f in MEDIA_TYPE}
    for name, values in (("height", height), ("width", width)):
        fields[name] = pa.array(values, pa.int32(), mask=values < 0)
    filled = pa.StructArray.from_arrays(
        list(fields.values()), fields=list(MEDIA_TYPE), mask=pc.is_null(column)
    )
    return _keep(block.set_column(block.schema.get_field_index("media"), "media", filled), failed, ctx)


def save_media(fmt: Format, block: pa.Table, ctx: WriteContext) -> pa.Table:
    """Write the images of a block where the format wants them; items whose image can't be written are bad."""
    names = fmt.media_names(block, ctx).to_pylist()
    rows = single_chunk(block, "media").to_pylist()
    ids = single_chunk(block, "id")
    failed: dict[int, DataError] = {}

    def one(i: int) -> None:
        if rows[i] is None or names[i] is None:
            return
        try:
            media.save(rows[i], ctx.out, names[i])
        except DataError as e:
            failed[i] = DataError(e.reason, file=e.file, item=ids[i].as_py(), remedy=e.remedy)

    with ThreadPoolExecutor(io_threads(ctx.out.url, *(row["path"] for row in rows if row))) as pool:
        list(pool.map(one, range(len(rows))))
    return _keep(block, failed, ctx)


def export(
    engine: Engine,
    blocks: Blocks,
    fmt: Format,
    ctx: WriteContext,
    *,
    inputs: tuple[str, ...] = (),
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Write blocks as a dataset of a format to ctx.out: all of it or nothing.

    Raises OutputExistsError, DataError (a bad item under the policy raise) or LossError (strict).
    """
    start = time.monotonic()
    target = ctx.out
    check_output(target, inputs, overwrite)
    caps = fmt.capabilities(ctx.options)
    fmt.prepare(ctx)
    blocks = engine.map(blocks, partial(writable_items, len(ctx.categories.labels), ctx.on_error))
    if strict:
        check_losses(engine, blocks, caps, fmt)
    if fmt.needs_survey(ctx):
        found = engine.fold(blocks, lambda b: fmt.survey(split_errors(b)[0], ctx), lambda a, b: a.merge(b))
        if found is not None:
            fmt.use_survey(found, ctx)
    staging = Storage(f"{target.url}.{uuid.uuid4().hex[:8]}.staging")
    ctx = replace(ctx, out=staging)
    try:
        staging.makedirs()
        parts: list[Part] = engine.write(blocks, ExportWriter(fmt, ctx), progress)
        summary = Summary()
        for part in parts:
            summary = summary.merge(part.summary)
        final = replace(ctx, losses={}, errors=[])
        fmt.finish([part.fragment for part in parts], final)
        summary = summary.merge(Summary(losses=final.losses, errors=final.errors))
        report = Report.of(summary, fmt.name, target.url)
        if strict and report.losses:
            raise LossError(f"{fmt.name} can't hold everything: {_named(report.losses)}")
        if ctx.on_error is OnError.QUARANTINE and report.errors:
            write_quarantine(staging, report.errors)
            report.quarantine = target.path(QUARANTINE)
        target.publish(staging)
    except BaseException as e:
        if not getattr(e, "keeps_staging", False):  # it is the only whole one: see Storage.publish
            staging.remove()
        raise
    report.seconds = time.monotonic() - start
    return report


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
