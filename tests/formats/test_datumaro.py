"""Datumaro's JSON: whatever is written is read again, the same from every engine, by both ways of reading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datumaro_data import LABELS, block_of, box, document, load, names, put, read
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
)
from rayds.dataset import Dataset
from rayds.format import ReadContext
from rayds.formats._records import Records
from rayds.formats.datumaro import Datumaro
from rayds.formats.datumaro.careful import Careful
from rayds.formats.datumaro.media import Locator
from rayds.formats.datumaro.read import Reader
from rayds.item import DatasetItem, from_table, to_table
from rayds.listing import Listing
from rayds.media import Image, PointCloud
from rayds.schema import ITEM_SCHEMA, conform
from rayds.storage import Storage

DATA = Path(__file__).parents[3] / "shared" / "data"
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
texts = st.one_of(texts, st.sampled_from(['"', "\\", '","id":"', "é\n", '"label_id": null', "{}", "\\u0041"]))
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
