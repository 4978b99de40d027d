"""YOLO in darknet's layout: obj.data, obj.names, list files and images.meta, written and read."""

from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pytest
from yolo_data import LABELS, by_key, darknet, item, picture, put, read, tree, write

from rayds.annotations import Bbox, Label, Polygon
from rayds.errors import DataError, LossError
from rayds.format import PlanContext
from rayds.formats._images_meta import images_meta_lines, parse_images_meta, subset_line
from rayds.formats.yolo import _paths
from rayds.formats.yolo.darknet import Yolo
from rayds.item import DatasetItem
from rayds.listing import Listing

# ---- writing the layout of darknet


def test_yolo_layout(tmp_path):
    items = [
        item("a", [Bbox(64, 48, 128, 96, label=1)]),
        item("dir/b c", subset="valid"),
        item("d", [Bbox(0, 0, 640, 480, label=0)], subset="holdout"),
    ]
    report = write(items, tmp_path / "out")
    out = tmp_path / "out"
    assert tree(out) == [
        "holdout.txt",
        "images.meta",
        "obj.data",
        "obj.names",
        "obj_holdout_data/d.txt",
        "obj_train_data/a.txt",
        "obj_valid_data/dir/b c.txt",
        "train.txt",
        "valid.txt",
    ]
    assert (out / "obj.data").read_text() == (
        "classes = 3\ntrain = data/train.txt\nvalid = data/valid.txt\nholdout = data/holdout.txt\n"
        "names = data/obj.names\nbackup = backup/\n"
    )
    assert (out / "obj.names").read_text() == "cat\ndog\ntraffic light\n"
    assert (out / "valid.txt").read_text() == "data/obj_valid_data/dir/b c.jpg\n"
    assert (out / "obj_train_data/a.txt").read_text() == "1 0.2 0.2 0.2 0.2\n"
    assert (out / "obj_holdout_data/d.txt").read_text() == "0 0.5 0.5 1 1\n"
    assert (out / "obj_valid_data/dir/b c.txt").read_text() == ""
    assert report.items == 3
    assert set(by_key(read(out))) == {("train", "a"), ("valid", "dir/b c"), ("holdout", "d")}


def test_yolo_default_is_train(tmp_path):
    write([item("a", subset="default")], tmp_path / "out")
    assert (tmp_path / "out/train.txt").read_text() == "data/obj_train_data/a.jpg\n"


