"""The token: where it is found, where it is sent, what is told of clusters that ask for none."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from rayds.errors import EngineError, RaydsError, UsageError
from rayds.jobs.auth import find_token, is_loopback, open_access, server_url

TOKEN = "a1b2c3d4"
RAY_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    for name in RAY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def server(monkeypatch):
    """A server that asks for TOKEN if `server.closed`, and keeps what it was sent; also reached as cluster.example."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            sent = self.headers.get("Authorization")
            self.server.sent.append(sent)
            status = 200 if not self.server.closed or sent == f"Bearer {TOKEN}" else 403 if sent else 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": "2.60.0"}).encode() if status == 200 else b"no")

        def log_message(self, *args):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.closed, found.sent = True, []
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    real = socket.getaddrinfo

    def resolve(host, *args, **kwargs):
        return real("127.0.0.1" if host == "cluster.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    yield found
    found.shutdown()
    found.server_close()


class Told(list):
    """Warnings and notes."""

    def open(self, url, **kwargs):
        return open_access(url, warn=self.append, note=self.append, **kwargs)


def here(server):
    return f"http://127.0.0.1:{server.server_port}"


def elsewhere(server):
    return f"http://cluster.example:{server.server_port}"


class TestFinding:
    def test_the_variable_wins_over_its_file_and_that_over_the_one_at_home(self, monkeypatch, tmp_path):
        home = tmp_path / "home" / ".ray" / "auth_token"
        home.parent.mkdir(parents=True)
        home.write_text("home\n")
        home.chmod(0o600)
        named = tmp_path / "named"
        named.write_text(" named \n")
        named.chmod(0o600)
        told = []
        assert find_token(told.append) == ("home", str(home))
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
        assert find_token(told.append) == ("named", str(named))
        monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
        assert find_token(told.append) == ("variable", "RAY_AUTH_TOKEN")
        assert told == []

    def test_none(self):
        assert find_token(print)[0] is None

    def test_a_file_for_all_to_read_is_told(self, monkeypatch, tmp_path):
        path = tmp_path / "token"
        path.write_text("x")
        path.chmod(0o644)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        told = []
        assert find_token(told.append)[0] == "x"
        assert f"chmod 600 {path}" in told[0]

    def test_a_named_file_must_be_there_and_hold_one(self, monkeypatch, tmp_path):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
        with pytest.raises(UsageError, match="nothing.*No such file"):
            find_token(print)
        (tmp_path / "nothing").write_text("\n")
        with pytest.raises(UsageError, match="holds no token"):
            find_token(print)


class TestAccess:
    def test_the_token_is_sent_only_when_it_is_asked_for(self, server, monkeypatch):
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        access = Told().open(here(server))
        assert access.headers == {"Authorization": f"Bearer {TOKEN}"}
        assert server.sent == [None, f"Bearer {TOKEN}"]
        server.closed = False
        assert Told().open(here(server)).headers == {}
        assert server.sent[2:] == [None]

    def test_it_is_not_shown(self, server, monkeypatch):
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        assert TOKEN not in repr(Told().open(here(server)))

    def test_a_missing_token_says_where_to_put_one(self, server):
        with pytest.raises(RaydsError, match=r"RAY_AUTH_TOKEN.*~/\.ray/auth_token"):
            Told().open(here(server))

    def test_a_wrong_token_is_told_without_itself(self, server, monkeypatch):
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong-one")
        with pytest.raises(RaydsError, match="does not accept the token of RAY_AUTH_TOKEN") as e:
            Told().open(here(server))
        assert "wrong-one" not in str(e.value)

    def test_never_in_clear_text_to_another_machine(self, server, monkeypatch):
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        with pytest.raises(UsageError, match="clear text.*--insecure"):
            Told().open(elsewhere(server))
        assert server.sent == [None]
        assert Told().open(elsewhere(server), insecure=True).headers
        assert server.sent[1:] == [None, f"Bearer {TOKEN}"]

    def test_an_open_cluster_elsewhere_is_told_loudly(self, server):
        server.closed = False
        told = Told()
        told.open(elsewhere(server))
        assert "TAKES JOBS WITHOUT A TOKEN" in told[0]
        told = Told()
        told.open(here(server))
        assert told == []

    @pytest.mark.parametrize("place", [here, elsewhere])
    def test_require_auth_refuses_an_open_cluster(self, server, place):
        server.closed = False
        with pytest.raises(RaydsError, match="--require-auth"):
            Told().open(place(server), require_auth=True)

    def test_nobody_answers(self, server):
        server.shutdown()
        server.server_close()
        with pytest.raises(EngineError, match="no Jobs server answers"):
            Told().open(here(server))


class TestAddress:
    def test_an_explicit_one_wins_over_the_variables_and_that_is_told(self, monkeypatch):
        monkeypatch.setenv("RAY_ADDRESS", "http://other:1")
        told = []
        assert server_url("http://mine:2/", told.append) == "http://mine:2"
        assert "RAY_ADDRESS" in told[0]

    def test_without_one_the_variables_count(self, monkeypatch):
        assert server_url(None, print) == "http://127.0.0.1:8265"
        monkeypatch.setenv("RAY_ADDRESS", "http://second:1")
        assert server_url(None, print) == "http://second:1"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://first:1")
        assert server_url(None, print) == "https://first:1"

    @pytest.mark.parametrize("address", ["ftp://x", "http://", "http://user:secret@host:1"])
    def test_what_is_none(self, address):
        with pytest.raises(UsageError) as e:
            server_url(address, print)
        assert "secret" not in str(e.value)

    @pytest.mark.parametrize(
        ("url", "yes"),
        [
            ("http://127.0.0.1:1", True),
            ("http://127.9.9.9", True),
            ("http://[::1]:1", True),
            ("http://localhost:1", True),
            ("http://10.0.0.1:1", False),
            ("http://127.0.0.1.example:1", False),
            ("http://localhost.example", False),
        ],
    )
    def test_loopback(self, url, yes):
        assert is_loopback(url) is yes


def test_an_open_cluster_elsewhere_gets_no_token_from_rays_client_either(server):
    """In token mode Ray's client sends one by itself; its mode is fixed when Ray is imported, so in a process of its own."""
    server.closed = False
    url = f"http://0.0.0.0:{server.server_port}"  # this machine, but by no loopback address
    code = f"from rayds.jobs import Jobs, open_access\nJobs(open_access({url!r}, warn=print, note=print))"
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TAKES JOBS WITHOUT A TOKEN" in done.stdout
    assert len(server.sent) >= 2  # ours and those of Ray's client
    assert not any(server.sent)
