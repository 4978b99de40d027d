"""`rayds convert`: a dataset in another format."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from rayds.cli._common import (
    HELP,
    Command,
    asks_help,
    check_input,
    choose_engine,
    extra_words,
    in_shards,
    input_options,
    note,
    opt,
    print_options,
    read_dataset,
    run_options,
    spare_pandas,
)
from rayds.cli._progress import progress
from rayds.errors import UsageError

if TYPE_CHECKING:
    from rayds.format import Format
    from rayds.options import Options

EXAMPLES = """
    rayds convert -i coco/ -f voc -o voc/ --save-media
    rayds convert -i coco/ -if coco -f yolo -o yolo/ -- --save-media
    rayds convert -i s3://bucket/voc -f rayds -o s3://bucket/items --engine ray
    rayds convert -f coco -- --help          the options of the format coco
"""


def check(ctx: click.Context) -> None:
    """The formats and all options of the command, without its data."""
    from rayds.registry import get_format

    check_input(ctx)
    given = ctx.params
    fmt = get_format(given["output_format"])
    words = extra_words(ctx)
    if not asks_help(words):
        fmt.capabilities(writer_options(fmt, [*media_words(given["save_media"], given["image_ext"]), *words]))


@click.command(cls=Command, takes_extra=True, check=check, examples=EXAMPLES)
@input_options
@opt(
    "-o",
    "--output-dir",
    metavar="DIR",
    aliases=("--output",),
    section="Output",
    help="Folder or URL to write; default: <input name>-<format> beside the input.",
)
@opt(
    "-f",
    "--output-format",
    metavar="FORMAT",
    required=True,
    aliases=("--format",),
    section="Output",
    help="The format to write.",
)
@opt(
    "--save-media",
    is_flag=True,
    aliases=("--save-images",),
    section="Output",
    help="Write the images too, not only the annotations.",
)
@opt(
    "--image-ext",
    metavar="EXT",
    section="Output",
    help="Extension of written images, e.g. .png; others are re-encoded.",
)
@opt("--overwrite", is_flag=True, section="Output", help="Replace the output folder when it is there.")
@opt(
    "--resume",
    is_flag=True,
    section="Output",
    help="Go on with an interrupted run of the same command; keep what is complete if this one fails.",
)
@opt("--strict", is_flag=True, section="Output", help="Write nothing if the format can't hold everything.")
@print_options
@run_options
@click.pass_context
def convert(
    ctx: click.Context,
    input_path: str,
    input_format: str | None,
    read: tuple[str, ...],
    output_dir: str | None,
    output_format: str,
    save_media: bool,
    image_ext: str | None,
    overwrite: bool,
    resume: bool,
    strict: bool,
    quiet: bool,
    as_json: bool,
    on_error: str,
    engine: str,
    address: str | None,
    shards: int | None,
    shard_by: str | None,
) -> None:
    """Write a dataset in another format.

    Options of the output format follow after --. The output appears when it is complete; an error or Ctrl-C leaves
    nothing behind, but for what --resume can go on with. A summary tells what was written, and what the format could
    not hold. 'rayds formats' lists the formats.

    Exit code: 0 done (with --on-error skip or quarantine also when bad items were left out), 1 the data or the job
    failed, 2 bad usage.
    """
    if engine == "local" or (engine == "auto" and not address and "RAY_ADDRESS" not in os.environ):
        spare_pandas()
    from rayds.registry import get_format

    fmt = get_format(output_format)
    words = extra_words(ctx)
    if asks_help(words):
        from rayds.cli.formats import writer_help

        click.echo(writer_help(fmt, [w for w in words if w not in HELP]))
        return
    options = writer_options(fmt, [*media_words(save_media, image_ext), *words])
    fmt.capabilities(options)  # ends it here when the format can't be written
    start = time.monotonic()
    chosen = choose_engine(engine, address)
    with progress(f"looking at {input_path}", quiet):
        dataset = read_dataset(input_path, input_format, read, engine=chosen, on_error=on_error, quiet=quiet)
        expected = None if quiet else dataset.expected()
        dataset = in_shards(dataset, shards, shard_by)
    target = output_dir or default_output(input_path, fmt.name, overwrite, resume)
    with keeping(target, resume), progress(f"converting to {fmt.name}", quiet, expected) as advance:
        report = dataset.write(
            target, fmt, options, overwrite=overwrite, strict=strict, resume=resume, progress=advance
        )
    report.seconds = time.monotonic() - start  # with detection and planning
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else str(report))


def media_words(save_media: bool, image_ext: str | None) -> list[str]:
    """The options of images, given before `--`, as words after it."""
    words = ["--save-media=true"] if save_media else []
    return [*words, f"--image-ext={image_ext}"] if image_ext else words


def writer_options(fmt: Format, words: list[str]) -> Options:
    """The writer's options from the words after `--`."""
    try:
        return fmt.WriteOptions.parse(words)
    except UsageError as e:
        raise UsageError(
            f"{e} ('rayds convert -f {fmt.name} -- --help' lists the options of {fmt.name})"
        ) from e


@contextmanager
def keeping(target: str, resume: bool) -> Iterator[None]:
    """Under --resume, tell of what a failure leaves for the next run."""
    try:
        yield
    except BaseException as e:
        from rayds.errors import ResumeError
        from rayds.storage import PARTIAL, Storage

        kept = Storage(Storage(target).url + PARTIAL)
        if resume and not isinstance(e, ResumeError) and kept.exists("job.json"):
            note(f"What is complete is kept in {kept.url}; the same command goes on with it.")
        raise


def default_output(input_path: str, name: str, overwrite: bool, resume: bool = False) -> str:
    """<input name>-<format> beside the input; with .1, .2, ... when that is there and must not be replaced.

    resume: the last one that was begun or finished by a run that can be gone on with, if there is one.
    """
    from rayds.storage import DONE, Storage, outermost

    source = Storage(outermost(Storage(input_path).url))
    stem = source.name if source.is_dir() else re.sub(r"(\.tar)?\.[^.]+$", "", source.name)
    base = f"{stem or 'dataset'}-{name}"
    place = source.parent
    taken = 0

    def named(n: int) -> str:
        return f"{base}.{n}" if n else base

    while not overwrite and place.exists(named(taken)):
        if resume and place.exists(named(taken) + DONE) and not place.exists(named(taken + 1)):
            break
        taken += 1
    return place.path(named(taken))
