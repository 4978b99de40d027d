"""One item record, parsed and checked key by key: for the records that the columnar reader has doubts about.

It says what is wrong and where, takes what is unusual but right, and keeps the keys that are unknown.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from rayds.annotations import normal_rle, rle_runs
from rayds.errors import DataError
from rayds.formats.datumaro.media import Locator
from rayds.item import dump_json
from rayds.schema import AnnotationType

FAMILY = "datumaro"
T = AnnotationType

_ITEM_KEYS = {"id", "annotations", "attr", "image", "point_cloud", "related_images"}
_BASE = {"id", "type", "attributes", "group", "label_id", "z_order"}
_GEOMETRY = {
    T.bbox: {"bbox"},
    T.mask: {"rle"},
    T.caption: {"caption"},
    T.cuboid_3d: {"position", "rotation", "scale"},
    T.label: set(),
    T.points: {"points", "visibility"},
}
_LENGTHS = {T.ellipse: 4, T.rotated_bbox: 5}
_BITS = {"id": 63, "group": 63, "label_id": 31, "z_order": 31}


class WrongValueError(ValueError):
    """What is wrong with a value; the caller adds where."""


@dataclass
class Careful:
    """Makes rows of the item table of single records.

    file: of the records; remap: label indices; errors: what was left out, in order.
    """

    file: str
    subset: str
    remap: list[int]
    locator: Locator
    errors: list[DataError] = field(default_factory=list)

    def row(self, data: bytes, place: str) -> dict[str, Any] | None:
        """The row of a record, or None when the item can't be read at all; what is left out goes to `errors`."""
        at = int(place.split()[-1])
        try:
            text = data.decode()
            record = json.loads(text)
        except UnicodeDecodeError as e:
            return self._bad("not UTF-8 text", place=f"byte {at + e.start}")
        except json.JSONDecodeError as e:
            offset = len(text[: e.pos].encode())
            return self._bad(f"not valid JSON ({e.msg})", place=f"byte {at + offset}")
        except RecursionError:
            return self._bad("nested too deep", place=place)
        if "id" not in record:
            return self._bad("the item has no 'id'", place=place)
        item = record["id"]
        if isinstance(item, bool) or not isinstance(item, (str, int)) or item == "":
            return self._bad(f"the item's 'id' is {_show(item)}, not a text", place=place)
        item = str(item).replace("\\", "/")
        try:
            return self._item(item, record, place)
        except WrongValueError as e:
            return self._bad(str(e), item=item, place=place)
        except UnicodeEncodeError:
            shown = item.encode("utf-8", "backslashreplace").decode()
            return self._bad("a text with half a character (a lone surrogate)", item=shown, place=place)
        except DataError as e:
            return self._bad(e.reason, item=item, place=place)

    def _bad(self, reason: str, *, item: str | None = None, place: str) -> dict[str, Any] | None:
        self.errors.append(DataError(reason, file=self.file, item=item, place=place, remedy=_REMEDY))
        return None

    def _item(self, item: str, record: dict[str, Any], place: str) -> dict[str, Any]:
        item.encode()
        attributes = _object(record.get("attr"), "'attr'")
        listed = record.get("annotations")
        if listed is None:
            listed = []
        if not isinstance(listed, list):
            raise WrongValueError(f"'annotations' is {_show(listed)}, not a list")
        extra = {k: v for k, v in record.items() if k not in _ITEM_KEYS}
        media = self._media(item, record, extra)
        row = {
            "id": item,
            "subset": self.subset,
            "media": media,
            "attributes": _checked(dump_json(attributes)),
            "extra": _checked(dump_json({FAMILY: extra} if extra else {})),
        }
        annotations = []
        for i, value in enumerate(listed):
            try:
                annotations.append(self._annotation(value))
            except WrongValueError as e:
                kind = value.get("type") if isinstance(value, dict) else None
                what = f" ({kind})" if isinstance(kind, str) else ""
                self._bad(f"annotation {i + 1}{what}: {e}", item=item, place=place)
        return {**row, "annotations": annotations}

    # media

    def _media(self, item: str, record: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any] | None:
        image, cloud = (_object(record.get(k), f"{k!r}") for k in ("image", "point_cloud"))
        related = record.get("related_images")
        if image and cloud:
            raise WrongValueError("it has an 'image' and a 'point_cloud'; an item has one of them")
        if "related_images" in record and not cloud:
            extra["related_images"] = related
        if image or ("image" in record and not cloud):
            if not image:
                extra_image = record["image"]  # {} or null: no media
                if extra_image is not None:
                    extra["image"] = extra_image
                return None
            return self._image(item, image, extra)
        return self._cloud(item, cloud, related, extra) if cloud else None

    def _image(self, item: str, image: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        name = image.get("path")
        if name is not None and not isinstance(name, str):
            raise WrongValueError(f"the path of the image is {_show(name)}, not a text")
        height = width = None
        if (size := image.get("size")) is not None:
            height, width = _size(size)
        own = {k: v for k, v in image.items() if k not in ("path", "size")}
        if name and not is_plain(item, name):
            own["path"] = name
        if own:
            extra["image"] = own
        path = self.locator.path(name or f"{item}.jpg", "image", file=self.file, item=item)
        _checked(path)
        return {"kind": "image", "path": path, "height": height, "width": width}

    def _cloud(self, item: str, cloud: dict[str, Any], related: Any, extra: dict[str, Any]) -> dict[str, Any]:
        name = cloud.get("path")
        if not isinstance(name, str) or not name:
            raise WrongValueError(f"the path of the point cloud is {_show(name)}, not a text")
        own = {k: v for k, v in cloud.items() if k != "path"}
        if not is_plain(item, name):
            own["path"] = name
        if own:
            extra["point_cloud"] = own
        paths = []
        plain = True
        for entry in related or ():
            named = entry.get("path") if isinstance(entry, dict) else None
            if not isinstance(named, str) or not named:
                raise WrongValueError(f"a related image is {_show(entry)}, not an object with a 'path'")
            plain = plain and set(entry) == {"path"} and "/" not in named.replace("\\", "/")
            paths.append(self.locator.related(named, item, file=self.file, item=item))
        if not plain:
            extra["related_images"] = related
        path = self.locator.path(name, "point_cloud", file=self.file, item=item)
        _checked(path)
        return {"kind": "point_cloud", "path": path, "related": paths}

    # annotations

    def _annotation(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise WrongValueError(f"it is {_show(value)}, not an object")
        name = value.get("type")
        kind = _TYPES.get(name) if isinstance(name, str) else None
        if kind is None:
            if "type" not in value:
                raise WrongValueError("it has no 'type'")
            raise WrongValueError(f"the type {_show(name)} is none of {', '.join(sorted(_TYPES))}")
        numbers = {k: _integer(value.get(k), k) for k in _BITS}
        label = numbers["label_id"]
        if label is not None:
            if not 0 <= label < len(self.remap):
                raise WrongValueError(f"'label_id' is {label}, but there are {len(self.remap)} labels")
            label = self.remap[label]
        known = _BASE | _GEOMETRY.get(kind, {"points"})
        extra = {k: v for k, v in value.items() if k not in known}
        row: dict[str, Any] = {
            "type": int(kind),
            "id": numbers["id"] or 0,
            "group": numbers["group"] or 0,
            "label": label,
            "z_order": numbers["z_order"] or 0,
            "attributes": _checked(dump_json(_object(value.get("attributes"), "'attributes'"))),
            "extra": _checked(dump_json({FAMILY: extra} if extra else {})),
        }
        return row | _geometry(kind, value)


def _geometry(kind: AnnotationType, value: dict[str, Any]) -> dict[str, Any]:
    if kind is T.label:
        return {}
    if kind is T.caption:
        if not isinstance(value.get("caption"), str):
            raise WrongValueError(f"'caption' is {_show(value.get('caption'))}, not a text")
        return {"text": _checked(value["caption"])}
    if kind is T.mask:
        return {"mask": _mask(value.get("rle"))}
    if kind is T.bbox:
        return {"points": _numbers(value, "bbox", 4)}
    if kind is T.cuboid_3d:
        return {"points": [n for k in ("position", "rotation", "scale") for n in _numbers(value, k, 3)]}
    points = _numbers(value, "points", _LENGTHS.get(kind))
    if len(points) % 2 and kind is not T.rotated_bbox:
        raise WrongValueError(f"an odd number of coordinates ({len(points)})")
    if kind is T.polygon and len(points) < 6:
        raise WrongValueError(f"a polygon needs at least 3 points, got {len(points) // 2}")
    row: dict[str, Any] = {"points": points}
    if kind is T.points and value.get("visibility") is not None:
        visibility = value["visibility"]
        if not isinstance(visibility, list) or any(
            _integer(v, "visibility") not in (0, 1, 2) for v in visibility
        ):
            raise WrongValueError(f"'visibility' is {_show(visibility)}, not a list of 0, 1 and 2")
        if len(visibility) != len(points) // 2:
            raise WrongValueError(f"{len(points) // 2} points, but {len(visibility)} visibility values")
        row["visibility"] = [int(v) for v in visibility]
    return row


def _mask(rle: Any) -> dict[str, Any]:
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        raise WrongValueError(f"'rle' is {_show(rle)}, not an object with 'counts' and 'size'")
    height, width = _size(rle["size"])
    counts = rle["counts"]
    if isinstance(counts, list):
        runs = [_integer(c, "counts") for c in counts]
        try:
            counts = normal_rle({"size": [height, width], "counts": runs})["counts"]
        except (TypeError, ValueError, OverflowError) as e:
            raise WrongValueError(str(e)) from e
    if not isinstance(counts, str):
        raise WrongValueError(
            f"the 'counts' of 'rle' are {_show(counts)}, neither a text nor a list of run lengths"
        )
    if not counts.isascii():
        raise WrongValueError("the 'counts' of 'rle' are not compressed run lengths")
    try:
        rle_runs({"size": [height, width], "counts": counts})
    except ValueError as e:
        raise WrongValueError(str(e)) from e
    return {"height": height, "width": width, "counts": counts}


def _size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise WrongValueError(f"the size is {_show(value)}, not [height, width]")
    height, width = (_integer(v, "size") for v in value)
    if height is None or width is None or not (0 <= height < 1 << 31 and 0 <= width < 1 << 31):
        raise WrongValueError(f"the size is {_show(value)}, not [height, width]")
    return height, width


def _numbers(value: dict[str, Any], key: str, n: int | None) -> list[float]:
    found = value.get(key)
    if not isinstance(found, list):
        raise WrongValueError(
            f"it has no {key!r}" if found is None else f"{key!r} is {_show(found)}, not a list of numbers"
        )
    if n is not None and len(found) != n:
        raise WrongValueError(f"{key!r} has {len(found)} numbers, not {n}")
    numbers = []
    for v in found:
        if isinstance(v, bool) or not isinstance(v, (int, float)):
            raise WrongValueError(f"{key!r} holds {_show(v)}, not a number")
        try:
            number = float(v)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise WrongValueError(f"{key!r} holds {_show(v)}: a coordinate must be finite")
        numbers.append(number)
    return numbers


def _integer(value: Any, key: str) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise WrongValueError(f"{key!r} is {_show(value)}, not a whole number")
    if not -(1 << _BITS.get(key, 63)) <= value < 1 << _BITS.get(key, 63):
        raise WrongValueError(f"{key!r} is {value}, which is too big")
    return int(value)


def _object(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WrongValueError(f"{what} is {_show(value)}, not an object")
    return value


def _checked(text: str | None) -> str | None:
    """The text; raises UnicodeEncodeError when it is none."""
    if text is not None:
        text.encode()
    return text


def _show(value: Any) -> str:
    text = "null" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_plain(item: str, name: str) -> bool:
    """Whether a file name is the one that the writer makes again: the id and an extension."""
    stem, dot, ext = name.rpartition(".")
    return bool(dot) and stem == item and 1 <= len(ext) <= 5 and ext.isascii() and ext.isalnum()


_TYPES = {t.name: t for t in T}
_REMEDY = "Repair it, or leave it out with --on-error skip"
