"""Numbers of annotations, and what is removed."""

from __future__ import annotations

from typing import Any

import pytest

import rayds as dm
from rayds import numbering
from rayds.errors import UsageError


@pytest.fixture
def dataset(engine: Any) -> dm.Dataset:
    items = [
        dm.DatasetItem(
            str(i),
            [
                dm.Bbox(0, 0, 1, 1, group=3, id=7, attributes={"a": 1, "b": 2}),
                dm.Label(0, id=8, attributes={"a": 1}),
                dm.Polygon([0, 0, 1, 0, 1, 1], group=3, id=7),
            ],
            subset="s",
        )
        for i in range(5)
    ]
    return dm.Dataset.from_iterable(items, ["l"], engine=engine)


def ids(dataset: dm.Dataset) -> list[list[int]]:
    return [[a.id for a in item.annotations] for item in dataset]


def test_objects_are_numbered_over_all_items(dataset: dm.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "CHUNK", 2)
    made = ids(dataset.transform("reindex_annotations", start=10))
    assert made == [[10 + 2 * i, 11 + 2 * i, 10 + 2 * i] for i in range(5)]


def test_objects_are_numbered_in_every_item(dataset: dm.Dataset) -> None:
    assert ids(dataset.transform("reindex_annotations", reindex_each_item=True)) == [[1, 2, 1]] * 5


def test_annotations_are_removed(dataset: dm.Dataset) -> None:
    assert ids(dataset.transform("remove_annotations")) == [[]] * 5
    made = dataset.transform("remove_annotations", id=("1:s", "2:s:8", "3:t", "4:s:9"))
    assert ids(made) == [[7, 8, 7], [], [7, 7], [7, 8, 7], [7, 8, 7]]
    assert ids(dataset.transform("remove_annotations", ids=[("0", "s", 7)]))[0] == [8]
    with pytest.raises(UsageError, match="ID:SUBSET"):
        dataset.transform("remove_annotations", id=("1",))


def test_attributes_are_removed(dataset: dm.Dataset) -> None:
    def left(made: dm.Dataset) -> list[list[dict[str, Any]]]:
        return [[a.attributes for a in item.annotations] for item in made][:2]

    assert left(dataset.transform("remove_attributes")) == [[{}, {}, {}]] * 2
    assert left(dataset.transform("remove_attributes", attr=("a",))) == [[{"b": 2}, {}, {}]] * 2
    made = dataset.transform("remove_attributes", id=("1:s",), attr=("b", "c"))
    assert left(made) == [[{"a": 1, "b": 2}, {"a": 1}, {}], [{"a": 1}, {"a": 1}, {}]]
