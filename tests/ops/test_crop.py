"""crop: every type of annotation cut at the window, concave shapes into parts, pixels when they are saved."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_data import H, W, changed, numbers, of, one_of_each, pixels, single, square_mask

import rayds
from rayds.annotations import decode_rle
from rayds.errors import DataError, UsageError
from rayds.geometry import polygons_to_rle
from rayds.item import annotation_to_row
from rayds.media import encode
from rayds.ops._clipping import area, clip_line, clip_polygon

WINDOW = {"x": 20, "y": 10, "width": 40, "height": 30}
C = [30, 12, 70, 12, 70, 18, 36, 18, 36, 28, 70, 28, 70, 34, 30, 34]  # a letter C, open to the right

SHAPES = {
    "box inside": (rayds.Bbox(22, 12, 5, 6), [[2, 2, 5, 6]]),
    "box over the border": (rayds.Bbox(10, 5, 15, 10), [[0, 0, 5, 5]]),
    "box around": (rayds.Bbox(0, 0, 80, 60), [[0, 0, 40, 30]]),
    "box that touches": (rayds.Bbox(10, 10, 10, 10), []),
    "box outside": (rayds.Bbox(70, 50, 5, 5), []),
    "box of no width": (rayds.Bbox(25, 15, 0, 5), [[5, 5, 0, 5]]),
    "polygon": (rayds.Polygon([10, 20, 30, 20, 30, 50, 10, 50]), [[0, 30, 0, 10, 10, 10, 10, 30]]),
    "polygon outside": (rayds.Polygon([0, 0, 70, 0, 70, 9]), []),
    "polygon past a corner": (rayds.Polygon([0, 30, 30, 0, 0, 0]), []),
    "line in two parts": (
        rayds.PolyLine([50, 20, 70, 20, 70, 30, 50, 30]),
        [[30, 10, 40, 10], [40, 20, 30, 20]],
    ),
    "line outside": (rayds.PolyLine([0, 0, 80, 5]), []),
    "points": (rayds.Points([25, 15, 70, 15, 0, 0], [2, 1, 0]), [[5, 5, 0, 0, 0, 0]]),
    "points outside": (rayds.Points([70, 15, 0, 0], [2, 0]), []),
    "ellipse over the border": (rayds.Ellipse(10, 15, 30, 25), [[-10, 5, 10, 15]]),
    "ellipse whose box only is inside": (rayds.Ellipse(-20, -20, 21, 11), []),
    "rotated box": (rayds.RotatedBbox(20, 20, 8, 4, 45), [[0, 10, 8, 4, 45]]),
    "rotated box outside": (rayds.RotatedBbox(17, 7, 6, 2, 45), []),
    "cuboid": (rayds.Cuboid3d([1, 2, 3], [0, 0, 0], [4, 5, 6]), [[1, 2, 3, 0, 0, 0, 4, 5, 6]]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_cut_at_the_window(name: str) -> None:
    shape, want = SHAPES[name]
    made = changed([shape.wrap(id=3, group=4, attributes={"a": 1})], "crop", **WINDOW)
    assert len(made) == len(want)
    for a, numbers_wanted in zip(made, want, strict=True):
        got = numbers(a)
        if name.startswith("polygon"):  # where a ring begins is nobody's business
            got, numbers_wanted = (
                np.ravel(sorted(np.reshape(v, (-1, 2)).tolist())) for v in (got, numbers_wanted)
            )
        assert got == pytest.approx(numbers_wanted)
        assert (a.id, a.group, a.attributes, a.type) == (3, 4, {"a": 1}, shape.type)


def test_points_outside_become_absent() -> None:
    [made] = changed([rayds.Points([25, 15, 70, 15, 30, 20], [2, 1, 1])], "crop", **WINDOW)
    assert made.visibility == [2, 0, 1]


def test_masks_are_sliced() -> None:
    masks = [rayds.Mask(square_mask(0, 0, 30, 30)), rayds.Mask(square_mask(0, 0, 20, 60))]
    [made] = changed(masks, "crop", **WINDOW)
    assert np.array_equal(made.image, square_mask(0, 0, 10, 20, 30, 40))


def test_a_concave_polygon_falls_into_parts_of_one_object() -> None:
    before = [rayds.Polygon(C, label=1, id=7), rayds.Bbox(50, 10, 4, 4, group=5)]
    made = changed(before, "crop", x=40, y=0, width=40, height=60)
    assert [a.type.name for a in made] == ["polygon", "polygon", "bbox"]
    assert [a.get_bbox() for a in made] == [(0, 12, 30, 6), (0, 28, 30, 6), (10, 10, 4, 4)]
    assert [a.id for a in made] == [7, 7, 0]
    assert [a.group for a in made] == [6, 6, 5]  # one object still
    whole = changed(before[:1], "crop", x=0, y=0, width=72, height=60)
    assert whole[0].group == 0
    assert whole[0].points == C


def test_boxes_go_with_the_shapes_of_their_object() -> None:
    one = {"id": 7, "group": 7, "label": 1}
    before = [
        rayds.Bbox(30, 12, 40, 22, attributes={"x": 1}, **one),
        rayds.Polygon(C, **one),
        rayds.Points([32, 14, 69, 15], [2, 2], **one),
    ]
    assert (
        changed(before, "crop", x=40, y=19, width=40, height=8) == []
    )  # the opening of the C: nothing of it
    made = changed(before, "crop", x=60, y=20, width=20, height=20)
    assert [a.type.name for a in made] == ["bbox", "polygon", "points"]
    assert made[2].visibility == [0, 0]  # none of them is in the part, yet the object is
    assert made[0].attributes == {"x": 1}


def test_what_is_outside_is_counted(tmp_path: Path) -> None:
    made = single([rayds.Bbox(70, 50, 5, 5), rayds.Bbox(22, 12, 2, 2), rayds.Points([1, 1])]).transform(
        "crop", **WINDOW
    )
    report = made.export(str(tmp_path / "out"), "rayds")
    assert report.notes == {"annotations outside of the window": (2, "item 'a'")}
    [item] = rayds.Dataset.import_from(str(tmp_path / "out"))
    assert item.extra == {}


def test_nothing_else_changes() -> None:
    before = one_of_each()
    [item] = single(before, attributes={"scene": 3}).transform("crop", x=6, y=6, width=70, height=50)
    assert (item.id, item.attributes, item.media.size) == ("a", {"scene": 3}, (50, 70))
    assert item.media.edits == [{"crop": [6, 6, 70, 50]}]
    kept = ("type", "id", "group", "label", "z_order", "text", "attributes")
    for a, b in zip(before, item.annotations, strict=True):
        assert {k: annotation_to_row(a).get(k) for k in kept} == {
            k: annotation_to_row(b).get(k) for k in kept
        }


@pytest.mark.parametrize(
    "window", [{"width": W, "height": H}, {"x": -5, "y": -9, "width": 500, "height": 500}]
)
def test_the_whole_image_is_the_identity(window: dict) -> None:
    before = [a.wrap(extra={"coco": {"area": 1.0}}) for a in one_of_each()]
    [item] = single(before).transform("crop", **window)
    assert item.annotations == before
    assert item.media.edits == []


def test_a_window_is_cut_at_the_border_of_the_image() -> None:
    [item] = single([rayds.Bbox(70, 50, 20, 20)]).transform("crop", x=60, y=-10, width=100, height=65)
    assert item.media.size == (55, 20)
    assert numbers(item.annotations[0]) == [10, 50, 10, 5]


def test_a_window_outside_of_the_image_is_an_item_error(engine, tmp_path: Path) -> None:
    items = [
        rayds.DatasetItem(n, image=rayds.Image(f"/nowhere/{n}.jpg", size=size))
        for n, size in (("large", (100, 100)), ("small", (10, 10)), ("other", (60, 60)))
    ]
    with pytest.raises(
        DataError, match=r"item 'small': the window 50, 50, 5, 5 lies outside.*10x10.*another window"
    ):
        list(of(items, engine).transform("crop", x=50, y=50, width=5, height=5))
    made = of(items, engine)
    made._on_error = rayds.errors.OnError.SKIP
    report = made.transform("crop", x=50, y=50, width=5, height=5).export(str(tmp_path / "out"), "rayds")
    assert [e["item"] for e in report.errors] == ["small"]
    assert report.items == 2


def test_what_the_source_said_of_the_area_goes_where_something_was_cut() -> None:
    told = {"coco": {"area": 16.0, "num_keypoints": 2, "license": 1}}
    inside, cut_one = rayds.Bbox(22, 12, 4, 4, extra=told), rayds.Bbox(18, 12, 4, 4, extra=told)
    made = changed([inside, cut_one], "crop", **WINDOW)
    assert made[0].extra == told
    assert made[1].extra == {"coco": {"license": 1}}
    # COCO tells it on the first row of an object, though another is cut
    one = {"id": 7, "group": 7}
    both = [rayds.Bbox(22, 12, 4, 4, extra=told, **one), rayds.Polygon([18, 12, 26, 12, 26, 16], **one)]
    assert changed(both, "crop", **WINDOW)[0].extra == {"coco": {"license": 1}}


def test_bad_options_are_told() -> None:
    with pytest.raises(UsageError, match="'width' is required"):
        single([]).transform("crop", height=4)
    with pytest.raises(UsageError, match="1 pixel or more"):
        single([]).transform("crop", width=0, height=4)


def star(seed: int) -> np.ndarray:
    """A random polygon that does not cross itself, mostly concave."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 14))
    angle = (np.arange(n) + rng.uniform(0, 0.9, n)) * 2 * np.pi / n
    radius = rng.uniform(2, 40, n)
    return np.stack([40 + radius * np.cos(angle), 30 + radius * np.sin(angle)], 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 40), st.integers(5, 60), st.integers(5, 60))
