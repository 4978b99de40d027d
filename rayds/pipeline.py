"""Pipelines: a file that says what is read, what is done to it, and what is written; in one pass over the data.

    input:  {path: coco, format: coco, options: {}}        or {project: PATH}
    steps:                                                  in this order
      - filter: '/item[annotation/label="cat"]'             or {expression | where, mode}
      - remap_labels: {label: {cat: animal}}
      - split: {task: detection, subset: {train: .8, val: .2}}
    output: {path: out, format: voc, save_media: true, image_ext: .png, options: {}, overwrite: false, strict: false, resume: false}
    run:    {engine: auto, address: null, on_error: raise, shards: null, shard_by: id}

Paths are relative to the folder of the file. Everything is checked before anything is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rayds.dataset import Dataset
from rayds.errors import FormatError, OnError, UnknownNameError, UsageError
from rayds.op import Op, transform_class
from rayds.registry import get_format
from rayds.report import Report
from rayds.storage import is_url, read_url

# The keys of each part, with what their values are.
PARTS: dict[str, dict[str, type]] = {
    "input": {"path": str, "format": str, "options": dict, "project": str},
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
    """An operation of a pipeline. place: how messages call it; options: as written, paths of files made absolute."""

    place: str
    op: Op
    options: Mapping[str, Any]

    def files(self) -> list[str]:
        """The files that its options name."""
        names = self.op.Options.file_names()
        return [str(v) for k, v in self.options.items() if k.replace("-", "_") in names]


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline. `load` reads one from a file; `of` makes one of a mapping; `run` does it.

    input, output, settings: the values by the keys of PARTS (settings: of run); paths are absolute or URLs.
    """

    input: dict[str, Any]
    steps: tuple[Step, ...]
    output: dict[str, Any]
    settings: dict[str, Any]
    path: str = ""

    @classmethod
    def load(cls, path: str) -> Pipeline:
        """The pipeline in a YAML file. Raises FormatError or UsageError that name the key, and the step by its number."""
        told = _parsed(read_url(path), path)
        folder = path.rpartition("/")[0] if is_url(path) else os.path.dirname(os.path.abspath(path))
        with _at(path):
            return cls.of(told, folder, path)

    @classmethod
    def of(cls, told: Any, folder: str = ".", path: str = "") -> Pipeline:
        """A pipeline of a mapping; folder: what its paths are relative to (default: the current one)."""
        _mapping(told, "a pipeline", (*PARTS, "steps"))
        parts = {name: _part(name, told.get(name)) for name in PARTS}
        source, output = parts["input"], parts["output"]
        if ("path" in source) == ("project" in source):
            raise UsageError("input: give a path, or a project")
        if "project" in source and set(source) - {"project"}:
            raise UsageError("input: a project has no format and no options here")
        for key in ("path", "format"):
            if key not in output:
                raise UsageError(f"output: {key} is missing")
        for part in (source, output):
            for key in ("path", "project"):
                if key in part:
                    part[key] = beside(folder, part[key])
        steps = told.get("steps")
        if not isinstance(steps, list | None):
            raise UsageError("steps: no list")
        found = tuple(_step(n, step, folder) for n, step in enumerate(steps or (), 1))
        made = cls(source, found, output, parts["run"], path)
        made._check()
        return made

    def _check(self) -> None:
        """Raise what can be told of formats and options without the data."""
        if "format" in self.input:
            with _at("input.format"):
                fmt = get_format(self.input["format"])
            with _at("input.options"):
                fmt.ReadOptions.make(self.input.get("options", {}))
        with _at("output.format"):
            fmt = get_format(self.output["format"])
        with _at("output.options"):
            options = fmt.WriteOptions.make(self._writer())
        with _at("output.format"):
            fmt.capabilities(options)  # ends it here when the format can't be written
        if "shard_by" in self.settings and "shards" not in self.settings:
            raise UsageError("run: shard_by says how shards divides the items; give shards, too")

    def _writer(self) -> dict[str, Any]:
        own = {k: self.output[k] for k in ("save_media", "image_ext") if k in self.output}
        return {**self.output.get("options", {}), **own}

    def apply(self, dataset: Dataset) -> Dataset:
        """The dataset after all steps: one pass over the data, but for the operations that must look at it first."""
        for step in self.steps:
            with _at(self.path), _at(step.place):
                dataset = dataset.transform(step.op)
        return dataset

    def dataset(self, engine: Any = None) -> Dataset:
        """What is read, after all steps."""
        run = self.settings
        chosen = engine if engine is not None else run.get("engine")
        if engine is None and "address" in run:
            from rayds.engine import make_engine

            chosen = make_engine("ray", address=run["address"])
        on_error = run.get("on_error", "raise")
        if "project" in self.input:
            from rayds.project import Project

            made = Project.load(self.input["project"]).dataset(engine=chosen, on_error=on_error)
        else:
            options = self.input.get("options", {})
            path, format = self.input["path"], self.input.get("format")
            made = Dataset.import_from(path, format, engine=chosen, on_error=on_error, **options)
        made = self.apply(made)
        return made.repartition(run["shards"], run.get("shard_by", "id")) if "shards" in run else made

    def run(
        self, engine: Any = None, progress: Callable[[int], None] | None = None, **changes: Any
    ) -> Report:
        """Do it. changes: overwrite, strict, resume instead of those of the file."""
        out = {**self.output, **{k: v for k, v in changes.items() if v is not None}}
        return self.dataset(engine).export(
            out["path"],
            out["format"],
            overwrite=bool(out.get("overwrite")),
            strict=bool(out.get("strict")),
            resume=bool(out.get("resume")),
            progress=progress,
            **self._writer(),
        )


