"""`rayds transform`: a dataset after an operation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from rayds.cli._common import (
    Command,
    asks_help,
    check_input,
    early_plugins,
    extra_words,
    in_shards,
    input_options,
    open_dataset,
    opt,
    print_options,
    run_options,
)
from rayds.cli._output import check_output, output_options, write_dataset
from rayds.cli._tables import indented, table
from rayds.errors import UsageError

if TYPE_CHECKING:
    from rayds.op import Op

EXAMPLES = """
    rayds transform --list
    rayds transform -t random_split -- --help       its options
    rayds transform -i coco/ -t random_split -o out/ -- -s train:.8 -s val:.2
    rayds transform -i coco/ -t remap_labels -f voc -o voc/ -- -l cat:animal
"""


def check(ctx: click.Context) -> None:
    """The transform, its options and those of the formats, without the data."""
    if ctx.params["listing"] is not None:
        raise UsageError("--list tells what there is here; run it without submit")
    check_input(ctx)
    check_output(ctx, own_words=True)
    if not asks_help(extra_words(ctx)):
        made_op(ctx.params["transform"], extra_words(ctx))


@click.command(cls=Command, takes_extra=True, extra="[-- TRANSFORM OPTIONS]", check=check, examples=EXAMPLES)
@opt("-t", "--transform", metavar="NAME", section="Transform", help="What to do; --list shows all.")
@opt(
    "--list",
    "listing",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    section="Transform",
    help="Tell what each transform does in a line, or all about one, and leave.",
)
@input_options
@output_options("<transform>")
@print_options
@run_options
@click.pass_context
def transform(ctx: click.Context, /, **given: Any) -> None:
    """Change a dataset: split it, rename labels, turn boxes into masks, resize images, ...

    Options of the transform follow after --. The input is never changed: the result is written to a new folder, in the
    format of the input unless -f names another.
    """
    early_plugins(given)
    words = extra_words(ctx)
    if given["listing"] is not None:
        click.echo(listed(given["listing"] or given["transform"]), nl=False)
        return
    if asks_help(words) and given["transform"]:
        click.echo(op_help(given["transform"]), nl=False)
        return
    op = made_op(given["transform"], words)
    start = time.monotonic()
    shards, by = given["shards"], given["shard_by"]
    given.update(shards=None, shard_by=None)
    dataset = open_dataset(given).transform(op)  # sharded by the ids and subsets that it gives
    write_dataset(
        in_shards(dataset, shards, by),
        given,
        verb=f"transforming ({op.name})",
        name=op.name,
        beside=given["input_path"],
        start=start,
        statistics=getattr(op, "statistics", None),
    )


def made_op(name: str | None, words: list[str]) -> Op:
    """The operation with the options in `words`."""
    from rayds.op import transform_class

    if not name:
        raise UsageError("name a transform with -t; 'rayds transform --list' shows all")
    found = transform_class(name)
    try:
        return found(**vars(found.Options.parse(words)))
    except UsageError as e:
        raise UsageError(f"{e} ('rayds transform -t {name} -- --help' lists the options of {name})") from e


def transforms() -> dict[str, type[Op]]:
    """The classes of all transforms by name."""
    from rayds.op import Op
    from rayds.registry import load, names

    found = {name: load("ops", name) for name in names("ops")}
    return {name: c for name, c in found.items() if isinstance(c, type) and issubclass(c, Op)}


def listed(name: str | None) -> str:
    """All transforms in a line each, or all about one."""
    return op_help(name) if name else table((), [(n, c.title) for n, c in transforms().items()]) + "\n"


def op_help(name: str) -> str:
    """The help page of a transform."""
    import inspect

    from rayds.op import transform_class

    found = transform_class(name)
    rows = found.Options.describe()
    lines = [f"{name}: {found.title}", "", inspect.cleandoc(found.__doc__ or ""), ""]
    if rows:
        lines += ["Options (after --):", indented(table(("option", "default", "meaning"), rows))]
    else:
        lines.append("It has no options.")
    return "\n".join(lines).rstrip() + "\n"
