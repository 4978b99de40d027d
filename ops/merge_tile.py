"""merge_tile: whole images, and whole annotations, of what `tile` has divided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.edits import dump_edits, load_edits
from rayds.engine.base import Block, Blocks, Engine
from rayds.errors import DataError
from rayds.format import with_errors
from rayds.media import inline_url
from rayds.op import Op
from rayds.ops._geometry import Ints, broken_masks
from rayds.ops._merging import Tiled, merged
from rayds.ops._tiles import TileOf, tile_of
from rayds.schema import (
    MEDIA_TYPE,
    annotation_rows,
    flat,
    single_chunk,
    split_errors,
    with_annotations,
    with_media,
)
from rayds.sql import query

NUMBER = "__tile_item"


class MergeTile(Op):
    """Joins the tiles of each image again, by the attributes that `tile` gives them; other items stay.

    Parts of one annotation become one: by the place that `tile` noted, else by group, id and label. The order of
    items is that of the first tile of each. The image is that which was divided, or, where the tiles have become files of
    their own, put together of these when it is read; a DataError, under the policy for bad items, where some of
    them are missing. All items are looked at twice: once for their order.
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
        block, broken = self.good_rows(block, broken_masks(block))
        numbers = block.column(NUMBER).to_numpy()
        block = block.drop_columns([NUMBER])
        tiles = [tile_of(text) for text in single_chunk(block, "attributes").to_pylist()]
        keys = list(
            zip(
                numbers.tolist(), single_chunk(block, "subset").to_pylist(), _names(block, tiles), strict=True
            )
        )
        heads: dict[Any, int] = {}
        group = np.array([heads.setdefault(k, len(heads)) for k in keys], np.int64)
        index = np.array([t.number if t else 0 for t in tiles], np.int64)
        order = np.lexsort([np.arange(len(group)), index, group])
        block, group = block.take(pa.array(order)), group[order]
        tiles = [tiles[i] for i in order.tolist()]
        made, failed = _joined(block, group, tiles)
        made, errors = self.good_rows(made, failed)
        return with_errors(made, [*broken, *errors]) if broken or errors else made


def _names(block: Block, tiles: list[TileOf | None]) -> Iterator[str]:
    for id_, tile in zip(single_chunk(block, "id").to_pylist(), tiles, strict=True):
        yield tile.id if tile else id_


def _hashes(block: Block) -> Ints:
    """A hash of the item that each row goes to."""
    tiles = [tile_of(text) for text in single_chunk(block, "attributes").to_pylist()]
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


def _joined(block: Block, group: Ints, tiles: list[TileOf | None]) -> tuple[Block, dict[int, DataError]]:
    """(the items of rows that are ordered by item and tile, those whose image can't be put together)."""
    starts = np.flatnonzero(np.append(True, np.diff(group) != 0))
    ends = np.append(starts[1:], len(group))
    none = with_annotations(block, annotation_rows(0), np.zeros(block.num_rows, np.int64))
    out = none.take(pa.array(starts))
    ids, attributes = single_chunk(out, "id").to_pylist(), single_chunk(out, "attributes").to_pylist()
    media = single_chunk(none, "media")
    fields = {
        n: pc.struct_field(media, n).to_pylist()
        for n in ("path", "encoding", "edits", "kind", "width", "height")
    }
    failed: dict[int, DataError] = {}
    rows: dict[int, tuple[str | None, int, int]] = {}
    for k, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        mine = [t for t in tiles[a:b] if t]
        if not mine:
            continue
        first = mine[0]
        ids[k], attributes[k] = first.id, first.attributes
        try:
            if len(mine) < b - a:
                raise DataError("there is an item of this id beside its tiles", remedy="Rename one of them")
            if media[a].is_valid:
                rows[k] = _whole_image(media, fields, a, b, mine)
        except DataError as e:
            failed[k] = DataError(e.reason, file=e.file, item=first.id, remedy=e.remedy)
    for name, values in (("id", ids), ("attributes", attributes)):
        at = out.schema.get_field_index(name)
        out = out.set_column(at, out.schema.field(name), pa.array(values, pa.string()))
    out = _with_images(out, rows)
    return _with_merged(block, out, group, tiles), failed


def _whole_image(
    media: pa.Array, fields: dict[str, list[Any]], a: int, b: int, tiles: Sequence[TileOf]
) -> tuple[str | None, int, int]:
    """(edits of the first tile's image, height, width): the image that the tiles in rows a to b - 1 are parts of."""
    width, height = tiles[0].image
    edits = [load_edits(text) for text in fields["edits"][a:b]]
    if any(t.image != tiles[0].image for t in tiles):
        raise DataError(
            "its tiles don't agree on the size of the whole image", remedy="Tile the images again"
        )
    for i, tile in enumerate(tiles, a):
        size = [fields[n][i] for n in ("width", "height")]
        if size != tile.roi[2:] and None not in size:
            raise DataError(
                f"its tile {tile.number} has {size[0]}x{size[1]} pixels, but was {tile.roi[2]}x{tile.roi[3]} when it was cut",
                remedy="Join tiles before they are resized or cropped, or leave such items out (--on-error skip)",
            )
    one = all(
        e and e[-1] == {"crop": t.roi} and e[:-1] == edits[0][:-1] for e, t in zip(edits, tiles, strict=True)
    )
    one = one and all(len(set(fields[n][a:b])) == 1 for n in ("path", "encoding", "kind"))
    data = pc.struct_field(media.slice(a, b - a), "data")
    if one and (data.null_count == len(data) or len(pc.unique(data)) == 1):
        return dump_edits(edits[0][:-1]), height, width
    if not _covered(tiles):
        raise DataError(
            "tiles are missing, and those that are there are files of their own: the whole image is not known",
            remedy="Give all tiles, or leave such items out (--on-error skip)",
        )
    if tiles[0].roi == [0, 0, width, height]:
        return fields["edits"][a], height, width
    others = []
    for i in range(1, b - a):
        path = fields["path"][a + i]
        if data[i].is_valid:
            path = inline_url(data[i].as_py(), fields["encoding"][a + i])
        others.append({"at": tiles[i].roi, "path": path or "", "edits": edits[i]})
    step = {"mosaic": {"size": [width, height], "at": tiles[0].roi, "others": others}}
    return dump_edits([*edits[0], step]), height, width


def _covered(tiles: Sequence[TileOf]) -> bool:
    """Whether the tiles cover the whole image."""
    width, height = tiles[0].image
    xs = sorted({0, width, *(v for t in tiles for v in (t.roi[0], t.roi[0] + t.roi[2]))})
    ys = sorted({0, height, *(v for t in tiles for v in (t.roi[1], t.roi[1] + t.roi[3]))})
    free = np.ones((len(ys) - 1, len(xs) - 1), bool)
    for t in tiles:
        x, y, w, h = t.roi
        free[ys.index(y) : ys.index(y + h), xs.index(x) : xs.index(x + w)] = False
    return not free.any()


def _with_images(block: Block, made: dict[int, tuple[str | None, int, int]]) -> Block:
    media = single_chunk(block, "media")
    fields: dict[str, Any] = {n: pc.struct_field(media, n).to_pylist() for n in ("edits", "height", "width")}
    for k, (edits, height, width) in made.items():
        fields["edits"][k], fields["height"][k], fields["width"][k] = edits, height, width
    types = {f.name: f.type for f in MEDIA_TYPE}
    return with_media(block, **{n: pa.array(v, types[n]) for n, v in fields.items()})


def _with_merged(block: Block, out: Block, group: Ints, tiles: list[TileOf | None]) -> Block:
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
