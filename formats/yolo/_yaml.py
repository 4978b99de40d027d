"""data.yaml: what it says, and what it is made to say."""

from __future__ import annotations

import json
import posixpath
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from rayds.categories import Categories, PointsCategories
from rayds.errors import DataError
from rayds.format import Shard
from rayds.formats.yolo._categories import written_names
from rayds.formats.yolo._paths import Resolver, list_shards, name_shards, parts_of
from rayds.formats.yolo._scan import Scan, mirrored, scan
from rayds.formats.yolo._shapes import TASKS, Setting
from rayds.listing import Listing
from rayds.media import is_image

USUAL = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLITS = ("train", "val", "test")
SETTINGS = (
    "path",
    "names",
    "nc",
    "task",
    "kpt_shape",
    "kpt_names",
    "skeleton",
    "flip_idx",
    "download",
    "yaml_file",
)

_OWN = frozenset(
    {"path", "names", "nc", "task", "kpt_shape", "kpt_names", "skeleton", "download", "yaml_file"}
)
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Found:
    """A settings file: name relative to the listing (`folder` holds it), and what it says."""

    folder: str
    name: str
    values: dict[str, Any]


def find(files: Listing) -> Found | None:
    """The settings file: the one that was named, else one in the folder or just below it."""
    if files.file is not None:
        values = _load(files, files.file) if files.file.endswith((".yaml", ".yml")) else None
        return Found("", files.file, values) if values is not None else None
    # a folder with nothing but folders may be one around the dataset; others are not searched, they can be huge
    for pattern in ("*.y*ml",) if files.files() else ("*/*.y*ml",):
        names = files.glob(pattern)
        for name in sorted(names, key=lambda n: (posixpath.basename(n) not in USUAL, n)):
            values = _load(files, name)
            if values is not None:
                return Found(posixpath.dirname(name), name, values)
    return None


def _load(files: Listing, name: str) -> dict[str, Any] | None:
    """The content of a settings file; None when it is something else. A broken data.yaml raises DataError."""
    if files.root.size(name) > _MAX_BYTES:
        return None
    text = files.root.read_bytes(name).decode("utf-8-sig", "replace")
    if not re.search(r"^['\"]?names['\"]?\s*:", text, re.MULTILINE):
        return None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as e:
        if posixpath.basename(name) not in USUAL and files.file is None:
            return None
        mark = getattr(e, "problem_mark", None)
        raise DataError(
            f"not valid YAML ({getattr(e, 'problem', None) or 'syntax error'})",
            file=files.root.path(name),
            place=f"line {mark.line + 1}" if mark else None,
        ) from e
    return values if isinstance(values, dict) and isinstance(values.get("names"), (list, dict)) else None


def task(values: Mapping[str, Any], path: str) -> str:
    """The task that the settings or the names of file and folder tell, else "auto"."""
    if values.get("task") in TASKS:
        return str(values["task"])
    if values.get("kpt_shape"):
        return "pose"
    words = "/".join(path.lower().rsplit("/", 2)[-2:])
    return "obb" if re.search(r"(?<![a-z])(obb|dota)", words) else "auto"


def keypoints(values: Mapping[str, Any], path: str) -> tuple[int, int]:
    """(number, dimensions) of key points; (0, 0) when the settings have none."""
    shape = values.get("kpt_shape")
    if not shape:
        return 0, 0
    try:
        n, d = (int(v) for v in shape)
    except (TypeError, ValueError):
        n, d = 0, 0
    if n < 1 or d not in (2, 3):
        raise DataError(f"kpt_shape is {shape!r}, not [number, 2] or [number, 3]", file=path)
    return n, d


