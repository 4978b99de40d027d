"""zip and tar archives as read-only folders, local or remote, without unpacking them to the disk.

A zip's files are read by range, one request each; its directory is read once a process. A tar has no directory: its headers are
read through once a process. A compressed tar is decompressed once a process, into a temporary file that nobody else sees.

Archives are untrusted: absolute names and names that leave the archive, encrypted files, files that overlap and such
that unpack to more than RAYDS_MAX_EXPANSION (200) times their size (beyond EXPANSION_FREE bytes) are refused; links are followed to
files of the same archive only, and nothing else that is no file is there.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import posixpath
import struct
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Protocol, cast

from rayds.errors import DataError, StorageError
from rayds.remote import CHUNK, Remote, tree
from rayds.urls import archive_url, is_url, local_path, safe_relative, split_archive

EXPANSION_FREE = 1 << 30
_KEPT = 8  # archives whose directory a process holds
_TRUSTED_SECONDS = 5.0  # a remote archive is asked for again whether it changed
_LOCAL_HEADER = 30
_SLACK = 128  # extra fields of a local header that the directory of the zip does not tell of
_SCAN_BUFFER = 1 << 20
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error)
_STREAMS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
Connect = Callable[[str], tuple[Remote, str]]
_log = logging.getLogger("rayds")


class Source(Protocol):
    """The bytes of an archive."""

    size: int

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes start..end, from any thread."""
        ...


class _FileSource:
    """A local file, held open."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def read_range(self, start: int, end: int) -> bytes:
        data = os.pread(self.file.fileno(), end - start, start)
        while len(data) < end - start and (
            more := os.pread(self.file.fileno(), end - start - len(data), start + len(data))
        ):
            data += more
        return data


class _RemoteSource:
    """A file of a remote storage."""

    def __init__(self, remote: Remote, path: str) -> None:
        self.remote, self.path = remote, path
        self.size = remote.size(path)

    def read_range(self, start: int, end: int) -> bytes:
        return self.remote.read_range(self.path, start, min(end, self.size))


class _Window(io.RawIOBase):
    """A part of a source as a file of its own."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        self.source, self.start, self.size, self.at = source, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        end = min(self.size, self.at + len(buffer))
        if end <= self.at:
            return 0
        data = self.source.read_range(self.start + self.at, self.start + end)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


