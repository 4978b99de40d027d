"""Pascal VOC: what is read, what is written, what comes back, and what is said about bad files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from PIL import Image as Pillow

from rayds.annotations import Bbox, Label, Mask, Polygon
from rayds.dataset import Dataset
from rayds.errors import DataError, UsageError
from rayds.formats.voc.labels import (
    VOC_ACTIONS,
    VOC_NAMES,
    Entry,
    format_label_map,
    from_categories,
    parse_label_map,
    to_categories,
    voc_entries,
)
from rayds.item import DatasetItem
from rayds.media import Image
from rayds.schema import AnnotationType

DATA = Path(__file__).parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.exists(), reason="the shared data folder is absent")


def item(id, *annotations, subset="train", size=(40, 60), **more):
    return DatasetItem(
        id, subset=subset, media=Image(path=f"/nowhere/{id}.jpg", size=size), annotations=annotations, **more
    )


def dataset(*items, labels=("cat", "dog")):
    return Dataset.from_iterable(items, labels, engine="local")


def roundtrip(path, made, format="voc", **options):
    report = made.export(str(path), format, overwrite=True, **options)
    return Dataset.import_from(str(path), format, engine="local"), report


def write_xml(root, id, body, lists=("train",), size=True):
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    head = "<size><width>60</width><height>40</height><depth>3</depth></size>\n" if size else ""
    (root / "Annotations" / f"{id}.xml").write_text(
        f"<annotation>\n<filename>{id}.jpg</filename>\n{head}{body}\n</annotation>"
    )
    for name in lists:
        listing = root / "ImageSets" / "Main" / f"{name}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        with listing.open("a") as f:
            f.write(f"{id}\n")
    return root


def obj(name="cat", box=(1, 2, 10, 20), more=""):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>\n<name>{name}</name><bndbox>{corners}</bndbox>{more}</object>"


def read(root, format="voc", **options):
    return Dataset.import_from(str(root), format, engine="local", **options)


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


# masks


def disc(x, y, r=8):
    yy, xx = np.mgrid[:40, :60]
    return (xx - x) ** 2 + (yy - y) ** 2 < r * r


@pytest.mark.parametrize("apply_colormap", [True, False])
def test_masks_come_back(tmp_path, apply_colormap):
    labels = ["background", "cat", "dog"]
    made = dataset(
        item(
            "a",
            Mask(disc(10, 10), 1, group=4),
            Mask(disc(30, 20), 1, group=9),
            Mask(disc(50, 30), 2, group=300),
        ),
        labels=labels,
    )
    back, report = roundtrip(tmp_path / "o", made, apply_colormap=apply_colormap)
    found = next(iter(back)).annotations
    assert [(m.label, m.group) for m in found] == [(2, 1), (1, 4), (1, 9)]
    assert all(
        np.array_equal(m.image, w)
        for m, w in zip(found, (disc(50, 30), disc(10, 10), disc(30, 20)), strict=True)
    )
    assert not report.losses
    with Pillow.open(tmp_path / "o" / "SegmentationClass" / "a.png") as image:
        assert image.mode == ("P" if apply_colormap else "L")
    assert (tmp_path / "o" / "ImageSets" / "Segmentation" / "train.txt").read_text() == "a\n"
    assert "<segmented>1<" in (tmp_path / "o" / "Annotations" / "a.xml").read_text()


def test_masks_of_labels_without_background_come_back(tmp_path):
    back, _ = roundtrip(tmp_path / "o", dataset(item("a", Mask(disc(10, 10), 0), Mask(disc(40, 20), 1))))
    assert back.categories().labels.names() == ["cat", "dog"]
    assert [(m.label, m.group, m.get_area()) for m in next(iter(back)).annotations] == [
        (0, 0, float(disc(10, 10).sum())),
        (1, 0, float(disc(40, 20).sum())),
    ]
    assert not (tmp_path / "o" / "SegmentationObject").exists()


def test_the_mask_of_a_box_has_its_number(tmp_path):
    shapes = [
        Bbox(1, 1, 5, 5, label=0, group=70),
        Bbox(20, 5, 9, 9, label=1, group=50),
        Mask(disc(25, 10), 1, group=50),
    ]
    back, _ = roundtrip(tmp_path / "o", dataset(item("a", *shapes)))
    found = next(iter(back)).annotations
    assert [(a.type.name, a.group) for a in found] == [("bbox", 1), ("bbox", 2), ("mask", 2)]


def test_covered_masks_and_many_instances_are_reported(tmp_path):
    dots = []
    for i in range(257):
        mask = np.zeros((40, 60), bool)
        mask[i // 60, i % 60] = True
        dots.append(Mask(mask, 0, group=i + 1))
    made = dataset(
        item("a", *dots), item("b", Mask(disc(10, 10), 0, group=1), Mask(disc(12, 12), 1, group=2))
    )
    _, report = roundtrip(tmp_path / "o", made)
    assert report.losses["instances beyond 255 of an image, as VOC's masks have 8 bits"] == (2, "item 'a'")
    assert report.losses["masks that others cover in part"] == (1, "item 'b'")


def test_masks_of_different_sizes_are_an_error(tmp_path):
    made = dataset(item("a", Mask(disc(10, 10), 0), Mask(np.ones((5, 5)), 1)))
    with pytest.raises(DataError, match=r"item 'a'.*different sizes: 60x40 and 5x5"):
        made.export(str(tmp_path / "o"), "voc")
    report = made.export(str(tmp_path / "o"), "voc", on_error="skip")
    assert (report.items, len(report.errors)) == (0, 1)
    assert not (tmp_path / "o" / "Annotations").exists()


def test_grayscale_masks_are_indices_of_the_label_map(tmp_path):
    for folder in ("SegmentationClass", "SegmentationObject"):
        (tmp_path / folder).mkdir()
        Pillow.fromarray(np.array([[0, 1, 1], [0, 2, 2]], np.uint8)).save(tmp_path / folder / "a.png")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "all.txt").write_text("a\n")
    (tmp_path / "label_map.txt").write_text("car:0,128,0:: # color index 0\nbus:1,2,3::\nboat:9,9,9::\n")
    found = next(iter(read(tmp_path)))
    assert [(m.label, m.group, m.get_area()) for m in found.annotations] == [
        (0, 0, 2.0),
        (1, 1, 2.0),
        (2, 2, 2.0),
    ]
    assert (found.subset, found.media.size) == ("all", (2, 3))


def test_unknown_mask_colour_is_named(tmp_path):
    (tmp_path / "SegmentationClass").mkdir()
    Pillow.fromarray(np.full((2, 3, 3), (7, 8, 9), np.uint8)).save(tmp_path / "SegmentationClass" / "a.png")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"SegmentationClass/a\.png.*item 'a'.*\(7, 8, 9\).*label map"):
        list(read(tmp_path, "voc_segmentation"))


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


# reading what others write


def test_unusual_content_comes_back(tmp_path):
    body = (
        "<owner><name>Jo &amp; Co</name></owner><source><database>X</database><image>flickr</image></source>\n"
        + obj(more="<polygon><x1>1.5</x1></polygon><truncated>Unspecified</truncated><point><x>3</x></point>")
        + obj("dog", more="<difficult>1</difficult><occluded>true</occluded>")
    )
    root = write_xml(tmp_path / "in", "a", body)
    first = read(root)
    back, report = roundtrip(tmp_path / "out", first)
    assert not report.losses
    assert [i.annotations for i in back] == [i.annotations for i in first]
    assert [i.extra for i in back] == [i.extra for i in first]
    tree = etree.parse(str(tmp_path / "out" / "Annotations" / "a.xml"))
    assert tree.findtext("owner/name") == "Jo & Co"
    assert tree.findtext("object/polygon/x1") == "1.5"
    assert tree.findtext("object/truncated") == "Unspecified"
    assert tree.findtext("object[2]/occluded") == "true"
    assert tree.xpath("count(source)") == 1


def test_the_quick_and_the_careful_way_agree(tmp_path):
    from rayds.format import PlanContext, ReadContext
    from rayds.formats.voc import Voc
    from rayds.formats.voc.read import _read_part
    from rayds.listing import Listing

    bodies = [
        obj(),
        obj(box=("1.5", " 2 ", "1e2", "7")) + obj("dog", more="<difficult>1</difficult>"),
        "<!-- " + obj() + " -->" + obj("dog"),
        obj(more="<attributes><attribute><name>a</name><value>3</value></attribute></attributes>"),
        obj(
            more="<actions><run>1</run></actions><part><name>paw</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        ),
        obj("c&amp;d"),
        "<segmented>1</segmented><folder>F</folder>" + obj(more="<x/>"),
        "<object><bndbox><xmin>1</xmin><xmax>4</xmax><ymin>1</ymin><ymax>2</ymax></bndbox><name> cat </name></object>",
        "",
    ]
    for i, body in enumerate(bodies):
        write_xml(tmp_path, f"i{i}", body)
    fmt, files = Voc(), Listing(tmp_path)
    plan = fmt.plan(files, PlanContext(fmt.ReadOptions()))
    ctx = ReadContext(files.root, fmt.ReadOptions(), plan.categories)
    quick, careful = (_read_part(plan.shards[0].data, fmt.scope, ctx, fast=f) for f in (True, False))
    assert quick.to_pylist() == careful.to_pylist()
    assert [len(r) for r in quick.column("annotations").to_pylist()] == [1, 2, 1, 1, 2, 1, 1, 1, 0]


def test_standard_names_give_the_voc_map_and_others_their_own(tmp_path):
    assert read(write_xml(tmp_path / "v", "a", obj("person"))).categories().labels.names()[:22] == VOC_NAMES
    root = write_xml(tmp_path / "o", "a", obj("zebra") + obj("person") + obj("a &lt; b"))
    assert read(root).categories().labels.names() == ["a < b", "person", "zebra"]


def test_lists_of_all_tasks_are_merged(tmp_path):
    root = write_xml(tmp_path, "a", obj())
    write_xml(tmp_path, "b", obj(), lists=())
    (root / "ImageSets" / "Layout").mkdir()
    (root / "ImageSets" / "Layout" / "train.txt").write_text("b  1\nb  2\na  1\n")
    assert [(i.id, len(i.annotations)) for i in read(root)] == [("a", 1), ("b", 1)]


def test_flat_layouts(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "p.xml").write_text(
        f"<annotation><filename>q.png</filename>{obj('cow')}{obj('x')}</annotation>"
    )
    Pillow.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "train" / "q.png")
    found = next(iter(read(tmp_path)))
    assert (found.id, found.subset, Path(found.media.path).name, len(found.annotations)) == (
        "p",
        "train",
        "q.png",
        2,
    )


def test_odd_boxes_are_read_as_they_are(tmp_path):
    root = write_xml(tmp_path, "a", obj(box=(-5, 3, 900, 3)) + obj(box=(10, 10, 5, 20)))
    assert [(a.x, a.y, a.w, a.h) for a in next(iter(read(root))).annotations] == [
        (-5, 3, 905, 0),
        (10, 10, -5, 10),
    ]


def test_missing_size_and_missing_xml_are_fine(tmp_path):
    root = write_xml(tmp_path, "a", obj(), size=False)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    assert [(i.id, i.media, len(i.annotations)) for i in read(root)] == [("a", None, 1), ("b", None, 0)]


# bad input

BAD = {
    "no name": ("<object><bndbox/></object>", r"line 4.*object 1 has no name"),
    "no box": ("\n<object><name>cat</name></object>", r"line 5.*object 1 \(cat\) has no bndbox"),
    "no xmax": (
        "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin></bndbox></object>",
        r"line 4.*has no xmax",
    ),
    "text": (obj(box=(1, "two", 3, 4)), r"line 5.*object 1 \(cat\).*ymin='two'"),
    "nan": (obj() + "\n" + obj(box=(1, "nan", 3, 4)), r"line 7.*object 2 \(cat\).*ymin='nan'"),
    "inf": (obj(box=(1, 2, 3, "inf")), r"xmax='3', ymax='inf'"),
    "cut": ("<object><name>cat", r"line \d.*not well-formed XML"),
    "entity": ("&boom;", r"line 4.*not well-formed XML"),
    "unknown label": (obj("doge"), r"line 4.*'doge' is not in the label map.*'dog'"),
    "size": ("<size><width>wide</width><height>3</height></size>", r"line 4.*width='wide'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_annotations_say_where(tmp_path, case):
    body, message = BAD[case]
    write_xml(tmp_path, "good", obj())
    write_xml(tmp_path, "bad", body)
    write_xml(tmp_path, "last", obj("dog"))
    (tmp_path / "labelmap.txt").write_text("cat:1,1,1::\ndog:2,2,2::\n")
    with pytest.raises(DataError, match=r"Annotations/bad\.xml.*item 'bad'") as caught:
        list(read(tmp_path))
    import re

    assert re.search(message, str(caught.value)), str(caught.value)
    assert [(i.id, len(i.annotations)) for i in read(tmp_path, on_error="skip")] == [("good", 1), ("last", 1)]


def test_document_types_are_refused(tmp_path):
    root = write_xml(tmp_path, "a", obj())
    path = root / "Annotations" / "a.xml"
    path.write_text(
        '<!DOCTYPE annotation [<!ENTITY e SYSTEM "file:///etc/passwd">]>\n'
        + path.read_text().replace("cat", "&e;")
    )
    with pytest.raises(DataError, match=r"a\.xml.*document type"):
        list(read(root))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"<html></html>", "root element is <html>")]
)
def test_files_that_are_no_annotations(tmp_path, content, message):
    root = write_xml(tmp_path, "a", obj())
    (root / "Annotations" / "a.xml").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.xml.*item 'a'.*{message}"):
        list(read(root))


def test_paths_out_of_the_dataset_are_refused(tmp_path):
    root = write_xml(tmp_path / "d", "a", obj())
    with (root / "ImageSets" / "Main" / "train.txt").open("a") as f:
        f.write("../../secret\n")
    with pytest.raises(DataError, match=r"ImageSets/Main/train\.txt, line 2.*leaves the dataset"):
        list(read(root))
    assert [i.id for i in read(root, on_error="skip")] == ["a"]
    with pytest.raises(DataError, match="can't be the name of a file"):
        dataset(item("../a")).export(str(tmp_path / "o"), "voc")


def test_boxes_without_finite_numbers_are_not_written(tmp_path):
    made = dataset(item("a", Bbox(1, float("nan"), 2, 2, label=0)), item("b"))
    with pytest.raises(DataError, match="item 'a'.*no finite number"):
        made.export(str(tmp_path / "o"), "voc")
    report = made.export(str(tmp_path / "o"), "voc", on_error="skip")
    assert (report.items, [i.id for i in read(tmp_path / "o")]) == (1, ["b"])


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="ImageSets"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt.*not a list"):
        read(tmp_path / "notes.txt")


def test_a_box_outside_its_image_is_named(tmp_path):
    root = write_xml(write_xml(tmp_path, "a", obj()), "b", obj(box=(61, 1, 70, 9)) + obj("dog"))
    with pytest.raises(DataError, match=r"Annotations/b\.xml, item 'b'.*outside the image of 60x40"):
        list(read(root))
    assert [len(i.annotations) for i in read(root, on_error="skip")] == [1, 1]


# label maps


def test_label_map_text():
    entries = [
        Entry("a:b", (1, 2, 3), ("x,y", "z"), ("q",)),
        Entry('"quoted"', (4, 5, 6)),
        Entry("plain name", (0, 0, 0)),
    ]
    assert parse_label_map(format_label_map(entries)) == entries
    assert parse_label_map("cat\ndog::head\n") == [Entry("cat"), Entry("dog", None, ("head",))]
    assert from_categories(to_categories(voc_entries())) == voc_entries()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat:1,2::\n", "m.txt, line 1.*3 numbers"),
        ("a:::\ncat:1,2,300::\n", "line 2.*0 to 255"),
        ("a\na\n", "line 2.*twice"),
    ],
)
def test_bad_label_maps_name_the_line(text, message):
    with pytest.raises(DataError, match=message):
        parse_label_map(text, "m.txt")


def test_a_label_map_without_labels_is_read_but_not_written(tmp_path):
    (tmp_path / "m.txt").write_text("# x\n")
    with pytest.raises(UsageError, match="has no labels"):
        dataset(item("a")).export(str(tmp_path / "p"), "voc", label_map=str(tmp_path / "m.txt"))
    Dataset.from_iterable([item("a")]).export(str(tmp_path / "o"), "voc")
    assert [i.id for i in Dataset.import_from(str(tmp_path / "o"), "voc")] == ["a"]


def test_generated_colours_leave_black_to_the_background():
    made = to_categories([Entry("cat"), Entry("background"), Entry("dog", (128, 0, 0))])
    assert made.masks.colormap == {0: (0, 128, 0), 1: (0, 0, 0), 2: (128, 0, 0)}
    assert made[AnnotationType.label].names() == ["cat", "background", "dog"]


def test_detection_confidence(tmp_path):
    from rayds.formats.voc import Voc, VocDetection
    from rayds.listing import Listing

    listed = write_xml(tmp_path / "l", "a", obj())
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.xml").write_text((listed / "Annotations" / "a.xml").read_text())
    scores = [
        fmt.detect(Listing(p)).score
        for fmt, p in ((Voc(), listed), (Voc(), tmp_path / "f"), (VocDetection(), listed), (Voc(), tmp_path))
    ]
    assert scores[0] > scores[1] > scores[2] > scores[3] == 0
