"""Figures of detections: COCO's average precision (by pycocotools), precision and recall of each label."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayds.item import DatasetItem
from rayds.ops._matching import score_of
from rayds.schema import AnnotationType as T

FIGURES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large",
)  # fmt: skip


@dataclass
class Boxes:
    """Boxes of the truth and of predictions: key of the image, label, x, y, w, h, crowd or score. Some 200 bytes each."""

    truth: list[tuple[Any, ...]] = field(default_factory=list)
    predicted: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def scored(self) -> bool:
        """Whether the second dataset has scores, so that it can be called predictions."""
        return bool(self.predicted)

    def add(self, a: DatasetItem, b: DatasetItem) -> None:
        """The boxes of an item that both have."""
        image = (a.subset, a.id)
        scored = any(x.type is T.bbox and score_of(x) is not None for x in b.annotations)
        for x in a.annotations:
            if x.type is T.bbox and getattr(x, "label", None) is not None:
                self.truth.append((image, x.label, *x.get_bbox(), float(bool(x.attributes.get("is_crowd")))))
        if scored:
            for x in b.annotations:
                if x.type is T.bbox and getattr(x, "label", None) is not None:
                    self.predicted.append(
                        (image, x.label, *x.get_bbox(), 1.0 if (s := score_of(x)) is None else s)
                    )

    def merge(self, other: Boxes) -> Boxes:
        """The boxes of both."""
        return Boxes(self.truth + other.truth, self.predicted + other.predicted)


@dataclass
class Evaluation:
    """figures: COCO's twelve, -1 where there is nothing to say; by_label: label -> (precision, recall, truths, predictions)."""

    figures: dict[str, float]
    by_label: dict[int, tuple[float, float, int, int]]

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        labels = {
            names[k]: {"precision": p, "recall": r, "truths": t, "predictions": n}
            for k, (p, r, t, n) in self.by_label.items()
        }
        return {"bbox": self.figures, "labels": labels}

    def text(self, names: Sequence[str]) -> str:
        lines = [
            "detection of boxes: " + ", ".join(f"{k} {v:.3f}" for k, v in self.figures.items() if v >= 0)
        ]
        lines += [
            f"  {names[k]}: precision {p:.3f}, recall {r:.3f} ({t:,} true, {n:,} predicted)"
            for k, (p, r, t, n) in sorted(self.by_label.items(), key=lambda kv: -kv[1][2])[:20]
        ]
        return "\n".join(lines)


def evaluated(boxes: Boxes, confusion: Mapping[tuple[str, int, int], int]) -> Evaluation:
    """The figures of predictions; precision and recall follow from the confusion of boxes."""
    truths: Counter[int] = Counter()
    predictions: Counter[int] = Counter()
    hits: Counter[int] = Counter()
    for (kind, a, b), n in confusion.items():
        if kind != T.bbox.name:
            continue
        truths[a] += n
        predictions[b] += n
        if a == b:
            hits[a] += n
    by_label = {
        k: (
            hits[k] / predictions[k] if predictions[k] else 0.0,
            hits[k] / truths[k] if truths[k] else 0.0,
            truths[k],
            predictions[k],
        )
        for k in sorted({*truths, *predictions} - {-1})
    }
    return Evaluation(coco_figures(boxes), by_label)


def coco_figures(boxes: Boxes) -> dict[str, float]:
    """COCO's twelve figures of boxes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = sorted({int(r[1]) for r in (*boxes.truth, *boxes.predicted)})
    # in the order of their keys: of predictions with one score the first counts first
    images = {key: k for k, key in enumerate(sorted({r[0] for r in (*boxes.truth, *boxes.predicted)}), 1)}
    truth, predicted = COCO(), COCO()
    for made, rows in ((truth, boxes.truth), (predicted, boxes.predicted)):
        annotations = []
        for i, (image, label, x, y, w, h, last) in enumerate(sorted(rows, key=lambda r: r[0]), 1):
            one = {
                "id": i,
                "image_id": images[image],
                "category_id": int(label) + 1,
                "bbox": [x, y, w, h],
                "area": w * h,
            }
            crowd = int(last) if made is truth else 0
            annotations.append({**one, "iscrowd": crowd, **({"score": last} if made is predicted else {})})
        made.dataset = {
            "info": {},
            "images": [{"id": k} for k in images.values()],
            "categories": [{"id": k + 1, "name": str(k)} for k in labels],
            "annotations": annotations,
        }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        predicted.createIndex()
        run = COCOeval(truth, predicted, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: float(v) for name, v in zip(FIGURES, np.asarray(run.stats).tolist(), strict=True)}
