"""correct: reports of both dialects, what is removed, added and filled in; reports that don't fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rayds as dm
from rayds.errors import DataError, UsageError

BOX, SHAPE = "bounding box width", "mask or polygon area"


def entry(kind: str, text: str, id: str | None = None, subset: str = "train") -> dict[str, Any]:
    found = {"anomaly_type": kind, "description": text, "severity": "error"}
    return found if id is None else {**found, "item_id": id, "subset": subset}


def written(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "report-detection.json"
    path.write_text(json.dumps({"statistics": {}, "validation_reports": entries, "summary": {"errors": 1}}))
    return str(path)


@pytest.fixture
def dataset(engine: Any) -> dm.Dataset:
    items = [
        dm.DatasetItem("a", [dm.Bbox(0, 0, 0, 5, label=0, id=1), dm.Bbox(0, 0, 9, 5, label=1, id=2)], "train"),
        dm.DatasetItem("a", [dm.Bbox(0, 0, 0, 5, label=0, id=1)], "val"),
        dm.DatasetItem("empty", subset="train"),
        dm.DatasetItem(
            "object",
            [
                dm.Bbox(0, 0, 5, 5, label=1, id=7, group=3),
                dm.Polygon([0, 0, 5, 0, 5, 5], label=1, id=7, group=3),
                dm.Polygon([1, 0, 5, 0, 5, 5], label=0, id=8),
            ],
            "train",
        ),
        dm.DatasetItem("none", [dm.Bbox(0, 0, 0, 5, label=0), dm.Bbox(0, 0, 3, 5, label=0)], "train"),
        dm.DatasetItem("new", [dm.Label(3), dm.Label(0, attributes={"y": 1}), dm.Label(1)], "train"),
    ]  # fmt: skip
    return dm.Dataset.from_iterable(items, ["cat", "dog"], engine=engine)


def negative(id: int, prop: str = BOX) -> str:
    return f"Annotation '{id}' in the item should have a positive value of '{prop}' but got '0'."


def test_bad_items_and_annotations_go(dataset: dm.Dataset, tmp_path: Path) -> None:
    report = written(
        tmp_path,
        entry("MissingAnnotation", "Item needs 'bbox' annotation(s), but not found.", "empty"),
        entry("NegativeLength", negative(1), "a"),
        entry(
            "FarFromLabelMean",
            f"Annotation '7' in the item has a value of '{SHAPE}' that is too far from the label average. "
            "(mean of 'dog' label: 1, got '9')",
            "object",
        ),
    )
    made = dataset.transform("correct", reports=report)
    left = [(i.id, i.subset, [a.id for a in i.annotations]) for i in made]
    assert left[:3] == [("a", "train", [2]), ("a", "val", [1]), ("object", "train", [8])]
    assert [i for i, *_ in left[3:]] == ["none", "new"]


def test_undefined_labels_and_attributes_are_added_and_missing_ones_filled(
    dataset: dm.Dataset, tmp_path: Path
) -> None:
    report = written(
        tmp_path,
        entry("UndefinedLabel", "Item has the label '3' which is not defined in metadata.", "new"),
        entry("UndefinedAttribute",
              "Item has the attribute 'y' for the label 'cat' which is not defined in metadata.", "new"),
        entry("MissingAttribute", "Item needs the attribute 'x' for the label 'cat'.", "new"),
    )  # fmt: skip
    made = dataset.transform("correct", reports=report)
    labels = made.categories().labels
    assert labels.names() == ["cat", "dog", "2", "3"]
    assert labels[0].attributes == {"y"}
    assert dataset.categories().labels[0].attributes == set()
    item = made.get("new")
    assert item is not None
    assert [a.attributes for a in item.annotations] == [{}, {"y": 1, "x": ""}, {}]
    assert len(made) == 6


def test_an_id_of_several_objects_removes_none_by_guess(dataset: dm.Dataset, tmp_path: Path) -> None:
    report = written(tmp_path, entry("NegativeLength", negative(0), "none"))
    with pytest.raises(DataError, match=r"'none'.*2 objects.*reindex_annotations"):
        list(dataset.transform("correct", reports=report))
    lenient = dataset._derive(dataset._build, "lenient", on_error="skip")
    assert "none" not in [i.id for i in lenient.transform("correct", reports=report)]


def test_what_can_not_be_put_right_is_told(dataset: dm.Dataset, tmp_path: Path) -> None:
    report = written(tmp_path, entry("ImbalancedLabels", "There is an imbalance in the label distribution."))
    with pytest.warns(UserWarning, match="nothing can be done about 1 ImbalancedLabels"):
        assert len(dataset.transform("correct", reports=report)) == 6


def test_items_that_are_not_there_are_told(dataset: dm.Dataset, tmp_path: Path) -> None:
    gone = entry("NegativeLength", negative(1), "gone")
    with pytest.raises(DataError, match="none of its items is in the dataset"):
        list(dataset.transform("correct", report=written(tmp_path, gone)))
    report = written(tmp_path, gone, entry("NegativeLength", negative(1), "a"))
    with pytest.warns(UserWarning, match="1 of 2 items of the report are not in the dataset, e.g. 'gone'"):
        assert len(list(dataset.transform("correct", reports=report))) == 6


REPORTS = [
    ("MissingAnnotation", "a", "Item needs 'bbox' annotation(s), but not found."),
    ("MultiLabelAnnotations", "b", "Item needs a single label but multiple labels are found."),
    (
        "NegativeLength",
        "c",
        "Annotation '7' in the item should have a positive value of 'width' but got '0'.",
    ),
    ("FarFromLabelMean", "('d', 's')", "Annotation '8' in the item has a value of 'area' that is too far."),
    ("UndefinedLabel", "c", "Item has the label 'cow' which is not defined in metadata."),
    (
        "UndefinedAttribute",
        "c",
        "Item has the attribute 'size' for the label 'cat' which is not defined in metadata.",
    ),
    ("MissingAttribute", "d", "Item needs the attribute 'fur' for the label 'cat'."),
    ("ImbalancedLabels", None, "There is an imbalance in the label distribution."),
]


@pytest.fixture
def report(tmp_path: Path) -> str:
    told = [
        {"anomaly_type": kind, "item_id": item, "subset": "s", "description": text}
        for kind, item, text in REPORTS
    ]
    (tmp_path / "r.json").write_text(json.dumps({"validation_reports": told}))
    return str(tmp_path / "r.json")


@pytest.mark.filterwarnings("ignore:correct")
def test_what_is_reported_is_repaired(engine: Any, report: str) -> None:
    boxes = [dm.Bbox(0, 0, 1, 1, id=7, label=0), dm.Bbox(0, 0, 2, 2, id=8, label=0, attributes={"a": 1})]
    items = [dm.DatasetItem(i, boxes, subset=s) for s in "st" for i in "abcd"]
    made = dm.Dataset.from_iterable(items, ["cat"], engine=engine).transform("correct", reports=report)
    assert [(c.name, c.attributes) for c in made.categories().labels] == [("cat", {"size"}), ("cow", set())]
    found = {(i.id, i.subset): i.annotations for i in made}
    assert set(found) == {("c", "s"), ("d", "s"), *((i, "t") for i in "abcd")}
    assert found["c", "s"] == [boxes[1]]
    assert found["d", "s"] == [boxes[0].wrap(attributes={"fur": ""})]
    assert all(found[i, "t"] == boxes for i in "abcd")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no validation report"),
        ("[]", "no validation report"),
        ('{"validation_reports": [{}]}', r"validation_reports\[0\].*anomaly_type"),
        ('{"validation_reports": [{"anomaly_type": "NegativeLength", "description": "x", "item_id": "a"}]}', r"\[0\]"),
    ],
)  # fmt: skip
def test_bad_reports(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match=f"--reports: .*{told}"):
        dm.Dataset.from_iterable([]).transform("correct", report=str(tmp_path / "r.json"))
    with pytest.raises(UsageError, match="--reports: .*No such file"):
        dm.Dataset.from_iterable([]).transform("correct", report=str(tmp_path / "none.json"))
