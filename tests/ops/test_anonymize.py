"""anonymize: areas of labels and boxes are unreadable in what is read and saved; all other pixels are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_data import H, W, of, pixels, square_mask

import rayds
from rayds.annotations import decode_rle
from rayds.edits import apply_edits
from rayds.errors import DataError, OnError, UnknownNameError, UsageError
from rayds.geometry import polygons_to_rle
from rayds.media import decode, encode

PART = square_mask(10, 20, 40, 44)
SHAPES = {
    "bbox": (rayds.Bbox(10, 20, 30, 24), PART),
    "bbox in part": (rayds.Bbox(10.6, 20.2, 29, 23.5), PART),  # pixels that it touches
    "mask": (rayds.Mask(PART), PART),
    "polygon": (rayds.Polygon([10, 20, 40, 20, 40, 44, 10, 44]), PART),
    "upright rotated box": (rayds.RotatedBbox(25, 32, 24, 30, 90), PART),
}


@pytest.fixture
def photo(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encode(pixels(), ".png"))
    return str(tmp_path / "in/a.png")


def hidden(photo: str, annotations: Any, **options: Any) -> tuple[np.ndarray, rayds.DatasetItem]:
    """The pixels, and the item, after anonymize of the label dog."""
    [item] = of([rayds.DatasetItem("a", annotations, image=photo)]).transform(
        "anonymize", **{"label": "dog", **options}
    )
    return item.media.pixels, item


@pytest.mark.parametrize("method", ["blur", "pixelate", "fill"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_area_is_changed_and_nothing_else(photo: str, name: str, method: str) -> None:
    shape, area = SHAPES[name]
    shape = shape.wrap(label=1, id=4, group=5, attributes={"a": 1})
    other = rayds.Bbox(60, 5, 10, 10, label=0)
    made, item = hidden(photo, [shape, other], method=method)
    changed = (made != pixels()).any(2)
    assert not changed[~area].any() or name in ("polygon", "upright rotated box")
    assert not changed[~square_mask(9, 19, 41, 45)].any()  # an outline may take the pixels that it runs along
    assert changed[area].mean() > 0.98
    inside = made[22:42, 12:38].astype(float)
    assert inside.std() < 0.35 * pixels()[22:42, 12:38].std()
    if method == "fill":
        assert (made[area] == 0).all()
    assert item.annotations == [shape, other]
    assert item.media.size == (H, W)


def test_pixelate_leaves_blocks_of_one_color(photo: str) -> None:
    made, _ = hidden(photo, [rayds.Bbox(8, 8, 32, 32, label=1)], method="pixelate", strength=0.5)
    for y in (8, 24):
        for x in (8, 24):
            block = made[y : y + 16, x : x + 16].reshape(-1, 3)
            assert (block == block[0]).all()
            assert np.abs(block[0] - pixels()[y : y + 16, x : x + 16].reshape(-1, 3).mean(0)).max() <= 1


def test_ellipses_lines_and_points(photo: str) -> None:
    y, x = np.mgrid[:H, :W] + 0.5
    disk = ((x - 30) / 20) ** 2 + ((y - 30) / 10) ** 2
    made, _ = hidden(photo, [rayds.Ellipse(10, 20, 50, 40, label=1)], method="fill")
    black = (made == 0).all(2)
    assert black[disk < 0.98].all()
    assert not black[disk > 1.3].any()
    made, _ = hidden(photo, [rayds.PolyLine([10, 10.5, 40, 10.5], label=1)], method="fill", margin=3)
    black = (made == 0).all(2)
    assert black[7:14, 10:40].all()
    assert not black[:6].any()
    assert not black[15:].any()
    made, _ = hidden(photo, [rayds.Points([20.5, 20.5, 60, 50], [2, 0], label=1)], method="fill", margin=2)
    assert (made == 0).all(2)[18:23, 20].all()
    assert not (made == 0).all(2)[45:].any()  # an absent point has no place


def test_a_margin_widens_areas(photo: str) -> None:
    made, _ = hidden(photo, [rayds.Bbox(10, 20, 30, 24, label=1)], method="fill", margin=4)
    assert np.array_equal((made == 0).all(2), square_mask(6, 16, 44, 48))
    made, _ = hidden(photo, [rayds.Mask(PART, label=1)], method="fill", margin=4)
    assert (made == 0).all(2)[16, 25]
    assert not (made == 0).all(2)[15].any()
    made, _ = hidden(photo, [rayds.Bbox(0, 50, 30, 24, label=1)], method="fill", margin=4)  # at the border
    assert np.array_equal((made == 0).all(2), square_mask(0, 46, 34, H))


def test_boxes_of_all_images(photo: str, tmp_path: Path, engine) -> None:
    items = [
        rayds.DatasetItem("a", image=photo),
        rayds.DatasetItem("b", [rayds.Bbox(60, 50, 9, 9, label=1)], image=photo),
    ]
    made = of(items, engine).transform(
        "anonymize", box=("0,0,10,5", (70, 0, 10, 5)), label=("dog",), method="fill"
    )
    made.export(str(tmp_path / "out"), "coco", save_media=True)
    logo = square_mask(0, 0, 10, 5) | square_mask(70, 0, 80, 5)
    back = {i.id: i for i in rayds.Dataset.import_from(str(tmp_path / "out"))}
    assert np.array_equal((back["a"].media.pixels == 0).all(2), logo)
    assert np.array_equal((back["b"].media.pixels == 0).all(2), logo | square_mask(60, 50, 69, 59))
    assert np.array_equal(decode(Path(photo).read_bytes()), pixels())  # the source is as it was


def test_an_image_of_another_size_than_told_is_not_written(photo: str, tmp_path: Path) -> None:
    told = rayds.Image(photo, size=(2 * H, 2 * W))  # the areas would be somewhere else
    made = of([rayds.DatasetItem("a", [rayds.Bbox(20, 20, 20, 20, label=1)], image=told)])
    with pytest.raises(
        DataError, match="item 'a': the image has 80x60 pixels, but the areas.*160x120.*correct it"
    ):
        made.transform("anonymize", label="dog").export(str(tmp_path / "out"), "coco", save_media=True)
    assert not (tmp_path / "out").exists()


def test_edits_of_several_operations(photo: str) -> None:
    made = of([rayds.DatasetItem("a", [rayds.Bbox(20, 20, 20, 20, label=1)], image=photo)])
    made = made.transform("resize", width=W // 2).transform("anonymize", label="dog", method="fill")
    [item] = made.transform("crop", x=5, y=5, width=20, height=20)
    assert [next(iter(s)) for s in item.media.edits] == ["resize", "hide", "crop"]
    assert np.array_equal((item.media.pixels == 0).all(2), square_mask(5, 5, 15, 15, 20, 20))


def test_gray_deep_and_transparent_images() -> None:
    step = {"hide": {"method": "fill", "margin": 0, "regions": [{"bbox": [2, 2, 4, 4]}]}}
    gray = np.full((10, 10), 9000, np.uint16)
    assert (apply_edits(gray, [step]) == 0).sum() == 16
    clear = np.full((10, 10, 4), 99, np.uint8)
    made = apply_edits(clear, [step])
    assert (made[:, :, 3] == 99).all()
    assert (made[:, :, :3] == 0).sum() == 48
    blurred = {"hide": {"method": "blur", "strength": 1, "margin": 0, "regions": [{"bbox": [0, 0, 10, 10]}]}}
    assert (apply_edits(gray, [blurred]) == 9000).all()


def test_items_without_such_areas_are_left_alone() -> None:
    items = [
        rayds.DatasetItem("other", [rayds.Bbox(0, 0, 3, 3, label=0)], image="/nowhere/x.jpg"),
        rayds.DatasetItem("whole", [rayds.Label(1)], image="/nowhere/y.jpg"),
        rayds.DatasetItem("none", [rayds.Bbox(0, 0, 3, 3, label=1)]),
    ]
    assert list(of(items).transform("anonymize", label="dog")) == items


def test_an_image_of_unknown_size_is_an_item_error(tmp_path: Path) -> None:
    made = of(
        [
            rayds.DatasetItem("a", [rayds.Bbox(0, 0, 3, 3, label=1)], image="/nowhere/x.jpg"),
            rayds.DatasetItem("b"),
        ]
    )
    with pytest.raises(DataError, match="item 'a'"):
        list(made.transform("anonymize", label="dog"))
    made._on_error = OnError.SKIP
    report = made.transform("anonymize", label="dog").export(str(tmp_path / "out"), "rayds")
    assert [e["item"] for e in report.errors] == ["a"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "something to hide"),
        ({"box": "1,2,3"}, "--box: '1,2,3' is not"),
        ({"box": "1,2,0,3"}, "--box"),
        ({"label": "dog", "method": "paint"}, "--method"),
        ({"label": "dog", "method": "fill", "strength": 0.5}, "--strength is for blur"),
        ({"label": "dog", "strength": 0}, "--strength"),
        ({"label": "dog", "margin": -1}, "--margin"),
    ],
)
def test_bad_options_are_told(options: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        of([]).transform("anonymize", **options)


def test_a_label_that_is_not_there_is_told() -> None:
    with pytest.raises(UnknownNameError, match="dog"):
        of([]).transform("anonymize", label="dgo")


def test_a_slanted_polygon_is_covered_whole(photo: str) -> None:
    ring = [12.3, 9.1, 60.7, 22.4, 33.2, 51.9]
    made, _ = hidden(photo, [rayds.Polygon(ring, label=1)], method="fill")
    black = (made == 0).all(2)
    assert black[decode_rle(polygons_to_rle([ring], H, W))].all()
    assert black.sum() < 1.15 * decode_rle(polygons_to_rle([ring], H, W)).sum()
