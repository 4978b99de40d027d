"""The demonstration: makes a COCO dataset, converts it on the command line, checks it, and draws what came out.

Run it with `make demo` (or `python examples/demo.py [FOLDER]`, default demo-output/). It needs no network and no
data. It ends with exit code 1 when a converted dataset does not hold what the source does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

import rayds as dm

WIDTH, HEIGHT = 640, 400
SUBSETS = {"train": 48, "val": 12}
LABELS = ("circle", "square", "triangle", "star")
# name -> BGR, as OpenCV draws
COLOURS = {
    "red": (72, 76, 226), "orange": (60, 150, 245), "yellow": (88, 214, 250), "green": (110, 178, 84),
    "teal": (170, 168, 42), "blue": (214, 132, 52), "violet": (196, 92, 142), "pink": (186, 138, 240),
}  # fmt: skip

Points = np.ndarray[Any, np.dtype[np.float64]]


# making the data


def outline(kind: str, centre: Points, radius: float, turn: float) -> Points:
    """The corners of a shape, (N, 2) pixels, to 2 decimals."""
    corners = {"circle": 24, "square": 4, "triangle": 3, "star": 10}[kind]
    angle = turn + np.arange(corners) * 2 * np.pi / corners
    radii = radius * np.where(np.arange(corners) % 2, 0.45, 1.0) if kind == "star" else radius
    return np.round(centre + np.stack([np.cos(angle), np.sin(angle)], 1) * np.reshape(radii, (-1, 1)), 2)


def background(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A soft gradient between two dark colours, (HEIGHT, WIDTH, 3)."""
    a, b = rng.uniform(25, 95, (2, 3))
    slope = np.add.outer(np.linspace(0, 1, HEIGHT), np.linspace(0, 1, WIDTH) * rng.uniform(-1, 1))
    slope = (slope - slope.min()) / np.ptp(slope)
    return np.uint8(a + (b - a) * slope[:, :, None])


def draw(image: np.ndarray[Any, Any], points: Points, colour: tuple[int, int, int]) -> None:
    """Fill a shape, its edge smooth; OpenCV takes coordinates as integers with 4 bits after the point."""
    corners = np.int32(np.round(points * 16))
    cv2.fillPoly(image, [corners], colour, cv2.LINE_AA, 4)
    cv2.polylines(image, [corners], True, tuple(int(c * 0.75) for c in colour), 2, cv2.LINE_AA, 4)


def place(rng: np.random.Generator, taken: list[tuple[Points, float]]) -> tuple[Points, float] | None:
    """The centre and radius of a shape that touches no other, or None when there is no room."""
    for _ in range(50):
        radius = rng.uniform(28, 66)
        centre = rng.uniform([radius + 6, radius + 30], [WIDTH - radius - 6, HEIGHT - radius - 6])
        if all(np.hypot(*(centre - c)) > radius + r + 14 for c, r in taken):
            taken.append((centre, radius))
            return centre, radius
    return None


