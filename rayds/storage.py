"""Every path is a local one or an fsspec URL: list, read, read ranges, write, concatenate, publish.

``Storage`` is a folder. Local folders take a direct way (no fsspec between us and the operating system),
because creating many small files is where the time of several formats goes; all else goes to ``rayds.remote``.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rayds.connect import connect
from rayds.copying import append_file, unlink_if_there, write_files
from rayds.errors import DataError, OutputExistsError, RaydsError, StorageError
from rayds.parallel import ordered_map
from rayds.remote import MARKER, Remote, threads
from rayds.urls import is_url, local_path, normal, outermost, safe_relative, split_archive

__all__ = [
    "Storage", "check_output", "io_threads", "is_url", "outermost", "read_url", "safe_output", "safe_relative",
]  # fmt: skip

LOCAL_THREADS = 8
PARTIAL = ".rayds-partial"  # the folder of an unfinished output has the output's name with this behind it
DONE = ".rayds-done.json"  # behind an output's name: the record of a job that was finished under resume


def io_threads(*paths: str | None) -> int:
    """How many threads to read or write files of these paths with: many where one of them is remote."""
    return threads() if any(p and is_url(p) for p in paths) else LOCAL_THREADS


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn errors of the system into a StorageError that names the path; a missing file stays FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, RaydsError):
        raise
    except OSError as e:
        raise StorageError(f"{path}: {e.strerror or e}") from e


_folder_locks: dict[str, threading.Lock] = {}


def _folder_lock(path: str) -> threading.Lock:
    """The lock of a folder in which files are being created."""
    if len(_folder_locks) > 1000:
        _folder_locks.clear()
    return _folder_locks.setdefault(path, threading.Lock())


class Storage:
    """A folder, local or on any fsspec file system; all names given to its methods are relative to it.

    Picklable; methods raise StorageError (or FileNotFoundError) naming the full path. scratch: a local folder on the
    same disk for files that are not whole yet; without it they stand beside what they become.
    """

    def __init__(self, url: str | os.PathLike[str], scratch: str | None = None) -> None:
        self.url, self.scratch = normal(url), scratch

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def local(self) -> bool:
        """Whether this is a folder of the local file system."""
        return not is_url(self.url)

    def _at(self, name: str = "") -> tuple[Remote, str]:
        """(file system, path in it) of a name, where this is not local."""
        remote, root = connect(self.url)
        return remote, "/".join(filter(None, (root, name.strip("/"))))

    def path(self, name: str = "") -> str:
        """The full path or URL of a name."""
        if not name:
            return self.url
        return f"{self.url}{name}" if self.url.endswith("/") else f"{self.url}/{name}"

    def sub(self, name: str) -> Storage:
        """The storage of a folder in this one."""
        return Storage(self.path(name), self.scratch) if name else self

    @property
    def parent(self) -> Storage:
        """The storage of the folder that holds this one."""
        inside = split_archive(self.url)
        if inside and not inside[2]:
            return self  # above the top of an archive is nothing
        above = self.url.rpartition("/")[0]
        if not self.local and not is_url(above):  # a bucket: above it is only the scheme
            return Storage(self.url[: self.url.index("://") + 3])
        return Storage(above or "/")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rsplit("/", 1)[-1]

    # reading

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file for reading, in bytes."""
        with _naming(self.path(name)), open(self.path(name), "rb") if self.local else self._open(name) as f:
            yield f

    def _open(self, name: str) -> BinaryIO:
        remote, path = self._at(name)
        return remote.open(path)

    def read_bytes(self, name: str) -> bytes:
        """The whole content of a file."""
        if self.local:
            with self.open(name) as f:
                return f.read()
        remote, path = self._at(name)
        return remote.read(path)

    def read_text(self, name: str) -> str:
        """The whole content of a file as UTF-8 text; raises DataError naming the byte that is not."""
        data = self.read_bytes(name)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise DataError(
                "not UTF-8 text",
                file=self.path(name),
                place=f"byte {e.start}",
                remedy="Save the file as UTF-8",
            ) from e

    def head(self, name: str, size: int = 4096) -> bytes:
        """The first bytes of a file."""
        if self.local:
            with self.open(name) as f:
                return f.read(size)
        return self.read_range(name, 0, size)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes start..end (end excluded) of a file."""
        if self.local:
            with self.open(name) as f:
                f.seek(start)
                return f.read(end - start)
        remote, path = self._at(name)
        return remote.read_range(path, start, end)

    def read_many(self, names: Sequence[str], missing_ok: bool = False) -> list[bytes | None]:
        """The contents of many small files, in order; None for a missing one where that is allowed."""

        def one(name: str) -> bytes | None:
            try:
                return self.read_bytes(name)
            except FileNotFoundError:
                if missing_ok:
                    return None
                raise

        return [one(n) for n in names] if self.local else Remote.side_by_side(one, names)

    def _kind(self, name: str) -> str | None:
        remote, path = self._at(name)
        return remote.kind(path)

    def read_ahead(self, names: Sequence[str | None]) -> Iterator[bytes | None]:
        """The contents of files one after the other, None for a missing one and for no name.

        Those of a remote storage are read some files ahead.
        """

        def one(name: str | None) -> bytes | None:
            try:
                return None if name is None else self.read_bytes(name)
            except FileNotFoundError:
                return None

        n = 1 if self.local or len(names) < 2 else threads()
        return ordered_map(one, names, n)

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder is there."""
        return os.path.exists(self.path(name)) if self.local else self._kind(name) is not None

    def is_dir(self, name: str = "") -> bool:
        """Whether a folder is there."""
        return os.path.isdir(self.path(name)) if self.local else self._kind(name) == "directory"

    def is_file(self, name: str) -> bool:
        """Whether a file is there."""
        return os.path.isfile(self.path(name)) if self.local else self._kind(name) == "file"

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        if self.local:
            return os.path.getsize(self.path(name))
        remote, path = self._at(name)
        return remote.size(path)

    def entries(self, name: str = "") -> tuple[list[str], list[str]]:
        """(folders, files) directly in a folder, sorted names; empty when it is not there."""
        dirs: list[str] = []
        files: list[str] = []
        if self.local:
            try:
                with _naming(self.path(name)), os.scandir(self.path(name) or "/") as found:
                    for entry in found:
                        (dirs if entry.is_dir() else files).append(entry.name)
            except FileNotFoundError:
                pass
            except StorageError as e:
                if not isinstance(e.__cause__, NotADirectoryError):
                    raise
        else:
            remote, path = self._at(name)
            dirs, files = remote.entries(path)
        return sorted(dirs), sorted(files)

    def find(self, name: str = "") -> dict[str, int]:
        """The size of every file below a folder of a remote storage, by its relative name, in as few requests as may be."""
        remote, path = self._at(name)
        return remote.find(path)

    # writing

    def makedirs(self, name: str = "") -> None:
        """Make a folder and its parents (nothing to do on object stores)."""
        if self.local:
            with _naming(self.path(name)):
                os.makedirs(self.path(name), exist_ok=True)
        else:
            remote, path = self._at(name)
            remote.makedirs(path)

    def write_bytes(self, name: str, data: Any) -> None:
        """Write a file whole (bytes or a buffer); readers see the old file, or the new one, never a part."""
        if not self.local:
            remote, inner = self._at(name)
            remote.write(inner, bytes(data))
            return
        path = self.path(name)
        folder = os.path.dirname(path)
        # a short name: that of the file itself may have all 255 bytes
        temporary = f"{self.scratch or folder}/.{uuid.uuid4().hex[:8]}.part"
        try:
            with _naming(path):
                try:
                    f = open(temporary, "wb")  # noqa: SIM115 (closed below; the retry needs both names)
                except FileNotFoundError:
                    os.makedirs(os.path.dirname(temporary), exist_ok=True)
                    f = open(temporary, "wb")  # noqa: SIM115
                with f:
                    f.write(data)
                try:
                    os.replace(temporary, path)
                except FileNotFoundError:
                    os.makedirs(folder, exist_ok=True)
                    os.replace(temporary, path)
        except BaseException:
            unlink_if_there(temporary)
            raise

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole, UTF-8."""
        self.write_bytes(name, text.encode())

    def write_files(self, folder: str, files: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Write many small files of one folder. Not atomic one by one: for staging folders."""
        pairs = list(files.items() if isinstance(files, Mapping) else files)
        for name, _ in pairs:
            if name.startswith("/") or ".." in name:  # names come from ids of untrusted data
                safe_output(name)
        if not self.local:
            remote, path = self._at(folder)
            remote.write_many({f"{path}/{n}": bytes(d) for n, d in pairs})
            return
        self.makedirs(folder)
        base = self.path(folder)
        dir_fd = os.open(base, os.O_RDONLY)
        try:
            for parent in {posixpath.dirname(name) for name, _ in pairs if "/" in name}:
                os.makedirs(posixpath.join(base, parent), exist_ok=True)
            with _folder_lock(base):  # threads that create files in one folder only get in each other's way
                write_files(dir_fd, pairs, 0o644)
        except OSError as e:
            raise StorageError(f"{posixpath.join(base, e.filename)}: {e.strerror or e}") from e
        finally:
            os.close(dir_fd)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file for writing, in bytes. Not atomic: for staging folders."""
        with _naming(self.path(name)):
            if self.local:
                self.makedirs(posixpath.dirname(name))
                with open(self.path(name), "wb") as f:
                    yield f
            else:
                remote, path = self._at(name)
                with remote.create(path) as out:
                    yield out

    def copy_in(self, source: str, name: str) -> None:
        """Copy the bytes of a file (a full path or URL) into this folder."""
        if self.local and not is_url(source):
            self.makedirs(posixpath.dirname(name))
            try:
                shutil.copyfile(local_path(source), self.path(name))
            except FileNotFoundError:
                raise
            except OSError as e:
                raise StorageError(f"{source} -> {self.path(name)}: {e.strerror or e}") from e
            return
        if not self.local and is_url(source) and not split_archive(source):
            remote, path = self._at(name)
            other, inner = connect(source)
            if type(other) is type(remote) and other.fs is remote.fs:  # the server copies it
                remote.copy(inner, path)
                return
        self.write_bytes(name, read_url(source))

    def concatenate(self, parts: Sequence[bytes | str], name: str, used_up: bool = False) -> None:
        """Make a file of literal bytes and files of this storage (by name), in order, never holding one whole.

        used_up: those files are needed for nothing else: on a local disk each goes as soon as it is joined.
        """
        if not self.local:
            remote, path = self._at(name)
            root = path[: len(path) - len(name)]
            remote.concatenate([p if isinstance(p, bytes) else root + p for p in parts], path)
            return
        with self.create(name) as out:
            for part in parts:
                if isinstance(part, bytes):
                    out.write(part)
                    continue
                with self.open(part) as f, _naming(f"{self.path(part)} -> {self.path(name)}"):
                    append_file(f, out)
                if used_up:
                    self.remove(part)

    def remove(self, name: str = "") -> None:
        """Remove a file or folder with all its content; nothing to do when it is not there."""
        if not self.local:
            remote, path = self._at(name)
            remote.remove(path)
        elif os.path.isdir(self.path(name)) and not os.path.islink(self.path(name)):
            shutil.rmtree(self.path(name), ignore_errors=True)
        else:
            unlink_if_there(self.path(name))

    def is_empty(self) -> bool:
        """Whether nothing is in this folder (or it is not there)."""
        if self.local:
            dirs, files = self.entries()
            return not dirs and not files
        remote, path = self._at()
        return remote.empty(path)

    def publish(self, staging: Storage, old: str | None = None, keep: bool = False) -> None:
        """Put the content of a staging folder in the place of this folder's content.

        On the local disk that is one renaming. On object stores, which have none, files are copied by the server, and
        readers are told by a marker that this is going on: see `check_published`. A publish that was broken
        off can be begun again, as long as the staging folder is there. old: where a local folder's content goes
        meanwhile (default: beside it). keep: leave the staging folder where it had to be copied.
        """
        if not self.local:
            remote, path = self._at()
            remote.publish(staging._at()[1], path, keep)
            return
        aside = None
        if os.path.isdir(self.url):
            if (
                os.path.ismount(self.url)
                or os.path.islink(self.url)
                or os.path.samefile(self.url, os.getcwd())
            ):
                self._replace_content(staging)
                if not keep:
                    staging.remove()
                return
            aside = old or f"{self.url}.{uuid.uuid4().hex[:8]}.old"
            shutil.rmtree(aside, ignore_errors=True)
            with _naming(self.url):
                os.rename(self.url, aside)
        try:
            with _naming(self.url):
                os.rename(staging.url, self.url)
        except OSError:
            if aside:
                os.rename(aside, self.url)
            raise
        if aside:
            shutil.rmtree(aside, ignore_errors=True)

    def _replace_content(self, staging: Storage) -> None:
        """publish for a folder that can't be renamed: a mount, a link, the working folder.

        All is copied before anything is removed, so that a full disk or the end of the process loses nothing.
        """
        arriving = f".{uuid.uuid4().hex[:8]}.arriving"
        with _naming(self.url):
            try:
                shutil.copytree(staging.url, self.path(arriving))
                for name in os.listdir(self.url):
                    if name != arriving:
                        self.remove(name)
                for name in os.listdir(self.path(arriving)):
                    os.rename(self.path(f"{arriving}/{name}"), self.path(name))
            except shutil.Error as e:  # a list of what could not be copied
                raise OSError(e.args[0][0][2] if e.args and e.args[0] else str(e)) from e
            finally:
                self.remove(arriving)


def safe_output(name: str) -> str:
    """The name of an output file, relative to the output; raises DataError when it would leave its folder."""
    if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
        raise DataError(f"the file name {name!r} leaves its folder", remedy="Rename the item or its subset")
    return name


def read_url(path: str) -> bytes:
    """The content of a full path or URL; raises FileNotFoundError, or StorageError naming it."""
    with _naming(path):
        if not is_url(path):
            return Path(local_path(path)).read_bytes()
        remote, inner = connect(normal(path))
        return remote.read(inner)


def check_published(url: str, files: Iterable[str]) -> None:
    """Raise StorageError when the files directly in a remote folder say that an output is being put in place there."""
    if MARKER in files:
        raise StorageError(
            f"{url}: an output is being put in place here, or that was interrupted ({MARKER} is there). "
            "Wait for it; or write it again with --overwrite"
        )


def check_output(out: Storage, inputs: Sequence[str], overwrite: bool) -> None:
    """Raise OutputExistsError when a dataset must not be written to `out`.

    An existing, non-empty folder needs `overwrite`; a folder that holds an input, the working folder or
    the user's home is never replaced. Nor is one inside an input: what is in it was listed as part of the input.
    (A new folder there does no harm: the input is listed before anything is written.)
    """
    if out.local and os.path.isfile(out.url):
        raise OutputExistsError(f"{out.url} is a file; give a folder")
    if split_archive(out.url):
        raise OutputExistsError(f"{out.url}: archives are only read; give a folder")
    if out.is_empty():
        return
    if not overwrite:
        raise OutputExistsError(f"{out.url} exists and is not empty (pass --overwrite to replace it)")
    target = os.path.realpath(out.url) if out.local else out.url
    sources = [outermost(Storage(i).url).removeprefix("file://") for i in inputs]
    kept = []
    if out.local:
        sources = [os.path.realpath(i) for i in sources if not is_url(i)]
        kept = [os.getcwd(), os.path.realpath(os.path.expanduser("~")), "/"]
    for path in [*sources, *kept]:
        if path == target or path.startswith(target.rstrip("/") + "/"):
            raise OutputExistsError(f"{out.url} holds {path} and can't be replaced; give another folder")
    for path in sources:
        if target.startswith(path.rstrip("/") + "/"):
            raise OutputExistsError(
                f"{out.url} is inside the input {path}, which may have been read with it; "
                "remove it first, or give a folder outside"
            )
