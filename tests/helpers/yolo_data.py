"""Small YOLO datasets, made and read again."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from rayds.dataset import Dataset
from rayds.item import DatasetItem
from rayds.media import Image

LABELS = ["cat", "dog", "traffic light"]


def item(id, annotations=(), subset="train", size=(480, 640), **more):
    return DatasetItem(
        id, list(annotations), subset=subset, image=Image(path=f"/nowhere/{id}.jpg", size=size), **more
    )


def picture(path, height=40, width=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 7, np.uint8))


def put(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def tree(root):
    return sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*") if p.is_file())


def write(items, path, format="yolo", labels=LABELS, **options):
    return Dataset.from_iterable(items, categories=labels).export(str(path), format, **options)


def read(path, format=None, **options):
    return Dataset.import_from(str(path), format, **options)


def by_key(dataset):
    return {(i.subset, i.id): i for i in dataset}


DARKNET = {
    "obj.data": "classes = 2\ntrain  = data/train.txt\nvalid  = data/valid.txt\nnames = data/obj.names\nbackup = backup/\neval = coco\n",
    "obj.names": "cat\ndog\n",
    "train.txt": "data/obj_train_data/1.jpg\ndata/obj_train_data/2.jpg\n",
    "valid.txt": "data/obj_valid_data/1.jpg\n",
    "obj_train_data/1.txt": "0 0.500000 0.500000 0.250000 0.500000\n1 0.25 0.25 0.5 0.5\n",
    "obj_valid_data/1.txt": "",
}


def darknet(root, **changes):
    put(root, {k: v for k, v in {**DARKNET, **changes}.items() if v is not None})
    for name in ("obj_train_data/1.jpg", "obj_train_data/2.jpg", "obj_valid_data/1.jpg"):
        picture(root / name)
    return root


def small(root, text, line, **files):
    put(
        root,
        {"data.yaml": f"train: images/train\nnames: [a, b]\n{text}", "labels/train/x.txt": line, **files},
    )
    picture(root / "images/train/x.jpg", 100, 200)
    return root