def test_yolo_default_and_train_merge_but_never_overwrite(tmp_path):
    write(
        [item("a", subset="default"), item("b", [Bbox(0, 0, 1, 1, label=0)], subset="train")],
        tmp_path / "out",
    )
    assert (
        tmp_path / "out/train.txt"
    ).read_text() == "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n"
    with pytest.raises(DataError, match=r"item 'a'.*'default'.*'train'.*Rename"):
        write([item("a", subset="default"), item("a", subset="train")], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("subset", ["classes", "names", "backup", "a b", "../x", "a=b"])
def test_yolo_subset_that_obj_data_cannot_name(tmp_path, subset):
    with pytest.raises(DataError, match=r"can't be named.*map_subsets"):
        write([item("a", subset=subset)], tmp_path / "out")


@pytest.mark.parametrize("format", ["yolo", "yolo_ultralytics"])
@pytest.mark.parametrize("id", ["../../x", "/etc/x", "a/../../../b", "a\nb"])
def test_ids_do_not_leave_the_output(tmp_path, format, id):
    with pytest.raises(DataError, match="safe file name"):
        write([item(id)], tmp_path / "in" / "out", format)
    assert not list(tmp_path.rglob("*.txt"))


def test_yolo_without_path_prefix(tmp_path):
    write([item("a")], tmp_path / "out", add_path_prefix=False)
    assert (tmp_path / "out/train.txt").read_text() == "obj_train_data/a.jpg\n"
    assert "train = train.txt\n" in (tmp_path / "out/obj.data").read_text()
    assert set(by_key(read(tmp_path / "out"))) == {("train", "a")}


@pytest.mark.parametrize(
    ("format", "folder"), [("yolo", "obj_train_data"), ("yolo_ultralytics", "images/train")]
)
def test_media_and_extension(tmp_path, format, folder):
    picture(tmp_path / "in.png")
    items = [DatasetItem("s/x", [Bbox(0, 0, 8, 4, label=0)], subset="train", image=str(tmp_path / "in.png"))]
    write(items, tmp_path / "same", format, save_media=True)
    assert (tmp_path / "same" / folder / "s/x.png").read_bytes() == (tmp_path / "in.png").read_bytes()
    write(items, tmp_path / "other", format, save_media=True, image_ext="bmp")
    assert cv2.imread(str(tmp_path / "other" / folder / "s/x.bmp")).shape == (40, 80, 3)
    for name in ("same", "other"):
        (found,) = read(tmp_path / name, format)
        assert (found.id, found.image.size) == ("s/x", (40, 80))
        assert found.image.has_data
    # the size came from the header, and the box is in terms of it
    assert [a.get_bbox() for a in found.annotations] == [pytest.approx((0, 0, 8, 4))]


@pytest.mark.parametrize("format", ["yolo", "yolo_ultralytics"])
def test_dataset_meta(tmp_path, format):
    write([item("a")], tmp_path / "no", format)
    write([item("a")], tmp_path / "out", format, save_dataset_meta=True)
    assert not (tmp_path / "no/dataset_meta.json").exists()
    assert json.loads((tmp_path / "out/dataset_meta.json").read_text())["labels"] == LABELS
    put(tmp_path / "out", {"dataset_meta.json": '{"labels": ["x", "y", "z"]}'})
    assert read(tmp_path / "out", format).categories().labels.names() == ["x", "y", "z"]


@pytest.mark.parametrize("format", ["yolo", "yolo_ultralytics"])
def test_scores_are_written_when_asked(tmp_path, format):
    boxes = [Bbox(0, 0, 64, 48, label=0, attributes={"score": 0.75}), Bbox(0, 0, 64, 48, label=1)]
    report = write([item("a", boxes)], tmp_path / "no", format)
    assert any("score" in kind for kind in report.losses)
    report = write([item("a", boxes)], tmp_path / "out", format, save_conf=True)
    assert not report.losses
    (found,) = read(tmp_path / "out", format)
    assert [a.attributes for a in found.annotations] == [{"score": 0.75}, {}]


def test_losses_are_told(tmp_path):
    annotations = [
        Bbox(0, 0, 1, 1),
        Bbox(0, 0, 1, 1, label=0, attributes={"occluded": True}),
        Polygon([0, 0, 1, 0, 1, 1], label=0),
        Label(1),
    ]
    report = write([item("a", annotations)], tmp_path / "out")
    assert set(report.losses) == {
        "annotations without a label",
        "attribute 'occluded'",
        "polygon annotations",
        "label annotations",
    }
    with pytest.raises(LossError):
        write([item("a", annotations)], tmp_path / "strict", strict=True)


@pytest.mark.parametrize("format", ["yolo", "yolo_ultralytics"])
def test_unknown_size_names_item_and_remedy(tmp_path, format):
    items = [
        item("good", [Bbox(0, 0, 1, 1, label=0)]),
        item("lost", [Bbox(0, 0, 1, 1, label=0)], size=None),
        item("free", size=None),
    ]
    with pytest.raises(DataError, match=r"/nowhere/lost.jpg.*item 'lost'.*size.*not known.*"):
        write(items, tmp_path / "out", format)
    report = write(items, tmp_path / "out", format, on_error="skip")
    assert [e["item"] for e in report.errors] == ["lost"]
    assert {i for _, i in by_key(read(tmp_path / "out", format))} == {"good", "free"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_coordinates_that_are_no_numbers(tmp_path, value):
    with pytest.raises(DataError, match=r"item 'a'.*(not a number or far too large|no finite number)"):
        write([item("a", [Bbox(0, value, 1, 1, label=0)])], tmp_path / "out")


def test_darknet_dataset(tmp_path):
    dataset = read(darknet(tmp_path))
    assert dataset.format == "yolo"
    assert dataset.categories().labels.names() == ["cat", "dog"]
    items = list(dataset)
    assert [(i.subset, i.id, len(i.annotations)) for i in items] == [
        ("train", "1", 2),
        ("train", "2", 0),
        ("valid", "1", 0),
    ]
    assert items[0].annotations == [Bbox(30, 10, 20, 20, label=0), Bbox(0, 0, 40, 20, label=1)]
    assert items[0].image.size == (40, 80)
    assert items[0].image.has_data


@pytest.mark.parametrize(
    "entry",
    [
        "obj_train_data/1.jpg",
        "./obj_train_data/1.jpg",
        "/home/me/darknet/data/obj_train_data/1.jpg",
        "build\\darknet\\x64\\data\\obj_train_data\\1.jpg",
        "C:\\data\\obj_train_data\\1.jpg",
        "../../elsewhere/obj_train_data/1.jpg",
        "{folder}/obj_train_data/1.jpg",
    ],
)
def test_prefixes_of_other_machines(tmp_path, entry):
    root = darknet(tmp_path / "ds", **{"train.txt": entry.format(folder="ds") + "\r\n"})
    found = by_key(read(root, "yolo"))["train", "1"]
    assert len(found.annotations) == 2
    assert found.image.path == str(root / "obj_train_data/1.jpg")


def test_other_folder_names_and_labels_folder(tmp_path):
    put(
        tmp_path,
        {
            "my.data": "names=cls.names\ntrain=lists/t.txt\ntest=lists/te.txt\n",
            "cls.names": "a\n",
            "lists/t.txt": "/abs/images/x/1.jpg\n/abs/images/y/1.jpg",
            "lists/te.txt": "pics/1.jpg\n",
            "labels/x/1.txt": "0 .5 .5 1 1",
            "pics/1.txt": "0 .5 .5 .5 .5",
            "images.meta": '# sizes\nimages/x/1.jpg 10 20\n"1" 30 40  # here\n',
        },
    )
    (tmp_path / "images/x").mkdir(parents=True)
    (tmp_path / "images/y").mkdir()
    found = by_key(read(tmp_path))
    assert set(found) == {("train", "x/1"), ("train", "y/1"), ("test", "1")}
    assert found["train", "x/1"].annotations == [Bbox(0, 0, 20, 10, label=0)]
    assert found["test", "1"].annotations == [Bbox(10, 7.5, 20, 15, label=0)]


def test_without_lists(tmp_path):
    put(tmp_path, {"obj.names": "a\nb\n", "obj_train_data/x.txt": "1 .5 .5 1 1", "obj_val_data/s/y.txt": ""})
    picture(tmp_path / "obj_train_data/x.png")
    picture(tmp_path / "obj_train_data/z.png")
    found = by_key(read(tmp_path))
    assert {k: len(i.annotations) for k, i in found.items()} == {
        ("train", "x"): 1,
        ("train", "z"): 0,
        ("val", "s/y"): 0,
    }
    assert found["train", "x"].annotations == [Bbox(0, 0, 80, 40, label=1)]


def test_a_file_may_be_named(tmp_path):
    darknet(tmp_path)
    put(tmp_path, {"few.data": "names = obj.names\ntrain = few.txt\n", "few.txt": "obj_train_data/2.jpg\n"})
    assert set(by_key(read(tmp_path / "few.data"))) == {("train", "2")}


def test_classes_without_names_and_names_given_twice(tmp_path):
    root = darknet(tmp_path / "a", **{"obj.names": None})
    assert read(root).categories().labels.names() == ["class_0", "class_1"]
    root = darknet(tmp_path / "b", **{"obj.names": "cat\ncat\n\n"})
    dataset = read(root)
    assert dataset.categories().labels.names() == ["cat", "cat_2"]
    dataset.export(str(tmp_path / "out"), "yolo")
    assert (tmp_path / "out/obj.names").read_text() == "cat\ncat\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 .5 .5 1", "the line has 4 numbers, not 5"),
        ("0 .5 .5 1 1 1 1", "the line has 7 numbers, not 5"),
        ("0 .5 .5 one 1", "'one' is not a number"),
        ("0,.5,.5,1,1", "'0,.5,.5,1,1' is not a number"),
        ("0 .5 nan 1 1", "'nan' is not a number"),
        ("0 .5 1e999 1 1", "'1e999' is not a number"),
        ("0 .5 1_0 1 1", "'1_0' is not a number"),
        ("2 .5 .5 1 1", "class 2 does not exist; the classes are 0 to 1"),
        ("-1 .5 .5 1 1", "class -1 does not exist"),
        ("0.5 .5 .5 1 1", "class 0.5 does not exist"),
        ("0 .5 .5 -0.1 1", "width or height of the box is negative"),
        ("0 320 240 100 80", "not fractions"),
    ],
)
def test_bad_lines_name_file_line_and_item(tmp_path, line, reason):
    text = f"0 .5 .5 1 1\n\n{line}\n"
    root = darknet(tmp_path, **{"obj_train_data/2.txt": text})
    with pytest.raises(DataError) as e:
        list(read(root, "yolo"))
    assert reason in str(e.value)
    assert (e.value.file, e.value.place, e.value.item) == (str(root / "obj_train_data/2.txt"), "line 3", "2")
    dataset = read(root, "yolo", on_error="skip")
    assert set(by_key(dataset)) == {("train", "1"), ("valid", "1")}
    report = dataset.export(str(tmp_path / "out"), "yolo", on_error="quarantine")
    assert [(e["item"], e["subset"], e["place"]) for e in report.errors] == [("2", "train", "line 3")]


