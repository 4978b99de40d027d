"""Datumaro's JSON as Datumaro writes and reads it: versions, keys in any order, media, meta files."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from datumaro_data import LABELS, block_of, document, load, put, read

from rayds.annotations import (
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
    encode_mask,
)
from rayds.categories import Categories, LabelCategories, MaskCategories, PointsCategories
from rayds.dataset import Dataset
from rayds.engine.base import Position
from rayds.errors import DataError
from rayds.format import WriteContext
from rayds.formats.datumaro import Datumaro
from rayds.item import DatasetItem, to_table
from rayds.listing import Listing
from rayds.media import Image, PointCloud
from rayds.registry import detect_format
from rayds.schema import AnnotationType
from rayds.storage import Storage


def test_the_file_is_what_datumaro_reads(tmp_path):
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    common = {"label": 1, "id": 7, "group": 3, "attributes": {"occluded": True}}
    item = DatasetItem(
        "a/b",
        [
            Label(2),
            Bbox(1, 2, 3.5, 4, z_order=2, **common),
            Polygon([0, 0, 1, 0, 1, 1]),
            PolyLine([0, 0, 1, 1]),
            Points([1, 2, 3, 4], [0, 2]),
            Ellipse(1, 2, 3, 4),
            RotatedBbox(5, 6, 7, 8, 30),
            Cuboid3d([1, 2, 3], [0, 0, 1], [4, 5, 6], label=0),
            Caption("hi"),
            Mask(mask, label=0),
        ],
        "train",
        image=Image("/nowhere/x.png", size=(5, 6)),
        attributes={"frame": 3},
    )
    Dataset.from_iterable([item], LABELS).export(str(tmp_path / "out"), "datumaro")
    zero = {"id": 0, "attributes": {}, "group": 0}
    shape = {**zero, "label_id": None, "z_order": 0}
    assert load(tmp_path / "out") == {
        "dm_format_version": "1.0",
        "media_type": 2,
        "infos": {},
        "categories": {
            "label": {
                "labels": [{"name": n, "parent": "", "attributes": []} for n in LABELS],
                "label_groups": [],
                "attributes": [],
            }
        },
        "items": [
            {
                "id": "a/b",
                "annotations": [
                    {**zero, "type": "label", "label_id": 2},
                    {
                        "id": 7, "type": "bbox", "attributes": {"occluded": True}, "group": 3, "label_id": 1,
                        "bbox": [1.0, 2.0, 3.5, 4.0], "z_order": 2,
                    },
                    {**shape, "type": "polygon", "points": [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]},
                    {**shape, "type": "polyline", "points": [0.0, 0.0, 1.0, 1.0]},
                    {**shape, "type": "points", "points": [1.0, 2.0, 3.0, 4.0], "visibility": [0, 2]},
                    {**shape, "type": "ellipse", "points": [1.0, 2.0, 3.0, 4.0]},
                    {**shape, "type": "rotated_bbox", "points": [5.0, 6.0, 7.0, 8.0, 30.0]},
                    {
                        **zero, "type": "cuboid_3d", "label_id": 0, "position": [1.0, 2.0, 3.0],
                        "rotation": [0.0, 0.0, 1.0], "scale": [4.0, 5.0, 6.0],
                    },
                    {**zero, "type": "caption", "caption": "hi"},
                    {
                        **zero, "type": "mask", "label_id": 0, "z_order": 0,
                        "rle": {"counts": encode_mask(mask)["counts"], "size": [5, 6]},
                    },
                ],
                "attr": {"frame": 3},
                "image": {"path": "a/b.png", "size": [5, 6]},
            }
        ],
    }  # fmt: skip


V011 = """{
  "info": {"author": "someone"},
  "categories": {
    "label": {"labels": [{"name": "cat", "parent": "", "attributes": ["x"]}, {"name": "dog", "parent": "cat"}],
              "attributes": ["occluded"]},
    "mask": {"colormap": [{"label_id": 0, "r": 1, "g": 2, "b": 3}]},
    "points": {"items": [{"label_id": 0, "labels": ["nose", "ear"], "joints": [[1, 2]]}]}
  },
  "items": [
    {"id": "d/a", "annotations": [
       {"id": 1, "type": "bbox", "attributes": {"score": 1.0}, "group": 5, "label_id": 1, "z_order": 1, "bbox": [1, 2, 3, 4]},
       {"id": 2, "type": "caption", "attributes": {}, "group": 0, "caption": "hello"},
       {"id": 3, "type": "points", "attributes": {}, "group": 0, "label_id": null, "points": [1, 2.5], "z_order": 0,
        "visibility": [1]},
       {"id": 4, "type": "mask", "attributes": {}, "group": 0, "label_id": 0, "z_order": 0,
        "rle": {"counts": [2, 3, 1], "size": [2, 3]}}
     ], "image": {"path": "d/a.jpg", "size": [10, 6]}},
    {"id": "b", "annotations": [], "attr": {"frame": 1}, "point_cloud": {"path": "b.pcd"},
     "related_images": [{"path": "image_0.png"}]}
  ]
}"""


def test_the_layout_of_datumaro_0_1(tmp_path):
    put(tmp_path, V011)
    for name in ("images/train/d/a.jpg", "point_clouds/train/b.pcd", "related_images/train/b/image_0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    dataset = Dataset.import_from(str(tmp_path))
    assert dataset.format == "datumaro"
    a, b = dataset
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert a.annotations == [
        Bbox(1, 2, 3, 4, label=1, id=1, group=5, attributes={"score": 1.0}, z_order=1),
        Caption("hello", id=2),
        Points([1, 2.5], [1], id=3),
        Mask(mask, label=0, id=4),
    ]
    assert (a.id, a.subset, a.image.size) == ("d/a", "train", (10, 6))
    assert a.image.path == str(tmp_path / "images/train/d/a.jpg")
    assert b.media == PointCloud(
        str(tmp_path / "point_clouds/train/b.pcd"), [str(tmp_path / "related_images/train/b/image_0.png")]
    )
    assert b.attributes == {"frame": 1}
    categories = dataset.categories()
    assert (
        categories.labels.items == LabelCategories.from_iterable([("cat", "", ["x"]), ("dog", "cat")]).items
    )
    assert categories.labels.attributes == {"occluded"}
    assert categories.masks == MaskCategories({0: (1, 2, 3)})
    assert categories.points == PointsCategories.from_iterable([(0, ["nose", "ear"], [(1, 2)])])
    dataset.export(str(tmp_path / "out"), "datumaro")
    written = load(tmp_path / "out")
    assert written["infos"] == {"author": "someone"}
    assert written["media_type"] == 1
    assert written["items"][1]["related_images"] == [{"path": "image_0.png"}]


def test_the_layout_of_datumaro_1(tmp_path):
    annotation = {
        "id": 0,
        "type": "bbox",
        "attributes": {},
        "group": 0,
        "object_id": 9,
        "label_id": 0,
        "z_order": 0,
    }
    item = {
        "id": "v",
        "annotations": [
            {**annotation, "bbox": [1.25, 2, 3, 4], "new": {"a": [1, None]}},
            {**annotation, "bbox": [0, 0, 1, 1]},
        ],
        "video_frame": {"video_path": "v.mp4", "frame_index": 3},
        "later": [1],
    }
    groups = [{"name": "g", "group_type": "exclusive", "labels": ["cat"]}]
    content = {
        "dm_format_version": "1.0",
        "media_type": 4,
        "infos": {"a": [1]},
        "categories": {
            "label": {
                "labels": [{"name": "cat", "parent": "", "attributes": [], "hue": 3}],
                "label_groups": groups,
                "attributes": [],
                "more": 1,
            },
            "points": {"items": [{"label_id": 0, "labels": ["p"], "joints": [], "positions": [0.5, 1.0]}]},
            "tabular": {"x": []},
        },
        "newer": {"x": 1},
        "items": [item],
    }
    put(tmp_path, content)
    dataset = Dataset.import_from(str(tmp_path))
    (found,) = dataset
    assert found.media is None
    assert found.extra == {"datumaro": {"video_frame": item["video_frame"], "later": [1]}}
    assert [a.extra for a in found.annotations] == [
        {"datumaro": {"object_id": 9, "new": {"a": [1, None]}}},
        {"datumaro": {"object_id": 9}},
    ]
    dataset.export(str(tmp_path / "out"), "datumaro")
    assert load(tmp_path / "out") == content


def test_a_file_in_any_key_order_and_with_top_level_keys_behind_the_items(tmp_path):
    content = document({"annotations": [{"bbox": [1, 2, 3, 4], "label_id": 2, "type": "bbox"}], "id": "a"})
    content = {"items": content["items"], "infos": {"x": 1}, "categories": content["categories"], "z": [{}]}
    put(tmp_path, json.dumps(content, indent=3))
    dataset = Dataset.import_from(str(tmp_path))
    assert [a.label for a in next(iter(dataset)).annotations] == [2]
    assert dataset.infos["datumaro"]["subsets"]["train"]["infos"] == {"x": 1}
    dataset.export(str(tmp_path / "out"), "datumaro")
    assert load(tmp_path / "out")["z"] == [{}]


def test_a_long_header_and_a_long_tail(tmp_path):
    names = [f"label {i:05d} {'é' * 9}" for i in range(4000)]
    put(tmp_path, document({"id": "a", "annotations": []}, labels=names), "head")
    content = document({"id": "a", "annotations": [{"type": "label", "label_id": 3999}]}, labels=names)
    put(tmp_path, {"items": content["items"], "categories": content["categories"]}, "tail")
    dataset = read(tmp_path)
    assert dataset.categories().labels.names() == names
    assert [len(i.annotations) for i in dataset] == [0, 1]
    assert detect_format(str(tmp_path)).name == "datumaro"


def test_subsets_with_other_labels_are_brought_together_by_name(tmp_path):
    put(
        tmp_path,
        document({"id": "a", "annotations": [{"type": "label", "label_id": 0}]}, labels=["x", "y"]),
        "a",
    )
    put(tmp_path, document({"id": "b", "annotations": [{"type": "label", "label_id": 0}, {"type": "label", "label_id": None}]}, labels=["z", "y"]), "b")  # fmt: skip
    dataset = read(tmp_path)
    assert dataset.categories().labels.names() == ["x", "y", "z"]
    assert [[a.label for a in i.annotations] for i in dataset] == [[0], [2, None]]


@pytest.mark.parametrize("name", ["annotations/train.json", "alone.json"])
def test_one_file_is_a_dataset(tmp_path, name):
    path = put(tmp_path, document({"id": "p", "annotations": [], "image": {"path": "p.jpg"}}))
    (tmp_path / "p.jpg").write_bytes(b"beside")
    if name == "alone.json":
        path = path.rename(tmp_path / name)
    dataset = Dataset.import_from(str(tmp_path / name))
    (item,) = dataset
    assert dataset.format == "datumaro"
    assert item.subset == path.stem
    assert item.image.path == str(tmp_path / "p.jpg")


def test_the_other_subsets_are_not_read_with_one_file(tmp_path):
    for subset in ("train", "val"):
        put(tmp_path, document({"id": subset, "annotations": []}), subset)
    assert [i.id for i in read(tmp_path / "annotations" / "val.json")] == ["val"]


def test_detection_tells_datumaro_from_coco(tmp_path):
    fmt = Datumaro()
    assert fmt.detect(Listing(tmp_path)).score == 0
    path = put(tmp_path, {"images": [], "categories": [], "annotations": []}, "instances_train")
    assert fmt.detect(Listing(tmp_path)).score == 0
    path.unlink()
    put(tmp_path, document())
    assert fmt.detect(Listing(tmp_path)).score == 90
    put(tmp_path, '{"info": {}, "categories": {"label": {"labels": [')
    assert fmt.detect(Listing(tmp_path)).score == 0
    put(tmp_path, "[1, 2]")
    assert fmt.detect(Listing(tmp_path)).score == 0


# media


def picture(path, height=4, width=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 9, np.uint8))
    return path


def test_images_are_saved_and_found_again(tmp_path):
    picture(tmp_path / "in/x.png")
    (tmp_path / "in/c.pcd").write_bytes(b"cloud")
    items = [
        DatasetItem("d/x", subset="train", image=str(tmp_path / "in/x.png")),
        DatasetItem("y", subset="val", image=np.full((3, 5, 3), 7, np.uint8)),
        DatasetItem(
            "z",
            subset="val",
            point_cloud=PointCloud(str(tmp_path / "in/c.pcd"), [str(tmp_path / "in/x.png")]),
        ),
    ]
    out = tmp_path / "out"
    Dataset.from_iterable(items).export(str(out), "datumaro", save_media=True)
    x, y, z = read(out)
    assert (out / "images/train/d/x.png").read_bytes() == (tmp_path / "in/x.png").read_bytes()
    assert x.image.path == str(out / "images/train/d/x.png")
    assert (y.image.pixels == 7).all()
    assert z.media == PointCloud(
        str(out / "point_clouds/val/z.pcd"), [str(out / "images/val/z/extra_image_0.png")]
    )
    assert (out / "point_clouds/val/z.pcd").read_bytes() == b"cloud"
    assert (out / "images/val/z/extra_image_0.png").exists()


def test_image_ext_makes_other_images(tmp_path):
    picture(tmp_path / "x.png")
    out = tmp_path / "out"
    Dataset.from_iterable([DatasetItem("x", image=str(tmp_path / "x.png"))]).export(
        str(out), "datumaro", save_media=True, image_ext=".bmp"
    )
    (item,) = read(out)
    assert item.image.path == str(out / "images/default/x.bmp")
    assert item.image.pixels.shape == (4, 6, 3)


@pytest.mark.parametrize("folder", ["images/train", "images", "."])
def test_images_are_looked_for_where_datumaro_looks(tmp_path, folder):
    picture(tmp_path / folder / "s/p.png")
    record = {"id": "q", "annotations": [], "image": {"path": "s/p.png", "size": [4, 6]}}
    put(tmp_path, document(record))
    (item,) = read(tmp_path)
    assert item.image.path == str((tmp_path / folder / "s/p.png").resolve())
    read(tmp_path).export(str(tmp_path / "out"), "datumaro")
    assert load(tmp_path / "out")["items"][0] == record
    read(tmp_path).export(str(tmp_path / "saved"), "datumaro", save_media=True)
    assert load(tmp_path / "saved")["items"][0]["image"] == {"path": "q.png", "size": [4, 6]}


def test_an_absolute_path_is_not_followed(tmp_path):
    secret = picture(tmp_path / "elsewhere/p.png")
    record = {"id": "p", "annotations": [], "image": {"path": str(secret), "new": 1}}
    put(tmp_path / "in", document(record, {**record, "id": "q", "image": {"path": str(secret)}}))
    items = list(read(tmp_path / "in"))
    assert {i.image.path for i in items} == {str(tmp_path / "in/images/train/p.png")}
    read(tmp_path / "in").export(str(tmp_path / "out"), "datumaro")
    assert load(tmp_path / "out") == {**load(tmp_path / "out"), "items": load(tmp_path / "in")["items"]}


# writing


def test_dataset_meta(tmp_path):
    categories = Categories.of(LABELS)
    categories[AnnotationType.mask] = MaskCategories({0: (0, 0, 0), 1: (1, 2, 3)})
    items = [DatasetItem("a", [Label(1)])]
    Dataset.from_iterable(items, categories).export(str(tmp_path / "out"), "datumaro", save_dataset_meta=True)
    assert json.loads((tmp_path / "out/dataset_meta.json").read_text())["labels"] == LABELS
    again = read(tmp_path / "out").categories()
    assert again == categories


def test_an_empty_dataset(tmp_path):
    Dataset.from_iterable([], LABELS).export(str(tmp_path / "out"), "datumaro")
    dataset = Dataset.import_from(str(tmp_path / "out"))
    assert list(dataset) == []
    assert dataset.categories().labels.names() == LABELS


def test_what_json_can_not_hold_is_named_or_left_out(tmp_path):
    items = [
        DatasetItem("a", [Bbox(1, 2, 3, 4)]),
        DatasetItem("b", [Label(0), Polygon([0, 0, 1, 1, float("nan"), 2])]),
    ]
    with pytest.raises(DataError, match="item 'b': a coordinate of an annotation is no finite number"):
        Dataset.from_iterable(items, LABELS).export(str(tmp_path / "out"), "datumaro")
    assert not (tmp_path / "out").exists()
    report = Dataset.from_iterable(items, LABELS).export(str(tmp_path / "out"), "datumaro", on_error="skip")
    assert [i["id"] for i in load(tmp_path / "out", "default")["items"]] == ["a"]
    assert report.items == 1


@pytest.mark.parametrize("subset", ["a/b", "..", "a\\b"])
def test_a_subset_must_be_a_file_name(tmp_path, subset):
    with pytest.raises(DataError, match="can't be the name of a file"):
        Dataset.from_iterable([DatasetItem("a", subset=subset)]).export(str(tmp_path / "out"), "datumaro")


def test_fields_of_other_formats_are_told_and_left_out(tmp_path):
    items = [DatasetItem("a", [Bbox(1, 2, 3, 4, extra={"coco": {"area": 5}, "datumaro": {"object_id": 3}})], extra={"coco": {"license": 1}})]  # fmt: skip
    report = Dataset.from_iterable(items).export(str(tmp_path / "out"), "datumaro")
    (item,) = load(tmp_path / "out", "default")["items"]
    assert item == {"id": "a", "annotations": [{**item["annotations"][0], "object_id": 3}]}
    assert (
        any("only their source format" in kind for kind in report.notes)
        if hasattr(report, "notes")
        else report.items
    )


def test_a_block_is_written_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("rayds.formats.datumaro.write.PIECE_BYTES", 2000)
    table = to_table(block_of(50))
    ctx = WriteContext(Storage(tmp_path), Datumaro.WriteOptions(), Categories.of(LABELS))
    fragments = Datumaro().write(table, Position(0), ctx)
    Datumaro().finish([fragments], ctx)
    ids = [i["id"] for s in ("train", "val") for i in load(tmp_path, s)["items"]]
    assert sorted(ids) == table.column("id").to_pylist()
