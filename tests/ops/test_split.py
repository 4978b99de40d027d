"""Splits: exact sizes, even labels, the same for any order of the items, nobody left over."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rayds as dm
from rayds.errors import DataError, UsageError
from rayds.ops._allot import shares, table_of_shares

THREE = ("train:0.5", "val:0.2", "test:0.3")
ratios = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(lambda n: [x / sum(n) for x in n])


def subsets(dataset: dm.Dataset) -> dict[str, str]:
    return {item.id: item.subset for item in dataset}


def classified(n: int, engine: Any, labels: int = 3) -> dm.Dataset:
    items = [dm.DatasetItem(f"{i}", [dm.Label(i % labels)], attributes={"scene": i // 7}) for i in range(n)]
    return dm.Dataset.from_iterable(items, [f"l{k}" for k in range(labels)], engine=engine)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), ratios)
def test_shares_are_exact_in_all_and_near_in_each(sizes: list[int], parts: list[float]) -> None:
    made = table_of_shares(np.array(sizes), parts)
    assert (made.sum(1) == sizes).all()
    assert (made.sum(0) == shares(sum(sizes), parts)).all()
    assert (made >= 0).all()
    assert (abs(made - np.array(sizes)[:, None] * parts) < 2).all()
    assert abs(shares(sum(sizes), parts) - sum(sizes) * np.array(parts)).max() < 1


def test_sizes_are_exact(engine: Any) -> None:
    made = classified(100, engine).transform("random_split", subset=("a:0.67", "b:0.33"))
    assert Counter(subsets(made).values()) == {"a": 67, "b": 33}
    assert [item.id for item in made] == [str(i) for i in range(100)]
    made = classified(7, engine).transform("random_split", splits=[("a", 0.5), ("b", 0.5)])
    assert Counter(subsets(made).values()) == {"a": 4, "b": 3}


def test_order_and_blocks_do_not_matter_but_the_seed_does(engine: Any) -> None:
    whole = classified(60, "local").to_arrow()
    order = list(range(60))
    random.Random(3).shuffle(order)
    mixed = dm.Dataset.from_arrow(
        [whole.take(order[:11]), whole.take(order[11:])], ["l0", "l1", "l2"], engine=engine
    )
    for name, more in (("random_split", {}), ("split", {}), ("split", {"group_by": "scene"})):
        expected = subsets(classified(60, "local").transform(name, subset=THREE, **more))
        assert subsets(mixed.transform(name, subset=THREE, **more)) == expected
        other = subsets(mixed.transform(name, subset=THREE, seed=1, **more))
        assert other != expected or more


def test_every_label_has_its_share(engine: Any) -> None:
    made = classified(90, engine).transform("split", subset=THREE)
    found = Counter((item.subset, item.annotations[0].label) for item in made)
    assert found == {(s, k): n for s, n in (("train", 15), ("val", 6), ("test", 9)) for k in range(3)}


def test_nobody_is_left_over(engine: Any) -> None:
    """Items with no label, or several, are split by chance; they stay in no other subset."""
    items = [dm.DatasetItem(f"n{i}") for i in range(5)]
    items += [dm.DatasetItem(f"l{i}", [dm.Label(0)]) for i in range(10)]
    items += [dm.DatasetItem(f"m{i}", [dm.Label(0), dm.Label(1)]) for i in range(5)]
    made = dm.Dataset.from_iterable(items, ["x", "y"], engine=engine).transform("split", subset=THREE)
    assert Counter(subsets(made).values()) == {"train": 10, "val": 4, "test": 6}


@pytest.mark.parametrize(("task", "shape"), [("detection", dm.Bbox), ("segmentation", dm.Polygon)])
def test_objects_are_divided_evenly(engine: Any, task: str, shape: Any) -> None:
    chance = random.Random(0)
    points = (0, 0, 1, 1) if shape is dm.Bbox else ([0, 0, 1, 0, 1, 1],)
    items = [
        dm.DatasetItem(
            str(i),
            [shape(*points, label=min(int(chance.expovariate(0.4)), 7)) for _ in range(chance.randrange(8))],
        )
        for i in range(600)
    ]
    dataset = dm.Dataset.from_iterable(items, [str(k) for k in range(8)], engine=engine)
    made = dataset.transform("split", task=task, subset=THREE)
    assert Counter(subsets(made).values()) == {"train": 300, "val": 120, "test": 180}
    found = Counter((item.subset, a.label) for item in made for a in item.annotations)
    totals = Counter(a.label for item in items for a in item.annotations)
    for label, n in totals.items():
        for subset, ratio in (("train", 0.5), ("val", 0.2), ("test", 0.3)):
            assert abs(found[subset, label] - n * ratio) <= max(4, 0.12 * n * ratio)


def test_what_belongs_together_stays_together(engine: Any) -> None:
    made = classified(140, engine).transform("split", subset=THREE, group_by="scene")
    by_scene: dict[int, set[str]] = {}
    for item in made:
        by_scene.setdefault(item.attributes["scene"], set()).add(item.subset)
    assert all(len(found) == 1 for found in by_scene.values())
    assert Counter(subsets(made).values()) == {"train": 70, "val": 28, "test": 42}
    lone = dm.Dataset.from_iterable([dm.DatasetItem(str(i), [dm.Label(0)]) for i in range(10)], ["x"])
    found = Counter(subsets(lone.transform("split", subset=THREE, group_by="scene")).values())
    assert found == {"train": 5, "val": 2, "test": 3}


@pytest.mark.parametrize("attr", [None, "who"])
def test_identities_of_the_test_are_nowhere_else(engine: Any, attr: str | None) -> None:
    items = [dm.DatasetItem(f"{i}", [dm.Label(i % 10, attributes={"who": f"p{i % 10}"})]) for i in range(200)]
    items += [dm.DatasetItem("none"), dm.DatasetItem("two", [dm.Label(0), dm.Label(1)])]
    dataset = dm.Dataset.from_iterable(items, [str(k) for k in range(10)], engine=engine)
    made = dataset.transform("split", task="reid", subset=THREE, query=0.25, attr=attr)
    counts = Counter(subsets(made).values())
    assert counts == {"train": 100, "val": 40, "test-gallery": 45, "test-query": 15, "not-supported": 2}
    people: dict[str, set[int]] = {}
    for item in made:
        if item.subset != "not-supported":
            people.setdefault(item.subset, set()).add(item.annotations[0].label)
    assert not (people["train"] | people["val"]) & people["test-gallery"]
    assert people["test-gallery"] == people["test-query"]
    assert len(people["test-gallery"]) == 3
    assert all(i.id in ("none", "two") for i in made if i.subset == "not-supported")


def test_items_that_would_get_one_key_are_an_error(engine: Any) -> None:
    items = [dm.DatasetItem("a", subset=s) for s in "xy"]
    dataset = dm.Dataset.from_iterable(items, engine=engine)
    with pytest.raises(DataError, match="'a' of 'x' and 'a' of 'y' would both be 'a' in 'all'"):
        list(dataset.transform("random_split", subset=("all:1",)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("a:0.5", "b:0.4"), "sum to 0.9"),
        (("a:0.5", "a:0.5"), "given twice"),
        (("a:x",), "is not NAME:RATIO"),
        (("a:1.5", "b:-0.5"), "is not NAME:RATIO"),
        (("a",), "is not NAME:RATIO"),
    ],
)
def test_bad_ratios(given: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        classified(3, "local").transform("random_split", subset=given)


def test_bad_options_of_tasks() -> None:
    with pytest.raises(UsageError, match="'dev' is none of train, val, test"):
        classified(3, "local").transform("split", task="reid", subset=("train:0.5", "dev:0.5"))
    with pytest.raises(UsageError, match="--query"):
        classified(3, "local").transform("split", query=2)


def test_an_empty_dataset(engine: Any) -> None:
    assert list(dm.Dataset.from_iterable([], engine=engine).transform("split")) == []
