"""The compiled part; all else about the package stands in pyproject.toml.

rayds works without it, only slower: where it can't be compiled, or isn't wanted (RAYDS_PURE_PYTHON=1: a wheel for every
platform), it is left out.
"""

import os

from setuptools import Extension, setup

HEADERS = ["native/json.h", "native/jsonscan.h"]
SOURCES = {
    "rayds._files": ["files"],
    "rayds.formats._jsonscan": ["jsonscan", "scan", "annotations", "images"],
}
OPTIONS = {"extra_compile_args": ["-O3", "-std=c11", "-fvisibility=hidden"], "optional": True}


def extension(name: str) -> Extension:
    """A module of some files of native/."""
    return Extension(name, [f"native/{file}.c" for file in SOURCES[name]], depends=HEADERS, **OPTIONS)


pure = os.environ.get("RAYDS_PURE_PYTHON", "") not in ("", "0")
setup(ext_modules=[] if pure else [extension(name) for name in SOURCES])
