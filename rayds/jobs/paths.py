"""What a command that runs elsewhere may name: paths that are seen from every node, and no secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayds.errors import UsageError

_IN_URL = re.compile(r"://[^/@\s]+:[^/@\s]+@")
_SIGNED = re.compile(
    r"[?&](x-amz-(signature|credential|security-token)|sig|signature|token|awsaccesskeyid)=", re.I
)
_SECRET = re.compile(
    r"^-*(.*[-_.])?(key|secret|password|passwd|pwd|token|credentials?|(access|api|secret|private|account)[-_]?key)$",
    re.I,
)
REMEDY = (
    "put the data into a bucket (s3://...) or a folder that all nodes share, such as NFS; "
    "or run where the data is, without submit"
)


def check_secrets(words: Sequence[str]) -> None:
    """Raise UsageError for a secret on a command line: everybody on the cluster sees it there. It is not repeated."""
    for word in words:
        if _IN_URL.search(word) or _SIGNED.search(word):
            raise UsageError(f"a URL on the command line holds credentials; {_INSTEAD}")
        name, equals, _ = word.partition("=")
        if _SECRET.match(name) and (equals or name.startswith("--")):
            raise UsageError(f"{name.lstrip('-')!r} on the command line looks like a secret; {_INSTEAD}")


_INSTEAD = (
    "a job's command is shown to everybody on its cluster. Give credentials to the nodes by their role, "
    "or by --env-file"
)


def check_paths(
    told: Mapping[str, Any], inputs: Sequence[str], outputs: Sequence[str], here: Mapping[str, str | None],
    warn: Callable[[str], None],
) -> None:  # fmt: skip
    """Raise UsageError for a local path that the nodes of a cluster do not all see as the same.

    told: the probe's answer; here: how the inputs look on this machine (None: not there).
    """
    shared = told["shared"]
    if not shared["workers"]:
        raise UsageError(
            f"{(*inputs, *outputs)[0]} is a local path, and no node that runs tasks came up in time to look whether it "
            f"sees it; {REMEDY}"
        )
    several = shared["nodes"] > 0
    for path in inputs:
        looks = shared["inputs"][path]
        if all(look is None for look in looks):
            raise UsageError(f"{path} is not there on the cluster; {REMEDY}")
        if len(set(looks)) > 1:
            missing = sum(look is None for look in looks)
            state = f"{missing} do not see it" if missing else "they see different things there"
            raise UsageError(
                f"{path} is a local path that the cluster's nodes do not share: of {len(looks)} nodes, {state}; {REMEDY}"
            )
        if here.get(path) not in (None, looks[0]):
            warn(f"{path} is not the same on the cluster as on this machine; the job reads the cluster's")
    for path in outputs:
        seen = shared["outputs"][path]
        if not seen[0]:
            raise UsageError(f"{path}: the job may not write there on the cluster; {REMEDY}")
        if several and not all(seen):
            raise UsageError(
                f"{path} is a local path that the cluster's nodes do not share: of {len(seen)} nodes, "
                f"{sum(not s for s in seen)} do not see what another writes there; {REMEDY}"
            )
