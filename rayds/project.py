"""Projects: named sources that make one dataset, written down in a small file of a folder, here or on S3.

<project>/.rayds/project.yaml     version, name, sources (name: path, format, options), models
<project>/.rayds/plugins/*.py     formats, operations and launchers of the project; loaded only when that is allowed
<project>/<source>/               data that was copied in

The file is replaced as a whole, so that a reader sees the project before or after a change.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayds.dataset import Dataset
from rayds.errors import FormatError, UnknownNameError, UsageError
from rayds.registry import detect_format, get_format
from rayds.storage import Storage, is_url

FILE = ".rayds/project.yaml"
PLUGINS = ".rayds/plugins"
VERSION = 1
_NAME = re.compile(r"[^\W][\w.-]*")


@dataclass
class ProjectSource:
    """A source: where it is (relative to the project, absolute, or a URL), its format, the options of its reader.

    copied: whether its files were copied into the project, in a folder of its name.
    """

    path: str
    format: str
    options: dict[str, Any] = field(default_factory=dict)
    copied: bool = False
    more: dict[str, Any] = field(default_factory=dict)  # keys that this version does not know, kept

    def to_yaml(self) -> dict[str, Any]:
        made: dict[str, Any] = {"path": self.path, "format": self.format}
        if self.options:
            made["options"] = self.options
        if self.copied:
            made["copied"] = True
        return {**made, **self.more}


class Project:
    """A project folder. `create` makes one, `load` reads one, `find` looks for the one around a folder.

    Every change is written at once; one that fails leaves the project as it was. What another process changed since the project
    was loaded is not overwritten: `save` raises.
    """

    def __init__(
        self, folder: Storage, name: str, sources: Mapping[str, ProjectSource] | None = None
    ) -> None:
        self.folder, self.name = folder, name
        self.sources = dict(sources or {})
        self.models: dict[str, Any] = {}
        self.more: dict[str, Any] = {}
        self._known_text: bytes | None = (
            None  # of the file, as it was read or written last; None: there is none
        )
        self._replaces = False  # whatever is there

    def __repr__(self) -> str:
        return f"Project({self.name!r} in {self.folder.url!r}, {len(self.sources)} sources)"

    # making

    @classmethod
    def create(cls, path: str, name: str | None = None, overwrite: bool = False) -> Project:
        """A new, empty project in a folder, which may have other files; overwrite: forget the project that is there.

        Raises UsageError when there is one.
        """
        made = cls.new(path, name, overwrite)
        made.save()
        return made

    @classmethod
    def new(cls, path: str, name: str | None = None, overwrite: bool = False) -> Project:
        """Like create, but nothing is written before the first change, as `add`, is done."""
        folder = Storage(path)
        if folder.exists(FILE) and not overwrite:
            raise UsageError(f"{folder.url}: there is a project already; --overwrite begins a new one")
        made = cls(folder, name or folder.name or "project")
        made._replaces = overwrite
        return made

    @classmethod
    def load(cls, path: str) -> Project:
        """The project in a folder. Raises FormatError for none, or for a file that is not right, with the place."""
        folder = Storage(path)
        if not folder.exists(FILE):
            raise FormatError(
                f"{folder.url}: no project here ({FILE} is missing). 'rayds create -o {path}' makes one"
            )
        text = folder.read_bytes(FILE)
        told = _parsed(folder, text)
        version = told.pop("version", None)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise _wrong(folder, "version", f"is {version!r}, not a number from 1 on")
        if version > VERSION:
            raise _wrong(
                folder, "version", f"is {version}; this rayds reads up to {VERSION}: use a newer one"
            )
        made = cls(folder, str(told.pop("name", "") or folder.name))
        sources = told.pop("sources", None) or {}
        if not isinstance(sources, dict):
            raise _wrong(folder, "sources", "is no mapping of names to sources")
        for key, value in sources.items():
            made.sources[str(key)] = _source(folder, str(key), value)
        models = told.pop("models", None) or {}
        if not isinstance(models, dict):
            raise _wrong(folder, "models", "is no mapping of names to models")
        made.models, made.more, made._known_text = models, told, text
        return made

    @classmethod
    def find(cls, path: str = ".") -> Project | None:
        """The project of a folder, or of the nearest folder above it that has one."""
        folder = Storage(path)
        while True:
            if folder.exists(FILE):
                return cls.load(folder.url)
            parent = folder.parent
            if parent.url == folder.url or not parent.url.strip("/"):
                return None
            folder = parent

    def save(self) -> None:
        """Write the project's file, as a whole. Raises UsageError when it is not as this object knows it."""
        import yaml

        if not self._replaces:
            there = self.folder.read_bytes(FILE) if self.folder.exists(FILE) else None
            if there != self._known_text:
                raise UsageError(
                    f"{self.folder.path(FILE)}: another command changed the project meanwhile; run this one again"
                )

        told = {
            "version": VERSION,
            "name": self.name,
            "sources": {name: source.to_yaml() for name, source in self.sources.items()},
            "models": self.models,
            **self.more,
        }
        text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True).encode()
        self.folder.makedirs(posixpath.dirname(FILE))
        self.folder.write_bytes(FILE, text)
        self._known_text, self._replaces = text, False

    # sources

    def place(self, name: str) -> str:
        """The path or URL of a source's data."""
        return _resolved(self.folder, self._known(name).path)

    def add(
        self,
        path: str,
        format: str | None = None,
        name: str | None = None,
        *,
        copy: bool = False,
        check: bool = True,
        **options: Any,
    ) -> str:
        """Add the dataset at a path (as seen from the current folder) or URL; returns the name of the source.

        copy: copy its files into the project. check: read it, and with the other sources together, first; what does not read
        is refused with the reason. options: of the format's reader.
        """
        chosen = name or self._free_name(path)
        if not _NAME.fullmatch(chosen):
            raise UsageError(f"the source name {chosen!r} may have letters, digits, - _ and . only")
        if chosen in self.sources:
            raise UsageError(f"the project has a source {chosen!r} already; choose another name with -n")
        fmt = get_format(format) if format else detect_format(path)
        given = Storage(path)
        if given.url == self.folder.url:
            raise UsageError(f"{path}: a project can't be a source of itself")
        made = dict(vars(fmt.ReadOptions.make(options)))
        defaults = vars(fmt.ReadOptions())
        kept = {k: list(v) if isinstance(v, tuple) else v for k, v in made.items() if v != defaults[k]}
        if check:
            self._check(Dataset.import_from(path, fmt.name, **options), chosen)
        place = self._copied(given, chosen) if copy else self._relative(given)
        self.sources[chosen] = ProjectSource(place, fmt.name, kept, copied=copy)
        try:
            self.save()
        except BaseException:
            del self.sources[chosen]
            if copy:
                self.folder.remove(chosen)
            raise
        return chosen

    def _check(self, dataset: Dataset, name: str) -> None:
        """Read the first items of a dataset, and see whether its categories go with those that are there."""
        next(iter(dataset.blocks()), None)
        if self.sources:
            try:
                self.dataset(engine="local").merge(dataset, policy="exact")
            except UsageError as e:
                raise UsageError(f"the source {name!r} does not go with the others: {e}") from e

    def remove(self, name: str, *, keep_data: bool = False, force: bool = False) -> None:
        """Forget a source; data that was copied into the project is removed, unless keep_data is given.

        force: no error for a source that is not there.
        """
        if force and name not in self.sources:
            return
        source = self._known(name)
        before = dict(self.sources)
        del self.sources[name]
        try:
            self.save()
        except BaseException:
            self.sources = before
            raise
        if source.copied and not keep_data:
            self.folder.remove(name)

    def _known(self, name: str) -> ProjectSource:
        if name not in self.sources:
            raise UnknownNameError("source", name, self.sources)
        return self.sources[name]

    def _free_name(self, path: str) -> str:
        base = re.sub(r"[^\w.-]+", "_", Storage(path).name.partition(".")[0]).strip("_.-") or "source"
        taken, n = base, 0
        while taken in self.sources or self.folder.exists(taken):
            n += 1
            taken = f"{base}-{n}"
        return taken

    def _relative(self, given: Storage) -> str:
        """The path of a source as it is written down: relative for what lies in the project."""
        inside = self.folder.url.rstrip("/") + "/"
        return given.url[len(inside) :] if given.url.startswith(inside) else given.url

    def _copied(self, given: Storage, name: str) -> str:
        """Copy a dataset into the project under a name; it is there when it is complete."""
        if self.folder.exists(name):
            raise UsageError(f"{self.folder.path(name)} is there already; choose another name with -n")
        staging = self.folder.sub(f".rayds/tmp-{name}")
        staging.remove()
        try:
            if given.is_dir():
                for file in sorted(given.find()):
                    staging.copy_in(given.path(file), file)
                place = name
            else:
                staging.copy_in(given.url, given.name)
                place = f"{name}/{given.name}"
            self.folder.sub(name).publish(staging)
        except BaseException:
            staging.remove()
            raise
        return place

    # the dataset

    def dataset(self, *, engine: Any = None, on_error: Any = "raise") -> Dataset:
        """All sources as one dataset, by the exact merge. Raises UsageError for a project without sources."""
        if not self.sources:
            raise UsageError(
                f"the project {self.name!r} has no sources; add one: rayds add -p {self.folder.url} -f FORMAT PATH"
            )
        parts = []
        for name, source in self.sources.items():
            try:
                parts.append(
                    Dataset.import_from(
                        self.place(name), source.format, engine=engine, on_error=on_error, **source.options
                    )
                )
            except FileNotFoundError as e:
                raise FormatError(
                    f"the source {name!r} of the project {self.name!r}: {self.place(name)}: no such file or folder"
                ) from e
        return parts[0].merge(*parts[1:], policy="exact") if len(parts) > 1 else parts[0]


