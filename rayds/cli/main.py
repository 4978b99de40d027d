"""The `rayds` command: its commands are imported when used, its errors are told in one line."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from types import FrameType
from typing import IO, Any, NamedTuple

import click

from rayds import __version__
from rayds.cli._common import DEBUG
from rayds.errors import RaydsError, UnknownNameError, UsageError


class Entry(NamedTuple):
    """A command: where it is, and what the help page of the group says of it."""

    module: str
    section: str
    help: str


COMMANDS = {
    "convert": Entry("rayds.cli.convert", "Datasets", "Write a dataset in another format."),
    "filter": Entry("rayds.cli.filter", "Datasets", "Keep items or annotations by XPath or SQL."),
    "transform": Entry("rayds.cli.transform", "Datasets", "Split, relabel, rename, resize, ... a dataset."),
    "merge": Entry("rayds.cli.merge", "Datasets", "Make one dataset of several."),
    "diff": Entry("rayds.cli.diff", "Datasets", "Compare two datasets, or predictions with the truth."),
    "compare": Entry("rayds.cli.diff", "Datasets", "The same as diff."),
    "pipeline": Entry("rayds.cli.pipeline", "Datasets", "Do what a file says, in one pass."),
    "detect": Entry("rayds.cli.formats", "Datasets", "Tell which format a dataset has, and why."),
    "formats": Entry("rayds.cli.formats", "Formats", "List the formats, or show all about one."),
    "info": Entry("rayds.cli.info", "Datasets", "Tell what a dataset or a project is."),
    "create": Entry("rayds.cli.project", "Projects", "Make a new project."),
    "import": Entry("rayds.cli.project", "Projects", "Make a project of a dataset, or copy one into it."),
    "add": Entry("rayds.cli.project", "Projects", "Add a dataset as a source."),
    "remove": Entry("rayds.cli.project", "Projects", "Remove sources."),
    "export": Entry("rayds.cli.project", "Projects", "Write the dataset of a project in a format."),
    "project": Entry("rayds.cli.project", "Projects", "These commands under their long names."),
    "source": Entry("rayds.cli.project", "Projects", "Add, remove and list sources."),
    "submit": Entry("rayds.cli.jobs", "Clusters", "Run a command as a job of a Ray cluster."),
    "jobs": Entry("rayds.cli.jobs", "Clusters", "List, follow and stop the jobs of a cluster."),
}


def command_of(name: str) -> click.Command:
    """A command by its name."""
    found: click.Command = getattr(
        import_module(COMMANDS[name].module), f"{name}_" if iskeyword(name) else name
    )
    return found


class Failure(click.ClickException):
    """The data or the job failed, as it is told to the user."""


class Misuse(Failure):
    """Bad usage."""

    exit_code = 2


class Interrupted(Failure):
    """Ctrl-C."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted")


class Root(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        return command_of(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(n, e.help) for n, e in COMMANDS.items() if e.section == section])

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
                raise
            except KeyboardInterrupt:
                raise Interrupted from None
            except Exception as e:
                if ctx.meta.get(DEBUG) or os.environ.get("RAYDS_DEBUG", "0") not in ("", "0"):
                    traceback.print_exc()
                raise failure(e) from e

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except (click.ClickException, click.Abort) as e:
            if not standalone_mode:
                raise
            error = Interrupted() if isinstance(e, click.Abort) else e
            show_error(error)
            sys.exit(error.exit_code)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def failure(e: Exception) -> Failure:
    """What the user is told of an exception, and the exit code."""
    if isinstance(e, UsageError):
        return Misuse(str(e))
    if isinstance(e, RaydsError):
        return Failure(str(e))
    if isinstance(e, FileNotFoundError) and e.filename is not None:
        return Failure(f"{os.fsdecode(e.filename)}: no such file or folder")
    if isinstance(e, OSError):
        return Failure(f"{os.fsdecode(e.filename)}: {e.strerror}" if e.filename is not None else str(e))
    return Failure(f"internal error: {type(e).__name__}: {e} (RAYDS_DEBUG=1 shows where)")


def show_error(e: click.ClickException) -> None:
    """Print an error on stderr."""
    plain = None if "NO_COLOR" not in os.environ else False
    prefix = click.style("error:", fg="red", bold=True)
    click.echo(f"{prefix} {e.format_message()}", err=True, color=plain)
    ctx = getattr(e, "ctx", None)
    if ctx is not None:
        click.echo(f"Try '{ctx.command_path} --help'.", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    click.echo(f"warning: {message}", err=True)


@click.group(
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="'rayds COMMAND --help' shows the options of a command.",
)
@click.version_option(
    __version__, "--version", prog_name="rayds", message="%(prog)s %(version)s", help="Show the version."
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors (also: RAYDS_DEBUG=1).")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Build, convert, clean, measure and explain computer-vision datasets, on one machine or on a Ray cluster."""
    if debug:
        ctx.meta[DEBUG] = True
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _terminate(signum: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + signum)


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminate)  # a stopped job cleans up as after Ctrl-C
    try:
        cli(prog_name="rayds")
    except SystemExit as e:
        _leave(e)


def _leave(end: SystemExit) -> None:
    """End the process after its exit handlers without freeing every object, which takes longer than most commands."""
    if end.code is not None and not isinstance(end.code, int):
        raise end
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # a closed pipe: Python tells of it in its own way
        raise end from None
    os._exit(end.code or 0)
