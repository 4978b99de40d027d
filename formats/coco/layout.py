"""Where a COCO dataset keeps its files, and what its categories are."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayds.categories import Categories, LabelCategories, MaskCategories, PointsCategories, PointsCategory
from rayds.engine.base import Engine
from rayds.errors import DataError, FormatError, UsageError
from rayds.formats._ranges import MIN_RANGE
from rayds.listing import Listing
from rayds.parallel import memory_bytes
from rayds.schema import DEFAULT_SUBSET, AnnotationType
from rayds.storage import Storage

# In the order in which annotations of one image are read and merged.
TASKS = ("instances", "person_keypoints", "stuff", "panoptic", "labels", "captions", "image_info")
SECTIONS = ("images", "annotations")
_NAME = re.compile(rf"^({'|'.join(TASKS)})_(.+)\.json$")
# What of a file name is no part of the item's id: no more than what the writer can tell again.
EXTENSION = r"([^/])\.[A-Za-z0-9]{1,5}$"
# From these sizes of a subset's annotation files on, they are read by ranges of RANGE bytes: on Ray, and in one process
# where one task would come near to its memory. It is faster while it can (1.6 times for annotations in no order).
RANGES_FROM, RANGES_FROM_MEMORY = 2 << 30, 0.25
# On a cluster of many CPUs already from this size on: one task would keep them waiting.
MANY_CPUS, MANY_RANGES_FROM = 8, 256 << 20
RANGE = 64 << 20


@dataclass(frozen=True)
class SubsetFiles:
    """The annotation files of one subset: (task, path relative to the root) in the order of TASKS."""

    subset: str
    files: tuple[tuple[str, str], ...]


def find_subsets(files: Listing, tasks: Sequence[str]) -> tuple[Storage, list[SubsetFiles]]:
    """The dataset's root and the annotation files of each subset, for a folder or one JSON file.

    Raises FormatError when there is none.
    """
    if files.file:
        folder = files.root.name
        up = files.up() if folder == "annotations" else files
        match = _NAME.match(posixpath.basename(files.file))
        if match and match.group(1) in tasks:
            task, subset = match.groups()
        else:
            task, subset = tasks[0], DEFAULT_SUBSET
        return up.root, [SubsetFiles(subset, ((task, str(up.file)),))]
    found: dict[str, dict[str, str]] = {}
    for path in [*files.glob("*.json"), *files.glob("annotations/*.json")]:
        match = _NAME.match(posixpath.basename(path))
        if match and match.group(1) == "panoptic" and not files.root.is_dir(path.removesuffix(".json")):
            continue  # without its PNGs it is something else
        if match and match.group(1) in tasks:
            found.setdefault(match.group(2), {})[match.group(1)] = path
    if not found:
        names = ", ".join(f"{t}_<subset>.json" for t in tasks)
        raise FormatError(f"{files.root.url}: no annotation file ({names}) here or in annotations/")
    order = sorted(found, key=lambda s: (not s.startswith("train"), s))
    subsets = [SubsetFiles(s, tuple((t, found[s][t]) for t in TASKS if t in found[s])) for s in order]
    return files.root, subsets


def range_size(options: Any, size: int, engine: Engine | None) -> tuple[int, bool]:
    """(bytes of the ranges to read a subset by, 0 for none; whether the user said so). size: of its files."""
    wanted = options.range_size.strip().lower()
    if wanted == "none":
        return 0, False
    if wanted != "auto":
        return parse_size(wanted), True
    if engine is None or size < MANY_RANGES_FROM:
        return 0, False
    if engine.name == "local":
        enough = max(RANGES_FROM, int(memory_bytes() * RANGES_FROM_MEMORY))
    else:
        enough = MANY_RANGES_FROM if engine.cpus >= MANY_CPUS else RANGES_FROM
    return (RANGE if size >= enough else 0), False


def parse_size(text: str) -> int:
    """Bytes of a text like 64MB, 512kB, 1GiB or 4096; raises UsageError for another."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(i?)b?", text.strip().lower())
    n = float(match.group(1)) * 1024 ** " kmg".index(match.group(2) or " ") if match else 0
    if n < MIN_RANGE:
        raise UsageError(
            f"the range size {text!r} is none; write a size like 64MB (at least {MIN_RANGE} bytes), auto or none"
        )
    return int(n)


