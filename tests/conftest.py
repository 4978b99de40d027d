"""One Ray for the whole run, started by the first test that needs it; the engines and the storages that tests run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from rayds.engine.base import Engine
from rayds.engine.local import LocalEngine
from rayds.storage import Storage


@pytest.fixture(scope="session")
def ray_engine() -> Iterator[Engine]:
    """The Ray engine on a private cluster of 4 logical CPUs."""
    # Workers that wait for work stay: to start one takes seconds.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "120000")
    from rayds.engine.ray import RayEngine, connect

    connect(num_cpus=4, store_bytes=200 << 20)
    yield RayEngine()
    import ray

    ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    return LocalEngine(3) if request.param == "local" else request.getfixturevalue("ray_engine")


@pytest.fixture(autouse=True)
def _not_on_ray_by_chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` means local, though an earlier test has started Ray, but for tests marked `ray`."""
    if "ray" not in request.keywords:
        monkeypatch.setattr("rayds.engine._ray_runs", lambda: False)


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """An empty folder, on the disk and by URL."""
    if request.param == "local":
        yield Storage(tmp_path / "data")
        return
    yield Storage(f"memory://{tmp_path.name}/data")
    fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.fixture(scope="module", params=["compiled", "Python"])
def reading_by(request: pytest.FixtureRequest) -> Iterator[None]:
    """JSON read with the compiled scanner, and without: by tests that ask for it (of a module: hypothesis wants no narrower one)."""
    from rayds.formats import _compiled

    scanner = _compiled.jsonscan
    if request.param == "Python":
        _compiled.jsonscan = None
    elif scanner is None:
        pytest.skip("rayds was not compiled here")
    yield
    _compiled.jsonscan = scanner
