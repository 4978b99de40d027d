"""Items, annotations and categories: geometry by hand-computed numbers; objects and rows are the same thing."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayds.annotations import (
    CLASSES,
    Annotation,
    Bbox,
    Caption,
    Cuboid3d,
    Ellipse,
    Label,
    Mask,
    Points,
    Polygon,
    PolyLine,
    RotatedBbox,
    decode_rle,
    encode_mask,
    normal_rle,
)
from rayds.categories import (
    Categories,
    Category,
    LabelCategories,
    MaskCategories,
    PointsCategories,
    voc_colormap,
)
from rayds.errors import UnknownNameError
from rayds.item import (
    DatasetItem,
    annotation_from_row,
    annotation_to_row,
    dump_json,
    from_table,
    load_json,
    to_table,
)
from rayds.media import Image, PointCloud
from rayds.schema import ITEM_SCHEMA, AnnotationType

L_SHAPE = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], bool)  # 5 pixels, box 0, 0, 3, 3


def approx(*values: float) -> Any:
    return pytest.approx(values, abs=1e-9)


# geometry


@pytest.mark.parametrize(
    ("annotation", "area", "box"),
    [
        (Bbox(1, 2, 3, 4), 12, (1, 2, 3, 4)),
        (Bbox(1.5, 2, 0, 4), 0, (1.5, 2, 0, 4)),
        (Polygon([0, 0, 4, 0, 4, 3]), 6, (0, 0, 4, 3)),
        (Polygon([4, 3, 4, 0, 0, 0]), 6, (0, 0, 4, 3)),  # the other way round
        (Polygon([0, 0, 2, 0, 2, 1, 1, 1, 1, 2, 0, 2]), 3, (0, 0, 2, 2)),
        (PolyLine([1, 1, 3, 5, -1, 2]), 0, (-1, 1, 4, 4)),
        (Points([1, 1, 5, 2, 9, 9], [2, 1, 0]), 0, (1, 1, 4, 1)),
        (Points([1, 1, 5, 2], [0, 0]), 0, (1, 1, 4, 1)),  # all absent: where they would be
        (RotatedBbox(10, 20, 4, 2, 0), 8, (8, 19, 4, 2)),
        (RotatedBbox(10, 20, 4, 2, 90), 8, (9, 18, 2, 4)),
        (RotatedBbox(0, 0, 2, 2, 45), 4, (-math.sqrt(2), -math.sqrt(2), 2 * math.sqrt(2), 2 * math.sqrt(2))),
        (Ellipse(0, 0, 4, 2), math.pi * 2, (0, 0, 4, 2)),
        (Mask(L_SHAPE), 5, (0, 0, 3, 3)),
        (Mask(np.zeros((3, 4))), 0, (0, 0, 0, 0)),
    ],
)
def test_area_and_box(annotation: Annotation, area: float, box: tuple[float, ...]) -> None:
    assert annotation.get_area() == pytest.approx(area, abs=1e-9)
    assert annotation.get_bbox() == approx(*box)


def test_points_of_shapes() -> None:
    assert Bbox(1, 2, 3, 4).points == [1, 2, 4, 6]
    assert RotatedBbox(0, 0, 4, 2, 90).corners() == approx(1, -2, 1, 2, -1, 2, -1, -2)
    # clockwise on the screen, where y points down: the right end goes down
    assert RotatedBbox(0, 0, 4, 0, 30).corners()[2:4] == approx(math.sqrt(3), 1)
    assert Points([1, 2, 3, 4]).visibility == [2, 2]


@pytest.mark.parametrize("annotation", [Label(1), Caption("x"), Cuboid3d()])
def test_what_is_not_in_the_image_has_no_box(annotation: Annotation) -> None:
    assert annotation.get_area() == 0
    with pytest.raises(ValueError, match=f"a {annotation.type.name} has no bounding box"):
        annotation.get_bbox()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Polygon([0, 0, 1, 1]), "at least 3 points, got 2"),
        (lambda: PolyLine([0, 0, 1]), r"odd number of coordinates \(3\)"),
        (lambda: Points([0, 0, 1, 1], [2]), "2 points, but 1 visibility"),
        (lambda: Cuboid3d([1, 2]), "position has 3 numbers, got 2"),
        (lambda: Mask(), "either an image or an rle"),
        (lambda: Mask(np.zeros((2, 2, 2))), r"shape \(H, W\)"),
        (lambda: Mask(rle={"size": [2, 2], "counts": [1, 2]}), "sum to 3, but the mask is 2x2"),
    ],
)
def test_shapes_that_are_none(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_masks_in_all_forms_are_one() -> None:
    mask = Mask(L_SHAPE, 2)
    columns = [3, 2, 1, 2, 1, 3]  # runs down the columns, zeros first: 0 | 111 | 00 1 | 00 1 | 000
    others = [
        Mask(lambda: L_SHAPE, 2),
        Mask(rle=encode_mask(L_SHAPE * 7), label=2),
        Mask(rle={"size": (3, 4), "counts": [0, *columns]}, label=2),
        Mask(rle={**mask.rle, "counts": mask.rle["counts"].encode()}, label=2),
    ]
    for other in others:
        assert other == mask
        assert np.array_equal(other.image, L_SHAPE)
    assert Mask(~L_SHAPE, 2) != mask
    assert mask.wrap(label=3).rle == mask.rle
    assert np.array_equal(mask.wrap(image=~L_SHAPE).image, ~L_SHAPE)
    assert np.array_equal(decode_rle(normal_rle(mask.rle)), L_SHAPE)
    assert decode_rle(encode_mask(np.zeros((0, 5)))).shape == (0, 5)


def test_masks_agree_with_coco() -> None:
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for i in range(500):
        pixels = rng.random(rng.integers(1, 12, 2)) < (i % 11) / 10
        mask = Mask(pixels)
        assert np.array_equal(mask.image, pixels)
        assert mask.get_area() == coco_mask.area(mask.rle) == pixels.sum()
        assert mask.get_bbox() == tuple(coco_mask.toBbox(mask.rle))


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((2, 2), "zzzz"),
        ((2, 2), "3"),  # one pixel is missing
        ((2, 2), "5"),  # one too many
        ((2, 2), "o"),  # the last number is cut
        ((2, 2), "4 "),
        ((2, 2), "\u00e9"),
        ((2, 2), "6N"),  # 6 - 2: a negative run
        ((2, 2), ""),
        ((0, 5), "1"),
        ((0, 0), "zz"),
        ((2, 2), "o" * 100_000),
    ],
)
def test_broken_run_lengths_of_files_are_errors(size: tuple[int, int], counts: str) -> None:
    mask = Mask(rle={"size": size, "counts": counts})
    for use in (lambda: mask.image, mask.get_area, mask.get_bbox):
        with pytest.raises(ValueError, match="run lengths of a mask are broken"):
            use()


@pytest.mark.parametrize("size", [(-1, -1), (1 << 16, 1 << 16), (2,), "no"])
def test_masks_of_impossible_sizes(size: Any) -> None:
    for counts in ("", [0], [1 << 32]):
        with pytest.raises(ValueError):  # noqa: PT011
            Mask(rle={"size": size, "counts": counts})


def test_short_text_of_annotations() -> None:
    assert repr(Bbox(1, 2, 3, 4, label=5, group=1)) == "Bbox(label=5, group=1, x=1.0, y=2.0, w=3.0, h=4.0)"
    assert "20 numbers" in repr(Polygon(range(20)))
    assert "4x3 pixels" in repr(Mask(L_SHAPE))
    assert repr(Label(0)) == "Label(label=0)"


# rows

EXAMPLES: list[Annotation] = [
    Label(0, id=5, group=7, attributes={"ü": [1, {"a": None}]}, z_order=-1, extra={"coco": {"area": 1.5}}),
    Bbox(0.1, 2, 3, 4, label=1),
    RotatedBbox(1, 2, 3, 4, -30.5),
    Ellipse(1, 2, 3, 4),
    Polygon([1, 2, 3, 4, 5, 1 / 3]),
    PolyLine([]),
    Points([1, 2, 3, 4], [0, 1]),
    Cuboid3d([1, 2, 3], [0.1, 0.2, 0.3], [4, 5, 6]),
    Caption("a \N{SNOWMAN}\nand 'quotes\""),
    Mask(L_SHAPE, 3),
]


def test_the_examples_have_every_type() -> None:
    assert {type(a) for a in EXAMPLES} == set(CLASSES.values())
    assert {a.type for a in EXAMPLES} == set(CLASSES) == set(AnnotationType)


@pytest.mark.parametrize("annotation", EXAMPLES, ids=lambda a: a.type.name)
def test_an_annotation_is_a_row(annotation: Annotation) -> None:
    item = DatasetItem("a", [annotation, annotation.wrap(id=9)])
    table = to_table([item])
    assert table.schema.equals(ITEM_SCHEMA)
    assert list(from_table(table)) == [item]
    empty = dict.fromkeys(("points", "visibility", "mask", "text"))
    assert annotation_from_row({**empty, **annotation_to_row(annotation)}) == annotation


def test_numbers_keep_their_precision() -> None:
    numbers = [1 / 3, 1e-300, 123456789.123456789, -0.0, 2.0**53 + 2, 5e-324]
    got = next(from_table(to_table([DatasetItem("a", [PolyLine(numbers)])]))).annotations[0]
    assert np.array(got.points).tobytes() == np.array(numbers).tobytes()  # type: ignore[attr-defined]


def test_items() -> None:
    item = DatasetItem("a\\b", subset="", image="x.jpg", attributes={"k": 1}, extra={"coco": {"license": 3}})
    assert (item.id, item.subset) == ("a/b", "default")
    assert item.image == Image("x.jpg")
    assert item.point_cloud is None
    items = [
        item,
        DatasetItem(7, point_cloud="x.pcd"),
        DatasetItem("c"),
        DatasetItem("d", image=Image(size=(2, 3))),
    ]
    assert list(from_table(to_table(items))) == items
    assert list(from_table(to_table(items), batch=1)) == items
    assert list(from_table(to_table([]))) == []
    assert item.wrap(id="c", image="y.jpg").image == Image("y.jpg")
    assert item.wrap(point_cloud="y.pcd").point_cloud == PointCloud("y.pcd")
    assert item.id == "a/b"
    assert repr(item) == "DatasetItem('a/b', subset='default', Image(x.jpg), no annotations)"
    with pytest.raises(ValueError, match="needs an id"):
        DatasetItem("")
    with pytest.raises(ValueError, match="'a': give one of"):
        DatasetItem("a", image="x", point_cloud="y")


def test_json_columns() -> None:
    values = {"a": np.int64(3), "b": np.array([1.5]), "c": {2, 1}, "d": "\N{SNOWMAN}", "e": np.bool_(True)}
    text = dump_json(values)
    assert text == '{"a":3,"b":[1.5],"c":[1,2],"d":"\N{SNOWMAN}","e":true}'
    assert load_json(text) == {"a": 3, "b": [1.5], "c": [1, 2], "d": "\N{SNOWMAN}", "e": True}
    assert (dump_json({}), load_json(None)) == (None, {})
    with pytest.raises(TypeError, match="a object can't be an attribute value"):
        dump_json({"a": object()})


def test_half_a_surrogate_pair_survives() -> None:
    attributes = {"a": json.loads('"\\ud800 \\u2603"')}
    text = dump_json(attributes)
    assert pa.array([text]).to_pylist() == [text]
    assert load_json(text) == attributes


# categories


def test_labels() -> None:
    labels = LabelCategories.from_iterable(["a", ("b", "a"), ("c", "a", ["x", "y"]), Category("d"), ("e",)])
    assert labels.names() == list("abcde")
    assert (labels[1].parent, labels[2].attributes) == ("a", {"x", "y"})
    assert labels.add("f", attributes=["z"]) == 5 == labels.index("f")
    assert labels.find("b") == (1, labels[1])
    assert labels.find("nope") == (None, None)
    assert ("c" in labels, "q" in labels, len(labels)) == (True, False, 6)
    with pytest.raises(ValueError, match="'a' is there already"):
        labels.add("a")
    with pytest.raises(ValueError, match="'x' occurs twice"):
        LabelCategories.from_iterable(["x", "x"])
    with pytest.raises(UnknownNameError, match="Did you mean 'person'"):
        LabelCategories.from_iterable(["person"]).index("persn")


def test_categories_as_json() -> None:
    labels = LabelCategories.from_iterable(["a", ("b \N{SNOWMAN}", "a", ["x"])])
    labels.attributes = {"common"}
    labels[1].extra = {"coco": {"id": 18}}
    made = Categories(
        {
            AnnotationType.label: labels,
            AnnotationType.mask: MaskCategories({1: (1, 2, 3), 0: (0, 0, 0)}),
            AnnotationType.points: PointsCategories.from_iterable(
                [(1, ["nose", "ear"], [(2, 1)]), (0, ["tip"])]
            ),
        }
    )
    got = Categories.from_json(json.loads(json.dumps(made.to_json())))
    assert got == made
    assert got.labels[1].extra == {"coco": {"id": 18}}
    assert got.labels.find("a") == (0, labels[0])
    assert Categories.from_json({}) == Categories() == Categories.of(None)


def test_categories_of_what_users_give() -> None:
    labels = LabelCategories.from_iterable(["a"])
    assert Categories.of(["a"]) == Categories.of(labels) == Categories.of({1: labels})
    assert Categories.of(["a"]).labels.names() == ["a"]
    assert (Categories().masks, Categories().points, len(Categories().labels)) == (None, None, 0)


def test_the_voc_colours() -> None:
    # the first colours of the map that the Pascal VOC development kit defines
    assert voc_colormap(8).tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
    ]
    assert voc_colormap(256)[255].tolist() == [224, 224, 192]
    assert MaskCategories.generate(2).colormap == {0: (0, 0, 0), 1: (128, 0, 0)}
    assert MaskCategories.generate(1, include_background=False).colormap == {0: (128, 0, 0)}
    assert MaskCategories({1: (9, 9, 9), 0: (9, 9, 9)}).inverse_colormap == {(9, 9, 9): 0}
