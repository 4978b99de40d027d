"""What a training loop needs of a Dataset: shards for its workers, shuffles, batches of decoded images with targets.

Nothing here imports Ray or torch before it is needed; with the local engine a loop runs without Ray.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine import make_engine
from rayds.engine.base import Block, Blocks, Engine, add_counts, rechunked
from rayds.errors import UsageError
from rayds.samples import Recipe, decoded, on_worker
from rayds.schema import ERROR_COLUMN, single_chunk, split_errors
from rayds.sharding import only_shard, repartition, shard_counts, shuffled

if TYPE_CHECKING:
    from rayds.dataset import Dataset

Batch = dict[str, Any]
Build = Callable[[Engine], Blocks]
Resize = int | tuple[int, int] | None
Targets = Literal["classification", "detection", "segmentation"]
Fit = Literal["stretch", "letterbox"]

DECODE_ROWS = 8  # images that a thread or a task decodes before it hands them on


class Feeding:
    """The part of Dataset that feeds training loops and Ray."""

    _engine: Engine | str | None

    def repartition(self, shards: int, by: str = "id") -> Dataset:
        """The same items in up to `shards` blocks: each item (by="id") or each subset (by="subset") has one fixed shard.

        An item's shard follows from its key alone, so that it is the same for every run and engine.
        """
        own = _own(self)
        _check_shards("repartition into", shards, by)
        return own._derive(
            lambda engine: repartition(engine, own._build(engine), shards, by),
            f"{shards} shards by {by}",
            expect=own._expect,
        )

    def shard(self, index: int, count: int, by: str = "id") -> Dataset:
        """The items of one of `count` shards (index 0 to count - 1), in their order; as `repartition` has them.

        All shards together hold each item once. By "id" they are about equally large (see shard_sizes); by "subset"
        the items of a subset stay together.
        """
        _check_shards("take one of", count, by)
        if not 0 <= index < count:
            raise UsageError(f"the shards are numbered 0 to {count - 1}; there is no shard {index}")
        return _own(self)._filtered(partial(only_shard, index, count, by))

    def shard_sizes(self, count: int, by: str = "id") -> list[int]:
        """How many items each of `count` shards has. Reads the items once, without their annotations where it can.

        Workers that average gradients must take the same number of steps: min(sizes) // batch_size of them.
        """
        _check_shards("count", count, by)
        own = _own(self)._narrowed(frozenset(("id", "subset")))
        engine, blocks = own._run()
        found = engine.fold(blocks, partial(shard_counts, count, by), add_counts) or {}
        return [found.get(str(i), 0) for i in range(count)]

    def worker_shard(self, by: str = "id") -> Dataset:
        """The shard of this Ray Train worker, by its world rank; outside of Ray Train the whole dataset.

        The worker reads and decodes it on its own threads (the local engine), unless the dataset was given an engine.
        """
        own = _own(self)
        rank, size = _train_rank()
        engine = "local" if own._engine in (None, "auto") else own._engine
        return own._derive(own._build, "worker", engine=engine, narrow=own._narrow).shard(rank, size, by)

    def to_ray(
        self,
        columns: tuple[str, ...] | list[str] | None = None,
        decode: bool = False,
        resize: Resize = None,
        targets: Targets | None = None,
        *,
        fit: Fit = "stretch",
        multi_label: bool = False,
    ) -> Any:
        """A lazy ray.data.Dataset of the items; with decode or targets, of samples for training.

        columns: those of rayds.ITEM_SCHEMA to keep (default: all; of samples id and subset); others are not read
        where the format can leave them. decode: a tensor column `image`, uint8 RGB [H, W, 3], decoded on the workers.
        resize: (height, width) or a side, then all images have one shape; fit: "stretch" or "letterbox" (gray bars).
        targets, in pixels of the resized image: "classification": `label` int64 (multi_label: `labels`, float32 0 or
        1 for each category); "detection": `boxes` float32 [n, 4] x1, y1, x2, y2, `labels` int64 [n], `area` float32,
        `iscrowd` int64; "segmentation": `mask` [H, W] of label + 1, 0 where nothing is. Bad items follow on_error.
        """
        own = _own(self)
        on_ray = isinstance(own._engine, Engine) and own._engine.name == "ray"
        engine: Any = make_engine(own._engine if on_ray else "ray")
        recipe = own._recipe(columns, decode, resize, fit, targets, multi_label)
        if not (decode or targets):
            if columns is None:
                return engine.to_native(engine.map_raw(own._build(engine), _drop_errors))
            blocks = own._narrowed(recipe.needs)._build(engine)
            return engine.to_native(engine.map_raw(blocks, partial(_selected, recipe.columns)))
        from rayds.engine._tensors import samples

        blocks = own._narrowed(recipe.needs)._build(engine)
        return engine.to_native(engine.expand(blocks, partial(samples, recipe), DECODE_ROWS))

    def iter_batches(
        self,
        batch_size: int = 32,
        *,
        columns: tuple[str, ...] | list[str] | None = None,
        decode: bool = True,
        resize: Resize = None,
        targets: Targets | None = None,
        fit: Fit = "stretch",
        multi_label: bool = False,
        shuffle: int | Literal["global"] | None = None,
        seed: int = 0,
        epoch: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Batches of samples: {column: array [B, ...] where all rows have one shape, else a list of B arrays or values}.

        Columns are those of to_ray, images [H, W, 3] RGB; they are decoded ahead of the loop, on threads or on Ray.
        shuffle: "global", or within each so many items; the order follows from seed, epoch and the items' keys alone,
        so that batches are the same on every engine. drop_last: leave out a last batch that is smaller.
        """
        own = _own(self)
        if batch_size < 1:
            raise UsageError(f"batch_size is 1 or more, not {batch_size}")
        window = _window(shuffle)
        recipe = own._recipe(columns, decode, resize, fit, targets, multi_label)
        engine, blocks = own._narrowed(recipe.needs)._run()
        if shuffle is not None:
            blocks = shuffled(engine, blocks, window, seed, epoch)
        stage = recipe if engine.name == "local" else partial(on_worker, recipe)
        made = engine.iterate(engine.expand(blocks, stage, DECODE_ROWS))
        return _batches(made, recipe, batch_size, drop_last)

    def iter_torch_batches(
        self,
        batch_size: int = 32,
        *,
        device: Any = None,
        collate: Callable[[Batch], Any] | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """The batches of iter_batches (and its options) as torch tensors on a device; images as [B, 3, H, W].

        Lists of arrays become lists of tensors, text stays text. collate: from a batch of iter_batches (NumPy, [H,
        W, 3]) to what the loop wants; tensors in the dicts, lists and tuples that it returns go to the device.
        """
        torch = _torch()
        made = self.iter_batches(batch_size, **options)
        return (_moved(torch, collate(b) if collate else _as_torch(torch, b), device) for b in made)


def _own(dataset: Feeding) -> Dataset:
    return cast("Dataset", dataset)


def _check_shards(what: str, count: int, by: str) -> None:
    if by not in ("id", "subset"):
        raise UsageError(f"{what.split()[0]} by 'id' or 'subset', not {by!r}")
    if count < 1:
        raise UsageError(f"{what} 1 or more shards, not {count}")


def _window(shuffle: int | str | None) -> int | None:
    if shuffle is None or shuffle == "global":
        return None
    if isinstance(shuffle, bool) or not isinstance(shuffle, int) or shuffle < 1:
        raise UsageError(f"shuffle is 'global', a number of items, or None; not {shuffle!r}")
    return shuffle


def _train_rank() -> tuple[int, int]:
    """(world rank, world size) of the Ray Train worker that this is; (0, 1) where it is none."""
    if "ray.train" not in sys.modules:  # a worker of Ray Train has it
        return 0, 1
    import ray.train

    try:
        context = ray.train.get_context()
        return int(context.get_world_rank()), int(context.get_world_size())
    except RuntimeError:  # outside of a training function
        return 0, 1


def _drop_errors(block: Block) -> Block:
    return split_errors(block)[0]


def _selected(columns: tuple[str, ...], block: Block) -> Block:
    return split_errors(block)[0].select(list(columns))


def _batches(samples: Iterator[Block], recipe: Recipe, batch_size: int, drop_last: bool) -> Iterator[Batch]:
    bad: list[str] = []

    def good() -> Iterator[Block]:
        for table in samples:
            errors = table.column(ERROR_COLUMN)
            if errors.null_count < len(errors):
                bad.extend(pc.drop_null(errors).to_pylist())
                table = table.filter(pc.is_null(errors))
            yield table

    for table in rechunked(good(), batch_size):
        if table.num_rows == batch_size or not drop_last:
            yield _batch(table, recipe)
    if bad:
        first = json.loads(bad[0])
        warnings.warn(
            f"{len(bad)} bad items were left out of the batches; the first: item {first.get('item')!r} of "
            f"{first['subset']}: {first['reason']}",
            stacklevel=2,
        )


def _batch(table: pa.Table, recipe: Recipe) -> Batch:
    """The columns of a table as arrays (writable copies), lists of arrays, or lists of values."""
    batch: Batch = {name: table.column(name).to_pylist() for name in recipe.columns}
    for name, spec in recipe.tensors.items():
        values = decoded(single_chunk(table, name), spec)
        batch[name] = np.array(values) if isinstance(values, np.ndarray) else [np.array(v) for v in values]
    return batch


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        raise UsageError(
            "iter_torch_batches needs torch, which is not installed: pip install 'rayds[torch]' (for a machine without "
            "a GPU, see https://pytorch.org for its CPU build); iter_batches gives NumPy arrays without it"
        ) from e
    return torch


def _as_torch(torch: Any, batch: Mapping[str, Any]) -> Batch:
    made: Batch = {}
    for name, values in batch.items():
        if isinstance(values, np.ndarray):
            made[name] = torch.from_numpy(values)
        elif values and isinstance(values[0], np.ndarray):
            made[name] = [torch.from_numpy(v) for v in values]
        else:
            made[name] = values
    if "image" in made:
        images = made["image"]
        made["image"] = (
            [im.permute(2, 0, 1) for im in images] if isinstance(images, list) else images.permute(0, 3, 1, 2)
        )
    return made


def _moved(torch: Any, value: Any, device: Any) -> Any:
    """The tensors in value on the device; other things as they are."""
    if device is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {k: _moved(torch, v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_moved(torch, v, device) for v in value)
    return value
