"""YOLO in the layouts of Ultralytics and others: data.yaml; detect, segment, pose, obb, classify."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yolo_data import LABELS, by_key, item, picture, put, read, small, tree, write

from rayds.annotations import Bbox, Label, Mask, Points, Polygon, RotatedBbox
from rayds.categories import Categories, LabelCategories, PointsCategories
from rayds.errors import DataError, UsageError
from rayds.item import DatasetItem
from rayds.schema import AnnotationType

# ---- layouts that Ultralytics and others make


def test_ultralytics_folders(tmp_path):
    put(
        tmp_path,
        {
            "data.yaml": "path: ../datasets/coco8  # root\ntrain: images/train\nval: images/val\ntest:\n\nnames:\n  0: person\n  2: car\n\ndownload: https://x/y.zip\n",
            "labels/train/a.txt": "2 0.5 0.5 0.25 0.5\n",
            "labels/val/b.txt": "0 0.1 0.1 0.9 0.1 0.9 0.9\n",
        },
    )
    picture(tmp_path / "images/train/a.jpg")
    picture(tmp_path / "images/train/background.jpg")
    picture(tmp_path / "images/val/b.png")
    dataset = read(tmp_path)
    assert dataset.format == "yolo_ultralytics"
    assert dataset.categories().labels.names() == ["person", "class_1", "car"]
    found = by_key(dataset)
    assert set(found) == {("train", "a"), ("train", "background"), ("val", "b")}
    assert found["train", "a"].annotations == [Bbox(30, 10, 20, 20, label=2)]
    assert found["train", "background"].annotations == []
    assert found["val", "b"].annotations[0].points == pytest.approx([8, 4, 72, 4, 72, 36])


def test_roboflow_layout(tmp_path):
    put(
        tmp_path,
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['a', 'a b']\nroboflow:\n  license: CC BY 4.0\n",
            "train/labels/x_jpg.rf.123.txt": "1 0.5 0.5 1 1\n",
            "valid/labels/y.txt": "",
            "README.roboflow.txt": "hello",
        },
    )
    picture(tmp_path / "train/images/x_jpg.rf.123.jpg")
    picture(tmp_path / "valid/images/y.jpg")
    with pytest.warns(UserWarning, match=r"test: \.\./test/images is not there"):
        dataset = read(tmp_path)
    found = by_key(dataset)
    assert set(found) == {("train", "x_jpg.rf.123"), ("val", "y")}
    assert found["train", "x_jpg.rf.123"].annotations == [Bbox(0, 0, 80, 40, label=1)]
    dataset.export(str(tmp_path / "out"), "yolo_ultralytics")
    assert yaml.safe_load((tmp_path / "out/data.yaml").read_text())["roboflow"] == {"license": "CC BY 4.0"}


def test_lists_and_lists_of_folders(tmp_path):
    put(
        tmp_path,
        {
            "coco.yaml": "path: /datasets/coco\ntrain: train2017.txt\nval: [images/v1, images/v2]\nnames: [a]\n",
            "train2017.txt": "./images/train2017/b.jpg\n./images/train2017/a.jpg\n",
            "labels/train2017/b.txt": "0 .5 .5 1 1\n",
        },
    )
    for name in ("train2017/a", "train2017/b", "v1/x", "v2/x"):
        picture(tmp_path / f"images/{name}.jpg")
    dataset = read(tmp_path)
    assert [(i.subset, i.id, len(i.annotations)) for i in dataset] == [
        ("train", "b", 1),
        ("train", "a", 0),
        ("val", "v1/x", 0),
        ("val", "v2/x", 0),
    ]


def test_one_folder_named_twice_is_read_once(tmp_path):
    put(tmp_path, {"coco128.yaml": "train: images/train2017\nval: images/train2017\nnames: [a]\n"})
    picture(tmp_path / "images/train2017/a.jpg")
    assert [(i.subset, i.id) for i in read(tmp_path)] == [("train", "a")]


def test_classes_txt_and_no_yaml(tmp_path):
    put(tmp_path, {"classes.txt": "a\nb\n", "labels/x.txt": "1 .5 .5 1 1\n", "notes.json": "{}"})
    picture(tmp_path / "images/x.jpg")
    (found,) = read(tmp_path)
    assert (found.id, found.annotations) == ("x", [Bbox(0, 0, 80, 40, label=1)])


def test_two_images_of_one_name_are_two_items(tmp_path):
    put(tmp_path, {"data.yaml": "train: images\nnames: [a]\n", "labels/x.txt": "0 .5 .5 1 1\n"})
    picture(tmp_path / "images/x.jpg")
    picture(tmp_path / "images/x.png", 20, 20)
    found = by_key(read(tmp_path))
    assert {k[1]: i.annotations for k, i in found.items()} == {
        "x": [Bbox(0, 0, 80, 40, label=0)],
        "x.png": [Bbox(0, 0, 20, 20, label=0)],
    }


def test_obb_by_yaml_option_or_name(tmp_path):
    line = "1 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8\n"
    corners = [20, 20, 100, 20, 100, 80, 20, 80]
    (polygon,) = next(iter(read(small(tmp_path / "plain", "", line)))).annotations
    assert polygon == Polygon(corners, label=1)
    for root, options in (
        (small(tmp_path / "dota8", "", line), {}),
        (small(tmp_path / "yaml", "task: obb\n", line), {}),
        (tmp_path / "plain", {"task": "obb"}),
    ):
        (box,) = next(iter(read(root, "yolo_ultralytics", **options))).annotations
        assert isinstance(box, RotatedBbox)
        assert [box.cx, box.cy, box.w, box.h, box.r] == pytest.approx([60, 50, 80, 60, 0])
    skew = small(tmp_path / "skew-obb", "", "0 0.1 0.2 0.5 0.3 0.5 0.8 0.1 0.8\n")
    assert isinstance(next(iter(read(skew))).annotations[0], Polygon)


def test_pose_lines(tmp_path):
    line = "0 0.5 0.5 0.2 0.4 0.5 0.5 2 0 0 0 0.25 0.75 1\n1 0.5 0.5 0.2 0.4" + " 0" * 9 + "\n"
    text = "kpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\nkpt_names: {0: [nose, l, r]}\nskeleton: [[1, 2]]\n"
    dataset = read(small(tmp_path / "in", text, line))
    (found,) = dataset
    box, points, other = found.annotations
    assert box == Bbox(80, 30, 40, 40, label=0, group=1)
    assert points == Points([100, 50, 0, 0, 50, 75], [2, 0, 1], label=0, group=1)
    assert other == Bbox(80, 30, 40, 40, label=1, group=2)  # all key points absent: a box
    assert dataset.categories().points.items[0].labels == ["nose", "l", "r"]
    report = dataset.export(str(tmp_path / "out"), "yolo_ultralytics", task="pose")
    assert not report.losses
    assert (tmp_path / "out/labels/train/x.txt").read_text() == line
    made = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert made["kpt_shape"] == [3, 3]
    assert made["flip_idx"] == [0, 2, 1]
    assert made["kpt_names"][0] == ["nose", "l", "r"]
    assert made["skeleton"] == [[1, 2]]


def test_pose_of_two_dimensions(tmp_path):
    dataset = read(small(tmp_path, "kpt_shape: [2, 2]\n", "0 .5 .5 .5 .5 .5 .25 -1 -1\n"))
    points = next(iter(dataset)).annotations[1]
    assert (points.points[:2], points.visibility) == ([100, 25], [2, 0])


@pytest.mark.parametrize(
    ("text", "line", "options", "reason"),
    [
        ("", "0 .5 .5 .1 .1 .2 .2 .3\n", {}, "8 numbers, not 5 (box), 6"),
        ("", "0 .1 .1 .9 .1 .9 .9\n", {"task": "detect"}, "7 numbers, not 5, or 6"),
        ("", "0 .1 .1 .9\n", {"task": "segment"}, "4 numbers, not 7 or more"),
        ("", "0 .1 .1 .9 .1 .9 .9\n", {"task": "obb"}, "7 numbers, not 9"),
        (
            "kpt_shape: [2, 3]\n",
            "0 .5 .5 .1 .1 .5 .5 2\n",
            {},
            "8 numbers, not 11 (box and 2 key points of 3 numbers)",
        ),
        (
            "kpt_shape: [1, 3]\n",
            "0 .5 .5 .1 .1 .5 .5 .98\n",
            {},
            "visibility of a key point is not 0, 1 or 2",
        ),
        ("", "0 .1 .1 .9 .1 .9 400\n", {}, "not fractions"),
    ],
)
def test_bad_lines_of_tasks(tmp_path, text, line, options, reason):
    root = small(tmp_path, text, "0 .5 .5 1 1\n" * ("task" not in options) + line)
    with pytest.raises(DataError) as e:
        list(read(root, "yolo_ultralytics", **options))
    assert reason in str(e.value)
    assert e.value.file == str(root / "labels/train/x.txt")
    assert e.value.place == f"line {1 + ('task' not in options)}"
    assert e.value.item == "x"


def test_confidences_of_tasks(tmp_path):
    line = "0 .1 .1 .9 .1 .9 .9 0.5\n"
    (found,) = read(small(tmp_path / "s", "task: segment\n", line))
    assert found.annotations[0].attributes == {"score": 0.5}
    assert len(found.annotations[0].points) == 6
    (found,) = read(small(tmp_path / "p", "kpt_shape: [1, 3]\n", "0 .5 .5 .1 .1 .5 .5 2 0.25\n"))
    assert [a.attributes for a in found.annotations] == [{"score": 0.25}] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a\ntrain: x\n", r"data.yaml, line 2: not valid YAML"),
        ("names: {x: a}\ntrain: images/train\n", "keys that are not class indices"),
        ("names: [a]\nkpt_shape: 17\ntrain: images/train\n", r"kpt_shape is 17, not \[number, 2\]"),
        ("names: [a]\ntask: pose\ntrain: images/train\n", "number of key points is not known.*kpt_shape"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    put(tmp_path, {"data.yaml": text})
    picture(tmp_path / "images/train/x.jpg")
    with pytest.raises(DataError, match=message):
        read(tmp_path, "yolo_ultralytics")


def test_yaml_without_images(tmp_path):
    put(tmp_path, {"data.yaml": "names: [a]\ntrain: ../../etc\n"})
    with (
        pytest.warns(UserWarning, match="etc is not there"),
        pytest.raises(DataError, match=r"no images and labels.*beside data.yaml"),
    ):
        read(tmp_path)


# ---- writing the layout of Ultralytics


def test_ultralytics_layout(tmp_path):
    items = [
        item("a", [Bbox(64, 48, 128, 96, label=1)]),
        item("b"),
        item("s/c", subset="val"),
        item("d", subset="extra"),
    ]
    write(items, tmp_path / "out", "yolo_ultralytics")
    out = tmp_path / "out"
    assert tree(out) == [
        "data.yaml",
        "images.meta",
        "labels/extra/d.txt",
        "labels/train/a.txt",
        "labels/train/b.txt",
        "labels/val/s/c.txt",
    ]
    assert yaml.safe_load((out / "data.yaml").read_text()) == {
        "train": "images/train",
        "val": "images/val",
        "extra": "images/extra",
        "nc": 3,
        "names": {0: "cat", 1: "dog", 2: "traffic light"},
        "task": "detect",
    }
    assert (out / "labels/train/a.txt").read_text() == "1 0.2 0.2 0.2 0.2\n"
    assert (out / "labels/train/b.txt").read_text() == ""
    assert set(by_key(read(out))) == {("train", "a"), ("train", "b"), ("val", "s/c"), ("extra", "d")}


@pytest.mark.parametrize(
    "subsets",
    [["default"], ["val"], ["valid", "train"], ["test"], ["train2017", "val2017"], ["default", "train"]],
)
def test_any_subsets_come_back_and_ultralytics_finds_train_and_val(tmp_path, subsets):
    items = [item("a", [Bbox(0, 0, i + 1, 1, label=0)], subset=s) for i, s in enumerate(subsets)]
    write(items, tmp_path / "out", "yolo_ultralytics")
    made = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    for key in ("train", "val"):
        assert (tmp_path / "out" / made[key].replace("images", "labels")).is_dir()
    found = by_key(read(tmp_path / "out"))
    assert {k: round(i.annotations[0].w, 6) for k, i in found.items()} == {
        (s, "a"): i + 1 for i, s in enumerate(subsets)
    }


def test_segment(tmp_path):
    polygons = [
        Polygon([0, 0, 64, 0, 64, 48], label=0, group=1),
        Polygon([1.5, 2.25, 3, 4, 5, 6, 7, 8], label=0, group=1),
        Mask(np.ones((480, 640)), label=1),
        Bbox(0, 0, 1, 1, label=1),
    ]
    report = write([item("a", polygons), item("b")], tmp_path / "out", "yolo_ultralytics", task="segment")
    assert set(report.losses) == {
        "mask annotations",
        "bbox annotations",
        "annotations tied to others by group",
    }
    assert (tmp_path / "out/labels/train/a.txt").read_text().splitlines()[0] == "0 0 0 0.1 0 0.1 0.1"
    found = by_key(read(tmp_path / "out"))
    back = found["train", "a"].annotations
    assert [type(a) for a in back] == [Polygon, Polygon]
    for a, b in zip(back, polygons, strict=False):
        assert np.allclose(a.points, b.points, rtol=0, atol=1e-6)


@given(st.floats(0, 600), st.floats(0, 400), st.floats(1, 300), st.floats(1, 300), st.floats(-179, 180))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rotated_boxes_survive(tmp_path_factory, cx, cy, w, h, r):
    out = tmp_path_factory.mktemp("obb") / "out"
    box = RotatedBbox(cx, cy, w, h, r, label=2)
    write([item("a", [box])], out, "yolo_ultralytics", task="obb")
    (back,) = next(iter(read(out))).annotations
    assert isinstance(back, RotatedBbox)
    assert back.label == 2
    assert [back.cx, back.cy, back.w, back.h] == pytest.approx([cx, cy, w, h], abs=1e-5)
    assert np.allclose(back.corners(), box.corners(), rtol=0, atol=1e-5)


def test_obb_writes_quadrangles_and_tells_of_other_polygons(tmp_path):
    annotations = [
        Polygon([0, 0, 64, 10, 64, 48, 0, 48], label=0),
        Polygon([0, 0, 64, 0, 64, 48], label=1),
        RotatedBbox(50, 50, 20, 10, 30, label=1),
    ]
    report = write([item("a", annotations)], tmp_path / "out", "yolo_ultralytics", task="obb")
    assert {k: n for k, (n, _) in report.losses.items()} == {"polygons that have not 4 points": 1}
    back = next(iter(read(tmp_path / "out"))).annotations
    assert [type(a) for a in back] == [Polygon, RotatedBbox]
    assert back[1].r == pytest.approx(30, abs=1e-4)


def pose_categories(n):
    labels = LabelCategories.from_iterable(["person"])
    return Categories(
        {
            AnnotationType.label: labels,
            AnnotationType.points: PointsCategories.from_iterable([(0, [f"k{i}" for i in range(n)])]),
        }
    )


def test_pose_instances(tmp_path):
    annotations = [
        Bbox(0, 0, 64, 48, label=0, group=5),
        Points([64, 48, 128, 96], [2, 1], label=0, group=7),  # without a box
        Points([32, 24, 0, 0], [2, 0], label=0, group=5),
        Bbox(0, 0, 640, 480, label=0),  # without points
    ]
    write(
        [item("a", annotations)], tmp_path / "out", "yolo_ultralytics", labels=pose_categories(2), task="pose"
    )
    assert (tmp_path / "out/labels/train/a.txt").read_text() == (
        "0 0.05 0.05 0.1 0.1 0.05 0.05 2 0 0 0\n0 0.15 0.15 0.1 0.1 0.1 0.1 2 0.2 0.2 1\n0 0.5 0.5 1 1 0 0 0 0 0 0\n"
    )
    back = next(iter(read(tmp_path / "out"))).annotations
    assert [(type(a).__name__, a.group) for a in back] == [
        ("Bbox", 1),
        ("Points", 1),
        ("Bbox", 2),
        ("Points", 2),
        ("Bbox", 3),
    ]
    assert back[1].points == pytest.approx([32, 24, 0, 0])
    assert back[1].visibility == [2, 0]


def test_pose_needs_the_number_of_points(tmp_path):
    items = [item("a", [Points([1, 2], label=0), Points([1, 2, 3, 4, 5, 6], label=0)])]
    with pytest.raises(UsageError, match="--keypoints"):
        write(items, tmp_path / "out", "yolo_ultralytics", task="pose")
    report = write(items, tmp_path / "out", "yolo_ultralytics", task="pose", keypoints=2)
    assert report.losses["points annotations with more than 2 points"][0] == 1
    (points,) = (a for a in next(iter(read(tmp_path / "out"))).annotations if isinstance(a, Points))
    assert points.visibility == [2, 0]


def test_classify(tmp_path):
    for name in ("1", "2", "3", "4"):
        picture(tmp_path / f"in/{name}.jpg")

    def photo(id, labels, subset):
        annotations = [Label(k) for k in labels]
        return DatasetItem(id, annotations, subset=subset, image=str(tmp_path / f"in/{id[-1]}.jpg"))

    items = [
        photo("1", [0], "train"),
        photo("dog/2", [1, 0], "train"),
        photo("3", [2], "val"),
        photo("4", [], "val"),
    ]
    with pytest.raises(UsageError, match="--save-media"):
        write(items, tmp_path / "out", "yolo_ultralytics", task="classify")
    report = write(items, tmp_path / "out", "yolo_ultralytics", task="classify", save_media=True)
    assert tree(tmp_path / "out") == [
        "data.yaml",
        "train/cat/1.jpg",
        "train/dog/2.jpg",
        "val/traffic light/3.jpg",
    ]
    assert {k: n for k, (n, _) in report.losses.items()} == {
        "images without a class": 1,
        "classes of an image beyond its first": 1,
    }
    dataset = read(tmp_path / "out")
    assert dataset.categories().labels.names() == LABELS
    assert {k: i.annotations for k, i in by_key(dataset).items()} == {
        ("train", "cat/1"): [Label(0)],
        ("train", "dog/2"): [Label(1)],
        ("val", "traffic light/3"): [Label(2)],
    }
    (tmp_path / "out/data.yaml").unlink()
    dataset = read(tmp_path / "out", "yolo_ultralytics", task="classify")
    assert len(dataset) == 3