class _Checked(io.RawIOBase):
    """A file in an archive; damage becomes a DataError that names it."""

    def __init__(self, inner: IO[bytes], url: str) -> None:
        self.inner, self.url = inner, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _damage(self.url):
            return self.inner.seek(offset, whence)

    def tell(self) -> int:
        return self.inner.tell()

    def readinto(self, buffer: Any) -> int:
        with _damage(self.url):
            data = self.inner.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _damage(url: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as e:
        raise DataError(f"the archive is damaged ({e})", file=url, remedy="Get it again") from e
    except NotImplementedError as e:
        raise DataError(f"the archive can't be read ({e})", file=url, remedy="Pack it in another way") from e


@dataclass(frozen=True)
class _Member:
    """Where a file is. head: bytes before the data of a zip member, at least nearly; None in a tar."""

    offset: int
    packed: int
    size: int
    head: int | None = None
    method: int = 0
    crc: int = 0


class Archive(Remote):
    """The files in an archive. Paths are names in it; nothing can be written."""

    def __init__(self, url: str, source: Source) -> None:
        self.archive, self.source = url, source
        kind = (split_archive(url) or ("zip",))[0]
        with _damage(url):
            members = _zip_members(source, url) if kind == "zip" else self._tar_members()
        self._members = members
        self._folders = tree(members)

    def _tar_members(self) -> dict[str, _Member]:
        opener = _STREAMS.get(self.source.read_range(0, 2))
        if opener:
            self.source = _decompressed(self.source, opener, self.archive)
        return _tar_members(self.source, self.archive)

    # what Remote offers

    def url(self, path: str) -> str:
        return f"{self.archive}/{path}" if path else self.archive

    def _member(self, path: str) -> _Member:
        try:
            return self._members[path]
        except KeyError:
            raise FileNotFoundError(2, "no such file in the archive", self.url(path)) from None

    def kind(self, path: str) -> str | None:
        return "file" if path in self._members else "directory" if path in self._folders else None

    def size(self, path: str) -> int:
        return self._member(path).size

    def entries(self, path: str) -> tuple[list[str], list[str]]:
        dirs, files = self._folders.get(path, ([], []))
        return list(dirs), list(files)

    def find(self, path: str) -> dict[str, int]:
        prefix = path + "/" if path else ""
        return {n[len(prefix) :]: m.size for n, m in self._members.items() if n.startswith(prefix)}

    def stamp(self, path: str) -> Any:
        return self._member(path).offset, self.size(path)

    def read(self, path: str) -> bytes:
        member = self._member(path)
        if member.head is None:
            return self.source.read_range(member.offset, member.offset + member.size)
        with _damage(self.url(path)):
            return _zip_file(io.BytesIO(self._packed(member)), member).read()

    def read_range(self, path: str, start: int, end: int) -> bytes:
        member = self._member(path)
        start, end = max(0, start), min(end, member.size)
        if end <= start:
            return b""
        if not member.method:
            at = member.offset + (start if member.head is None else self._start(member) + start)
            return self.source.read_range(at, at + end - start)
        with _damage(self.url(path)):
            if end < CHUNK:  # deflated data is hardly ever longer than what it becomes
                try:
                    packed = self._packed(member, end + end // 512 + 1024)
                    return _zip_file(io.BytesIO(packed), member).read(end)[start:]
                except EOFError:
                    pass
            with self.open(path) as f:
                f.seek(start)
                return f.read(end - start)

    def open(self, path: str) -> BinaryIO:
        member = self._member(path)
        start = member.offset + (0 if member.head is None else self._start(member))
        buffer = 1 << 20 if isinstance(self.source, _FileSource) else CHUNK
        raw = io.BufferedReader(_Window(self.source, start, member.packed), buffer)
        if not member.method:
            return cast(BinaryIO, raw)
        return cast(BinaryIO, io.BufferedReader(_Checked(_zip_file(raw, member), self.url(path)), 1 << 20))

    def _start(self, member: _Member) -> int:
        """Where the data of a zip member begins, after its local header."""
        return _header_size(self.source.read_range(member.offset, member.offset + _LOCAL_HEADER))

    def _packed(self, member: _Member, size: int | None = None) -> bytes:
        """The data of a zip member as it is stored, or the first bytes of it: in one read as a rule."""
        wanted = member.packed if size is None else min(size, member.packed)
        read = member.offset + (member.head or 0) + wanted
        data = self.source.read_range(member.offset, min(read, self.source.size))
        start = _header_size(data)
        found = data[start : start + wanted]
        if len(found) < wanted:
            at = member.offset + start
            found += self.source.read_range(at + len(found), at + wanted)
        return found

    def _read_only(self, *_: Any, **__: Any) -> Any:
        raise StorageError(f"{self.archive}: archives are only read; give a folder as the output")

    makedirs = write = write_many = create = copy = remove = remove_files = concatenate = publish = _read_only


def _header_size(head: bytes) -> int:
    if len(head) < _LOCAL_HEADER or head[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("no file begins where the directory says")
    name, extra = struct.unpack("<HH", head[26:30])
    return int(_LOCAL_HEADER + name + extra)


def _zip_file(packed: IO[bytes], member: _Member) -> IO[bytes]:
    info = zipfile.ZipInfo()
    info.compress_type, info.CRC = member.method, member.crc
    info.compress_size, info.file_size = member.packed, member.size
    return cast(IO[bytes], zipfile.ZipExtFile(packed, "r", info))


def _zip_members(source: Source, url: str) -> dict[str, _Member]:
    window = io.BufferedReader(_Window(source, 0, source.size), _SCAN_BUFFER)
    members: dict[str, _Member] = {}
    left_out: list[str] = []
    with zipfile.ZipFile(window) as archive:
        for info in archive.infolist():
            name = safe_relative(info.filename, file=url)
            if info.is_dir() or name.startswith("__MACOSX/"):
                continue
            if info.external_attr >> 28 == 0xA:
                left_out.append(name)
                continue
            if info.flag_bits & 0x41:
                raise DataError(f"{name!r} is encrypted", file=url, remedy="Pack it without a password")
            head = _LOCAL_HEADER + len(info.orig_filename.encode()) + len(info.extra) + _SLACK
            members[name] = _Member(
                info.header_offset, info.compress_size, info.file_size, head, info.compress_type, info.CRC
            )
        packed = sum(info.compress_size for info in archive.infolist())
    if packed > source.size:
        raise DataError(
            "files of the archive overlap", file=url, remedy="Don't use it: it was made to do harm"
        )
    _check_expansion(sum(m.size for m in members.values()), packed, url)
    _tell_left_out(left_out, url)
    return members


def _tar_members(source: Source, url: str) -> dict[str, _Member]:
    window = io.BufferedReader(_Window(source, 0, source.size), _SCAN_BUFFER)
    members: dict[str, _Member] = {}
    links: dict[str, str] = {}
    left_out: list[str] = []
    with tarfile.open(fileobj=window, mode="r:") as archive:
        for info in archive:
            name = safe_relative(info.name, file=url)
            if info.issparse():
                raise DataError(f"{name!r} is a sparse file", file=url, remedy="Pack it without --sparse")
            if info.isreg():
                members[name] = _Member(info.offset_data, info.size, info.size)
                links.pop(name, None)
            elif info.islnk() or info.issym():
                above = posixpath.dirname(name) if info.issym() else ""
                links[name] = posixpath.normpath(posixpath.join(above, info.linkname))
            elif not info.isdir():
                left_out.append(name)
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
    for name, target in links.items():
        for _ in range(10):
            target = links.get(target, target)
        if target in members:
            members[name] = members[target]
        else:
            left_out.append(name)
    _tell_left_out(left_out, url)
    return members


def _tell_left_out(names: Sequence[str], url: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        _log.warning(
            "%s: %r%s left out: links to no file of the archive, or no files at all", url, names[0], more
        )


def _check_expansion(size: int, packed: int, url: str) -> None:
    limit = float(os.environ.get("RAYDS_MAX_EXPANSION", "200"))
    if size > EXPANSION_FREE and size > limit * max(packed, 1):
        raise DataError(
            f"the archive unpacks to {size / packed if packed else size:,.0f} times its size",
            file=url,
            remedy="If you trust it, set RAYDS_MAX_EXPANSION higher",
        )


def _decompressed(source: Source, opener: Any, url: str) -> _FileSource:
    """The content of a compressed tar, in a temporary file without a name."""
    window = io.BufferedReader(_Window(source, 0, source.size), CHUNK)
    file = tempfile.TemporaryFile(prefix="rayds-")  # noqa: SIM115 (held open as long as the archive)
    done = 0
    with opener(window, "rb") as stream:
        while chunk := stream.read(1 << 20):
            done += len(chunk)
            _check_expansion(done, source.size, url)
            try:
                file.write(chunk)
            except OSError as e:
                raise StorageError(
                    f"{url}: no room to decompress it in {tempfile.gettempdir()} ({e.strerror}). "
                    "Set TMPDIR to a larger disk, or unpack the archive"
                ) from e
    file.flush()
    return _FileSource(file)


# the archives that this process has open: (what told that it is unchanged, when that was, the archive)
_open: OrderedDict[str, tuple[Any, float, Archive]] = OrderedDict()
_left: list[Any] = []
_lock = threading.RLock()


def connect_archive(url: str, connect: Connect, fresh: bool = False) -> tuple[Archive, str]:
    """(archive, name in it) of a URL; fresh: look whether the archive has changed, however lately that was done.

    connect: finds the file system of the archive itself.
    """
    kind, outer, name = cast(tuple[str, str, str], split_archive(url))
    url = archive_url(kind, outer)
    with _lock:
        known = _open.get(url)
        if known and is_url(outer) and not fresh and time.monotonic() - known[1] < _TRUSTED_SECONDS:
            return known[2], name
        stamp, make = _look(outer, connect)
        archive = known[2] if known and known[0] == stamp else Archive(url, make())
        _open[url] = (stamp, time.monotonic(), archive)
        _open.move_to_end(url)
        while len(_open) > _KEPT:
            _open.popitem(last=False)
    return archive, name


def _look(outer: str, connect: Connect) -> tuple[Any, Any]:
    """(what changes when the archive does, how to read it)."""
    if is_url(outer):
        remote, path = connect(outer)
        return remote.stamp(path), lambda: _RemoteSource(remote, path)
    path = local_path(outer)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(2, "no such file", path) from None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns), lambda: _opened(path)


def _opened(path: str) -> _FileSource:
    try:
        return _FileSource(open(path, "rb"))
    except OSError as e:
        raise StorageError(f"{path}: {e.strerror}") from e


def _forget() -> None:
    """In a forked process: connections are the parent's, and the lock may be held by a thread that is not there."""
    global _lock
    _left.append(dict(_open))
    _open.clear()
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
