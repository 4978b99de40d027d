"""Bad COCO files: every error names file, item and byte; a bad annotation leaves out itself, not its image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayds.annotations import Bbox, Mask
from rayds.dataset import Dataset
from rayds.errors import DataError
from rayds.item import DatasetItem
from rayds.media import encode

pytestmark = pytest.mark.usefixtures("reading_by")

Json = dict[str, Any]
GONE = object()

IMAGE: Json = {"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}
OTHER: Json = {"id": 2, "file_name": "b.jpg", "width": 10, "height": 10}
GOOD: Json = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
CATEGORIES = [{"id": 1, "name": "cat"}]


def record(**changes: Any) -> Json:
    return {k: v for k, v in {**GOOD, "id": 2, **changes}.items() if v is not GONE}


def text(annotations: list[Json], images: list[Json] | None = None, **top: Any) -> str:
    found = {"images": images or [IMAGE, OTHER], "annotations": annotations, "categories": CATEGORIES, **top}
    return json.dumps({k: v for k, v in found.items() if v is not GONE}, ensure_ascii=False)


def put(folder: Path, content: str | bytes, name: str = "instances_train.json") -> Path:
    path = folder / "annotations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(
    path: Path, on_error: str = "raise", format: str = "coco_instances", **options: Any
) -> list[DatasetItem]:
    return list(Dataset.import_from(str(path), format, engine="local", on_error=on_error, **options))


def check(
    path: Path,
    tmp_path: Path,
    reason: str,
    item: str | None,
    byte: int | None,
    format: str = "coco_instances",
) -> Any:
    """The three policies; returns what is left."""
    with pytest.raises(DataError) as caught:
        read(path, format=format)
    message = str(caught.value)
    assert reason in message
    assert path.name in message
    assert item is None or item in message
    assert byte is None or f"byte {byte}" in message
    left = read(path, "skip", format)
    dataset = Dataset.import_from(str(path), format, engine="local", on_error="quarantine")
    report = dataset.export(str(tmp_path / "out"), "coco")
    rows = pq.read_table(str(tmp_path / "out/quarantine.parquet")).to_pylist()
    assert [r["reason"] for r in rows] == [e["reason"] for e in report.errors]
    first = rows[0]
    assert reason in first["reason"]
    assert str(path) in first["file"]
    assert item is None or item in first["item"]
    assert byte is None or first["place"] == f"byte {byte}"
    return left, report.errors


NUMBER = "no finite number"
BAD_RECORDS: list[tuple[Json, str]] = [
    (record(image_id=GONE), "'image_id' is missing"),
    (record(image_id="abc"), "'image_id'"),
    (record(image_id=9), "the image id 9 is not among the images"),
    (record(category_id=9), "the category id 9 is unknown"),
    (record(category_id=GONE), "the key 'category_id' is missing"),
    (record(category_id="cat"), "'category_id' has the wrong type: \"cat\""),
    (record(category_id=1.4), "'category_id' is not an integer: 1.4"),
    (record(id="abc"), "'id' has the wrong type: \"abc\""),
    (record(id=17.5), "'id' is not an integer: 17.5"),
    (record(id=2**70), "'id' is not an integer"),
    (record(bbox=["a", "b", "c", "d"]), NUMBER),
    (record(bbox=[1, 2, 3]), "a box has 4 numbers, this one 3"),
    (record(bbox=5), "'bbox' has the wrong type: 5"),
    (record(bbox={"x": 1}), "'bbox' has the wrong type"),
    (record(bbox=[1, None, 3, 4]), NUMBER),
    (record(bbox=[1, 2, 3, float("inf")]), NUMBER),
    (record(bbox=[float("nan"), 2, 3, 4]), NUMBER),
    (record(area=float("nan")), "NaN is not a JSON number"),
    (record(score=float("-inf")), "-Infinity is not a JSON number"),
    (record(attributes={"x": float("nan")}), "NaN is not a JSON number"),
    (record(other=[float("nan")]), "NaN is not a JSON number"),
    (record(segmentation="abc"), "'segmentation' is neither polygons nor RLE: \"abc\""),
    (record(segmentation=7), "'segmentation' is neither polygons nor RLE"),
    (record(segmentation=[1, 1, 5, 1, 5, 5]), "a polygon is no list"),
    (record(segmentation=[[1, 1, 2, 2]]), "a polygon has 2 points, it needs at least 3"),
    (record(segmentation=[[]]), "a polygon has 0 points"),
    (record(segmentation=[[1, 1, 2, 2, 3, 3, 4]]), "odd number of coordinates (7)"),
    (record(segmentation=[[1, 1, 2, 2, 3, float("nan")]]), NUMBER),
    (record(segmentation={"size": [10, 10], "counts": "zzzz"}), "broken RLE"),
    (record(segmentation={"size": [10, 10], "counts": [5, 5]}), "run lengths sum to 10"),
    (record(segmentation={"size": ["a", 1], "counts": [5]}), "neither polygons nor RLE"),
    (record(segmentation={"counts": [5, 5]}), "neither polygons nor RLE"),
    (record(keypoints=[1, 2, 2, 4]), "'keypoints' has 4 numbers, not triples"),
    (record(keypoints=[1, 2, "x"]), NUMBER),
    (record(iscrowd=3), "'iscrowd' is neither 0 nor 1: 3"),
    (record(attributes=[1]), "'attributes' is no object"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_RECORDS)
def test_a_bad_annotation_leaves_only_itself_out(tmp_path: Path, bad: Json, reason: str) -> None:
    content = text([GOOD, bad, record(id=3)])
    path = put(tmp_path / "d", content)
    place = content.index(json.dumps(bad))
    image = bad.get("image_id")
    left, errors = check(path, tmp_path, reason, f"image {image}" if isinstance(image, int) else None, place)
    assert len(errors) == 1
    assert [i.id for i in left] == ["a", "b"]
    assert [a.id for a in left[0].annotations] == [1, 3]


BAD_IMAGES: list[tuple[Json, str, str]] = [
    ({"id": 7}, "'file_name' is missing", "image 7"),
    ({"id": 7, "file_name": ""}, "'file_name' is missing", "image 7"),
    ({"file_name": "c.jpg"}, "an image needs an integer 'id'", "c.jpg"),
    ({"id": "x", "file_name": "c.jpg"}, "an image needs an integer 'id'", "c.jpg"),
    ({"id": 1.5, "file_name": "c.jpg"}, "an image needs an integer 'id'", "c.jpg"),
    ({"id": 7, "file_name": "../c.jpg"}, "leaves the dataset folder", "../c.jpg"),
    ({"id": 7, "file_name": "x/../../c.jpg"}, "leaves the dataset folder", "c.jpg"),
    ({"id": 7, "file_name": "/etc/c.jpg"}, "is not relative to the dataset", "/etc/c.jpg"),
    ({"id": 7, "file_name": "C:\\c.jpg"}, "is not relative to the dataset", "c.jpg"),
    ({"id": 1, "file_name": "c.jpg"}, "the image id 1 occurs twice", "c.jpg"),
    ({"id": 7, "file_name": "a.png"}, "two images of a subset differ in their extension only", "a"),
    ({"id": 7, "file_name": "a.jpg"}, "or have one file name", "a"),
    ({"id": 7, "file_name": "c.jpg", "width": float("nan")}, "NaN is not a JSON number", "c.jpg"),
    (
        {"id": 7, "file_name": "c.jpg", "width": "wide", "height": 4},
        "'width' is no whole number: \"wide\"",
        "c.jpg",
    ),
    ({"id": 7, "file_name": "c.jpg", "width": 4, "height": [5]}, "'height' is no whole number: [5]", "c.jpg"),
    ({"id": 7, "file_name": "c.jpg", "x": float("inf")}, "Infinity is not a JSON number", "c.jpg"),
]


@pytest.mark.parametrize(("bad", "reason", "item"), BAD_IMAGES)
def test_bad_images(tmp_path: Path, bad: Json, reason: str, item: str) -> None:
    content = text([GOOD], images=[IMAGE, OTHER, bad])
    path = put(tmp_path / "d", content)
    left, errors = check(path, tmp_path, reason, item, content.index(json.dumps(bad)))
    assert len(errors) == 1
    assert [i.id for i in left] == ["a", "b"]
    assert [a.id for a in left[0].annotations] == [1]


def test_sizes_that_are_not_told_are_no_mistake(tmp_path: Path) -> None:
    images: list[Json] = [
        {"id": 1, "file_name": "a.jpg"},
        {"id": 2, "file_name": "b.jpg", "width": None, "height": 4},
    ]
    put(tmp_path / "d", text([GOOD], images=images))
    assert [i.image and i.image.size for i in Dataset.import_from(str(tmp_path / "d"), "coco")] == [
        None,
        None,
    ]


def test_annotations_of_a_bad_image_are_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "d", text([GOOD, record(image_id=2)], images=[IMAGE, {"id": 2}]))
    left, errors = check(path, tmp_path, "'file_name' is missing", "image 2", None)
    assert [i.id for i in left] == ["a"]
    assert [e["reason"] for e in errors[1:]] == ["annotation 2: the image id 2 is not among the images"]


def test_invalid_json_inside_a_record(tmp_path: Path) -> None:
    content = text([GOOD, record(), record(id=3)]).replace('"area": 12', '"area": 1.2.3', 1)
    path = put(tmp_path / "d", content)
    left, _ = check(path, tmp_path, "not valid JSON", "image 1", content.index('{"id": 1, "image_id"'))
    assert [a.id for a in left[0].annotations] == [2, 3]


@pytest.mark.parametrize("section", ["images", "annotations"])
def test_bytes_that_are_not_utf8(tmp_path: Path, section: str) -> None:
    name = {"images": "b.jpg", "annotations": "zzz"}[section]
    content = text([GOOD, record(note="zzz")]).encode().replace(name.encode(), b"\xe9" + name.encode()[1:])
    path = put(tmp_path / "d", content)
    left, errors = check(path, tmp_path, "the byte 0xe9 is not UTF-8", None, content.index(b"\xe9"))
    assert len(errors) == 1
    assert [i.id for i in left] == (["a"] if section == "images" else ["a", "b"])


def test_bytes_that_are_not_utf8_in_a_category(tmp_path: Path) -> None:
    path = put(tmp_path / "d", text([GOOD]).encode().replace(b'"cat"', b'"c\xe9t"'))
    with pytest.raises(DataError, match=r"instances_train\.json.*utf-8"):
        read(path)


def test_cut_off_file(tmp_path: Path) -> None:
    content = text(annotations=[GOOD, record()], categories=GONE)
    whole = '{"categories": ' + json.dumps(CATEGORIES) + ", " + content[1:]
    cut = whole[: whole.rindex('"bbox"')]
    path = put(tmp_path / "d", cut)
    left, errors = check(path, tmp_path, "the file is cut off inside an object", None, len(cut))
    assert len(errors) == 1
    assert [[a.id for a in i.annotations] for i in left] == [[1], []]  # what was whole stands


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the file is empty"),
        (" \n ", "the file is empty"),
        ("[" + json.dumps(IMAGE) + "]", "a JSON object was expected at top level"),
        ("5", "a JSON object was expected at top level"),
        ("null", "a JSON object was expected at top level"),
        ("{", "the file is cut off"),
        (text([GOOD]) + "xx", "not valid JSON"),
        ('{"images": [}', ""),
        (text([GOOD], categories={"a": 1}), "'categories' is no list"),
        (text([GOOD], categories=[5]), "a category needs an id and a name"),
        (text([GOOD], categories=[{"id": 1}]), "a category needs an id and a name"),
        (text([GOOD], categories=[{"id": "x", "name": "a"}]), "the category id 'x' is not an integer"),
        (text([GOOD], categories=[{"id": True, "name": "a"}]), "the category id True is not an integer"),
        (text([GOOD], categories=[*CATEGORIES, *CATEGORIES]), "the category id 1 occurs twice"),
    ],
)
def test_files_that_are_no_coco_files(tmp_path: Path, content: str, reason: str) -> None:
    path = put(tmp_path / "d", content)
    with pytest.raises(DataError, match=r"instances_train\.json") as caught:
        read(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"annotations": [5]}, "'annotations' is no list of objects"),
        ({"annotations": {"a": 1}}, "'annotations' is no list of objects"),
        ({"annotations": "abc"}, "'annotations' is no list of objects"),
        ({"images": {"a": {"id": 1}}, "annotations": []}, "'images' is no list of objects"),
        ({"images": GONE, "annotations": []}, "the key 'images' is missing"),
    ],
)
def test_sections_that_are_no_lists(tmp_path: Path, changes: Json, reason: str) -> None:
    path = put(tmp_path / "d", text(**{"annotations": [], **changes}))
    check(path, tmp_path, reason, None, None)


def test_two_names_of_one_category(tmp_path: Path) -> None:
    put(tmp_path, text([GOOD]))
    path = put(tmp_path, text([], categories=[{"id": 1, "name": "dog"}]), "instances_val.json")
    with pytest.raises(
        DataError, match=r"instances_val.json: category 1 is 'dog' here, but 'cat' in another file"
    ):
        read(tmp_path)
    assert path.exists()


def test_annotation_ids_that_occur_twice(tmp_path: Path) -> None:
    later = record(id=1, image_id=2, bbox=[0, 0, 1, 1])
    content = text([GOOD, record(), later])
    path = put(tmp_path / "d", content)
    left, errors = check(
        path, tmp_path, "the annotation id 1 occurs more than once", None, content.index(json.dumps(later))
    )
    assert len(errors) == 1
    assert [[a.id for a in i.annotations] for i in left] == [[1, 2], []]


def test_annotation_ids_that_occur_twice_in_one_of_several_tasks(tmp_path: Path) -> None:
    put(tmp_path / "d", text([GOOD, record()]))
    points = [
        record(id=1, keypoints=[1, 1, 2]),
        record(id=2, keypoints=[3, 3, 1]),
        record(id=1, image_id=2, keypoints=[5, 5, 2]),
    ]
    content = text(points)
    path = put(tmp_path / "d", content, "person_keypoints_train.json")
    with pytest.raises(
        DataError, match=rf"person_keypoints_train\.json, byte {content.index(json.dumps(points[2]))}"
    ):
        read(tmp_path / "d", format="coco")
    left = read(tmp_path / "d", "skip", "coco")
    assert [[(a.type.name, a.id) for a in i.annotations] for i in left] == [
        [("bbox", 1), ("points", 1), ("bbox", 2), ("points", 2)],
        [],
    ]
    assert path.exists()


def test_empty_file_among_others(tmp_path: Path) -> None:
    put(tmp_path / "d", text([GOOD]))
    path = put(tmp_path / "d", "", "instances_val.json")
    left, errors = check_folder(tmp_path / "d", path, tmp_path, "the file is empty")
    assert len(errors) == 1
    assert [(i.id, i.subset) for i in left] == [("a", "train"), ("b", "train")]


def check_folder(
    folder: Path, path: Path, tmp_path: Path, reason: str, format: str = "coco_instances"
) -> Any:
    with pytest.raises(DataError, match=reason) as caught:
        read(folder, format=format)
    assert path.name in str(caught.value)
    report = Dataset.import_from(str(folder), format, engine="local", on_error="skip").export(
        str(tmp_path / "o"), "coco"
    )
    return read(folder, "skip", format), report.errors


def test_panoptic_images_that_are_missing_or_broken(tmp_path: Path) -> None:
    ids = np.zeros((4, 4, 3), np.uint8)
    ids[:2, :, 2] = 5
    segment = {"id": 5, "category_id": 1, "iscrowd": 0}

    def panoptic(i: int) -> Json:
        return {"image_id": i, "file_name": f"{i}.png", "segments_info": [segment]}

    images = [{"id": i, "file_name": f"{i}.jpg", "width": 4, "height": 4} for i in range(1, 5)]
    content = text([panoptic(i) for i in range(1, 5)], images=images)
    path = put(tmp_path / "d", content, "panoptic_train.json")
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "1.png").write_bytes(encode(ids, ".png"))
    (folder / "3.png").write_bytes(b"no image")
    (folder / "4.png").write_bytes(encode(ids[:, :, 0], ".png"))
    left, errors = check(path, tmp_path, "the id PNG is missing", "2.png", None, "coco_panoptic")
    assert [e["item"] for e in errors] == ["2.png", "3.png", "4.png"]
    assert str(folder / "2.png") in errors[0]["reason"]
    assert [len(i.annotations) for i in left] == [1, 0, 0, 0]
    assert isinstance(left[0].annotations[0], Mask)
    assert left[0].annotations[0].image.sum() == 8


def test_names_do_not_leave_the_output(tmp_path: Path) -> None:
    item = DatasetItem("../a", annotations=[Bbox(0, 0, 1, 1, label=0)], image=np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError):
        Dataset.from_iterable([item], ["cat"], engine="local").export(
            str(tmp_path / "o"), "coco", save_media=True
        )
    assert not list(tmp_path.iterdir())
