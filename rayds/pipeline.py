"""Pipelines: a file that says what is read, what is done to it, and what is written; in one pass over the data.

    input:  {path: coco, format: coco, options: {}}        or {project: PATH}
    steps:                                                  in this order
      - filter: '/item[annotation/label="cat"]'             or {expression | where, mode}
      - remap_labels: {label: ["cat:animal"]}
      - split: {task: detection, subset: ["train:.8", "val:.2"]}
    output: {path: out, format: voc, save_media: true, options: {}, overwrite: false, strict: false, resume: false}
    run:    {engine: auto, address: null, on_error: raise, shards: null, shard_by: id}

Paths are relative to the folder of the file. Everything is checked before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayds.dataset import Dataset
from rayds.errors import FormatError, OnError, UnknownNameError, UsageError
from rayds.op import Op, transform_class
from rayds.registry import get_format
from rayds.report import Report
from rayds.storage import Storage, is_url

KEYS = {
    "": ("input", "steps", "output", "run"),
    "input": ("path", "format", "options", "project"),
    "output": ("path", "format", "options", "save_media", "image_ext", "overwrite", "strict", "resume"),
    "run": ("engine", "address", "on_error", "shards", "shard_by"),
}


@dataclass
class Pipeline:
    """A checked pipeline. `load` reads one from a file; `of` makes one of a mapping; `run` does it."""

    input: dict[str, Any]
    steps: list[Op]
    output: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str) -> Pipeline:
        """The pipeline in a YAML file. Raises FormatError or UsageError that name the key, and the step by its number."""
        import yaml

        place = Storage(path)
        folder = place.parent
        try:
            told = yaml.safe_load(folder.read_text(place.name))
        except yaml.YAMLError as e:
            mark = getattr(e, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise FormatError(f"{place.url}{line}: no YAML: {getattr(e, 'problem', None) or e}") from e
        try:
            return cls.of(told, folder)
        except UsageError as e:
            raise UsageError(f"{place.url}: {e}") from e
        except FormatError as e:
            raise FormatError(f"{place.url}: {e}") from e

    @classmethod
    def of(cls, told: Any, folder: Storage | None = None) -> Pipeline:
        """A pipeline of a mapping; folder: what its paths are relative to (default: the current one)."""
        parts = _mapping(told, "")
        source = _mapping(parts.get("input"), "input")
        if ("path" in source) == ("project" in source):
            raise UsageError("input: give a path, or a project")
        if "project" in source and set(source) - {"project"}:
            raise UsageError("input: a project has no format and no options here")
        output = _mapping(parts.get("output"), "output")
        for key in ("path", "format"):
            if key not in output:
                raise UsageError(f"output: {key} is missing")
        settings = _mapping(parts.get("run"), "run")
        where = folder or Storage(".")
        for part in (source, output):
            for key in ("path", "project"):
                if key in part:
                    part[key] = _placed(str(part[key]), where)
        made = cls(source, _steps(parts.get("steps")), output, settings)
        made.check()
        return made

    def check(self) -> None:
        """Raise what can be told of formats and options without the data."""
        if self.input.get("format"):
            _at(
                "input.options",
                lambda: get_format(self.input["format"]).ReadOptions.make(self.input.get("options") or {}),
            )
        fmt = _at("output.format", lambda: get_format(self.output["format"]))
        options = _at("output.options", lambda: fmt.WriteOptions.make(self._writer()))
        _at("output.format", lambda: fmt.capabilities(options))
        _at("run.on_error", lambda: OnError(self.settings.get("on_error") or "raise"))
        if self.settings.get("shard_by") and not self.settings.get("shards"):
            raise UsageError("run: shard_by says how shards divides the items; give shards, too")

    def _writer(self) -> dict[str, Any]:
        own = {k: self.output[k] for k in ("save_media", "image_ext") if self.output.get(k) is not None}
        return {**(self.output.get("options") or {}), **own}

    def dataset(self, engine: Any = None) -> Dataset:
        """What is read, after all steps."""
        run = self.settings
        chosen = engine if engine is not None else run.get("engine")
        if engine is None and run.get("address"):
            from rayds.engine import make_engine

            chosen = make_engine("ray", address=run["address"])
        on_error = run.get("on_error") or "raise"
        if "project" in self.input:
            from rayds.project import Project

            made = Project.load(self.input["project"]).dataset(engine=chosen, on_error=on_error)
        else:
            made = Dataset.import_from(
                self.input["path"],
                self.input.get("format"),
                engine=chosen,
                on_error=on_error,
                **(self.input.get("options") or {}),
            )
        if run.get("shards"):
            made = made.repartition(int(run["shards"]), run.get("shard_by") or "id")
        for number, step in enumerate(self.steps, 1):
            made = _at(f"steps, {number}. {step.name}", lambda made=made, step=step: made.transform(step))  # type: ignore[misc]
        return made

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


def _mapping(value: Any, name: str) -> dict[str, Any]:
    known = KEYS[name]
    if value is None and name == "run":
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{name or 'a pipeline'}: no mapping of {', '.join(known)}")
    for key in value:
        if key not in known:
            raise UnknownNameError(f"key of {name or 'a pipeline'}", str(key), known)
    return dict(value)


def _placed(path: str, folder: Storage) -> str:
    return path if is_url(path) or path.startswith(("/", "~")) else folder.path(path)


def _steps(value: Any) -> list[Op]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UsageError("steps: no list")
    return [_step(number, step) for number, step in enumerate(value, 1)]


def _step(number: int, step: Any) -> Op:
    if isinstance(step, str):
        step = {step: None}
    if not isinstance(step, Mapping) or len(step) != 1:
        raise UsageError(f"steps, {number}.: a step is one name with its options")
    ((name, options),) = step.items()
    if name == "filter" and isinstance(options, str):
        options = {"expression": options}
    if not isinstance(options, (Mapping, type(None))):
        raise UsageError(f"steps, {number}. {name}: the options are no mapping of names to values")
    made: Op = _at(f"steps, {number}. {name}", lambda: transform_class(str(name))(**dict(options or {})))
    return made


def _at(where: str, make: Callable[[], Any]) -> Any:
    """What `make` returns; its errors with the place in front."""
    try:
        return make()
    except UsageError as e:
        raise UsageError(f"{where}: {e}") from e
    except FormatError as e:
        raise FormatError(f"{where}: {e}") from e
    except ValueError as e:
        raise UsageError(f"{where}: {e}") from e
