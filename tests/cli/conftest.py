"""The command line run in this process and in its own, with a third-party format installed beside the built-in ones."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rayds import registry
from rayds.cli.main import cli

PLUGIN = Path(__file__).parent / "plugin"

Rayds = Callable[..., Result]
Process = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def rayds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rayds]:
    """Runs a command line in this process; the format `tiny` is installed."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    registry._points.cache_clear()
    registry.load.cache_clear()
    yield lambda *words: CliRunner().invoke(cli, [str(w) for w in words])
    registry._points.cache_clear()
    registry.load.cache_clear()


@pytest.fixture
def start(tmp_path: Path) -> Process:
    """Starts a command line in its own process; the format `tiny` is installed."""

    def run(*words: object, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "rayds", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(PLUGIN), "NO_COLOR": "1", **env},
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A tiny dataset of three items, one with a caption."""
    folder = tmp_path / "pets"
    folder.mkdir()
    (folder / "tiny.txt").write_text("a cat 1 2 3 4\nb dog 5 6 7 8\nc caption a small dog\n")
    return folder