def test_boxes_outside_the_image_are_reported_and_left_out(tmp_path):
    root = darknet(tmp_path, **{"obj_train_data/2.txt": "0 .5 .5 1 1\n1 1.3 0.5 0.5 0.5\n"})
    with pytest.raises(
        DataError, match=r"obj_train_data/2.txt, line 2, item '2': the box lies outside the image"
    ):
        list(read(root))
    found = by_key(read(root, on_error="skip"))
    assert [a.label for a in found["train", "2"].annotations] == [0]


def test_values_a_bit_outside_are_kept(tmp_path):
    root = darknet(tmp_path / "in", **{"obj_train_data/2.txt": "0 1.01 -0.02 0.5 1.2 0.9\n"})
    dataset = read(root)
    assert by_key(dataset)["train", "2"].annotations[0].attributes == {"score": 0.9}
    dataset.export(str(tmp_path / "out"), "yolo", save_conf=True)
    assert (tmp_path / "out/obj_train_data/2.txt").read_text() == "0 1.01 -0.02 0.5 1.2 0.9\n"


def test_missing_image_or_list_names_the_remedy(tmp_path):
    root = darknet(tmp_path)
    (root / "obj_train_data/1.jpg").unlink()
    with pytest.raises(DataError, match=r"obj_train_data/1.jpg, item '1'.*missing.*images.meta"):
        list(read(root))
    put(root, {"images.meta": "# ID h w\n1 40 80\n"})
    assert len(by_key(read(root))["train", "1"].annotations) == 2
    put(root, {"obj_train_data/1.jpg": b"not an image", "images.meta": ""})
    with pytest.raises(DataError, match=r"1.jpg, item '1'.*not an image"):
        list(read(root))
    (root / "valid.txt").unlink()
    with pytest.raises(
        DataError, match=r"obj.data: the list 'data/valid.txt' of the subset 'valid' is missing"
    ):
        read(root)


