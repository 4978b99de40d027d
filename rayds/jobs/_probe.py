"""What a cluster has, told by a job on it: sent as a file of its own, so it uses no part of rayds.

One argument, JSON: {"inputs": [paths], "outputs": [paths], "needs": [packages], "seconds": how long to wait for
worker nodes}. Prints one line that begins with MARK.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
import uuid
from typing import Any

MARK = "RAYDS-PROBE "
NAMES = 200  # entries of a folder that are compared


def digest(roots: dict[str, str]) -> str:
    """A hash of the Python and data files of packages, by the folder of each; compiled ones differ from platform to platform."""
    files: dict[str, str] = {}
    for name, root in roots.items():
        for folder, folders, names in os.walk(root):
            folders[:] = [f for f in folders if f != "__pycache__"]
            for file in (n for n in names if not n.endswith((".so", ".pyd"))):
                inner = os.path.join(name, os.path.relpath(os.path.join(folder, file), root))
                files[inner.replace(os.sep, "/")] = os.path.join(folder, file)
    found = hashlib.sha1(usedforsecurity=False)
    for inner, path in sorted(
        files.items()
    ):  # whether a checkout or an installed package: by the place in the package
        with open(path, "rb") as f:
            found.update(f"{inner}\n".encode() + hashlib.sha1(f.read(), usedforsecurity=False).digest())
    return found.hexdigest()


def roots() -> dict[str, str]:
    """The folders of rayds as installed here, by the place of each in the package; {} without it."""
    from importlib.util import find_spec

    spec = find_spec("rayds")
    if spec is None or not spec.submodule_search_locations:
        return {}
    found = {"rayds": next(iter(spec.submodule_search_locations))}
    for kind in ("formats", "ops", "launchers"):
        spec = find_spec(f"rayds.{kind}")
        if spec is not None and spec.submodule_search_locations:
            folder = os.path.realpath(next(iter(spec.submodule_search_locations)))
            if os.path.dirname(folder) != os.path.realpath(found["rayds"]):  # else the first folder holds it
                found[f"rayds/{kind}"] = folder
    return found


def look(path: str) -> str | None:
    """What is at a path: a hash of names, sizes and times, the same wherever the same storage is seen; None: nothing."""
    try:
        if not os.path.isdir(path):
            state = os.stat(path)
            return f"file {state.st_size} {int(state.st_mtime)}"
        found = hashlib.sha1(usedforsecurity=False)
        for name in sorted(os.listdir(path))[:NAMES]:
            state = os.stat(os.path.join(path, name))
            size = 0 if os.path.isdir(os.path.join(path, name)) else state.st_size
            found.update(f"{name} {size} {int(state.st_mtime)}\n".encode())
        return f"folder {found.hexdigest()}"
    except OSError:
        return None


def standing(path: str) -> str:
    """The nearest folder above a path that exists."""
    path = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def mark_of(path: str, name: str) -> str | None:
    """What another node wrote into the folder where an output will be; None: it is not seen here."""
    try:
        with open(os.path.join(path, name)) as f:
            return f.read()
    except OSError:
        return None


def versions(needs: list[str]) -> dict[str, Any]:
    """Of the Python that runs the job, with those of the needed packages that it lacks."""
    from importlib import metadata

    told: dict[str, Any] = {"python": list(sys.version_info[:3]), "executable": sys.executable}
    for name in ("ray", "rayds"):
        try:
            told[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            told[name] = None
    told["missing"] = []
    there = {re.sub(r"[-_.]+", "-", d.metadata["Name"] or "").lower() for d in metadata.distributions()}
    for name in needs:
        variants = (
            ("opencv-contrib-python-headless", "opencv-python", "opencv-contrib-python")
            if "opencv" in name
            else ()
        )
        if there.isdisjoint({name.lower(), *variants}):
            told["missing"].append(name)
    try:
        found = roots()
    except ImportError:
        found = {}
    told["digest"] = digest(found) if found else None
    return told


def shared(inputs: list[str], outputs: list[str], seconds: float) -> dict[str, Any]:
    """How the paths look from every node: {"nodes": how many others, "inputs": {path: [looks]}, "outputs": {...}}."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    here = ray.get_runtime_context().get_node_id()
    all_nodes: Any = ray.nodes

    def runs_tasks(node: dict[str, Any]) -> bool:
        return bool(node["Alive"] and node["Resources"].get("CPU", 0) >= 1)

    end = time.monotonic() + seconds
    # A head without CPUs runs no task: the data is read and written by nodes that may have to start first.
    nodes = [n["NodeID"] for n in all_nodes() if runs_tasks(n)]
    waker = None
    while not nodes and time.monotonic() < end:
        waker = waker or ray.remote(num_cpus=1)(os.getpid).remote()  # makes an autoscaler start a node
        time.sleep(1)
        nodes = [n["NodeID"] for n in all_nodes() if runs_tasks(n)]
    others = [n for n in nodes if n != here]
    marks = {}
    for path in outputs:
        name = f".rayds-probe-{uuid.uuid4().hex[:12]}"
        try:
            with open(os.path.join(standing(path), name), "w") as f:
                f.write(name)
            marks[path] = (standing(path), name)
        except OSError:
            marks[path] = (standing(path), "")  # the driver cannot write there

    def see(look: Any, mark_of: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            {path: look(path) for path in inputs},
            {path: bool(name) and mark_of(folder, name) == name for path, (folder, name) in marks.items()},
        )

    try:
        remote = ray.remote(num_cpus=0)(see)
        asked = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote(
                look, mark_of
            )
            for n in others
        ]
        seen = [see(look, mark_of), *ray.get(asked, timeout=max(1.0, seconds))]
    finally:
        for folder, name in marks.values():
            if name:
                os.unlink(os.path.join(folder, name))
    return {
        "nodes": len(others),
        "workers": len(nodes),
        "inputs": {path: [s[0][path] for s in seen] for path in inputs},
        "outputs": {path: [s[1][path] for s in seen] for path in outputs},
    }


def main() -> None:
    """Print the answer to the question of the command line."""
    asked = json.loads(sys.argv[1])
    told = versions(asked["needs"])
    if (asked["inputs"] or asked["outputs"]) and told["ray"] is not None:
        told["shared"] = shared(asked["inputs"], asked["outputs"], asked["seconds"])
    print(MARK + json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
