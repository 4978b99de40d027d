"""What the benchmarks share: synthetic COCO data, timing of whole processes with their peak memory, peers."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

CACHE = Path(os.environ.get("RAYDS_BENCH_CACHE", Path.home() / ".cache" / "rayds-benchmarks"))
RAYDS = Path(sys.executable).with_name("rayds")
PEER_PACKAGES = ("datumaro[cli,default]==1.13.12", "panlabel==0.7.0")


def coco_dataset(images: int, seed: int = 0, shuffled: bool = False) -> Path:
    """A folder with annotations/instances_train.json: about 7.3 objects an image, polygons of about 20 points.

    shuffled: annotations in random order, not in that of the images.
    """
    root = CACHE / (f"coco-{images}" + ("-shuffled" if shuffled else ""))
    path = root / "annotations" / "instances_train.json"
    if path.exists():
        return root
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / "images" / "train").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    categories = [
        {"id": i + 1, "name": f"class_{i:02d}", "supercategory": f"super_{i // 10}"} for i in range(80)
    ]
    widths, heights = random.integers(320, 641, images), random.integers(320, 641, images)
    temporary = path.with_suffix(".part")
    with open(temporary, "w") as f:
        f.write('{"info":{"description":"synthetic"},"licenses":[{"id":1,"name":"x","url":""}],"categories":')
        f.write(json.dumps(categories) + ',"images":[')
        for i in range(images):
            record = {
                "license": 1,
                "file_name": f"{i + 1:012d}.jpg",
                "coco_url": f"http://images.example.org/train/{i + 1:012d}.jpg",
                "height": int(heights[i]),
                "width": int(widths[i]),
                "date_captured": "2013-11-14 17:02:52",
                "id": i + 1,
            }
            f.write(("," if i else "") + json.dumps(record, separators=(",", ":")))
        f.write('],"annotations":[')
        records = _annotations(random, widths, heights)
        for i, text in enumerate(_in_random_order(records) if shuffled else records):
            f.write(("," if i else "") + text)
        f.write("]}")
    temporary.rename(path)
    return root


def _annotations(random: np.random.Generator, widths: Any, heights: Any) -> Iterator[str]:
    n = 0
    for i, objects in enumerate(random.geometric(1 / 7.3, len(widths))):
        for _ in range(objects):
            n += 1
            yield _annotation(random, n, i + 1, widths[i], heights[i])


def _in_random_order(lines: Iterable[str], hands: int = 64) -> Iterator[str]:
    """Lines in random order without holding them: dealt to files by chance, each of which is then shuffled."""
    chance = Random(0)
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder) / str(i) for i in range(hands)]
        with ExitStack() as stack:
            files = [stack.enter_context(open(name, "w")) for name in names]
            for line in lines:
                chance.choice(files).write(line + "\n")
        for name in names:
            held = name.read_text().splitlines()
            chance.shuffle(held)
            yield from held


def _annotation(random: np.random.Generator, id: int, image: int, width: int, height: int) -> str:
    w, h = random.uniform(8, width / 2), random.uniform(8, height / 2)
    x, y = random.uniform(0, width - w), random.uniform(0, height - h)
    angle = np.sort(random.uniform(0, 2 * np.pi, random.integers(8, 36)))
    radius = random.uniform(0.6, 1, len(angle))
    points = np.stack([x + w / 2 * (1 + radius * np.cos(angle)), y + h / 2 * (1 + radius * np.sin(angle))], 1)
    record = {
        "segmentation": [np.round(points, 2).ravel().tolist()],
        "area": round(w * h * 0.6, 4),
        "iscrowd": 0,
        "image_id": image,
        "bbox": [round(x, 2), round(y, 2), round(w, 2), round(h, 2)],
        "category_id": int(random.integers(1, 81)),
        "id": id,
    }
    return json.dumps(record, separators=(",", ":"))


@dataclass(frozen=True)
class Run:
    """seconds: wall clock of a whole process; mib: peak memory of it or its largest child."""

    seconds: float
    mib: float


def timed(command: list[str]) -> Run:
    """Run a command to its end; raises RuntimeError with its last words when it fails."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = status
        if status:
            log.seek(0)
            raise RuntimeError(f"{command[0]} failed: {log.read()[-400:].decode(errors='replace')}")
    return Run(seconds, usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def rayds(*args: str) -> Run:
    """One run of the rayds command."""
    return timed([str(RAYDS), *args])


def peer(name: str) -> str | None:
    """The path of a peer's program in an environment of its own, made on first use; None when that fails."""
    home = CACHE / "peers"
    if not (home / "bin" / "panlabel").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            subprocess.run([str(home / "bin" / "pip"), "install", "-q", *PEER_PACKAGES], check=True)
        except subprocess.CalledProcessError as e:
            print(f"the peers can't be installed ({e}); only rayds is measured")
            shutil.rmtree(home, ignore_errors=True)
            return None
    return str(home / "bin" / name)


def side_by_side(name: str, tools: Sequence[str], runs: int, once: Callable[[str, str], Run | None]) -> None:
    """Run every tool `runs` times in turn and print its median beside rayds'; once: a run of a tool into a folder, or None."""
    done: dict[str, list[Run]] = {}
    for _ in range(runs):
        for tool in tools:
            with tempfile.TemporaryDirectory() as folder:
                if run := once(tool, f"{folder}/out"):
                    done.setdefault(tool, []).append(run)
    own = statistics.median(r.seconds for r in done["rayds"])
    cells = []
    for tool, found in done.items():
        seconds = statistics.median(r.seconds for r in found)
        ratio = "" if tool == "rayds" else f" ({seconds / own:.1f}x)"
        cells.append(f"{tool} {seconds:.1f} s{ratio} {max(r.mib for r in found):,.0f} MiB")
    print(f"{name:9s} " + " | ".join(cells), flush=True)


def own_peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