def _resolved(folder: Storage, path: str) -> str:
    return path if is_url(path) or path.startswith("/") else folder.path(path)


def _parsed(folder: Storage, text: bytes) -> dict[str, Any]:
    import yaml

    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise FormatError(f"{folder.path(FILE)}{line}: no YAML: {getattr(e, 'problem', None) or e}") from e
    if not isinstance(told, dict):
        raise FormatError(f"{folder.path(FILE)}: no mapping of keys to values")
    return told


def _source(folder: Storage, name: str, value: Any) -> ProjectSource:
    if not isinstance(value, dict):
        raise _wrong(folder, f"sources.{name}", "is no mapping")
    told = dict(value)
    for key in ("path", "format"):
        if not isinstance(told.get(key), str):
            raise _wrong(folder, f"sources.{name}.{key}", "is missing, or no text")
    options = told.pop("options", None) or {}
    if not isinstance(options, dict):
        raise _wrong(folder, f"sources.{name}.options", "is no mapping")
    copied = told.pop("copied", False)
    if not isinstance(copied, bool):
        raise _wrong(folder, f"sources.{name}.copied", "is neither true nor false")
    return ProjectSource(told.pop("path"), told.pop("format"), options, copied, told)


def _wrong(folder: Storage, key: str, what: str) -> FormatError:
    """An error that names the key, and its line or that of what should have it."""
    import yaml

    node: Any = yaml.compose(folder.read_text(FILE))
    line = None
    for part in key.split("."):
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((k, v) for k, v in node.value if k.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return FormatError(f"{folder.path(FILE)}{f', line {line}' if line else ''}: {key} {what}")
