"""`rayds filter`: some items, or some annotations, of a dataset."""

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
    opt,
    print_options,
    run_options,
    stacked,
)
from rayds.cli._output import check_output, output_format, output_options, write_dataset
from rayds.errors import UsageError

EXAMPLES = """
    rayds filter -i coco/ -e '/item[subset="train"]' -o train/
    rayds filter -i coco/ -m i+a -e '/item/annotation[label="cat"]' -o cats/
    rayds filter -i coco/ --where 'width > 640' -f voc -o big/ -- --save-media
    rayds filter -i coco/ -e '/item[annotation/label="cat"]' --dry-run
"""
MODES = "items (i), annotations (a), items+annotations (i+a)"

# of commands that may filter what they read
filter_options = stacked(
    opt("-e", "--filter", "filter_expression", metavar="XPATH", section="Input",
        help="Keep what this expression selects; see 'rayds filter --help'."),
    opt("--filter-mode", default="items", metavar="MODE", show_default=True, section="Input",
        help=f"What --filter keeps: {MODES}."),
)  # fmt: skip


def check(ctx: click.Context) -> None:
    """The expression and all options of the command, without its data."""
    check_input(ctx)
    if not asks_help(extra_words(ctx)):
        check_output(ctx)
    check_expression(ctx.params["expression"], ctx.params["where"], ctx.params["mode"])


def check_expression(expression: str | None, where: str | None, mode: str) -> None:
    """Raise UsageError unless there is one expression, that is one, and a mode."""
    from rayds import Categories
    from rayds.op import transform_class

    transform_class("filter")(expression=expression, where=where, mode=mode).prepare(Categories())


@click.command(cls=Command, takes_extra=True, check=check, examples=EXAMPLES)
@opt(
    "-e",
    "--filter",
    "expression",
    metavar="XPATH",
    section="Filter",
    help="XPath 1.0 over the representation of an item, which --dry-run prints.",
)
@opt(
    "--where",
    metavar="SQL",
    section="Filter",
    help="An SQL expression over columns of items or annotations instead.",
)
@opt(
    "-m",
    "--mode",
    "--filter-mode",
    "mode",
    default="items",
    metavar="MODE",
    show_default=True,
    section="Filter",
    help=f"What is kept: {MODES}.",
)
@opt(
    "--dry-run",
    is_flag=True,
    section="Filter",
    help="Print the representation of the items, those that are kept if there is an expression; write nothing.",
)
@input_options
@output_options("filter")
@print_options
@run_options
@click.pass_context
def filter(ctx: click.Context, /, **given: Any) -> None:  # fmt: skip
    """Keep items, or annotations, by an expression.

    In the mode items, items stay for which the expression selects anything; in the mode annotations, the annotations that it
    selects, in all items; in the mode items+annotations items that are left without any go, too. Options of the output
    format follow after --. 'rayds convert' and 'rayds export' filter with -e as well.
    """
    early_plugins(given)
    words = extra_words(ctx)
    if asks_help(words):
        from rayds.cli.formats import writer_help

        fmt = output_format(given["output_format"], None)
        click.echo(writer_help(fmt, [w for w in words if w not in HELP]))
        return
    check_output(ctx)
    start = time.monotonic()
    if not (given["dry_run"] and given["expression"] is None and given["where"] is None):
        check_expression(given["expression"], given["where"], given["mode"])
    dataset = open_dataset(given)
    if given["expression"] is not None or given["where"] is not None:
        dataset = dataset.filter(given["expression"], where=given["where"], mode=given["mode"])
    elif not given["dry_run"]:
        raise UsageError("give an XPath expression with -e, or SQL with --where")
    if given["dry_run"]:
        for text in dataset.represented():
            click.echo(text, nl=False)
        return
    write_dataset(
        dataset,
        given,
        verb="filtering",
        name="filter",
        beside=given["input_path"],
        start=start,
        words=words,
    )