def beside(folder: str, path: str) -> str:
    """A path of a pipeline: relative ones are relative to its folder."""
    outer, chain, inner = path.rpartition("::")  # zip://member::archive
    if is_url(inner) or inner.startswith("~"):
        return path
    if is_url(folder):
        return f"{outer}{chain}{inner if os.path.isabs(inner) else f'{folder}/{inner}'}"
    return f"{outer}{chain}{os.path.normpath(os.path.join(os.path.abspath(folder), inner))}"


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Errors of usage and of formats begin with a place."""
    before = f"{place}: " if place else ""
    try:
        yield
    except FormatError as e:
        raise FormatError(f"{before}{e}") from e
    except UsageError as e:
        raise UsageError(f"{before}{e}") from e


def _mapping(value: Any, name: str, known: tuple[str, ...]) -> None:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}: no mapping of {', '.join(known)}")
    for key in value:
        if key not in known:
            raise UnknownNameError(f"key of {name}", str(key), known)


def _part(name: str, value: Any) -> dict[str, Any]:
    """One of the parts input, output and run, checked."""
    if value is None and name == "run":
        return {}
    _mapping(value, name, tuple(PARTS[name]))
    made = {k: v for k, v in value.items() if v is not None}
    for key, one in made.items():
        kind = PARTS[name][key]
        if not isinstance(one, kind) or (kind is int and isinstance(one, bool)):
            raise UsageError(f"{name}.{key}: {one!r} is not {_KINDS[kind]}")
        if key in CHOICES and one not in CHOICES[key]:
            with _at(f"{name}.{key}"):
                raise UnknownNameError("value", str(one), CHOICES[key])
    if made.get("shards", 1) < 1:
        raise UsageError(f"{name}.shards: {made['shards']} is not at least 1")
    return made


def _step(n: int, value: Any, folder: str) -> Step:
    """A step: `name`, or `name: options`, or for those of STEPS `name: text`."""
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise UsageError(f"steps, {n}.: a step is one name with its options")
    ((name, options),) = value.items()
    place = f"steps, {n}. {name}"
    with _at(place):
        op, text = STEPS.get(name, (str(name), ""))
        if text and isinstance(options, str):
            options = {text: options}
        if not isinstance(options, Mapping | None):
            raise UsageError("the options are no mapping of names to values")
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


def _parsed(data: bytes, path: str) -> Any:
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
                    raise UsageError(f"{path}, line {key.start_mark.line + 1}: the key {name!r} stands twice")
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
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise FormatError(f"{path}{line}: no YAML: {getattr(e, 'problem', None) or e}") from e
    except RecursionError as e:
        raise FormatError(f"{path}: no YAML: nested too deeply") from e
