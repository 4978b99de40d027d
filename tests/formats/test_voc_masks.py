"""VOC: masks of classes and instances, their colours and numbers; label maps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow
from voc_data import dataset, disc, item, read, roundtrip

from rayds.annotations import Bbox, Mask
from rayds.dataset import Dataset
from rayds.errors import DataError, UsageError
from rayds.formats.voc.labels import (
    Entry,
    format_label_map,
    from_categories,
    parse_label_map,
    to_categories,
    voc_entries,
)
from rayds.schema import AnnotationType


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
