"""What all commands share that write a dataset: where, in which format, and how that is told."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from rayds.cli._common import extra_words, note, opt, stacked
from rayds.cli._progress import progress
from rayds.errors import UsageError

if TYPE_CHECKING:
    from rayds.dataset import Dataset
    from rayds.format import Format
    from rayds.options import Options


PROJECT_DATA = "dataset"
SAME_FORMAT = "The format to write; default: that of the input, or rayds where that can't be written; of a project: a project."


def output_options(
    name: str, format_help: str = SAME_FORMAT, *, required: bool = False
) -> Callable[..., Any]:
    """The options of a command that writes a dataset.

    name: what stands in the default output's name after the input's. required: whether the format must be named.
    """
    return stacked(
        opt("-o", "--output-dir", metavar="DIR", aliases=("--output",), section="Output",
            help=f"Folder or URL to write; default: <input name>-{name} beside the input."),
        opt("-f", "--output-format", metavar="FORMAT", aliases=("--format",), required=required, section="Output",
            help=format_help),
        opt("--write", multiple=True, metavar="NAME[=VALUE]", section="Output",
            help="An option of the output format; repeatable. See 'rayds formats FORMAT'."),
        opt("--save-media", is_flag=True, aliases=("--save-images",), section="Output",
            help="Write the images too, not only the annotations."),
        opt("--image-ext", metavar="EXT", section="Output",
            help="Extension of written images, e.g. .png; others are re-encoded."),
        opt("--overwrite", is_flag=True, section="Output", help="Replace the output folder when it is there."),
        opt("--resume", is_flag=True, section="Output",
            help="Go on with an interrupted run of the same command; keep what is complete if this one fails."),
        opt("--strict", is_flag=True, section="Output",
            help="Write nothing if the format can't hold everything."),
    )  # fmt: skip


def media_words(save_media: bool, image_ext: str | None) -> list[str]:
    """The options of images, given before `--`, as words after it."""
    words = ["--save-media=true"] if save_media else []
    return [*words, f"--image-ext={image_ext}"] if image_ext else words


def writer_options(fmt: Format, words: Sequence[str]) -> Options:
    """The writer's options from the words after `--`."""
    try:
        return fmt.WriteOptions.parse(words)
    except UsageError as e:
        raise UsageError(
            f"{e} ('rayds convert -f {fmt.name} -- --help' lists the options of {fmt.name})"
        ) from e


def writer_of(given: dict[str, Any], words: Sequence[str], fmt: Format) -> Options:
    """The writer's options that a command was given, checked; words: those after `--`, where they are the writer's."""
    options = writer_options(
        fmt,
        [
            *media_words(given["save_media"], given["image_ext"]),
            *(f"--{word.lstrip('-')}" for word in given.get("write") or ()),
            *words,
        ],
    )
    fmt.capabilities(options)  # ends it here when the format can't be written
    return options


def output_format(name: str | None, source: str | None) -> Format:
    """The format to write: the one named, else that of the source if it can be written, else rayds."""
    from rayds.registry import get_format

    if name:
        return get_format(name)
    found = get_format(source) if source else None
    return found if found is not None and found.holds is not None else get_format("rayds")


def check_output(ctx: click.Context, *, own_words: bool = False) -> None:
    """What can be told of the options that write a dataset, without the data. own_words: what follows `--` is not
    the output format's."""
    from rayds.registry import get_format

    if ctx.params["output_format"]:
        fmt = get_format(ctx.params["output_format"])
        writer_of(ctx.params, () if own_words else extra_words(ctx), fmt)


def write_dataset(
    dataset: Dataset,
    given: dict[str, Any],
    *,
    verb: str,
    name: str,
    beside: str,
    start: float,
    words: Sequence[str] = (),
    statistics: Mapping[str, Mapping[str, int]] | None = None,
) -> None:
    """Write a dataset as the options of a command say, and tell of it.

    statistics: subset -> label -> annotations, which are told, too; they may be there when it is written only.

    given: the command's parameters. verb: what is done, e.g. "filtering". name: what the default output is called
    after the input; beside: the input that it stands beside. start: when the command began (time.monotonic). words:
    options of the format.
    """
    as_project = bool(given.get("from_project")) and not given["output_format"]
    fmt = output_format("rayds" if as_project else given["output_format"], dataset.format)
    options = writer_of(given, words, fmt)
    expected = None if given["quiet"] else dataset.expected()
    resume, overwrite = given["resume"], given["overwrite"]
    target = given["output_dir"] or default_output(beside, name, overwrite, resume)
    data = _project_data(target, overwrite) if as_project else target
    with keeping(data, resume), progress(f"{verb} to {fmt.name}", given["quiet"], expected) as advance:
        report = dataset.write(
            data,
            fmt,
            options,
            overwrite=overwrite,
            strict=given["strict"],
            resume=resume,
            progress=advance,
        )
    if as_project:
        _made_project(target, fmt.name)
    report.seconds = time.monotonic() - start  # with detection and planning
    if given["as_json"]:
        labels = {"labels": statistics} if statistics else {}
        click.echo(json.dumps({**report.to_json(), **labels}, indent=2))
        return
    click.echo(str(report))
    if statistics and any(statistics.values()):
        click.echo(_label_table(statistics))


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


def _label_table(statistics: Mapping[str, Mapping[str, int]], most: int = 20) -> str:
    """The most frequent labels by subset, as a table."""
    from rayds.cli._tables import table

    subsets = list(statistics)
    totals: dict[str, int] = {}
    for counts in statistics.values():
        for label, n in counts.items():
            totals[label] = totals.get(label, 0) + n
    shown = sorted(totals, key=lambda label: (-totals[label], label))
    rows = [[label, *(f"{statistics[s].get(label, 0):,}" for s in subsets)] for label in shown[:most]]
    more = f"\n(and {len(shown) - most:,} more labels)" if len(shown) > most else ""
    return table(("label", *subsets), rows) + more


def _project_data(target: str, overwrite: bool) -> str:
    """Where the data of a new project goes."""
    from rayds.errors import OutputExistsError
    from rayds.project import FILE
    from rayds.storage import Storage

    folder = Storage(target)
    if not overwrite and not folder.is_empty():
        raise OutputExistsError(f"{folder.url} is there already; give another -o, or --overwrite")
    if overwrite and not folder.is_empty() and not folder.exists(FILE):
        raise OutputExistsError(f"{folder.url} is there and no project: it is not replaced by one")
    return folder.path(PROJECT_DATA)


def _made_project(target: str, format: str) -> None:
    """Write the file of a new project around its data: last, so that it is never there without them."""
    from rayds.project import Project, ProjectSource

    project = Project.create(target, overwrite=True)
    project.sources = {PROJECT_DATA: ProjectSource(PROJECT_DATA, format)}
    project.save()


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
