"""What goes along with a job, as one folder that Ray sends by its content: rayds where the cluster lacks this one, local
plug-ins, and the files that the command names.

A folder, never a wheel: Ray keeps wheels by their file names, so that a second build of one version is not sent, and
installs them with all their dependencies.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rayds.errors import UsageError
from rayds.jobs import _probe

KINDS = ("formats", "ops", "launchers")
FILES = "files"
MAX_BYTES = 200 << 20  # Ray keeps packages in the memory of the head
_SKIP = shutil.ignore_patterns("__pycache__", "*.pyc", "*.pyo", ".*", "*.egg-info")
# A model in two files: its weights are beside it, under the same name.
_BESIDE = {".xml": (".bin",), ".onnx": (".onnx.data", ".onnx_data"), ".param": (".bin",)}


class Package:
    """A folder for a job; root must be empty. It becomes the job's current folder and stands first on its sys.path."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.bytes = 0
        self._files: dict[Path, str] = {}

    def add_rayds(self) -> str:
        """This rayds, with its entry points; returns its version."""
        for place, folder in _probe.roots().items():
            self._tree(Path(folder), self.root / place)
        return self._info(metadata.distribution("rayds"))

    def add_plugin(self, dist: metadata.Distribution) -> None:
        """The modules of a plug-in's distribution, and its entry points."""
        for name in sorted(_modules(dist)):
            spec = find_spec(name)
            if spec is None:
                raise UsageError(
                    f"the plug-in {dist.name} declares the module {name!r}, which is not found here"
                )
            if spec.submodule_search_locations:
                self._tree(Path(next(iter(spec.submodule_search_locations))), self.root / name)
            elif spec.origin and spec.origin.endswith(".py"):
                self._file(Path(spec.origin), self.root / Path(spec.origin).name)
            else:
                raise UsageError(
                    f"the plug-in {dist.name}: {name!r} is no Python source; install it on every node, and --ship never"
                )
        self._info(dist)

    def add_file(self, path: str | os.PathLike[str]) -> str:
        """A file that the command names, with the weights beside a model; returns its path in the job."""
        source = Path(path).resolve()
        if source not in self._files:
            place = f"{FILES}/{len(self._files)}"  # apart, as names may be the same
            self._file(source, self.root / place / source.name)
            for ending in _BESIDE.get(source.suffix, ()):
                beside = source.with_suffix(ending)
                if beside.is_file():
                    self._file(beside, self.root / place / beside.name)
            self._files[source] = f"{place}/{source.name}"
        return self._files[source]

    def add_script(self, path: str | os.PathLike[str]) -> None:
        """A script at the root of the folder."""
        self._file(Path(path), self.root / Path(path).name)

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self.bytes

    def _info(self, dist: metadata.Distribution) -> str:
        """The part of a distribution's metadata by which its entry points are found."""
        info = self.root / f"{dist.name.replace('-', '_')}-{dist.version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        for name in ("METADATA", "entry_points.txt"):
            text = dist.read_text(name) or (dist.read_text("PKG-INFO") if name == "METADATA" else None)
            if text:
                (info / name).write_text(text)
        return dist.version

    def _tree(self, source: Path, target: Path) -> None:
        for file in source.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                self._count(file)
        shutil.copytree(source, target, ignore=_SKIP, dirs_exist_ok=True)

    def _file(self, source: Path, target: Path) -> None:
        self._count(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def _count(self, file: Path) -> None:
        self.bytes += file.stat().st_size
        if self.bytes > MAX_BYTES:
            raise UsageError(
                f"{file}: with it, {self.bytes >> 20} MiB would go along with the job, more than {MAX_BYTES >> 20}; "
                "put large files into a bucket or a folder that all nodes share, and name them there"
            )


def requirements() -> list[str]:
    """The packages that rayds needs, without its extras'."""
    found = [line.partition(";") for line in metadata.requires("rayds") or ()]
    return [re.split(r"[^\w.-]", need)[0] for need, _, marker in found if "extra" not in marker]


def rayds_digest() -> str:
    """A hash of the files of this rayds, to compare with the cluster's."""
    return _probe.digest(_probe.roots())


def local_plugins() -> list[metadata.Distribution]:
    """The distributions with plug-ins of rayds that a cluster cannot have from a package index: editable ones, ones
    installed from a folder or file, ones that are only on the path."""
    found: dict[str, metadata.Distribution] = {}
    for dist in metadata.distributions():
        if any(p.group in {f"rayds.{kind}" for kind in KINDS} for p in dist.entry_points):
            found.setdefault(dist.name, dist)
    found.pop("rayds", None)
    return [dist for _, dist in sorted(found.items()) if _is_local(dist)]


def _is_local(dist: metadata.Distribution) -> bool:
    origin = dist.read_text("direct_url.json")
    if origin is not None:
        return '"file:' in origin
    place = Path(str(dist.locate_file(""))).resolve()
    installed = {Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")}
    return place not in installed


def _modules(dist: metadata.Distribution) -> set[str]:
    """The top-level modules of a plug-in: those it lists, and those of its entry points."""
    listed = (dist.read_text("top_level.txt") or "").split()
    points = [p.module.partition(".")[0] for p in dist.entry_points if p.group.startswith("rayds.")]
    return {*listed, *points}


def env_file(path: str | os.PathLike[str]) -> dict[str, str]:
    """The variables of a file of KEY=VALUE lines; values are never shown. Raises UsageError that names the line."""
    found: dict[str, str] = {}
    for number, line in _lines(Path(path)):
        name, equals, value = line.removeprefix("export ").partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise UsageError(
                f"{path}, line {number}: no KEY=VALUE line"
            )  # without its text: it may be a secret
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--env-file {path}: {getattr(e, 'strerror', None) or e}") from e
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def runtime_env(package: Package, variables: Mapping[str, str]) -> dict[str, object]:
    """Ray's description of the job's environment."""
    # A log that is buffered shows no progress.
    env: dict[str, object] = {"env_vars": {"PYTHONUNBUFFERED": "1", **variables}}
    if not package.empty:
        env["working_dir"] = str(package.root)
    return env
