"""Commands as jobs of real clusters in token mode, whose Python has no rayds."""

import contextlib
import doctest
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner
from jobs_cluster import Cluster

import rayds
from rayds import registry
from rayds.cli.main import cli
from rayds.jobs import Jobs, Package, exit_code, open_access

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "cli" / "plugin"


@pytest.fixture(scope="module")
def cluster():
    """One node."""
    made = Cluster()
    yield made
    made.stop()


@pytest.fixture
def environment(monkeypatch, cluster, tmp_path):
    """The token is known, as in a shell of the cluster's user; the plug-in `tiny` is installed here only."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PLUGIN))
    registry._points.cache_clear()
    registry.load.cache_clear()
    yield
    registry._points.cache_clear()
    registry.load.cache_clear()


@pytest.fixture
def run(environment, cluster):
    """Runs a command line of `submit` or `jobs` against the cluster."""

    def run(*words, url=cluster.url):
        command = [str(w) for w in words]
        at = 1 if command[0] == "submit" else 2
        return CliRunner().invoke(cli, [*command[:at], "--address", url, *command[at:]])

    return run


@pytest.fixture
def jobs(environment, cluster):
    return Jobs(open_access(cluster.url, warn=print, note=print))


@pytest.fixture
def data(tmp_path):
    """Four items with boxes, as COCO."""
    items = [
        rayds.DatasetItem(f"{n}", [rayds.Bbox(1, 2, 3 + n, 4, label=n % 2)], image=rayds.Image(path=f"{n}.jpg", size=(20, 30)))
        for n in range(4)
    ]  # fmt: skip
    rayds.Dataset.from_iterable(items, ["cat", "dog"]).export(str(tmp_path / "coco"), "coco")
    return tmp_path / "coco"


@pytest.fixture
def slow(tmp_path):
    """A dataset that takes a minute to read."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "tiny.txt").write_text("".join(f"{n} cat 1 2 3 4\n" for n in range(60)))
    return [
        "convert",
        "-i",
        "slow",
        "-if",
        "tiny",
        "-f",
        "tiny",
        "-o",
        "done",
        "--engine",
        "local",
        "--read",
        "delay=1",
    ]


def ray_command():
    """The command `ray`."""
    from ray.scripts.scripts import cli as ray_cli

    return ray_cli


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_documented_way_from_nothing_to_a_finished_job(environment, cluster, monkeypatch, tmp_path):
    text = (ROOT / "docs" / "cluster.md").read_text()
    section = text[text.index("### A cluster on your laptop") : text.index("### What submit does")]
    first, second = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    # The cluster is started by the test, on ports that are free; the options of the page's command must be Ray's.
    assert {"get-auth-token", "start"} <= set(first.split()) & set(ray_command().commands)
    start = shlex.split(first.splitlines()[-1])
    assert start[1:5] == ["RAY_AUTH_MODE=token", "ray", "start", "--head"]
    ray_command().commands["start"].make_context("start", start[4:])

    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text(cluster.token)
    (tmp_path / "home" / ".ray" / "auth_token").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import_module("demo").make_coco(tmp_path / "coco")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    job = "JOB"
    for part in re.split(r"^\$ ", second, flags=re.MULTILINE)[1:]:
        line, _, wanted = (
            part.replace("http://127.0.0.1:8265", cluster.url).replace("JOB", job).partition("\n")
        )
        # A line of dots stands for any lines, none too: a quick job tells no progress.
        wanted = re.sub(r"^\.\.\.\n", "...", wanted, flags=re.MULTILINE)
        result = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
        assert doctest.OutputChecker().check_output(wanted, result.output, flags), f"{line}\n{result.output}"
        job = (re.findall(r"rayds-try-\w+", result.output) or [job])[0]
    local = CliRunner().invoke(
        cli, ["convert", "-i", "coco", "-f", "rayds", "-o", "here", "--engine", "local"]
    )
    assert local.exit_code == 0
    assert files(tmp_path / "items") == files(tmp_path / "here")


