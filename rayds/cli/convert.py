"""`rayds convert`: a dataset in another format."""

from __future__ import annotations

import time
from typing import Any

import click

from rayds.cli._common import (
    HELP,
    Command,
    asks_help,
    check_input,
    early_plugins,
    extra_words,
    input_options,
    open_dataset,
    print_options,
    run_options,
)
from rayds.cli._output import check_output, output_options, write_dataset, writer_of
from rayds.cli.filter import check_expression, filter_options

EXAMPLES = """
    rayds convert -i coco/ -f voc -o voc/ --save-media
    rayds convert -i coco/ -if coco -f yolo -o yolo/ -- --save-media
    rayds convert -i s3://bucket/voc -f rayds -o s3://bucket/items --engine ray
    rayds convert -f coco -- --help          the options of the format coco
"""


def check(ctx: click.Context) -> None:
    """The formats and all options of the command, without its data."""
    check_input(ctx)
    if ctx.params["filter_expression"] is not None:
        check_expression(ctx.params["filter_expression"], None, ctx.params["filter_mode"])
    if not asks_help(extra_words(ctx)):
        check_output(ctx)


@click.command(cls=Command, takes_extra=True, check=check, examples=EXAMPLES)
@input_options
@filter_options
@output_options("<format>", "The format to write.", required=True)
@print_options
@run_options
@click.pass_context
def convert(ctx: click.Context, /, **given: Any) -> None:
    """Write a dataset in another format.

    Options of the output format follow after --. The output appears when it is complete; an error or Ctrl-C leaves
    nothing behind, but for what --resume can go on with. A summary tells what was written, and what the format could
    not hold. 'rayds formats' lists the formats.

    Exit code: 0 done (with --on-error skip or quarantine also when bad items were left out), 1 the data or the job
    failed, 2 bad usage.
    """
    from rayds.registry import get_format

    early_plugins(given)
    fmt = get_format(given["output_format"])
    words = extra_words(ctx)
    if asks_help(words):
        from rayds.cli.formats import writer_help

        click.echo(writer_help(fmt, [w for w in words if w not in HELP]))
        return
    writer_of(given, words, fmt)
    if given["filter_expression"] is not None:
        check_expression(given["filter_expression"], None, given["filter_mode"])
    start = time.monotonic()
    dataset = open_dataset(given)
    if given["filter_expression"] is not None:
        dataset = dataset.filter(given["filter_expression"], mode=given["filter_mode"])
    write_dataset(
        dataset,
        given,
        verb="converting",
        name=fmt.name,
        beside=given["input_path"],
        start=start,
        words=words,
    )
