"""What all commands share: grouped help, the words after `--`, and the options that read a dataset and run work."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rayds.errors import OnError, UsageError

if TYPE_CHECKING:
    from rayds.dataset import Dataset
    from rayds.engine.base import Engine
    from rayds.format import Format
    from rayds.options import Options
    from rayds.project import Project

F = TypeVar("F", bound=Callable[..., Any])

EXTRA = "rayds.extra"
DEBUG = "rayds.debug"
HELP = ("-h", "--help")
ENGINES = ("auto", "local", "ray")
SHARD_BY = ("id", "subset")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_ARROW_POOL = "ARROW_DEFAULT_MEMORY_POOL"  # read when Arrow is loaded
_LOCAL_ADDRESS = "--address names a Ray cluster; it does not go with --engine local"
_NO_SHARDS = "--shard-by says how --shards divides the items; give --shards N, too"


class Opt(click.Option):
    """An option with a section of the help page, and spellings that work but are not shown there."""

    def __init__(
        self, *args: Any, section: str = "Other", aliases: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.section, self.aliases = section, tuple(aliases)
        self.opts.extend(aliases)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None:
            return None
        names, text = record
        for alias in self.aliases:
            names = names.replace(f", {alias} ", " ").removesuffix(f", {alias}")
        return names, text


class Command(click.Command):
    """A command whose help shows its options by section and examples as they stand.

    takes_extra: what follows `--` is kept for `extra_words` instead of being read as arguments. extra: what the usage
    line calls that. check: what can be told of a parsed command line without its data, before it is sent to a
    cluster; raises as the command itself would.
    """

    def __init__(
        self,
        *args: Any,
        takes_extra: bool = False,
        extra: str = "[-- FORMAT OPTIONS]",
        check: Callable[[click.Context], None] | None = None,
        examples: str = "",
        **kwargs: Any,
    ) -> None:
        kwargs["context_settings"] = {
            "help_option_names": list(HELP),
            **kwargs.get("context_settings", {}),
        }
        super().__init__(*args, **kwargs)
        self.takes_extra, self.extra, self.examples = takes_extra, extra, examples
        self.check = check
        self.params.append(
            Opt(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=_debug,
                help="Show tracebacks of errors.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.takes_extra and "--" in args:
            cut = args.index("--")
            args, ctx.meta[EXTRA] = args[:cut], args[cut + 1 :]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if "engine" in ctx.params:
            start_light(ctx.params)
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [*pieces, self.extra] if self.takes_extra else pieces

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                sections.setdefault(getattr(param, "section", "Other"), []).append(record)
        other = sections.pop("Other", [])
        for name, records in [*sections.items(), ("Other", other)]:
            if records:
                with formatter.section(name):
                    formatter.write_dl(records, col_max=26)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


def write_examples(examples: str, formatter: click.HelpFormatter) -> None:
    """The examples of a help page, line by line as they stand."""
    if examples:
        with formatter.section("Examples"):
            for line in inspect.cleandoc(examples).splitlines():
                formatter.write(f"  {line}".rstrip() + "\n")


class Group(click.Group):
    """A group of commands whose help shows examples."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        kwargs["context_settings"] = {"help_option_names": list(HELP), **kwargs.get("context_settings", {})}
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value:
        ctx.meta[DEBUG] = True


def extra_words(ctx: click.Context) -> list[str]:
    """What followed `--` on the command line."""
    return list(ctx.meta.get(EXTRA, ()))


def asks_help(words: Sequence[str]) -> bool:
    """Whether the words after `--` ask for the options that may stand there."""
    return any(w in HELP for w in words)


