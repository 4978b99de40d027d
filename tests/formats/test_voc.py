"""VOC: what is written is read again, whatever the task; real data comes back whole; the options of the writer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from voc_data import dataset, disc, item, read, roundtrip

from rayds.annotations import Bbox, Label, Mask, Polygon
from rayds.dataset import Dataset
from rayds.errors import DataError, UsageError
from rayds.formats.voc.labels import (
    VOC_ACTIONS,
    VOC_NAMES,
    to_categories,
    voc_entries,
)
from rayds.item import DatasetItem
from rayds.media import Image

DATA = Path(__file__).parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.exists(), reason="the shared data folder is absent")


def attributes(**values):
    return {"truncated": False, "occluded": False, "difficult": False, **values}


# real data


@real
def test_bccd_counts():
    found = read(DATA / "bccd_voc" / "BCCD")
    assert {name: len(part) for name, part in found.subsets().items()} == {
        "test": 72,
        "train": 205,
        "trainval": 292,
        "val": 87,
    }
    assert found.categories().labels.names() == ["Platelets", "RBC", "WBC"]
    boxes = {i.id: len(i.annotations) for i in found}
    assert (len(boxes), sum(boxes.values())) == (364, 4888)


@real
def test_list_file_gives_one_subset():
    found = read(DATA / "bccd_voc" / "BCCD" / "ImageSets" / "Main" / "train.txt")
    assert (len(found), list(found.subsets())) == (205, ["train"])


@real
def test_flat_folders_are_detected_and_read():
    found = Dataset.import_from(str(DATA / "raccoon_voc_tfrecord"), "voc", engine="local")
    items = list(found)
    assert (len(items), sum(len(i.annotations) for i in items)) == (200, 217)
    assert all(i.media.path.endswith(f"images/{i.id}.jpg") and Path(i.media.path).is_file() for i in items)


@real
def test_real_files_come_back_whole(tmp_path):
    source = read(DATA / "bccd_voc" / "BCCD")
    back, report = roundtrip(tmp_path / "out", source)
    assert not report.losses
    assert report.notes == {}
    for a, b in zip(source, back, strict=True):
        assert (a.id, a.subset, a.annotations, a.extra) == (b.id, b.subset, b.annotations, b.extra)
    folder = DATA / "bccd_voc" / "BCCD" / "Annotations"
    for a, b in [
        (folder / f"{i.id}.xml", tmp_path / "out" / "Annotations" / f"{i.id}.xml") for i in list(source)[:40]
    ]:
        first, second = etree.parse(str(a)).getroot(), etree.parse(str(b)).getroot()
        for tag in ("folder", "filename", "path", "segmented", "size/depth"):
            assert first.findtext(tag) == second.findtext(tag)


# round trips of made datasets

NUMBERS = st.floats(-1e4, 1e4, allow_nan=False).map(lambda v: round(v, 3)) | st.floats(
    -1e6, 1e6, allow_nan=False
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=8)
VALUES = (
    st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.lists(st.integers(), max_size=2)
)
NAMES = TEXTS.filter(lambda t: t and t not in ("pose", "truncated", "occluded", "difficult"))


@settings(max_examples=25, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=4
    ),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_boxes_and_attributes_come_back(tmp_path_factory, boxes, flags):
    given_flags = dict(zip(("truncated", "occluded", "difficult"), flags, strict=True))
    made = dataset(
        item(
            "a",
            *(Bbox(x, y, w, h, label=1, attributes={**given_flags, **a}) for x, y, w, h, a in boxes),
            size=None,
        )
    )
    back, report = roundtrip(tmp_path_factory.getbasetemp() / "hypothesis", made)
    found = next(iter(back)).annotations
    assert not report.losses
    assert [a.attributes for a in found] == [{**given_flags, **b[4]} for b in boxes]
    for a, (x, y, w, h, _) in zip(found, boxes, strict=True):
        assert (a.x, a.y, a.x + a.w, a.y + a.h) == (x, y, x + w, y + h)  # VOC's own numbers, to the last bit


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXTS.map(str.strip).filter(bool), min_size=1, max_size=5, unique=True))
def test_any_label_names_come_back(tmp_path_factory, names):
    made = dataset(item("a", *(Bbox(1, 2, 3, 4, label=i) for i in range(len(names)))), labels=names)
    back, report = roundtrip(tmp_path_factory.getbasetemp() / "labels", made)
    assert not report.losses
    assert back.categories().labels.names() == names
    assert [a.label for a in next(iter(back)).annotations] == list(range(len(names)))


@pytest.mark.parametrize("id", ["a b", 'say "x"', "sub/dir/c", "#1", "photo 1", "a&b<c>", "d.e", "ü"])
def test_ids_come_back(tmp_path, id):
    back, _ = roundtrip(tmp_path / "o", dataset(item(id, Bbox(1, 2, 3, 4, label=0)), item("other")))
    assert [(i.id, len(i.annotations)) for i in back] == [(id, 1), ("other", 0)]


def test_images_without_boxes_and_order_stay(tmp_path):
    made = dataset(item("z"), item("a", subset="val"), item("m", Bbox(0, 0, 5, 5, label=1)), item("b"))
    back, _ = roundtrip(tmp_path / "o", made)
    assert [(i.id, i.subset, i.media.size) for i in back] == [
        ("z", "train", (40, 60)),
        ("m", "train", (40, 60)),
        ("b", "train", (40, 60)),
        ("a", "val", (40, 60)),
    ]
    assert (tmp_path / "o" / "Annotations" / "z.xml").is_file()


def test_integral_numbers_have_no_fraction_and_floats_are_exact(tmp_path):
    roundtrip(tmp_path / "o", dataset(item("a", Bbox(1, 2.25, 3, 0.1, label=0))))
    tree = etree.parse(str(tmp_path / "o" / "Annotations" / "a.xml"))
    assert [tree.findtext(f"object/bndbox/{c}") for c in ("xmin", "ymin", "xmax", "ymax")] == [
        "1",
        "2.25",
        "4",
        "2.35",
    ]


def test_classification_lists(tmp_path):
    made = dataset(
        item("a", Label(0)), item("b", Label(0), Label(1, attributes={"difficult": True})), item("c")
    )
    back, report = roundtrip(tmp_path / "o", made)
    assert not report.losses
    main = tmp_path / "o" / "ImageSets" / "Main"
    assert (main / "cat_train.txt").read_text() == "a  1\nb  1\n"
    assert (main / "dog_train.txt").read_text() == "a -1\nb  0\n"
    assert [[(a.label, a.attributes) for a in i.annotations] for i in back] == [
        [(0, {})],
        [(0, {}), (1, {"difficult": True})],
        [],
    ]
    assert list(back.subsets()) == ["train"]


def test_subset_whose_name_ends_as_another_is_no_class_list(tmp_path):
    back, _ = roundtrip(tmp_path / "o", dataset(item("a", subset="my_train"), item("b", subset="train")))
    assert {i.id: i.subset for i in back} == {"a": "my_train", "b": "train"}


def person(**more):
    return [
        Bbox(
            1,
            2,
            30,
            30,
            label=VOC_NAMES.index("person"),
            group=1,
            attributes=attributes(jumping=True, reading=False, **more),
        ),
        Bbox(2, 3, 5, 5, label=22, group=1),
        Bbox(7, 3, 5, 5, label=23, group=1),
    ]


def voc_dataset(*items):
    return Dataset.from_iterable(items, to_categories(voc_entries()), engine="local")


def test_parts_and_actions_stand_in_their_object(tmp_path):
    made = voc_dataset(
        item("a", *person(), Bbox(5, 5, 2, 2, label=7, group=2, attributes=attributes())), item("b")
    )
    back, report = roundtrip(tmp_path / "o", made)
    tree = etree.parse(str(tmp_path / "o" / "Annotations" / "a.xml"))
    assert tree.xpath("object/name/text()") == ["person", "car"]
    assert tree.xpath("object[1]/part/name/text()") == ["head", "hand"]
    assert tree.findtext("object/actions/jumping") == "1"
    assert not report.losses
    assert next(iter(back)).annotations == next(iter(made)).annotations
    sets = tmp_path / "o" / "ImageSets"
    assert (sets / "Layout" / "train.txt").read_text() == (sets / "Action" / "train.txt").read_text() == "a\n"
    assert back.categories().labels.names() == made.categories().labels.names()
    assert back.categories().labels[15].attributes == set(VOC_ACTIONS)


def test_a_part_without_its_object_is_an_object(tmp_path):
    back, report = roundtrip(tmp_path / "o", voc_dataset(item("a", Bbox(1, 1, 2, 2, label=22, group=3))))
    assert [a.label for a in next(iter(back)).annotations] == [22]
    assert not report.losses


@pytest.mark.parametrize(
    ("format", "labels"),
    [
        ("voc_detection", [15, 7]),
        ("voc_layout", [15, 22, 23]),
        ("voc_action", [15]),
        ("voc_classification", [7]),
        ("voc_segmentation", [7]),
    ],
)
def test_task_variants_read_their_own(tmp_path, format, labels):
    mask = np.zeros((40, 60), bool)
    mask[3:9, 4:8] = True
    car = Bbox(5, 5, 2, 2, label=7, group=2)
    made = voc_dataset(item("a", Label(7), *person(), car, Mask(mask, label=7, group=2)))
    made.export(str(tmp_path / "o"), "voc")
    assert [a.label for i in read(tmp_path / "o", format) for a in i.annotations] == labels


@pytest.mark.parametrize(
    "format",
    [
        "voc_detection",
        "voc_layout",
        "voc_action",
        "voc_classification",
        "voc_segmentation",
        "voc_instance_segmentation",
    ],
)
def test_task_variants_write_what_they_read(tmp_path, format):
    mask = np.zeros((40, 60), bool)
    mask[3:9, 4:8] = True
    made = voc_dataset(item("a", Label(7), *person(), Mask(mask, label=7, group=2)), item("b"))
    made.export(str(tmp_path / "all"), "voc")
    first = read(tmp_path / "all", format)
    back, _ = roundtrip(tmp_path / "one", first, format)
    assert [(i.id, i.annotations) for i in back] == [(i.id, i.annotations) for i in first]
    assert any(i.annotations for i in first)


# options


def test_label_map_voc_reports_other_labels(tmp_path):
    made = dataset(item("a", Bbox(1, 1, 2, 2, label=0), Bbox(1, 1, 2, 2, label=1)), labels=["cat", "unicorn"])
    back, report = roundtrip(tmp_path / "o", made, label_map="voc")
    assert report.losses["bbox annotations whose label is not in the label map"] == (1, "'unicorn'")
    assert back.categories().labels.names()[:22] == VOC_NAMES
    assert [a.label for a in next(iter(back)).annotations] == [VOC_NAMES.index("cat")]


def test_label_map_file(tmp_path):
    (tmp_path / "map.txt").write_text("# mine\ncat:0,0,255::\ndog:255,0,0:head:barking\n")
    back, _ = roundtrip(
        tmp_path / "o", dataset(item("a", Bbox(1, 1, 2, 2, label=1))), label_map=str(tmp_path / "map.txt")
    )
    assert back.categories().labels.names() == ["cat", "dog", "head"]
    assert back.categories().masks.colormap == {0: (0, 0, 255), 1: (255, 0, 0)}
    assert "dog:255,0,0:head:barking" in (tmp_path / "o" / "labelmap.txt").read_text()
    with pytest.raises(UsageError, match="label-map.*nothing.txt"):
        dataset(item("a")).export(str(tmp_path / "p"), "voc", label_map="nothing.txt")


def test_allow_attributes_false_keeps_the_native_ones(tmp_path):
    made = dataset(item("a", Bbox(1, 1, 2, 2, label=0, attributes={"difficult": True, "color": "red"})))
    back, report = roundtrip(tmp_path / "o", made, allow_attributes=False)
    assert next(iter(back)).annotations[0].attributes == attributes(difficult=True)
    assert list(report.losses) == ["attribute 'color'"]


@pytest.mark.parametrize("keep", [True, False])
def test_keep_empty(tmp_path, keep):
    dataset(item("a")).export(str(tmp_path / "o"), "voc", keep_empty=keep)
    found = {p.parent.name for p in (tmp_path / "o" / "ImageSets").glob("*/train.txt")}
    assert found == ({"Main", "Layout", "Action", "Segmentation"} if keep else {"Main"})


def test_tasks(tmp_path):
    made = dataset(item("a", Label(0), Bbox(1, 1, 2, 2, label=0), Mask(disc(9, 9), 1)))
    report = made.export(str(tmp_path / "o"), "voc", tasks="classification")
    assert set(report.losses) == {"bbox annotations", "mask annotations"}
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["ImageSets", "labelmap.txt"]
    report = made.export(str(tmp_path / "p"), "voc", task="segmentation,action,layout")
    assert set(report.losses) == {"label annotations"}
    assert (tmp_path / "p" / "Annotations" / "a.xml").is_file()
    with pytest.raises(UsageError, match="voc_detection|not segmentation"):
        made.export(str(tmp_path / "q"), "voc_detection", tasks="segmentation")


def test_polygons_are_reported(tmp_path):
    report = dataset(item("a", Polygon([0, 0, 5, 0, 5, 5], label=0))).export(str(tmp_path / "o"), "voc")
    assert report.losses["polygon annotations"] == (1, "item 'a'")


def test_save_images_and_image_ext(tmp_path):
    pixels = np.zeros((8, 9, 3), np.uint8)
    made = dataset(DatasetItem("x/a", subset="train", media=Image(data=pixels)))
    made.export(str(tmp_path / "o"), "voc", save_images=True, image_ext="bmp")
    assert (tmp_path / "o" / "JPEGImages" / "x" / "a.bmp").is_file()
    back = next(iter(read(tmp_path / "o")))
    assert (back.media.size, back.media.pixels.shape) == ((8, 9), (8, 9, 3))
    assert back.extra == {}


def test_dataset_meta_has_priority(tmp_path):
    made = dataset(item("a", Bbox(1, 1, 2, 2, label=1)))
    roundtrip(tmp_path / "o", made, save_dataset_meta=True)
    (tmp_path / "o" / "labelmap.txt").write_text("unrelated:1,2,3::\n")
    found = read(tmp_path / "o")
    assert found.categories().labels.names() == ["cat", "dog"]
    assert found.categories().masks.colormap == {0: (128, 0, 0), 1: (0, 128, 0)}
    (tmp_path / "o" / "dataset_meta.json").write_text(
        json.dumps({"label_map": {"0": "dog"}, "segmentation_colors": [[9, 9, 9]]})
    )
    assert read(tmp_path / "o").categories().masks.colormap == {0: (9, 9, 9)}


def test_one_id_in_two_subsets(tmp_path):
    same = [item("a", Bbox(1, 1, 2, 2, label=0), subset=s) for s in ("train", "trainval")]
    back, _ = roundtrip(tmp_path / "o", dataset(*same))
    assert [(i.id, i.subset, len(i.annotations)) for i in back] == [("a", "train", 1), ("a", "trainval", 1)]
    other = dataset(same[0], item("a", Bbox(3, 1, 2, 2, label=0), subset="val"))
    with pytest.raises(DataError, match="another subset"):
        other.export(str(tmp_path / "p"), "voc")
    assert not (tmp_path / "p").exists()


def test_output_does_not_depend_on_blocks(tmp_path):
    items = [
        item(f"i{n}", Label(n % 2), Bbox(n, 1, 2, 2, label=n % 2), subset="ab"[n % 3 == 0]) for n in range(20)
    ]
    from rayds.item import to_table

    whole = Dataset.from_arrow(to_table(items), ["cat", "dog"])
    pieces = Dataset.from_arrow([to_table(items[i : i + 3]) for i in range(0, 20, 3)], ["cat", "dog"])
    trees = []
    for name, made in (("w", whole), ("p", pieces)):
        made.export(str(tmp_path / name), "voc")
        trees.append(
            {
                p.relative_to(tmp_path / name): p.read_bytes()
                for p in (tmp_path / name).rglob("*")
                if p.is_file()
            }
        )
    assert trees[0] == trees[1]
    assert len(trees[0]) == 20 + 2 + 4 + 1
