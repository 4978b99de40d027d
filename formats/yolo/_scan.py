"""Folders of images and label files, where no list says what belongs to the dataset."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from rayds.listing import Listing
from rayds.media import is_image
from rayds.storage import Storage


@dataclass(frozen=True)
class Scan:
    """images: paths relative to the dataset, sorted; labels: the label file of each.

    twins: images that differ from an earlier one only in the extension. base: the folder all images are in.
    """

    images: list[str]
    labels: list[str]
    twins: frozenset[str] = frozenset()
    base: str = ""


def label_folder(root: Storage, folder: str) -> str:
    """The folder of the label files of an image folder: the last `images` of its path replaced by `labels`, if there."""
    other = mirrored(folder, "images", "labels")
    return other if other != folder and root.is_dir(other) else folder


def mirrored(folder: str, old: str, new: str) -> str:
    """A folder with the last component `old` replaced by `new`; unchanged without one."""
    parts = folder.split("/")
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == old:
            return "/".join([*parts[:i], new, *parts[i + 1 :]])
    return folder


def stem(name: str) -> str:
    """A path without its extension (the quick way for file names that do not begin with a dot)."""
    head, dot, tail = name.rpartition(".")
    return head if dot and "/" not in tail else name


def labels_beside(names: Sequence[str], root: Storage) -> list[str]:
    """The label file of each image: in the `labels` folder that mirrors its `images` folder, or beside it."""
    folders: dict[str, str] = {}
    out = []
    for name in names:
        folder, slash, base = name.rpartition("/")
        if folder not in folders:
            folders[folder] = label_folder(root, folder)
        out.append(f"{folders[folder]}{slash}{stem(base)}.txt")
    return out


def scan(files: Listing, folder: str) -> Scan:
    """The images below a folder with their label files.

    A label file without an image is an item too: its image would be a .jpg.
    """
    images = [n for n in files.walk(folder) if is_image(n)]
    labels = dict(zip(images, labels_beside(images, files.root), strict=True))
    have = set(labels.values())
    for name in _texts(files, folder):
        if name not in have:
            parent, base = posixpath.split(name)
            image = posixpath.join(mirrored(parent, "labels", "images"), posixpath.splitext(base)[0] + ".jpg")
            labels[image] = name
    every = sorted(labels)
    seen: set[str] = set()
    twins = set()
    for name in every:
        if stem(name) in seen:
            twins.add(name)
        seen.add(stem(name))
    folders = {posixpath.dirname(n) for n in every}
    base = posixpath.commonpath(folders) if folders and "" not in folders else ""
    return Scan(every, [labels[n] for n in every], frozenset(twins), base)


def _texts(files: Listing, folder: str) -> list[str]:
    """The label files below a folder, or below the `labels` folder that mirrors it."""
    other = label_folder(files.root, folder)
    found = [n for n in files.walk(other) if n.endswith(".txt")]
    return (
        found if folder else [n for n in found if "/" in n]
    )  # beside settings lie read-me files, not labels
