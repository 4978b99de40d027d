"""Chains of operations on labels and items over real datasets: nothing is lost, and inverses come back."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import rayds
from rayds.pipeline import Pipeline

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared real data is not here")

SOURCES = {
    "coco_mini": ("coco_mini", "coco"),
    "bccd": ("bccd_voc/BCCD", "voc"),
    "roboflow": ("roboflow_coco_bloodcells", "roboflow_coco"),
}


@cache
def source(name: str) -> rayds.Dataset:
    path, format = SOURCES[name]
    if not (DATA / path).exists():
        pytest.skip(f"{path} is not here")
    made = rayds.Dataset.import_from(str(DATA / path), format, engine="local")
    return rayds.Dataset.from_arrow(made.to_arrow(), made.categories(), engine="local")


@pytest.mark.parametrize("name", SOURCES)
def test_labels_and_names_come_back(name: str) -> None:
    before = source(name)
    first, second, *_ = before.categories().labels.names()
    swap = {first: second, second: first}
    made = (
        before.transform("remap_labels", label=swap)
        .transform("rename", regex="|^|x_|")
        .transform("rename", regex="|^x_||")
        .transform("remap_labels", label=swap)
    )
    assert made.categories().labels.names() == before.categories().labels.names()
    assert made.to_arrow().equals(before.to_arrow())


@pytest.mark.parametrize("name", SOURCES)
def test_a_chain_loses_no_item_and_no_annotation(name: str) -> None:
    before = source(name).filter(where="subset <> 'trainval'")  # VOC: train and val once more
    made = (
        before.transform("random_split", subset={"train": 0.7, "val": 0.3})
        .transform("map_subsets", subset={"val": "test"})
        .transform("sort", key="n_annotations")
        .transform("reindex", start=10)
        .transform("reindex_annotations")
    )
    items = list(made)
    counts = [len(i.annotations) for i in items]
    assert [i.id for i in items] == [str(10 + k) for k in range(len(before))]
    assert counts == sorted(len(i.annotations) for i in before)
    assert {i.subset for i in items} == {"train", "test"}
    ids = [a.id for i in items for a in i.annotations]
    assert sorted(set(ids)) == list(range(1, max(ids) + 1))


def test_a_pipeline_from_voc_to_yolo(tmp_path: Path) -> None:
    if not (DATA / "bccd_voc").exists():
        pytest.skip("bccd_voc is not here")
    job = {
        "input": {"path": str(DATA / "bccd_voc/BCCD"), "format": "voc"},
        "steps": [
            {"where": "subset <> 'trainval'"},
            {"remap_labels": {"label": {"RBC": "cell", "WBC": "cell"}, "default": "delete"}},
            {"random_split": {"subset": {"train": 0.75, "val": 0.25}}},
        ],
        "output": {"path": str(tmp_path / "yolo"), "format": "yolo_ultralytics"},
        "run": {"engine": "local"},
    }
    report = Pipeline.of(job).run()
    before = source("bccd").filter(where="subset <> 'trainval'")
    names = before.categories().labels.names()
    expected = sum(
        a.label is not None and names[a.label] in ("RBC", "WBC") for i in before for a in i.annotations
    )
    assert report.items == len(before)
    assert report.annotations["bbox"] == expected
    assert sorted(report.subsets) == ["train", "val"]
