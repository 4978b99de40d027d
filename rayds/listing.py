"""What is under a dataset path: listed folder by folder, each once, whatever the storage.

A format's detection and its plan look at names far more often than at content; on object stores each look
is a request, so that every folder is asked for once and only when a pattern can match in it; where a folder has many
sub-folders, all below it is one listing. A path of an archive is the folder in it.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
from collections.abc import Iterator

from rayds.connect import connect
from rayds.remote import tree
from rayds.storage import PARTIAL, Storage, check_published
from rayds.urls import archive_kind, archive_url, split_archive

FEW = 4  # sub-folders of a remote folder that are listed one by one; for the rest all below it is listed at once


def _archive_of(storage: Storage) -> Storage:
    """The top folder of an archive for the path of one; other paths as they are."""
    kind = archive_kind(storage.url)
    return Storage(archive_url(kind, storage.url)) if kind and storage.is_file("") else storage


class Listing:
    """The files under a dataset path, listed folder by folder, each once, when asked.

    root: the Storage of the folder; file: the name of one file in it when the user gave a file, else None.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        storage = _archive_of(Storage(path))
        self.file: str | None = None
        self._entries: dict[str, tuple[list[str], list[str]]] = {}
        self._whole: set[str] = set()
        if storage.local:
            if not os.path.exists(storage.url):
                raise FileNotFoundError(f"{storage.url}: no such file or folder")
            self.root, is_dir = storage, storage.is_dir()
        else:
            self.root, is_dir = self._remote_root(storage)
        if not is_dir:
            self.root, self.file = storage.parent, storage.name
            self._entries = {}

    def _remote_root(self, storage: Storage) -> tuple[Storage, bool]:
        """(the storage, whether it is a folder): by listing it, which is needed anyway. An archive's one folder of its name."""
        inside = split_archive(storage.url)
        if inside:
            connect(storage.url, fresh=True)
        found = storage.entries()
        if inside:
            own = posixpath.basename(inside[1]).split(".")[0]
            if not inside[2] and found == ([own], []):
                storage = storage.sub(own)
                found = storage.entries()
        if found == ([], []) and not storage.is_dir():
            if not storage.exists():
                raise FileNotFoundError(f"{storage.url}: no such file or folder")
            return storage, False
        check_published(storage.url, found[1])
        self._entries[""] = found
        return storage, True

    def __repr__(self) -> str:
        return f"Listing({self.root.path(self.file or '')!r})"

    def up(self, levels: int = 1) -> Listing:
        """The listing of a folder above; `file` becomes relative to it."""
        made = Listing.__new__(Listing)
        made.root, made.file, made._entries, made._whole = self.root, self.file, {}, set()
        for _ in range(levels):
            made.file = f"{made.root.name}/{made.file}" if made.file else None
            made.root = made.root.parent
        return made

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        """(folders, files) directly in a folder, sorted."""
        folder = folder.rstrip("/")
        if folder not in self._entries:
            dirs, files = self.root.entries(folder)
            # an output in the making may lie in the input's folder
            self._entries[folder] = [d for d in dirs if not d.endswith(PARTIAL)], files
        return self._entries[folder]

    def dirs(self, folder: str = "") -> list[str]:
        """Names of the folders directly in a folder."""
        return self.entries(folder)[0]

    def files(self, folder: str = "") -> list[str]:
        """Names of the files directly in a folder."""
        return self.entries(folder)[1]

    def exists(self, name: str) -> bool:
        """Whether a file is there, by the listing of its folder."""
        folder, base = posixpath.split(name)
        return base in self._file_set(folder)

    def _file_set(self, folder: str) -> set[str]:
        cache: dict[str, set[str]] = self.__dict__.setdefault("_sets", {})
        if folder not in cache:
            cache[folder] = set(self.files(folder))
        return cache[folder]

    def glob(self, pattern: str) -> list[str]:
        """Files that match a pattern (`*`, `?`, `[...]` in each part; `**` for any folders), sorted.

        Only the folders that can match are listed.
        """
        return sorted(set(self._glob("", pattern.split("/"))))

    def _glob(self, folder: str, parts: list[str]) -> Iterator[str]:
        head, rest = parts[0], parts[1:]
        if head == "**":
            rest = rest or ["*"]
            for inner in self._folders(folder):
                yield from self._glob(inner, rest)
            return
        names = self.dirs(folder) if rest else self.files(folder)
        for name in names:
            if fnmatch.fnmatchcase(name, head):
                path = posixpath.join(folder, name)
                if rest:
                    yield from self._glob(path, rest)
                else:
                    yield path

    def walk(self, folder: str = "") -> Iterator[str]:
        """All files below a folder, sorted within each folder, hidden folders left out."""
        for inner in self._folders(folder):
            for name in self.files(inner):
                yield posixpath.join(inner, name)

    def _fetch(self, folder: str) -> None:
        """List all that is below a folder of a remote storage at once: not a request for every folder."""
        if any(folder == w or folder.startswith(f"{w}/") or not w for w in self._whole):
            return
        for inner, (dirs, files) in tree(self.root.find(folder)).items():
            self._entries[posixpath.join(folder, inner) if inner else folder] = sorted(dirs), sorted(files)
        self._whole.add(folder)

    def _folders(self, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
        """A folder and all below it, but hidden ones and links to a folder that is being walked."""
        if self.root.local:
            real = os.path.realpath(self.root.path(folder))
            if real in above:
                return
            above = (*above, real)
        yield folder
        for i, name in enumerate(self.dirs(folder)):
            if i == FEW and not self.root.local:  # whoever has seen enough by then has not waited for all
                self._fetch(folder)
            if not name.startswith("."):
                yield from self._folders(posixpath.join(folder, name), above)
