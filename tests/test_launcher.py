"""Models over a dataset: images as a model wants them, annotations replaced or added, mistakes told."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import rayds
import rayds.engine
from rayds.errors import DataError, EngineError, UsageError
from rayds.launcher import Launcher


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> None:
    """Ray's workers can't import this module: send its classes whole."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test names no engine it is the local one, also when others have started Ray."""
    monkeypatch.setattr(rayds.engine, "_ray_runs", lambda: False)


class Brightest(Launcher):
    """A box around the brightest pixel, and the size of the batch as its attribute."""

    name = "brightest"

    @dataclass(frozen=True)
    class Options(rayds.Options):
        label: str = rayds.option("spot", help="name of the label")
        group: int = rayds.option(0, help="group of the box")

    def load(self) -> None:
        self.loaded = True

    def infer(self, images: list[Any]) -> list[list[rayds.Annotation]]:
        assert self.loaded
        assert all(i.dtype == np.uint8 and i.ndim == 3 and i.shape[2] == 3 for i in images)
        return [self._box(i, len(images)) for i in images]

    def _box(self, image: Any, n: int) -> list[rayds.Annotation]:
        y, x = np.unravel_index(image.sum(2).argmax(), image.shape[:2])
        return [rayds.Bbox(x, y, 1, 1, label=0, group=self.options.group, attributes={"batch": n})]

    def categories(self) -> rayds.Categories:
        return rayds.Categories.of([self.options.label])


class Unlabelled(Brightest):
    def categories(self) -> None:
        return None


class TooFew(Brightest):
    def infer(self, images: list[Any]) -> list[list[rayds.Annotation]]:
        return super().infer(images)[1:]


def picture(x: int, y: int, shape: tuple[int, ...] = (8, 10, 3), dtype: Any = np.uint8) -> Any:
    made = np.zeros(shape, dtype)
    made[y, x] = np.iinfo(dtype).max
    return made


@pytest.fixture
def items() -> list[rayds.DatasetItem]:
    ann = [rayds.Bbox(0, 0, 2, 2, label=1, group=3)]
    return [
        rayds.DatasetItem("colour", ann, image=picture(1, 2)),
        rayds.DatasetItem("gray", ann, image=picture(3, 4, (8, 10))),
        rayds.DatasetItem("deep", ann, image=picture(5, 6, (9, 12), np.uint16)),
        rayds.DatasetItem("alpha", image=picture(7, 1, (8, 10, 4))),
        rayds.DatasetItem("small", image=picture(0, 0, (1, 1, 3))),
    ]


def spots(dataset: rayds.Dataset) -> dict[str, list[tuple[float, float]]]:
    return {i.id: [(a.x, a.y) for a in i.annotations if "batch" in a.attributes] for i in dataset}


SPOTS = {"colour": [(1, 2)], "gray": [(3, 4)], "deep": [(5, 6)], "alpha": [(7, 1)], "small": [(0, 0)]}


def test_a_model_replaces_the_annotations(items, engine):
    dataset = rayds.Dataset.from_iterable(items, ["cat", "dog"], engine=engine)
    made = dataset.run_model(Brightest(), batch_size=2)
    assert spots(made) == SPOTS
    assert made.categories().labels.names() == ["spot"]
    assert all(len(i.annotations) == 1 for i in made)
    assert [a.attributes["batch"] for i in made for a in i.annotations] == [2, 2, 2, 2, 1]
    assert dataset.get("colour").annotations == items[0].annotations


def test_a_model_adds_to_the_annotations(items, engine):
    dataset = rayds.Dataset.from_iterable(items, ["cat", "dog"], engine=engine)
    made = dataset.run_model(Brightest(group=1), keep=True)
    assert made.categories().labels.names() == ["cat", "dog", "spot"]
    assert spots(made) == SPOTS
    assert [(a.label, a.group) for a in made.get("gray").annotations] == [(1, 3), (2, 4)]
    assert [(a.label, a.group) for a in made.get("alpha").annotations] == [(2, 1)]


def test_labels_of_one_name_are_one(items):
    dataset = rayds.Dataset.from_iterable(items, ["cat", "dog"])
    made = dataset.run_model(Brightest(label="dog"), keep=True)
    assert made.categories().labels.names() == ["cat", "dog"]
    assert [a.label for a in made.get("gray").annotations] == [1, 1]


def test_a_model_without_categories_means_those_of_the_dataset(items):
    made = rayds.Dataset.from_iterable(items, ["cat", "dog"]).run_model(Unlabelled())
    assert made.categories().labels.names() == ["cat", "dog"]
    assert made.get("gray").annotations[0].label == 0
    with pytest.raises(EngineError, match="returned the label 0, but its categories have 0 labels"):
        list(rayds.Dataset.from_iterable(items).run_model(Unlabelled()))


def test_one_launcher_runs_many_times(items):
    launcher = Brightest()
    made = rayds.Dataset.from_iterable(items).run_model(launcher)
    assert spots(made) == spots(made) == SPOTS
    assert not hasattr(launcher, "loaded")


def test_results_for_other_images_are_an_error(items):
    made = rayds.Dataset.from_iterable(items).run_model(TooFew())
    with pytest.raises(EngineError, match="annotations for 4 images, not for the 5"):
        list(made)


def test_options_of_a_launcher_object_are_its_own(items):
    with pytest.raises(UsageError, match="has its options already"):
        rayds.Dataset.from_iterable(items).run_model(Brightest(), label="dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images: a good one, a broken one, another good one."""
    place = tmp_path / "images"
    place.mkdir()
    for name in ("a", "c"):
        cv2.imwrite(str(place / f"{name}.png"), picture(1, 2))
    (place / "b.png").write_bytes((place / "a.png").read_bytes()[:40])
    return place


def test_a_bad_image_is_named(folder):
    made = rayds.Dataset.import_from(str(folder), "image_dir").run_model(Brightest())
    with pytest.raises(DataError, match=r"b\.png, item 'b': .*image"):
        list(made)


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_a_bad_image_is_left_out_and_counted(folder, policy, engine, tmp_path):
    dataset = rayds.Dataset.import_from(str(folder), "image_dir", on_error=policy, engine=engine)
    report = dataset.run_model(Brightest()).export(str(tmp_path / "out"), "rayds")
    assert (report.items, report.annotations, len(report.errors)) == (2, {"bbox": 2}, 1)
    assert report.errors[0]["item"] == "b"


def test_an_item_without_an_image_is_a_bad_item(items):
    dataset = rayds.Dataset.from_iterable([*items, rayds.DatasetItem("none")])
    with pytest.raises(DataError, match="item 'none': the item has no image"):
        list(dataset.run_model(Brightest()))
