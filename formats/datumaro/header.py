"""What an annotation file says besides its items: found without reading them, merged over subsets, written again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rayds.categories import Categories, Category, LabelCategories, MaskCategories, PointsCategories
from rayds.errors import DataError
from rayds.formats._records import RecordScanner
from rayds.schema import AnnotationType
from rayds.storage import Storage

FAMILY = "datumaro"
VERSION = "1.0"
HEAD_BYTES = 64 << 10
TAIL_BYTES = 64 << 10
MAX_HEAD_BYTES = 64 << 20

# media_type of the header
MEDIA_ELEMENT, IMAGE, POINT_CLOUD = 1, 2, 6

_JSON = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_OWN_KEYS = {"dm_format_version", "media_type", "infos", "info", "categories", "items"}
_LABEL_KEYS = {"name", "parent", "attributes"}


def leading_keys(text: str) -> tuple[dict[str, Any], str]:
    """(the top-level keys with their values that stand whole before "items", how it ended).

    How it ended: "items" (that key was met), "end" (the object is over), "cut" (text ends first) or "other" (it is not
    a JSON object).
    """
    found: dict[str, Any] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        return found, "cut" if at >= len(text) else "other"
    at = _skip(text, at + 1)
    while True:
        if at >= len(text):
            return found, "cut"
        if text[at] == "}":
            return found, "end"
        try:
            key, at = _JSON.raw_decode(text, at)
            at = _skip(text, at)
            if at >= len(text):
                return found, "cut"
            if not isinstance(key, str) or text[at] != ":":
                return found, "other"
            if key == "items":
                return found, "items"
            value, at = _JSON.raw_decode(text, _skip(text, at + 1))
            at = _skip(text, at)
        except ValueError:
            return found, "cut"  # or broken: who reads the whole file says which
        if at >= len(text):
            return found, "cut"  # the value may be a number that goes on
        found[key] = value
        if text[at] not in ",}":
            return found, "other"
        at = _skip(text, at + 1) if text[at] == "," else at


def trailing_keys(tail: bytes) -> dict[str, Any]:
    """The top-level keys after the last records of a file, as far as they stand whole in its last bytes."""
    for match in re.finditer(rb'\]\s*,\s*(?=")', tail):
        try:
            found = json.loads(b"{" + tail[match.end() :])
        except ValueError:
            continue
        return dict(found)
    return {}


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _head_text(root: Storage, name: str, size: int) -> str:
    return root.head(name, size).decode("utf-8-sig", "ignore")


def _tail(root: Storage, name: str, size: int) -> bytes:
    return root.read_range(name, max(0, size - TAIL_BYTES), size)


def has_keys(root: Storage, name: str) -> bool:
    """Whether a file has the top-level keys "categories" and "items", by its first and last bytes."""
    found, how = leading_keys(_head_text(root, name, HEAD_BYTES))
    if how == "other" or (how == "end"):
        return False
    if "dm_format_version" in found:
        return True
    if how == "items":
        return "categories" in found or "categories" in trailing_keys(_tail(root, name, root.size(name)))
    if how == "cut":  # perhaps a long list of categories
        found, how = leading_keys(_head_text(root, name, 64 * HEAD_BYTES))
        return how == "items" and "categories" in found
    return False


def read_header(root: Storage, name: str) -> dict[str, Any]:
    """All top-level keys of a file but "items". Raises DataError when there are no "categories" and "items"."""
    file, size = root.path(name), root.size(name)
    length = HEAD_BYTES
    while True:
        found, how = leading_keys(_head_text(root, name, length))
        if how != "cut" or length >= min(size, MAX_HEAD_BYTES):
            break
        length *= 8
    if how == "items":
        found = {**trailing_keys(_tail(root, name, size)), **found}
    if (
        how != "items" or "categories" not in found
    ):  # they stand elsewhere, or the file is broken: read it all
        with root.open(name) as f:
            scanner = RecordScanner(f, file, ("items",))
            for _ in scanner.records():
                pass
        found = dict(scanner.skeleton)
        for key in ("items", "categories"):
            if key not in found:
                what = f"the top-level key {key!r} is missing: this is not a Datumaro dataset"
                raise DataError(what, file=file, remedy="Check the path")
        if not isinstance(found["items"], list):
            what = f"'items' is {json.dumps(found['items'])[:60]}, not a list of objects"
            raise DataError(what, file=file, remedy="Repair it")
    found.pop("items", None)
    if not isinstance(found["categories"], dict):
        raise DataError("'categories' is not a JSON object", file=file, remedy="Repair it")
    return found


class Merged:
    """The headers of all subsets as one: categories (labels by name), and what only this format knows."""

    def __init__(self) -> None:
        self.labels = LabelCategories()
        self.has_labels = False
        self.masks: dict[int, tuple[int, int, int]] | None = None
        self.points: PointsCategories | None = None
        self.own: dict[str, Any] = {"subsets": {}}

    def add(self, header: Mapping[str, Any], subset: str, file: str) -> list[int]:
        """Take up the header of a subset; returns the label index of each of its own."""
        categories = header["categories"]
        try:
            remap = self._add_labels(categories.get("label"))
            self._add_masks(categories.get("mask"), remap)
            self._add_points(categories.get("points"), remap)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as e:
            what = f"the key {e} is missing" if isinstance(e, KeyError) else str(e)
            raise DataError(f"'categories' is not as expected: {what}", file=file, remedy="Repair it") from e
        others = {k: v for k, v in categories.items() if k not in ("label", "mask", "points")}
        if others:
            self.own.setdefault("categories", {}).update(others)
        infos = header.get("infos", header.get("info"))
        kept = {k: v for k, v in header.items() if k not in _OWN_KEYS}
        kept["media_type"] = header.get("media_type")
        self.own["subsets"][subset] = {"infos": infos if isinstance(infos, dict) else {}, "top": kept}
        return remap

    def _add_labels(self, found: Any) -> list[int]:
        if found is None:
            return []
        self.has_labels = True
        self.labels.attributes |= set(found.get("attributes") or ())
        remap = []
        names: set[str] = set()
        for entry in found["labels"]:
            name = entry["name"]
            if not isinstance(name, str):
                raise ValueError(f"the label name {name!r} is not a text")
            if name in names:
                raise ValueError(f"the label {name!r} occurs twice")
            names.add(name)
            extra = {k: v for k, v in entry.items() if k not in _LABEL_KEYS}
            index, known = self.labels.find(name)
            if known is None or index is None:
                own = {FAMILY: extra} if extra else {}
                index = self.labels.add(name, entry.get("parent") or "", entry.get("attributes") or (), **own)
            else:
                known.attributes |= set(entry.get("attributes") or ())
            remap.append(index)
        groups = self.own.setdefault("label_groups", [])
        groups += [g for g in found.get("label_groups") or () if g not in groups]
        others = {k: v for k, v in found.items() if k not in ("labels", "attributes", "label_groups")}
        if others:
            self.own.setdefault("label", {}).update(others)
        return remap

    def _add_masks(self, found: Any, remap: list[int]) -> None:
        if found is None:
            return
        self.masks = {} if self.masks is None else self.masks
        for entry in found["colormap"]:
            r, g, b = (int(entry[c]) for c in "rgb")
            self.masks.setdefault(_mapped(int(entry["label_id"]), remap), (r, g, b))

    def _add_points(self, found: Any, remap: list[int]) -> None:
        if found is None:
            return
        self.points = PointsCategories() if self.points is None else self.points
        for entry in found["items"]:
            label = _mapped(int(entry["label_id"]), remap)
            if label in self.points.items:
                continue
            self.points.add(label, [str(n) for n in entry.get("labels") or ()], entry.get("joints") or ())
            extra = {k: v for k, v in entry.items() if k not in ("label_id", "labels", "joints")}
            if extra and label < len(self.labels):
                self.own.setdefault("points", {})[self.labels[label].name] = extra

    def categories(self) -> Categories:
        """The categories of all subsets."""
        made = Categories()
        if self.has_labels:
            made[AnnotationType.label] = self.labels
        if self.masks is not None:
            made[AnnotationType.mask] = MaskCategories(self.masks)
        if self.points is not None:
            made[AnnotationType.points] = self.points
        return made


def _mapped(label: int, remap: list[int]) -> int:
    return remap[label] if 0 <= label < len(remap) else label


def header_text(
    categories: Categories,
    own: Mapping[str, Any],
    subset: str,
    kinds: Iterable[str],
    infos: Mapping[str, Any] | None = None,
) -> str:
    """The annotation file of a subset up to the first item. own: what was read with it; kinds: of media; infos: more of them."""
    subsets = own.get("subsets") or {}
    said = subsets.get(subset) or {}
    top = dict(said.get("top") or {})
    before = top.pop("media_type", None)
    known = {"image": IMAGE, "point_cloud": POINT_CLOUD}
    types = {known.get(k, MEDIA_ELEMENT) for k in kinds}
    if not types:
        media_type = before if isinstance(before, int) else IMAGE
    else:
        media_type = types.pop() if len(types) == 1 else MEDIA_ELEMENT
    header = {
        "dm_format_version": VERSION,
        "media_type": media_type,
        "infos": {**(said.get("infos") or {}), **(infos or {})},
        "categories": _categories_json(categories, own),
        **top,
    }
    return json.dumps(header, ensure_ascii=False, separators=(",", ":"))[:-1] + ',"items":['


def _categories_json(categories: Categories, own: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = dict(own.get("categories") or {})
    plain = categories.to_json()
    if "label" in plain:
        names = set(categories.labels.names())
        labels = [_label_json(c) for c in categories.labels]
        groups = [g for g in own.get("label_groups") or () if _group_holds(g, names)]
        made["label"] = {
            "labels": labels,
            "label_groups": groups,
            "attributes": plain["label"]["attributes"],
            **(own.get("label") or {}),
        }
    if "mask" in plain:
        made["mask"] = plain["mask"]
    if "points" in plain:
        extra = own.get("points") or {}
        items = []
        for entry in plain["points"]["items"]:
            i = entry["label_id"]
            name = categories.labels[i].name if 0 <= i < len(categories.labels) else None
            items.append({**entry, **extra.get(name, {})})
        made["points"] = {"items": items}
    return made


def _label_json(category: Category) -> dict[str, Any]:
    base = {"name": category.name, "parent": category.parent, "attributes": sorted(category.attributes)}
    return {**base, **(category.extra.get(FAMILY) or {})}


def _group_holds(group: Any, names: set[str]) -> bool:
    """Whether a label group still names labels that are there."""
    listed = group.get("labels") if isinstance(group, dict) else None
    return not listed or all(n in names for n in listed)
