"""`rayds merge`: several datasets or projects as one."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from rayds.cli._common import (
    HELP,
    Command,
    asks_help,
    choose_engine,
    extra_words,
    input_format,
    note,
    opt,
    print_options,
    run_options,
    spare_pandas,
)
from rayds.cli._output import check_output, output_format, output_options, write_dataset
from rayds.cli._progress import progress
from rayds.errors import UsageError

if TYPE_CHECKING:
    from rayds.dataset import Dataset
    from rayds.engine.base import Engine

EXAMPLES = """
    rayds merge coco/ voc/ -f coco -o all/
    rayds merge day1:coco day2:voc -m exact -f rayds -o both/
    rayds merge anna/ bert/ carl/ -m intersect --quorum 2 -f coco -o agreed/
"""
POLICIES = ("union", "exact", "update", "intersect")
REPORT = "merge_report.json"


def check(ctx: click.Context) -> None:
    """The formats and all options of the command, without its data."""
    if len([*ctx.params["paths"], *ctx.params["inputs"]]) < 2:
        raise UsageError("name at least two datasets or projects")
    if not asks_help(extra_words(ctx)):
        check_output(ctx)


def named(text: str) -> tuple[str, str | None]:
    """(path, format) of PATH or PATH:FORMAT."""
    from rayds.registry import names

    path, colon, format = text.rpartition(":")
    return (path, format) if colon and path and format in names("formats") else (text, None)


def open_part(text: str, format: str | None, engine: Engine | str, on_error: str, quiet: bool) -> Dataset:
    """The dataset, or that of the project, at PATH or PATH:FORMAT."""
    from rayds.dataset import Dataset
    from rayds.project import FILE, Project
    from rayds.storage import Storage

    path, own = named(text)
    if own is None and format is None and Storage(path).exists(FILE):
        return Project.load(path).dataset(engine=engine, on_error=on_error)
    fmt = input_format(path, own or format, quiet)
    return Dataset.import_from(path, fmt.name, engine=engine, on_error=on_error)


@click.command(cls=Command, takes_extra=True, check=check, examples=EXAMPLES)
@click.argument("paths", nargs=-1, metavar="PATH[:FORMAT]...")
@opt(
    "-i",
    "--input-path",
    "inputs",
    multiple=True,
    metavar="PATH",
    section="Input",
    help="The same as PATH, repeatable.",
)
@opt(
    "-if",
    "--input-format",
    "formats",
    multiple=True,
    metavar="FORMAT",
    section="Input",
    help="Format of each -i, in their order; or one for all.",
)
@opt(
    "-m",
    "--merge-policy",
    "policy",
    type=click.Choice(POLICIES),
    default="union",
    show_default=True,
    section="Merge",
    help="Items of one id and subset: stay two; have the annotations of all; the later one; or what annotators agree on.",
)
@opt(
    "-iou",
    "--iou-thresh",
    type=float,
    default=0.25,
    show_default=True,
    section="Merge",
    help="intersect: how alike annotations of one thing are, at least.",
)
@opt(
    "-oconf",
    "--output-conf-thresh",
    type=float,
    default=0.0,
    show_default=True,
    section="Merge",
    help="intersect: leave out annotations of a lower score.",
)
@opt(
    "--quorum",
    type=int,
    default=0,
    show_default=True,
    section="Merge",
    help="intersect: how many annotators must agree on a label or an attribute.",
)
@opt(
    "-g",
    "--groups",
    multiple=True,
    metavar="LABELS",
    section="Merge",
    help="intersect: labels that a group has, as in 'person,hand?,head?'; repeatable.",
)
@output_options("merged")
@print_options
@run_options
@click.pass_context
def merge(ctx: click.Context, /, **given: Any) -> None:  # fmt: skip
    """Make one dataset of several datasets or projects.

    Labels are brought together by their names. The items of the first come first. With the policy intersect,
    merge_report.json beside the output tells what the annotators did not agree on. Options of the output format follow after --.
    """
    words = extra_words(ctx)
    if asks_help(words):
        from rayds.cli.formats import writer_help

        fmt = output_format(given["output_format"], None)
        click.echo(writer_help(fmt, [w for w in words if w not in HELP]))
        return
    check(ctx)
    start = time.monotonic()
    if given["engine"] != "ray" and not given["address"] and "RAY_ADDRESS" not in os.environ:
        spare_pandas()
    engine = choose_engine(given["engine"], given["address"])
    texts = [*given["inputs"], *given["paths"]]
    formats = list(given["formats"])
    if len(formats) == 1:
        formats = formats * len(texts)
    if formats and len(formats) != len(texts):
        raise UsageError(f"-if is given {len(formats)} times for {len(texts)} datasets")
    with progress("looking at the datasets", given["quiet"]):
        parts = [
            open_part(text, format, engine, given["on_error"], given["quiet"])
            for text, format in zip(texts, formats or [None] * len(texts), strict=True)
        ]
    options = {k: given[k] for k in ("iou_thresh", "output_conf_thresh", "quorum", "groups")}
    dataset = parts[0].merge(*parts[1:], policy=given["policy"], **options)
    if given["shards"]:
        dataset = dataset.repartition(given["shards"], given["shard_by"] or "id")
    report = None
    if given["policy"] == "intersect":
        dataset = dataset.materialize()  # it is looked at twice
        report = dataset.merge_report()
    given["output_dir"] = given["output_dir"] or "merged"
    write_dataset(
        dataset, given, verb="merging", name="merged", beside=named(texts[0])[0], start=start, words=words
    )
    if report is not None:
        _write_report(given["output_dir"], report, given["quiet"])


def _write_report(target: str, report: dict[str, Any], quiet: bool) -> None:
    from rayds.storage import Storage

    out = Storage(target)
    out.write_text(REPORT, json.dumps(report, indent=2, ensure_ascii=False))
    n = len(report["All errors"]) + report.get("More errors", 0)
    note(f"{n:,} disagreements in {len(report['Item errors']):,} items: {out.path(REPORT)}", quiet)
