"""A Ray cluster with its Jobs server on 127.0.0.1, in token mode, whose Python has everything but rayds."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import ray


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def bare_python(folder: Path) -> Path:
    """An environment with the packages that rayds needs, but without rayds; returns its folder of programs."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # As a line of a .pth file a folder is only put on the path: the .pth files in it, of editable installs, are not run.
    (site / "packages.pth").write_text(f"{Path(ray.__file__).parents[1]}\n")
    return folder / "bin"


class Cluster:
    """A head, and more nodes on demand. Every process is in a process group of ours, and ends with `stop`."""

    def __init__(self, num_cpus: int = 2, token: bool = True) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))  # short: sockets are in it
        self.token = secrets.token_hex(16)
        self.gcs, self.dashboard = free_ports(2)
        self.url = f"http://127.0.0.1:{self.dashboard}"
        self.bin = bare_python(self.folder / "env")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON", "RAYDS"))}
        self.env |= {
            "RAY_AUTH_MODE": "token" if token else "disabled",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        client, agent, grpc, metrics = free_ports(4)
        self._start(
            "--head", f"--port={self.gcs}", f"--num-cpus={num_cpus}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={client}", f"--temp-dir={self.folder}/r",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
            f"--metrics-export-port={metrics}",
        )  # fmt: skip
        self._wait()

    def add_node(self, num_cpus: int = 1, wrapper: list[str] | None = None) -> None:
        """One more node, started by the words of `wrapper` before its own."""
        agent, grpc, metrics = free_ports(3)
        self._start(
            f"--address=127.0.0.1:{self.gcs}", f"--num-cpus={num_cpus}", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}", wrapper=wrapper or [],
        )  # fmt: skip

    def _start(self, *options: str, wrapper: list[str] | None = None) -> None:
        log = (self.folder / f"start-{len(self.processes)}.log").open("wb")
        command = [
            *(wrapper or []), str(self.bin / "python"), "-m", "ray.scripts.scripts", "start", "--block",
            "--node-ip-address=127.0.0.1", f"--object-store-memory={100 << 20}", "--disable-usage-stats", *options,
        ]  # fmt: skip
        self.processes.append(
            subprocess.Popen(
                command,
                env=self.env,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def _wait(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        request = urllib.request.Request(
            f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return
            except OSError:
                if time.monotonic() > end or self.processes[0].poll() is not None:
                    log = (self.folder / "start-0.log").read_text()
                    self.stop()
                    raise RuntimeError(f"the cluster did not start:\n{log}") from None
                time.sleep(0.2)

    def stop(self) -> None:
        """End all that was started, and forget it."""
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.processes):
                try:
                    os.killpg(process.pid, sig)
                except ProcessLookupError:
                    continue
            for process in self.processes:
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    continue
        shutil.rmtree(self.folder, ignore_errors=True)
