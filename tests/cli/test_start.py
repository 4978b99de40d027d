"""What a command sets up in its process before it works there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

LOOK = """
import os
from rayds.cli._common import start_light
start_light({"engine": %r, "address": None})
import pyarrow
print(pyarrow.default_memory_pool().backend_name, os.environ.get("ARROW_DEFAULT_MEMORY_POOL"))
"""


def allocator(engine: str, **variables: str) -> list[str]:
    """(Arrow's allocator, what child processes are told of it)"""
    env = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"} | variables
    done = subprocess.run(
        [sys.executable, "-c", LOOK % engine], env=env, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_arrow_shares_the_allocator_of_the_process() -> None:
    assert allocator("local") == ["system", "None"]
    assert allocator("ray") != ["system", "None"]


def test_an_allocator_that_is_named_is_taken() -> None:
    assert allocator("local", ARROW_DEFAULT_MEMORY_POOL="mimalloc") == ["mimalloc", "mimalloc"]
