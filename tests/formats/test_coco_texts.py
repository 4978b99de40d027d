"""The texts that COCO files are made of, one by one where they are odd: what stands beside what rayds writes itself."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from rayds.formats.coco.ids import image_ids
from rayds.formats.coco.records import other_attributes, own_members

TEXTS = [
    '{"coco":{"a":1}}',
    '{"coco":{"a":{"b":[1,{}]},"c":"}}"}}',
    '{"coco":{"a":{"b":1},"c":2}}',
    '{"coco":{"a":1},"voc":{"x":1}}',
    '{"voc":{"x":1},"coco":{"é":"\\"},\\""}}',
    '{"voc":{"x":1}}',
    '{"coco":{}}',
    '{"coco": {"a": 1}}',
    "{}",
    None,
]


@pytest.mark.parametrize("texts", [[t] for t in TEXTS] + [TEXTS])
def test_what_only_coco_has(texts: list[str | None]) -> None:
    found = own_members(pa.array(texts, pa.string())).to_pylist()
    expected = [json.loads(t).get("coco") or None if t else None for t in texts]
    assert [json.loads(f"{{{m}}}") if m else m for m in found] == expected


@pytest.mark.parametrize("alone", [True, False])
def test_attributes_and_ids_of_images(alone: bool) -> None:
    cases: list[tuple[str | None, int | None, str | None]] = [
        ('{"id":5}', 5, None),
        ('{"id":-5}', -5, None),
        ('{"id":5,"a":[1]}', 5, '{"a":[1]}'),
        ('{"a":{"id":7}}', None, '{"a":{"id":7}}'),
        ('{"id":"6"}', 6, None),
        ('{"id":"x"}', None, None),
        ('{"id": 8}', 8, None),
        ('{"id":123456789012345678}', 123456789012345678, None),
        ('{"id":9223372036854775807}', 9223372036854775807, None),
        ('{"id":92233720368547758070}', None, None),
        ('{"id":null}', None, None),
        ("{}", None, None),
        (None, None, None),
    ]
    for part in [[case] for case in cases] if alone else [cases]:
        texts = pa.array([text for text, _, _ in part], pa.string())
        table = pa.table({"attributes": texts})
        assert image_ids(table).to_pylist() == [id for _, id, _ in part]
        assert other_attributes(texts).to_pylist() == [rest for _, _, rest in part]