def is_list(storage: Storage, name: str) -> bool:
    """Whether a JSON file is a list at top level."""
    return storage.head(name).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def join_categories(parts: Iterable[tuple[str, Mapping[str, Any]]], keep_ids: bool) -> Categories:
    """The label categories of (file, its top-level keys), by original id; keep_ids: label index = category id.

    Two ids with one name get distinct labels: "name" and "name (id 7)". Raises DataError for broken categories.
    """
    entries: dict[int, dict[str, Any]] = {}
    for file, top in parts:
        seen: set[int] = set()
        for entry in _category_list(top, file):
            id = entry["id"]
            known = entries.setdefault(id, dict(entry))
            if id in seen:
                raise DataError(
                    f"the category id {id} occurs twice", file=file, remedy="Give every category its own id"
                )
            if known["name"] != entry["name"]:
                raise DataError(
                    f"category {id} is {entry['name']!r} here, but {known['name']!r} in another file",
                    file=file,
                    remedy="Read the files one by one and merge the datasets",
                )
            known.update(entry)
            seen.add(id)
    labels = LabelCategories()
    points = PointsCategories()
    colors = MaskCategories()
    for id, entry in entries.items():
        while keep_ids and len(labels) < id:
            labels.add(f"class-{len(labels)}", coco={"id": len(labels), "@dummy": True})
        if keep_ids and len(labels) != id:
            raise DataError(f"category ids must ascend to be kept as label indexes; {id} comes late")
        _add_category(id, entry, labels, points, colors)
    made = Categories({AnnotationType.label: labels})
    if points.items:
        made[AnnotationType.points] = points
    if colors.colormap:
        made[AnnotationType.mask] = colors
    return made


def _category_list(top: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """The categories of a file, their ids made integers."""
    entries = top.get("categories") or []
    if not isinstance(entries, list):
        raise DataError(f"'categories' is no list: {str(entries)[:60]}", file=file)
    out = []
    for entry in entries:
        if not isinstance(entry, dict) or "id" not in entry or "name" not in entry:
            raise DataError(f"a category needs an id and a name, found {str(entry)[:60]}", file=file)
        try:
            id = int(entry["id"])
            if isinstance(entry["id"], bool) or (isinstance(entry["id"], float) and id != entry["id"]):
                raise ValueError
        except (TypeError, ValueError, OverflowError) as e:
            raise DataError(f"the category id {entry['id']!r} is not an integer", file=file) from e
        out.append({**entry, "id": id})
    return out


def _add_category(
    id: int, entry: dict[str, Any], labels: LabelCategories, points: PointsCategories, colors: MaskCategories
) -> None:
    name = str(entry["name"])
    extra = {k: v for k, v in entry.items() if k not in ("name", "supercategory", "keypoints", "skeleton")}
    if "supercategory" not in entry:
        extra["@no_supercategory"] = True
    if name in labels:
        extra["@name"] = name
        name = f"{name} (id {id})"
    index = labels.add(name, str(entry.get("supercategory") or ""), coco=extra)
    if entry.get("keypoints"):
        joints = [j for j in entry.get("skeleton") or () if len(j) == 2]
        points.add(index, map(str, entry["keypoints"]), joints)
        extra["@skeleton"] = joints  # joints are a set, and files have an order
    color = entry.get("color")
    if isinstance(color, list) and len(color) == 3:
        colors.colormap[index] = (int(color[0]), int(color[1]), int(color[2]))


def labels_by_id(categories: Categories) -> dict[int, int]:
    """The label index of every category id of the files."""
    told = [(i, c.extra.get("coco")) for i, c in enumerate(categories.labels)]
    return {c["id"]: i for i, c in told if isinstance(c, dict) and not c.get("@dummy")}


def category_ids(categories: Categories) -> list[int]:
    """The COCO id of every label index: the original ones where all labels have one, else index + 1."""
    ids = [c.extra.get("coco", {}).get("id") for c in categories.labels]
    if all(isinstance(i, int) for i in ids) and len(set(ids)) == len(ids):
        return [int(i) for i in ids]
    return list(range(1, len(ids) + 1))


def category_entries(categories: Categories, task: str) -> list[dict[str, Any]]:
    """The `categories` section of a task's file."""
    out = []
    points = categories.points
    for index, (id, label) in enumerate(zip(category_ids(categories), categories.labels, strict=True)):
        own = label.extra.get("coco", {})
        if own.get("@dummy"):
            continue
        entry: dict[str, Any] = {"id": id, "name": own.get("@name", label.name)}
        if not own.get("@no_supercategory") or label.parent:
            entry["supercategory"] = label.parent
        if task == "person_keypoints":
            if points and index not in points.items:
                continue
            names = points.items[index] if points else PointsCategory()
            joints = sorted(map(list, names.joints))
            told = own.get("@skeleton", [])
            entry["keypoints"] = names.labels
            entry["skeleton"] = told if sorted(told) == joints else joints
        out.append({**entry, **{k: v for k, v in own.items() if k != "id" and not k.startswith("@")}})
    return out


def image_folder(storage: Storage, subset: str, names: Sequence[str], near: str) -> str:
    """The folder (relative to the root) that holds images of a subset, tried with a few of their names.

    "images/<subset>" when none does.
    """
    folders = [f"images/{subset}", "images", subset, near, "", f"{near}/{subset}".strip("/"), "input_images"]
    year = re.sub(r"\d+$", "", subset)
    if year and year != subset:
        folders += [f"images/{year}", year]
    for name in dict.fromkeys(names):
        for folder in dict.fromkeys(folders):
            if storage.is_file(posixpath.join(folder, name)):
                return folder
    for folder in (f"images/{subset}", "images", subset):
        if storage.is_dir(folder):
            return folder
    return f"images/{subset}"
