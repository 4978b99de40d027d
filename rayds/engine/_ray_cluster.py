"""Connecting to Ray, or starting it; and what Ray Data has no settings for. Import it only where Ray is wanted."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.resource_manager import ResourceManager
from ray.exceptions import RayError

from rayds.engine import by_value
from rayds.errors import EngineError

PROMPT_CPUS = 64  # up to so many CPUs the scheduler looks often; beyond, a look takes long and tasks are many
WAIT_SECONDS = 0.02
LIMITS_SECONDS = 0.1


def connect(address: str | None = None, num_cpus: int | None = None, store_bytes: int | None = None) -> None:
    """Connect to a cluster, or start a private one, unless Ray runs in this process already; quietly."""
    if not ray.is_initialized():
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            # No dashboard and only this machine: a token, which Ray would leave in the home folder, guards nothing.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options.update(num_cpus=num_cpus, object_store_memory=store_bytes, include_dashboard=False)
        else:
            _check_reachable(address)
        try:
            with _quiet_core():
                ray.init(address=address, **options)
        except (ConnectionError, RayError) as e:
            raise EngineError(f"can't connect to the Ray cluster at {address!r}: {e}") from e
    for module in by_value:
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    _schedule_promptly()
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # Ray's log files keep everything; other handlers are not ours
            handler.setLevel(logging.CRITICAL)


def _check_reachable(address: str, seconds: float = 5.0) -> None:
    """Raise EngineError when nobody answers at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or something that Ray knows better
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as e:
        raise EngineError(
            f"no Ray cluster answers at {address!r} ({e}); check the address, and that its port is open to here"
        ) from e


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Keep Ray's C++ core, started inside, from logging to stderr, which it does past Python.

    It takes a level from the environment, and logs that it did: so stderr is held back meanwhile.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            del os.environ["RAY_BACKEND_LOG_LEVEL"]
            os.dup2(stderr, 2)
            os.close(stderr)


def _schedule_promptly() -> None:
    """Make Ray Data's scheduler start the next task of a small cluster at once.

    It waits 0.1 s for all running tasks to end before it looks whether one has, and learns what CPUs there are only a
    second after a plan began, until when it runs one task at a time. On two CPUs tasks of 0.3 s took 1.6 times as long by that.
    """
    if float(ray.cluster_resources().get("CPU", 1)) > PROMPT_CPUS:  # type: ignore[no-untyped-call]
        return
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = WAIT_SECONDS
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = LIMITS_SECONDS  # type: ignore[assignment]


def takes_no_cpu(dataset: ray.data.Dataset) -> None:
    """Make the last operator of a plan one that only passes rows on: it runs beside the others.

    `repartition` has no argument for that. Where there are fewer CPUs than operators, Ray Data reserves them for the first
    ones, and the last has to wait for their end, all rows in the object store.
    """
    dataset._logical_plan.dag.ray_remote_args["num_cpus"] = 0  # type: ignore[attr-defined]
