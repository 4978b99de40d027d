"""Datumaro's native JSON, as written by rayds and by Datumaro 0.1 to 1.x, whole and damaged."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from rayds.format import ReadContext, WriteContext
from rayds.formats._records import Records
from rayds.formats.datumaro import Datumaro
from rayds.formats.datumaro.careful import Careful
from rayds.formats.datumaro.media import Locator
from rayds.formats.datumaro.read import Reader
from rayds.formats.datumaro.seen import Seen
from rayds.item import DatasetItem, from_table, to_table
from rayds.listing import Listing
from rayds.media import Image, PointCloud
from rayds.registry import detect_format
from rayds.schema import ITEM_SCHEMA, AnnotationType, conform
from rayds.storage import Storage

LABELS = ["cat", "dog", "traffic light"]
DATA = Path(__file__).parents[3] / "shared" / "data"

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
texts = st.one_of(texts, st.sampled_from(['"', "\\", '","id":"', "é\n", '"label_id": null', "{}", "\\u0041"]))
names = st.text(st.sampled_from("abcXYZ019_- .é"), min_size=1, max_size=6).filter(
    lambda t: t.strip(". ") == t
)
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=64),
    st.integers(-1000, 1000).map(float),
    st.just(-0.0),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), numbers, texts)
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(texts, scalars, max_size=2))
objects = st.dictionaries(texts, values, max_size=3)
unknown = st.dictionaries(
    st.sampled_from(["foo", "object_id2", 'q"', "label_ids", "é"]), values, min_size=1, max_size=3
)
ids64 = st.one_of(st.integers(0, 5), st.integers(-(2**63), 2**63 - 1))
own = st.one_of(
    st.just({}),
    st.builds(
        lambda v: {"datumaro": v},
        st.one_of(unknown, st.builds(lambda i: {"object_id": i}, st.integers(0, 9))),
    ),
)
base = {
    "label": st.one_of(st.none(), st.integers(0, 2)),
    "id": ids64,
    "group": ids64,
    "attributes": objects,
    "z_order": st.integers(-(2**31), 2**31 - 1),
    "extra": own,
}


def coordinates(low, high=20):
    return st.integers(low, high).flatmap(lambda n: st.lists(numbers, min_size=2 * n, max_size=2 * n))


def triple():
    return st.lists(numbers, min_size=3, max_size=3)


masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda s: st.binary(min_size=s[0] * s[1], max_size=s[0] * s[1]).map(
        lambda b: np.frombuffer(b, np.uint8).reshape(s) % 2 == 1
    )
)
points = coordinates(0, 5).flatmap(
    lambda p: st.builds(
        Points, st.just(p), st.lists(st.integers(0, 2), min_size=len(p) // 2, max_size=len(p) // 2), **base
    )
)
annotations = st.one_of(
    st.builds(Label, **base),
    st.builds(Caption, texts, **base),
    st.builds(Bbox, numbers, numbers, numbers, numbers, **base),
    st.builds(RotatedBbox, numbers, numbers, numbers, numbers, numbers, **base),
    st.builds(Ellipse, numbers, numbers, numbers, numbers, **base),
    st.builds(Polygon, coordinates(3), **base),
    st.builds(PolyLine, coordinates(0), **base),
    st.builds(Cuboid3d, triple(), triple(), triple(), **base),
    st.builds(Mask, masks, **base),
    points,
)
sizes = st.one_of(st.none(), st.tuples(st.integers(1, 9000), st.integers(1, 9000)))
media = st.one_of(
    st.none(),
    st.builds(lambda e, s: (e, s), st.sampled_from([".jpg", ".PNG", ".tiff"]), sizes),
    st.just((".pcd", None)),
)


def clear(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@st.composite
def datasets(draw):
    """Items as they are once they were read from `out`."""
    keys = draw(
        st.lists(st.tuples(names, st.sampled_from(["default", "train", "val é"])), unique=True, max_size=5)
    )
    made = []
    for id, subset in sorted(keys, key=lambda k: k[1]):
        what = draw(media)
        image = cloud = None
        if what and what[0] == ".pcd":
            cloud = PointCloud(f"OUT/point_clouds/{subset}/{id}.pcd")
        elif what:
            image = Image(path=f"OUT/images/{subset}/{id}{what[0]}", size=what[1])
        item = DatasetItem(
            id,
            draw(st.lists(annotations, max_size=5)),
            subset,
            image=image,
            point_cloud=cloud,
            attributes=draw(objects),
            extra=draw(st.one_of(st.just({}), unknown.map(lambda v: {"datumaro": v}))),
        )
        made.append(item)
    return made


def here(item, out):
    """The item with its media in a folder."""
    if item.media is not None:
        item.media.path = item.media.path.replace("OUT", str(out))
    return item


def read(path, **options):
    return Dataset.import_from(str(path), "datumaro", **options)


def put(root, content, subset="train"):
    path = Path(root) / "annotations" / f"{subset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def document(*items, labels=LABELS, **top):
    listed = [{"name": n, "parent": "", "attributes": []} for n in labels]
    return {"categories": {"label": {"labels": listed, "attributes": []}}, **top, "items": list(items)}


def load(root, subset="train"):
    return json.loads((Path(root) / "annotations" / f"{subset}.json").read_text())


def strict(items):
    """Items by all that == of annotations compares, and type and extra of their numbers too."""
    return to_table(items).to_pylist()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(datasets())
def test_what_is_written_is_read_again(tmp_path_factory, items):
    out = tmp_path_factory.mktemp("round") / "out"
    items = [here(item, out) for item in items]
    report = Dataset.from_iterable(items, LABELS).export(str(out), "datumaro")
    assert not report.losses
    again = list(read(out))
    assert again == items
    assert strict(again) == strict(items)
    files = {p.name: json.loads(p.read_bytes()) for p in out.rglob("*.json")}
    assert not (out / ".fragments").exists()
    second = clear(out.parent / "second")
    read(out).export(str(second), "datumaro")
    assert {p.name: json.loads(p.read_bytes()) for p in second.rglob("*.json")} == files


def block_of(n=300, seed=0):
    rng = np.random.default_rng(seed)
    items = []
    for i in range(n):
        anns = []
        for k in range(int(rng.integers(0, 4))):
            anns.append(Bbox(*rng.uniform(0, 99, 4), label=int(rng.integers(3)), id=k + 1, group=k + 1))
            anns.append(
                Polygon(rng.uniform(0, 99, 2 * int(rng.integers(3, 9))), label=0, id=k + 1, group=k + 1)
            )
        items.append(
            DatasetItem(
                f"{i:05d}", anns, "train" if i % 3 else "val", image=Image(f"/x/{i}.png", size=(4, 5))
            )
        )
    return items


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_the_blocks_do_not_show_in_the_files(tmp_path, rows):
    items = block_of(60)
    whole = Dataset.from_iterable(items, LABELS).export(str(tmp_path / "a"), "datumaro")
    assert whole.items == 60
    table = to_table(items)
    parts = Dataset.from_arrow([table.slice(i, rows) for i in range(0, 60, rows)], LABELS)
    parts.export(str(tmp_path / "b"), "datumaro")
    for name in ("train", "val"):
        assert load(tmp_path / "b", name) == load(tmp_path / "a", name)
        path = f"annotations/{name}.json"
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert {i.id for i in read(tmp_path / "b")} == {i.id for i in items}


def test_every_engine_writes_and_reads_the_same(tmp_path, engine):
    items = block_of(60)
    Dataset.from_iterable(items, LABELS).export(str(tmp_path / "a"), "datumaro")
    Dataset.from_iterable(items, LABELS, engine=engine).export(str(tmp_path / "b"), "datumaro")
    for name in ("train", "val"):
        path = f"annotations/{name}.json"
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert strict(read(tmp_path / "b", engine=engine)) == strict(read(tmp_path / "b"))


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


# bad data


def bad(annotation=None, **item):
    made = {"id": "b", "annotations": [{"type": "label", "label_id": 0}], **item}
    if annotation is not None:
        made["annotations"].append(annotation)
    return made


def box(**changes):
    return {"type": "bbox", "bbox": [1, 2, 3, 4], "label_id": 0, **changes}


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


# the two ways to read a record


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(datasets())
def test_the_careful_way_reads_what_the_columns_read(tmp_path_factory, items):
    out = tmp_path_factory.mktemp("two") / "out"
    Dataset.from_iterable(items, LABELS).export(str(out), "datumaro")
    for path in sorted((out / "annotations").glob("*.json")):
        found = [json.dumps(i, ensure_ascii=False).encode() for i in json.loads(path.read_bytes())["items"]]
        locator = Locator(Storage(out), path.stem)
        careful = Careful("f", path.stem, [0, 1, 2], locator)
        rows = [careful.row(text, "byte 0") for text in found]
        fast = Reader("f", path.stem, [0, 1, 2], locator).read(records_of(found)).table
        assert not careful.errors
        slow = pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)
        assert list(from_table(conform(fast))) == list(from_table(slow))


def records_of(found):
    data = np.frombuffer(b",".join(found) + b",", np.uint8).copy()
    lengths = np.array([len(t) for t in found], np.int64)
    starts = np.cumsum(lengths + 1) - lengths - 1
    marks = [t.replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"') for t in found]
    return Records("items", data, starts, starts + lengths, 0, np.array(marks, np.int64), 0)


def test_ordinary_records_take_the_fast_way(tmp_path, monkeypatch):
    """What Datumaro and rayds write themselves leaves no doubt, unlabelled and unusual values included."""
    Dataset.from_iterable(block_of(20), LABELS).export(str(tmp_path), "datumaro", overwrite=True)
    content = load(tmp_path)
    content["items"][0]["annotations"] = [
        box(label_id=None, object_id=4),
        {"type": "caption", "caption": 'a "b" \\'},
    ]
    content["items"][1] |= {
        "id": 'q"\\',
        "attr": {'x"': None, "y": ["\\", '"']},
        "image": {"path": "/abs/x.jpg"},
    }
    put(tmp_path, json.dumps(content, indent=1))
    expected = strict(read(tmp_path))
    monkeypatch.setattr(Careful, "row", lambda *a: pytest.fail("read the careful way"))
    assert strict(read(tmp_path)) == expected
    assert len(expected) == 20


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


def test_a_block_of_the_reader_is_no_bigger_than_asked(tmp_path):
    put(tmp_path, document(*({"id": str(i), "annotations": []} for i in range(25))))
    fmt = Datumaro()
    files = Listing(tmp_path)
    plan = fmt.plan(files, None)
    ctx = ReadContext(fmt.root(files), fmt.ReadOptions(), plan.categories, block_rows=10)
    assert [t.num_rows for t in fmt.read(plan.shards[0], ctx)] == [10, 10, 5]


@pytest.mark.skipif(not (DATA / "coco_mini").exists(), reason="the real data is not there")
def test_real_data_comes_back_whole(tmp_path):
    source = Dataset.import_from(str(DATA / "coco_mini"), "coco")
    report = source.export(str(tmp_path / "a"), "datumaro")
    assert not {k for k in report.losses if not k.startswith("note")}
    dataset = Dataset.import_from(str(tmp_path / "a"))
    assert dataset.format == "datumaro"
    expected = {(i.id, i.subset): i for i in source}
    items = list(dataset)
    assert len(items) == len(expected)
    for item in items:
        other = expected[item.id, item.subset]
        assert item.attributes == other.attributes
        assert [a.wrap(extra={}) for a in item.annotations] == [a.wrap(extra={}) for a in other.annotations]
    dataset.export(str(tmp_path / "b"), "datumaro")
    for path in (tmp_path / "a").rglob("*.json"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
