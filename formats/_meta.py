"""dataset_meta.json: the labels of a dataset and their mask colours, in a form that many formats share.

{"labels": [name, ...], "label_map": {"0": name, ...}, "segmentation_colors": [[r, g, b] or null, ...],
"background_label": "0"}: every key is optional; the keys of label_map are indices into segmentation_colors.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass, field
from typing import Any

from rayds.categories import Categories, LabelCategories, MaskCategories, Rgb
from rayds.errors import DataError
from rayds.listing import Listing
from rayds.schema import AnnotationType
from rayds.storage import Storage

META_FILE = "dataset_meta.json"


@dataclass(frozen=True)
class Meta:
    """names: labels in index order, unique. colors: {index: (r, g, b)} of those that have one."""

    names: list[str]
    colors: dict[int, Rgb] = field(default_factory=dict)
    background: str | None = None

    def categories(self) -> Categories:
        """The label categories, and mask categories when there are colours."""
        made = Categories({AnnotationType.label: LabelCategories.from_iterable(self.names)})
        if self.colors:
            made[AnnotationType.mask] = MaskCategories(dict(self.colors))
        return made


def read_meta(files: Listing, folder: str = "") -> Meta | None:
    """What dataset_meta.json in a folder says; None when there is none. Raises DataError when it is broken."""
    name = posixpath.join(folder, META_FILE)
    if not files.exists(name):
        return None
    path = files.root.path(name)
    try:
        value = json.loads(files.root.read_text(name))
    except json.JSONDecodeError as e:
        raise DataError(f"not valid JSON ({e.msg})", file=path, place=f"line {e.lineno}") from e
    if not isinstance(value, dict):
        raise DataError("expected a JSON object with 'labels' or 'label_map'", file=path)
    try:
        return _parse(value)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as e:
        raise DataError(f"labels or colours are not as expected: {e}", file=path) from e


def _parse(value: dict[str, Any]) -> Meta:
    names = dict.fromkeys(str(n) for n in value.get("labels") or ())
    label_map = {str(k): str(v) for k, v in (value.get("label_map") or {}).items()}
    names.update(dict.fromkeys(label_map.values()))
    if not names:
        raise ValueError("there are no labels in it")
    index = {n: i for i, n in enumerate(names)}
    listed = value.get("segmentation_colors") or []
    keys = label_map or {
        str(i): n for i, n in enumerate(names)
    }  # without a label_map: in the order of the labels
    colors: dict[int, Rgb] = {}
    for key, name in keys.items():
        if key.isdigit() and int(key) < len(listed) and listed[int(key)] is not None:
            r, g, b = (int(c) for c in listed[int(key)])
            if not all(0 <= c <= 255 for c in (r, g, b)):
                raise ValueError(f"{listed[int(key)]} is not a colour")
            colors[index[name]] = (r, g, b)
    background = value.get("background_label")
    return Meta(list(names), colors, label_map.get(str(background)))


def meta_json(categories: Categories) -> bytes:
    """The content of dataset_meta.json for these categories."""
    names = categories.labels.names()
    made: dict[str, Any] = {"labels": names, "label_map": {str(i): n for i, n in enumerate(names)}}
    masks = categories.masks
    if masks is not None and masks.colormap:
        colors = [masks.colormap.get(i) for i in range(len(names))]
        made["segmentation_colors"] = [list(c) if c is not None else None for c in colors]
        if (0, 0, 0) in colors:
            made["background_label"] = str(colors.index((0, 0, 0)))
    return (json.dumps(made, ensure_ascii=False, indent=1) + "\n").encode()


def write_meta(out: Storage, categories: Categories, folder: str = "") -> None:
    """Write dataset_meta.json of these categories into a folder."""
    out.write_bytes(posixpath.join(folder, META_FILE), meta_json(categories))
