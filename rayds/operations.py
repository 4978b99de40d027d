"""What a Dataset can have done to it by plug-ins: operations and models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from rayds.callbacks import select_annotations
from rayds.engine.base import Blocks, Engine
from rayds.errors import UsageError
from rayds.launcher import Inference, Launcher, joined_categories, make_launcher
from rayds.op import Op, Surveying, prepared
from rayds.registry import load

if TYPE_CHECKING:
    from rayds.dataset import Dataset
    from rayds.item import DatasetItem


@dataclass(frozen=True)
class Info:
    """What a dataset is. subsets: items of each; categories: the kinds that there are; labels: their names in order."""

    format: str | None
    path: str | None
    items: int
    subsets: dict[str, int]
    categories: list[str]
    labels: list[str]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-like data."""
        return asdict(self)


class Operating:
    """The part of Dataset that runs operations."""

    def transform(self, op: Op | str, **options: Any) -> Dataset:
        """The dataset after an operation: a plug-in by its name, with its options, or an Op object."""
        own = _own(self)
        made, categories = prepared(op, options, own._categories, own._on_error)
        changes: dict[str, Any] = {} if made.keeps_ids else {"ids": "unknown"}
        if made.keeps_items:
            changes["expect"] = own._expect

        def build(engine: Engine) -> Blocks:
            blocks = own._build(engine)
            if isinstance(made, Surveying):
                if (kept := engine.kept(blocks, own._size)) is not None:
                    return made.run(engine, kept)
                less = own._narrowed(made.columns)
                # not built twice: each operation before that surveys would survey twice as often
                return made.run_after(engine, blocks, blocks if less is own else less._build(engine))
            return made.run(engine, blocks)

        return own._derive(
            build,
            repr(made),
            categories=categories,
            infos=made.infos(own.infos) if type(made).infos is not Op.infos else own._infos,
            **changes,
        )

    def filter(
        self,
        expression: str | Callable[..., bool] | None = None,
        filter_annotations: bool = False,
        remove_empty: bool = False,
        *,
        mode: str | None = None,
        where: str | None = None,
    ) -> Dataset:
        """The items for which an XPath expression selects anything; or those for which a function of the item is true.

        filter_annotations: keep the annotations that it selects instead (for which a function of item and annotation
        is true); remove_empty: and no items without any. mode: the
        same as one text ("items", "annotations", "items+annotations"). where: an SQL expression instead of the XPath.
        """
        own = _own(self)
        if callable(expression):
            if mode is not None or where is not None:
                raise UsageError(
                    "a function goes with filter_annotations and remove_empty, not with mode or where"
                )
            if not filter_annotations:
                return own.select(expression)
            return own.map_batches(partial(select_annotations, expression, remove_empty, own._on_error))
        chosen = mode or (
            "items" if not filter_annotations else "items+annotations" if remove_empty else "annotations"
        )
        return own.transform("filter", expression=expression, where=where, mode=chosen)

    def merge(self, *others: Dataset, policy: str = "union", **options: Any) -> Dataset:
        """This dataset and others as one; items in the order of the first, then those that only later ones have.

        policy: what becomes of items with the same id and subset: "union" (two items), "exact" (all annotations, equal ones
        once), "update" (the later one), "intersect" (what several annotators agree on; see the options of the operation).
        """
        own = _own(self)
        parts = (own, *others)
        made = load("ops", "merge")(policy=policy, **options)
        made.on_error = own._on_error
        categories = made.prepare([part._categories for part in parts])
        infos: dict[str, Any] = {}
        for part in parts:
            infos = {**part._infos, **infos}
        return own._derive(
            lambda engine: made.run(engine, [part._build(engine) for part in parts]),
            repr(made),
            *others,
            categories=categories,
            infos=infos,
            ids="unknown",
            size=sum(part._size for part in parts),
        )

    def update(self, other: Dataset) -> Dataset:
        """This dataset with the items of another: new ones are added, those of the same id and subset replaced."""
        return _own(self).merge(other, policy="update")

    def merge_report(self, **options: Any) -> dict[str, Any]:
        """What the intersect merge that this dataset is the result of could not settle, as JSON-like data."""
        engine, blocks = _own(self)._run()
        report: dict[str, Any] = load("ops", "merge")(policy="intersect", **options).report(engine, blocks)
        return report

    def diff(self, other: Dataset, **options: Any) -> Any:
        """What differs between this dataset and another: an object with `differs`, `to_json()` and a text for people.

        options: method="distance" (annotations matched by IoU) or "equality" (as they are), iou_thresh, conf_thresh, ...
        """
        own = _own(self)
        made = load("ops", "diff")(**options)
        made.prepare(own._categories, other._categories)
        engine, blocks = own._run()
        return made.run(engine, blocks, other._build(engine))

    def diff_pictures(self, other: Dataset, result: Any, most: int = 50) -> dict[str, bytes]:
        """Pictures of a diff of this dataset and another, as PNG files by name: matrices, and items that differ.

        most: so many items at most. Both datasets are read once more for them; items whose image can't be read have none.
        """
        own = _own(self)
        made: dict[str, bytes] = result.matrices()
        listed = [
            (i["id"], i["subset"]) for i in result.found.items if "only in" not in i and "same" not in i
        ]
        keys = frozenset(listed[:most])
        if not keys:
            return made
        sides = []
        for dataset in (own, other):
            chosen = dataset.map_batches(partial(_only_keys, keys))
            sides.append({(item.id, item.subset): item for item in chosen})
        for key in sorted(keys & set(sides[0]) & set(sides[1])):
            picture = result.picture(sides[0][key], _relabelled(sides[1][key], other, result.names))
            if picture is not None:
                made[f"{key[1]}/{key[0]}.png"] = picture
        return made

    def info(self) -> Info:
        """What the dataset is; reads ids and subsets, and what the format can't leave."""
        own = _own(self)
        subsets = own._narrowed(frozenset(("id", "subset")))._subset_counts()
        kinds = [t.name for t in own._categories]
        labels = own._categories.labels.names()
        return Info(own._format, own._path, sum(subsets.values()), subsets, kinds, labels)

    def represented(self) -> Iterator[str]:
        """The items as filters see them, as XML texts."""
        own = _own(self)
        represented = load("ops", "filter").represented
        labels = own._categories.labels.names()
        for block in own.blocks():
            yield from represented(block, labels)

    def run_model(
        self,
        launcher: Launcher | str,
        *,
        batch_size: int = 16,
        workers: int = 1,
        num_cpus: float = 1,
        num_gpus: float = 0,
        keep: bool = False,
        **options: Any,
    ) -> Dataset:
        """The dataset with the annotations that a model gives its images: a plug-in by its name, with its options, or a Launcher.

        keep: add to the annotations that are there instead of replacing them. batch_size: images at a time.
        workers: how many load the model (on Ray), each with num_cpus and num_gpus.
        """
        own = _own(self)
        made = make_launcher(launcher, options)
        categories, index = joined_categories(made.categories(), own._categories, keep)
        stage = partial(Inference, made, index, keep=keep, on_error=own._on_error)

        def build(engine: Engine) -> Blocks:
            return engine.map_stateful(
                own._build(engine),
                stage,
                batch_rows=batch_size,
                workers=workers,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
            )

        step = f"model {made!r}, keep={keep}"
        return own._derive(build, step, categories=categories, ids="unknown")


def _only_keys(keys: frozenset[tuple[str, str]], block: pa.Table) -> pa.Table:
    ids, subsets = block.column("id").to_pylist(), block.column("subset").to_pylist()
    return block.filter(pa.array([key in keys for key in zip(ids, subsets, strict=True)], pa.bool_()))


def _relabelled(item: DatasetItem, dataset: Dataset, names: list[str]) -> DatasetItem:
    """The item with the label indexes of other names."""
    old = dataset._categories.labels.names()
    places = {name: i for i, name in enumerate(names)}
    annotations = []
    for annotation in item.annotations:
        label = getattr(annotation, "label", None)
        annotations.append(annotation if label is None else annotation.wrap(label=places[old[label]]))
    return item.wrap(annotations=annotations)


def _own(part: Operating) -> Dataset:
    return cast("Dataset", part)