def test_a_subset_whose_list_is_missing_is_told_of_when_it_is_left_out(tmp_path):
    root = darknet(tmp_path)
    (root / "valid.txt").unlink()
    with pytest.warns(UserWarning, match=r"'data/valid.txt' of the subset 'valid' is missing.*left out"):
        made = read(root, on_error="skip")
    assert [(i.id, i.subset) for i in made] == [("1", "train"), ("2", "train")]


@pytest.mark.parametrize("shard", [2000, 1, 2])
def test_an_image_listed_twice_is_one_item(tmp_path, monkeypatch, shard):
    monkeypatch.setattr(_paths, "SHARD_ITEMS", shard)
    one, two = "data/obj_train_data/1.jpg", "data/obj_train_data/2.jpg"
    root = darknet(tmp_path, **{"train.txt": f"{one}\n\n{two}\n  {one} \n{two}"})
    with pytest.raises(
        DataError, match=r"train.txt, line 4, item '1': the list names the image a second time"
    ):
        list(read(root))
    report = read(root, on_error="skip").export(str(tmp_path / "out"), "rayds")
    assert report.subsets == {"train": 2, "valid": 1}
    assert [(e["item"], e["place"]) for e in report.errors] == [("1", "line 4"), ("2", "line 5")]


def test_broken_images_meta(tmp_path):
    root = darknet(tmp_path, **{"images.meta": "a 1 2\n\nb two 3\n"})
    with pytest.raises(DataError, match=r"images.meta, line 3: expected '<ID> <height> <width>'"):
        list(read(root))