def names(files: Listing, values: Mapping[str, Any], path: str) -> list[str]:
    """The class names in index order; those that a mapping leaves out are class_<index>."""
    given = values.get("names")
    if isinstance(given, dict):
        try:
            by_index = {int(k): str(v) for k, v in given.items()}
        except (TypeError, ValueError) as e:
            raise DataError("names has keys that are not class indices", file=path) from e
        if by_index and (min(by_index) < 0 or max(by_index) > 1_000_000):
            raise DataError(f"names has the class index {max(by_index)}", file=path)
        return [by_index.get(i, f"class_{i}") for i in range(max(by_index, default=-1) + 1)]
    if given is not None:
        return [str(n) for n in given]
    if files.exists("classes.txt"):
        return [line.strip() for line in files.root.read_text("classes.txt").splitlines() if line.strip()]
    if files.exists("dataset_meta.json"):
        return []
    raise DataError(
        "there are no class names",
        file=path,
        remedy="Put a data.yaml with names: [...] into the dataset folder",
    )


def points_categories(values: Mapping[str, Any], n: int, labels: int) -> PointsCategories | None:
    """Key point names and joints of every label, None without key points; names default to numbers."""
    if not n:
        return None
    given = values.get("kpt_names")
    joints = values.get("skeleton") or ()
    made = PointsCategories()
    for i in range(labels):
        own = given.get(i, given.get(str(i))) if isinstance(given, dict) else given
        named = isinstance(own, list) and len(own) == n
        made.add(i, [str(k) for k in own] if named and own else [str(k) for k in range(n)], joints)
    return made


