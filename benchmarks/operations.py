"""Claim: operations on a COCO dataset, written as datumaro, are faster than with Datumaro, in less memory.

Whole processes, in turn, in one run: rayds (local engine) against Datumaro.

usage: python benchmarks/operations.py [--images 50000] [--runs 3] [filter boxes masks split]
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from common import Run, coco_dataset, peer, rayds, side_by_side, timed

XPATH = '/item/annotation[label="class_03" and area > 99.5]'
DATUMARO = (
    "import sys, datumaro as dm; ds = dm.Dataset.import_from(sys.argv[1], 'coco'); {};"
    "ds.export(sys.argv[2], 'datumaro', save_media=False)"
)
# name: (words of rayds before and after --, the same in Datumaro)
CASES: dict[str, tuple[list[str], list[str], str]] = {
    "filter": (
        ["filter", "-m", "i+a", "-e", XPATH],
        [],
        f"ds.filter({XPATH!r}, filter_annotations=True, remove_empty=True)",
    ),
    "boxes": (["transform", "-t", "shapes_to_boxes"], [], "ds.transform('shapes_to_boxes')"),
    "masks": (["transform", "-t", "polygons_to_masks"], [], "ds.transform('polygons_to_masks')"),
    "split": (
        ["transform", "-t", "split"],
        ["-t", "detection", "-s", "train:.5", "-s", "val:.2", "-s", "test:.3"],
        "ds.transform('split', task='detection', splits=[('train', .5), ('val', .2), ('test', .3)])",
    ),
}


def once(source: Path, case: str, tool: str, out: str) -> Run | None:
    """One operation by one tool; None where the tool is not to be had."""
    words, after, call = CASES[case]
    if tool == "rayds":
        place = ["-i", str(source), "-if", "coco", "-o", out, "-f", "datumaro", "--engine", "local", "-q"]
        return rayds(*words, *place, *(["--", *after] if after else []))
    python = peer("python")
    code = DATUMARO.format(call)
    return timed([python, "-W", "ignore", "-c", code, str(source), out]) if python else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    args = parser.parse_args()
    source = coco_dataset(args.images)
    print(f"COCO, {args.images:,} images; seconds (median of {args.runs}), peak MiB")
    for case in args.cases:
        side_by_side(case, ("rayds", "datumaro"), args.runs, partial(once, source, case))


if __name__ == "__main__":
    main()