def test_a_command_runs_as_a_job_with_what_it_needs_and_writes_what_it_writes_here(run, data, tmp_path):
    (tmp_path / "labels.txt").write_text("# label:color_rgb:parts:actions\ncat:10,20,30::\ndog:40,50,60::\n")
    words = [
        "convert",
        "-i",
        "coco",
        "-if",
        "coco",
        "-f",
        "voc",
        "--engine",
        "local",
        "--",
        "--label-map",
        "labels.txt",
    ]
    here = CliRunner().invoke(cli, [*words[:9], "-o", "here", *words[9:]])
    assert here.exit_code == 0, here.output
    result = run("submit", "--name", "first try", "--", *words[:9], "-o", "there", *words[9:])
    assert result.exit_code == 0, result.output
    assert "4 items" in result.stdout
    assert "sending rayds" in result.stderr  # the cluster has none
    assert "sending the plug-in tiny" in result.stderr
    assert "sending labels.txt" in result.stderr
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert "cat:10,20,30" in (tmp_path / "there" / "labelmap.txt").read_text()

    listed = json.loads(run("jobs", "list", "--json").stdout)
    assert listed[0]["name"] == "first try"
    assert listed[0]["id"].startswith("rayds-first-try-")
    assert (listed[0]["status"], listed[0]["exit_code"]) == ("SUCCEEDED", 0)
    assert listed[0]["command"].startswith("rayds convert")
    assert not any(j["probe"] for j in listed)
    assert "4 items" in run("jobs", "logs", listed[0]["id"]).stdout
    assert listed[0]["id"] in run("jobs", "list").stdout


def test_a_pipeline_and_a_transform_run_as_jobs(run, data, tmp_path):
    for place in ("here", "there"):  # paths in the file are relative to its folder on this machine
        (tmp_path / f"{place}.yaml").write_text(
            "input: {path: coco, format: coco}\n"
            "steps:\n"
            "  - filter: '/item[annotation/label=\"cat\"]'\n"
            "  - boxes_to_polygons\n"
            "  - rename: {regex: '|(.+)|item_\\1|'}\n"
            f"output: {{path: {place}, format: datumaro}}\n"
            "run: {engine: local}\n"
        )
    here = CliRunner().invoke(cli, ["pipeline", "here.yaml"])
    assert here.exit_code == 0, here.output
    result = run("submit", "--", "pipeline", "there.yaml")
    assert result.exit_code == 0, result.output
    assert "sending there.yaml" in result.stderr
    assert files(tmp_path / "there") == files(tmp_path / "here")
    made = rayds.Dataset.import_from(str(tmp_path / "there"), "datumaro", engine="local")
    assert sorted(item.id for item in made) == ["item_0", "item_2"]

    words = ["transform", "-i", "coco", "-if", "coco", "-t", "random_split", "-f", "rayds", "-o"]
    after = ["--engine", "local", "--", "-s", "a:.5", "-s", "b:.5"]
    assert CliRunner().invoke(cli, [*words, "split", *after]).exit_code == 0
    result = run("submit", "--", *words, "split there", *after)
    assert result.exit_code == 0, result.output
    assert files(tmp_path / "split there") == files(tmp_path / "split")


def test_a_failed_job_ends_with_its_code_and_the_environment_is_not_shown(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "env").write_text("RAYDS_DEBUG=1\nWORD=hunter2\n")
    command = ["convert", "-i", "empty", "-f", "tiny", "-o", "out", "--engine", "local"]
    result = run("submit", "--json", "--env-file", "env", "--", *command)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["exit_code"] == 1
    assert "dashboard shows" in result.stderr
    assert "Traceback" in result.stderr  # the job had the variable
    assert "FAILED" in result.stderr
    id = json.loads(run("jobs", "list", "--json").stdout)[0]["id"]
    for shown in (result.output, run("jobs", "status", "--json", id).output, run("jobs", "logs", id).output):
        assert "hunter2" not in shown


def test_a_typo_sends_nothing(run, jobs):
    before = len(jobs.list())
    result = run("submit", "--", "convert", "-f", "coc")
    assert result.exit_code == 2
    assert "coco" in result.stderr
    assert len(jobs.list()) == before


def test_a_path_that_the_cluster_has_not_is_refused(run):
    result = run("submit", "--", "convert", "-i", "nothing", "-if", "tiny", "-f", "tiny", "-o", "out")
    assert result.exit_code == 2
    assert "nothing is not there on the cluster" in result.stderr
    assert "bucket" in result.stderr


