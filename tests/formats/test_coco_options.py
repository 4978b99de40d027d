"""The options of the COCO writer, each by its effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayds.annotations import Bbox, Caption, Label, Mask, Polygon, decode_rle
from rayds.dataset import Dataset
from rayds.errors import DataError
from rayds.item import DatasetItem
from rayds.media import Image

Json = dict[str, Any]
LABELS = ["cat", "dog", "bird"]


def parsed(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def read(path: Path, format: str = "coco") -> list[DatasetItem]:
    return list(Dataset.import_from(str(path), format, engine="local"))


def made(items: list[DatasetItem]) -> Dataset:
    return Dataset.from_iterable(items, LABELS, engine="local")


SQUARE = np.zeros((8, 8), bool)
SQUARE[2:6, 2:6] = True


def shapes() -> Dataset:
    base: Json = {"label": 0}
    rows = [
        Bbox(0, 0, 4, 4, id=1, group=1, **base),
        Polygon([0, 0, 4, 0, 4, 4, 0, 4], id=1, group=1, **base),
        Mask(SQUARE, id=2, group=2, attributes={"is_crowd": True, "colour": "red", "score": 0.5}, **base),
    ]
    image = np.zeros((8, 8, 3), np.uint8)
    item = DatasetItem("x/a", image=image, annotations=rows, attributes={"id": 1, "weather": "rain"})
    return made([item])


def written(tmp_path: Path, format: str = "coco", **options: Any) -> list[Json]:
    shapes().export(str(tmp_path / "d"), format, **options)
    found: list[Json] = parsed(tmp_path / "d/annotations/instances_default.json")["annotations"]
    return found


def test_segmentation_mode_guess(tmp_path: Path) -> None:
    polygon, mask = written(tmp_path)
    assert polygon["segmentation"] == [[0, 0, 4, 0, 4, 4, 0, 4]]
    assert (polygon["bbox"], polygon["area"], polygon["iscrowd"]) == ([0, 0, 4, 4], 16, 0)
    assert mask["segmentation"]["size"] == [8, 8]
    assert (mask["bbox"], mask["area"], mask["iscrowd"]) == ([2, 2, 4, 4], 16, 1)
    assert mask["attributes"] == {"colour": "red"}
    assert mask["score"] == 0.5


def test_segmentation_mode_polygons(tmp_path: Path) -> None:
    polygon, mask = written(tmp_path, segmentation_mode="polygons")
    assert polygon["segmentation"] == [[0, 0, 4, 0, 4, 4, 0, 4]]
    [outline] = mask["segmentation"]
    assert (min(outline), max(outline)) == (2, 5)


@pytest.mark.parametrize("mode", ["mask", "masks"])
def test_segmentation_mode_mask(tmp_path: Path, mode: str) -> None:
    polygon, mask = written(tmp_path, segmentation_mode=mode)
    area = decode_rle(polygon["segmentation"])
    assert area[:4, :4].all()
    assert area.sum() == 16
    assert (decode_rle(mask["segmentation"]) == SQUARE).all()
    assert polygon["iscrowd"] == 0  # a mask is no crowd


def test_crop_covered(tmp_path: Path) -> None:
    _, mask = written(tmp_path, crop_covered=True, segmentation_mode="mask")
    shown = [
        decode_rle(a["segmentation"])
        for a in written(tmp_path / "m", crop_covered=True, segmentation_mode="mask")
    ]
    assert not (shown[0] & shown[1]).any()
    assert (decode_rle(mask["segmentation"]) == SQUARE).all()  # the last one lies on top
    assert shown[0].sum() == 16 - 4


def test_allow_attributes(tmp_path: Path) -> None:
    report = shapes().export(str(tmp_path / "d"), "coco", allow_attributes=False)
    found = parsed(tmp_path / "d/annotations/instances_default.json")
    assert not any("attributes" in a for a in found["annotations"] + found["images"])
    assert found["annotations"][1]["score"] == 0.5
    assert set(report.losses) == {"attribute 'colour'", "item attribute 'weather'"}


def test_media(tmp_path: Path) -> None:
    for options, name in (
        ({"image_ext": ".jpg"}, "images/default/x/a.jpg"),
        ({}, "images/default/x/a.png"),  # pixels in memory are kept without loss
        ({"merge_images": True, "image_ext": "bmp"}, "images/x/a.bmp"),
    ):
        out = tmp_path / name.replace("/", "-")
        shapes().export(str(out), "coco", save_media=True, **options)
        assert (out / name).is_file()
        assert (
            parsed(out / "annotations/instances_default.json")["images"][0]["file_name"]
            == f"x/{Path(name).name}"
        )
        [item] = read(out)
        assert item.image
        assert item.image.path == str(out / name)


def test_save_dataset_meta(tmp_path: Path) -> None:
    shapes().export(str(tmp_path / "d"), "coco", save_dataset_meta=True)
    assert parsed(tmp_path / "d/dataset_meta.json")["labels"][:2] == ["cat", "dog"]


def test_tasks(tmp_path: Path) -> None:
    written(tmp_path, tasks="instances,stuff")
    names = sorted(f.name for f in (tmp_path / "d/annotations").iterdir())
    assert names == ["instances_default.json", "stuff_default.json"]
    report = shapes().export(str(tmp_path / "c"), "coco_captions")
    assert report.losses["polygon annotations"][0] == 1


def test_stuff_labels_captions_image_info(tmp_path: Path) -> None:
    rows = [Mask(SQUARE, label=0, id=1, group=1), Label(2, id=2), Caption("a thing", id=3)]
    item = DatasetItem("a", image=np.zeros((8, 8, 3), np.uint8), annotations=rows, attributes={"id": 1})
    for format, kind in (("coco_stuff", Mask), ("coco_labels", Label), ("coco_captions", Caption)):
        made([item]).export(str(tmp_path / format), format)
        [back] = read(tmp_path / format, format)
        kinds = [Bbox, Mask] if kind is Mask else [kind]  # a segment has a box in COCO
        assert [type(a) for a in back.annotations] == kinds
        assert back.annotations[-1].wrap(extra={}, attributes={}) == next(
            r for r in rows if isinstance(r, kind)
        )
    made([item]).export(str(tmp_path / "info"), "coco_image_info")
    [back] = read(tmp_path / "info", "coco_image_info")
    assert (back.id, back.annotations) == ("a", [])


def test_panoptic_draws_polygons(tmp_path: Path) -> None:
    rows = [
        Polygon([0, 0, 4, 0, 4, 4, 0, 4], label=0, id=3, group=3),
        Mask(SQUARE, label=1, id=300, group=300),
    ]
    item = DatasetItem("a", image=np.zeros((8, 8, 3), np.uint8), annotations=rows, attributes={"id": 1})
    made([item]).export(str(tmp_path / "p"), "coco_panoptic")
    [record] = parsed(tmp_path / "p/annotations/panoptic_default.json")["annotations"]
    assert [(s["id"], s["category_id"], s["area"], s["bbox"]) for s in record["segments_info"]] == [
        (3, 1, 12, [0, 0, 4, 4]),  # what is seen of it
        (300, 2, 16, [2, 2, 4, 4]),
    ]
    [back] = read(tmp_path / "p", "coco_panoptic")
    first, second = (m for m in back.annotations if isinstance(m, Mask))
    assert (second.image == SQUARE).all()
    assert first.image.sum() == 16 - 4  # a pixel has one segment: the later one


def test_unknown_image_sizes_are_told_when_polygons_must_be_drawn(tmp_path: Path) -> None:
    item = DatasetItem("a", annotations=[Polygon([0, 0, 4, 0, 4, 4], label=0)])
    report = made([item]).export(str(tmp_path / "d"), "coco", segmentation_mode="mask")
    assert any("image size" in kind for kind in report.losses)
    [found] = parsed(tmp_path / "d/annotations/instances_default.json")["annotations"]
    assert found["segmentation"] == [[0, 0, 4, 0, 4, 4]]


def test_z_order_is_told_as_lost(tmp_path: Path) -> None:
    report = made([DatasetItem("a", annotations=[Bbox(0, 0, 1, 1, label=0, z_order=2)])]).export(
        str(tmp_path / "d"), "coco"
    )
    assert report.losses["z_order values"][0] == 1


def test_a_panoptic_segment_is_an_object(tmp_path: Path) -> None:
    two = [
        Polygon([0, 0, 2, 0, 2, 2, 0, 2], label=0, id=9, group=9),
        Polygon([4, 4, 6, 4, 6, 6, 4, 6], label=0, id=9, group=9),
    ]
    covered = Polygon([4, 4, 6, 4, 6, 6, 4, 6], label=1, z_order=-1)
    big = Mask(SQUARE & False | np.eye(8, dtype=bool), label=1, id=1 << 30, group=3)
    item = DatasetItem(
        "x/a", image=np.zeros((8, 8, 3), np.uint8), annotations=[*two, covered, big], attributes={"id": 1}
    )
    report = made([item]).export(str(tmp_path / "p"), "coco_panoptic")
    assert report.losses["segments that others cover"] == (1, "item 'x/a'")
    [record] = parsed(tmp_path / "p/annotations/panoptic_default.json")["annotations"]
    assert record["file_name"] == "x/a.png"
    assert [(s["id"], s["category_id"]) for s in record["segments_info"]] == [(9, 1), (2, 2)]
    [back] = read(tmp_path / "p", "coco_panoptic")
    assert [m.image.sum() for m in back.annotations if isinstance(m, Mask)] == [8 - 4, 8]


def test_masks_of_different_sizes_are_no_panoptic_image(tmp_path: Path) -> None:
    masks = [Mask(np.ones((2, 2), bool), label=0), Mask(np.ones((2, 3), bool), label=0)]
    with pytest.raises(DataError, match="item 'a': the masks of one image have different sizes: 2x2, 3x2"):
        made([DatasetItem("a", annotations=masks)]).export(str(tmp_path / "p"), "coco_panoptic")


def test_ids_of_what_is_not_written_do_not_matter(tmp_path: Path) -> None:
    rows = [Bbox(0, 0, 1, 1, label=0), Caption("a thing", id=5)]
    made([DatasetItem("a", annotations=rows, attributes={"id": 7})]).export(
        str(tmp_path / "c"), "coco_captions"
    )
    assert parsed(tmp_path / "c/annotations/captions_default.json")["annotations"] == [
        {"id": 5, "image_id": 7, "caption": "a thing"}
    ]


def test_what_a_task_does_not_hold_is_counted_once(tmp_path: Path) -> None:
    image = Image(path="a.jpg", size=(10, 20))
    item = DatasetItem("a", image=image, annotations=[Bbox(1, 2, 3, 4, label=0, id=1, group=1)])
    report = Dataset.from_iterable([item], ["cat"]).export(str(tmp_path / "out"), "coco_panoptic")
    assert {kind: n for kind, (n, _) in report.losses.items() if "annotations" in kind} == {
        "bbox annotations": 1
    }
