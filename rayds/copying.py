"""Files of local disks: joined by the kernel where it can, removed."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from typing import BinaryIO

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


def unlink_if_there(path: str) -> None:
    """Remove a local file if it is there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)
