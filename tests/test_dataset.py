"""Dataset: the examples of the manuals, what is bad of items made by hand, how much there is to come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayds as dm


def boxes(*labels: int | None) -> dm.Dataset:
    items = [
        dm.DatasetItem(
            f"i{n}", image=dm.Image(path="a.jpg", size=(10, 20)), annotations=[dm.Bbox(1, 2, 3, 4, label=k)]
        )
        for n, k in enumerate(labels)
    ]
    return dm.Dataset.from_iterable(items, categories=["cat", "dog"])


@pytest.mark.parametrize("format", ["coco", "voc", "yolo", "yolo_ultralytics", "datumaro", "rayds"])
def test_a_label_beyond_the_categories_is_a_bad_item(format: str, tmp_path: Path) -> None:
    dataset = boxes(0, 5, 1)
    with pytest.raises(dm.DataError, match=r"item 'i1': the label index 5 .* beyond the 2 labels"):
        dataset.export(str(tmp_path / "out"), format)
    assert not (tmp_path / "out").exists()
    report = dataset.export(str(tmp_path / "out"), format, on_error="skip")
    assert (report.items, [e["item"] for e in report.errors]) == (2, ["i1"])


def test_bad_labels_are_left_out_on_each_engine(engine: Any, tmp_path: Path) -> None:
    report = boxes(7, None, 1).export(str(tmp_path / "out"), "rayds", engine=engine, on_error="quarantine")
    assert (report.items, [e["item"] for e in report.errors]) == (2, ["i0"])
    assert (tmp_path / "out" / "quarantine.parquet").exists()


def test_the_yolo_example_of_the_manual(tmp_path: Path) -> None:
    made = dm.Dataset.from_iterable(
        [
            dm.DatasetItem(
                id="image_001",
                subset="train",
                image=np.ones((20, 20, 3)),
                annotations=[dm.Bbox(3.0, 1.0, 8.0, 5.0, label=1), dm.Bbox(1.0, 1.0, 10.0, 1.0, label=2)],
            ),
            dm.DatasetItem(
                id="image_002",
                subset="train",
                image=np.ones((15, 10, 3)),
                annotations=[dm.Bbox(4, 4, 4, 4, label=3)],
            ),
        ],
        categories=["house", "bridge", "crosswalk", "traffic_light"],
    )
    made.export(str(tmp_path / "yolo"), format="yolo", save_images=True)
    dataset = dm.Dataset.import_from(str(tmp_path / "yolo"), format="yolo")
    cats = dataset.categories()[dm.AnnotationType.label]
    found = [(item.id, cats[ann.label].name) for item in dataset for ann in item.annotations]
    assert found == [("image_001", "bridge"), ("image_001", "crosswalk"), ("image_002", "traffic_light")]
    assert [(name, len(subset)) for name, subset in dataset.subsets().items()] == [("train", 2)]
    assert len(dataset.get_subset("train").as_dataset()) == 2


def test_the_panoptic_example_of_the_manual(tmp_path: Path) -> None:
    item = dm.DatasetItem(
        id="1",
        subset="val",
        image=np.ones((1, 5, 3)),
        attributes={"id": 40},
        annotations=[
            dm.Mask(
                image=np.array([[0, 0, 1, 1, 0]]), label=3, id=7, group=7, attributes={"is_crowd": False}
            ),
            dm.Mask(
                image=np.array([[0, 1, 0, 0, 1]]), label=1, id=20, group=20, attributes={"is_crowd": True}
            ),
        ],
    )
    made = dm.Dataset.from_iterable([item], categories=["a", "b", "c", "d"])
    made.export(str(tmp_path / "out"), format="coco_panoptic", save_media=True)
    (back,) = dm.Dataset.import_from(str(tmp_path / "out"), "coco_panoptic")
    assert back.attributes["id"] == 40
    assert [(a.id, a.label, a.image.tolist()) for a in back.annotations] == [
        (a.id, a.label, a.image.tolist()) for a in item.annotations
    ]


@pytest.mark.parametrize("format", ["voc", "yolo_ultralytics", "image_dir", "rayds"])
def test_formats_that_list_their_items_tell_how_many_there_will_be(format: str, tmp_path: Path) -> None:
    images = [dm.DatasetItem(f"i{n}", subset="train", image=np.ones((8, 8, 3))) for n in range(5)]
    made = dm.Dataset.from_iterable(images, categories=["a"])
    made.export(str(tmp_path / "out"), format, save_media=True)
    back = dm.Dataset.import_from(str(tmp_path / "out"), format)
    assert back.expected == 5
    assert back.select(lambda item: False).expected is None


def test_an_unknown_policy_suggests_the_nearest() -> None:
    with pytest.raises(dm.UnknownNameError, match="'skipp'. Did you mean 'skip'"):
        boxes(0).export("nowhere", "voc", on_error="skipp")


def test_a_format_shows_its_name() -> None:
    from rayds.registry import get_format

    assert repr(get_format("image_dir")) == "<format image_dir: a folder of images (no annotations)>"


def test_an_item_has_one_shard_whatever_stands_beside_it() -> None:
    def shards(dataset: dm.Dataset) -> list[list[str]]:
        return [block.column("id").to_pylist() for block in dataset.repartition(4).blocks()]

    all_items = boxes(*[0] * 40)
    whole = shards(all_items)
    assert len(whole) == 4
    assert sorted(id for shard in whole for id in shard) == sorted(item.id for item in all_items)
    half = shards(all_items.select(lambda item: int(item.id[1:]) % 2 == 0))
    assert half == [[id for id in shard if int(id[1:]) % 2 == 0] for shard in whole]


@pytest.mark.parametrize(("shards", "by"), [(0, "id"), (2, "name")])
def test_a_repartition_that_makes_no_sense(shards: int, by: str) -> None:
    with pytest.raises(dm.UsageError, match="repartition"):
        boxes(0).repartition(shards, by)
