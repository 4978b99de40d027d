"""DatasetItem: one row of an item table as an object, and the way between the two."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from rayds import annotations as anns
from rayds.annotations import Annotation
from rayds.media import Image, Media, PointCloud
from rayds.schema import DEFAULT_SUBSET, ITEM_SCHEMA, AnnotationType

TYPES = AnnotationType


@dataclass
class DatasetItem:
    """One image, frame or point cloud with its annotations; its key is (id, subset).

    id: file name without extension, "/" between folders. media: Image, PointCloud or None; `image=` takes
    an Image, an (H, W[, C]) BGR array, a path or a callable; `point_cloud=` (or `pcd=`) a PointCloud or a path, with its
    `related_images=`, each as for `image=`. attributes: JSON-like values by name.
    """

    id: str
    subset: str = DEFAULT_SUBSET
    media: Media | None = None
    annotations: list[Annotation] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        id: Any,
        annotations: Iterable[Annotation] = (),
        subset: str | None = None,
        media: Media | None = None,
        image: Any = None,
        point_cloud: Any = None,
        attributes: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        *,
        pcd: Any = None,
        related_images: Iterable[Any] = (),
    ) -> None:
        self.id = str(id).replace("\\", "/")
        if not self.id:
            raise ValueError("an item needs an id")
        self.subset = subset or DEFAULT_SUBSET
        if sum(v is not None for v in (media, image, point_cloud, pcd)) > 1:
            raise ValueError(f"item {self.id!r}: give one of media, image and point_cloud (or pcd)")
        cloud = point_cloud if point_cloud is not None else pcd
        if image is not None:
            media = Image.of(image)
        elif cloud is not None:
            media = PointCloud.of(cloud)
        if related := list(related_images):
            if not isinstance(media, PointCloud):
                raise ValueError(
                    f"item {self.id!r}: related_images belong to a point cloud; give point_cloud, too"
                )
            media = PointCloud.of(media, related)
        self.media = media
        self.annotations = list(annotations)
        self.attributes = dict(attributes or {})
        self.extra = dict(extra or {})

    @property
    def image(self) -> Image | None:
        """The image, if the media is one."""
        return self.media if isinstance(self.media, Image) else None

    @property
    def point_cloud(self) -> PointCloud | None:
        """The point cloud, if the media is one."""
        return self.media if isinstance(self.media, PointCloud) else None

    @property
    def related_images(self) -> list[Image]:
        """The images that belong to the point cloud, if the media is one."""
        return self.media.related_images if isinstance(self.media, PointCloud) else []

    def wrap(self, **changes: Any) -> DatasetItem:
        """A copy with some fields changed."""
        if "image" in changes:
            changes["media"] = Image.of(changes.pop("image"))
        if "point_cloud" in changes:
            changes["media"] = PointCloud.of(changes.pop("point_cloud"))
        return replace(self, **changes)

    def __repr__(self) -> str:
        kinds: dict[str, int] = {}
        for a in self.annotations:
            kinds[a.type.name] = kinds.get(a.type.name, 0) + 1
        what = ", ".join(f"{n} {k}" for k, n in sorted(kinds.items())) or "no annotations"
        media = f", {self.media!r}" if self.media is not None else ""
        return f"DatasetItem({self.id!r}, subset={self.subset!r}{media}, {what})"


def _default(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} can't be an attribute value; use JSON-like values")


def dump_json(value: dict[str, Any]) -> str | None:
    """The text that the JSON columns hold; None for an empty dict."""
    if not value:
        return None
    text = json.dumps(value, default=_default, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can say ("\ud800") and UTF-8 can't
            return json.dumps(value, default=_default, separators=(",", ":"))
    return text


def load_json(text: str | None) -> dict[str, Any]:
    """The inverse of dump_json."""
    return json.loads(text) if text else {}


def annotation_to_row(ann: Annotation) -> dict[str, Any]:
    """An annotation as a dict of the columns of ANNOTATION_TYPE."""
    row: dict[str, Any] = {
        "type": int(ann.type),
        "id": ann.id,
        "group": ann.group,
        "label": ann.label,
        "z_order": ann.z_order,
        "attributes": dump_json(ann.attributes),
        "extra": dump_json(ann.extra),
    }
    if isinstance(ann, anns.Bbox):
        row["points"] = [ann.x, ann.y, ann.w, ann.h]
    elif isinstance(ann, anns.RotatedBbox):
        row["points"] = [ann.cx, ann.cy, ann.w, ann.h, ann.r]
    elif isinstance(ann, anns.Ellipse):
        row["points"] = [ann.x1, ann.y1, ann.x2, ann.y2]
    elif isinstance(ann, anns.Cuboid3d):
        row["points"] = [*ann.position, *ann.rotation, *ann.scale]
    elif isinstance(ann, anns.Points):
        row["points"], row["visibility"] = ann.points, ann.visibility
    elif isinstance(ann, (anns.Polygon, anns.PolyLine)):
        row["points"] = ann.points
    elif isinstance(ann, anns.Mask):
        h, w = ann.rle["size"]
        row["mask"] = {"height": h, "width": w, "counts": ann.rle["counts"]}
    elif isinstance(ann, anns.Caption):
        row["text"] = ann.caption
    return row


def annotation_from_row(row: dict[str, Any]) -> Annotation:
    """The inverse of annotation_to_row."""
    kind = TYPES(row["type"])
    base: dict[str, Any] = {
        "label": row["label"],
        "id": row["id"] or 0,
        "group": row["group"] or 0,
        "z_order": row["z_order"] or 0,
        "attributes": load_json(row["attributes"]),
        "extra": load_json(row["extra"]),
    }
    points = row["points"] or []
    if kind == TYPES.mask:
        m = row["mask"]
        return anns.Mask(rle={"size": [m["height"], m["width"]], "counts": m["counts"]}, **base)
    if kind == TYPES.caption:
        return anns.Caption(row["text"] or "", **base)
    if kind == TYPES.cuboid_3d:
        return anns.Cuboid3d(points[:3], points[3:6], points[6:9], **base)
    if kind == TYPES.points:
        return anns.Points(points, row["visibility"] or [], **base)
    if kind in (TYPES.polygon, TYPES.polyline):
        return anns.CLASSES[kind](points, **base)  # type: ignore[call-arg, arg-type]
    return anns.CLASSES[kind](*points, **base)


def to_table(items: Sequence[DatasetItem]) -> pa.Table:
    """An item table of the items, in order."""
    rows = [
        {
            "id": item.id,
            "subset": item.subset,
            "media": item.media.to_row() if item.media is not None else None,
            "attributes": dump_json(item.attributes),
            "annotations": [annotation_to_row(a) for a in item.annotations],
            "extra": dump_json(item.extra),
        }
        for item in items
    ]
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def from_row(row: dict[str, Any]) -> DatasetItem:
    """The item of one row of an item table."""
    return DatasetItem(
        row["id"],
        subset=row["subset"],
        media=Media.from_row(row["media"]) if row["media"] else None,
        annotations=[annotation_from_row(a) for a in row["annotations"] or ()],
        attributes=load_json(row["attributes"]),
        extra=load_json(row["extra"]),
    )


def from_table(table: pa.Table, batch: int = 256) -> Iterator[DatasetItem]:
    """The items of an item table, made a few at a time."""
    for part in table.to_batches(max_chunksize=batch):
        for row in part.to_pylist():
            yield from_row(row)
