"""The floors below which a conversion can't go here: reading the JSON, creating the small files, starting up.

usage: python benchmarks/floors.py [--images 50000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import duckdb
from common import coco_dataset, rayds, timed


def best(what: str, fn: Callable[[], float], runs: int = 3) -> None:
    """Print the fastest and the median of some runs."""
    seconds = [fn() for _ in range(runs)]
    print(f"{what:60s} {min(seconds):6.2f} s (median {statistics.median(seconds):.2f})", flush=True)


def create_files(n: int, size: int) -> float:
    """Seconds to create n files of so many bytes in one folder, one after the other."""
    data = b"x" * size
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fd = os.open(folder, os.O_RDONLY)
        for i in range(n):
            file = os.open(f"{i:012d}.xml", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
            os.write(file, data)
            os.close(file)
        os.close(fd)
        return time.perf_counter() - start


def parse(path: str) -> float:
    """Seconds in which DuckDB parses the annotations of a COCO file with all cores."""
    start = time.perf_counter()
    duckdb.sql(
        f"SELECT annotations FROM read_json('{path}', maximum_object_size=4294967295, columns={{annotations: "
        "'STRUCT(id BIGINT, image_id BIGINT, category_id BIGINT, bbox DOUBLE[], segmentation DOUBLE[][])[]'})"
    ).to_arrow_table()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000)
    args = parser.parse_args()
    path = str(coco_dataset(args.images) / "annotations/instances_train.json")
    best(f"DuckDB parses the annotations of {args.images:,} images", lambda: parse(path))
    best(f"creating {args.images:,} files of 2 kB", lambda: create_files(args.images, 2000))
    best("rayds --help", lambda: rayds("--help").seconds)
    best(
        "python -c 'import pyarrow, duckdb, numpy'",
        lambda: timed([sys.executable, "-c", "import pyarrow, duckdb, numpy"]).seconds,
    )


if __name__ == "__main__":
    main()
