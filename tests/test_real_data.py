"""Real datasets, read, written to every other format, read again: what a format can hold is equal, the rest is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import rayds
from rayds.registry import get_format

DATA = Path(__file__).parents[1].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared real data is not here")

SOURCES = {
    "coco_mini": ("coco_mini", "coco"),
    "coco_panoptic": ("coco_panoptic/sample_data/panoptic_examples.json", "coco_panoptic"),
    "coco_stuff": ("coco_stuff", "coco_stuff"),
    "roboflow": ("roboflow_coco_bloodcells", "roboflow_coco"),
    "bccd": ("bccd_voc/BCCD", "voc"),
    "raccoon": ("raccoon_voc_tfrecord", "voc"),
    "clothing": ("photos_clothing", "image_dir"),
    "skimage": ("photos_skimage", "image_dir"),
}


@dataclass(frozen=True)
class Target:
    """How a format is written; tolerance of coordinates as a part of the image size; what comes back changed."""

    format: str
    options: dict
    tolerance: float = 0.0
    subsets: bool = True


TARGETS = {
    "coco": Target("coco", {}),
    "voc": Target("voc", {}, 1e-12),  # it stores the far corner, not the size
    "yolo": Target("yolo", {}, 1e-9),
    "ultralytics": Target("yolo_ultralytics", {"save_media": True}, 1e-9),
    "ultralytics_segment": Target("yolo_ultralytics", {"task": "segment", "save_media": True}, 1e-9),
    "datumaro": Target("datumaro", {}),
    "rayds": Target("rayds", {}),
    "image_dir": Target("image_dir", {}, subsets=False),
}
NO_PHOTOS = {"coco_stuff"}  # annotations only: nothing that needs the pictures


@cache
def source(name: str) -> rayds.Dataset:
    path, format = SOURCES[name]
    if not (DATA / path).exists():
        pytest.skip(f"{path} is not here")
    made = rayds.Dataset.import_from(str(DATA / path), format)
    return rayds.Dataset.from_arrow(made.to_arrow(), made.categories())


def geometry(ann: rayds.Annotation) -> list[float] | str:
    if isinstance(ann, rayds.Mask):
        return f"{ann.rle['size']} {ann.rle['counts']}"
    if isinstance(ann, rayds.Bbox):
        return [ann.x, ann.y, ann.w, ann.h]
    return list(getattr(ann, "points", [])) or getattr(ann, "caption", "")


def described(
    item: rayds.DatasetItem, labels: list[str], caps: rayds.Capabilities, png_masks: bool
) -> list[tuple]:
    """What the format holds of an item's annotations, as sortable tuples; png_masks have no attributes."""
    out = []
    for ann in item.annotations:
        if ann.type not in caps.annotations or (not caps.unlabeled and ann.label is None):
            continue
        shown = geometry(ann)
        numbers = tuple(shown) if isinstance(shown, list) else ()
        text = "" if isinstance(shown, list) else shown
        name = None if ann.label is None else labels[ann.label]
        told = {k: v for k, v in ann.attributes.items() if v is not False}  # false says no more than nothing
        held = caps.attributes is True and not (png_masks and isinstance(ann, rayds.Mask))
        attributes = tuple(sorted((k, str(v)) for k, v in told.items())) if held else ()
        out.append((ann.type.name, name or "", text, attributes, numbers))
    return sorted(out, key=lambda t: (*t[:4], [round(v, 3) for v in t[4]]))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SOURCES)
def test_what_a_format_holds_comes_back(name: str, target: str, tmp_path: Path) -> None:
    how = TARGETS[target]
    if name in NO_PHOTOS and (how.options.get("save_media") or target == "image_dir"):
        pytest.skip("there are no photos")
    dataset = source(name)
    if target == "image_dir":
        dataset = only_one_of_each(dataset)
    if target in ("yolo", "ultralytics", "ultralytics_segment"):
        dataset = dataset.map_batches(lambda block: block)  # nothing to change: any subset name is held
    fmt = get_format(how.format)
    options = fmt.WriteOptions.make(how.options)
    report = dataset.export(str(tmp_path / "out"), how.format, **how.options)
    back = rayds.Dataset.import_from(str(tmp_path / "out"), how.format)
    caps = fmt.capabilities(options)
    check_report(dataset, report, caps)
    check_items(dataset, back, caps, how, covered="masks that others cover in part" in report.losses)


def only_one_of_each(dataset: rayds.Dataset) -> rayds.Dataset:
    """A flat folder can't hold an id twice: the items of the first subset that has it."""
    seen: set[str] = set()

    def fresh(item: rayds.DatasetItem) -> bool:
        new = item.id not in seen
        seen.add(item.id)
        return new

    items = [item for item in dataset if fresh(item)]
    return rayds.Dataset.from_iterable(items, dataset.categories())


def check_report(dataset: rayds.Dataset, report: rayds.Report, caps: rayds.Capabilities) -> None:
    kinds = Counter(a.type for item in dataset for a in item.annotations)
    for kind, n in kinds.items():
        told = report.losses.get(f"{kind.name} annotations", (0, ""))[0]
        assert told == (0 if kind in caps.annotations else n), f"{kind.name}: {report.losses}"
    assert report.items == len(dataset)
    assert not report.errors


def check_items(
    dataset: rayds.Dataset, back: rayds.Dataset, caps: rayds.Capabilities, how: Target, covered: bool
) -> None:
    def keyed(items: rayds.Dataset) -> dict[tuple[str, str], rayds.DatasetItem]:
        return {(i.id, i.subset if how.subsets else ""): i for i in items}

    ours, theirs = keyed(dataset), keyed(back)
    if how.format == "yolo":  # darknet knows train and valid; default becomes train
        ours = {(i, "train" if s == "default" else s): v for (i, s), v in ours.items()}
    missing, extra = ours.keys() - theirs.keys(), theirs.keys() - ours.keys()
    assert not missing, (
        f"{len(missing)} items are gone, e.g. {sorted(missing)[:3]}; new ones {sorted(extra)[:3]}"
    )
    assert not extra
    names, their_names = dataset.categories().labels.names(), back.categories().labels.names()
    for key, item in ours.items():
        a = described(item, names, caps, how.format == "voc")
        b = described(theirs[key], their_names, caps, how.format == "voc")
        if covered:  # told; the masks' other halves are compared in the other datasets
            a, b = ([(*t[:2], "", *t[3:]) for t in side] for side in (a, b))
        assert [x[:4] for x in a] == [x[:4] for x in b], f"{key}"
        for x, y in zip(a, b, strict=True):
            limit = how.tolerance * max((item.image and item.image.get_size()) or (1, 1))
            np.testing.assert_allclose(x[4], y[4], rtol=0, atol=limit, err_msg=str(key))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco_mini", "coco_stuff", "coco_panoptic", "roboflow", "bccd"])
def test_reading_and_writing_in_its_own_format_loses_nothing(name: str, tmp_path: Path) -> None:
    path, format = SOURCES[name]
    dataset = rayds.Dataset.import_from(str(DATA / path), format)
    report = dataset.export(str(tmp_path / "out"), format)
    back = rayds.Dataset.import_from(str(tmp_path / "out"), format)
    assert report.losses == {}
    ours, theirs = dataset.to_arrow(), back.to_arrow()
    for column in ("id", "subset", "attributes", "annotations", "extra"):
        assert ours.column(column).equals(theirs.column(column)), column
    assert dataset.categories().labels == back.categories().labels
    assert dataset.infos == back.infos
