"""A command line that will run elsewhere: checked here, its paths found and rewritten."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from rayds.cli._common import EXTRA, Command, asks_help
from rayds.errors import UnknownNameError, UsageError
from rayds.storage import Storage, is_url

HERE_ONLY = ("submit", "jobs")
Ship = Callable[[str], str]


@dataclass
class Remote:
    """A checked command line. words: as it will run, but for `files`; inputs, outputs: local paths of data in it,
    absolute; files: local files to go along."""

    name: str
    words: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    _places: dict[int, tuple[str, str]] = field(default_factory=dict)

    def shipped(self, ship: Ship) -> list[str]:
        """The words, with each file by the path that `ship` gives it."""
        return [
            self._places[i][0] + ship(self._places[i][1]) if i in self._places else word
            for i, word in enumerate(self.words)
        ]

    def value(self, prefix: str, value: str, role: str) -> None:
        """Append a word, of an option's name (with `=`) or nothing, and its value."""
        if role in ("input", "output"):
            value = self._data(value, role)
        elif _names_file(value):
            self._places[len(self.words)] = (prefix, value)
            self.files.append(value)
        elif os.path.isabs(os.path.expanduser(value)) and os.path.isdir(os.path.expanduser(value)):
            value = self._data(value, "input")
        self.words.append(prefix + value)

    def _data(self, value: str, role: str) -> str:
        from rayds.cli.merge import named

        value, format = named(value) if role == "input" else (value, None)
        suffix = f":{format}" if format else ""
        outer, chain, inner = value.rpartition("::")  # zip://member::archive
        if inner.startswith("memory://"):
            raise UsageError(f"{value}: memory:// is inside one process; a job on a cluster doesn't see it")
        if is_url(inner) and (chain or "://" in inner):
            return value + suffix
        path = Storage(inner).url
        (self.inputs if role == "input" else self.outputs).append(path)
        return f"{outer}{chain}{path}{suffix}"


def _names_file(value: str) -> bool:
    """Whether a value is the path of a local file: it exists, and it looks like one (a file of the name of a choice
    does not change the meaning of that)."""
    return not is_url(value) and ("." in value or "/" in value) and Path(value).expanduser().is_file()


def check_command(words: Sequence[str], root: click.Group) -> Remote:
    """Parse the words of a command by the command itself; raises what a typo in them raises there."""
    command, names, args = _find(words, root)
    ctx = command.make_context(f"rayds {' '.join(names)}", list(args))
    if command.check is not None:
        command.check(ctx)
    extra = list(ctx.meta.get(EXTRA, ()))
    if asks_help(extra):
        raise UsageError("the command asks for help; run it without submit")
    remote = Remote(" ".join(names), list(names))
    positional = _options(remote, command, ctx, args)
    takes_address = any(p.name == "address" for p in command.params)
    if takes_address and not _given(ctx, "address") and ctx.params.get("engine") != "local":
        remote.words += ["--address", "auto"]
    for value, role in positional:
        remote.value("", value, role)
    if extra:
        remote.words.append("--")
        for word in extra:
            _extra(remote, word)
    return remote


def _find(words: Sequence[str], root: click.Group) -> tuple[Command, list[str], list[str]]:
    """(the command, its names from the root on, its arguments)."""
    if not words or words[0].startswith("-"):
        raise UsageError(
            "name the command after --, as in: rayds submit -- convert -i s3://... -f rayds -o s3://..."
        )
    if words[0] in HERE_ONLY:
        raise UsageError(f"{words[0]!r} talks to a cluster from here; it is no job itself")
    names: list[str] = []
    found: click.Command = root
    rest = list(words)
    while isinstance(found, click.Group):
        ctx = click.Context(found)
        if not rest or rest[0].startswith("-"):
            raise UsageError(f"'rayds {' '.join(names)}' needs one of: {', '.join(found.list_commands(ctx))}")
        inner = found.get_command(ctx, rest[0])
        if inner is None:
            raise UnknownNameError("command", " ".join([*names, rest[0]]), found.list_commands(ctx))
        names.append(rest.pop(0))
        found = inner
    if not isinstance(found, Command):
        raise UsageError(f"'rayds {' '.join(names)}' can't run as a job")
    return found, names, rest


def _options(
    remote: Remote, command: Command, ctx: click.Context, args: Sequence[str]
) -> list[tuple[str, str]]:
    """Append the options as they were typed, paths rewritten; returns the positional values, each with its role."""
    typed = list(args)
    if command.takes_extra and "--" in typed:
        typed = typed[: typed.index("--")]
    values, _, order = command.make_parser(ctx).parse_args(typed)
    seen: dict[str, int] = {}
    positional: list[tuple[str, str]] = []
    for param in order:
        name = param.name or ""
        value = values.get(name)
        if isinstance(param, click.Argument):
            many = value if isinstance(value, (tuple, list)) else [value]
            positional += [(str(v), _role(param)) for v in many if isinstance(v, str)]
            continue
        if param.multiple:
            value = value[seen.get(name, 0)]  # type: ignore[index]
        elif name in seen:
            continue  # the last one counts, which click has put in place
        seen[name] = seen.get(name, 0) + 1
        flag = max(param.opts, key=lambda o: (o.startswith("--"), -param.opts.index(o)))
        if isinstance(value, (tuple, list)):
            remote.words.append(flag)
            for v in value:
                remote.value("", str(v), _role(param))
        elif isinstance(value, str) and not getattr(param, "is_flag", False):
            remote.words.append(flag)
            before, equals, after = value.partition("=") if name in ("read", "write") else ("", "", value)
            remote.value(before + equals, after, _role(param))
        elif getattr(param, "count", False):
            remote.words += [flag] * int(str(value))
        else:
            remote.words.append(flag if value or not param.secondary_opts else param.secondary_opts[0])
    _input_of_here(remote, command, ctx)
    for param in command.params:  # a default path, or one that `check` has found, is a place on this machine
        default = ctx.params.get(param.name or "")
        role = _role(param)
        if role != "file" and not _given(ctx, param.name or "") and isinstance(default, str):
            if isinstance(param, click.Argument):
                positional.append((default, role))
            else:
                remote.words.append(param.opts[0])
                remote.value("", default, role)
    return positional


def _input_of_here(remote: Remote, command: Command, ctx: click.Context) -> None:
    """Name the input that the command takes where none is named: the project around, or the current folder."""
    names = {p.name for p in command.params}
    if not names & {"input_path", "project"} or ctx.params.get("input_path") or ctx.params.get("project"):
        return
    from rayds.project import Project

    found = Project.find() if "project" in names else None
    if found is not None:
        remote.words.append("-p")
        remote.value("", found.folder.url, "input")
    elif "input_path" in names:
        remote.words.append("-i")
        remote.value("", ".", "input")


def _extra(remote: Remote, word: str) -> None:
    """A word after `--`: --name, --name=value or a value."""
    if word.startswith("-") and "=" in word:
        name, _, value = word.partition("=")
        remote.value(f"{name}=", value, "file")
    elif word.startswith("-"):
        remote.words.append(word)
    else:
        remote.value("", word, "file")


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _role(param: click.Parameter) -> str:
    """What a path in a parameter is: data that is read ("input") or written ("output"), or a file to go along."""
    name = param.name or ""
    if name.endswith("format"):
        return "file"
    if name.startswith(("output", "dst", "out_")):
        return "output"
    if name.startswith(("input", "project", "path", "source", "dataset")):
        return "input"
    return "file"
