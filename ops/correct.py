"""correct: what a validation report says is wrong, put right."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.categories import Categories, LabelCategories
from rayds.engine.base import Block, Blocks, Engine, Stage
from rayds.errors import DataError, UsageError
from rayds.format import with_errors
from rayds.losses import instance_keys
from rayds.op import Surveying
from rayds.options import Options as Base
from rayds.options import option
from rayds.schema import (
    DEFAULT_SUBSET,
    AnnotationType,
    Flat,
    flat,
    single_chunk,
    with_annotations,
    with_fields,
)
from rayds.storage import read_url

Key = tuple[str, str]

BAD_ITEMS = {"MissingAnnotation", "MultiLabelAnnotations"}
BAD_ANNOTATIONS = {"NegativeLength", "InvalidValue", "FarFromLabelMean", "FarFromAttrMean"}
MAX_LABELS = 100_000

_ANNOTATION = re.compile(r"Annotation '(-?\d+)' in the item .*?(bounding box|mask or polygon|$)", re.DOTALL)
_DESCRIBED = {
    "MissingAttribute": re.compile(r"Item needs the attribute '(.*)' for the label '(.*)'\.?", re.DOTALL),
    "UndefinedAttribute": re.compile(
        r"Item has the attribute '(.*)' for the label '(.*)' which is not defined in metadata\.?", re.DOTALL
    ),
    "UndefinedLabel": re.compile(r"Item has the label '(.*)' which is not defined in metadata\.?", re.DOTALL),
}
_TYPES = {
    "bounding box": {int(AnnotationType.bbox)},
    "mask or polygon": {int(AnnotationType.mask), int(AnnotationType.polygon)},
}
_REMEDY = "Give the JSON file that a validation writes, with its list validation_reports"


@dataclass
class Findings:
    """What a report asks for. items: to remove. annotations: (id, kind of shape) to remove, by item. missing: (label, attribute)
    to fill in, by item. labels: undefined ones. attributes: undefined ones, (label, attribute). others: what can't be
    put right, counted."""

    items: set[Key] = field(default_factory=set)
    annotations: dict[Key, set[tuple[int, str]]] = field(default_factory=dict)
    missing: dict[Key, set[tuple[str, str]]] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    attributes: set[tuple[str, str]] = field(default_factory=set)
    others: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, data: bytes, path: str) -> Findings:
        """The findings in a report; raises UsageError that names the entry."""
        try:
            report = json.loads(data)
            entries = report["validation_reports"]
        except (ValueError, KeyError, TypeError) as e:
            raise UsageError(f"--reports: {path}: no validation report: {e!r}. {_REMEDY}") from e
        made = cls()
        for n, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            try:
                made._add(entry)
            except (KeyError, TypeError, ValueError, AttributeError) as e:
                place = f"{path}, validation_reports[{n}]"
                raise UsageError(f"--reports: {place}: not understood: {e!r}. {_REMEDY}") from e
        return made

    def _add(self, entry: Mapping[str, Any]) -> None:
        kind = str(entry["anomaly_type"]).rpartition(".")[2]
        if kind in BAD_ITEMS:
            self.items.add(_key(entry))
        elif kind in BAD_ANNOTATIONS:
            found = _matched(_ANNOTATION, entry).groups()
            self.annotations.setdefault(_key(entry), set()).add((int(found[0]), found[1]))
        elif kind == "MissingAttribute":
            attribute, label = _matched(_DESCRIBED[kind], entry).groups()
            self.missing.setdefault(_key(entry), set()).add((label, attribute))
        elif kind == "UndefinedAttribute":
            attribute, label = _matched(_DESCRIBED[kind], entry).groups()
            self.attributes.add((label, attribute))
        elif kind == "UndefinedLabel":
            self.labels.add(_matched(_DESCRIBED[kind], entry).group(1))
        else:
            self.others[kind] += 1

    def keys(self) -> set[Key]:
        """The items that are to change."""
        return {*self.items, *self.annotations, *self.missing}


def _key(entry: Mapping[str, Any]) -> Key:
    id = str(entry["item_id"])
    if id.startswith("('") and id.endswith(")"):  # (id, subset) as text, as some tools write it
        try:
            pair = ast.literal_eval(id)
        except (ValueError, SyntaxError):
            pair = None
        if isinstance(pair, tuple) and len(pair) == 2:
            return str(pair[0]), str(pair[1])
    return id, str(entry.get("subset") or DEFAULT_SUBSET)


def _matched(pattern: re.Pattern[str], entry: Mapping[str, Any]) -> re.Match[str]:
    found = pattern.match(entry["description"])
    if found is None:
        raise ValueError(entry["description"])
    return found


class Correct(Surveying):
    """Puts right what a validation report says is wrong, as far as that can be done.

    Items that miss their annotation, or have several labels where there must be one, are removed; so are objects with a length below 1, an infinite or
    undefined value, or a value far from the mean. Undefined labels and attributes are added to the categories; missing attributes
    become empty texts. The rest of the report (unbalanced labels and the like) is told, and stays as it is.
    """

    name = "correct"
    title = "put right what a validation report says is wrong"
    keeps_items = False
    columns = frozenset({"id", "subset"})

    @dataclass(frozen=True)
    class Options(Base):
        reports: str = option(
            "validation_report.json",
            short="r",
            aliases=("report",),
            file=True,
            help="the JSON file that a validation has written",
        )

    def __repr__(self) -> str:
        digest = getattr(self, "digest", "")
        return f"{type(self).__name__}(reports={self.options.reports!r}{f', md5={digest}' if digest else ''})"

    def prepare(self, categories: Categories) -> Categories:
        try:
            data = read_url(self.options.reports)
        except OSError as e:
            raise UsageError(f"--reports: {self.options.reports}: {e.strerror or e}") from e
        self.digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.found = Findings.read(data, self.options.reports)
        if self.found.others:
            told = ", ".join(f"{n} {kind}" for kind, n in sorted(self.found.others.items()))
            warnings.warn(f"correct: nothing can be done about {told}", stacklevel=2)
        labels, self.index = completed(categories.labels, self.found)
        made = dict(categories)
        if len(labels) or categories.labels:
            made[AnnotationType.label] = labels
        return Categories(made)

    def look(self, engine: Engine, blocks: Blocks) -> set[Key]:
        wanted = self.found.keys()

        def seen(block: Block) -> set[Key]:
            rows = _rows_of(block, wanted)
            return {key for _, key in rows}

        found: set[Key] = engine.fold(blocks, seen, lambda a, b: a | b) or set()
        return wanted - found

    def use(self, found: set[Key]) -> Stage:
        total = len(self.found.keys())
        if total and len(found) == total:
            raise DataError(
                "none of its items is in the dataset",
                file=self.options.reports,
                item=min(found)[0],
                remedy="Validate this dataset, with the ids that it has now",
            )
        if found:
            id, subset = min(found)
            warnings.warn(
                f"correct: {len(found):,} of {total:,} items of the report are not in the dataset, e.g. {id!r} in "
                f"{subset!r}",
                stacklevel=2,
            )
        return self._checked

    def apply(self, block: Block) -> Block:
        rows = _rows_of(block, self.found.keys())
        if not rows:
            return with_errors(block, [])
        failed: dict[int, DataError] = {}
        out = self._changed(block, rows, failed)
        if not failed:
            return with_errors(out, [])
        good, errors = self.good_rows(block, failed)
        return with_errors(self._changed(good, _rows_of(good, self.found.keys()), {}), errors)

    def _changed(self, block: Block, rows: list[tuple[int, Key]], failed: dict[int, DataError]) -> Block:
        view = flat(block)
        drop = np.zeros(len(view), bool)
        attributes: dict[int, str] = {}
        objects = instance_keys(view)[1]
        for row, key in rows:
            part = slice(int(view.offsets[row]), int(view.offsets[row + 1]))
            try:
                for id, shape in self.found.annotations.get(key, ()):
                    drop[part] |= _of_id(view, part, objects[part], id, shape, key)
            except DataError as e:
                failed[row] = e
                continue
            if key in self.found.missing:
                attributes.update(self._filled(view, part, self.found.missing[key]))
        rows_now = view.rows
        if attributes:
            texts = view.column("attributes").to_pylist()
            for at, text in attributes.items():
                texts[at] = text
            rows_now = with_fields(rows_now, attributes=pa.array(texts, pa.string()))
        keep = ~drop
        counts = np.bincount(view.item[keep], minlength=block.num_rows)
        made = with_annotations(block, rows_now.filter(pa.array(keep)), counts)
        gone = {row for row, key in rows if key in self.found.items}
        return made.filter(pa.array([i not in gone for i in range(block.num_rows)], pa.bool_()))

    def _filled(
        self, view: Flat, part: slice, missing: Iterable[tuple[str, str]]
    ) -> Iterable[tuple[int, str]]:
        """(annotation, its attributes with those that were missing, as empty texts) of an item."""
        wanted: dict[int, list[str]] = {}
        for label, attribute in sorted(missing):
            if label in self.index:
                wanted.setdefault(self.index[label], []).append(attribute)
        labels = view.numpy("label", -1)[part]
        texts = view.column("attributes")
        for at in range(part.start, part.stop):
            names = wanted.get(int(labels[at - part.start]), [])
            has = json.loads(texts[at].as_py() or "{}")
            if any(name not in has for name in names):
                yield at, json.dumps({**has, **{n: "" for n in names if n not in has}})


def _of_id(
    view: Flat, part: slice, objects: npt.NDArray[np.int64], id: int, shape: str, key: Key
) -> npt.NDArray[np.bool_]:
    """Which annotations of an item are the object with an annotation of that id; raises DataError for several."""
    chosen = view.numpy("id")[part] == id
    if shape in _TYPES:
        chosen &= np.isin(view.numpy("type")[part], list(_TYPES[shape]))
    found = np.unique(objects[chosen])
    if len(found) > 1:
        raise DataError(
            f"the report names the annotation {id}, and {len(found)} objects of the item have that id",
            item=key[0],
            remedy="Number the annotations (reindex_annotations), and validate that dataset",
        )
    return np.isin(objects, found)


def _rows_of(block: Block, keys: set[Key]) -> list[tuple[int, Key]]:
    """(row, key) of the items that are among the keys."""
    ids, subsets = single_chunk(block, "id"), single_chunk(block, "subset")
    maybe = np.flatnonzero(pc.is_in(ids, pa.array(sorted({k[0] for k in keys}), pa.string())))
    found = [(int(row), (ids[int(row)].as_py(), subsets[int(row)].as_py())) for row in maybe]
    return [(row, key) for row, key in found if key in keys]


def completed(labels: LabelCategories, found: Findings) -> tuple[LabelCategories, dict[str, int]]:
    """(the labels with those, and the attributes, that the report says are undefined; index by name or number as the
    report has it)."""
    made = LabelCategories([replace(c, attributes=set(c.attributes)) for c in labels], set(labels.attributes))
    numbers = sorted(int(name) for name in found.labels if name.isdigit() and name not in labels)
    if numbers and numbers[-1] >= MAX_LABELS:
        raise UsageError(f"correct: the label {numbers[-1]} of the report is too high to be an index")
    for number in range(len(made), max(numbers, default=-1) + 1):
        name = str(number)
        while name in made:
            name += "_"
        made.add(name)
    for name in sorted(found.labels):
        if not name.isdigit() and name not in made:
            made.add(name)
    index = {str(i): i for i in range(len(made))} | {name: i for i, name in enumerate(made.names())}
    for label, attribute in sorted(found.attributes):
        if label in index:
            made[index[label]].attributes.add(attribute)
    return made, index
