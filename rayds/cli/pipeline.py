"""`rayds pipeline`: a job file run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rayds.cli._common import (
    Command,
    check_input,
    in_shards,
    input_options,
    note,
    open_dataset,
    opt,
    print_options,
    run_options,
)
from rayds.cli._output import check_output, output_options, write_dataset
from rayds.errors import UsageError
from rayds.storage import is_url

if TYPE_CHECKING:
    from rayds.pipeline import Pipeline

EXAMPLES = """
    rayds pipeline job.yaml
    rayds pipeline job.yaml --check            tell what it does
    rayds pipeline job.yaml -o s3://bucket/out --engine ray
    rayds submit -- pipeline job.yaml
"""

# keys of the file by the command's parameters
FROM_FILE = {
    "input": {"path": "input_path", "project": "project", "format": "input_format"},
    "output": {
        "path": "output_dir", "format": "output_format", "save_media": "save_media", "image_ext": "image_ext",
        "overwrite": "overwrite", "strict": "strict", "resume": "resume",
    },
    "run": {k: k for k in ("engine", "address", "on_error", "shards", "shard_by")},
}  # fmt: skip


def check(ctx: click.Context) -> None:
    """The file and all options of the command, without its data."""
    job = loaded(ctx)
    ctx.params.update(merged(ctx, job))
    check_input(ctx)
    check_output(ctx, own_words=True)
    for step in job.steps:
        for name in step.files():
            if not is_url(name):
                raise UsageError(
                    f"{step.place}: {name} is a local file, which does not go along with a job; put it on storage that the "
                    "cluster reads and name its URL"
                )


@click.command(cls=Command, check=check, examples=EXAMPLES)
@click.argument("file", metavar="FILE")
@opt(
    "--check",
    "--dry-run",
    "only_check",
    is_flag=True,
    section="Pipeline",
    help="Check the file, tell what it does, and leave.",
)
@input_options
@output_options("pipeline")
@print_options
@run_options
@click.pass_context
def pipeline(ctx: click.Context, /, **given: Any) -> None:
    """Run the operations of a job file one after the other, in one pass over the data.

    The file names the input, the steps and the output; options here go before what it says. It is checked as a whole
    before anything runs. Relative paths in it are relative to its folder.
    """
    job = loaded(ctx)
    given = merged(ctx, job)
    ctx.params.update(given)
    check_input(ctx)
    check_output(ctx, own_words=True)
    if given["only_check"]:
        click.echo("\n".join(told(job, given)))
        note(f"{job.path}: {len(job.steps)} steps, no mistake", given["quiet"])
        return
    start = time.monotonic()
    shards, by = given["shards"], given["shard_by"]
    given.update(shards=None, shard_by=None)
    dataset = job.apply(open_dataset(given))  # sharded as what the steps make of it
    write_dataset(
        in_shards(dataset, shards, by),
        given,
        verb="running the pipeline",
        name="pipeline",
        beside=given["input_path"],
        start=start,
    )


def loaded(ctx: click.Context) -> Pipeline:
    """The job of the file that a command names."""
    from rayds.pipeline import Pipeline

    return Pipeline.load(ctx.params["file"])


def merged(ctx: click.Context, job: Pipeline) -> dict[str, Any]:
    """The command's parameters: those given on the command line, else those of the file, else the defaults."""
    given = dict(ctx.params)
    typed = {
        name for name in given if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    for part, names in FROM_FILE.items():
        said: Mapping[str, Any] = job.settings if part == "run" else getattr(job, part)
        for key, name in names.items():
            if name in ("input_path", "project") and typed & {"input_path", "project"}:
                continue
            if key in said and name not in typed:
                given[name] = said[key]
    if "address" in typed and "engine" not in typed and given["engine"] == "local":
        given["engine"] = "auto"
    if "engine" in typed and given["engine"] == "local" and "address" not in typed:
        given["address"] = None
    for part, name, chosen in (("input", "read", "input_format"), ("output", "write", "output_format")):
        said = getattr(job, part)
        if chosen not in typed or given[chosen] == said.get("format"):  # options are those of one format
            given[name] = (*option_words(said.get("options", {}), part), *(given[name] or ()))
    return given


def option_words(options: Mapping[str, Any], part: str) -> list[str]:
    """Options of a format as `--read` and `--write` have them."""
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict | list):
                raise UsageError(f"{part}.options: {name}: {one!r} is no value of an option")
            if one is not None:
                words.append(f"{name}={str(one).lower() if isinstance(one, bool) else one}")
    return words


def told(job: Pipeline, given: Mapping[str, Any]) -> list[str]:
    """What a job does, in lines."""
    form = f" ({given['input_format']})" if given["input_format"] else ""
    lines = [f"read   {given['input_path'] or given['project']}{form}"]
    lines += [f"{n:<6} {step.op!r}" for n, step in enumerate(job.steps, start=1)]
    return [*lines, f"write  {given['output_dir']} ({given['output_format']})"]
