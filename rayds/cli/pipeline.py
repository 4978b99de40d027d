"""`rayds pipeline`: what a file says, in one pass."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from rayds.cli._common import Command, choose_engine, note, opt, print_options
from rayds.cli._progress import progress

EXAMPLES = """
    rayds pipeline job.yaml
    rayds pipeline job.yaml --check
    rayds submit -- pipeline job.yaml

    input:  {path: coco, format: coco}
    steps:
      - filter: '/item[annotation/label="cat"]'
      - random_split: {subset: ["train:.8", "val:.2"]}
    output: {path: voc, format: voc, save_media: true}
"""


def check(ctx: click.Context) -> None:
    """The file, without the data."""
    from rayds.pipeline import Pipeline

    Pipeline.load(ctx.params["file"])


@click.command(cls=Command, check=check, examples=EXAMPLES)
@click.argument("file", metavar="FILE")
@opt("--check", "only_check", is_flag=True, section="Pipeline", help="Check the file, and leave.")
@opt(
    "--overwrite",
    is_flag=True,
    default=None,
    section="Output",
    help="Replace the output folder when it is there.",
)
@opt(
    "--resume",
    is_flag=True,
    default=None,
    section="Output",
    help="Go on with an interrupted run of the same pipeline.",
)
@opt(
    "--strict",
    is_flag=True,
    default=None,
    section="Output",
    help="Write nothing if the format can't hold everything.",
)
@print_options
@opt(
    "--engine",
    type=click.Choice(("auto", "local", "ray")),
    section="Run",
    help="Instead of that of the file.",
)
@opt("--address", metavar="ADDRESS", section="Run", help="Ray cluster to use instead.")
def pipeline(file: str, only_check: bool, quiet: bool, as_json: bool, engine: str | None, address: str | None,
             **changes: Any) -> None:  # fmt: skip
    """Do what a YAML file says: read a dataset, do some steps to it, write it; in one pass over the data.

    A step is a transform ('rayds transform --list') or filter, with its options. Paths are relative to the file. All of it
    is checked before anything is read.
    """
    from rayds.pipeline import Pipeline

    made = Pipeline.load(file)
    if only_check:
        note(f"{file}: {len(made.steps)} steps, no mistake", quiet)
        return
    start = time.monotonic()
    chosen = choose_engine(engine or "auto", address) if engine or address else None
    with progress("running the pipeline", quiet) as advance:
        report = made.run(chosen, advance, **changes)
    report.seconds = time.monotonic() - start
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else str(report))
