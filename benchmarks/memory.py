"""Claim: on one machine memory stays flat and time grows with the images, up to a COCO file of 1.6 GB.

usage: python benchmarks/memory.py [--images 50000,100000,500000] [rayds voc ...]
"""

from __future__ import annotations

import argparse
import tempfile

from common import coco_dataset, rayds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="50000,100000,250000,500000")
    parser.add_argument("formats", nargs="*", default=["rayds", "voc"])
    args = parser.parse_args()
    for images in map(int, args.images.split(",")):
        source = coco_dataset(images)
        size = (source / "annotations/instances_train.json").stat().st_size / 1e6
        for format in args.formats:
            with tempfile.TemporaryDirectory() as folder:
                words = ["convert", "-i", str(source), "-if", "coco", "-o", f"{folder}/out", "-f", format]
                run = rayds(*words, "--engine", "local", "--quiet")
            per = run.seconds / images * 1e6
            print(
                f"{images:>9,} images ({size:,.0f} MB) to {format:6s} {run.seconds:7.1f} s"
                f"  {per:6.0f} us an image  peak {run.mib:,.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