def test_parts_of_polygons_are_what_is_in_the_window(seed: int, x: int, y: int, w: int, h: int) -> None:
    ring = star(seed)
    parts = clip_polygon(ring, (x, y, x + w, y + h))
    for part in parts:
        assert (part >= [x, y]).all()
        assert (part <= [x + w, y + h]).all()
    # drawn at 8 times the size, the parts cover what the whole covers there (but for the pixels of outlines)
    scale = 8
    whole = decode_rle(
        polygons_to_rle([(np.maximum(ring, 0) * scale).ravel().tolist()], 110 * scale, 130 * scale)
    )
    inside = whole[y * scale : (y + h) * scale, x * scale : (x + w) * scale].sum() / scale**2
    if (ring >= 0).all():
        assert sum(abs(area(p)) for p in parts) == pytest.approx(inside, abs=0.2 * len(ring) * 8)
    rest = [
        (0, 0, x, 200),
        (x + w, 0, 200, 200),
        (x, 0, x + w, y),
        (x, y + h, x + w, 200),
        (-99, -99, 200, 0),
        (-99, 0, 0, 200),
    ]
    others = sum(abs(area(p)) for r in rest if r[0] < r[2] and r[1] < r[3] for p in clip_polygon(ring, r))
    assert sum(abs(area(p)) for p in parts) + others == pytest.approx(abs(area(ring)), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=8), st.integers(1, 19)
)
def test_parts_of_lines_are_as_long_as_the_line(points: list, x: int) -> None:
    line = np.array(points, float)
    left, right = clip_line(line, (0, 0, x, 20)), clip_line(line, (x, 0, 20, 20))

    def total(lines):
        return sum(float(np.hypot(*np.diff(p, axis=0).T).sum()) for p in lines)

    along = sum(abs(b[1] - a[1]) for a, b in itertools.pairwise(points) if a[0] == b[0] == x)  # in both
    assert total(left) + total(right) - along == pytest.approx(total([line]))


def test_saved_pixels_are_cropped(tmp_path: Path, engine) -> None:
    (tmp_path / "a.png").write_bytes(encode(pixels(), ".png"))
    made = of(
        [rayds.DatasetItem("a", [rayds.Bbox(22, 12, 4, 4, label=0)], image=str(tmp_path / "a.png"))], engine
    )
    made.transform("crop", **WINDOW).export(str(tmp_path / "out"), "coco", save_media=True)
    [item] = rayds.Dataset.import_from(str(tmp_path / "out"))
    assert np.array_equal(item.media.pixels, pixels()[10:40, 20:60])
    assert numbers(item.annotations[0]) == [2, 2, 4, 4]
    assert item.media.size == (30, 40)
