"""What says that an item is a tile of another."""

from __future__ import annotations

import json
from typing import NamedTuple

from rayds.item import dump_json

# Attributes of a tile: the id of the whole item, its number, x, y, width, height in the whole, width and height of the whole;
# and those of the tile that the whole is itself.
TILE_ID, TILE_IDX, ROI, IMAGE, OUTER = "tile_id", "tile_idx", "roi", "tile_image", "tile_outer"
FAMILY = "rayds"  # in `extra` of an annotation: its place in the whole item


class TileOf(NamedTuple):
    """What the attributes of an item say of it as a tile; attributes: those of the whole item, as JSON text."""

    id: str
    number: int
    roi: list[int]
    image: list[int]
    attributes: str | None


def tile_of(text: str | None) -> TileOf | None:
    """The tile that an item is by its attributes (JSON text); None: it is none."""
    if not text or f'"{TILE_ID}"' not in text or f'"{ROI}"' not in text:
        return None
    told = json.loads(text)
    try:
        id_, index = str(told.pop(TILE_ID)), int(told.pop(TILE_IDX))
        roi, image = ([int(v) for v in told.pop(n)] for n in (ROI, IMAGE))
        x, y, width, height = roi
        if x < 0 or y < 0 or width < 1 or height < 1 or x + width > image[0] or y + height > image[1]:
            return None
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    outer = told.pop(OUTER, None) or {}
    return TileOf(id_, index, roi, image, dump_json({**told, **outer}))
