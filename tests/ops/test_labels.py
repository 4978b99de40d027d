"""remap_labels, project_labels, anns_to_labels: names, merged and deleted labels, what hangs on them."""

from __future__ import annotations

from typing import Any

import pytest

import rayds as dm
from rayds.categories import Categories, LabelCategories, MaskCategories, PointsCategories
from rayds.errors import DataError, UsageError
from rayds.schema import AnnotationType


@pytest.fixture
def categories() -> Categories:
    labels = LabelCategories.from_iterable(
        [("animal",), ("cat", "animal", ["fur"]), ("dog", "animal", ["size"]), ("car", "vehicle")]
    )
    colors = MaskCategories({0: (0, 0, 0), 1: (10, 0, 0), 2: (0, 20, 0), 3: (0, 0, 30)})
    points = PointsCategories.from_iterable([(1, ["nose"], []), (2, ["tail"], [])])
    return Categories(
        {AnnotationType.label: labels, AnnotationType.mask: colors, AnnotationType.points: points}
    )


@pytest.fixture
def dataset(engine: Any, categories: Categories) -> dm.Dataset:
    items = [
        dm.DatasetItem(
            str(i),
            [dm.Bbox(0, 0, i + 1, 2, label=k, id=k + 1, group=k, attributes={"a": k}) for k in range(4)]
            + [dm.Caption("no label")],
        )
        for i in range(5)
    ]
    return dm.Dataset.from_iterable(items, categories, engine=engine)


def labels(dataset: dm.Dataset) -> list[list[str | None]]:
    names = dataset.categories().labels.names()
    return [
        [None if getattr(a, "label", None) is None else names[a.label] for a in item.annotations]
        for item in dataset
    ]


def test_labels_are_renamed_and_everything_else_stays(dataset: dm.Dataset) -> None:
    made = dataset.transform("remap_labels", label=("cat:kitten",))
    assert made.categories().labels.names() == ["animal", "kitten", "dog", "car"]
    assert [item.annotations for item in made] == [item.annotations for item in dataset]


def test_labels_are_merged_with_their_attributes_colours_and_key_points(dataset: dm.Dataset) -> None:
    made = dataset.transform("remap_labels", mapping={"dog": "pet", "cat": "pet", "animal": "being"})
    assert labels(made) == [["being", "pet", "pet", "car", None]] * 5
    found = made.categories()
    assert [(c.name, c.parent, c.attributes) for c in found.labels] == [
        ("being", "", set()), ("pet", "being", {"fur", "size"}), ("car", "", set())
    ]  # fmt: skip
    assert found.masks is not None
    assert found.masks.colormap == {0: (0, 0, 0), 1: (10, 0, 0), 2: (0, 0, 30)}
    assert found.points is not None
    assert {i: p.labels for i, p in found.points.items.items()} == {1: ["nose"]}


def test_deleted_labels_take_their_annotations_along(dataset: dm.Dataset) -> None:
    made = dataset.transform("remap_labels", label=("cat:", "dog:"))
    assert labels(made) == [["animal", "car", None]] * 5
    assert [a.id for a in made.get("3").annotations] == [1, 4, 0]
    made = dataset.transform("remap_labels", label=("cat:cat",), default="delete")
    assert labels(made) == [["cat"]] * 5
    assert made.categories().labels[0].parent == ""


def test_names_swap_and_come_back(dataset: dm.Dataset) -> None:
    there = dataset.transform("remap_labels", label=("cat:dog", "dog:cat"))
    assert labels(there) == [["animal", "dog", "cat", "car", None]] * 5
    back = there.transform("remap_labels", label=("cat:dog", "dog:cat"))
    assert labels(back) == labels(dataset)


def test_mistakes_in_pairs(dataset: dm.Dataset) -> None:
    with pytest.raises(UsageError, match="is not SOURCE:DESTINATION"):
        dataset.transform("remap_labels", label=("cat",))
    with pytest.raises(UsageError, match="two destinations"):
        dataset.transform("remap_labels", label=("cat:a", "cat:b"))
    with pytest.raises(UsageError, match="give --label"):
        dataset.transform("remap_labels")
    with pytest.warns(UserWarning, match="not among the labels: 'cow'"):
        dataset.transform("remap_labels", label=("cow:ox",))
    made = dataset.transform("remap_labels", label=(r"cat:a\:b",))
    assert made.categories().labels.names()[1] == "a:b"


def test_labels_that_are_none_are_bad_data(engine: Any) -> None:
    items = [dm.DatasetItem("a", [dm.Label(0)]), dm.DatasetItem("b", [dm.Label(1), dm.Label(4)])]
    strict = dm.Dataset.from_iterable(items, ["x", "y"], engine=engine)
    with pytest.raises(DataError, match=r"'b'.*the label 4, but there are 2 labels"):
        list(strict.transform("remap_labels", label=("x:z",)))
    lenient = strict._derive(strict._build, "lenient", on_error="skip")
    assert [item.id for item in lenient.transform("project_labels", label=("y", "x"))] == ["a"]


def test_labels_of_a_list_in_its_order(dataset: dm.Dataset) -> None:
    made = dataset.transform("project_labels", label=("dog", "bird", "animal"))
    assert made.categories().labels.names() == ["dog", "bird", "animal"]
    assert labels(made) == [["animal", "dog", None]] * 5
    assert made.categories().labels[0].parent == "animal"
    assert made.categories().masks is not None
    assert made.categories().masks.colormap == {0: (0, 20, 0), 2: (0, 0, 0)}


def test_annotations_become_labels_of_the_image(engine: Any) -> None:
    items = [
        dm.DatasetItem("a", [dm.Bbox(0, 0, 1, 1, label=1), dm.Bbox(1, 1, 1, 1, label=1), dm.Label(0)]),
        dm.DatasetItem("b", [dm.Caption("text"), dm.Bbox(0, 0, 1, 1)]),
    ]
    made = dm.Dataset.from_iterable(items, ["x", "y"], engine=engine).transform("anns_to_labels")
    assert [item.annotations for item in made] == [[dm.Label(0), dm.Label(1)], []]
