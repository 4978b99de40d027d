"""Projects: `rayds create`, `import`, `add`, `remove`, `export`, and the groups `project` and `source`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from rayds.cli._common import (
    HELP,
    Command,
    Group,
    asks_help,
    choose_engine,
    early_plugins,
    extra_words,
    load_plugins,
    note,
    open_dataset,
    opt,
    print_options,
    project_options,
    run_options,
    stacked,
)
from rayds.cli._output import check_output, output_options, write_dataset, writer_of
from rayds.cli.filter import check_expression, filter_options
from rayds.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayds.project import Project

quiet_option = opt("--quiet", "-q", is_flag=True, section="Other", help="No messages; errors still show.")
check_options = stacked(
    opt("--skip-check", "--no-check", is_flag=True, section="Source",
        help="Add it without a look whether it can be read."),
    opt("-f", "--format", "source_format", metavar="FORMAT", section="Source", help="Its format; detected when left out."),
    opt("-n", "--name", metavar="NAME", section="Source", help="The name of the source; default: that of the folder or file."),
    opt("-r", "--path", "inner", metavar="PATH", section="Source", help="Where the dataset is in the folder that is named."),
)  # fmt: skip


def opened(given: dict[str, Any]) -> Project:
    """The project that -p names, or the one around the current folder."""
    from rayds.project import Project

    path = given.get("project")
    found = Project.load(path) if path else Project.find()
    if found is None:
        raise UsageError(
            "there is no project around the current folder; name one with -p, or 'rayds create' one"
        )
    load_plugins(found, given.get("allow_plugins", False), given.get("quiet", False))
    return found


@click.command(cls=Command, examples="    rayds create -o my_project\n    rayds create")
@opt(
    "-o",
    "--output-dir",
    default=".",
    show_default=True,
    metavar="DIR",
    section="Project",
    help="Its folder, or a URL.",
)
@opt("-n", "--name", metavar="NAME", section="Project", help="Its name; default: that of the folder.")
@opt("--overwrite", is_flag=True, section="Project", help="Forget the project that is there.")
@quiet_option
def create(output_dir: str, name: str | None, overwrite: bool, quiet: bool) -> None:  # fmt: skip
    """Make a new, empty project: a folder with .rayds/project.yaml, to which sources are added."""
    from rayds.project import Project

    made = Project.create(output_dir, name, overwrite)
    note(f"project {made.name} in {made.folder.url}", quiet)


def _path_of(words: Sequence[str]) -> str:
    """The dataset that the words of `add` name: [path] PATH."""
    if words[0] == "git":
        raise UsageError("'add git' is not there: clone the repository, and add its folder")
    if words[0] == "path" and len(words) > 1:
        words = words[1:]
    if len(words) != 1:
        raise UsageError(f"name one dataset, not {len(words)}: {' '.join(words)}")
    return words[0]


def _check_source(ctx: click.Context) -> None:
    """The format of a source, and the options of its reader."""
    from rayds.registry import get_format

    early_plugins(ctx.params)
    if ctx.params["source_format"]:
        get_format(ctx.params["source_format"]).ReadOptions.parse(extra_words(ctx))


def check_add(ctx: click.Context) -> None:
    """All that the command line says, without the data."""
    _path_of(ctx.params["words"])
    _check_source(ctx)


def check_import(ctx: click.Context) -> None:
    """All that the command line says, without the data."""
    given = ctx.params
    if (given["input_path"] is None) == (given["url"] is None):
        raise UsageError("name the dataset: with -i to make a project of it, without to copy it into one")
    if given["url"] is not None and (given["output_dir"] is not None or given["overwrite"]):
        raise UsageError("-o and --overwrite make a new project: name the dataset with -i")
    _check_source(ctx)


def check_remove(ctx: click.Context) -> None:
    """That something is named."""
    if not (ctx.params["names"] or ctx.params["named"]):
        raise UsageError("name the source to remove")


@click.command(
    cls=Command,
    takes_extra=True,
    check=check_add,
    examples="""
    rayds add -f coco ../coco
    rayds add path -f voc -n day2 s3://bucket/voc -p my_project
    rayds add -f coco ../coco -- --keep-original-category-ids
