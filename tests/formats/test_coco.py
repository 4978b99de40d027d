"""COCO: what is read is written back; files that other tools read; real datasets."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayds.annotations import Annotation, Bbox, Caption, Label, Mask, Points, Polygon
from rayds.categories import Categories, LabelCategories, PointsCategories
from rayds.dataset import Dataset
from rayds.engine.local import LocalEngine
from rayds.item import DatasetItem
from rayds.losses import summarize
from rayds.media import Image
from rayds.registry import detect_format
from rayds.schema import AnnotationType

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "coco_mini").is_dir(), reason="no real data here")
SIZE = 16

Json = dict[str, Any]


def read(path: Path | str, format: str = "coco", **options: Any) -> list[DatasetItem]:
    return list(Dataset.import_from(str(path), format, engine="local", **options))


def parsed(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def pycoco(path: Path) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


# Items that COCO can hold: ids from 1, each object in a group of its own id.

coordinate = st.floats(0, SIZE, allow_nan=False).map(lambda v: round(v, 3)) | st.integers(0, SIZE).map(float)
name = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\:.\0"), min_size=1, max_size=8
)
value = st.none() | st.booleans() | st.integers(-5, 2**40) | coordinate | st.text(max_size=5)
attributes = st.dictionaries(st.sampled_from(["colour", "ü \"q'", "a.b", "x"]), value, max_size=2)
score = st.fixed_dictionaries({}, optional={"score": st.floats(0, 1)})


@st.composite
def objects(draw: st.DrawFn, id: int) -> list[Annotation]:
    """The rows of one COCO annotation."""
    base: Json = {"id": id, "attributes": {**draw(attributes), **draw(score)}}
    label = draw(st.integers(0, 2))
    kind = draw(st.sampled_from(["caption", "label", "box", "polygons", "mask", "points"]))
    if kind == "caption":
        return [Caption(draw(st.text(max_size=20)), **base)]
    if kind == "label":
        return [Label(label, **base)]
    base |= {"label": label, "group": id}
    base["attributes"]["is_crowd"] = draw(st.booleans())
    rows: list[Annotation] = [Bbox(*(draw(coordinate) for _ in range(4)), **base)]
    if kind == "polygons":
        n = st.integers(3, 5)
        sizes = draw(st.lists(n, min_size=1, max_size=3))
        rows += [Polygon([draw(coordinate) for _ in range(2 * k)], **base) for k in sizes]
    elif kind == "mask":
        rows.append(
            Mask(np.array(draw(st.lists(st.booleans(), min_size=20, max_size=20))).reshape(4, 5), **base)
        )
    elif kind == "points":
        n_points = draw(st.integers(1, 3))
        points = [draw(coordinate) for _ in range(2 * n_points)]
        rows.append(Points(points, [draw(st.integers(0, 2)) for _ in range(n_points)], **base))
    return rows


@st.composite
def datasets(draw: st.DrawFn) -> list[DatasetItem]:
    items, next_id = [], 1
    for i, id in enumerate(draw(st.lists(name, unique=True, min_size=1, max_size=4))):
        rows: list[Annotation] = []
        for _ in range(draw(st.integers(0, 3))):
            rows += draw(objects(next_id))
            next_id += draw(st.integers(1, 3))
        rows.sort(key=lambda r: {"label": 1, "caption": 2}.get(r.type.name, 0))  # as the tasks are read
        image = Image(path=f"images/{id}{draw(st.sampled_from(['.jpg', '.png']))}", size=(SIZE, SIZE))
        items.append(
            DatasetItem(
                id,
                subset=draw(st.sampled_from(["train", "val"])),
                media=image,
                annotations=rows,
                attributes={"id": 100 + i, **draw(attributes)},
            )
        )
    return sorted(items, key=lambda item: item.subset)


def made(items: list[DatasetItem]) -> Dataset:
    labels = LabelCategories.from_iterable(["cat", ("dog", "animal"), 'a "q" ü'])
    points = PointsCategories.from_iterable([(i, ["nose", "eye", "ear"], [(1, 2)]) for i in range(3)])
    categories = Categories({AnnotationType.label: labels, AnnotationType.points: points})
    return Dataset.from_iterable(items, categories, engine="local")


def plain(item: DatasetItem) -> Any:
    """An item without what a file adds (area, the place of the image) and with points after shapes."""
    rows = [a.wrap(extra={}) for a in item.annotations]
    return item.id, item.subset, item.attributes, rows, item.image.size if item.image else None


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(items=datasets())
def test_round_trip(items: list[DatasetItem], tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("coco") / "out"
    source = made(items)
    report = source.export(str(out), "coco")
    assert report.losses == {}
    back = Dataset.import_from(str(out), "coco", engine="local")
    assert [plain(i) for i in back] == [plain(i) for i in items]
    assert [(c.name, c.parent) for c in back.categories().labels] == [
        (c.name, c.parent) for c in source.categories().labels
    ]
    again = out.parent / "again"
    back.export(str(again), "coco")
    assert files_of(again) == files_of(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# Blocks and workers.


def mixed() -> list[DatasetItem]:
    """Items without ids, as formats that have none give them, in two subsets by turns."""
    items = []
    for i in range(60):
        rows: list[Annotation] = [Bbox(i % 7, 1, 2, 3, label=i % 3, group=k + 1) for k in range(i % 4)]
        rows += [Polygon([0, 0, 4, 0, 4, 4], label=1, group=1)] if i % 4 == 3 else []
        rows.append(Caption(f"picture {i}"))
        items.append(
            DatasetItem(
                f"d{i % 5}/{i:03}",
                subset="ab"[i % 2],
                media=Image(path=f"{i}.jpg", size=(9, 9)),
                annotations=rows,
            )
        )
    return items


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_same_bytes_for_all_blocks_and_workers(tmp_path: Path, workers: int, rows: int) -> None:
    whole = made(mixed())
    whole.export(str(tmp_path / "one"), "coco")
    table = whole.to_arrow()
    parts = [table.slice(i, rows) for i in range(0, len(table), rows)]
    cut = Dataset.from_arrow(parts, whole.categories(), engine=LocalEngine(workers))
    cut.export(str(tmp_path / "other"), "coco")
    assert files_of(tmp_path / "other") == files_of(tmp_path / "one")


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_reading_does_not_depend_on_block_size_and_spilling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, budget: int
) -> None:
    from rayds.formats import _records
    from rayds.formats.coco import merge

    made(mixed()).export(str(tmp_path / "d"), "coco")
    expected = read(tmp_path / "d")
    monkeypatch.setattr(merge, "SPILL_BYTES", budget)
    monkeypatch.setattr(_records.RecordScanner, "window", 300)
    monkeypatch.setattr("rayds.dataset.ReadContext", _small_blocks)
    assert list(Dataset.import_from(str(tmp_path / "d"), "coco", engine=LocalEngine(workers))) == expected


def _small_blocks(*args: Any, **kwargs: Any) -> Any:
    from rayds.format import ReadContext

    return ReadContext(*args, **kwargs, block_rows=7)


# Ids.


def test_ids_are_given_where_there_are_none(tmp_path: Path) -> None:
    made(mixed()).export(str(tmp_path / "d"), "coco")
    for subset in "ab":
        found = parsed(tmp_path / f"d/annotations/instances_{subset}.json")
        captions = parsed(tmp_path / f"d/annotations/captions_{subset}.json")
        assert [i["id"] for i in found["images"]] == list(range(1, 31))
        ids = [a["id"] for a in found["annotations"]] + [a["id"] for a in captions["annotations"]]
        assert len(set(ids)) == len(ids)


def hand_made(**ids: int) -> Dataset:
    """Example 2 of the COCO manual."""
    masks = [
        Mask(np.array([[0, 0, 1, 1, 0]]), label=3, id=7, group=7, attributes={"is_crowd": False}),
        Mask(
            np.array([[0, 1, 0, 0, 1]]),
            label=1,
            id=ids.get("second", 20),
            group=20,
            attributes={"is_crowd": True},
        ),
    ]
    item = DatasetItem(
        "1", subset="train", image=np.ones((1, 5, 3)), attributes={"id": 40}, annotations=masks
    )
    return Dataset.from_iterable([item], ["a", "b", "c", "d"], engine="local")


def test_ids_of_a_dataset_made_by_hand_are_kept(tmp_path: Path) -> None:
    hand_made().export(str(tmp_path / "i"), "coco_instances")
    found = parsed(tmp_path / "i/annotations/instances_train.json")
    assert [i["id"] for i in found["images"]] == [40]
    assert [(a["id"], a["image_id"], a["category_id"], a["iscrowd"]) for a in found["annotations"]] == [
        (7, 40, 4, 0),
        (20, 40, 2, 1),
    ]
    hand_made().export(str(tmp_path / "p"), "coco_panoptic", save_media=True)
    found = parsed(tmp_path / "p/annotations/panoptic_train.json")
    assert [s["id"] for s in found["annotations"][0]["segments_info"]] == [7, 20]
    [item] = read(tmp_path / "p", "coco_panoptic")
    assert item.attributes == {"id": 40}
    assert [(m.id, m.group, m.label, m.attributes) for m in item.annotations] == [
        (7, 7, 3, {"is_crowd": False}),
        (20, 20, 1, {"is_crowd": True}),
    ]
    assert [m.image.astype(int).tolist() for m in item.annotations if isinstance(m, Mask)] == [
        [[0, 0, 1, 1, 0]],
        [[0, 1, 0, 0, 1]],
    ]


def test_ids_that_collide_are_given_anew(tmp_path: Path) -> None:
    hand_made(second=7).export(str(tmp_path / "i"), "coco_instances")
    found = parsed(tmp_path / "i/annotations/instances_train.json")
    assert [i["id"] for i in found["images"]] == [40]
    assert [a["id"] for a in found["annotations"]] == [1, 2]


def test_missing_ids_go_on_after_the_largest(tmp_path: Path) -> None:
    items = [
        DatasetItem(
            "a",
            annotations=[Bbox(0, 0, 1, 1, label=0, id=5, group=1), Bbox(0, 0, 1, 1, label=0)],
            attributes={"id": 9},
        ),
        DatasetItem("b"),
    ]
    made(items).export(str(tmp_path / "d"), "coco")
    found = parsed(tmp_path / "d/annotations/instances_default.json")
    first, second = (i["id"] for i in found["images"])
    assert first == 9
    assert second > 9
    assert found["annotations"][0]["id"] == 5
    assert found["annotations"][1]["id"] > 5


@pytest.mark.parametrize("reindex", [True, False])
def test_reindex(tmp_path: Path, reindex: bool) -> None:
    report = hand_made().export(str(tmp_path / "d"), "coco", reindex=reindex)
    found = parsed(tmp_path / "d/annotations/instances_train.json")
    assert [i["id"] for i in found["images"]] == ([1] if reindex else [40])
    assert [a["id"] for a in found["annotations"]] == ([1, 2] if reindex else [7, 20])
    assert ("annotation ids" in report.losses) == reindex


# Real data.


@needs_data
def test_known_counts() -> None:
    found = Dataset.import_from(str(DATA / "coco_mini"), "coco", engine="local")
    total = summarize(found.to_arrow())
    assert total.subsets == {"train2017": 80, "val2017": 79}
    assert total.annotations["bbox"] == 739 + 624
    assert total.annotations["mask"] == 8 + 5
    assert total.annotations["points"] == 172 + 118
    assert total.annotations["caption"] == 400 + 395
    assert total.objects == 739 + 624 + 400 + 395  # a person with key points is one object
    flow = Dataset.import_from(str(DATA / "roboflow_coco_bloodcells"), engine="local")
    assert (flow.format, len(flow)) == ("roboflow_coco", 240)
    assert summarize(flow.to_arrow()).objects == 5638
    stuff = Dataset.import_from(
        str(DATA / "coco_stuff/annotations/stuff_examples.json"), "coco_stuff", engine="local"
    )
    assert summarize(stuff.to_arrow()).annotations["mask"] == 17


@needs_data
def test_detection() -> None:
    assert detect_format(str(DATA / "coco_mini")).name == "coco"
    assert detect_format(str(DATA / "roboflow_coco_bloodcells")).name == "roboflow_coco"
    assert detect_format(str(DATA / "coco_results/results")).name == "coco_results"


@needs_data
@pytest.mark.parametrize("subset", ["train2017", "val2017"])
def test_values_are_those_of_the_file(subset: str) -> None:
    source = parsed(DATA / f"coco_mini/annotations/instances_{subset}.json")
    labels = {c["id"]: c["name"] for c in source["categories"]}
    expected: dict[int, list[Any]] = {i["id"]: [] for i in source["images"]}
    for a in source["annotations"]:
        segments = a["segmentation"] if isinstance(a["segmentation"], list) else [a["segmentation"]["size"]]
        expected[a["image_id"]].append(
            (a["id"], labels[a["category_id"]], a["bbox"], segments, a["area"], bool(a["iscrowd"]))
        )
    dataset = Dataset.import_from(str(DATA / "coco_mini"), "coco", engine="local").get_subset(subset)
    names = dataset.categories().labels.names()
    for item in dataset:
        found: dict[int, Any] = {}
        for a in item.annotations:
            if isinstance(a, Bbox):
                box = [a.x, a.y, a.w, a.h]
                found[a.id] = (
                    a.id,
                    names[a.label or 0],
                    box,
                    [],
                    a.extra["coco"]["area"],
                    a.attributes["is_crowd"],
                )
            elif isinstance(a, Polygon):
                found[a.id][3].append(a.points)
            elif isinstance(a, Mask):
                found[a.id][3].append(a.rle["size"])
        assert list(found.values()) == expected.pop(item.attributes["id"])
    assert not expected


@needs_data
@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("coco_mini", "coco"),
        ("roboflow_coco_bloodcells", "roboflow_coco"),
        ("coco_stuff/annotations/stuff_examples.json", "coco_stuff"),
        ("coco_panoptic/sample_data/panoptic_examples.json", "coco_panoptic"),
    ],
)
def test_real_data_comes_back(tmp_path: Path, path: str, format: str) -> None:
    source = Dataset.import_from(str(DATA / path), format, engine="local")
    report = source.export(str(tmp_path / "d"), format)
    assert report.losses == {}
    back = Dataset.import_from(str(tmp_path / "d"), format, engine="local")
    without = [i.wrap(media=None) for i in source]
    assert [i.wrap(media=None) for i in back] == without
    assert [i.image and i.image.size for i in back] == [i.image and i.image.size for i in source]
    for task in ("instances", "person_keypoints", "captions"):
        old = DATA / path / f"annotations/{task}_val2017.json"
        if old.is_file():
            assert _by_id(parsed(tmp_path / f"d/annotations/{old.name}")) == _by_id(parsed(old))


def _by_id(found: Json) -> Json:
    """A COCO file with its annotations in the order of their ids."""
    found["annotations"].sort(key=lambda a: a["id"])
    return found


@needs_data
def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    Dataset.import_from(str(DATA / "coco_mini"), "coco", engine="local").export(
        str(tmp_path / "d"), "coco", segmentation_mode="mask"
    )
    old = pycoco(DATA / "coco_mini/annotations/instances_val2017.json")
    new = pycoco(tmp_path / "d/annotations/instances_val2017.json")
    assert sorted(new.getAnnIds()) == sorted(old.getAnnIds())
    assert new.getCatIds(catNms=["dog"]) == old.getCatIds(catNms=["dog"])
    for id in old.getAnnIds()[::9]:
        assert (new.annToMask(new.anns[id]) == old.annToMask(old.anns[id])).all()
