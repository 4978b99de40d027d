"""resize: every type of annotation by hand-computed numbers, there and back, pixels when they are saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_data import H, W, changed, numbers, of, one_of_each, pixels, single, square_mask

import rayds
from rayds.errors import DataError, UsageError
from rayds.item import annotation_to_row
from rayds.media import encode
from rayds.ops.resize import resized_mask, scaled_rotated

SHAPES = {
    "bbox": (rayds.Bbox(10, 20, 30, 16), [20, 10, 60, 8]),
    "polygon": (rayds.Polygon([8, 8, 40, 8, 40, 40]), [16, 4, 80, 4, 80, 20]),
    "polyline": (rayds.PolyLine([4, 4, 60, 4, 60, 50]), [8, 2, 120, 2, 120, 25]),
    "points": (rayds.Points([5, 6, 0, 0], [2, 0]), [10, 3, 0, 0]),
    "ellipse": (rayds.Ellipse(20, 10, 44, 30), [40, 5, 88, 15]),
    "upright": (rayds.RotatedBbox(30, 30, 20, 10, 0), [60, 15, 40, 5, 0]),
    "on its side": (rayds.RotatedBbox(30, 30, 20, 10, 90), [60, 15, 10, 20, 90]),
    "upside down": (rayds.RotatedBbox(30, 30, 20, 10, -180), [60, 15, 40, 5, -180]),
    "cuboid": (rayds.Cuboid3d([1, 2, 3], [0, 0, 1], [4, 5, 6]), [1, 2, 3, 0, 0, 1, 4, 5, 6]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_scale_with_the_image(name: str) -> None:
    shape, want = SHAPES[name]
    [made] = changed([shape], "resize", width=2 * W, height=H // 2)
    assert numbers(made) == pytest.approx(want)


def test_masks_keep_the_pixels_under_the_centres() -> None:
    [mask] = changed([rayds.Mask(square_mask(8, 12, 48, 40))], "resize", width=2 * W, height=H // 2)
    assert np.array_equal(mask.image, square_mask(16, 6, 96, 20, H // 2, 2 * W))
    line = np.array([[0, 1, 0, 1, 1, 1]], bool)
    assert resized_mask(line, 1, 3).tolist() == [[True, True, True]]
    assert resized_mask(line, 2, 4).tolist() == [[False, False, True, True]] * 2
    assert resized_mask(line, 1, 2).tolist() == [[True, True]]


def test_nothing_else_changes() -> None:
    before = one_of_each()
    [item] = single(before, attributes={"scene": 3}).transform("resize", width=120, height=20)
    assert (item.id, item.attributes, item.media.size) == ("a", {"scene": 3}, (20, 120))
    assert item.media.edits == [{"resize": [120, 20]}]
    assert item.media.path == "/nowhere/a.jpg"
    kept = ("type", "id", "group", "label", "z_order", "text", "attributes", "visibility")
    for a, b in zip(before, item.annotations, strict=True):
        assert {k: annotation_to_row(a).get(k) for k in kept} == {
            k: annotation_to_row(b).get(k) for k in kept
        }


def test_one_side_alone_keeps_the_shape() -> None:
    [item] = single([], (100, 150)).transform("resize", width=75)
    assert item.media.size == (50, 75)
    [item] = single([], (100, 150)).transform("resize", height=33)
    assert item.media.size == (33, 50)  # 49.5
    [item] = single([], (2, 3000)).transform("resize", width=10)
    assert item.media.size == (1, 10)


def test_what_the_source_said_of_the_area_goes() -> None:
    extra = {"coco": {"area": 3.5, "license": 2}, "other": {"area": 1}}
    boxes = [rayds.Bbox(1, 2, 3, 4, extra=extra), rayds.Bbox(1, 2, 3, 4, extra={"coco": {"area": 12.0}})]
    made = changed(boxes, "resize", width=8)
    assert made[0].extra == {"coco": {"license": 2}, "other": {"area": 1}}
    assert made[1].extra == {}
    assert changed(boxes, "resize", width=W) == boxes  # the size that it has: nothing is done
    [item] = single(boxes).transform("resize", width=W, height=H)
    assert item.media.edits == []


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.lists(st.floats(0, 60), min_size=6, max_size=6), st.integers(-4, 4))
def test_larger_and_back_is_the_identity(k: int, at: list[float], turn: int) -> None:
    before = [
        rayds.Bbox(*at[:4]),
        rayds.Polygon(at),
        rayds.Ellipse(*at[:4]),
        rayds.RotatedBbox(*at[:4], turn * 90),
        rayds.Mask(square_mask(int(at[0]), int(at[1]), W, H)),
    ]
    made = (
        single(before)
        .transform("resize", width=k * W, height=(k + 1) * H)
        .transform("resize", width=W, height=H)
    )
    [item] = made
    assert item.media.size == (H, W)
    for a, b in zip(before[:-1], item.annotations[:-1], strict=True):
        assert numbers(b) == pytest.approx(numbers(a), abs=1e-9)
    assert np.array_equal(item.annotations[-1].image, before[-1].image)


@settings(max_examples=50, deadline=None)
@given(st.floats(-360, 360), st.floats(0.1, 8), st.floats(0.1, 8), st.floats(1, 50), st.floats(1, 50))
def test_rotated_boxes_keep_centre_area_and_direction(
    r: float, sx: float, sy: float, w: float, h: float
) -> None:
    [[cx, cy, width, height, turned]] = scaled_rotated(
        np.array([[10, 20, w, h, r]]), np.array([sx]), np.array([sy])
    ).tolist()
    assert (cx, cy) == (10 * sx, 20 * sy)
    assert width * height == pytest.approx(w * h * sx * sy)
    assert abs(turned - r) <= 90 + 1e-6
    if sx == sy:
        assert (width, height, turned) == pytest.approx((w * sx, h * sx, r))
    a = np.deg2rad([r, r + 90])
    sides = np.stack([sx * np.cos(a) * [w, h], sy * np.sin(a) * [w, h]])
    longest = int(np.argmax(np.hypot(*sides)))
    if np.hypot(*sides)[longest] > 1.001 * np.hypot(*sides)[1 - longest]:
        t = np.deg2rad(turned + 90 * longest)
        assert np.cos(t) * sides[1, longest] == pytest.approx(np.sin(t) * sides[0, longest], abs=1e-6)


def test_sizes_come_from_the_files_where_they_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(pixels(), ".png"))
    made = of([rayds.DatasetItem("a", [rayds.Bbox(8, 6, 4, 2)], image=str(tmp_path / "a.png"))])
    [item] = made.transform("resize", width=W // 2)
    assert item.media.size == (H // 2, W // 2)
    assert numbers(item.annotations[0]) == [4, 3, 2, 1]


def test_an_unknown_size_is_an_item_error(engine, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(encode(pixels(), ".png")[:12])
    items = [
        rayds.DatasetItem(
            "good", [rayds.Bbox(0, 0, 2, 2)], image=rayds.Image("/nowhere/x.png", size=(10, 20))
        ),
        rayds.DatasetItem("gone", image="/nowhere/gone.png"),
        rayds.DatasetItem("cut", image=str(tmp_path / "cut.png")),
        rayds.DatasetItem("none", [rayds.Bbox(0, 0, 2, 2)]),
        rayds.DatasetItem("text", [rayds.Caption("no image, and nothing that needs its size")]),
        rayds.DatasetItem("cloud", [rayds.Cuboid3d()], point_cloud="/nowhere/a.pcd"),
        rayds.DatasetItem(
            "odd", [rayds.Mask(square_mask(0, 0, 5, 5))], image=rayds.Image("x.png", size=(10, 20))
        ),
    ]
    with pytest.raises(
        DataError, match=r"gone\.png, item 'gone': the size of its image is not known.*Give the images"
    ):
        list(of(items[:2], engine).transform("resize", width=10))
    told = rayds.Dataset.from_arrow(of(items).to_arrow(), ["cat", "dog"], engine=engine)
    told._on_error = rayds.errors.OnError.SKIP
    report = told.transform("resize", width=10).export(str(tmp_path / "out"), "rayds")
    assert [e["item"] for e in report.errors] == ["gone", "cut", "none", "odd"]
    assert "a mask has 80x60 pixels, its image 20x10" in report.errors[3]["reason"]
    back = {i.id: i for i in rayds.Dataset.import_from(str(tmp_path / "out"))}
    assert list(back) == ["good", "text", "cloud"]
    assert back["good"].media.size == (5, 10)
    assert back["cloud"].media == items[5].media


def test_bad_options_are_told() -> None:
    with pytest.raises(UsageError, match="--width, --height or both"):
        single([]).transform("resize")
    with pytest.raises(UsageError, match="0 pixels"):
        single([]).transform("resize", width=0)


def test_saved_pixels_are_resized(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(pixels(), ".png"))
    made = of([rayds.DatasetItem("a", [rayds.Bbox(8, 6, 4, 2, label=0)], image=str(tmp_path / "a.png"))])
    report = made.transform("resize", width=W // 2, height=H // 2).export(
        str(tmp_path / "out"), "coco", save_media=True
    )
    assert not report.losses
    [item] = rayds.Dataset.import_from(str(tmp_path / "out"))
    means = pixels().reshape(H // 2, 2, W // 2, 2, 3).mean((1, 3))
    assert np.abs(item.media.pixels - means).max() <= 0.5
    assert numbers(item.annotations[0]) == [4, 3, 2, 1]
