"""Where the files of a YOLO dataset are: the paths in its lists and settings were written on other machines."""

from __future__ import annotations

import posixpath
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rayds.errors import DataError
from rayds.format import Shard
from rayds.formats.yolo._scan import Scan
from rayds.storage import Storage

SHARD_ITEMS = 2000

_SET_FOLDER = re.compile(r"^obj_.+_data$")


@dataclass(frozen=True)
class Part:
    """What one shard reads: a byte range of a list file (`start` to `end`), or images by name.

    names, labels, ids: image paths and label files relative to the dataset, and item ids.
    again: (number of the entry, line of the file) of entries of the list that stand there a second time.
    base: folder that item ids are relative to. token: marks one reading of a dataset.
    """

    subset: str
    base: str
    token: str
    list_file: str | None = None
    start: int = 0
    end: int = 0
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    again: tuple[tuple[int, int], ...] = ()


def parts_of(path: str) -> list[str]:
    """The usable components of a path from a file: no drive, no root, nothing up to the last "..", no "."."""
    parts = [p for p in path.replace("\\", "/").split("/") if p not in ("", ".")]
    if parts and re.fullmatch(r"[A-Za-z]:", parts[0]):
        parts = parts[1:]
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "..":
            return parts[i + 1 :]
    return parts


class Resolver:
    """Finds what paths from lists and settings mean inside a dataset folder, whatever prefix they have.

    The longest tail of a path that exists in the dataset is taken, so that `data/`, absolute and `../` prefixes
    are dropped and nothing outside the dataset is ever named.
    """

    def __init__(self, root: Storage) -> None:
        self.root = root
        self._folders: dict[str, str] = {}

    def file(self, path: str) -> str | None:
        """The name of a file in the dataset, or None."""
        return self._tail(path, self.root.is_file)

    def either(self, path: str) -> tuple[str, bool] | None:
        """(name, whether it is a folder) of a path, or None; the empty name is the dataset itself."""
        name = self._tail(path, self.root.exists)
        if name is None:
            return ("", True) if not parts_of(path) else None
        return name, not self.root.is_file(name)

    def _tail(self, path: str, there: Callable[[str], bool]) -> str | None:
        parts = parts_of(path)
        for i in range(len(parts)):
            name = "/".join(parts[i:])
            if there(name):
                return name
        return None

    def folder(self, path: str) -> str:
        """The folder in the dataset that a folder of an image list means; a guess when there is no such folder."""
        if path not in self._folders:
            self._folders[path] = self._folder(path)
        return self._folders[path]

    def _folder(self, path: str) -> str:
        found = self._tail(path, self.root.is_dir)
        if found is not None:
            return found
        parts = parts_of(path)
        for i, part in enumerate(parts):
            if _SET_FOLDER.match(part) or part == "images":
                return "/".join(parts[i:])
        if parts[:1] == ["data"]:
            parts = parts[1:]
        rooted = path.startswith(("/", "\\")) or ".." in path or re.match(r"[A-Za-z]:", path)
        return "" if rooted else "/".join(parts)


def set_base(folder: str) -> str | None:
    """The part of a folder that names a darknet set (obj_<subset>_data), or None."""
    parts = folder.split("/")
    for i, part in enumerate(parts):
        if _SET_FOLDER.match(part):
            return "/".join(parts[: i + 1])
    return None


def below(path: str, base: str) -> str:
    """A path relative to a folder that it is in, else unchanged."""
    return path[len(base) + 1 :] if base and path.startswith(base + "/") else path


def read_list(data: bytes, file: str) -> list[str]:
    """The entries of a list of images; raises DataError when it is not UTF-8 text."""
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as e:
        raise DataError(
            "not UTF-8 text", file=file, place=f"byte {e.start}", remedy="Save the file as UTF-8"
        ) from e
    return [line.strip().strip('"') for line in text.split("\n") if line.strip()]


def split_entry(entry: str) -> tuple[str, str]:
    """(folder, file name) of a list entry, back-slashes as slashes."""
    folder, _, name = entry.replace("\\", "/").rpartition("/")
    return folder, name


def common_folder(folders: Iterable[str]) -> str:
    """The folder that all of the folders are in or are."""
    found = set(folders)
    return posixpath.commonpath(found) if found and "" not in found else ""


def list_shards(root: Storage, subset: str, file: str, resolver: Resolver, token: str) -> list[Shard]:
    """Shards of about SHARD_ITEMS entries of a list file, by byte range."""
    data = root.read_bytes(file)
    entries = read_list(data, root.path(file))
    inside = [resolver.folder(f) for f in sorted({split_entry(e)[0] for e in entries})]
    base = common_folder(i for i in inside if set_base(i) is None)
    breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + 1
    cuts = [0, *breaks[SHARD_ITEMS - 1 :: SHARD_ITEMS].tolist()]
    if cuts[-1] < len(data):
        cuts.append(len(data))
    again = _again(data, cuts) if len(set(entries)) < len(entries) else {}
    return [
        Shard(
            f"{file}-{i}",
            Part(subset, base, token, file, a, b, again=tuple(again.get(i, ()))),
            (b - a) * 10,
            items=sum(1 for line in data[a:b].split(b"\n") if line.strip()),
        )
        for i, (a, b) in enumerate(pairwise(cuts))
    ]


def _again(data: bytes, cuts: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """The entries of each shard that the list has before: (number in the shard, line of the file)."""
    found: dict[int, list[tuple[int, int]]] = {}
    seen: set[bytes] = set()
    number = 0
    for shard, (a, b) in enumerate(pairwise(cuts)):
        entry = 0
        for line in data[a:b].removesuffix(b"\n").split(b"\n"):
            number += 1
            text = line.removeprefix(b"\xef\xbb\xbf").strip().strip(b'"')
            if not line.strip():
                continue
            if text in seen:
                found.setdefault(shard, []).append((entry, number))
            seen.add(text)
            entry += 1
    return found


def name_shards(subset: str, base: str, found: Scan, token: str) -> list[Shard]:
    """Shards of about SHARD_ITEMS images by name."""
    made = []
    for i in range(0, len(found.images), SHARD_ITEMS):
        few = slice(i, i + SHARD_ITEMS)
        labels, ids = tuple(found.labels[few]), _ids(found.images[few], base, found.twins)
        part = Part(subset, base, token, names=tuple(found.images[few]), labels=labels, ids=ids)
        made.append(Shard(f"{subset}-{i // SHARD_ITEMS}", part, 400 * len(labels), items=len(labels)))
    return made


def _ids(names: Sequence[str], base: str, twins: frozenset[str]) -> tuple[str, ...]:
    """The ids of images; one that shares its name with another but for the extension keeps the extension."""
    return tuple(below(n, base) if n in twins else posixpath.splitext(below(n, base))[0] for n in names)


def new_token() -> str:
    """A word that marks one reading of a dataset."""
    return uuid.uuid4().hex