def stacked(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several option decorators as one, shown in this order."""

    def decorate(fn: F) -> F:
        for decorator in reversed(decorators):
            fn = decorator(fn)
        return fn

    return decorate


def opt(*names: str, **kwargs: Any) -> Callable[[F], F]:
    """click.option, of class Opt."""
    return click.option(*names, cls=Opt, **kwargs)


project_options = stacked(
    opt("-p", "--project", metavar="PROJECT", section="Input",
        help="A project instead; without -i the one around the current folder, if there is one."),
    opt("--allow-plugins", is_flag=True, section="Input",
        help="Run the plug-ins of the project, which are code (also: RAYDS_ALLOW_PLUGINS=1)."),
)  # fmt: skip

input_options = stacked(
    opt("-i", "--input-path", metavar="PATH", section="Input",
        help="Folder, file or URL of the dataset; default: the project around, or else the current folder."),
    project_options,
    opt("-if", "--input-format", metavar="FORMAT", section="Input", help="Its format; detected when left out."),
    opt("--read", multiple=True, metavar="NAME[=VALUE]", section="Input",
        help="An option of the input format; repeatable. See 'rayds formats FORMAT'."),
)  # fmt: skip

run_options = stacked(
    opt("--on-error", type=click.Choice([e.value for e in OnError]), default="raise", show_default=True, section="Run",
        help="Bad items: stop; leave out and count; or also list them in quarantine.parquet in the output."),
    opt("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, section="Run",
        help="Run in this process or on Ray. auto: Ray when it runs already, has an address or the input is huge."),
    opt("--address", metavar="ADDRESS", section="Run", help="Ray cluster to use, e.g. auto or ray://host:10001."),
    opt("--shards", type=click.IntRange(1), metavar="N", section="Run",
        help="Divide the items into N shards by a hash that never changes; they are written shard by shard."),
    opt("--shard-by", type=click.Choice(SHARD_BY), section="Run",
        help="What is kept in one shard: an item (id, the default) or a subset."),
)  # fmt: skip

print_options = stacked(
    opt("--quiet", "-q", is_flag=True, section="Output", help="No progress and no messages; errors still show."),
    opt("--json", "as_json", is_flag=True, section="Output", help="Print the result as JSON on stdout."),
)  # fmt: skip


def note(text: str, quiet: bool = False) -> None:
    """A message for the user, on stderr."""
    if not quiet:
        click.echo(text, err=True)


def choose_engine(engine: str, address: str | None) -> Engine | str:
    """The engine that --engine and --address name; "auto" stays open until the size of the input is known."""
    if address is None:
        return engine
    if engine == "local":
        raise UsageError(_LOCAL_ADDRESS)
    from rayds.engine import make_engine

    return make_engine("ray", address=address)


def in_shards(dataset: Dataset, shards: int | None, by: str | None) -> Dataset:
    """The dataset in the shards that --shards and --shard-by ask for."""
    if shards is None:
        if by is not None:
            raise UsageError(_NO_SHARDS)
        return dataset
    return dataset.repartition(shards, by or SHARD_BY[0])


def input_format(path: str, name: str | None, quiet: bool) -> Format:
    """The format of that name, or else the detected one, which is told."""
    from rayds.registry import detect_format, get_format

    if name:
        return get_format(name)
    found = detect_format(path)
    note(f"detected format: {found.name}", quiet)
    return found


def spare_pandas() -> None:
    """Keep pyarrow from importing pandas (half a second) at its first conversion, which only asks whether a value is
    one of pandas'. Where something asks pyarrow for pandas outright, it still imports it."""

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            del path, target
            if name == "pandas":
                raise ModuleNotFoundError(name)

    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    sys.meta_path.insert(0, Finder)
    try:
        pa.array([True])
    finally:
        sys.meta_path.remove(Finder)


def start_light(given: Mapping[str, Any]) -> None:
    """Where the work is done in this process: spare pandas, and what freeing memory costs, with one allocator for Arrow and all
    others; before any format or operation is loaded."""
    if given["engine"] == "local" or (
        given["engine"] == "auto" and not given["address"] and "RAY_ADDRESS" not in os.environ
    ):
        ours = keep_freed_memory() and _ARROW_POOL not in os.environ
        if ours:
            os.environ[_ARROW_POOL] = "system"
        spare_pandas()
        if ours:  # Arrow has read it; other processes have allocators of their own
            os.environ.pop(_ARROW_POOL, None)


def keep_freed_memory() -> bool:
    """Have the allocator of glibc keep some freed memory: arrays of megabytes come and go all the time, and each would be
    returned to the system, or wait in the heap of its thread, and the next take fresh, cleared pages.

    False where there is another C library: without effect.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
    mallopt(_M_TRIM_THRESHOLD, 64 << 20)
    mallopt(_M_ARENA_MAX, max(1, len(os.sched_getaffinity(0)) // 2))
    return True


def open_dataset(given: dict[str, Any]) -> Dataset:
    """The dataset that the parameters of a command name, on the engine that they name; progress is told.

    What was taken where nothing was named is put into the parameters.
    """
    from rayds.cli._progress import progress

    chosen = choose_engine(given["engine"], given["address"])
    quiet = given["quiet"]
    project = chosen_project(given)
    if project is not None:
        given["input_path"], given["from_project"] = project.folder.url, True
        with progress(f"looking at the project {project.name}", quiet):
            dataset = project.dataset(engine=chosen, on_error=given["on_error"])
            return in_shards(dataset, given["shards"], given["shard_by"])
    path = given["input_path"] = given["input_path"] or "."
    with progress(f"looking at {path}", quiet):
        dataset = read_dataset(
            path,
            given["input_format"],
            given["read"],
            engine=chosen,
            on_error=given["on_error"],
            quiet=quiet,
        )
        return in_shards(dataset, given["shards"], given["shard_by"])


def chosen_project(given: Mapping[str, Any]) -> Project | None:
    """The project that -p names, or, where no input is named, the one around the current folder."""
    if given.get("project") and given.get("input_path"):
        raise UsageError("-i names a dataset and -p a project; give one of them")
    if given.get("input_path"):
        return None
    from rayds.project import Project

    path = given.get("project")
    found = Project.load(path) if path else Project.find()
    if found is None:
        return None
    if not path:
        note(f"project: {found.name} in {found.folder.url}", given.get("quiet", False))
    load_plugins(found, given.get("allow_plugins", False), given.get("quiet", False))
    return found


def early_plugins(given: Mapping[str, Any]) -> None:
    """Load the plug-ins of the project that will be read, where that is allowed: options may name what they define."""
    from rayds import plugins

    if given.get("allow_plugins") or plugins.allowed():
        chosen_project({**given, "quiet": True})


def load_plugins(project: Project, allow: bool, quiet: bool) -> None:
    """Load the plug-ins of a project if that is allowed; else tell that there are some."""
    from rayds import plugins

    if allow or plugins.allowed():
        plugins.load(project.folder)
    elif plugins.files(project.folder):
        note(
            f"the project {project.name} has plug-ins, which are code; they are not run without --allow-plugins",
            quiet,
        )


def reader_options(fmt: Format, read: Sequence[str]) -> Options:
    """The reader's options from the values of --read."""
    try:
        return fmt.ReadOptions.parse([f"--{word.lstrip('-')}" for word in read])
    except UsageError as e:
        raise UsageError(f"--read: {e} See 'rayds formats {fmt.name}'") from e


def check_input(ctx: click.Context) -> None:
    """What can be told of the options that read a dataset and run work, without the data."""
    from rayds.registry import get_format

    given = ctx.params
    if given.get("input_format"):
        reader_options(get_format(given["input_format"]), given.get("read") or ())
    if given.get("engine") == "local" and given.get("address") is not None:
        raise UsageError(_LOCAL_ADDRESS)
    if given.get("shard_by") is not None and given.get("shards") is None:
        raise UsageError(_NO_SHARDS)


def read_dataset(
    path: str, format: str | None, read: Sequence[str], *, engine: Engine | str, on_error: str, quiet: bool
) -> Dataset:
    """The dataset that the input options name."""
    from rayds.dataset import Dataset

    fmt = input_format(path, format, quiet)
    options = reader_options(fmt, read)
    return Dataset.import_from(path, fmt.name, engine=engine, on_error=on_error, **vars(options))
