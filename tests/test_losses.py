"""Attributes that an output can't hold: counted by name, however many different ones there are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayds import losses

KEYS = ["id", "a", "", "a b", 'a"b', "a\\b", "a\nb", "a.b", "$.a", "\N{SNOWMAN}", "a:5,b", "}"]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.floats(-1e9, 1e9), st.text(max_size=4)
)
OBJECTS = st.one_of(
    st.builds(lambda k, n: {k: n}, st.sampled_from(KEYS), st.integers(-5, 10**6)),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    st.none(),
)


def texts_of(objects: list[dict[str, Any] | None]) -> pa.Array:
    texts = [o if o is None else json.dumps(o, separators=(",", ":"), ensure_ascii=False) for o in objects]
    return pa.array(texts, pa.string())


def expected(objects: list[dict[str, Any] | None], keep: frozenset[str]) -> dict[str, tuple[int, str]]:
    found: dict[str, tuple[int, str]] = {}
    for i, o in enumerate(objects):
        for name, value in (o or {}).items():
            if value is None or value is False or name in keep:
                continue
            n, example = found.get(f"attribute {name!r}", (0, f"item {str(i)!r}: {json.dumps(value)[:60]}"))
            found[f"attribute {name!r}"] = (n + 1, example)
    return dict(sorted(found.items()))


@pytest.mark.parametrize("few", [0, 3, losses._FEW])
@given(
    objects=st.lists(OBJECTS, max_size=30), keep=st.frozensets(st.sampled_from(KEYS)), seed=st.integers(0, 9)
)
@settings(deadline=None)
def test_attributes_are_counted_by_name(
    few: int, objects: list[dict[str, Any] | None], keep: frozenset[str], seed: int
) -> None:
    rows = np.random.default_rng(seed).random(len(objects)) < 0.7
    ids = pa.array([str(i) for i in range(len(objects))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_FEW", few)
        found = losses._attribute_losses(
            "attribute", texts_of(objects), keep, rows, np.arange(len(objects)), ids
        )
    assert found == expected([o if r else None for o, r in zip(objects, rows, strict=True)], keep)


def test_another_number_for_each_of_many() -> None:
    objects = [{"id": i} if i % 3 else {"id": i, "x": True} for i in range(1000)]
    found = losses._attribute_losses(
        "attribute",
        texts_of(objects),
        False,
        np.ones(1000, bool),
        np.arange(1000),
        pa.array(map(str, range(1000))),
    )
    assert found == {"attribute 'id'": (1000, "item '0': 0"), "attribute 'x'": (334, "item '0': true")}
