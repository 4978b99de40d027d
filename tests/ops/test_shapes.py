"""Shapes, boxes, polygons and masks into each other: answers computed by hand, and what must not change."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rayds as dm
from rayds.errors import DataError, OnError
from rayds.geometry import mask_outlines, polygons_to_rle

TELLING = {"id": 5, "group": 2, "attributes": {"a": "b"}, "z_order": 3, "label": 1}
DUMMY = [0, 0, 1, 0, 1, 1]


def one(engine: Any, *annotations: dm.Annotation, size: tuple[int, int] | None = (20, 30)) -> dm.Dataset:
    media = dm.Image(path="missing.jpg", size=size)
    items = [
        dm.DatasetItem("empty", media=media),
        dm.DatasetItem("a", list(annotations), media=media),
        dm.DatasetItem("other", [dm.Label(0), dm.Caption("text")], media=media),
    ]
    return dm.Dataset.from_iterable(items, ["x", "y"], engine=engine)


def after(dataset: dm.Dataset, name: str, **options: Any) -> list[dm.Annotation]:
    made = dataset.transform(name, **options)
    items = list(made)
    assert [i.id for i in items] == ["empty", "a", "other"]
    assert items[2].annotations == [dm.Label(0), dm.Caption("text")]
    return items[1].annotations


def mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (20, 30), **more: Any) -> dm.Mask:
    image = np.zeros(size, bool)
    for x, y, w, h in boxes:
        image[y : y + h, x : x + w] = True
    return dm.Mask(image, **more)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        (dm.Polygon([1, 2, 5, 3, 4, 9], **TELLING), (1, 2, 4, 7)),
        (dm.PolyLine([1, 2, 5, 3], **TELLING), (1, 2, 4, 1)),
        (dm.Points([1, 2, 5, 3, 9, 9], [2, 1, 0], **TELLING), (1, 2, 4, 1)),
        (dm.Ellipse(1, 2, 5, 6, **TELLING), (1, 2, 4, 4)),
        (dm.RotatedBbox(10, 10, 4, 2, 90, **TELLING), (9, 8, 2, 4)),
        (mask((3, 4, 5, 6), **TELLING), (3, 4, 5, 6)),
    ],
)
def test_a_shape_becomes_the_box_that_encloses_it(engine: Any, shape: dm.Annotation, box: Any) -> None:
    made = after(one(engine, dm.Label(1, id=9), shape, dm.Caption("c")), "shapes_to_boxes")
    assert made[0] == dm.Label(1, id=9)
    assert made[2] == dm.Caption("c")
    assert made[1].get_bbox() == pytest.approx(box)
    assert made[1] == dm.Bbox(*made[1].get_bbox(), **TELLING)


def test_an_object_becomes_one_box(engine: Any) -> None:
    parts = [dm.Polygon([0, 0, 2, 0, 2, 2], group=1), dm.Polygon([5, 5, 7, 5, 7, 9], group=1)]
    assert after(one(engine, *parts), "shapes_to_boxes") == [dm.Bbox(0, 0, 7, 9, group=1)]
    own = dm.Bbox(1, 1, 9, 9, group=1)
    assert after(one(engine, parts[0], own, parts[1]), "shapes_to_boxes") == [own]
    alone = [dm.Polygon([0, 0, 2, 0, 2, 2]), dm.Polygon([5, 5, 7, 5, 7, 9], label=1, group=1)]
    assert len(after(one(engine, *alone, *parts), "shapes_to_boxes")) == 3


def test_what_encloses_nothing_is_left_out_and_told(engine: Any, tmp_path: Any) -> None:
    dataset = one(engine, mask(), dm.Points([1, 2], [0]), dm.Polygon([0, 0, 2, 0, 2, 2]))
    assert after(dataset, "shapes_to_boxes") == [dm.Bbox(0, 0, 2, 2)]
    report = dataset.transform("shapes_to_boxes").export(str(tmp_path / "out"), "datumaro")
    assert report.notes == {"shapes that enclose nothing, left out": (2, "item 'a'")}
    assert "rayds_lost" not in (tmp_path / "out/annotations/default.json").read_text()


def test_boxes_become_polygons_and_boxes_again(engine: Any) -> None:
    boxes = [dm.Bbox(1, 2, 3, 4, **TELLING), dm.Bbox(0.5, 0.25, 10, 10)]
    dataset = one(engine, *boxes)
    made = after(dataset, "boxes_to_polygons")
    assert made[0] == dm.Polygon([1, 2, 4, 2, 4, 6, 1, 6], **TELLING)
    assert after(dataset.transform("boxes_to_polygons"), "shapes_to_boxes") == boxes
    turned = after(one(engine, dm.RotatedBbox(10, 10, 4, 2, 30, **TELLING)), "boxes_to_polygons")
    assert turned[0].points == pytest.approx(dm.RotatedBbox(10, 10, 4, 2, 30).corners())


def test_boxes_are_moved_in_their_place(engine: Any) -> None:
    made = after(one(engine, dm.Bbox(3, 4, 5, 6, **TELLING), dm.Label(0)), "bbox_values_decrement")
    assert made == [dm.Bbox(2, 3, 5, 6, **TELLING), dm.Label(0)]


def test_boxes_and_polygons_become_masks(engine: Any) -> None:
    made = after(
        one(engine, dm.Bbox(3, 4, 5, 6, **TELLING), dm.Polygon([0, 0, 9, 0, 9, 9])), "boxes_to_masks"
    )
    assert made[0] == mask((3, 4, 5, 6), **TELLING)
    assert made[1] == dm.Polygon([0, 0, 9, 0, 9, 9])
    polygon = [1.0, 1.0, 12.5, 2.0, 9.0, 15.0]
    made = after(one(engine, dm.Polygon(polygon, **TELLING), dm.Bbox(0, 0, 1, 1)), "polygons_to_masks")
    assert made == [dm.Mask(rle=polygons_to_rle([polygon], 20, 30), **TELLING), dm.Bbox(0, 0, 1, 1)]
    ellipse = after(one(engine, dm.Ellipse(5, 5, 15, 15)), "polygons_to_masks")[0]
    assert ellipse.get_area() == pytest.approx(np.pi * 25, rel=0.05)


def test_masks_need_the_size_of_the_image(engine: Any) -> None:
    dataset = one(engine, dm.Bbox(3, 4, 5, 6), size=None)
    with pytest.raises(DataError, match="'a'"):
        list(dataset.transform("boxes_to_masks"))
    items = [dm.DatasetItem("b", [dm.Bbox(0, 0, 1, 1)], media=dm.Image(path="x.jpg", size=(5, 5)))]
    both = dm.Dataset.from_arrow(
        [dataset.to_arrow(), dm.Dataset.from_iterable(items, engine="local").to_arrow()], ["x"], engine=engine
    )
    both._on_error = OnError.SKIP
    assert [i.id for i in both.transform("boxes_to_masks")] == ["empty", "other", "b"]


def test_masks_become_polygons_that_draw_them_again(engine: Any) -> None:
    made = after(one(engine, mask((2, 3, 8, 9), (15, 3, 6, 6), **TELLING), dm.Label(1)), "masks_to_polygons")
    assert [type(a) for a in made] == [dm.Polygon, dm.Polygon, dm.Label]
    assert all(a.wrap(points=DUMMY) == dm.Polygon(DUMMY, **TELLING) for a in made[:2])
    assert sorted(a.get_bbox() for a in made[:2]) == [(2, 3, 7, 8), (15, 3, 5, 5)]


def test_holes_stay_holes_or_are_told(engine: Any, tmp_path: Any) -> None:
    import cv2

    image = np.zeros((20, 30), bool)
    image[2:18, 2:28] = True
    image[5:9, 5:10] = image[12:15, 15:20] = False
    dataset = one(engine, dm.Mask(image))
    (polygon,) = after(dataset, "masks_to_polygons")
    canvas = np.zeros(image.shape, np.uint8)
    cv2.fillPoly(canvas, [np.array(polygon.points, np.int32).reshape(-1, 2)], 1)
    assert (canvas == image).all()
    # along the centres of the pixels around each hole, but for its corners
    assert polygon.get_area() == pytest.approx(25 * 15 - (6 * 5 - 2) - (6 * 4 - 2))
    report = dataset.transform("masks_to_polygons", holes="fill").export(str(tmp_path / "o"), "datumaro")
    assert report.notes == {"holes in masks, filled": (2, "item 'a'")}


def test_parts_too_small_are_told(engine: Any, tmp_path: Any) -> None:
    dataset = one(engine, mask((1, 1, 1, 1), (5, 5, 6, 6)), mask((1, 1, 1, 1)))
    assert len(after(dataset, "masks_to_polygons")) == 1
    report = dataset.transform("masks_to_polygons").export(str(tmp_path / "o"), "datumaro")
    assert report.notes == {"parts of masks too small for a polygon, left out": (2, "item 'a'")}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_outlines_draw_the_mask_that_they_are_of(seed: int, blobs: int) -> None:
    import cv2

    chance = np.random.default_rng(seed)
    image = np.zeros((40, 50), np.uint8)
    for k in range(blobs):
        x, y = chance.integers(5, 45), chance.integers(5, 35)
        cv2.circle(image, (int(x), int(y)), int(chance.integers(2, 12)), int(k % 3 != 2), -1)
    found = mask_outlines(image.astype(bool), min_area=0)
    canvas = np.zeros(image.shape, np.uint8)
    for polygon in found.polygons:
        part = np.zeros(image.shape, np.uint8)
        cv2.fillPoly(part, [np.array(polygon, np.int32).reshape(-1, 2)], 1)
        canvas |= part
    left = cv2.findContours((image & ~canvas).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    assert len(left) <= found.small
    assert not (canvas & (1 - image)).any()


def test_a_segment_above_cuts_a_hole(engine: Any) -> None:
    low, high = mask((0, 0, 20, 20), z_order=0, label=0), mask((5, 5, 4, 4), z_order=1, label=1)
    made = after(one(engine, high, dm.Label(1), low), "crop_covered_segments")
    assert made[:2] == [high, dm.Label(1)]
    assert made[2].get_area() == 400 - 16
    assert not made[2].image[5:9, 5:9].any()


def test_what_is_covered_wholly_is_left_out_and_told(engine: Any, tmp_path: Any) -> None:
    dataset = one(engine, mask((5, 5, 4, 4)), mask((0, 0, 20, 20)))
    assert after(dataset, "crop_covered_segments") == [mask((0, 0, 20, 20))]
    report = dataset.transform("crop_covered_segments").export(str(tmp_path / "o"), "datumaro")
    assert report.notes == {"segments wholly covered by others, left out": (1, "item 'a'")}


def test_polygons_are_cut_in_parts_that_keep_what_they_are(engine: Any) -> None:
    bar = dm.Polygon([0, 8, 30, 8, 30, 12, 0, 12], **TELLING)
    above = dm.Polygon([10, 0, 20, 0, 20, 20, 10, 20], z_order=9)
    apart = dm.Polygon([0, 0, 3.25, 0, 3.25, 3], z_order=1)
    made = after(one(engine, bar, above, apart), "crop_covered_segments")
    assert made[2:] == [above, apart]
    assert [a.wrap(points=DUMMY) for a in made[:2]] == [dm.Polygon(DUMMY, **TELLING)] * 2
    assert sorted(a.get_bbox()[0] for a in made[:2]) == [0, 20]


def test_parts_of_one_group_do_not_cut_each_other(engine: Any) -> None:
    parts = [mask((0, 0, 9, 9), group=1), mask((5, 5, 9, 9), group=1)]
    assert after(one(engine, *parts), "crop_covered_segments") == parts


def test_masks_of_a_group_become_one(engine: Any) -> None:
    small, large = mask((0, 0, 2, 2), group=1, label=0, id=1), mask((5, 5, 9, 9), group=1, label=1, id=2)
    polygon = dm.Polygon([20, 0, 25, 0, 25, 5, 20, 5], group=1)
    alone = mask((1, 1, 3, 3))
    dataset = one(engine, small, alone, large, polygon)
    assert after(dataset, "merge_instance_segments") == [
        alone, mask((0, 0, 2, 2), (5, 5, 9, 9), group=1, label=1, id=2), polygon
    ]  # fmt: skip
    made = after(dataset, "merge_instance_segments", include_polygons=True)
    assert [a.get_area() for a in made] == [9, 4 + 81 + 25]


def test_a_broken_mask_is_a_bad_item(engine: Any) -> None:
    broken = dm.Mask(rle={"size": [20, 30], "counts": "zz"})
    for name in ("shapes_to_boxes", "masks_to_polygons", "crop_covered_segments"):
        with pytest.raises(DataError, match="'a'.*broken|broken.*'a'"):
            list(one(engine, broken).transform(name))


def test_what_is_true_no_more_goes(engine: Any) -> None:
    extra = {"coco": {"area": 12.5, "own": 1}}
    made = after(one(engine, dm.Polygon([0, 0, 9, 0, 9, 9], extra=extra)), "polygons_to_masks")
    assert made[0].extra == {"coco": {"own": 1}}
    assert json.dumps(extra) == '{"coco": {"area": 12.5, "own": 1}}'


@pytest.mark.parametrize("name", ["polygons_to_masks", "crop_covered_segments"])
def test_a_polygon_with_a_coordinate_that_is_no_number_is_a_bad_item(engine: Any, name: str) -> None:
    dataset = one(engine, dm.Polygon([0, 0, float("nan"), 0, 5, 5]), dm.Polygon(DUMMY))
    with pytest.raises(DataError, match="no finite number") as found:
        list(dataset.transform(name))
    assert found.value.item == "a"
