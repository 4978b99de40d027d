"""YOLO numbers to annotations, for whole blocks: boxes, polygons, key points and rotated boxes.

A line begins with the class; what follows are fractions of the image's width and height:
detect `xc yc w h`, segment `x1 y1 x2 y2 ...`, pose `xc yc w h px py [v] ...`, obb `x1 y1 ... x4 y4`;
prediction files have a confidence as one number more, which becomes the attribute `score`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.formats.yolo._labels import BadLine, Floats, Ints, Lines, ranges, starts_of
from rayds.schema import AnnotationType, annotation_rows, list_of

FAR = 10.0  # fractions beyond it are pixels taken for fractions
TASKS = ("auto", "detect", "segment", "pose", "obb", "classify")

BOX, POLYGON, POSE, OBB = 1, 2, 3, 4

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """What is needed to read lines: the task, (number, dimensions) of key points, and the number of labels."""

    task: str
    keypoints: tuple[int, int]
    labels: int


def kinds_of(lines: Lines, setting: Setting) -> tuple[Ints, Bools]:
    """(kind of each line, 0 = none fits; whether its last number is a confidence), by the count of its numbers."""
    n = lines.counts
    kind = np.zeros(len(n), np.int64)
    scored = np.zeros(len(n), bool)
    task = setting.task
    if task in ("auto", "detect", "segment", "pose"):
        kind[(n == 5) | (n == 6)] = BOX
        scored |= n == 6
    if task in ("auto", "segment"):
        kind[(n >= 7) & (n % 2 == 1)] = POLYGON
    if task == "segment":
        even = (n >= 8) & (n % 2 == 0)
        kind[even] = POLYGON
        scored |= even
    if task == "pose":
        whole = 5 + setting.keypoints[0] * setting.keypoints[1]
        kind[(n == whole) | (n == whole + 1)] = POSE
        scored = (scored & (whole != 6)) | (n == whole + 1)
    if task == "obb":
        kind[(n == 9) | (n == 10)] = OBB
        scored |= n == 10
    return kind, scored


def expected(setting: Setting) -> str:
    """What a line should have, for messages."""
    if setting.task == "auto":
        return "5 (box), 6 (box and confidence) or an odd number from 7 on (polygon)"
    if setting.task == "pose":
        n, d = setting.keypoints
        return f"{5 + n * d} (box and {n} key points of {d} numbers)"
    return {
        "detect": "5, or 6 with a confidence",
        "segment": "7 or more (class, then x y pairs)",
        "obb": "9",
    }[setting.task]


def check(lines: Lines, setting: Setting) -> dict[int, BadLine]:
    """The first bad line of each file that has one."""
    kind, _ = kinds_of(lines, setting)
    label = lines.values[lines.starts[:-1]]
    wrong_label = (label != np.floor(label)) | (label < 0) | (label >= setting.labels)
    first = ranges(lines.starts[:-1] + 1, lines.counts - 1)
    far = np.bincount(_line_of(lines)[first][np.abs(lines.values[first]) > FAR], minlength=len(lines)) > 0
    negative = np.zeros(len(lines), bool)
    sized = np.flatnonzero((kind == BOX) | (kind == POSE))
    at = lines.starts[sized]
    negative[sized] = (lines.values[at + 3] < 0) | (lines.values[at + 4] < 0)
    odd = _odd_visibility(lines, kind, setting)
    found: dict[int, BadLine] = {}
    for i in np.flatnonzero((kind == 0) | wrong_label | far | negative | odd):
        file = int(lines.file[i])
        if file in found:
            continue
        if kind[i] == 0:
            reason = f"the line has {lines.counts[i]} numbers, not {expected(setting)}"
        elif wrong_label[i]:
            last = f"the classes are 0 to {setting.labels - 1}" if setting.labels else "there are no classes"
            reason = f"class {label[i]:g} does not exist; {last}"
        elif far[i]:
            reason = "coordinates are not fractions of the image size (are they pixels?)"
        elif negative[i]:
            reason = "the width or height of the box is negative"
        else:
            reason = "the visibility of a key point is not 0, 1 or 2"
        found[file] = BadLine(int(lines.number[i]), reason)
    return found


def outside(lines: Lines, setting: Setting) -> Bools:
    """Whether the box of each line lies wholly outside the image; one that reaches over the border does not."""
    kind, _ = kinds_of(lines, setting)
    found = np.zeros(len(lines), bool)
    boxed = np.flatnonzero((kind == BOX) | (kind == POSE))
    xc, yc, w, h = lines.values[lines.starts[boxed][:, None] + np.arange(1, 5)].T
    found[boxed] = (xc - w / 2 > 1) | (yc - h / 2 > 1) | (xc + w / 2 < 0) | (yc + h / 2 < 0)
    return found


def _line_of(lines: Lines) -> Ints:
    return np.repeat(np.arange(len(lines)), lines.counts)


def _odd_visibility(lines: Lines, kind: Ints, setting: Setting) -> Bools:
    odd = np.zeros(len(lines), bool)
    n, d = setting.keypoints
    rows = np.flatnonzero(kind == POSE)
    if d == 3 and len(rows):
        seen = lines.values[lines.starts[rows][:, None] + 7 + 3 * np.arange(n)]
        odd[rows] = ~np.isin(seen, (0.0, 1.0, 2.0)).all(axis=1)
    return odd


@dataclass
class Rows:
    """Annotations being put together: for each its line, type, points and more."""

    line: Ints
    type: Ints
    counts: Ints
    points: Floats


def annotations_of(
    lines: Lines, setting: Setting, width: Floats, height: Floats
) -> tuple[pa.StructArray, Ints]:
    """(annotations, file of each) of lines that `check` found good; width, height: of the image of each line."""
    kind, scored = kinds_of(lines, setting)
    visibility = None
    group: Ints | int = 0
    if (kind == POSE).any():
        rows, visibility = _pose_rows(lines, kind, setting, width, height)
        group = np.where(kind == POSE, np.arange(len(lines)) + 1, 0)[rows.line]
        first = np.searchsorted(lines.file, lines.file)  # groups count from 1 in each file
        group = np.where(group > 0, group - first[rows.line], 0)
    else:
        rows = _plain_rows(lines, kind, scored, width, height)
    scores = None
    if scored.any():
        values = pa.array(lines.values[lines.starts[1:] - 1], mask=~scored).take(pa.array(rows.line))
        scores = pc.binary_join_element_wise('{"score":', values.cast(pa.string()), "}", "")
    made = annotation_rows(
        len(rows.line),
        type=rows.type.astype(np.int8),
        group=group,
        label=lines.values[lines.starts[:-1]].astype(np.int32)[rows.line],
        points=list_of(pa.array(rows.points), rows.counts),
        visibility=visibility,
        attributes=scores,
    )
    return made, lines.file[rows.line]


def boxes_of(fractions: Floats, width: Floats, height: Floats) -> Floats:
    """x, y, w, h in pixels from xc, yc, w, h fractions, shape (n, 4)."""
    xc, yc, w, h = fractions.T
    return np.stack([(xc - w / 2) * width, (yc - h / 2) * height, w * width, h * height], axis=1)


def fractions_of(boxes: Floats, width: Floats, height: Floats) -> Floats:
    """The inverse of boxes_of."""
    x, y, w, h = boxes.T
    return np.stack([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height], axis=1)


def _plain_rows(lines: Lines, kind: Ints, scored: Bools, width: Floats, height: Floats) -> Rows:
    """One annotation a line: boxes, polygons, rotated boxes."""
    at = lines.starts[:-1]
    counts = np.where(kind == BOX, 4, lines.counts - 1 - scored)
    types = np.where(kind == BOX, int(AnnotationType.bbox), int(AnnotationType.polygon))
    box = np.flatnonzero(kind == BOX)
    boxes = boxes_of(lines.values[at[box][:, None] + np.arange(1, 5)], width[box], height[box])
    if len(box) == len(lines):
        return Rows(np.arange(len(lines)), types, counts, boxes.ravel())
    rotated, parameters = np.zeros(0, np.int64), np.zeros((0, 5))
    if (quads := np.flatnonzero(kind == OBB)).size:
        scale = np.stack([width[quads], height[quads]], axis=1)[:, None, :]
        corners = lines.values[at[quads][:, None] + np.arange(1, 9)].reshape(-1, 4, 2) * scale
        parameters, fits = rotated_boxes(corners, 2e-6 * scale.max(axis=(1, 2)))
        rotated, parameters = quads[fits], parameters[fits]
        types[rotated], counts[rotated] = int(AnnotationType.rotated_bbox), 5
    starts = starts_of(counts)
    points = np.empty(int(starts[-1]))
    points[starts[box][:, None] + np.arange(4)] = boxes
    points[starts[rotated][:, None] + np.arange(5)] = parameters
    rest = np.flatnonzero(types == int(AnnotationType.polygon))
    sizes = counts[rest]
    scale_of = np.repeat(rest, sizes)
    is_y = (ranges(np.zeros(len(rest), np.int64), sizes) % 2).astype(bool)
    values = lines.values[ranges(at[rest] + 1, sizes)]
    points[ranges(starts[rest], sizes)] = values * np.where(is_y, height[scale_of], width[scale_of])
    return Rows(np.arange(len(lines)), types, counts, points)


def _pose_rows(
    lines: Lines, kind: Ints, setting: Setting, width: Floats, height: Floats
) -> tuple[Rows, pa.ListArray]:
    """A box a line, and after it the key points of those that have any."""
    n, d = setting.keypoints
    at = lines.starts[:-1]
    boxes = boxes_of(lines.values[at[:, None] + np.arange(1, 5)], width, height)
    posed = np.flatnonzero(kind == POSE)
    keys = lines.values[at[posed][:, None] + np.arange(5, 5 + n * d)].reshape(-1, n, d)
    seen = keys[:, :, 2] if d == 3 else np.where((keys < 0).any(axis=2), 0, 2)
    some = (seen != 0).any(axis=1) | (keys != 0).any(axis=(1, 2))
    posed, keys, seen = posed[some], keys[some], seen[some]
    scale = np.stack([width[posed], height[posed]], axis=1)[:, None, :]
    extra = np.zeros(len(lines), np.int64)
    extra[posed] = 1
    line = np.repeat(np.arange(len(lines)), 1 + extra)
    is_points = np.concatenate([[False], line[1:] == line[:-1]]) if len(line) else np.zeros(0, bool)
    counts = np.where(is_points, 2 * n, 4)
    starts = starts_of(counts)
    points = np.empty(int(starts[-1]))
    points[starts[:-1][~is_points][:, None] + np.arange(4)] = boxes
    points[starts[:-1][is_points][:, None] + np.arange(2 * n)] = (keys[:, :, :2] * scale).reshape(-1, 2 * n)
    types = np.where(is_points, int(AnnotationType.points), int(AnnotationType.bbox))
    offsets = starts_of(np.where(is_points, n, 0)).astype(np.int32)
    visibility = pa.ListArray.from_arrays(
        pa.array(offsets, mask=np.append(~is_points, False)), pa.array(seen.ravel().astype(np.int8))
    )
    return Rows(line, types, counts, points), visibility


def rotated_boxes(corners: Floats, tolerance: Floats) -> tuple[Floats, Bools]:
    """(cx, cy, w, h, degrees of each, whether it is a rectangle) of quadrangles of shape (n, 4, 2) in pixels."""
    a, b, c, d = corners.transpose(1, 0, 2)
    cross = (b - a)[:, 0] * (c - b)[:, 1] - (b - a)[:, 1] * (c - b)[:, 0]
    flipped = cross < 0  # anticlockwise on the screen: go round the other way
    b, d = np.where(flipped[:, None], d, b), np.where(flipped[:, None], b, d)
    centre = (a + b + c + d) / 4
    along = ((b - a) + (c - d)) / 2
    w = np.hypot(along[:, 0], along[:, 1])
    across = ((d - a) + (c - b)) / 2
    h = np.hypot(across[:, 0], across[:, 1])
    angle = np.arctan2(along[:, 1], along[:, 0])
    parameters = np.stack([centre[:, 0], centre[:, 1], w, h, np.degrees(angle)], axis=1)
    off = np.abs(corners_of(parameters) - np.stack([a, b, c, d], axis=1)).max(axis=(1, 2)) if len(a) else w
    return parameters, (off <= tolerance) & (w > 0) & (h > 0)


def corners_of(boxes: Floats) -> Floats:
    """The corners, shape (n, 4, 2), of cx, cy, w, h, degrees; first the unrotated top left, then clockwise."""
    cx, cy, w, h, r = boxes.T
    cos, sin = np.cos(np.deg2rad(r)), np.sin(np.deg2rad(r))
    dx = np.stack([-w, w, w, -w], axis=1) / 2
    dy = np.stack([-h, -h, h, h], axis=1) / 2
    x = cx[:, None] + dx * cos[:, None] - dy * sin[:, None]
    y = cy[:, None] + dx * sin[:, None] + dy * cos[:, None]
    return np.stack([x, y], axis=2)
