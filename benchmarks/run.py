"""All benchmarks, one after the other: `make bench`. Each is a script of its own with options; see their heads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "floors.py",
    "convert.py",
    "operations.py",
    "filter.py",
    "merge.py",
    "memory.py",
    "scale.py",
    "training.py",
)

if __name__ == "__main__":
    for script in SCRIPTS:
        print(f"== {script}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(script))], check=True)
