"""The way to a cluster's Jobs server: its address, and the token that opens it.

Ray sends a token only when its own process is in token mode, which is fixed when Ray is imported; so the token is
found here, in Ray's order, and sent as a header.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rayds.errors import EngineError, RaydsError, UsageError

if TYPE_CHECKING:
    from requests import PreparedRequest

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # in this order they override an address given to Ray
# Needs the token where token mode is on, as every path below /api; changes nothing.
PROBE = "/api/version"
SECONDS = 10.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Access:
    """A Jobs server that answers: its URL, and the headers that every request needs. version: Ray's, there."""

    url: str
    version: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def open_access(
    address: str | None, *, insecure: bool = False, require_auth: bool = False, warn: Tell, note: Tell
) -> Access:
    """Find the Jobs server and what it asks for.

    insecure: send the token over plain http to another machine. require_auth: refuse a server that takes jobs
    without a token. Raises EngineError when nobody answers, UsageError when a rule of these is broken.
    """
    url = server_url(address, note)
    status, version = _ask(url, {})
    if status == 200:
        if require_auth:
            raise RaydsError(
                f"{url} takes jobs without a token, and --require-auth is set; start the cluster with RAY_AUTH_MODE=token"
            )
        if not is_loopback(url):
            warn(
                f"{url} TAKES JOBS WITHOUT A TOKEN: whoever reaches it runs code on that cluster. "
                "Start it with RAY_AUTH_MODE=token (see docs/cluster.md)"
            )
        return Access(url, version)
    token, source = find_token(warn)
    if token is None:
        raise RaydsError(
            f"{url} asks for a token, and there is none here: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or copy the "
            "cluster's token to ~/.ray/auth_token ('ray get-auth-token' prints it there)"
        )
    if urlsplit(url).scheme == "http" and not is_loopback(url) and not insecure:
        raise UsageError(
            f"the token would go to {url} in clear text; use https, or a tunnel to 127.0.0.1 "
            "('ray dashboard cluster.yaml', 'ssh -L 8265:127.0.0.1:8265 HOST'), or --insecure in a network that you trust"
        )
    headers = {"Authorization": f"Bearer {token}"}
    status, version = _ask(url, headers)
    if status != 200:
        raise RaydsError(
            f"{url} does not accept the token of {source} (HTTP {status}); 'ray get-auth-token' on the cluster prints its token"
        )
    return Access(url, version, headers)


def find_token(warn: Tell) -> tuple[str | None, str]:
    """(the token, where it was found), looked for as Ray does."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "").strip()
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    if not named and not path.is_file():
        return None, ""
    try:
        token = path.read_text().strip()
        mode = path.stat().st_mode
    except OSError as e:
        raise UsageError(f"{path} (of RAY_AUTH_TOKEN_PATH): {e.strerror}") from e
    if not token:
        raise UsageError(f"{path} holds no token; 'ray get-auth-token --generate' makes one")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        warn(f"{path} may be read by others: chmod 600 {path}")
    return token, str(path)


def server_url(address: str | None, note: Tell) -> str:
    """The URL of the Jobs server that --address names, or else a variable, or else this machine's."""
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if address is None:
        address = next(iter(given.values()), DEFAULT_ADDRESS)
    else:
        for name, value in given.items():
            if value != address:
                note(f"--address is used; {name}, which Ray would prefer, is not")
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.username or parts.password:
        raise UsageError(
            "the address holds a name or password; a token is passed by RAY_AUTH_TOKEN or its file"
        )
    if parts.scheme in ("http", "https"):
        if not parts.hostname:
            raise UsageError(f"{address!r} is no address of a Jobs server, like {DEFAULT_ADDRESS}")
        return address.rstrip("/")
    if parts.scheme not in ("", "ray"):
        raise UsageError(
            f"{address!r}: a Jobs server is named by http:// or https://, like {DEFAULT_ADDRESS}"
        )
    return _of_cluster(address)


def _of_cluster(address: str) -> str:
    """The Jobs server of "auto", host:port of a cluster, or ray://: Ray asks the cluster for it."""
    from ray.dashboard.utils import get_address_for_submission_client

    try:
        with without_variables():
            url: str = get_address_for_submission_client(address)
    except Exception as e:  # Ray raises many kinds
        raise EngineError(
            f"no Ray cluster is found by {address!r} ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}); "
            f"give the URL of its dashboard, like {DEFAULT_ADDRESS}"
        ) from e
    return url.rstrip("/")


@contextmanager
def without_variables() -> Iterator[None]:
    """Hide the variables that override an address given to Ray's client."""
    held = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine and no further."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _ask(url: str, headers: Mapping[str, str]) -> tuple[int, str]:
    """(HTTP status, Ray's version if it was told) of a Jobs server."""
    import requests

    try:
        # No redirects: a token goes to the named server only. No .netrc: its password is not for this.
        with requests.Session() as session:
            session.auth = _no_netrc
            answer = session.get(
                f"{url}{PROBE}", headers=dict(headers), timeout=SECONDS, allow_redirects=False
            )
        if answer.status_code == 200:
            return 200, str(answer.json()["ray_version"])
    except (ValueError, KeyError) as e:
        raise EngineError(f"{url} answers, but it is no Jobs server of Ray") from e
    except requests.RequestException as e:
        raise EngineError(
            f"no Jobs server answers at {url} ({type(e).__name__}); is the cluster up, and its dashboard's port "
            "(8265) or the tunnel open to here?"
        ) from e
    if answer.status_code not in (401, 403):
        raise EngineError(f"{url} answers with HTTP {answer.status_code}; it is no Jobs server of Ray")
    return answer.status_code, ""


def _no_netrc(request: PreparedRequest) -> PreparedRequest:
    return request
