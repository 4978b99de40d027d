"""Entry points -> formats, ops, launchers. Nothing is imported before it is used; a broken plug-in warns."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rayds.errors import FormatError, UnknownNameError
from rayds.format import Confidence, Format
from rayds.listing import Listing

FORMAT_ALIASES = {"coco_roboflow": "roboflow_coco", "yolov8": "yolo_ultralytics", "yolo_strict": "yolo"}


@cache
def _points(kind: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=f"rayds.{kind}"), key=lambda p: not p.value.startswith("rayds.")):
        found.setdefault(point.name, point)  # the built-in one wins over a namesake
    return found


_registered: dict[tuple[str, str], Any] = {}


def register(kind: str, name: str, found: Any) -> None:
    """Make a class known under a name in this process, before an installed one of that name."""
    _registered[kind, name] = found
    load.cache_clear()


def installed(kind: str) -> list[str]:
    """The names of the plug-ins of installed packages."""
    return sorted(_points(kind))


def names(kind: str) -> list[str]:
    """The names of all plug-ins of a kind: "formats", "ops" or "launchers"."""
    return sorted({*_points(kind), *(n for k, n in _registered if k == kind)})


@cache
def load(kind: str, name: str) -> Any:
    """The class of a plug-in; raises UnknownNameError with the nearest names."""
    points = _points(kind)
    if (kind, name) in _registered:
        return _registered[kind, name]
    if kind == "formats":
        name = FORMAT_ALIASES.get(name, name)
    if name not in points:
        raise UnknownNameError(kind.rstrip("s"), name, names(kind))
    try:
        return points[name].load()
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] == points[name].module.partition(".")[0]:
            raise  # a mistake in the plug-in itself
        raise FormatError(
            f"the {kind.rstrip('s')} {name!r} needs a package that is not installed: {e}"
        ) from e


def get_format(name: str) -> Format:
    """The format of a name."""
    made: Format = load("formats", name)()
    return made


def all_formats() -> Iterator[Format]:
    """Every format that loads, by name; one that does not load warns."""
    for name in names("formats"):
        try:
            yield get_format(name)
        except Exception as e:
            warnings.warn(f"the format plug-in {name!r} does not load: {e}", stacklevel=2)


def detect(path: str) -> list[tuple[Format, Confidence]]:
    """Every format with its confidence for a path, best first (score 0: rejected, with the reason)."""
    files = Listing(path)
    found = [(f, f.detect(files)) for f in all_formats() if f.reads]
    return sorted(found, key=lambda fc: (-fc[1].score, fc[0].name))


@dataclass(frozen=True)
class Found:
    """What the formats say of one path. best: those with the highest confidence; rejected: all the others."""

    path: str
    best: list[tuple[Format, Confidence]]
    rejected: list[tuple[Format, Confidence]]

    @classmethod
    def at(cls, path: str) -> Found:
        """Ask every format about a path."""
        found = detect(path)
        top = max((c.score for _, c in found), default=0)
        best = [(f, c) for f, c in found if c.score == top > 0]
        return cls(path, best, found[len(best) :])

    def by_family(self) -> list[tuple[Format, Confidence]]:
        """The rejected ones, one of each family: task variants say much the same."""
        first: dict[str, tuple[Format, Confidence]] = {}
        for fmt, confidence in self.rejected:
            first.setdefault(fmt.family, (fmt, confidence))
        return list(first.values())

    def reason_code(self, fmt: Format, confidence: Confidence) -> str:
        """Why a format was rejected, for programs."""
        if confidence.score:
            return "insufficient_confidence"
        return "detection_unsupported" if type(fmt).detect is Format.detect else "unmet_requirements"


def search(path: str, depth: int = 2) -> tuple[Found, list[Found]]:
    """What a path is, and, where no format fits it, the datasets in the folders below, down to `depth` levels.

    The search ends at the first level where something fits.
    """
    here = Found.at(path)
    if here.best:
        return here, []
    files = Listing(path)
    top = path if files.root.local else files.root.url
    level = [""] if files.file is None else []
    for _ in range(depth):
        level = [
            posixpath.join(up, name) for up in level for name in files.dirs(up) if not name.startswith(".")
        ]
        below = [found for name in level if (found := Found.at(posixpath.join(top, name))).best]
        if below:
            return here, below
    return here, []


def detect_format(path: str) -> Format:
    """The one format that fits a path best; raises FormatError naming the candidates when that is not clear."""
    here, below = search(path)
    if len(here.best) == 1:
        return here.best[0][0]
    if here.best:
        options = ", ".join(f.name for f, _ in here.best)
        raise FormatError(f"{path}: fits several formats: {options}. Name one with -if")
    if below:
        places = ", ".join(f"{b.path} ({' or '.join(f.name for f, _ in b.best)})" for b in below[:5])
        raise FormatError(f"{path}: no known format fits. There are datasets below, name one: {places}")
    near = "; ".join(f"{f.name}: {c.reason}" for f, c in here.by_family()[:6])
    raise FormatError(f"{path}: no known format fits. Name it with -if. ({near}; ...)")
