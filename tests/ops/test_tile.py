"""tile and merge_tile: grids without gaps, one the inverse of the other, pixels of tiles and of what they are joined to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_data import H, W, numbers, of, one_of_each, pixels, single, square_mask

import rayds
from rayds.errors import DataError, OnError, UsageError
from rayds.media import encode
from rayds.ops.tile import _spans

C = [30, 12, 70, 12, 70, 18, 36, 18, 36, 28, 70, 28, 70, 34, 30, 34]  # a letter C, open to the right


def tiles(annotations: Any, rows: int, columns: int, **options: Any) -> list[rayds.DatasetItem]:
    options = {"overlap": (0, 0), **options}
    return list(single(annotations).transform("tile", grid_size=(rows, columns), **options))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 12), st.floats(0, 0.95))
def test_tiles_cover_the_whole_and_overlap_as_asked(length: int, n: int, overlap: float) -> None:
    n = min(n, length)
    [begin], [end] = _spans(np.array([length]), n, overlap)
    assert (begin[0], end[-1]) == (0, length)
    assert (begin >= 0).all()
    assert (end <= length).all()
    assert (end > begin).all()
    assert (begin[1:] <= end[:-1]).all()  # no gap
    size = length / (n - (n - 1) * overlap)
    assert np.abs(end - begin - size).max() <= 1
    if n > 1:
        assert np.abs(end[:-1] - begin[1:] - size * overlap).max() <= 1
    if overlap == 0:
        assert (begin[1:] == end[:-1]).all()


def test_ids_and_attributes() -> None:
    made = list(single([], attributes={"scene": 3}).transform("tile", grid_size="2,3", overlap="0,0.5"))
    assert [i.id for i in made] == [f"a_tile_{n}" for n in range(6)]
    assert made[4].attributes == {
        "scene": 3, "tile_id": "a", "tile_idx": 4, "roi": [20, 30, 40, 30], "tile_image": [80, 60],
    }  # fmt: skip
    assert made[4].media.edits == [{"crop": [20, 30, 40, 30]}]
    assert made[4].media.size == (30, 40)
    assert {i.subset for i in made} == {"default"}


def test_annotations_are_cut_and_small_parts_left_out() -> None:
    box = rayds.Bbox(
        30, 10, 40, 10, label=1, id=5, group=6, attributes={"x": 1}
    )  # a quarter in the left tile
    left, right = tiles([box], 1, 2)
    assert left.annotations == []
    assert [numbers(a) for a in right.annotations] == [[0, 10, 30, 10]]
    [a] = right.annotations
    assert (a.label, a.id, a.group, a.attributes) == (1, 5, 6, {"x": 1})
    left, right = tiles([box], 1, 2, threshold_drop_ann=0.25)
    assert [numbers(a) for a in left.annotations] == [[30, 10, 10, 10]]
    left, right = tiles([box], 1, 2, threshold_drop_ann=0.76)
    assert left.annotations == right.annotations == []


def test_what_is_in_no_tile_is_counted(tmp_path: Path) -> None:
    before = [rayds.Bbox(30, 25, 20, 10), rayds.Bbox(30, 2, 12, 4)]  # a quarter in each tile; most in one
    made = single(before).transform("tile", grid_size=(2, 2), overlap=(0, 0))
    report = made.export(str(tmp_path / "out"), "rayds")
    assert report.notes == {"annotations with too small a share in every tile": (1, "item 'a_tile_0'")}
    assert report.annotations == {"bbox": 1}


def test_the_share_is_that_of_the_object() -> None:
    one = {"id": 7, "group": 7, "label": 1}
    # of the box 3 parts of 4 are on the right, of the polygon (12 wide bar on the left) only half
    before = [
        rayds.Bbox(30, 10, 40, 20, **one),
        rayds.Polygon([30, 10, 40, 10, 40, 28, 70, 28, 70, 30, 30, 30], **one),
    ]
    left, right = tiles(before, 1, 2, threshold_drop_ann=0.5)
    assert [a.type.name for a in left.annotations] == ["bbox", "polygon"]
    assert right.annotations == []


def test_masks_and_lines_of_tiles() -> None:
    before = [rayds.Mask(square_mask(35, 20, 60, 40)), rayds.PolyLine([10, 10, 30, 10, 50, 10])]
    left, right = tiles(before, 1, 2, threshold_drop_ann=0)
    assert np.array_equal(left.annotations[0].image, square_mask(35, 20, 40, 40, H, 40))
    assert np.array_equal(right.annotations[0].image, square_mask(0, 20, 20, 40, H, 40))
    assert [numbers(i.annotations[1]) for i in (left, right)] == [[10, 10, 30, 10, 40, 10], [0, 10, 10, 10]]


GRIDS = [((2, 2), (0.1, 0.1)), ((3, 4), (0, 0)), ((3, 2), (0.5, 0.3)), ((7, 1), (0, 0.9)), ((1, 1), (0, 0))]


@pytest.mark.parametrize(("grid", "overlap"), GRIDS)
def test_merging_is_the_inverse(grid: tuple, overlap: tuple) -> None:
    before = [
        *one_of_each(),
        rayds.Polygon(C),
        rayds.Bbox(1, 2, 70, 50),
        rayds.Caption("x"),
        rayds.Bbox(1, 2, 70, 50),
    ]
    whole = single(before, attributes={"scene": 3})
    made = whole.transform("tile", grid_size=grid, overlap=overlap, threshold_drop_ann=0)
    [item] = made.transform("merge_tile")
    [was] = whole
    assert item.media == was.media
    assert item.attributes == was.attributes
    assert [a.type for a in item.annotations] == [a.type for a in before]
    for a, b in zip(before, item.annotations, strict=True):
        if isinstance(a, (rayds.Polygon, rayds.PolyLine)):  # where a ring begins is nobody's business
            assert turned(b.points) == turned(a.points)
            b = b.wrap(points=a.points)
        assert b == a


def turned(points: list[float]) -> list[Any]:
    return sorted(np.round(np.reshape(points, (-1, 2)), 6).tolist())


def star(seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 12))
    angle = (np.arange(n) + rng.uniform(0, 0.9, n)) * 2 * np.pi / n
    radius = rng.uniform(2, 28, n)
    return np.stack([40 + radius * np.cos(angle), 30 + radius * np.sin(angle)], 1).ravel().tolist()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(1, 25)] * 4), min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0, 0.1, 0.5]),
)
def test_tile_and_merge_give_everything_back(
    boxes: Any, seed: int, rows: int, columns: int, overlap: float
) -> None:
    before = [rayds.Bbox(2 * x, y, w, h, label=i % 2, id=i) for i, (x, y, w, h) in enumerate(boxes)]
    items = [
        rayds.DatasetItem(f"s/{n}", [*before, rayds.Polygon(star(seed + n))], subset=s, attributes={"n": n},
                          image=rayds.Image(f"/nowhere/{n}.jpg", size=(H, W)))
        for n, s in enumerate(("train", "val"))
    ]  # fmt: skip
    made = of(items).transform(
        "tile", grid_size=(rows, columns), overlap=(overlap, overlap), threshold_drop_ann=0
    )
    back = list(made.transform("merge_tile"))
    assert [(i.id, i.subset, i.attributes, i.media) for i in back] == [
        (i.id, i.subset, i.attributes, i.media) for i in items
    ]
    for was, item in zip(items, back, strict=True):
        assert item.annotations[:-1] == before
        assert item.annotations[-1].get_area() == pytest.approx(was.annotations[-1].get_area())
        assert turned(item.annotations[-1].points) == turned(was.annotations[-1].points)


def several(n: int = 7) -> list[rayds.DatasetItem]:
    return [
        rayds.DatasetItem(
            f"{'zyx'[i % 3]}/{i}",
            [rayds.Bbox(i, 2 * i, 30, 20, label=i % 2), rayds.Mask(square_mask(i, 5, 50, 40))],
            image=rayds.Image(f"/nowhere/{i}.jpg", size=(H, W)),
        )
        for i in range(n)
    ]


def test_items_keep_the_order_of_their_first_tiles(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    items = several()
    plain = rayds.DatasetItem("plain", [rayds.Caption("no image")])
    items.insert(3, plain)
    table = of(items).to_arrow()
    blocks = [table.slice(i, 2) for i in range(0, len(items), 2)]
    made = rayds.Dataset.from_arrow(blocks, ["cat", "dog"], engine=engine)
    made = made.transform("tile", grid_size=(2, 2), threshold_drop_ann=0)
    tiled = made.to_arrow()
    assert tiled.num_rows == 7 * 4 + 1
    assert made.transform("merge_tile").to_arrow().equals(table)
    # also when the tiles of an item are far apart
    mixed = tiled.take(
        np.argsort(
            [json.loads(a or "{}").get("tile_idx", 0) for a in tiled["attributes"].to_pylist()], kind="stable"
        )
    )
    parts = [mixed.slice(i, 5) for i in range(0, mixed.num_rows, 5)]
    back = rayds.Dataset.from_arrow(parts, ["cat", "dog"], engine=engine).transform("merge_tile")
    assert back.to_arrow().equals(table)


def test_bad_items_are_left_out_and_told(engine, tmp_path: Path) -> None:
    items = [*several(2), rayds.DatasetItem("tiny", image=rayds.Image("/nowhere/t.jpg", size=(1, 9)))]
    with pytest.raises(
        DataError, match=r"item 'tiny': an image of 9x1 pixels has no 2 rows and 2 columns.*coarser"
    ):
        list(of(items, engine).transform("tile", grid_size=(2, 2)))
    made = of(items, engine)
    made._on_error = OnError.SKIP
    made = made.transform("tile", grid_size=(2, 2), threshold_drop_ann=0).transform("merge_tile")
    report = made.export(str(tmp_path / "out"), "rayds")
    assert [e["item"] for e in report.errors] == ["tiny"]
    assert list(rayds.Dataset.import_from(str(tmp_path / "out"))) == items[:2]


def test_tiles_of_tiles_are_joined_step_by_step() -> None:
    before = [rayds.Bbox(10, 10, 60, 40, id=1), rayds.Polygon(C, label=1)]
    once = single(before).transform("tile", grid_size=(2, 2), threshold_drop_ann=0)
    twice = once.transform("tile", grid_size=(2, 1), threshold_drop_ann=0)
    assert [i.id for i in twice][:3] == ["a_tile_0_tile_0", "a_tile_0_tile_1", "a_tile_1_tile_0"]
    back = twice.transform("merge_tile")
    for was, item in zip(once, back, strict=True):
        assert (item.id, item.attributes, item.media) == (was.id, was.attributes, was.media)
        assert [a.extra for a in item.annotations] == [a.extra for a in was.annotations]
    [item] = back.transform("merge_tile")
    assert item.annotations[0] == before[0]
    assert turned(item.annotations[1].points) == turned(C)


def test_parts_are_found_by_id_where_a_format_keeps_no_notes(tmp_path: Path) -> None:
    one = {"id": 7, "group": 7, "label": 1}
    before = [
        rayds.Bbox(30, 12, 40, 22, **one),
        rayds.Polygon(C, **one),
        rayds.Bbox(5, 5, 60, 8, id=8, group=8, label=0),
        rayds.Mask(square_mask(3, 3, 70, 50), id=9, group=9, label=0),
    ]
    made = single(before).transform("tile", grid_size=(2, 2), threshold_drop_ann=0)
    stripped = made.map(lambda i: i.wrap(annotations=[a.wrap(extra={}) for a in i.annotations]))
    [item] = stripped.transform("merge_tile")
    assert [a for a in item.annotations if a.type.name != "polygon"] == [before[0], *before[2:]]
    [polygon] = [a for a in item.annotations if a.type.name == "polygon"]
    assert turned(polygon.points) == turned(C)
    assert polygon.group == 7


def test_what_can_not_be_told_apart_stays_apart() -> None:
    # two boxes without ids, and two hands in one group: which parts belong together is not known
    before = [rayds.Bbox(10, 10, 60, 8), rayds.Bbox(10, 30, 4, 4, group=2), rayds.Bbox(20, 30, 4, 4, group=2)]
    made = single(before).transform("tile", grid_size=(1, 2), overlap=(0, 0), threshold_drop_ann=0)
    [item] = made.map(lambda i: i.wrap(annotations=[a.wrap(extra={}) for a in i.annotations])).transform(
        "merge_tile"
    )
    assert [numbers(a) for a in item.annotations] == [
        [10, 10, 30, 8], [10, 30, 4, 4], [20, 30, 4, 4], [40, 10, 30, 8],
    ]  # fmt: skip
    # in an overlap the same box is seen twice
    made = single([rayds.Bbox(36, 10, 6, 8)]).transform("tile", grid_size=(1, 2), overlap=(0, 0.5))
    assert sum(len(i.annotations) for i in made) == 2
    [item] = made.map(lambda i: i.wrap(annotations=[a.wrap(extra={}) for a in i.annotations])).transform(
        "merge_tile"
    )
    assert [numbers(a) for a in item.annotations] == [[36, 10, 6, 8]]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encode(pixels(), ".png"))
    return str(tmp_path / "in/a.png")


def test_saved_tiles_have_their_pixels_and_are_joined_again(photo: str, tmp_path: Path) -> None:
    before = [rayds.Bbox(10, 10, 60, 40, label=1, id=3, group=3)]
    whole = of([rayds.DatasetItem("a", before, image=photo)])
    made = whole.transform("tile", grid_size=(2, 3), overlap=(0.2, 0.1), threshold_drop_ann=0)
    for format in ("rayds", "datumaro"):
        made.export(str(tmp_path / format), format, save_media=True)
        saved = rayds.Dataset.import_from(str(tmp_path / format))
        for item in saved:
            x, y, w, h = item.attributes["roi"]
            assert item.media.edits == []
            assert np.array_equal(item.media.pixels, pixels()[y : y + h, x : x + w])
        [item] = saved.transform("merge_tile")
        assert item.media.size == (H, W)
        assert np.array_equal(item.media.pixels, pixels())
        assert item.annotations == before
        back = saved.transform("merge_tile").transform("resize", width=W // 2)
        back.export(str(tmp_path / f"{format}2"), "rayds", save_media=True)
        [small] = rayds.Dataset.import_from(str(tmp_path / f"{format}2"))
        assert small.media.pixels.shape == (H // 2, W // 2, 3)


def test_tiles_in_memory_are_joined() -> None:
    made = of([rayds.DatasetItem("a", image=pixels())]).transform("tile", grid_size=(2, 2))
    [item] = made.transform("merge_tile")
    assert item.media.edits == []
    assert np.array_equal(item.media.pixels, pixels())
    done = made.map(lambda i: i.wrap(image=i.image.pixels.copy()))
    [item] = done.transform("merge_tile")
    assert np.array_equal(item.media.pixels, pixels())


def test_missing_tiles(photo: str) -> None:
    made = of([rayds.DatasetItem("a", [rayds.Bbox(2, 2, 4, 4)], image=photo)]).transform(
        "tile", grid_size=(2, 2)
    )
    [item] = made.select(lambda i: bool(i.annotations)).transform("merge_tile")
    assert np.array_equal(item.media.pixels, pixels())  # the image is that which was tiled
    done = made.select(lambda i: not i.id.endswith("2")).map(lambda i: i.wrap(image=i.image.pixels.copy()))
    with pytest.raises(DataError, match="item 'a': tiles are missing.*Give all tiles"):
        list(done.transform("merge_tile"))


def test_attributes_that_make_no_tile_leave_an_item_alone() -> None:
    for change in ({"roi": [0, 0, 500, 5]}, {"roi": [0, 0]}, {"tile_idx": "x"}, {"tile_image": None}):
        told = {"tile_id": "a", "tile_idx": 0, "roi": [0, 0, 40, 30], "tile_image": [80, 60], **change}
        before = list(single([rayds.Bbox(1, 1, 2, 2)], (30, 40), attributes=told))
        assert list(of(before).transform("merge_tile")) == before


def test_a_broken_mask_is_told(tmp_path: Path) -> None:
    mask = rayds.Mask(rle={"size": [H, W], "counts": "00"})
    with pytest.raises(DataError, match="item 'a': the run lengths of a mask are broken"):
        list(single([mask]).transform("tile", grid_size=(2, 2)))
    told = {"tile_id": "a", "tile_idx": 0, "roi": [0, 0, W, H], "tile_image": [W, H]}
    with pytest.raises(DataError, match="item 'a': the run lengths of a mask are broken"):
        list(single([mask], attributes=told).transform("merge_tile"))


def test_tiles_that_were_changed(photo: str) -> None:
    made = of([rayds.DatasetItem("a", [rayds.Bbox(2, 2, 4, 4, label=1)], image=photo)])
    tiled = made.transform("tile", grid_size=(2, 2))
    with pytest.raises(
        DataError, match="item 'a': its tile 0 has 20x20 pixels, but was 42x32.*before they are resized"
    ):
        list(tiled.transform("resize", width=20, height=20).transform("merge_tile"))
    [item] = tiled.transform("anonymize", label="dog", method="fill").transform("merge_tile")
    assert np.array_equal((item.media.pixels == 0).all(2), square_mask(2, 2, 6, 6))
    assert (item.media.pixels[6:] == pixels()[6:]).all()
    both = rayds.Dataset.from_iterable([*tiled, rayds.DatasetItem("a")], ["cat", "dog"])
    with pytest.raises(DataError, match="item 'a': there is an item of this id beside its tiles"):
        list(both.transform("merge_tile"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "required"),
        ({"grid_size": (0, 2)}, "--grid-size"),
        ({"grid_size": (2,)}, "2 values are needed"),
        ({"grid_size": (2, 2), "overlap": (1, 0)}, "--overlap"),
        ({"grid_size": (2, 2), "threshold_drop_ann": 2}, "--threshold-drop-ann"),
    ],
)
def test_bad_options_are_told(options: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        single([]).transform("tile", **options)


def test_the_command_line_of_the_manuals() -> None:
    from rayds.registry import load

    parsed = load("ops", "tile").Options.parse(
        ["--grid-size", "2", "3", "--overlap", "0.1", "0.2", "--threshold-drop-ann", "0.4"]
    )
    assert (parsed.grid_size, parsed.overlap, parsed.threshold_drop_ann) == ((2, 3), (0.1, 0.2), 0.4)
    crop = load("ops", "crop").Options.parse(["-dx", "1", "-dy", "2", "-dw", "3", "-dh", "4"])
    assert (crop.x, crop.y, crop.width, crop.height) == (1, 2, 3, 4)
    resize = load("ops", "resize").Options.parse(["-dw", "3", "--height", "4"])
    assert (resize.width, resize.height) == (3, 4)
