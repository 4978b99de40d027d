"""The columns of an item table in the making, as plain lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds.schema import AnnotationType, annotation_rows, item_table, mask_rows, media_rows

BOX, LABEL, MASK = int(AnnotationType.bbox), int(AnnotationType.label), int(AnnotationType.mask)


@dataclass
class Columns:
    """The columns of the table in the making, as plain lists; annotations flat."""

    ids: list[str] = field(default_factory=list)
    paths: list[str | None] = field(default_factory=list)
    widths: list[int | None] = field(default_factory=list)
    heights: list[int | None] = field(default_factory=list)
    extras: list[str | None] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    corners: list[bytes] = field(default_factory=list)  # four number texts a box, none for other annotations
    attributes: list[str | None] = field(default_factory=list)
    notes: list[str | None] = field(default_factory=list)  # `extra` of annotations
    masks: dict[int, tuple[int, int, str]] = field(default_factory=dict)  # row: height, width, counts

    def add(
        self, type_: int, group: int, label: int | None, attributes: str | None, note: str | None
    ) -> None:
        """One annotation (its corners or mask apart)."""
        self.types.append(type_)
        self.groups.append(group)
        self.labels.append(label)
        self.attributes.append(attributes)
        self.notes.append(note)

    def rewind(self, rows: int, corners: int) -> None:
        """Forget the annotations of an item that turned out bad."""
        for column in (self.types, self.groups, self.labels, self.attributes, self.notes):
            del column[rows:]
        del self.corners[corners:]
        for row in [r for r in self.masks if r >= rows]:
            del self.masks[row]

    def table(self, subset: str) -> pa.Table:
        """The item table."""
        n = len(self.types)
        types = np.array(self.types, np.int8)
        boxes = self._numbers().reshape(-1, 4).copy()
        boxes[:, 2:] = extents(boxes[:, :2], boxes[:, 2:])
        offsets = np.zeros(n + 1, np.int32)
        np.cumsum(np.where(types == BOX, 4, 0), out=offsets[1:])
        rows = annotation_rows(
            n,
            type=types,
            group=self.groups,
            label=self.labels,
            points=pa.ListArray.from_arrays(pa.array(offsets), pa.array(boxes.ravel())),
            mask=self._mask_column(n),
            attributes=self.attributes,
            extra=self.notes,
        )
        items = len(self.ids)
        has_media = np.array(
            [p is not None or w is not None for p, w in zip(self.paths, self.widths, strict=True)], bool
        )
        media = media_rows(items, path=self.paths, width=self.widths, height=self.heights)
        if not has_media.all():
            media = pa.StructArray.from_arrays(
                media.flatten(), fields=list(media.type), mask=pa.array(~has_media)
            )
        return item_table(
            items,
            rows,
            np.array(self.counts, np.int32),
            id=self.ids,
            subset=subset,
            media=media,
            extra=self.extras,
        )

    def _numbers(self) -> npt.NDArray[np.float64]:
        """The corners as numbers; raises ValueError when one is none, or not finite."""
        made = pa.array(self.corners, pa.binary()).cast(pa.string()).cast(pa.float64())
        numbers: npt.NDArray[np.float64] = made.to_numpy(zero_copy_only=False)
        if not np.isfinite(numbers).all():
            raise ValueError("a coordinate is not finite")
        return numbers

    def _mask_column(self, n: int) -> Any:
        if not self.masks:
            return None
        values = [self.masks.get(i, (None, None, None)) for i in range(n)]
        return mask_rows(n, *(list(column) for column in zip(*values, strict=True)))


def extents(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Widths such that low + width is again exactly `high`, where rounding permits."""
    size = high - low
    for _ in range(2):
        off = low + size != high
        if not off.any():
            break
        size[off] = np.nextafter(size[off], np.where(low[off] + size[off] < high[off], np.inf, -np.inf))
    return size
