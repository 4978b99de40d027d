"""What the COCO reader takes: layouts, odd but valid JSON, several tasks of one subset; nothing is lost in COCO -> COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayds.annotations import Bbox, Caption, Label, Mask, Points, Polygon
from rayds.dataset import Dataset
from rayds.errors import FormatError
from rayds.item import DatasetItem
from rayds.losses import summarize
from rayds.media import encode

pytestmark = pytest.mark.usefixtures("reading_by")

Json = dict[str, Any]

IMAGE: Json = {"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}
BOX: Json = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
CATEGORIES: list[Json] = [
    {"id": 1, "name": "cat", "supercategory": "animal"},
    {"id": 3, "name": "dog", "supercategory": ""},
]


def document(annotations: list[Json], images: list[Json] | None = None, **top: Any) -> Json:
    return {"images": images or [IMAGE], "annotations": annotations, "categories": CATEGORIES, **top}


def put(folder: Path, content: Json | str, name: str = "annotations/instances_train.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def dataset(path: Path, format: str = "coco", **options: Any) -> Dataset:
    return Dataset.import_from(str(path), format, engine="local", **options)


def read(path: Path, format: str = "coco", **options: Any) -> list[DatasetItem]:
    return list(dataset(path, format, **options))


def rewritten(
    tmp_path: Path, content: Json, format: str = "coco", name: str = "annotations/instances_train.json"
) -> Json:
    """The file after COCO -> COCO."""
    put(tmp_path / "in", content, name)
    report = dataset(tmp_path / "in", format).export(str(tmp_path / "out"), format)
    assert report.losses == {}
    found: Json = json.loads((tmp_path / "out" / name).read_text())
    return found


# Layouts.


@pytest.mark.parametrize("folder", ["images/train", "images", "train", "annotations", ""])
def test_where_images_may_be(tmp_path: Path, folder: str) -> None:
    put(
        tmp_path,
        document([BOX], [{**IMAGE, "file_name": "gone.jpg"}, {**IMAGE, "id": 2, "file_name": "x/b.jpg"}]),
    )
    image = tmp_path / folder / "x/b.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(encode(np.zeros((10, 10, 3), np.uint8), ".jpg"))
    item = read(tmp_path)[1]
    assert item.id == "x/b"
    assert item.image
    assert item.image.path == str(image)


def test_year_belongs_to_the_subset(tmp_path: Path) -> None:
    put(tmp_path, document([BOX]), "annotations/instances_val2017.json")
    put(tmp_path, document([BOX]), "annotations/instances_train2017.json")
    assert list(dataset(tmp_path).subsets()) == ["train2017", "val2017"]


def test_one_file_is_a_dataset(tmp_path: Path) -> None:
    for name, format, subset in (
        ("annotations/instances_a.json", "coco", "a"),
        ("instances_b.json", "coco_instances", "b"),
        ("labels.json", "coco_instances", "default"),
        ("x.json", "coco", "default"),
    ):
        [item] = read(put(tmp_path / subset, document([BOX]), name), format)
        assert (item.id, item.subset, len(item.annotations)) == ("a", subset, 1)


def test_roboflow(tmp_path: Path) -> None:
    name = "train/_annotations.coco.json"
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "cells", "supercategory": "cells"},
    ]
    content = document([BOX, {**BOX, "id": 2, "category_id": 0}], categories=categories)
    path = put(tmp_path / "in", content, name)
    assert dataset(tmp_path / "in", "roboflow_coco").categories().labels.names() == ["cells", "cells (id 1)"]
    assert [a.label for a in read(path, "roboflow_coco")[0].annotations] == [1, 0]
    found = rewritten(tmp_path, content, "roboflow_coco", name)
    assert found["categories"] == categories
    assert [a["category_id"] for a in found["annotations"]] == [1, 0]


def test_no_annotation_file(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    with pytest.raises(FormatError, match="no annotation file"):
        read(tmp_path)


# Odd but valid.


def variants() -> dict[str, str]:
    images = [IMAGE, {"width": 10, "file_name": 'ü "q" {\\ \u2603.jpg', "height": 10, "id": 2}]
    annotations = [
        BOX,
        {"bbox": [0, 0, 1, 1], "category_id": 3, "id": 5, "image_id": 2, "note": 'a "}, {" b'},
    ]
    whole = document(annotations, images)
    order = ["annotations", "categories", "images"]
    return {
        "plain": json.dumps(whole),
        "compact": json.dumps(whole, separators=(",", ":")),
        "pretty": json.dumps(whole, indent=2),
        "tabs": json.dumps(whole, indent="\t").replace("\n", "\r\n"),
        "unicode": json.dumps(whole, ensure_ascii=False),
        "bom": "\ufeff" + json.dumps(whole),
        "annotations first": json.dumps({k: whole[k] for k in order}),
        "categories last": json.dumps({k: whole[k] for k in reversed(order)}),
        "categories first": json.dumps({k: whole[k] for k in ["categories", "images", "annotations"]}),
        "keys sorted": json.dumps(whole, sort_keys=True),
        "escapes": json.dumps(whole).replace("image_id", "image\\u005fid"),
        "numbers as text": json.dumps(whole)
        .replace('"id": 5', '"id": "5"')
        .replace('"image_id": 2', '"image_id": "2"'),
        "floats": json.dumps(whole).replace('"id": 5', '"id": 5.0').replace('"width": 10', '"width": 10.0'),
        "category ids as text": json.dumps(whole).replace('"id": 3, "name"', '"id": "3", "name"'),
        "crowd as text": json.dumps(whole).replace('"iscrowd": 0', '"iscrowd": "0"'),
        "crowd as bool": json.dumps(whole).replace('"iscrowd": 0', '"iscrowd": false'),
    }


@pytest.mark.parametrize("window", [64, 8 << 20])
@pytest.mark.parametrize("variant", sorted(set(variants()) - {"plain"}))
def test_one_dataset_in_many_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, window: int
) -> None:
    from rayds.formats import _records

    expected = read(put(tmp_path / "plain", variants()["plain"]))
    assert [i.id for i in expected] == ["a", 'ü "q" {\\ \u2603'.replace("\\", "/")]
    monkeypatch.setattr(_records.RecordScanner, "window", window)
    found = read(put(tmp_path / "other", variants()[variant]))
    assert [i.wrap(media=None) for i in found] == [i.wrap(media=None) for i in expected]
    assert [i.image and i.image.size for i in found] == [(10, 10), (10, 10)]


def test_annotations_with_little(tmp_path: Path) -> None:
    bare: Json = {"image_id": 1, "category_id": 1}
    rows = [
        bare,
        {**bare, "bbox": []},
        {**bare, "segmentation": []},
        {**bare, "bbox": [1, 2, 3, 4], "segmentation": []},
        {"image_id": 1, "category_id": None, "bbox": [0, 0, 1, 1]},
    ]
    [item] = read(put(tmp_path, document(rows)))
    assert [type(a) for a in item.annotations] == [Label, Label, Label, Bbox, Bbox]
    assert [a.label for a in item.annotations] == [0, 0, 0, 0, None]
    assert [a.id for a in item.annotations] == [1, 2, 3, 4, 5]  # given, as the file has none


def test_ids_that_are_zero_or_less(tmp_path: Path) -> None:
    images = [{**IMAGE, "id": 0}, {**IMAGE, "id": -1, "file_name": "b.jpg"}]
    rows = [
        {**BOX, "id": 0, "image_id": 0, "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {**BOX, "id": -1, "image_id": 0, "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {**BOX, "id": 7, "image_id": -1},
    ]
    content = document(rows, images)
    path = put(tmp_path / "d", content)
    assert summarize(dataset(path).to_arrow()).objects == 3
    found = rewritten(tmp_path, content)
    assert [a["id"] for a in found["annotations"]] == [0, -1, 7]
    assert [a["image_id"] for a in found["annotations"]] == [0, 0, -1]
    assert [i["id"] for i in found["images"]] == [0, -1]


def test_some_ids_missing(tmp_path: Path) -> None:
    rows = [{k: v for k, v in BOX.items() if k != "id"}, {**BOX, "id": 9}]
    [item] = read(put(tmp_path, document(rows)))
    assert [(a.id, a.group) for a in item.annotations] == [(10, 10), (9, 9)]


def test_category_zero_is_a_category(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "zero"}, {"id": 5, "name": "five"}]
    content = document([{**BOX, "category_id": 0}, {**BOX, "id": 2, "category_id": 5}], categories=categories)
    assert [a.label for a in read(put(tmp_path / "d", content))[0].annotations] == [0, 1]
    found = rewritten(tmp_path, content)
    assert [a["category_id"] for a in found["annotations"]] == [0, 5]
    assert found["categories"] == categories


def test_keep_original_category_ids(tmp_path: Path) -> None:
    path = put(tmp_path / "d", document([{**BOX, "category_id": 3}]))
    kept = dataset(path, keep_original_category_ids=True)
    assert kept.categories().labels.names() == ["class-0", "cat", "class-2", "dog"]
    assert [a.label for i in kept for a in i.annotations] == [3]
    kept.export(str(tmp_path / "o"), "coco")
    found = json.loads((tmp_path / "o/annotations/instances_train.json").read_text())
    assert [a["category_id"] for a in found["annotations"]] == [3]
    assert found["categories"] == CATEGORIES


def test_file_names(tmp_path: Path) -> None:
    names = ["x/y/a.jpg", "a.tar.gz", "no_extension", ".hidden", "x/.b.png", "sp ace.JPEG", "frame.000123456"]
    content = document([], [{**IMAGE, "id": i, "file_name": n} for i, n in enumerate(names)])
    ids = ["x/y/a", "a.tar", "no_extension", ".hidden", "x/.b", "sp ace", "frame.000123456"]
    assert [i.id for i in read(put(tmp_path / "d", content))] == ids
    found = rewritten(tmp_path, content)
    assert [i["file_name"] for i in found["images"]] == names


# COCO -> COCO.


def test_what_only_coco_knows_is_kept(tmp_path: Path) -> None:
    skeleton = [[2, 1], [1, 3]]
    image = {
        **IMAGE,
        "license": 4,
        "flickr_url": "http://x",
        "date_captured": "2013",
        "x": {"y": [1, None]},
        "attributes": {"w": 1},
    }
    row = {
        **BOX,
        "segmentation": [[0, 0, 1, 0, 1, 1], [0.125, 1e-7, 3, 0, 3, 3]],
        "area": 1.123456789012345,
        "attributes": {"colour": "ü", "n": None, "is_big": True},
        "score": 0.1,
        "task": "mine",
        "counts": "list",
        'it\'s "q".k': [{"a": 1}],
        "none": None,
    }
    categories = [
        {"id": 90, "name": "b", "supercategory": "s", "isthing": 1, "color": [1, 2, 3], "name_de": "B"},
        {"id": 1, "name": "a"},
    ]
    content = {
        "info": {"year": 2017, "x": None},
        "licenses": [{"id": 4, "name": "CC"}],
        "mine": {"k": [1, {"id": 3}]},
        **document([row], [image], categories=categories),
    }
    found = rewritten(tmp_path, content)
    assert found == content
    points = {**row, "category_id": 90, "keypoints": [1.5, 2, 2, 0, 0, 0, 4, 5, 1], "num_keypoints": 2}
    content["categories"][0] |= {"keypoints": ["a", "b", "c"], "skeleton": skeleton}
    del content["categories"][1]
    content["annotations"] = [points]
    name = "annotations/person_keypoints_train.json"
    assert rewritten(tmp_path / "points", content, "coco_person_keypoints", name) == content


def test_rle_keeps_its_form(tmp_path: Path) -> None:
    rle = Mask(np.eye(4, dtype=bool)).rle
    listed = {"size": [4, 4], "counts": [0, 1, 4, 1, 4, 1, 4, 1]}
    rows = [
        {**BOX, "iscrowd": 1, "segmentation": rle},
        {**BOX, "id": 2, "iscrowd": 1, "segmentation": listed},
    ]
    found = rewritten(tmp_path, document(rows))
    assert [a["segmentation"] for a in found["annotations"]] == [rle, listed]
    first, second = (a for a in read(tmp_path / "in")[0].annotations if isinstance(a, Mask))
    assert (first.image == second.image).all()


def test_confidences_of_key_points_are_kept(tmp_path: Path) -> None:
    row = {**BOX, "segmentation": [], "keypoints": [1, 2, 0.87, 3, 4, 0], "num_keypoints": 1}
    name = "annotations/person_keypoints_train.json"
    found = rewritten(tmp_path, document([row]), "coco_person_keypoints", name)
    assert found["annotations"] == [row]
    [points] = (a for a in read(tmp_path / "in")[0].annotations if isinstance(a, Points))
    assert points.visibility == [2, 0] or points.visibility == [1, 0]


# Several tasks.


def test_tasks_of_a_subset_are_merged_by_image(tmp_path: Path) -> None:
    polygon = [[0, 0, 4, 0, 4, 4]]
    instances = [
        {**BOX, "segmentation": polygon},
        {**BOX, "id": 2, "category_id": 3, "segmentation": polygon},
    ]
    points = [{**BOX, "segmentation": polygon, "keypoints": [1, 1, 2], "num_keypoints": 1, "seen_by": "x"}]
    captions = [{"id": 1, "image_id": 1, "caption": "one"}, {"id": 2, "image_id": 2, "caption": "two"}]
    later = {**IMAGE, "id": 2, "file_name": "b.jpg"}
    files = {
        "instances": document(instances),
        "person_keypoints": document(points),
        "captions": {"images": [IMAGE, later], "annotations": captions},
        "image_info": document([], [{**IMAGE, "id": 3, "file_name": "c.jpg"}]),
    }
    for task, content in files.items():
        put(tmp_path / "in", content, f"annotations/{task}_train.json")
    found = dataset(tmp_path / "in")
    items = list(found)
    assert [i.id for i in items] == ["a", "b", "c"]
    assert [(type(a), a.id, a.group) for a in items[0].annotations] == [
        (Bbox, 1, 1),
        (Polygon, 1, 1),
        (Points, 1, 1),
        (Bbox, 2, 2),
        (Polygon, 2, 2),
        (Caption, 1, 0),
    ]
    assert summarize(found.to_arrow()).objects == 4
    found.export(str(tmp_path / "out"), "coco")
    for task, content in files.items():
        back = json.loads((tmp_path / f"out/annotations/{task}_train.json").read_text())
        assert back["annotations"] == content["annotations"]
        assert [i["id"] for i in back["images"]] == [1, 2, 3]  # all images of the subset


def test_ids_of_other_objects_may_be_the_same_in_two_files(tmp_path: Path) -> None:
    instances = [BOX, {**BOX, "id": 2}]
    points = [
        {**BOX, "bbox": [5, 5, 2, 2], "keypoints": [1, 1, 2]},  # another box: another object
        {**BOX, "id": 2, "category_id": 3, "keypoints": [1, 1, 2]},  # another label
    ]
    rle = Mask(np.eye(10, dtype=bool)).rle
    stuff = [{**BOX, "segmentation": rle}]
    for task, rows in (("instances", instances), ("person_keypoints", points), ("stuff", stuff)):
        put(tmp_path / "in", document(rows), f"annotations/{task}_train.json")
    found = dataset(tmp_path / "in")
    assert summarize(found.to_arrow()).objects == 5
    found.export(str(tmp_path / "out"), "coco")

    def told(folder: str, task: str) -> list[tuple[int, list[float]]]:
        rows = json.loads((tmp_path / folder / f"annotations/{task}_train.json").read_text())["annotations"]
        return [(a["id"], a["bbox"]) for a in rows]

    for task in ("instances", "person_keypoints", "stuff"):
        assert told("out", task) == told("in", task)
    # In one file they need new ids.
    found.export(str(tmp_path / "one"), "coco_instances")
    assert [id for id, _ in told("one", "instances")] == [1, 2, 3, 4, 5]


def test_panoptic_ids_are_unique_in_an_image_only(tmp_path: Path) -> None:
    masks = [Mask(np.eye(4, dtype=bool), label=0, id=5, group=5, attributes={"is_crowd": False})]
    images = [
        DatasetItem(n, image=np.zeros((4, 4, 3), np.uint8), annotations=masks, attributes={"id": 10 + i})
        for i, n in enumerate("ab")
    ]
    Dataset.from_iterable(images, ["cat"], engine="local").export(str(tmp_path / "p"), "coco_panoptic")
    source = dataset(tmp_path / "p", "coco_panoptic")
    assert [a.id for i in source for a in i.annotations] == [5, 5]
    source.export(str(tmp_path / "again"), "coco_panoptic")
    name = "annotations/panoptic_default.json"
    assert (tmp_path / "again" / name).read_text() == (tmp_path / "p" / name).read_text()
    source.export(str(tmp_path / "i"), "coco_instances")
    found = json.loads((tmp_path / "i/annotations/instances_default.json").read_text())
    assert [(a["id"], a["image_id"]) for a in found["annotations"]] == [(1, 10), (2, 11)]


def test_colours_of_dataset_meta(tmp_path: Path) -> None:
    put(tmp_path, document([BOX]))
    meta = {
        "labels": ["dog", "cat"],
        "label_map": {"0": "dog", "1": "cat"},
        "segmentation_colors": [[1, 2, 3], [4, 5, 6]],
    }
    put(tmp_path, meta, "dataset_meta.json")
    masks = dataset(tmp_path).categories().masks
    assert masks
    assert masks.colormap == {0: (4, 5, 6), 1: (1, 2, 3)}
