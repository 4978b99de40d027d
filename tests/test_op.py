"""Operations: by name or as objects, on both engines, with their mistakes told."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rayds
import rayds.engine
from rayds import registry
from rayds.errors import EngineError, UnknownNameError, UsageError
from rayds.schema import flat, with_annotations


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> None:
    """Ray's workers can't import this module: send its classes whole."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test names no engine it is the local one, also when others have started Ray."""
    monkeypatch.setattr(rayds.engine, "_ray_runs", lambda: False)


class KeepLabels(rayds.Op):
    """Keeps the annotations of some labels, which become the only ones."""

    name = "keep_labels"
    title = "annotations of some labels only"

    @dataclass(frozen=True)
    class Options(rayds.Options):
        labels: tuple[str, ...] = rayds.option(help="names")

    def prepare(self, categories: rayds.Categories) -> rayds.Categories:
        kept = [categories.labels.index(name) for name in self.options.labels]
        self.index = np.full(len(categories.labels), -1)
        self.index[kept] = np.arange(len(kept))
        return rayds.Categories.of(self.options.labels)

    def apply(self, block: pa.Table) -> pa.Table:
        view = flat(block)
        new = self.index[view.numpy("label")]
        rows = view.rows.filter(pa.array(new >= 0))
        fields = {f.name: rows.field(f.name) for f in rows.type}
        fields["label"] = pa.array(new[new >= 0], pa.int32())
        made = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
        return with_annotations(block, made, np.bincount(view.item[new >= 0], minlength=block.num_rows))


class Broken(rayds.Op):
    name = "broken"

    def apply(self, block: pa.Table) -> pa.Table:
        return block.append_column("colour", pa.nulls(block.num_rows))


class Shorter(rayds.Op):
    name = "shorter"
    keeps_ids = False

    def apply(self, block: pa.Table) -> pa.Table:
        return block.filter(pc.starts_with(block.column("id"), "a")).select(["id", "annotations"])


@pytest.fixture
def dataset(engine: Any) -> rayds.Dataset:
    items = [
        rayds.DatasetItem(f"{'ab'[i % 2]}{i}", [rayds.Bbox(i, 1, 2, 3, label=k) for k in range(3)])
        for i in range(6)
    ]
    return rayds.Dataset.from_iterable(items, ["cat", "dog", "cow"], engine=engine)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """KeepLabels found by its name, as a plug-in is."""

    class Point:
        value = module = __name__

        def load(self) -> type[rayds.Op]:
            return KeepLabels

    monkeypatch.setattr(registry, "_points", lambda kind: {"keep_labels": Point()} if kind == "ops" else {})
    registry.load.cache_clear()
    yield
    registry.load.cache_clear()


def test_an_op_changes_blocks_and_categories(dataset):
    made = dataset.transform(KeepLabels(labels=("cow", "cat")))
    assert made.categories().labels.names() == ["cow", "cat"]
    assert [a.label for a in made.get("a0").annotations] == [1, 0]
    assert len(made) == 6
    assert dataset.categories().labels.names() == ["cat", "dog", "cow"]


def test_an_op_is_found_by_its_name(dataset, installed):
    assert dataset.transform("keep_labels", labels="dog").get("b1").annotations == [
        rayds.Bbox(1, 1, 2, 3, label=0)
    ]
    with pytest.raises(UnknownNameError, match="keep_labels"):
        dataset.transform("keep_label")
    with pytest.raises(UnknownNameError, match="labels"):
        dataset.transform("keep_labels", label="dog")
    with pytest.raises(UsageError, match="'labels' is required"):
        dataset.transform("keep_labels")


def test_one_op_goes_over_several_datasets(dataset):
    op = KeepLabels(labels=("cat",))
    other = rayds.Dataset.from_iterable(
        [rayds.DatasetItem("x", [rayds.Bbox(0, 0, 1, 1, label=1)])], ["dog", "cat"]
    )
    first, second = dataset.transform(op), other.transform(op)
    assert [a.label for a in first.get("a0").annotations] == [0]
    assert [a.label for a in second.get("x").annotations] == [0]


def test_options_of_an_op_object_are_its_own(dataset):
    with pytest.raises(UsageError, match="has its options already"):
        dataset.transform(KeepLabels(labels=("cat",)), labels="dog")
    assert repr(KeepLabels(labels="cat,dog")) == "KeepLabels(labels=('cat', 'dog'))"


def test_bad_options_are_told_before_anything_runs(dataset):
    with pytest.raises(UnknownNameError, match="Did you mean 'cat'"):
        dataset.transform(KeepLabels(labels=("cats",)))


def test_missing_columns_become_null_and_unknown_ones_are_an_error(dataset):
    assert [item.id for item in dataset.transform(Shorter())] == ["a0", "a2", "a4"]
    with pytest.raises(EngineError, match=r"'broken' returned no item table.*colour"):
        list(dataset.transform(Broken()))


def test_ops_come_one_after_the_other(dataset):
    made = dataset.transform(KeepLabels(labels=("cow", "cat"))).transform(KeepLabels(labels=("cow",)))
    assert made.transform(Shorter()).get("a4").annotations == [rayds.Bbox(4, 1, 2, 3, label=0)]


def test_operations_that_look_at_all_items_first_look_once_each():
    looks: list[int] = []

    class Counting(rayds.op.Surveying):
        name = "counting"

        def look(self, engine: Any, blocks: Any) -> int:
            looks.append(engine.fold(blocks, lambda b: b.num_rows, lambda a, b: a + b))
            return looks[-1]

        def use(self, found: Any) -> Any:
            return lambda block: block

    made = rayds.Dataset.from_iterable([rayds.DatasetItem(str(i)) for i in range(5)])
    for _ in range(4):
        made = made.transform(Counting())
    assert len(made.to_arrow()) == 5
    assert looks == [5] * 4
