"""Job files: what is read, which operations follow one another, what is written, as YAML that is checked as a whole
before anything runs. See docs/operations/pipeline.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayds.errors import OnError, UnknownNameError, UsageError
from rayds.format import Format
from rayds.op import Op, transform_class
from rayds.registry import get_format
from rayds.storage import is_url, read_url

if TYPE_CHECKING:
    from rayds.dataset import Dataset

# The keys of each part, with what their values are.
PARTS: dict[str, dict[str, type]] = {
    "input": {"path": str, "format": str, "options": dict},
    "output": {
        "path": str, "format": str, "options": dict, "save_media": bool, "image_ext": str, "overwrite": bool,
        "strict": bool, "resume": bool,
    },
    "run": {"engine": str, "address": str, "on_error": str, "shards": int, "shard_by": str},
}  # fmt: skip
CHOICES = {
    "engine": ("auto", "local", "ray"),
    "on_error": tuple(policy.value for policy in OnError),
    "shard_by": ("id", "subset"),
}
# Steps that have a name of their own, or whose value may be a text: (the operation, the option that the text is).
# Every other step is called as its operation is.
STEPS = {"filter": ("filter", "expression"), "where": ("filter", "where")}

_KINDS = {str: "a text", bool: "true or false", int: "a whole number", dict: "a mapping"}


@dataclass(frozen=True)
class Step:
    """An operation of a job. place: how messages call it; options: as written, paths of files made absolute."""

    place: str
    op: Op
    options: Mapping[str, Any]

    def files(self) -> list[str]:
        """The files that its options name."""
        names = self.op.Options.file_names()
        return [str(v) for k, v in self.options.items() if k.replace("-", "_") in names]


@dataclass(frozen=True)
class Job:
    """A checked job file. input, output, run: the values by the keys of PARTS; paths are absolute or URLs."""

    path: str
    input: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    output: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str) -> Job:
        """The job in a file or at a URL; raises UsageError naming the file, the step and the key."""
        with _naming(path):
            return cls._of(path, _parsed(read_url(path)))

    @classmethod
    def _of(cls, path: str, value: Any) -> Job:
        if not isinstance(value, dict):
            raise UsageError("a job is a mapping with the keys input, steps, output and run")
        _known("key", value, (*PARTS, "steps"))
        folder = path.rpartition("/")[0] if is_url(path) else os.path.dirname(os.path.abspath(path))
        parts = {name: _part(name, value.get(name)) for name in PARTS}
        for name in ("input", "output"):
            if "path" in parts[name]:
                parts[name]["path"] = beside(folder, parts[name]["path"])
        with _naming("input.options"):
            _format_options(parts["input"], "ReadOptions")
        with _naming("output.options"):
            made = _format_options(parts["output"], "WriteOptions")
            if made is not None:
                made[0].capabilities(made[1])  # ends it here when the format can't be written
        steps = value.get("steps")
        if not isinstance(steps, list | None):
            raise UsageError("steps: a list is needed, of one operation each")
        found = tuple(_step(n, step, folder) for n, step in enumerate(steps or (), start=1))
        return cls(path, parts["input"], found, parts["output"], parts["run"])

    def apply(self, dataset: Dataset) -> Dataset:
        """The dataset after all steps: one pass over the data, but for the operations that must look at it first."""
        for step in self.steps:
            with _naming(self.path), _naming(step.place):
                dataset = dataset.transform(step.op)
        return dataset


def beside(folder: str, path: str) -> str:
    """A path of a job file: relative ones are relative to its folder."""
    outer, chain, inner = path.rpartition("::")  # zip://member::archive
    if not is_url(inner) and not inner.startswith("~"):
        inner = f"{folder}/{inner}" if is_url(folder) and not os.path.isabs(inner) else inner
        inner = inner if is_url(inner) else os.path.normpath(os.path.join(folder, inner))
    return f"{outer}{chain}{inner}"


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Errors of usage begin with a place."""
    try:
        yield
    except UsageError as e:
        raise UsageError(f"{place}: {e}") from e


def _known(kind: str, names: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, str(name), known)


def _part(name: str, value: Any) -> dict[str, Any]:
    """One of the parts input, output and run, checked."""
    if value is None:
        return {}
    with _naming(name):
        if not isinstance(value, dict):
            raise UsageError("a mapping is needed")
        _known("key", value, tuple(PARTS[name]))
        made = {k: v for k, v in value.items() if v is not None}
        for key, one in made.items():
            kind = PARTS[name][key]
            if not isinstance(one, kind) or (kind is int and isinstance(one, bool)):
                raise UsageError(f"{key}: {one!r} is not {_KINDS[kind]}")
            if key in CHOICES and one not in CHOICES[key]:
                raise UnknownNameError(f"value of {key}", str(one), CHOICES[key])
        if made.get("shards", 1) < 1:
            raise UsageError(f"shards: {made['shards']} is not at least 1")
        return made


def _format_options(part: Mapping[str, Any], which: str) -> tuple[Format, Any] | None:
    """The format that a part names, with its options checked; without a format they wait until it is known."""
    if "format" not in part:
        return None
    fmt = get_format(part["format"])
    return fmt, getattr(fmt, which).make(part.get("options", {}))


def _step(n: int, value: Any, folder: str) -> Step:
    """A step: `name`, or `name: options`, or for those of STEPS `name: text`."""
    place = f"steps[{n}]"
    with _naming(place):
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict) or len(value) != 1:
            raise UsageError("a step is the name of an operation, or one `name: options`")
        name, options = next(iter(value.items()))
    place = f"steps[{n}] ({name})"
    with _naming(place):
        op, text = STEPS.get(name, (str(name), ""))
        if text and isinstance(options, str):
            options = {text: options}
        if not isinstance(options, dict | None):
            raise UsageError(f"{options!r}: options are a mapping")
        found = transform_class(op)
        files = found.Options.file_names()
        options = {
            str(k): beside(folder, v) if str(k).replace("-", "_") in files and isinstance(v, str) else v
            for k, v in (options or {}).items()
        }
        for key, one in options.items():
            if isinstance(one, Mapping):  # pairs, as train: 0.8; with nothing after the colon as `cat:`
                options[key] = {str(a): "" if b is None else str(b) for a, b in one.items()}
        made = found(**{k.replace("-", "_"): v for k, v in options.items()})
    return Step(place, made, options)


def _parsed(data: bytes) -> Any:
    """What a YAML text says. Only true and false are booleans (no, on and the like are texts), numbers are decimal,
    a key that stands twice is an error."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] in ("null", "merge")]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            for (key, _), name in zip(node.value, keys, strict=False):
                if isinstance(name, str) and keys.count(name) > 1:
                    raise UsageError(f"line {key.start_mark.line + 1}: the key {name!r} stands twice")
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    for tag, pattern, first in (
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
        ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))
    try:
        return yaml.load(data, Loader)
    except yaml.YAMLError as e:
        raise UsageError(f"no YAML: {e}") from e
    except RecursionError as e:
        raise UsageError("nested too deeply") from e
