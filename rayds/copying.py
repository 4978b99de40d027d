"""Files of local disks: many small ones written, some joined by the kernel where it can, removed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from rayds.compiled import load

_files = load("rayds._files")
_NO_COPY_BY_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def append_file(source: BinaryIO, out: BinaryIO) -> None:
    """Append what is left of a file to another one; the kernel does it where it can, some file systems without copying."""
    if hasattr(os, "copy_file_range"):  # Linux
        out.flush()
        try:
            while os.copy_file_range(source.fileno(), out.fileno(), 1 << 30):
                pass
        except OSError as e:
            if e.errno not in _NO_COPY_BY_KERNEL:
                raise
    shutil.copyfileobj(source, out, 8 << 20)


def write_files(dir_fd: int, files: Sequence[tuple[str, Any]], mode: int) -> None:
    """Write files below an open folder: (name, bytes) of each. Raises OSError with the name of the one that can't be written."""
    if _files is not None:
        _files.write(dir_fd, list(files), mode)
        return
    for name, data in files:
        try:
            _write_file(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, dir_fd=dir_fd), data)
        except OSError as e:
            raise OSError(e.errno, e.strerror, name) from e


def _write_file(fd: int, data: Any) -> None:
    try:
        view = memoryview(data).cast("B")
        written = os.write(fd, view)
        while written < len(view):
            written += os.write(fd, view[written:])
    finally:
        os.close(fd)


def unlink_if_there(path: str) -> None:
    """Remove a local file if it is there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)
