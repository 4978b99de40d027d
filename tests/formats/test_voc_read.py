"""VOC as others write it; bad input names file, item and line; detection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lxml import etree
from PIL import Image as Pillow
from voc_data import dataset, item, read, roundtrip

from rayds.annotations import Bbox
from rayds.errors import DataError
from rayds.formats.voc.labels import (
    VOC_NAMES,
)


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
    a, b = read(root)
    assert (a.id, a.image.size, a.image.has_data, len(a.annotations)) == ("a", None, False, 1)
    assert (b.id, b.media, len(b.annotations)) == ("b", None, 0)


def test_a_missing_image_is_named_by_whoever_needs_it(tmp_path):
    root = write_xml(tmp_path / "in", "a", obj())
    (missing,) = read(root)
    assert missing.image.path == str(root / "JPEGImages/a.jpg")
    with pytest.raises(DataError, match=r"JPEGImages/a.jpg, item 'a': the image file is missing"):
        read(root).export(str(tmp_path / "out"), "coco", save_media=True)


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