def crowd(
    rng: np.random.Generator, image: np.ndarray[Any, Any], taken: list[tuple[Points, float]]
) -> dict[str, Any]:
    """Many small circles that nobody outlines one by one: COCO marks them as a crowd, with one mask for all."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    corner = rng.uniform([20, 40], [WIDTH - 180, HEIGHT - 130])
    taken.append((corner + np.array([80.0, 45.0]), 95.0))
    for centre in corner + rng.uniform(0, 1, (32, 2)) * [160, 90]:
        colour = list(COLOURS.values())[rng.integers(len(COLOURS))]
        cv2.circle(image, np.int32(centre).tolist(), 9, colour, -1, cv2.LINE_AA)
        cv2.circle(mask, np.int32(centre).tolist(), 9, 1, -1)
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {
        "category_id": 1,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": float(mask.sum()),
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
        "iscrowd": 1,
    }


def make_coco(folder: Path) -> None:
    """A COCO dataset: images/<subset>/*.jpg and annotations/instances_<subset>.json."""
    rng = np.random.default_rng(7)
    (folder / "annotations").mkdir(parents=True)
    made = 0
    for subset, count in SUBSETS.items():
        (folder / "images" / subset).mkdir(parents=True)
        images, annotations = [], []
        for _ in range(count):
            made += 1
            image = background(rng)
            taken: list[tuple[Points, float]] = []
            found = [crowd(rng, image, taken)] if made == 10 else []
            for _ in range(rng.integers(4, 11)):
                if (spot := place(rng, taken)) is None:
                    continue
                kind, colour = rng.integers(len(LABELS)), str(rng.choice(list(COLOURS)))
                points = outline(LABELS[kind], *spot, rng.uniform(0, 2 * np.pi))
                draw(image, points, COLOURS[colour])
                low, high = points.min(0), points.max(0)
                found.append(
                    {
                        "category_id": int(kind) + 1,
                        "bbox": np.round([*low, *(high - low)], 2).tolist(),
                        "area": round(float(cv2.contourArea(points.astype(np.float32))), 2),
                        "segmentation": [points.ravel().tolist()],
                        "iscrowd": 0,
                        "attributes": {"colour": colour, "large": bool(spot[1] > 50)},
                    }
                )
            name = f"{made:06}.jpg"
            cv2.imwrite(str(folder / "images" / subset / name), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            images.append({"id": made, "file_name": name, "width": WIDTH, "height": HEIGHT})
            annotations += [{"id": made * 100 + i, "image_id": made, **a} for i, a in enumerate(found)]
        document = {
            "info": {"description": "shapes, made by examples/demo.py"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(LABELS, start=1)],
        }
        (folder / "annotations" / f"instances_{subset}.json").write_text(json.dumps(document))


# converting and checking


def run(folder: Path, *words: str) -> None:
    """A rayds command as a user types it, in a folder; its output goes to the terminal."""
    print(f"\n$ rayds {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "rayds", *words], cwd=folder, check=True)


def counts(path: Path) -> dict[str, Counter[str]]:
    """What a dataset holds: items by subset, and boxes by label."""
    dataset = dm.Dataset.import_from(str(path))
    names = dataset.categories().labels.names()
    items: Counter[str] = Counter()
    boxes: Counter[str] = Counter()
    for item in dataset:
        items[item.subset] += 1
        boxes.update(
            names[a.label] for a in item.annotations if isinstance(a, dm.Bbox) and a.label is not None
        )
    return {"items": items, "boxes": boxes}


def tree(folder: Path, depth: int = 3, shown: int = 2, indent: str = "  ") -> None:
    """Print a folder, the first few files of each."""
    entries = sorted(folder.iterdir(), key=lambda p: (p.is_file(), p.name))
    files = [p for p in entries if p.is_file()]
    for path in entries:
        if path.is_dir():
            print(f"{indent}{path.name}/")
            if depth > 1:
                tree(path, depth - 1, shown, indent + "    ")
    for path in files[:shown]:
        print(f"{indent}{path.name}")
    if len(files) > shown:
        print(f"{indent}... {len(files) - shown} more files")


# drawing


def annotated(dataset: dm.Dataset, item: dm.DatasetItem) -> np.ndarray[Any, Any]:
    """The image of an item with its polygons and masks tinted, its boxes, and their labels' names."""
    assert item.image is not None
    image = item.image.pixels.copy()
    labels = dataset.categories().labels
    palette = [(96, 120, 255), (255, 190, 90), (120, 230, 130), (90, 220, 255)]
    tint = image.copy()
    for a in item.annotations:
        colour = palette[(a.label or 0) % len(palette)]
        if isinstance(a, dm.Polygon):
            cv2.fillPoly(tint, [np.int32(np.reshape(a.points, (-1, 2)))], colour, cv2.LINE_AA)
        elif isinstance(a, dm.Mask):
            tint[a.image] = colour
    image = cv2.addWeighted(tint, 0.35, image, 0.65, 0)
    masks = [a.image.astype(np.uint8) for a in item.annotations if isinstance(a, dm.Mask)]
    for mask in masks:
        edges, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, edges, -1, (255, 255, 255), 1, cv2.LINE_AA)
    for a in item.annotations:
        colour = palette[(a.label or 0) % len(palette)]
        if isinstance(a, dm.Polygon):
            corners = np.int32(np.round(np.reshape(a.points, (-1, 2)) * 16))
            cv2.polylines(image, [corners], True, (255, 255, 255), 2, cv2.LINE_AA, 4)
        elif isinstance(a, dm.Bbox):
            x, y, right, bottom = (round(v) for v in a.points)
            cv2.rectangle(image, (x, y), (right, bottom), colour, 2, cv2.LINE_AA)
            name = labels[a.label].name if a.label is not None else "?"
            name += " (crowd)" if a.attributes.get("is_crowd") else ""
            (w, h), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_DUPLEX, 0.5, 1)
            cv2.rectangle(image, (x - 1, y - h - 10), (x + w + 9, y), colour, -1)
            cv2.putText(
                image, name, (x + 4, y - 6), cv2.FONT_HERSHEY_DUPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA
            )
    return image


def most_varied(dataset: dm.Dataset) -> dm.DatasetItem:
    """The item with the most labels, of those the one with the most annotations."""
    return max(dataset, key=lambda item: (len({a.label for a in item.annotations}), len(item.annotations)))


def with_mask(dataset: dm.Dataset) -> dm.DatasetItem:
    """The first item that has a mask."""
    return next(iter(dataset.select(lambda item: any(isinstance(a, dm.Mask) for a in item.annotations))))


def main() -> int:
    """Run the demonstration; returns the exit code."""
    start = time.monotonic()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output").absolute()
    shutil.rmtree(out, ignore_errors=True)
    make_coco(out / "coco")
    print(f"Made a COCO dataset of {sum(SUBSETS.values())} images in {out.name}/coco.")

    run(out, "detect", "coco")
    run(out, "convert", "-i", "coco", "-f", "voc", "-o", "voc", "--save-media")
    run(out, "convert", "-i", "coco", "-f", "yolo", "-o", "yolo", "--save-media")
    run(out, "convert", "-i", "coco", "-f", "rayds", "-o", "rayds", "--save-media")

    print(f"\nWhat is in {out.name}/ now:")
    tree(out)

    print("\nEach dataset read again, items and boxes by label:")
    wanted = counts(out / "coco")
    wrong = 0
    for name in ("coco", "voc", "yolo", "rayds"):
        found = counts(out / name)
        same = found == wanted
        wrong += not same
        told = [", ".join(f"{k} {n}" for k, n in sorted(found[what].items())) for what in ("items", "boxes")]
        verdict = "the source" if name == "coco" else "the same" if same else "NOT THE SAME"
        print(f"  {name:6} {told[0]} | {told[1]} | {verdict}")
    source, dataset = (dm.Dataset.import_from(str(out / name)) for name in ("coco", "rayds"))
    if [i.annotations for i in source] != [i.annotations for i in dataset]:
        wrong += 1
        print("  rayds: NOT ALL annotations are equal to the source's")
    if wrong:
        print("error: a converted dataset differs from its source", file=sys.stderr)
        return 1
    print("  rayds: every polygon, mask, attribute and id is equal to the source's")

    picture = np.hstack([annotated(dataset, item) for item in (most_varied(dataset), with_mask(dataset))])
    cv2.imwrite(str(out / "annotated.png"), picture)
    print(f"\nIn Python: {dataset!r}".replace(str(out), out.name))
    print(f"Drawn from it: {out.name}/annotated.png")
    print(f"Done in {time.monotonic() - start:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