""",
)
@click.argument("words", nargs=-1, required=True, metavar="[path] PATH")
@check_options
@opt("--copy", is_flag=True, section="Source", help="Copy its files into the project.")
@project_options
@quiet_option
@click.pass_context
def add(ctx: click.Context, /, **given: Any) -> None:  # fmt: skip
    """Add a dataset as a source of a project: it stays where it is, unless --copy is given.

    All sources together are the dataset of the project. What can't be read is refused with the reason. Options of the
    reader follow after --.
    """
    check_add(ctx)
    _add(opened(given), _path_of(given["words"]), given, extra_words(ctx), copy=given["copy"])


def _add(project: Project, path: str, given: dict[str, Any], words: list[str], *, copy: bool) -> None:
    from rayds.registry import detect_format, get_format
    from rayds.storage import Storage

    path = Storage(path).path(given["inner"]) if given["inner"] else path
    fmt = get_format(given["source_format"]) if given["source_format"] else detect_format(path)
    options = vars(fmt.ReadOptions.parse(words))
    defaults = vars(fmt.ReadOptions())
    told = {k: v for k, v in options.items() if v != defaults[k]}
    name = project.add(path, fmt.name, given["name"], copy=copy, check=not given["skip_check"], **told)
    note(f"source {name} ({fmt.name}): {project.place(name)}", given["quiet"])


@click.command(
    "import",
    cls=Command,
    takes_extra=True,
    check=check_import,
    examples="""
    rayds import -i ../coco -f coco -o my_project
    rayds import -f voc -n day2 ../voc -p my_project
""",
)
@click.argument("url", required=False, metavar="[PATH]")
@opt("-i", "--input-path", metavar="PATH", section="Source", help="The dataset: a new project is made of it.")
@check_options
@opt(
    "-o", "--output-dir", metavar="DIR", section="Source", help="The folder of the new project. [default: .]"
)
@opt("--copy", is_flag=True, section="Source", help="Copy the files of -i into the project, too.")
@opt("--overwrite", is_flag=True, section="Source", help="Forget the project that is there.")
@project_options
@quiet_option
@click.pass_context
def import_(ctx: click.Context, /, **given: Any) -> None:  # fmt: skip
    """Make a project of a dataset (-i), or copy a dataset into a project (PATH, without -i).

    With -i, -n is the name of the project; without, that of the source.
    """
    from rayds.project import Project

    check_import(ctx)
    words = extra_words(ctx)
    if given["url"] is not None:
        _add(opened(given), given["url"], given, words, copy=True)
        return
    target = given["output_dir"] or "."
    made = Project.new(target, given["name"], given["overwrite"])
    _add(made, given["input_path"], {**given, "name": None}, words, copy=given["copy"])


@click.command(
    cls=Command, check=check_remove, examples="    rayds remove coco\n    rayds remove -n coco -p my_project"
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@opt("-n", "--name", "named", multiple=True, metavar="NAME", section="Source", help="The same as NAME.")
@opt("--keep-data", is_flag=True, section="Source", help="Keep the files that were copied into the project.")
@opt("--force", is_flag=True, section="Source", help="No error for a source that is not there.")
@project_options
@quiet_option
@click.pass_context
def remove(ctx: click.Context, /, **given: Any) -> None:  # fmt: skip
    """Remove sources from a project. Data outside of the project is never touched."""
    check_remove(ctx)
    names = [*given["names"], *given["named"]]
    project = opened(given)
    if not given["force"]:
        for name in names:
            project.place(name)  # all are there, or nothing is done
    for name in names:
        project.remove(name, keep_data=given["keep_data"], force=given["force"])
        note(f"removed {name}", given["quiet"])


def check_export(ctx: click.Context) -> None:
    """The formats and all options, without the data."""
    if ctx.params["filter_expression"] is not None:
        check_expression(ctx.params["filter_expression"], None, ctx.params["filter_mode"])
    if not asks_help(extra_words(ctx)):
        check_output(ctx)


@click.command(
    cls=Command,
    takes_extra=True,
    check=check_export,
    examples="""
    rayds export -f voc -o voc/ -- --save-media
    rayds export -p my_project -f coco -e '/item[subset="train"]' -o train/