def test_images_meta_keeps_odd_ids_and_subsets():
    import pyarrow as pa

    ids = ["plain", "two words", "ap'os", 'quo"te', "ha#sh", "back\\slash", "0001"]
    rows = images_meta_lines(pa.array(ids), pa.array(range(1, 8)), pa.array(range(11, 18)))
    other = images_meta_lines(pa.array(["plain", "none"]), pa.array([5, None]), pa.array([6, None]))
    meta = parse_images_meta(subset_line("a") + rows + subset_line("b b") + other, "f")
    height, width = meta.find("a", pa.array([*ids, "nobody", "none"]))
    assert height.tolist() == [1, 2, 3, 4, 5, 6, 7, -1, -1]
    assert width.tolist() == [11, 12, 13, 14, 15, 16, 17, -1, -1]
    assert [v.tolist() for v in meta.find("b b", pa.array(["plain", "0001"]))] == [[5, 7], [6, 17]]


def test_two_subsets_with_one_id_keep_their_sizes(tmp_path):
    box = [Bbox(10, 10, 20, 20, label=0)]
    items = [item("a", box, "train", (100, 200)), item("a", box, "valid", (50, 70))]
    for format in ("yolo", "yolo_ultralytics"):
        write(items, tmp_path / format, format)
        found = by_key(read(tmp_path / format))
        assert found["train", "a"].image.size == (100, 200)
        assert found["valid", "a"].image.size == (50, 70)
        assert found["valid", "a"].annotations[0].get_bbox() == pytest.approx((10, 10, 20, 20), abs=1e-6)


def test_many_shards_keep_the_order_and_the_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(_paths, "SHARD_ITEMS", 200)
    rng = np.random.default_rng(0)
    items = [
        item(f"{(i * 7919) % 500:05d}", [Bbox(*rng.random(4) * 100, label=i % 3) for _ in range(i % 3)])
        for i in range(500)
    ]
    write(items, tmp_path / "out")
    dataset = read(tmp_path / "out")
    assert [i.id for i in dataset] == [i.id for i in items]
    dataset.export(str(tmp_path / "again"), "yolo")
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    assert all(
        (tmp_path / "out" / n).read_bytes() == (tmp_path / "again" / n).read_bytes()
        for n in tree(tmp_path / "out")
    )
    plan = Yolo().plan(Listing(str(tmp_path / "out")), PlanContext(Yolo.ReadOptions()))
    assert len(plan.shards) == 3
    assert max(len(pickle.dumps(s)) for s in plan.shards) < 2000  # byte ranges of the list, not names
