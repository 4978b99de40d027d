"""Annotations as objects: what users' callbacks, plug-ins and rare formats work with.

Hot code never makes these; it works on the columns of ``rayds.schema``. Coordinates are pixels, floats
of full precision, the origin at the top left corner of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from rayds.schema import AnnotationType

A = TypeVar("A", bound="Annotation")
BoolMask = npt.NDArray[np.bool_]

VISIBILITY = {"absent": 0, "hidden": 1, "visible": 2}


@dataclass(eq=True)
class Annotation:
    """Base: what every annotation has.

    label: index into LabelCategories, or None. id: the source's id, 0 = none. group: annotations of one
    object share a non-zero group. attributes: JSON-like values by name. z_order: higher covers lower.
    extra: what the source format says that the model has no place for, by format name.
    """

    type: ClassVar[AnnotationType]

    label: int | None = field(default=None, kw_only=True)
    id: int = field(default=0, kw_only=True)
    group: int = field(default=0, kw_only=True)
    attributes: dict[str, Any] = field(default_factory=dict, kw_only=True)
    z_order: int = field(default=0, kw_only=True)
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

    def wrap(self: A, **changes: Any) -> A:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def get_area(self) -> float:
        """Area in square pixels; 0 for annotations without one."""
        return 0.0

    def get_bbox(self) -> tuple[float, float, float, float]:
        """The enclosing box: x, y, width, height in pixels. Raises ValueError for non-spatial annotations."""
        raise ValueError(f"a {self.type.name} has no bounding box")

    def __repr__(self) -> str:
        shown = []
        for f in fields(self):
            value = getattr(self, f.name)
            if not f.repr or (f.kw_only and value in (None, 0, {})):
                continue
            shown.append(f"{f.name}={_short(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(map(repr, value[:6]))}, ... {len(value)} numbers]"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _floats(values: Any) -> list[float]:
    return [float(v) for v in np.asarray(values, np.float64).ravel()]


@dataclass(eq=True, repr=False)
class Label(Annotation):
    """A class of the whole image."""

    type = AnnotationType.label
    label: int | None = None


@dataclass(eq=True, repr=False)
class Caption(Annotation):
    """A text about the image."""

    type = AnnotationType.caption
    caption: str = ""


@dataclass(eq=True, repr=False)
class Bbox(Annotation):
    """An axis-aligned box: x, y of the top left corner, w, h, in pixels."""

    type = AnnotationType.bbox
    x: float = 0.0
    y: float = 0.0
    w: float = 0.0
    h: float = 0.0

    def __post_init__(self) -> None:
        self.x, self.y, self.w, self.h = _floats([self.x, self.y, self.w, self.h])

    @property
    def points(self) -> list[float]:
        """x1, y1, x2, y2."""
        return [self.x, self.y, self.x + self.w, self.y + self.h]

    def get_area(self) -> float:
        return self.w * self.h

    def get_bbox(self) -> tuple[float, float, float, float]:
        return self.x, self.y, self.w, self.h


@dataclass(eq=True, repr=False)
class RotatedBbox(Annotation):
    """A rotated box: centre cx, cy, size w, h in pixels, r in degrees clockwise on the screen."""

    type = AnnotationType.rotated_bbox
    cx: float = 0.0
    cy: float = 0.0
    w: float = 0.0
    h: float = 0.0
    r: float = 0.0

    def __post_init__(self) -> None:
        self.cx, self.cy, self.w, self.h, self.r = _floats([self.cx, self.cy, self.w, self.h, self.r])

    def corners(self) -> list[float]:
        """x, y of the four corners, starting at the unrotated top left, 8 numbers."""
        a = np.deg2rad(self.r)
        rotation = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        box = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [self.w / 2, self.h / 2]
        return _floats(box @ rotation.T + [self.cx, self.cy])

    def get_area(self) -> float:
        return self.w * self.h

    def get_bbox(self) -> tuple[float, float, float, float]:
        return _enclosing(self.corners())


@dataclass(eq=True, repr=False)
class Ellipse(Annotation):
    """An axis-aligned ellipse by its enclosing box: x1, y1, x2, y2 in pixels."""

    type = AnnotationType.ellipse
    x1: float = 0.0
    y1: float = 0.0
    x2: float = 0.0
    y2: float = 0.0

    def __post_init__(self) -> None:
        self.x1, self.y1, self.x2, self.y2 = _floats([self.x1, self.y1, self.x2, self.y2])

    def get_area(self) -> float:
        return float(np.pi * (self.x2 - self.x1) * (self.y2 - self.y1) / 4)

    def get_bbox(self) -> tuple[float, float, float, float]:
        return self.x1, self.y1, self.x2 - self.x1, self.y2 - self.y1


@dataclass(eq=True, repr=False)
class _Shape(Annotation):
    points: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.points = _floats(self.points)
        if len(self.points) % 2:
            raise ValueError(f"{self.type.name}: an odd number of coordinates ({len(self.points)})")

    def get_bbox(self) -> tuple[float, float, float, float]:
        return _enclosing(self.points)


@dataclass(eq=True, repr=False)
class Polygon(_Shape):
    """A closed polygon: x0, y0, x1, y1, ... in pixels, at least three points."""

    type = AnnotationType.polygon

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.points) < 6:
            raise ValueError(f"a polygon needs at least 3 points, got {len(self.points) // 2}")

    def get_area(self) -> float:
        """Area by the shoelace formula."""
        x, y = np.asarray(self.points[::2]), np.asarray(self.points[1::2])
        return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


@dataclass(eq=True, repr=False)
class PolyLine(_Shape):
    """An open line: x0, y0, x1, y1, ... in pixels."""

    type = AnnotationType.polyline


@dataclass(eq=True, repr=False)
class Points(_Shape):
    """Key points: x0, y0, x1, y1, ...; visibility of each: 0 absent, 1 hidden, 2 visible (the default)."""

    type = AnnotationType.points
    visibility: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.visibility = [int(v) for v in self.visibility] or [2] * (len(self.points) // 2)
        if len(self.visibility) != len(self.points) // 2:
            raise ValueError(f"{len(self.points) // 2} points, but {len(self.visibility)} visibility values")

    def get_bbox(self) -> tuple[float, float, float, float]:
        """The box around the points that are not absent."""
        seen = [c for p, v in zip(self._pairs(), self.visibility, strict=True) if v for c in p]
        return _enclosing(seen or self.points)

    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.points[::2], self.points[1::2], strict=True))


@dataclass(eq=True, repr=False)
class Cuboid3d(Annotation):
    """A box in space: position (centre), rotation (Euler angles, radians), scale (size), 3 numbers each."""

    type = AnnotationType.cuboid_3d
    position: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    rotation: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])

    def __post_init__(self) -> None:
        for name in ("position", "rotation", "scale"):
            values = _floats(getattr(self, name))
            if len(values) != 3:
                raise ValueError(f"a cuboid's {name} has 3 numbers, got {len(values)}")
            setattr(self, name, values)


@dataclass(eq=False, repr=False)
class Mask(Annotation):
    """A binary mask of the whole image, kept as COCO's compressed run lengths.

    image: (H, W) array, true where the object is, or a callable that returns one; or give `rle`, a dict
    {"size": [height, width], "counts": compressed text, or a list of run lengths} instead.
    """

    type = AnnotationType.mask
    rle: dict[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        image: npt.NDArray[Any] | Callable[[], npt.NDArray[Any]] | None = None,
        label: int | None = None,
        *,
        rle: dict[str, Any] | None = None,
        id: int = 0,
        group: int = 0,
        attributes: dict[str, Any] | None = None,
        z_order: int = 0,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if (image is None) == (rle is None):
            raise ValueError("a mask needs either an image or an rle")
        self.rle = normal_rle(rle) if rle is not None else encode_mask(image() if callable(image) else image)
        self.label, self.id, self.group, self.z_order = label, id, group, z_order
        self.attributes, self.extra = attributes or {}, extra or {}

    @property
    def image(self) -> BoolMask:
        """The mask as an (H, W) bool array."""
        return decode_rle(self.rle)

    def get_area(self) -> float:
        return float(rle_runs(self.rle)[1::2].sum())

    def get_bbox(self) -> tuple[float, float, float, float]:
        runs = rle_runs(self.rle)
        ends = np.cumsum(runs)
        last, full = ends[1::2], runs[1::2] > 0
        first, last = ends[0::2][: len(last)][full], last[full] - 1  # pixels, counted down the columns
        if not len(first):
            return 0.0, 0.0, 0.0, 0.0
        height = self.rle["size"][0]
        left, right = first[0] // height, last[-1] // height
        if (
            first // height != last // height
        ).any():  # a run over a column's end takes its first and last row
            top, bottom = 0, height - 1
        else:
            top, bottom = (first % height).min(), (last % height).max()
        return float(left), float(top), float(right - left + 1), float(bottom - top + 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self))

    def wrap(self, **changes: Any) -> Mask:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        if "image" in changes:
            own.pop("rle")
        return Mask(**{**own, **changes})

    def __repr__(self) -> str:
        h, w = self.rle["size"]
        return super().__repr__().replace(f"rle={_short(self.rle)}", f"{w}x{h} pixels")


RleMask = Mask


def normal_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """An RLE with compressed counts as text, whatever form it came in. Raises ValueError if it is broken.

    Text is taken as it is: `decode_rle` and `rle_runs` check it.
    """
    height, width = _rle_size(rle)
    counts = rle["counts"]
    if isinstance(counts, (list, tuple, np.ndarray)):
        from pycocotools import mask as coco_mask

        if sum(counts) != height * width or any(c < 0 or int(c) != c for c in counts):
            raise ValueError(f"run lengths sum to {sum(counts)}, but the mask is {width}x{height}")
        runs = {"size": [height, width], "counts": list(map(int, counts))}
        counts = coco_mask.frPyObjects(runs, height, width)["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    if not isinstance(counts, str):
        raise ValueError(f"the counts of a mask are text or a list of numbers, not {type(counts).__name__}")
    return {"size": [height, width], "counts": counts}


def _rle_size(rle: dict[str, Any]) -> tuple[int, int]:
    height, width = (int(v) for v in rle["size"])
    if height < 0 or width < 0 or height * width >= 1 << 32:  # COCO's run lengths have 32 bits
        raise ValueError(f"a mask can't have {width}x{height} pixels")
    return height, width


def rle_runs(rle: dict[str, Any]) -> npt.NDArray[np.int64]:
    """The run lengths of a compressed RLE, down the columns, zeros first. Raises ValueError if it is broken.

    Counts from files must pass here before pycocotools sees them: it trusts them, and crashes on some.
    """
    height, width = _rle_size(rle)
    counts = rle["counts"]
    codes = (
        np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    )
    ends = np.flatnonzero(
        (codes & 0x20) == 0
    )  # a number is 5 bits a character, low ones first; 0x20: more follow
    starts = np.concatenate([[0], ends + 1])
    lengths = np.diff(starts)
    broken = ValueError("the run lengths of a mask are broken")
    if codes.size and (codes.min() < 0 or codes.max() > 63 or starts[-1] != codes.size or lengths.max() > 7):
        raise broken
    place = np.arange(codes.size) - np.repeat(starts[:-1], lengths)
    runs = (
        np.add.reduceat((codes & 0x1F) << (5 * place), starts[:-1]) if codes.size else np.zeros(0, np.int64)
    )
    runs = runs - np.where(codes[ends] & 0x10, np.int64(1) << (5 * lengths), 0)  # the sign
    runs[1::2] = np.cumsum(runs[1::2])  # from the fourth on they are differences to the one before the last
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.sum() != height * width or (runs.size and runs.min() < 0):
        raise broken
    return runs


def encode_mask(image: Any) -> dict[str, Any]:
    """The compressed RLE of an (H, W) array, true where it is not zero."""
    from pycocotools import mask as coco_mask

    image = np.asarray(image)
    if image.ndim != 2:
        raise ValueError(f"a mask has shape (H, W), got {image.shape}")
    return normal_rle(coco_mask.encode(np.asfortranarray(image != 0, dtype=np.uint8)))


def decode_rle(rle: dict[str, Any]) -> BoolMask:
    """The (H, W) bool array of a compressed RLE. Raises ValueError if it is broken."""
    runs = rle_runs(rle)
    height, width = rle["size"]
    decoded: BoolMask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width, order="F")
    return decoded


def _enclosing(points: Sequence[float]) -> tuple[float, float, float, float]:
    if not points:
        return 0.0, 0.0, 0.0, 0.0
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


CLASSES: dict[AnnotationType, type[Annotation]] = {
    c.type: c for c in (Label, Mask, Points, Polygon, PolyLine, Bbox, Caption, Cuboid3d, Ellipse, RotatedBbox)
}