def other_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are no lists of images and that the model has no place for, JSON-like."""
    kept = {str(k): v for k, v in values.items() if k not in _OWN and k not in SPLITS and not _maybe_paths(v)}
    own: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return own


def _maybe_paths(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(
        isinstance(t, str) and re.search(r"[/\\]|\.txt$", t) and "://" not in t for t in texts
    )


@dataclass(frozen=True)
class _Target:
    """A folder of images, or a list file, of a subset."""

    subset: str
    name: str
    is_list: bool


def shards(files: Listing, values: Mapping[str, Any], path: str, token: str) -> list[Shard]:
    """The shards of all subsets, in the order train, val, test, others."""
    resolver = Resolver(files.root)
    targets = _targets(files, values, path) or _usual_folders(files)
    if not targets:
        raise DataError(
            "there are no images and labels: none of the folders that data.yaml names is there",
            file=path,
            remedy="Put them beside data.yaml, or correct its train, val and test",
        )
    made: list[Shard] = []
    for target in targets:
        if target.is_list:
            made += list_shards(files.root, target.subset, target.name, resolver, token)
            continue
        mates = [t.name for t in targets if t.subset == target.subset and not t.is_list]
        base = posixpath.commonpath(mates) if len(mates) > 1 and "" not in mates else target.name
        made += name_shards(target.subset, base, scan(files, target.name), token)
    return made


def _targets(files: Listing, values: Mapping[str, Any], path: str) -> list[_Target]:
    keys = [k for k in SPLITS if values.get(k)]
    keys += [str(k) for k, v in values.items() if k not in SPLITS and k not in SETTINGS and _maybe_paths(v)]
    found: dict[str, list[tuple[str, bool]]] = {}
    for key in keys:
        for value in values[key] if isinstance(values[key], list) else [values[key]]:
            there = _resolve(files, str(values.get("path") or ""), str(value))
            if there is not None:
                found.setdefault(key, []).append(there)
            elif key in SPLITS:
                warnings.warn(f"{path}: {key}: {value} is not there; the subset is left out", stacklevel=2)
    users: dict[str, list[str]] = {}
    for key, places in found.items():
        for name, _ in places:
            users.setdefault(name, []).append(key)
    made: list[_Target] = []
    for key, places in found.items():
        for name, is_list in places:
            # data.yaml must have train and val, so that a dataset with one of them names it twice: it is read once,
            # under the key that is also the name of the folder, else the first
            own = [k for k in users[name] if k in re.split(r"[/.]", name)] or users[name]
            if own[0] == key and not any(t.name == name for t in made):
                made.append(_Target(key, name, is_list))
    return made


def _resolve(files: Listing, base: str, value: str) -> tuple[str, bool] | None:
    """(name, whether it is a list) of a path in data.yaml: its longest tail that is in the dataset."""
    root = files.root
    parts = parts_of(f"{base}/{value}")
    for i in range(len(parts)):
        name = "/".join(parts[i:])
        if name.endswith(".txt"):
            if root.is_file(name):
                return name, True
        elif root.is_dir(name) or (
            mirrored(name, "images", "labels") != name and root.is_dir(mirrored(name, "images", "labels"))
        ):
            return name, False
    return None


def _usual_folders(files: Listing) -> list[_Target]:
    """Image folders by their usual places: images/<subset>, <subset>/images, images."""
    inside = sorted({d for top in ("images", "labels") for d in files.dirs(top)})
    if inside:
        return [_Target(d, f"images/{d}", False) for d in sorted(inside, key=_split_order)]
    beside = [d for d in files.dirs() if {"images", "labels"} & set(files.dirs(d))]
    if beside:
        return [_Target(d, f"{d}/images", False) for d in sorted(beside, key=_split_order)]
    return [_Target("default", "images", False)] if {"images", "labels"} & set(files.dirs()) else []


def _split_order(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)


def with_setting(shard: Shard, setting: Setting | None) -> Shard:
    """A shard whose data tells how to read the lines (None: class folders)."""
    return replace(shard, data=(shard.data, setting))


def class_folders(files: Listing, values: Mapping[str, Any]) -> tuple[list[str], list[Shard]]:
    """(class names, shards) of <subset>/<class>/<image>, or <class>/<image>."""
    sets = [d for d in sorted(files.dirs(), key=_split_order) if files.dirs(d) and not d.startswith(".")]
    if not sets and files.dirs():
        sets = [""]
    listed = {
        s: [n for n in files.walk(s) if is_image(n) and n.count("/") > s.count("/") + bool(s)] for s in sets
    }
    folders = {n[len(s) + 1 if s else 0 :].split("/", 1)[0] for s, images in listed.items() for n in images}
    given = values.get("names")
    known = [str(n) for n in (given.values() if isinstance(given, dict) else given or [])]
    if not folders:
        raise DataError(
            "there are no images in class folders (<subset>/<class>/<image>)", file=files.root.path()
        )
    made: list[Shard] = []
    for s, images in listed.items():
        found = Scan(images, [""] * len(images))
        made += [with_setting(shard, None) for shard in name_shards(s or "default", s, found, "")]
    return [*known, *sorted(folders - set(known))], made


def text(
    task: str, subsets: Sequence[str], categories: Categories, points: int, own: Mapping[str, Any]
) -> str:
    """data.yaml of a dataset; own: further settings of the source."""
    values: dict[str, Any] = {}
    ordered = sorted(subsets, key=_split_order)
    if task != "classify":  # its folders speak for themselves
        stand_ins = {key: _stand_in(key, ordered) for key in SPLITS}
        values.update({key: f"images/{place}" for key, place in stand_ins.items() if place is not None})
        values.update({s: f"images/{s}" for s in ordered if s not in SPLITS})
    names = written_names(categories.labels)
    values |= {"nc": len(names), "names": dict(enumerate(names)), "task": task}
    if task == "pose":
        values["kpt_shape"] = [points, 3]
        found = categories.points.items if categories.points else {}
        own_names = {i: p.labels for i, p in found.items() if len(p.labels) == points}
        if any(labels != [str(k) for k in range(points)] for labels in own_names.values()):
            values["kpt_names"] = own_names
        if joints := sorted({j for p in found.values() for j in p.joints}):
            values["skeleton"] = [list(j) for j in joints]
        if len(own.get("flip_idx") or ()) == points:
            values["flip_idx"] = own["flip_idx"]
    values.update({k: v for k, v in own.items() if k not in values and k not in _OWN and k != "flip_idx"})
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _stand_in(key: str, subsets: Sequence[str]) -> str | None:
    """The subset that train, val or test names: Ultralytics wants train and val, whatever there is."""
    if key in subsets or not subsets:
        return key if key in subsets else None
    alike = [s for s in subsets if s.startswith(key) and s not in SPLITS]
    if alike or key == "test":
        return alike[0] if alike else None
    others = [s for s in subsets if s != "test" and not s.startswith("test")] or list(subsets)
    return others[0]