""",
)
@project_options
@filter_options
@output_options("<format>", "The format to write.", required=True)
@print_options
@run_options
@click.pass_context
def export(ctx: click.Context, /, **given: Any) -> None:  # fmt: skip
    """Write the dataset of a project in a format. Options of the format follow after --."""
    from rayds.registry import get_format

    early_plugins(given)
    fmt = get_format(given["output_format"])
    words = extra_words(ctx)
    if asks_help(words):
        from rayds.cli.formats import writer_help

        click.echo(writer_help(fmt, [w for w in words if w not in HELP]))
        return
    check_export(ctx)
    writer_of(given, words, fmt)
    start = time.monotonic()
    project = opened(given)
    given.update(project=project.folder.url, input_path=None, input_format=None, read=())
    dataset = open_dataset(given)
    if given["filter_expression"] is not None:
        dataset = dataset.filter(given["filter_expression"], mode=given["filter_mode"])
    write_dataset(
        dataset,
        given,
        verb="exporting",
        name=fmt.name,
        beside=project.folder.url,
        start=start,
        words=words,
    )


class Long(Group):
    """The commands of projects under their long names."""

    def __init__(self, *args: Any, members: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.members = members

    def list_commands(self, ctx: click.Context) -> list[str]:
        from rayds.cli.main import COMMANDS

        own = super().list_commands(ctx)
        return [*own, *(n for n in self.members if n in COMMANDS and n not in own)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from rayds.cli.main import COMMANDS, command_of

        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in self.members or cmd_name not in COMMANDS:
            return own
        return command_of(cmd_name)


@click.group(
    cls=Long,
    members=(
        "create",
        "import",
        "export",
        "filter",
        "transform",
        "merge",
        "diff",
        "info",
        "stats",
        "validate",
    ),
    examples="    rayds project create -o my_project\n    rayds project info",
)
def project() -> None:
    """The commands of projects under their long names."""


@project.command(
    "merge",
    cls=Command,
    takes_extra=True,
    check=check_output,
    examples="    rayds project merge other_project/ -o both",
)
@click.argument("other", metavar="PATH[:FORMAT]")
@project_options
@output_options("merged")
@print_options
@run_options
@click.pass_context
def project_merge(ctx: click.Context, /, **given: Any) -> None:
    """Update a project with another one, or with a dataset: its items are added, or replace those of the same id.

    The result is a new project, unless -f names a format. 'rayds merge' has the other ways to merge.
    """
    from rayds.cli.merge import open_part

    start = time.monotonic()
    found = opened(given)
    given.update(project=found.folder.url, input_path=None, input_format=None, read=())
    dataset = open_dataset(given)
    engine = choose_engine(given["engine"], given["address"])
    other = open_part(given["other"], None, engine, given["on_error"], given["quiet"])
    write_dataset(
        dataset.update(other),
        given,
        verb="merging",
        name="merged",
        beside=found.folder.url,
        start=start,
        words=extra_words(ctx),
    )


@click.group(
    cls=Long,
    members=("add", "remove"),
    examples="    rayds source add -f coco ../coco\n    rayds source info",
)
def source() -> None:
    """Add, remove and list the sources of a project."""


@source.command("info", cls=Command)
@click.argument("name", required=False)
@opt("-n", "--name", "named", metavar="NAME", section="Source", help="The same as NAME.")
@opt("-v", "--verbose", is_flag=True, section="Source", help="Their options, too.")
@opt("--json", "as_json", is_flag=True, section="Other", help="Print the result as JSON.")
@project_options
def source_info(**given: Any) -> None:
    """List the sources of a project, or show one."""
    found = opened(given)
    name = given["name"] or given["named"]
    names = [name] if name else list(found.sources)
    shown: dict[str, Any] = {}
    for one in names:
        place = found.place(one)
        told = found.sources[one]
        shown[one] = {"format": told.format, "url": place}
        if given["verbose"] or given["as_json"]:
            shown[one]["options"] = told.options
    if given["as_json"]:
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for one, facts in shown.items():
        click.echo(f"source {one!r}:")
        for key, value in facts.items():
            click.echo(f"  {key}: {value}")
