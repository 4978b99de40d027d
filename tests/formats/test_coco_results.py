"""COCO result files: bare lists of scored boxes, masks, key points and captions."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayds.annotations import Bbox, Caption, Label, Mask, Points, Polygon
from rayds.dataset import Dataset
from rayds.engine.local import LocalEngine
from rayds.errors import DataError, FormatError
from rayds.formats.coco import CocoResults
from rayds.item import DatasetItem
from rayds.listing import Listing
from rayds.losses import summarize
from rayds.registry import detect_format

Json = dict[str, Any]
DATA = Path(__file__).parents[2].parent / "shared" / "data"
RESULTS = DATA / "coco_results" / "results"
needs_data = pytest.mark.skipif(not RESULTS.is_dir(), reason="no real data here")

BOX: Json = {"image_id": 7, "category_id": 18, "bbox": [1.5, 2, 3, 4], "score": 0.236}
TRUTH: Json = {
    "images": [{"id": i, "file_name": f"x/{i}.png", "width": 4, "height": 3} for i in (9, 7, 5)],
    "annotations": [],
    "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}],
}


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def dataset(path: Path, **options: Any) -> Dataset:
    return Dataset.import_from(str(path), "coco_results", engine="local", **options)


def test_items_come_in_the_order_of_their_images(tmp_path: Path) -> None:
    rows = [BOX, {**BOX, "image_id": 3, "category_id": 0}, {**BOX, "score": 0.5}]
    found = dataset(put(tmp_path / "d/instances_val_mine_results.json", rows))
    assert found.categories().labels.names() == ["category_0", "category_18"]
    first, second = found
    assert (first.id, first.subset, first.attributes, first.media) == ("7", "val_mine", {"id": 7}, None)
    assert first.annotations == [
        Bbox(1.5, 2, 3, 4, label=1, group=1, attributes={"score": 0.236}),
        Bbox(1.5, 2, 3, 4, label=1, group=3, attributes={"score": 0.5}),
    ]
    assert (second.id, [a.label for a in second.annotations]) == ("3", [0])


def test_ground_truth_gives_names_sizes_and_labels(tmp_path: Path) -> None:
    truth = put(tmp_path / "t/annotations/instances_val.json", TRUTH)
    results = put(tmp_path / "r.json", [BOX])
    items = list(dataset(results, ground_truth=str(truth)))
    assert [(i.id, i.attributes, len(i.annotations)) for i in items] == [
        ("x/9", {"id": 9}, 0),
        ("x/7", {"id": 7}, 1),
        ("x/5", {"id": 5}, 0),
    ]
    assert items[1].image
    assert items[1].image.size == (3, 4)
    assert dataset(results, ground_truth=str(truth)).categories().labels.names() == ["dog", "cat"]
    bad = put(tmp_path / "bad.json", [BOX, {**BOX, "image_id": 1}, {**BOX, "category_id": 3}])
    with pytest.raises(DataError, match=r"bad\.json, byte \d+, item 'image 7': the category id 3 is unknown"):
        list(dataset(bad, ground_truth=str(truth)))
    with pytest.raises(FormatError, match="one annotation file"):
        dataset(results, ground_truth=str(tmp_path))


def test_ground_truth_finds_images(tmp_path: Path) -> None:
    truth = put(tmp_path / "t/annotations/instances_val.json", TRUTH)
    image = tmp_path / "t/images/val/x/7.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    [_, item, _] = dataset(put(tmp_path / "val_results.json", [BOX]), ground_truth=str(truth))
    assert item.image
    assert item.image.path == str(image)


def test_files_of_one_subset_are_merged(tmp_path: Path) -> None:
    put(tmp_path / "bbox_val_results.json", [BOX])
    put(tmp_path / "keypoints_val_results.json", [{**BOX, "image_id": 3, "keypoints": [1, 2, 2]}])
    put(tmp_path / "captions_val_results.json", [{"image_id": 7, "caption": "a dog"}])
    put(tmp_path / "other.json", [])
    put(tmp_path / "config.json", {"image_id": 5})
    items = list(dataset(tmp_path))
    assert [(i.id, i.subset, [type(a) for a in i.annotations]) for i in items] == [
        ("7", "val", [Bbox, Caption]),
        ("3", "val", [Bbox, Points]),
    ]


@pytest.mark.parametrize("content", ["", "{}", '{"images": []}', '[{"id": 1}]', "[1, 2]", "[[1]]"])
def test_what_is_no_result_file(tmp_path: Path, content: str) -> None:
    path = put(tmp_path / "x.json", content)
    with pytest.raises(FormatError):
        dataset(tmp_path)
    assert CocoResults().detect(Listing(path)).score == 0


def test_detection(tmp_path: Path) -> None:
    path = put(tmp_path / "instances_val_results.json", [BOX])
    assert detect_format(str(path)).name == "coco_results"
    assert detect_format(str(tmp_path)).name == "coco_results"


def test_bad_records(tmp_path: Path) -> None:
    rows = [
        BOX,
        {**BOX, "bbox": [1, 2]},
        {k: v for k, v in BOX.items() if k != "image_id"},
        {**BOX, "image_id": 8},
    ]
    path = put(tmp_path / "r.json", rows)
    with pytest.raises(
        DataError, match=r"r\.json, byte \d+, item 'image 7': a box has 4 numbers, this one 2"
    ):
        list(dataset(path))
    found = dataset(path, on_error="skip")
    report = found.export(str(tmp_path / "o"), "coco_results")
    assert [e["reason"] for e in report.errors] == [
        "a box has 4 numbers, this one 2",
        "the key 'image_id' is missing",
    ]
    assert [(i.id, len(i.annotations)) for i in found] == [("7", 1), ("8", 1)]
    with pytest.raises(DataError, match="the file is cut off"):
        list(dataset(put(tmp_path / "cut.json", json.dumps(rows)[:-20])))


def written(tmp_path: Path, items: list[DatasetItem], **options: Any) -> tuple[Any, Json]:
    report = Dataset.from_iterable(items, ["cat", "dog"], engine="local").export(
        str(tmp_path / "o"), "coco_results", **options
    )
    return report, {f.name: json.loads(f.read_text()) for f in (tmp_path / "o").iterdir()}


def test_an_object_is_one_record(tmp_path: Path) -> None:
    base: Json = {"label": 1, "attributes": {"score": 0.25, "colour": "red"}}
    rle = Mask(np.eye(4, dtype=bool)).rle
    rows = [
        Bbox(1, 2, 3, 4, group=1, **base),
        Mask(rle=rle, group=1, **base),
        Bbox(1, 2, 3, 4, label=0),
        Polygon([0, 0, 2, 0, 2, 2], label=0),
        Points([1, 2, 3, 4], [2, 1], group=2, **base),
        Caption("a dog", attributes={"score": 0.5}),
        Label(1),
    ]
    empty = DatasetItem("b", subset="val", attributes={"id": 41})
    report, files = written(
        tmp_path, [DatasetItem("a", subset="val", attributes={"id": 40}, annotations=rows), empty]
    )
    told = {"score": 0.25, "attributes": {"colour": "red"}}
    assert files == {
        "instances_val_results.json": [
            {"image_id": 40, "category_id": 2, "bbox": [1, 2, 3, 4], "segmentation": rle, **told},
            {"image_id": 40, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1.0},
            {"image_id": 40, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]], "score": 1.0},
        ],
        "person_keypoints_val_results.json": [
            {"image_id": 40, "category_id": 2, "keypoints": [1, 2, 2, 3, 4, 1], **told}
        ],
        "captions_val_results.json": [{"image_id": 40, "caption": "a dog", "score": 0.5}],
        "labels_val_results.json": [{"image_id": 40, "category_id": 2}],
    }
    assert report.losses == {"items without annotations (a result file lists no images)": (1, "item 'b'")}


def test_options_of_the_writer(tmp_path: Path) -> None:
    rows = [Polygon([0, 0, 2, 0, 2, 2, 0, 2], label=0, attributes={"colour": "red"})]
    items = [DatasetItem("a", image=np.zeros((3, 4, 3), np.uint8), attributes={"id": 40}, annotations=rows)]
    report, files = written(tmp_path, items, segmentation_mode="mask", allow_attributes=False, reindex=True)
    [record] = files["instances_default_results.json"]
    assert record["image_id"] == 1
    assert record["segmentation"]["size"] == [3, 4]
    assert "attributes" not in record
    assert "attribute 'colour'" in report.losses


def test_nothing_to_tell(tmp_path: Path) -> None:
    _, files = written(tmp_path, [DatasetItem("a", subset="val")])
    assert files == {"instances_val_results.json": []}
    assert list(dataset(tmp_path / "o")) == []


@needs_data
@pytest.mark.parametrize("workers", [1, 3])
def test_real_results(tmp_path: Path, workers: int) -> None:
    found = Dataset.import_from(str(RESULTS), engine=LocalEngine(workers))
    assert found.format == "coco_results"
    counts = summarize(found.to_arrow()).annotations
    assert counts == {"bbox": 734, "mask": 734, "points": 125, "caption": 1000}
    report = found.export(str(tmp_path / "o"), "coco_results")
    assert report.losses == {}
    assert list(dataset(tmp_path / "o")) == list(found)
    for source in RESULTS.glob("*.json"):
        images: Json = {}
        for row in json.loads(source.read_text()):
            images.setdefault(row["image_id"], []).append(row)
        expected = [r for rows in images.values() for r in rows]  # by image
        assert json.loads((tmp_path / "o" / source.name).read_text()) == expected


@needs_data
def test_pycocotools_takes_them(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    rows = [BOX, {**BOX, "segmentation": Mask(np.eye(4, dtype=bool)).rle}]
    dataset(put(tmp_path / "val_results.json", rows)).export(str(tmp_path / "o"), "coco_results")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(put(tmp_path / "t.json", TRUTH)))
        loaded = truth.loadRes(str(tmp_path / "o/instances_val_results.json"))
    assert [a["score"] for a in loaded.anns.values()] == [0.236, 0.236]
    assert loaded.annToMask(loaded.anns[2]).sum() == 4