def test_ctrl_c_leaves_the_job_which_is_followed_and_stopped_as_it_says(run, cluster, slow, tmp_path):
    command = [sys.executable, "-m", "rayds", "submit", "--address", cluster.url, "--", *slow]
    env = {**os.environ, "PYTHONPATH": str(PLUGIN), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    for line in process.stdout:
        if "converting to tiny:" in line:  # the progress is shown here
            break
    else:
        pytest.fail(process.stderr.read())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "was destroyed" not in err
    how = {
        line.partition(":")[0]: line.partition(":")[2].split()
        for line in err.splitlines()
        if "rayds jobs" in line
    }
    id = how["stop it"][3]
    assert json.loads(run("jobs", "status", "--json", id).stdout)["status"] == "RUNNING"
    stopped = CliRunner().invoke(cli, how["stop it"][1:])
    assert stopped.exit_code == 0, stopped.output
    assert "STOPPED" in stopped.stdout
    followed = CliRunner().invoke(cli, how["follow it"][1:])
    assert followed.exit_code == 130
    assert "converting to tiny:" in followed.stdout
    assert not (tmp_path / "done").exists()
    assert "ended already" in run("jobs", "stop", id).stdout


def test_no_wait_prints_the_id(run, jobs, slow):
    result = run("submit", "--no-wait", "--", *slow)
    assert result.exit_code == 0
    id = result.stdout.strip()
    assert not jobs.job(id).ended
    assert f"rayds jobs logs -f {id}" in result.stderr
    assert jobs.stop(id)


def test_unknown_jobs_are_told_with_the_nearest(run):
    for command in (["status"], ["logs"], ["logs", "-f"], ["stop"]):
        result = run("jobs", *command, "rayds-nothing")
        assert result.exit_code == 2
        assert "unknown job" in result.stderr


def test_without_a_token_and_with_a_wrong_one_it_says_so(run, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "does not accept the token" in run("jobs", "list").stderr
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run("submit", "--", "formats")
    assert result.exit_code == 1
    assert "asks for a token" in result.stderr


def test_an_explicit_address_wins_over_rays_variables(run, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    result = run("jobs", "list")
    assert result.exit_code == 0, result.output
    assert "RAY_ADDRESS" in result.stderr


class Breaking:
    """A way to a server that breaks every connection that follows a log, for some times, after a moment."""

    def __init__(self, port, times=2):
        self.port, self.times, self.broken = port, times, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        upstream = socket.create_connection(("127.0.0.1", self.port))
        end = None
        with client, upstream, contextlib.suppress(OSError):
            while end is None or time.monotonic() < end:
                ready, _, _ = select.select([client, upstream], [], [], 0.2)
                for s in ready:
                    data = s.recv(65536)
                    if not data:
                        return
                    if s is client and b"/logs/tail" in data and self.broken < self.times:
                        self.broken += 1
                        end = time.monotonic() + 2.5
                    (upstream if s is client else client).sendall(data)


def test_a_log_is_followed_over_broken_connections(jobs, cluster, tmp_path):
    between = Breaking(cluster.dashboard)
    code = (
        "import time\nfor n in range(12): print('line', n, flush=True); time.sleep(0.5)\nraise SystemExit(2)"
    )
    (tmp_path / "job").mkdir()
    id = jobs.submit(f'python -c "{code}"', Package(tmp_path / "job"), {}, kind="lines", metadata={})
    through = Jobs(open_access(between.url, warn=print, note=print))
    text = "".join(through.follow(id))
    between.server.close()
    assert between.broken == 2
    assert [line for line in text.splitlines() if line.startswith("line")] == [f"line {n}" for n in range(12)]
    assert exit_code(jobs.job(id)) == 2  # bad usage that shows only there


@pytest.fixture(scope="module")
def apart(cluster):
    """A folder under a path where a second node, started with it, sees another one."""
    folder = Path("/tmp") / f"rj-apart-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("a node with its own file system needs the right to mount")
    cluster.add_node(wrapper=mount)
    yield folder
    shutil.rmtree(folder)


class TestSeveralNodes:
    """The second node."""

    @pytest.fixture(autouse=True)
    def _two(self, apart, jobs, cluster):
        end = time.monotonic() + 100
        while len(_alive(jobs)) < 2:
            assert time.monotonic() < end, (cluster.folder / "start-1.log").read_text()
            time.sleep(0.3)

    def test_local_paths_are_refused_and_shared_ones_are_not(self, run, apart, tmp_path):
        (apart / "in").mkdir()
        (apart / "in" / "tiny.txt").write_text("a cat 1 2 3 4\n")
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "tiny.txt").write_text("a cat 1 2 3 4\n")
        base = ["submit", "--", "convert", "-if", "tiny", "-f", "tiny", "--engine", "local"]
        result = run(*base, "-i", apart / "in", "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert f"{apart}/in is a local path that the cluster's nodes do not share" in result.stderr
        assert "1 do not see it" in result.stderr
        assert "s3://" in result.stderr
        result = run(*base, "-i", tmp_path / "in", "-o", apart / "out")
        assert result.exit_code == 2
        assert f"{apart}/out is a local path" in result.stderr
        assert "do not see what another writes" in result.stderr
        assert [p.name for p in apart.iterdir()] == ["in"]  # nothing of the probe stays
        result = run(*base, "-i", tmp_path / "in", "-o", tmp_path / "out")  # the same on both
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out" / "tiny.txt").read_text() == "a cat 1 2 3 4\n"


def _alive(jobs):
    """The nodes of a cluster, asked as its dashboard does."""
    answer = jobs._client._do_request("GET", "/nodes?view=summary").json()
    return [n for n in answer["data"]["summary"] if n["raylet"].get("state") == "ALIVE"]
