"""From a URL to the file system that holds it."""

from __future__ import annotations

from typing import Any

from rayds.errors import StorageError
from rayds.remote import Remote
from rayds.urls import split_archive


def connect(url: str, fresh: bool = False) -> tuple[Remote, str]:
    """(file system, path in it) of a URL; fresh: an archive is looked at for changes now. Raises StorageError for one that nothing here can open."""
    if split_archive(url):
        from rayds.archives import connect_archive

        return connect_archive(url, connect, fresh)
    scheme, _, rest = url.partition("://")
    if scheme in ("s3", "s3a") and "::" not in url:
        from rayds.s3 import connect as connect_s3

        return connect_s3(), rest.strip("/")
    import fsspec  # and asyncio with it: not for local paths

    try:
        fs, path = fsspec.core.url_to_fs(url, **_uncached(url))
    except (ValueError, ImportError, NotImplementedError) as e:
        raise StorageError(f"{url}: {e}") from e
    return Remote(fs), str(path).rstrip("/")


def _uncached(url: str) -> dict[str, Any]:
    """Arguments that keep each file system of a (chained) URL from remembering listings, which other processes change."""
    inner = {part.partition("://")[0] for part in url.split("::")[1:] if "://" in part}
    return {"use_listings_cache": False, **{scheme: {"use_listings_cache": False} for scheme in inner}}
