"""correct: what a report names is repaired, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rayds as dm
from rayds.errors import UsageError

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


@pytest.mark.parametrize("text", ["{", "[]", '{"validation_reports": [1]}', None])
def test_what_is_no_report(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match="--reports"):
        dm.Dataset.from_iterable([], ["x"]).transform("correct", reports=str(tmp_path / "r.json"))
