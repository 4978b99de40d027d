"""Items of all kinds, and files in the format datumaro."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from rayds.annotations import (
    Bbox,
    Polygon,
)
from rayds.dataset import Dataset
from rayds.item import DatasetItem
from rayds.media import Image

LABELS = ["cat", "dog", "traffic light"]
names = st.text(st.sampled_from("abcXYZ019_- .é"), min_size=1, max_size=6).filter(
    lambda t: t.strip(". ") == t
)


def read(path, **options):
    return Dataset.import_from(str(path), "datumaro", **options)


def put(root, content, subset="train"):
    path = Path(root) / "annotations" / f"{subset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def document(*items, labels=LABELS, **top):
    listed = [{"name": n, "parent": "", "attributes": []} for n in labels]
    return {"categories": {"label": {"labels": listed, "attributes": []}}, **top, "items": list(items)}


def load(root, subset="train"):
    return json.loads((Path(root) / "annotations" / f"{subset}.json").read_text())


def block_of(n=300, seed=0):
    rng = np.random.default_rng(seed)
    items = []
    for i in range(n):
        anns = []
        for k in range(int(rng.integers(0, 4))):
            anns.append(Bbox(*rng.uniform(0, 99, 4), label=int(rng.integers(3)), id=k + 1, group=k + 1))
            anns.append(
                Polygon(rng.uniform(0, 99, 2 * int(rng.integers(3, 9))), label=0, id=k + 1, group=k + 1)
            )
        items.append(
            DatasetItem(
                f"{i:05d}", anns, "train" if i % 3 else "val", image=Image(f"/x/{i}.png", size=(4, 5))
            )
        )
    return items


def box(**changes):
    return {"type": "bbox", "bbox": [1, 2, 3, 4], "label_id": 0, **changes}
