"""Records of unfinished outputs as JSON: what they may hold."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rayds.encoding import EncodingError, decode, encode
from rayds.losses import Summary


def test_records_hold_no_code() -> None:
    value = {
        "a": (1, 2.5, None, True), 3: {"x"}, "!": [b"\0", frozenset({1})], "n": np.arange(6.0).reshape(2, 3),
        "s": Summary(3, losses={"kind": (1, "item")}), "t": np.uint64(2**63),
    }  # fmt: skip
    again = decode(json.loads(json.dumps(encode(value))), ["rayds"])
    assert np.array_equal(again.pop("n"), value.pop("n"))
    assert again == value
    assert type(again["t"]) is np.uint64
    for kind in ("subprocess:Popen", "os:system", "rayds.storage:Storage", "rayds.nowhere:X"):
        with pytest.raises(EncodingError):
            decode({"!": kind, "value": {"args": ["true"]}}, ["rayds"])
    with pytest.raises(EncodingError):
        decode(encode(Summary()), ["numpy"])
    with pytest.raises(EncodingError):
        encode(np.array([object()]))
