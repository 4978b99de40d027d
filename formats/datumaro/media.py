"""Where the media of items are: an annotation file gives names, which several layouts mean differently."""

from __future__ import annotations

import posixpath
import re
import threading

from rayds.storage import Storage, safe_relative

FOLDERS = {"image": "images", "point_cloud": "point_clouds"}
_ABSOLUTE = re.compile(r"^(/|[A-Za-z]:/)")


class Locator:
    """Finds the files of one subset; folders are listed once each. Safe on threads."""

    def __init__(self, root: Storage, subset: str) -> None:
        self.root, self.subset = root, subset
        self._lock = threading.Lock()
        self._files: dict[str, frozenset[str]] = {}
        self._top: dict[str, bool] = {}

    def __getstate__(self) -> tuple[Storage, str]:
        return self.root, self.subset

    def _has(self, path: str) -> bool:
        folder, _, base = path.rpartition("/")
        found = self._files.get(folder)
        if found is None:
            with self._lock:
                found = self._files[folder] = frozenset(self._list(folder))
        return base in found

    def _list(self, folder: str) -> list[str]:
        if folder.count("/") > 1 and not self.root.is_dir(folder.rpartition("/")[0]):
            return []
        return self.root.entries(folder)[1]

    def path(self, name: str, kind: str, *, file: str, item: str) -> str:
        """The full path of a medium by the name that an item gives: images/<subset>/, images/, or beside.

        The first where nothing is there. A name that is an absolute path means a file of that name in the dataset.
        Raises DataError when a relative one leaves the dataset's folder.
        """
        clean = name.replace("\\", "/")
        clean = posixpath.basename(clean) if _ABSOLUTE.match(clean) else clean
        clean = safe_relative(clean, file=file, item=item)
        folder = FOLDERS[kind]
        first = f"{folder}/{self.subset}/{clean}"
        for candidate in (first, f"{folder}/{clean}", clean):
            if self._has(candidate):
                return self.root.path(candidate)
        return self.root.path(first)

    def related(self, name: str, id: str, *, file: str, item: str) -> str:
        """The full path of an image that belongs to a point cloud."""
        clean = name.replace("\\", "/")
        clean = posixpath.basename(clean) if _ABSOLUTE.match(clean) else clean
        clean = safe_relative(clean, file=file, item=item)
        first = f"images/{self.subset}/{clean}"
        for candidate in (first, f"related_images/{self.subset}/{id}/{clean}", f"images/{clean}", clean):
            if self._has(candidate):
                return self.root.path(candidate)
        return self.root.path(first)
