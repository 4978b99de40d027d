"""merge_tile: whole images, and whole annotations, of what `tile` has divided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.edits import dump_edits, load_edits
from rayds.engine.base import Block, Blocks, Engine
from rayds.errors import DataError
from rayds.format import with_errors
from rayds.item import dump_json
from rayds.op import Op
from rayds.ops._geometry import Ints
from rayds.ops._merging import Tiled, merged
from rayds.ops.tile import IMAGE, OUTER, ROI, TILE_ID, TILE_IDX
from rayds.schema import MEDIA_TYPE, annotation_rows, flat, single_chunk, split_errors, with_annotations
from rayds.sql import query

NUMBER = "__tile_item"
_SIZE = 64  # the most tiles of one item times annotations is no matter; rows of a number come together


class MergeTile(Op):
    """Joins the tiles of each image again, by the attributes that `tile` gives them; other items stay.

    Parts of one annotation become one: by the place that `tile` noted, else by group, id and label. The order of
    items is that of the first tile of each. The image is that which was divided; tiles that were saved as files of their
    own are a DataError, under the policy for bad items. All items are looked at twice: once for their order.
    """

    name = "merge_tile"
    title = "the tiles of each image joined again"
    keeps_ids = False
    keeps_items = False

    def apply(self, block: Block) -> Block:
        """The items of a block that has all tiles of each of its items."""
        return self._merge(block.append_column(NUMBER, pa.array(np.zeros(block.num_rows, np.int64))))

    def run(self, engine: Engine, blocks: Blocks) -> Blocks:
        found = engine.fold(blocks, _key_hashes, lambda a, b: np.concatenate([a, b]))
        if found is None or not len(found):
            return blocks
        keys, first = np.unique(found, return_index=True)
        rank = np.argsort(np.argsort(first))
        marked = engine.map(blocks, partial(_numbered, keys, rank))
        return engine.by_number(marked, NUMBER, len(keys), self._merge)

    def _merge(self, block: Block) -> Block:
        numbers = block.column(NUMBER).to_numpy()
        block = block.drop_columns([NUMBER])
        tiles = [_tile(text) for text in single_chunk(block, "attributes").to_pylist()]
        keys = list(zip(numbers.tolist(), single_chunk(block, "subset").to_pylist(), _names(block, tiles), strict=True))
        heads: dict[Any, int] = {}
        group = np.array([heads.setdefault(k, len(heads)) for k in keys], np.int64)
        index = np.array([t.index if t else 0 for t in tiles], np.int64)
        order = np.lexsort([np.arange(len(group)), index, group])
        block, group = block.take(pa.array(order)), group[order]
        tiles = [tiles[i] for i in order.tolist()]
        made, failed = _joined(block, group, tiles)
        made, errors = self.good_rows(made, failed)
        return with_errors(made, errors) if errors else made


class _Tile(NamedTuple):
    id: str
    index: int
    roi: list[int]
    image: list[int]
    attributes: str | None


def _tile(text: str | None) -> _Tile | None:
    """What the attributes of an item say of it as a tile; attributes: those of the whole item."""
    if not text or f'"{TILE_ID}"' not in text or f'"{ROI}"' not in text:
        return None
    told = json.loads(text)
    try:
        id_, index = str(told.pop(TILE_ID)), int(told.pop(TILE_IDX))
        roi, image = ([int(v) for v in told.pop(n)] for n in (ROI, IMAGE))
        if len(roi) != 4 or len(image) != 2 or min(roi[2:] + image) < 1 or min(roi[:2]) < 0:
            return None
    except (KeyError, TypeError, ValueError):
        return None
    outer = told.pop(OUTER, None) or {}
    return _Tile(id_, index, roi, image, dump_json({**told, **outer}))


def _names(block: Block, tiles: list[_Tile | None]) -> Iterator[str]:
    for id_, tile in zip(single_chunk(block, "id").to_pylist(), tiles, strict=True):
        yield f"tile/{tile.id}" if tile else f"item/{id_}"


def _hashes(block: Block) -> Ints:
    """A hash of the item that each row goes to."""
    tiles = [_tile(text) for text in single_chunk(block, "attributes").to_pylist()]
    subsets = single_chunk(block, "subset").to_pylist()
    names = [f"{s}/{n}" for s, n in zip(subsets, _names(block, tiles), strict=True)]
    sql = f"SELECT (md5_number_lower(name) % {1 << 62})::BIGINT AS hash FROM t"
    found: Ints = query(sql, t=pa.table({"name": pa.array(names, pa.string())})).column("hash").to_numpy()
    return found


def _key_hashes(block: Block) -> Ints:
    """The hashes of the items of a block, each once, in order."""
    found = _hashes(split_errors(block)[0])
    keys, first = np.unique(found, return_index=True)
    kept: Ints = keys[np.argsort(first)]
    return kept


def _numbered(keys: Ints, rank: Ints, block: Block) -> Block:
    return block.append_column(NUMBER, pa.array(rank[np.searchsorted(keys, _hashes(block))]))


def _joined(block: Block, group: Ints, tiles: list[_Tile | None]) -> tuple[Block, dict[int, DataError]]:
    """(the items of rows that are ordered by item and tile, those whose image can't be put together)."""
    starts = np.flatnonzero(np.append(True, np.diff(group) != 0))
    ends = np.append(starts[1:], len(group))
    none = with_annotations(block, annotation_rows(0), np.zeros(block.num_rows, np.int64))
    out = none.take(pa.array(starts))
    ids, attributes = single_chunk(out, "id").to_pylist(), single_chunk(out, "attributes").to_pylist()
    media = single_chunk(none, "media")
    light = [_without_data(media, n) for n in ("path", "encoding", "edits", "kind")]
    changed, failed, rows = [], {}, {}
    for k, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        first = tiles[a]
        if first is None:
            continue
        ids[k], attributes[k] = first.id, first.attributes
        if not media[a].is_valid:
            continue
        try:
            rows[k] = _whole_image(media, light, a, b, tiles)
            changed.append(k)
        except DataError as e:
            failed[k] = DataError(e.reason, item=first.id, remedy=e.remedy)
    for name, values in (("id", ids), ("attributes", attributes)):
        at = out.schema.get_field_index(name)
        out = out.set_column(at, out.schema.field(name), pa.array(values, pa.string()))
    out = _with_images(out, rows)
    return _with_merged(block, out, group, tiles), failed


def _without_data(media: pa.Array, name: str) -> list[Any]:
    return pc.struct_field(media, name).to_pylist()  # type: ignore[no-any-return]


def _whole_image(
    media: pa.Array, fields: list[list[Any]], a: int, b: int, tiles: list[_Tile | None]
) -> tuple[str | None, int, int]:
    """(edits, height, width) of the image that the tiles in rows a to b - 1 are parts of."""
    head = tiles[a]
    assert head is not None
    before = None
    for i in range(a, b):
        tile = tiles[i]
        assert tile is not None
        edits = load_edits(fields[2][i])
        if not edits or edits[-1] != {"crop": tile.roi} or tile.image != head.image:
            raise _NOT_ONE
        same = all(f[i] == f[a] for f in (fields[0], fields[1], fields[3]))
        if not same or (before is not None and edits[:-1] != before):
            raise _NOT_ONE
        before = edits[:-1]
    data = pc.struct_field(media.slice(a, b - a), "data")
    if b - a > 1 and data.null_count < len(data) and len(pc.unique(data)) > 1:
        raise _NOT_ONE
    return dump_edits(before or []), head.image[1], head.image[0]


_NOT_ONE = DataError(
    "its tiles are not parts of one image file any more, so that they can't be joined",
    remedy="Join them before they are saved, or changed further, or leave such items out (--on-error skip)",
)


def _with_images(block: Block, made: dict[int, tuple[str | None, int, int]]) -> Block:
    from rayds.schema import with_media

    media = single_chunk(block, "media")
    fields: dict[str, Any] = {n: pc.struct_field(media, n).to_pylist() for n in ("edits", "height", "width")}
    for k, (edits, height, width) in made.items():
        fields["edits"][k], fields["height"][k], fields["width"][k] = edits, height, width
    types = {f.name: f.type for f in MEDIA_TYPE}
    return with_media(block, **{n: pa.array(v, types[n]) for n, v in fields.items()})


def _with_merged(block: Block, out: Block, group: Ints, tiles: list[_Tile | None]) -> Block:
    view = flat(block)
    is_tile = np.array([t is not None for t in tiles], bool)
    rois = np.array([t.roi if t else [0, 0, 0, 0] for t in tiles], np.int64).reshape(-1, 4)
    sizes = np.array([t.image[::-1] if t else [0, 0] for t in tiles], np.int64).reshape(-1, 2)
    mine = np.flatnonzero(is_tile[view.item])
    rest = np.flatnonzero(~is_tile[view.item])
    row = view.item[mine]
    tiled = Tiled(view.rows.take(pa.array(mine)), group[row], row, rois[row], sizes[row])
    rows, item = merged(tiled)
    item = np.concatenate([item, group[view.item[rest]]])
    rows = pa.concat_arrays([rows, view.rows.take(pa.array(rest))])
    order = np.argsort(item, kind="stable")
    return with_annotations(out, rows.take(pa.array(order)), np.bincount(item, minlength=out.num_rows))
