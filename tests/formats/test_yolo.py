"""YOLO: darknet's layout and that of Ultralytics, as written by rayds and by others."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayds.annotations import Bbox, Label, Mask, Points, Polygon, RotatedBbox
from rayds.categories import Categories, LabelCategories, PointsCategories
from rayds.dataset import Dataset
from rayds.errors import DataError, LossError, UsageError
from rayds.format import PlanContext
from rayds.formats._images_meta import images_meta_lines, parse_images_meta, subset_line
from rayds.formats.yolo import _paths
from rayds.formats.yolo._labels import format_numbers, parse
from rayds.formats.yolo.darknet import Yolo
from rayds.formats.yolo.ultralytics import YoloUltralytics
from rayds.item import DatasetItem
from rayds.listing import Listing
from rayds.media import Image
from rayds.schema import AnnotationType

LABELS = ["cat", "dog", "traffic light"]


def item(id, annotations=(), subset="train", size=(480, 640), **more):
    return DatasetItem(
        id, list(annotations), subset=subset, image=Image(path=f"/nowhere/{id}.jpg", size=size), **more
    )


def picture(path, height=40, width=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 7, np.uint8))


def put(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def tree(root):
    return sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*") if p.is_file())


def write(items, path, format="yolo", labels=LABELS, **options):
    return Dataset.from_iterable(items, categories=labels).export(str(path), format, **options)


def read(path, format=None, **options):
    return Dataset.import_from(str(path), format, **options)


def by_key(dataset):
    return {(i.subset, i.id): i for i in dataset}


# ---- numbers


@given(st.lists(st.floats(-20, 20) | st.floats(0, 1), min_size=1, max_size=40))
def test_printed_numbers_are_the_shortest_of_ten_decimals(values):
    text, ends = format_numbers(np.array(values), np.ones(len(values), bool))
    lines = bytes(text).decode().split("\n")[:-1]
    assert [float(x) for x in lines] == [round(v, 10) for v in values]
    assert not any("e" in x or x.endswith(".") or x.startswith("-0.0000000000") or x == "-0" for x in lines)
    assert not any("." in x and x.endswith("0") for x in lines)
    assert ends[-1] == len(text)


@given(
    st.lists(
        st.tuples(*[st.integers(0, 10**10).map(lambda k: k / 10**10)] * 4, st.integers(0, 2)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 9000),
    st.integers(1, 9000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fractions_read_and_written_back_are_the_same_text(tmp_path_factory, boxes, height, width):
    root = tmp_path_factory.mktemp("same")
    lines = "".join(
        f"{c} " + " ".join(f"{v:.10f}".rstrip("0").rstrip(".") for v in b) + "\n" for *b, c in boxes
    )
    put(
        root / "in",
        {
            "obj.data": "names = obj.names\ntrain = data/train.txt\n",
            "obj.names": "\n".join(LABELS),
            "train.txt": "data/obj_train_data/a.jpg\n",
            "obj_train_data/a.txt": lines,
            "images.meta": f"a {height} {width}\n",
        },
    )
    read(root / "in", "yolo").export(str(root / "out"), "yolo")
    assert (root / "out/obj_train_data/a.txt").read_text() == lines


@given(
    st.lists(
        st.builds(
            Bbox,
            *[st.floats(0, 470)] * 2,
            *[st.floats(0.1, 300)] * 2,
            label=st.integers(0, 2),
        ),
        max_size=8,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("format", ["yolo", "yolo_ultralytics"])
def test_boxes_survive(tmp_path_factory, format, boxes):
    out = tmp_path_factory.mktemp("boxes") / "out"
    write([item("a", boxes), item("b")], out, format)
    found = by_key(read(out, format))
    back = found["train", "a"].annotations
    assert [b.label for b in back] == [b.label for b in boxes]
    for b, a in zip(back, boxes, strict=True):
        assert np.allclose(b.get_bbox(), a.get_bbox(), rtol=0, atol=1e-6)
    assert found["train", "b"].annotations == []
    assert found["train", "a"].image.size == (480, 640)


def test_parsing_takes_any_blanks_and_keeps_line_numbers():
    texts = [b"0 1 2\r\n\r\n\t1\t.5e0  0.25 \n", b"", b"2 3", b"\n\n7 8\n"]
    lines, bad = parse(texts)
    assert not bad
    assert lines.values.tolist() == [0, 1, 2, 1, 0.5, 0.25, 2, 3, 7, 8]
    assert lines.counts.tolist() == [3, 3, 2, 2]
    assert lines.file.tolist() == [0, 0, 2, 3]
    assert lines.number.tolist() == [1, 3, 1, 3]
    slow, bad = parse(
        [*texts, b"+1 2\n", b"\xef\xbb\xbf4 5\n", b"1 x\n"]
    )  # words that only the slow way takes
    assert slow.values.tolist() == [*lines.values.tolist(), 1, 2, 4, 5]
    assert slow.number.tolist() == [*lines.number.tolist(), 1, 1]
    assert list(bad) == [6]


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


# ---- reading the layout of darknet


DARKNET = {
    "obj.data": "classes = 2\ntrain  = data/train.txt\nvalid  = data/valid.txt\nnames = data/obj.names\nbackup = backup/\neval = coco\n",
    "obj.names": "cat\ndog\n",
    "train.txt": "data/obj_train_data/1.jpg\ndata/obj_train_data/2.jpg\n",
    "valid.txt": "data/obj_valid_data/1.jpg\n",
    "obj_train_data/1.txt": "0 0.500000 0.500000 0.250000 0.500000\n1 0.25 0.25 0.5 0.5\n",
    "obj_valid_data/1.txt": "",
}


def darknet(root, **changes):
    put(root, {k: v for k, v in {**DARKNET, **changes}.items() if v is not None})
    for name in ("obj_train_data/1.jpg", "obj_train_data/2.jpg", "obj_valid_data/1.jpg"):
        picture(root / name)
    return root


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


def small(root, text, line, **files):
    put(
        root,
        {"data.yaml": f"train: images/train\nnames: [a, b]\n{text}", "labels/train/x.txt": line, **files},
    )
    picture(root / "images/train/x.jpg", 100, 200)
    return root


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


# ---- detection


def test_detection(tmp_path):
    darknet(tmp_path / "dark")
    small(tmp_path / "ultra", "", "")
    put(tmp_path / "other", {"data.yaml": "a: 1\n", "x.data": "binary", "readme.txt": "x"})
    dark, ultra, other = (Listing(str(tmp_path / n)) for n in ("dark", "ultra", "other"))
    assert Yolo().detect(dark).score >= 80
    assert "obj.data" in Yolo().detect(dark).reason
    assert YoloUltralytics().detect(dark).score == 0
    assert YoloUltralytics().detect(ultra).score >= 80
    assert Yolo().detect(ultra).score == 0
    for format in (Yolo(), YoloUltralytics()):
        assert format.detect(other).score == 0
        assert format.detect(other).reason
    # a folder around the dataset is found too
    put(
        tmp_path / "around/inner",
        {"obj.data": "names = obj.names\n", "obj.names": "a\n", "obj_train_data/x.txt": ""},
    )
    assert [i.id for i in read(tmp_path / "around")] == ["x"]


def test_options_are_checked():
    with pytest.raises(UsageError, match=r"task.*'cubes' is not one of detect, segment"):
        YoloUltralytics.WriteOptions.make({"task": "cubes"})
    assert YoloUltralytics.ReadOptions.make({}).task == "auto"
    assert Yolo.WriteOptions.parse(["--save-images", "--add-path-prefix=false"]) == Yolo.WriteOptions(
        save_media=True, add_path_prefix=False
    )
