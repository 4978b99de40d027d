"""What paths and URLs mean: local or remote, and which name a file inside an archive.

A file in an archive is ``zip+URL!/name`` or ``tar+URL!/name`` (as rasterio writes it), so that names are added and taken
off at the end as with any other path. fsspec's chained form, ``zip://name::URL``, means the same and is accepted everywhere.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from rayds.errors import DataError, UsageError

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://|^[a-zA-Z0-9+.-]+::")
_ARCHIVE = re.compile(r"\.(?:(zip)|tar|tgz|tbz2?|txz|tar\.(?:gz|bz2|xz))$", re.IGNORECASE)
_KINDS = re.compile(r"^(?:(?:zip|tar)\+)+")
_ENDS = re.compile(r"!(?=/|$)")
_CHAINED = re.compile(r"^(zip|tar)://(.*?)(?:::(.+))?$", re.DOTALL)


def is_url(path: str) -> bool:
    """Whether a path names a storage other than the local file system."""
    return bool(_SCHEME.match(path)) and not path.startswith(("file://", "local://"))


def local_path(path: str) -> str:
    """A local path without the scheme that it may have."""
    return re.sub(r"^(file|local)://", "", path)


def archive_kind(path: str) -> str | None:
    """ "zip" or "tar" for a path that ends as such an archive (compressed or not), else None."""
    found = _ARCHIVE.search(path)
    return ("zip" if found[1] else "tar") if found else None


def archive_url(kind: str, archive: str) -> str:
    """The URL of the top folder in an archive (a path or URL)."""
    if not is_url(archive):
        archive = "file://" + str(Path(local_path(archive)).expanduser().absolute())
    if len(_ENDS.findall(archive)) > len(_kinds(archive)):
        raise UsageError(f"{archive}: the path of an archive can't have '!/' in it; rename the folder")
    return f"{kind}+{archive}!"


def split_archive(url: str) -> tuple[str, str, str] | None:
    """(kind, path or URL of the archive, name inside) of a URL of a file in an archive, else None."""
    kinds = _kinds(url)
    ends = [m.start() for m in _ENDS.finditer(url)]
    if not kinds or len(ends) < len(kinds):
        return None
    end = ends[len(kinds) - 1]  # an archive in an archive: zip+tar+file:///a.tar!/b.zip!/c
    return kinds[0], url[len(kinds[0]) + 1 : end], url[end + 2 :]


def _kinds(url: str) -> list[str]:
    found = _KINDS.match(url)
    return found[0].rstrip("+").split("+") if found else []


def outermost(url: str) -> str:
    """The file that holds all of an archive's URL; other paths as they are."""
    while inside := split_archive(url):
        url = inside[1]
    return url


def normal(path: str | os.PathLike[str]) -> str:
    """The one form that rayds uses of a path or URL: absolute where local, no slash at the end."""
    text = os.fspath(path)
    if chained := _CHAINED.match(text):
        kind, name, archive = chained.groups()
        # Without a second part, zip://x.zip is the archive itself.
        name, archive = ("", name) if archive is None else (name.strip("/"), normal(archive))
        return archive_url(kind, archive) + (f"/{name}" if name else "")
    if is_url(text):
        return re.sub(r"(?<![:/])/+$", "", text)  # "memory://" stays
    return str(Path(local_path(text)).expanduser().absolute())


def safe_relative(path: str, *, file: str | None = None, item: str | None = None) -> str:
    """A relative path from untrusted data, normalised; raises DataError when it would leave its folder."""
    clean = path.replace("\\", "/")
    if clean.startswith("/") or re.match(r"^[a-zA-Z]:/", clean) or "\0" in clean:
        raise DataError(f"the path {path!r} is not relative to the dataset", file=file, item=item)
    if clean and not {"", ".", ".."}.isdisjoint(clean.split("/")):
        clean = posixpath.normpath(clean)
        if clean == ".." or clean.startswith("../"):
            raise DataError(f"the path {path!r} leaves the dataset folder", file=file, item=item)
    return clean
