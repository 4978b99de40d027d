"""Bad files of Datumaro's JSON: every error names file, item and what is wrong; bad items can be left out."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from datumaro_data import box, document, load, put, read

from rayds.dataset import Dataset
from rayds.engine.local import LocalEngine
from rayds.errors import DataError
from rayds.formats.datumaro.seen import Seen

# bad data


def bad(annotation=None, **item):
    made = {"id": "b", "annotations": [{"type": "label", "label_id": 0}], **item}
    if annotation is not None:
        made["annotations"].append(annotation)
    return made


POLYGON = {"type": "polygon", "points": [0, 0, 1, 0, 1, 1]}
ANNOTATIONS = [
    (box(label_id=3), "'label_id' is 3, but there are 3 labels"),
    (box(label_id=-1), "'label_id' is -1"),
    (box(label_id="cat"), "'label_id' is \"cat\", not a whole number"),
    (box(label_id=1.5), "'label_id' is 1.5, not a whole number"),
    (box(label_id=True), "'label_id' is true"),
    (box(id="7"), "'id' is \"7\""),
    (box(id=2**63), "too big"),
    (box(group=[1]), "'group' is [1]"),
    (box(z_order=2**31), "too big"),
    (box(attributes=[]), "'attributes' is [], not an object"),
    (box(attributes="x"), "'attributes' is \"x\""),
    (box(bbox=[1, 2, 3]), "'bbox' has 3 numbers, not 4"),
    (box(bbox=[1, 2, 3, "4"]), "'bbox' holds \"4\", not a number"),
    (box(bbox=[1, 2, 3, None]), "'bbox' holds null"),
    (box(bbox=[1, 2, 3, [4]]), "'bbox' holds [4]"),
    (box(bbox=[1, 2, 3, float("nan")]), "must be finite"),
    (box(bbox=[1, 2, 3, float("-inf")]), "must be finite"),
    (box(bbox=7), "'bbox' is 7, not a list"),
    ({"type": "bbox"}, "it has no 'bbox'"),
    ({"type": "skeleton", "points": [1, 2]}, 'the type "skeleton" is none of bbox, caption'),
    ({"type": 6, "bbox": [1, 2, 3, 4]}, "the type 6 is none of"),
    ({"bbox": [1, 2, 3, 4]}, "it has no 'type'"),
    ({**POLYGON, "points": [0, 0, 1, 1]}, "a polygon needs at least 3 points, got 2"),
    ({**POLYGON, "points": [0, 0, 1, 0, 1, 1, 5]}, "an odd number of coordinates (7)"),
    ({**POLYGON, "points": None}, "it has no 'points'"),
    ({"type": "points", "points": [1, 2], "visibility": [1, 1]}, "1 points, but 2 visibility values"),
    ({"type": "points", "points": [1, 2], "visibility": [3]}, "not a list of 0, 1 and 2"),
    ({"type": "ellipse", "points": [1, 2]}, "'points' has 2 numbers, not 4"),
    ({"type": "rotated_bbox", "points": [1, 2]}, "'points' has 2 numbers, not 5"),
    ({"type": "cuboid_3d", "position": [1, 2, 3], "rotation": [1, 2, 3], "scale": [1, 2]}, "'scale' has 2 numbers"),
    ({"type": "caption"}, "'caption' is null, not a text"),
    ({"type": "caption", "caption": 5}, "'caption' is 5, not a text"),
    ({"type": "mask"}, "'rle' is null"),
    ({"type": "mask", "rle": {"counts": "é", "size": [1, 2]}}, "not compressed run lengths"),
    ({"type": "mask", "rle": {"counts": "@@zz~", "size": [1, 2]}}, "the run lengths of a mask are broken"),
    ({"type": "mask", "rle": {"counts": "3", "size": [1, 2]}}, "the run lengths of a mask are broken"),
    ({"type": "mask", "rle": {"counts": [1, 2], "size": [2, 2]}}, "run lengths sum to 3, but the mask is 2x2"),
    ({"type": "mask", "rle": {"counts": "06", "size": [2]}}, "the size is [2]"),
    (5, "it is 5, not an object"),
    (None, "it is null, not an object"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "message"), ANNOTATIONS)
def test_a_bad_annotation_is_named_and_can_be_left_out(tmp_path, annotation, message):
    item = bad()
    item["annotations"].append(annotation)
    good = {"id": "a", "annotations": [box()]}
    put(tmp_path, document(good, item, {**good, "id": "c"}))
    place = (tmp_path / "annotations/train.json").read_text().index('{"id": "b"')
    kind = annotation.get("type") if isinstance(annotation, dict) else None
    with pytest.raises(DataError) as e:
        list(read(tmp_path))
    assert e.value.item == "b"
    assert e.value.place == f"byte {place}"
    assert e.value.file == str(tmp_path / "annotations/train.json")
    assert "annotation 2" + (f" ({kind})" if isinstance(kind, str) else "") in str(e.value)
    assert message in str(e.value)
    report = read(tmp_path, on_error="quarantine").export(str(tmp_path / "out"), "datumaro")
    assert [len(i["annotations"]) for i in load(tmp_path / "out")["items"]] == [1, 1, 1]
    assert len(report.errors) == 1


ITEMS = [
    ('{"annotations": []}', "the item has no 'id'", None),
    ('{"id": null, "annotations": []}', "the item's 'id' is null", None),
    ('{"id": "", "annotations": []}', "the item's 'id' is \"\"", None),
    ('{"id": ["x"], "annotations": []}', "the item's 'id' is [\"x\"]", None),
    ('{"id": "b", "annotations": 5}', "'annotations' is 5, not a list", "b"),
    ('{"id": "b", "annotations": [], "attr": 5}', "'attr' is 5, not an object", "b"),
    ('{"id": "b", "annotations": [], "image": "b.jpg"}', "'image' is \"b.jpg\", not an object", "b"),
    ('{"id": "b", "annotations": [], "image": {"path": 5}}', "the path of the image is 5", "b"),
    ('{"id": "b", "annotations": [], "image": {"path": "b.jpg", "size": [5]}}', "the size is [5]", "b"),
    ('{"id": "b", "annotations": [], "image": {"path": "b.jpg", "size": [-5, 1.5]}}', "'size' is 1.5", "b"),
    ('{"id": "b", "annotations": [], "image": {"path": "../../etc/x.jpg"}}', "leaves the dataset folder", "b"),
    ('{"id": "b", "annotations": [], "image": {"path": "b.jpg"}, "point_cloud": {"path": "b.pcd"}}', "has one of them", "b"),
    ('{"id": "b", "annotations": [], "point_cloud": {"path": ""}}', "the path of the point cloud is", "b"),
    ('{"id": "b", "annotations": [], "point_cloud": {"path": "b.pcd"}, "related_images": [5]}', "a related image is 5", "b"),
    ('{"id": "b" "annotations": []}', "not valid JSON (Expecting ',' delimiter)", None),
    ('{"id": "b", "annotations": [1}', "not valid JSON", None),
    ('{"id": "b\\ud800", "annotations": []}', "lone surrogate", "b\\ud800"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message", "id"), ITEMS)
def test_a_bad_item_is_named_and_can_be_left_out(tmp_path, record, message, id):
    text = json.dumps(document({"id": "a", "annotations": []}, {"id": "c", "annotations": []}))
    at = text.index(', {"id": "c"')
    put(tmp_path, f"{text[:at]}, {record}{text[at:]}")
    with pytest.raises(DataError) as e:
        list(read(tmp_path))
    assert message in e.value.reason
    assert e.value.item == id
    assert e.value.file == str(tmp_path / "annotations/train.json")
    assert at + 2 <= int(e.value.place.split()[1]) < at + 2 + len(record)
    assert [i.id for i in read(tmp_path, on_error="skip")] == ["a", "c"]


def test_bytes_that_are_no_text(tmp_path):
    path = put(tmp_path, document({"id": "a", "annotations": []}, {"id": "bQb", "annotations": []}))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"bQb", b"b\xffb"))
    with pytest.raises(DataError, match="not UTF-8 text") as e:
        list(read(tmp_path))
    assert e.value.place == f"byte {data.index(b'bQb') + 1}"
    assert [i.id for i in read(tmp_path, on_error="skip")] == ["a"]


def test_an_id_that_occurs_twice(tmp_path):
    items = [{"id": i, "annotations": []} for i in ("a", "b", "a", "c")]
    path = put(tmp_path, document(*items))
    with pytest.raises(DataError, match="the id occurs twice in the subset 'train'") as e:
        list(read(tmp_path))
    assert e.value.item == "a"
    assert e.value.place == f"byte {path.read_text().rindex(json.dumps(items[2]))}"
    assert [i.id for i in read(tmp_path, on_error="skip")] == ["a", "b", "c"]


def test_ids_are_known_over_many_blocks():
    seen = Seen()
    rng = np.random.default_rng(0)
    held = set()
    for _ in range(60):
        ids = [str(i) for i in rng.integers(0, 3000, 50)]
        expected = []
        for i in ids:
            expected.append(i in held)
            held.add(i)
        assert seen.add(pa.array(ids)).tolist() == expected


@pytest.mark.parametrize("cut", [0, 1, 40, 150, -20, -3, -2, -1])
def test_a_file_that_is_cut_off(tmp_path, cut):
    text = json.dumps(document({"id": "a", "annotations": [box()]}, {"id": "b", "annotations": [box()]}))
    put(tmp_path, text[:cut])
    with pytest.raises(DataError, match=r"train\.json"):
        list(read(tmp_path))


@pytest.mark.parametrize("workers", [1, 3])
def test_what_stands_before_the_cut_is_read(tmp_path, workers):
    text = json.dumps(document(*({"id": i, "annotations": [box()]} for i in "abc")))
    put(tmp_path, text[: text.index('"c"') + 10])
    engine = LocalEngine(workers)
    made = Dataset.import_from(str(tmp_path), "datumaro", engine=engine, on_error="skip")
    report = made.export(str(tmp_path / "out"), "datumaro")
    assert [item.id for item in read(tmp_path / "out")] == ["a", "b"]
    assert [e["reason"].split(" inside")[0] for e in report.errors] == ["the file is cut off"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"items": []}, "the top-level key 'categories' is missing"),
        ({"categories": {}}, "the top-level key 'items' is missing"),
        ({"categories": {}, "items": {}}, "'items' is {}, not a list of objects"),
        ({"items": {"a": {}}, "categories": {}}, "'items' is {\"a\": {}}, not a list of objects"),
        ({"categories": [], "items": []}, "'categories' is not a JSON object"),
        ({"categories": {"label": {}}, "items": []}, "the key 'labels' is missing"),
        (
            {"categories": {"label": {"labels": [{"name": "a"}, {"name": "a"}]}}, "items": []},
            "'a' occurs twice",
        ),
        ({"categories": {"mask": {"colormap": [{"label_id": 0}]}}, "items": []}, "the key 'r' is missing"),
        ({"categories": {}, "items": [1, 2]}, "'items' is [1, 2], not a list of objects"),
        ({"categories": {}, "items": [[{"id": "a"}]]}, "'items' is [[{"),
    ],
)
def test_a_bad_header_is_named(tmp_path, content, message):
    put(tmp_path, content)
    with pytest.raises(DataError) as e:
        list(read(tmp_path))
    assert message in str(e.value)
    assert "train.json" in str(e.value)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"no annotations/\*\.json"):
        read(tmp_path)
