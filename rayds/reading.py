"""What engines call to read a shard of a dataset, and what a dataset tells of its shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rayds.engine.base import Block, Engine, LostError
from rayds.errors import DataError, OnError
from rayds.format import Expected, Format, ReadContext, Shard, read_shard, with_errors
from rayds.schema import DEFAULT_SUBSET, empty_table
from rayds.storage import Storage

Isolate = Callable[[Callable[[Shard], Iterable[Block]], Shard], Iterator[Block]]


@dataclass
class ShardReader:
    """Reads shards of a format; an engine that can't go on with one calls `isolated`."""

    fmt: Format
    ctx: ReadContext

    def __call__(self, shard: Shard) -> Iterator[Block]:
        return read_shard(self.fmt, shard, self.ctx)

    def isolated(self, shard: Shard, isolate: Isolate) -> Iterator[Block]:
        """The same blocks, read in a process of its own by `isolate`; its death ends the shard with an error row.

        Raises LostError under the policy raise.
        """
        done, last = 0, ""
        try:
            for block in isolate(self, shard):
                if block.num_rows:
                    done, last = done + block.num_rows, block.column("id")[-1].as_py()
                yield block
        except LostError as e:
            after = f"after {done:,} items, the last {last!r}" if done else "at its first items"
            if self.ctx.on_error is OnError.RAISE:
                raise LostError(
                    f"the shard {shard.name} can't be read to its end ({after}): {e}; --on-error skip goes on without the rest of it"
                ) from e
            error = DataError(
                f"the shard {shard.name} can't be read to its end ({after}): {e}",
                file=shard.file or self.ctx.root.url,
                place=f"shard {shard.name}",
            )
            yield with_errors(empty_table(), [{"subset": DEFAULT_SUBSET, **error.record()}])


@dataclass
class Source:
    """The shards of a dataset that a format reads, and how to read them.

    path: what the user named. name, options, on_error: of the format and its reader; they tell whether two sources are the same.
    by_shards: whether an engine reads it shard by shard (see Format.by_shards).
    """

    path: str
    shards: Sequence[Shard]
    name: str
    options: Any
    on_error: OnError
    reader: Callable[[Engine], ShardReader]
    by_shards: Callable[[Engine], bool]


def expected_items(fmt: Format, shards: Sequence[Shard], root: Storage) -> Expected | None:
    """The items of all shards: said by them, or estimated."""
    found = [s.items if s.items is not None else fmt.estimate(s, root) for s in shards]
    if None in found:
        return None
    return Expected(sum(n or 0 for n in found), all(s.items is not None for s in shards))
