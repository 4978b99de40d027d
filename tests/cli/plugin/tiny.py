"""A third-party plug-in for the tests of the command line: a format of one text file."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import rayds
from rayds import (
    AnnotationType,
    Bbox,
    Capabilities,
    Caption,
    Confidence,
    DatasetItem,
    ItemFormat,
    Plan,
    Shard,
)
from rayds.errors import DataError
from rayds.options import Options, SaveMedia, option

FILE = "tiny.txt"


class Tiny(ItemFormat):
    """One line an item: `id label x y w h`, or `id caption words`.

    Specification: these tests.
    """

    name = "tiny"
    title = "one line an item | made for tests"
    family = "tiny"
    holds = Capabilities(annotations=frozenset({AnnotationType.bbox}), media=frozenset())

    @dataclass(frozen=True)
    class ReadOptions(Options):
        delay: float = option(0.0, help="seconds before every item")
        only: str | None = option(None, help="read only this item")

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        upper: bool = option(False, help="write labels in capitals")

    def detect(self, files: Any) -> Confidence:
        return Confidence(50, f"{FILE} is there") if files.exists(FILE) else Confidence.no(f"no {FILE}")

    def plan(self, files: Any, ctx: Any) -> Plan:
        return Plan(rayds.Categories.of(["cat", "dog"]), [Shard(FILE, ctx.options)])

    def read_items(self, shard: Shard, ctx: Any) -> Iterator[DatasetItem]:
        for n, line in enumerate(ctx.root.read_text(FILE).splitlines(), start=1):
            time.sleep(shard.data.delay)
            id, kind, *rest = line.split()
            if shard.data.only in (None, id):
                if kind == "broken":
                    ctx.bad(
                        DataError("the box is missing", file=ctx.root.path(FILE), place=f"line {n}", item=id)
                    )
                elif kind == "bug":
                    raise RuntimeError("a mistake in the plug-in")
                elif kind == "caption":
                    yield DatasetItem(id, [Caption(" ".join(rest))])
                else:
                    yield DatasetItem(id, [Bbox(*map(float, rest), label=["cat", "dog"].index(kind))])

    def read(self, shard: Shard, ctx: Any) -> Iterator[Any]:
        ctx.block_rows = 2
        return super().read(shard, ctx)

    def write_items(self, items: Iterable[DatasetItem], position: Any, ctx: Any) -> str:
        lines = []
        for item in items:
            for a in item.annotations:
                if isinstance(a, Bbox):
                    name = ctx.categories.labels[a.label].name
                    name = name.upper() if ctx.options.upper else name
                    lines.append(f"{item.id} {name} {a.x:g} {a.y:g} {a.w:g} {a.h:g}\n")
        ctx.out.write_text(f".parts/{position.index}.txt", "".join(lines))
        return "".join(lines)

    def finish(self, fragments: Sequence[str], ctx: Any) -> None:
        ctx.out.write_text(FILE, "".join(fragments))
        ctx.out.remove(".parts")


class TinyResult(Tiny):
    """Only read; never detected."""

    name = "tiny_result"
    title = "like tiny, only read"
    holds = None
    detect = ItemFormat.detect
