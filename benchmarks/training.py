"""Claim: decoding for training scales with Ray's workers, and Ray costs little over the local engine once it runs.

JPEG files (1600x1200 by default) of a dataset in rayds' format are decoded, resized to 224x224 and put in batches, all in fresh
processes: the local engine and Ray with 1 and with 2 workers, in turn. Seconds are those of one pass over the data; for Ray, those
of a second one, as the first starts the workers. Local has as many threads as Ray has workers.

The bars: 2 workers at least 1.7 times as fast as 1; Ray at most 1.3 times the seconds of local with as many threads. They
need 2 idle cores: compare with `floor`, the same decoding in 1 and in 2 plain processes, which is what the machine gives.

usage: python benchmarks/training.py [--images 1500] [--runs 3] [--side 1600]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import CACHE

import rayds as dm

SIZE, BATCH = (224, 224), 64
CASES = ("floor-1", "floor-2", "local-1", "local-2", "ray-1", "ray-2")


def dataset(images: int, side: int) -> Path:
    """A rayds dataset of JPEG files of side x 3/4 side, photograph-like in how they compress."""
    import cv2

    folder = CACHE / f"jpeg-{images}-{side}"
    if not folder.exists():
        rng = np.random.default_rng(0)
        shape = (side * 3 // 4, side, 3)
        base = [cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), shape[1::-1]) for _ in range(8)]
        grain = rng.integers(0, 24, shape, np.uint8)

        def item(i: int) -> dm.DatasetItem:
            pixels = cv2.add(np.roll(base[i % 8], i * 7, axis=1), np.roll(grain, i * 11, axis=0))
            image = dm.Image.from_bytes(
                cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            )
            return dm.DatasetItem(f"{i:06d}", media=image, annotations=[dm.Label(i % 10)])

        made = dm.Dataset.from_iterable(map(item, range(images)), [str(n) for n in range(10)], engine="local")
        made.export(str(folder), "rayds", save_media=True)
    return folder


def run(case: str, folder: str) -> dict[str, Any]:
    """One case in this process."""
    kind, _, number = case.partition("-")
    workers = int(number)
    if kind == "floor":
        return {"seconds": floor(folder, workers)}
    if kind == "ray":
        from rayds.engine.ray import RayEngine

        # The consumer of the batches needs no logical CPU: workers are those that decode.
        engine: Any = RayEngine("local", num_cpus=workers, store_bytes=1 << 30)
    else:
        from rayds.engine.local import LocalEngine

        engine = LocalEngine(workers)
    import cv2

    cv2.setNumThreads(1)
    data = dm.Dataset.import_from(folder, engine=engine)
    seconds = []
    for _ in range(2 if kind == "ray" else 1):
        start = time.perf_counter()
        rows = sum(len(b["label"]) for b in data.iter_batches(BATCH, resize=SIZE, targets="classification"))
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[-1], "first": seconds[0], "rows": rows}


def floor(folder: str, workers: int) -> float:
    """Seconds of plain processes that decode the same images with OpenCV alone, each its part."""
    code = (
        "import sys, cv2, numpy as np, pathlib\n"
        "cv2.setNumThreads(1); part, parts = int(sys.argv[2]), int(sys.argv[3])\n"
        "files = sorted(pathlib.Path(sys.argv[1], 'images').rglob('*.jpg'))[part::parts]\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "flags = cv2.IMREAD_REDUCED_COLOR_4\n"
        "for f in files: cv2.resize(cv2.imdecode(np.fromfile(f, np.uint8), flags), (224, 224), interpolation=3)\n"
    )
    words = [sys.executable, "-c", code, folder]
    pipe: Any = subprocess.PIPE
    made = [
        subprocess.Popen([*words, str(i), str(workers)], stdin=pipe, stdout=pipe, text=True)
        for i in range(workers)
    ]
    for process in made:
        process.stdout.readline()
    start = time.perf_counter()
    for process in made:
        process.stdin.write("\n")
        process.stdin.flush()
    if any(process.wait() for process in made):
        raise RuntimeError("a plain process failed")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", type=int, default=1600)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = dataset(args.images, args.side)
    if args.case:
        print(json.dumps(run(args.case, str(folder))))
        return
    print(f"{args.images:,} JPEGs {args.side}x{args.side * 3 // 4} -> {SIZE}; load {os.getloadavg()[0]:.1f}")
    found: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(args.runs):
        for case in CASES:
            words = [
                sys.executable,
                __file__,
                "--images",
                str(args.images),
                "--side",
                str(args.side),
                "--case",
                case,
            ]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            assert result.get("rows", args.images) == args.images
            found[case].append(result["seconds"])
            extra = f", first pass {result['first']:.1f} s" if case.startswith("ray") else ""
            rate = args.images / result["seconds"]
            print(
                f"{case}: {result['seconds']:.2f} s, {rate:,.0f} images/s{extra}; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    best, median = ({c: f(v) for c, v in found.items()} for f in (min, statistics.median))
    for name, s in (("best", best), ("median", median)):
        print(
            f"{name}: 2 workers against 1: floor {s['floor-1'] / s['floor-2']:.2f}x, local "
            f"{s['local-1'] / s['local-2']:.2f}x, Ray {s['ray-1'] / s['ray-2']:.2f}x; "
            f"Ray against local: 1 worker {s['ray-1'] / s['local-1']:.2f}, 2 workers {s['ray-2'] / s['local-2']:.2f}"
        )


if __name__ == "__main__":
    main()
