"""Pictures of a comparison: confusion matrices, label distributions, items side by side; as PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rayds.annotations import Annotation
from rayds.item import DatasetItem
from rayds.schema import AnnotationType as T

CLASSES = 40  # the most frequent labels that a matrix shows
GREEN, ORANGE = (80, 200, 80), (40, 160, 250)  # BGR


def confusion_png(
    title: str, cells: Mapping[tuple[int, int], int], name: Callable[[int], str | None]
) -> bytes:
    """A matrix of labels: rows of the first dataset, columns of the second; "none" stands for no partner."""
    from matplotlib.figure import Figure

    totals: dict[int, int] = {}
    for (a, b), n in cells.items():
        for label in (a, b):
            totals[label] = totals.get(label, 0) + n
    shown = sorted((k for k in totals if k >= 0), key=lambda k: (-totals[k], k))[:CLASSES]
    order = [*sorted(shown), -1]
    places = {label: i for i, label in enumerate(order)}
    matrix = np.zeros((len(order), len(order)))
    for (a, b), n in cells.items():
        if a in places and b in places:
            matrix[places[a], places[b]] += n
    side = max(4.0, 1.6 + 0.28 * len(order))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.log1p(matrix), cmap="Blues")
    names = [name(k) or "none" for k in order]
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.set_xlabel("second dataset")
    axes.set_ylabel("first dataset")
    left = len([k for k in totals if k >= 0]) - len(shown)
    axes.set_title(title + (f" ({left} rarer labels not shown)" if left else ""), fontsize=10)
    if len(order) <= 25:
        top = np.log1p(matrix).max()
        for i, j in zip(*np.nonzero(matrix), strict=True):
            color = "white" if np.log1p(matrix[i, j]) > top * 0.6 else "black"
            axes.text(j, i, f"{int(matrix[i, j])}", ha="center", va="center", fontsize=7, color=color)
    return _png(figure)


def labels_png(counts: Sequence[Mapping[int, int]], name: Callable[[int], str | None]) -> bytes:
    """How often each label occurs in the two datasets."""
    from matplotlib.figure import Figure

    labels = sorted({*counts[0], *counts[1]}, key=lambda k: (-counts[0].get(k, 0) - counts[1].get(k, 0), k))[
        :CLASSES
    ]
    figure = Figure(figsize=(7, max(2.0, 0.8 + 0.25 * len(labels))), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(labels))
    for k, (side, text) in enumerate(zip(counts, ("first", "second"), strict=True)):
        axes.barh(at + (0.2 if k else -0.2), [side.get(x, 0) for x in labels], 0.38, label=text)
    axes.set_yticks(at, [name(k) or "" for k in labels], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("annotations")
    axes.legend()
    return _png(figure)


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    sink = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()


def side_by_side(pixels: Any, a: DatasetItem, b: DatasetItem, name: Callable[[int], str | None]) -> bytes:
    """An image with the annotations of the first (left) and of the second (right)."""
    import cv2

    image = np.asarray(pixels)
    image = image if image.ndim == 3 else np.stack([image] * 3, 2)
    halves = []
    for item, color in ((a, GREEN), (b, ORANGE)):
        canvas = np.ascontiguousarray(image[..., :3].astype(np.uint8))
        for annotation in item.annotations:
            _draw(canvas, annotation, color, name)
        halves.append(canvas)
    gap = np.full((image.shape[0], 6, 3), 255, np.uint8)
    done, data = cv2.imencode(".png", np.hstack([halves[0], gap, halves[1]]))
    return bytes(data) if done else b""


def _draw(canvas: Any, annotation: Annotation, color: Any, name: Callable[[int], str | None]) -> None:
    import cv2

    thick = max(1, canvas.shape[0] // 300)
    one: Any = annotation
    if annotation.type is T.mask:
        if one.image.shape == canvas.shape[:2]:
            canvas[one.image] = (canvas[one.image] * 0.5 + np.array(color) * 0.5).astype(np.uint8)
    elif annotation.type in (T.polygon, T.polyline):
        points = np.round(np.asarray(one.points).reshape(-1, 1, 2)).astype(np.int32)
        cv2.polylines(canvas, [points], annotation.type is T.polygon, color, thick)
    elif annotation.type is T.points:
        for (x, y), seen in zip(np.asarray(one.points).reshape(-1, 2), one.visibility, strict=True):
            if seen:
                cv2.circle(canvas, (round(x), round(y)), 2 * thick, color, -1)
    elif annotation.type in (T.bbox, T.ellipse, T.rotated_bbox):
        x, y, w, h = annotation.get_bbox()
        cv2.rectangle(canvas, (round(x), round(y)), (round(x + w), round(y + h)), color, thick)
        if one.label is not None:
            text = name(one.label) or ""
            cv2.putText(
                canvas,
                text,
                (round(x) + 2, round(y) + 12),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.4,
                color,
                1,
                cv2.LINE_AA,
            )
