"""File systems behind fsspec: what storage needs of them, with retries; publishing where nothing can be renamed.

Transient errors (refused and broken connections, time-outs, 429, 5xx) are tried again RAYDS_STORAGE_RETRIES times (8), with
exponential backoff and jitter, at one level only; then, and for every other error, a StorageError names URL and remedy.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import posixpath
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NoReturn, TypeVar

from rayds.errors import RaydsError, StorageError, UsageError

T = TypeVar("T")

MARKER = ".rayds-publishing"  # in an output while it is being put in place
CHUNK = 8 << 20
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
_log = logging.getLogger("rayds")
_told = [0.0]  # when a retry was last logged

_TRANSIENT_NUMBERS = frozenset((
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.EPIPE, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.EAGAIN),
))  # fmt: skip
# By name, so that nobody's client library is imported to look at an error.
_TRANSIENT_NAMES = frozenset((
    "FSTimeoutError", "ClientConnectionError", "ClientPayloadError", "ConnectionClosedError", "ConnectTimeoutError",
    "EndpointConnectionError", "HTTPClientError", "IncompleteReadError", "IncompleteRead", "ReadTimeoutError",
    "ResponseParserError", "TimeoutError",
))  # fmt: skip
_TRANSIENT_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
_LASTING_NAMES = frozenset(("SSLError", "ClientConnectorCertificateError"))
_RETRY_THEMSELVES = frozenset(("gs", "gcs", "abfs", "abfss", "az", "adl"))


def threads() -> int:
    """How many requests to a remote storage are made at a time; RAYDS_STORAGE_THREADS overrides the 32."""
    return max(1, _number("RAYDS_STORAGE_THREADS", 32))


def _number(variable: str, default: int) -> int:
    """An environment variable that is a whole number."""
    text = os.environ.get(variable) or str(default)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{variable} is {text!r}; set it to a whole number") from None


def waits() -> Iterator[float]:
    """Seconds to wait before each new try: doubled each time, less up to a half by chance."""
    import random

    for i in range(_number("RAYDS_STORAGE_RETRIES", 8)):
        yield min(FIRST_WAIT * 2**i, LONGEST_WAIT) * random.uniform(0.5, 1)


def transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _LASTING_NAMES or isinstance(error, RaydsError):
        return False
    if isinstance(error, ConnectionError) or names & _TRANSIENT_NAMES:
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_NUMBERS:
        return True
    return any(getattr(error, name, None) in _TRANSIENT_STATUS for name in ("status", "status_code", "code"))


def tell_retry(url: str, text: str, wait: float) -> None:
    """Log that a request is tried again, not more often than every five seconds: many threads do it at once."""
    if wait >= 1 and time.monotonic() - _told[0] > 5:
        _told[0] = time.monotonic()
        _log.warning("%s: %s; trying again", url, text)


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).strip()
    return " ".join(text.split()) or type(error).__name__


def explain(error: BaseException, url: str) -> StorageError:
    """A StorageError that names the URL, what is wrong and what to do."""
    if transient(error):
        remedy = "The storage did not answer as it should, several times: check that it is reachable, and run again"
    elif isinstance(error, PermissionError):
        remedy = "Check the credentials, and what they permit"
    elif isinstance(error, NotImplementedError):
        return StorageError(f"{url}: this kind of storage can't do that ({reason(error)})")
    else:
        return StorageError(f"{url}: {reason(error)}")
    return StorageError(f"{url}: {reason(error)}. {remedy}")


def raise_named(error: BaseException, url: str) -> NoReturn:
    """Raise an error of a file system as a StorageError; missing files, rayds' errors and mistakes of ours pass."""
    known = isinstance(error, (OSError, NotImplementedError)) or transient(error)
    if isinstance(error, (FileNotFoundError, RaydsError)) or not known:
        raise error
    raise explain(error, url) from error


def tree(names: Iterable[str]) -> dict[str, tuple[list[str], list[str]]]:
    """(folders, files) directly in every folder that holds files of some relative names; "" is the top."""
    made: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder not in made:
            parts = folder.split("/")
            for i, part in enumerate(parts):
                inner = "/".join(parts[: i + 1])
                if inner not in made:
                    made[inner] = ([], [])
                    made["/".join(parts[:i])][0].append(part)
        made[folder][1].append(base)
    return made


