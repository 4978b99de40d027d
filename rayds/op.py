"""The operation plug-in kind: what a class must say and do to change datasets, on any engine.

An Op works on item tables, block by block, and is sent to workers: it holds its options and what `prepare`
found, nothing else.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from rayds import options as base
from rayds.categories import Categories
from rayds.engine.base import Block, Blocks, Engine, Stage
from rayds.errors import DataError, EngineError, OnError, UnknownNameError, UsageError
from rayds.registry import load, names
from rayds.schema import ITEM_SCHEMA, conform, single_chunk


class Op(ABC):
    """Base of operations: a new dataset from a dataset.

    name: its entry point in the group rayds.ops. title: one line for lists. keeps_ids: whether annotation ids
    are as unique after it as before. keeps_items: whether there are as many items. `Op(**options)` checks the options; self.options has them.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    keeps_ids: ClassVar[bool] = True
    keeps_items: ClassVar[bool] = True

    on_error: OnError = OnError.RAISE  # what becomes of items that `apply` can't change: that of the dataset

    @dataclass(frozen=True)
    class Options(base.Options):
        """Options of the operation."""

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.make(options)

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in vars(self.options).items())
        return f"{type(self).__name__}({given})"

    def prepare(self, categories: Categories) -> Categories:
        """The categories of the result, on the driver, before any block; may keep on self what `apply` needs.

        Raises UsageError for options that don't go with the categories. Must not change its argument.
        """
        return categories

    @abstractmethod
    def apply(self, block: Block) -> Block:
        """The item table after the operation; rows may be fewer or more. The result must not depend on where blocks end."""

    def run(self, engine: Engine, blocks: Blocks) -> Blocks:
        """The operation on an engine: `apply` over every block. An operation that needs another primitive overrides it."""
        return engine.map(blocks, self._checked)

    def infos(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        """What the result says of the whole dataset, by format family."""
        return dict(infos)

    def good_rows(self, block: Block, failed: Mapping[int, DataError]) -> tuple[Block, list[dict[str, Any]]]:
        """(the block without the rows that failed, the errors for `rayds.format.with_errors`); raises the first
        error under the policy raise. For `apply`: failed has the row of each item that it can't change."""
        if not failed:
            return block, []
        if self.on_error is OnError.RAISE:
            raise failed[min(failed)]
        subsets = single_chunk(block, "subset")
        records = [{"subset": subsets[row].as_py(), **e.record()} for row, e in sorted(failed.items())]
        return block.filter(pa.array([i not in failed for i in range(block.num_rows)])), records

    def _checked(self, block: Block) -> Block:
        out = self.apply(block)
        if out.schema.equals(ITEM_SCHEMA):
            return out
        try:
            return conform(out)
        except ValueError as e:
            raise EngineError(f"the operation {self.name!r} returned no item table: {e}") from e


class Surveying(Op):
    """Base of operations that look at all items first, and then change each by what they saw.

    columns: those that the first look needs; others are not read where the format can leave them.
    """

    columns: ClassVar[frozenset[str]] = frozenset(ITEM_SCHEMA.names)

    @abstractmethod
    def look(self, engine: Engine, blocks: Blocks) -> Any:
        """What is seen of all items: small, as it is held by the driver."""

    @abstractmethod
    def use(self, found: Any) -> Stage:
        """The stage that changes item tables by what was seen; it is sent to workers."""

    def finish(self, engine: Engine, blocks: Blocks, stage: Stage) -> Blocks:
        """The blocks changed."""
        return engine.map(blocks, stage)

    def run(self, engine: Engine, blocks: Blocks) -> Blocks:
        return self.run_after(engine, blocks, blocks)

    def run_after(self, engine: Engine, blocks: Blocks, looked_at: Blocks) -> Blocks:
        """Like run; looked_at: the same items, maybe with some columns only."""
        return self.finish(engine, blocks, self.use(self.look(engine, looked_at)))

    def apply(self, block: Block) -> Block:
        raise NotImplementedError("what becomes of an item follows from all of them")


class Combine(ABC):
    """Base of operations that make one dataset of several. Options as those of Op."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    on_error: OnError = OnError.RAISE

    @dataclass(frozen=True)
    class Options(base.Options):
        """Options of the operation."""

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.make(options)

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in vars(self.options).items())
        return f"{type(self).__name__}({given})"

    @abstractmethod
    def prepare(self, categories: Sequence[Categories]) -> Categories:
        """The categories of the result, on the driver; may keep on self what `run` needs."""

    @abstractmethod
    def run(self, engine: Engine, parts: Sequence[Blocks]) -> Blocks:
        """The blocks of the result."""


class Compare(ABC):
    """Base of operations that compare two datasets. Options as those of Op."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""

    @dataclass(frozen=True)
    class Options(base.Options):
        """Options of the operation."""

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options.make(options)

    @abstractmethod
    def prepare(self, a: Categories, b: Categories) -> None:
        """Look at the categories of both, on the driver; may keep on self what `run` needs."""

    @abstractmethod
    def run(self, engine: Engine, a: Blocks, b: Blocks) -> Any:
        """The result: with `to_json()`, and a text for people as str()."""


def transform_class(name: str) -> type[Op]:
    """The class of an operation by its name; raises UnknownNameError with the nearest names."""
    if name not in (known := names("ops")):
        raise UnknownNameError("transform", name, known)
    found = load("ops", name)
    if not (isinstance(found, type) and issubclass(found, Op)):
        raise UsageError(f"{name!r} is no transform; it has a command of its own")
    made: type[Op] = found
    return made


def prepared(
    op: Op | str, options: Mapping[str, Any], categories: Categories, on_error: OnError = OnError.RAISE
) -> tuple[Op, Categories]:
    """(an operation by name or as an object, ready to run; the categories of its result)."""
    if isinstance(op, str):
        made: Op = transform_class(op)(**options)
    elif options:
        raise UsageError(f"{op!r} has its options already; give {', '.join(options)} where it is made")
    else:
        made = copy.copy(op)  # `prepare` writes on it, and the caller's may be used again
    made.on_error = on_error
    return made, made.prepare(categories)
