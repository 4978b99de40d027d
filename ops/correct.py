"""correct: repairs what `validate` reported."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from rayds.categories import Categories, Category, LabelCategories
from rayds.engine.base import Block
from rayds.errors import UsageError
from rayds.op import Op
from rayds.options import Options, option
from rayds.schema import AnnotationType, flat, single_chunk, with_annotations, with_fields

ITEMS = ("MissingAnnotation", "MultiLabelAnnotations")
ANNOTATIONS = ("NegativeLength", "InvalidValue", "FarFromLabelMean", "FarFromAttrMean")
LABELS = ("UndefinedLabel",)
ATTRIBUTES = ("UndefinedAttribute",)
FILLED = ("MissingAttribute",)


class Correct(Op):
    """Repairs a dataset by the report of `validate`.

    Items without annotations, or with several labels where one is needed, are removed; annotations with impossible or
    far-off values are removed, by their ids; labels and attributes that are not defined are defined; attributes that are
    missing are added, empty.
    """

    name = "correct"
    title = "repair what a validation report names"
    keeps_items = False

    @dataclass(frozen=True)
    class Options(Options):
        reports: str = option(
            "validation_reports.json", short="r", help="the report: the JSON file that validate wrote"
        )

    def prepare(self, categories: Categories) -> Categories:
        reports = _reports(self.options.reports)
        self.items = {_key(r) for r in reports if r["anomaly_type"] in ITEMS and r.get("item_id")}
        self.annotations: dict[tuple[str, str], set[int]] = {}
        self.missing: dict[tuple[str, str], set[tuple[str, str]]] = {}
        labels = [replace(c, attributes=set(c.attributes)) for c in categories.labels]
        known = {c.name: c for c in labels}
        for report in reports:
            kind, told = report["anomaly_type"], _quoted(report.get("description", ""))
            if kind in ANNOTATIONS and told and told[0].lstrip("-").isdigit():
                self.annotations.setdefault(_key(report), set()).add(int(told[0]))
            elif kind in LABELS and told and told[0] not in known:
                known[told[0]] = Category(told[0])
                labels.append(known[told[0]])
            elif kind in ATTRIBUTES and len(told) > 1 and told[1] in known:
                known[told[1]].attributes.add(told[0])
            elif kind in FILLED and len(told) > 1:
                self.missing.setdefault(_key(report), set()).add((told[1], told[0]))
        made = Categories(categories)
        made[AnnotationType.label] = LabelCategories(labels, set(categories.labels.attributes))
        self.places = {c.name: i for i, c in enumerate(labels)}
        return made

    def apply(self, block: Block) -> Block:
        ids, subsets = single_chunk(block, "id").to_pylist(), single_chunk(block, "subset").to_pylist()
        keys = list(zip(ids, subsets, strict=True))
        view = flat(block)
        drop = np.zeros(len(view), bool)
        numbers = view.numpy("id")
        label = view.numpy("label", -1)
        attributes: dict[int, str] = {}
        for row, key in enumerate(keys):
            part = np.arange(int(view.offsets[row]), int(view.offsets[row + 1]))
            if key in self.annotations:
                drop[part] |= np.isin(numbers[part], list(self.annotations[key]))
            for name, attribute in self.missing.get(key, ()):
                for i in part[label[part] == self.places.get(name, -2)].tolist():
                    told = json.loads(attributes.get(i) or view.column("attributes")[i].as_py() or "{}")
                    told.setdefault(attribute, "")
                    attributes[i] = json.dumps(told)
        rows = view.rows
        if attributes:
            texts = view.column("attributes").to_pylist()
            for i, text in attributes.items():
                texts[i] = text
            rows = with_fields(rows, attributes=pa.array(texts, pa.string()))
        counts = np.bincount(view.item[~drop], minlength=block.num_rows)
        made = with_annotations(block, rows.filter(pa.array(~drop)), counts)
        return made.filter(pa.array([key not in self.items for key in keys], pa.bool_()))


def _key(report: Mapping[str, Any]) -> tuple[str, str]:
    return str(report.get("item_id")), str(report.get("subset") or "default")


def _quoted(text: str) -> list[str]:
    """The texts between apostrophes of a description."""
    return text.split("'")[1::2]


def _reports(path: str) -> list[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as f:
            told = json.load(f)
    except OSError as e:
        raise UsageError(f"--reports: {path}: {e.strerror}") from e
    except ValueError as e:
        raise UsageError(f"--reports: {path}: no JSON: {e}") from e
    found = told.get("validation_reports") if isinstance(told, dict) else None
    if not isinstance(found, list) or not all(isinstance(r, dict) and "anomaly_type" in r for r in found):
        raise UsageError(f"--reports: {path}: no report of validate (a list validation_reports is missing)")
    made = []
    for report in found:
        item = report.get("item_id")
        if isinstance(item, str) and item.startswith("("):  # a key as text, as some tools write it
            id, subset = ast.literal_eval(item)
            report = {**report, "item_id": id, "subset": subset}
        made.append(report)
    return made