class Remote:
    """A file system behind fsspec. Paths are the file system's own; relative names are "/" separated.

    Safe on threads. Raises StorageError or FileNotFoundError.
    """

    def __init__(self, fs: Any) -> None:
        self.fs = fs
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._retries = not protocols & _RETRY_THEMSELVES

    def url(self, path: str) -> str:
        """The URL of a path, for messages."""
        return str(self.fs.unstrip_protocol(path))

    def tried(self, path: str, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """fn(*args, **kwargs), again after transient errors."""
        pauses = waits() if self._retries else iter(())
        while True:
            try:
                return fn(*args, **kwargs)
            except Exception as e:
                wait = next(pauses, None) if transient(e) else None
                if wait is None:
                    raise_named(e, self.url(path))
                tell_retry(self.url(path), reason(e), wait)
                time.sleep(wait)

    # reading

    def read(self, path: str) -> bytes:
        """The whole content of a file."""
        return bytes(self.tried(path, self.fs.cat_file, path))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes start..end (end excluded) of a file; fewer where it ends before."""
        if end <= start:
            return b""
        return bytes(self.tried(path, self.fs.cat_file, path, start=start, end=end))

    def open(self, path: str) -> BinaryIO:
        """A file for reading, by ranges of CHUNK bytes."""
        f: BinaryIO = self.tried(path, self.fs.open, path, "rb", block_size=CHUNK)
        return f

    def kind(self, path: str) -> str | None:
        """ "file", "directory" or None."""
        try:
            return str(self.tried(path, self.fs.info, path)["type"])
        except FileNotFoundError:
            return None

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        return int(self.tried(path, self.fs.size, path))

    def stamp(self, path: str) -> Any:
        """What is another after a file has changed."""
        info = self.tried(path, self.fs.info, path)
        return [
            str(info.get(k)) for k in ("size", "ETag", "etag", "mtime", "created", "LastModified", "updated")
        ]

    def entries(self, path: str) -> tuple[list[str], list[str]]:
        """(folders, files) directly in a folder, in no order; nothing when it is not there."""
        dirs: list[str] = []
        files: list[str] = []
        try:
            listed = self.tried(path, self.fs.ls, path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return dirs, files
        folder = path.strip("/")
        for info in listed:
            full = info["name"].strip("/")
            if full != folder:
                (dirs if info["type"] == "directory" else files).append(full.rsplit("/", 1)[-1])
        return dirs, files

    def find(self, path: str) -> dict[str, int]:
        """The size of every file below a folder, by its name relative to it."""
        try:
            found = self.tried(path, self.fs.find, path, detail=True)
        except FileNotFoundError:
            return {}
        folder = path.strip("/")
        start = len(folder) + 1 if folder else 0
        return {n.strip("/")[start:]: int(i["size"] or 0) for n, i in found.items() if n.strip("/") != folder}

    def empty(self, path: str) -> bool:
        """Whether nothing is in a folder (or it is not there)."""
        dirs, files = self.entries(path)
        return not dirs and not files

    # writing

    def makedirs(self, path: str) -> None:
        """Make a folder and its parents."""
        self.tried(path, self.fs.makedirs, path, exist_ok=True)

    def write(self, path: str, data: Any) -> None:
        """Write a file whole."""
        self.makedirs(posixpath.dirname(path))
        self.tried(path, self.fs.pipe_file, path, bytes(data))

    def write_many(self, files: Mapping[str, Any]) -> None:
        """Write many small files."""
        for folder in {posixpath.dirname(path) for path in files}:
            self.makedirs(folder)
        self.side_by_side(
            lambda path: self.tried(path, self.fs.pipe_file, path, bytes(files[path])), list(files)
        )

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        """A file for writing as a stream."""
        self.makedirs(posixpath.dirname(path))
        f = self.tried(path, self.fs.open, path, "wb", block_size=2 * CHUNK)
        try:
            yield f
        except BaseException:
            with suppress(Exception):
                f.discard()  # what came so far must not look like a whole file
                f.closed = True
            with suppress(Exception):
                f.close()
            raise
        try:
            f.close()
        except Exception as e:
            raise_named(e, self.url(path))

    def copy(self, source: str, target: str, size: int | None = None) -> None:
        """Copy a file of this file system, on the server where it can; size: where known."""
        del size
        self.makedirs(posixpath.dirname(target))
        try:
            self.tried(target, self.fs.cp_file, source, target)
        except StorageError as e:
            if not isinstance(e.__cause__, NotImplementedError):
                raise
            with self.open(source) as f, self.create(target) as out:
                shutil.copyfileobj(f, out, CHUNK)

    def remove(self, path: str) -> None:
        """Remove a file or folder with all its content; nothing to do when it is not there."""
        if self.kind(path):
            with suppress(FileNotFoundError):
                self.tried(path, self.fs.rm, path, recursive=True)

    def remove_files(self, folder: str, names: Sequence[str]) -> None:
        """Remove files of a folder by their relative names, and folders that are empty then."""
        self.side_by_side(lambda n: self.remove(f"{folder}/{n}"), names)
        above = {"/".join(n.split("/")[:i]) for n in names for i in range(1, n.count("/") + 1)}
        for inner in sorted(above, key=len, reverse=True):
            if self.empty(f"{folder}/{inner}"):
                with suppress(OSError, NotImplementedError):
                    self.fs.rmdir(f"{folder}/{inner}")

    def concatenate(self, parts: Sequence[bytes | str], path: str) -> None:
        """Make a file of literal bytes and files (by path), in order, never holding one whole."""
        with self.create(path) as out:
            for part in parts:
                if isinstance(part, bytes):
                    out.write(part)
                    continue
                with self.open(part) as f:
                    shutil.copyfileobj(f, out, CHUNK)

    @staticmethod
    def side_by_side(fn: Callable[[Any], T], values: Sequence[Any]) -> list[T]:
        """fn of every value, many at a time; the results in order."""
        if len(values) < 2:
            return [fn(v) for v in values]
        with ThreadPoolExecutor(min(threads(), len(values)), thread_name_prefix="rayds-io") as pool:
            try:
                return list(pool.map(fn, values))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def publish(self, staging: str, target: str, keep: bool = False) -> None:
        """Put the files of a staging folder in the place of a folder's, where folders can't be renamed.

        The object MARKER is in the target from before the first change until after the last. On failure a target
        that was empty is emptied again; one that held something keeps the marker, and the staging folder stays (the
        exception has `keeps_staging`). What was broken off can be begun again. keep: leave the staging folder there.
        """
        new, old = self.find(staging), self.find(target)
        note = {"staging": self.url(staging), "files": len(new)}
        try:
            self.write(f"{target}/{MARKER}", json.dumps(note).encode())
            self.copy_tree(staging, target, new)
            self.remove_files(target, sorted(old.keys() - new.keys() - {MARKER}))
            self.remove_files(target, [MARKER])
        except BaseException as e:
            if not old:
                with suppress(Exception):
                    self.remove(target)
                raise
            e.keeps_staging = True  # type: ignore[attr-defined]
            if isinstance(e, Exception):
                text = f"{self.url(target)}: replacing the old output was interrupted ({reason(e)}). The new one is complete in "
                told = StorageError(
                    f"{text}{self.url(staging)}: copy it from there, or run again with --overwrite (and --resume, to do no more than that)"
                )
                told.keeps_staging = True  # type: ignore[attr-defined]
                raise told from e
            raise
        if not keep:
            try:
                self.remove(staging)
            except StorageError as e:  # the output is complete
                _log.warning("%s can be removed: %s", self.url(staging), e)

    def copy_tree(self, source: str, target: str, files: Mapping[str, int]) -> None:
        """Copy files, by relative names with their sizes, from one folder to another."""
        self.side_by_side(lambda n: self.copy(f"{source}/{n}", f"{target}/{n}", files[n]), list(files))
