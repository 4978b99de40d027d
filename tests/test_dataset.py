"""Dataset: what is bad of items made by hand, how much there is to come, put and remove."""

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


@pytest.mark.parametrize("format", ["voc", "yolo_ultralytics", "image_dir", "rayds"])
def test_formats_that_list_their_items_tell_how_many_there_will_be(format: str, tmp_path: Path) -> None:
    images = [dm.DatasetItem(f"i{n}", subset="train", image=np.ones((8, 8, 3))) for n in range(5)]
    made = dm.Dataset.from_iterable(images, categories=["a"])
    made.export(str(tmp_path / "out"), format, save_media=True)
    back = dm.Dataset.import_from(str(tmp_path / "out"), format)
    assert back.expected() == (5, True)
    assert back.select(lambda item: False).expected() is None


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


@pytest.mark.parametrize("format", ["coco", "voc", "yolo", "yolo_ultralytics", "datumaro", "rayds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_coordinate_that_is_no_finite_number_is_a_bad_item(
    format: str, value: float, tmp_path: Path
) -> None:
    image = dm.Image(path="a.jpg", size=(10, 20))
    items = [
        dm.DatasetItem(name, image=image, annotations=[dm.Bbox(x, 2, 3, 4, label=0)])
        for name, x in (("good", 1), ("bad", value))
    ]
    dataset = dm.Dataset.from_iterable(items, categories=["cat"])
    with pytest.raises(dm.DataError, match="item 'bad': a coordinate of an annotation is no finite number"):
        dataset.export(str(tmp_path / "out"), format)
    report = dataset.export(str(tmp_path / "out"), format, on_error="skip")
    assert (report.items, len(report.errors)) == (1, 1)


@pytest.mark.parametrize("format", ["coco", "voc", "yolo_ultralytics", "datumaro", "rayds"])
def test_a_mask_whose_run_lengths_do_not_fill_it_is_a_bad_item(format: str, tmp_path: Path) -> None:
    image = dm.Image(path="a.jpg", size=(10, 20))
    good = dm.Mask(np.ones((10, 20), bool), label=0)
    broken = dm.Mask(rle={"size": [10, 20], "counts": "@@zz~"}, label=0)
    items = [dm.DatasetItem(m, image=image, annotations=[a]) for m, a in (("good", good), ("bad", broken))]
    dataset = dm.Dataset.from_iterable(items, categories=["cat"])
    with pytest.raises(dm.DataError, match="item 'bad': the run lengths of a mask are broken"):
        dataset.export(str(tmp_path / "out"), format)
    report = dataset.export(str(tmp_path / "out"), format, on_error="skip")
    assert (report.items, len(report.errors)) == (1, 1)


def test_put_and_remove_return_the_new_dataset() -> None:
    one = dm.Dataset(categories=["cat", "dog"]).put(dm.DatasetItem(id=0, annotations=[dm.Label(0)]))
    again = one.put(dm.DatasetItem(1)).put(dm.DatasetItem(id=0))
    assert [(i.id, len(i.annotations)) for i in one] == [("0", 1)]
    assert [(i.id, len(i.annotations)) for i in again] == [("1", 0), ("0", 0)]
    assert [i.id for i in again.remove("1")] == ["0"]


def test_put_and_remove_on_each_engine(engine: Any) -> None:
    dataset = dm.Dataset.from_iterable([dm.DatasetItem(i) for i in range(5)], engine=engine)
    made = dataset.put(dm.DatasetItem(3, attributes={"new": True})).remove("0")
    assert [(i.id, i.attributes) for i in made] == [("1", {}), ("2", {}), ("4", {}), ("3", {"new": True})]


def test_a_subset_that_is_not_there_suggests_the_nearest() -> None:
    dataset = dm.Dataset.from_iterable([dm.DatasetItem("a", subset="train")])
    assert len(dataset) == 1
    with pytest.raises(dm.UnknownNameError, match="'trian'.*Did you mean 'train'"):
        dataset.get_subset("trian")


def test_a_function_that_fails_names_the_item() -> None:
    dataset = dm.Dataset.from_iterable([dm.DatasetItem("a"), dm.DatasetItem("b")])

    def fail(item: dm.DatasetItem) -> bool:
        return item.id == "a" or bool(1 / 0)

    for made in (dataset.select(fail), dataset.map(lambda item: item if fail(item) else None)):
        with pytest.raises(dm.DataError, match="item 'b': the function given failed with ZeroDivisionError"):
            list(made)
