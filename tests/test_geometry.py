"""Geometry of annotations: areas, boxes, outlines, drawn polygons, covered masks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayds import geometry
from rayds.annotations import Mask, Polygon, decode_rle, encode_mask, rle_runs

coordinate = st.floats(-50, 50).map(lambda v: round(v, 3))
outline = st.lists(coordinate, min_size=6, max_size=16).map(lambda v: v[: len(v) // 2 * 2])


@given(st.lists(st.one_of(st.just([]), outline), max_size=6))
def test_areas_and_boxes_of_many_are_those_of_each(polygons: list[list[float]]) -> None:
    values = np.array([v for p in polygons for v in p], float)
    lengths = np.array([len(p) for p in polygons], np.int64)
    areas = geometry.polygon_areas(values, lengths)
    boxes = geometry.enclosing_boxes(values, lengths)
    expected = [Polygon(p) if p else None for p in polygons]
    assert np.allclose(areas, [p.get_area() if p else 0 for p in expected])
    assert np.allclose(
        boxes.reshape(-1, 4), np.array([p.get_bbox() if p else (0, 0, 0, 0) for p in expected]).reshape(-1, 4)
    )


@given(st.lists(st.booleans(), min_size=42, max_size=42))
def test_area_and_box_of_a_mask(bits: list[bool]) -> None:
    image = np.array(bits).reshape(6, 7)
    mask = Mask(image)
    assert geometry.rle_area(mask.rle) == image.sum()
    x, y, w, h = geometry.rle_bbox(mask.rle)
    rows, columns = np.nonzero(image)
    if len(rows):
        assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    else:
        assert (w, h) == (0, 0)


def is_broken(counts: str, height: int, width: int) -> bool:
    try:
        rle_runs({"size": [height, width], "counts": counts})
    except ValueError:
        return True
    return False


bit_masks = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 99)).map(
    lambda t: np.random.default_rng(t[2]).random(t[:2]) < t[2] / 100
)
whole = bit_masks.map(lambda m: (encode_mask(m)["counts"], *m.shape))
cut = st.tuples(whole, st.integers(0, 3)).map(lambda t: (t[0][0][: t[1]], *t[0][1:]))
other_size = whole.map(lambda t: (t[0], t[1] + 1, t[2]))
noise = st.tuples(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.integers(-1, 3),
    st.integers(-1, 3),
)


@given(st.lists(st.one_of(whole, cut, other_size, noise, st.none()), max_size=8))
def test_broken_masks_among_many_are_those_that_are_broken_alone(
    masks: list[tuple[str, int, int] | None],
) -> None:
    counts = pa.array([m and m[0] for m in masks], pa.string())
    height, width = (np.array([m[k] if m else -1 for m in masks], np.int64) for k in (1, 2))
    assert geometry.broken_rles(counts, height, width).tolist() == [
        m is not None and is_broken(*m) for m in masks
    ]


def test_polygons_are_drawn_as_one_mask() -> None:
    rle = geometry.polygons_to_rle([[0, 0, 3, 0, 3, 2, 0, 2], [2, 1, 5, 1, 5, 4, 2, 4]], 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[0:2, 0:3] = expected[1:4, 2:5] = True
    assert (decode_rle(rle) == expected).all()


def test_polygons_beyond_the_image_are_cut() -> None:
    rle = geometry.polygons_to_rle([[-5, -5, 50, -5, 50, 50, -5, 50]], 3, 4)
    assert decode_rle(rle).all()


def test_union() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[0], b[:, 0] = True, True
    merged = geometry.merge_rles([encode_mask(a), encode_mask(b)])
    assert (decode_rle(merged) == (a | b)).all()
    assert geometry.merge_rles([encode_mask(a)]) == encode_mask(a)


def test_outlines() -> None:
    image = np.zeros((20, 20), bool)
    image[2:8, 3:9] = image[12:18, 10:19] = True
    image[0, 0] = True  # a single pixel has no outline
    outlines = geometry.mask_to_polygons(image)
    boxes = sorted(Polygon(p).get_bbox() for p in outlines)
    assert boxes == [(3, 2, 5, 5), (10, 12, 8, 5)]
    drawn = decode_rle(geometry.polygons_to_rle(outlines, 20, 20))
    assert not (drawn & ~image).any()
    assert (image & ~drawn).sum() <= 6 + 6 + 9 + 6 + 1  # the right and lower borders, the single pixel
    assert geometry.rle_to_polygons(encode_mask(image)) == outlines
    assert geometry.mask_to_polygons(np.zeros((3, 3), bool)) == []


def test_covered_parts_are_cut_off() -> None:
    low, high, top = (np.zeros((4, 4), bool) for _ in range(3))
    low[:2], high[1:3], top[1] = True, True, True
    cropped = geometry.crop_covered([encode_mask(m) for m in (low, high, top)])
    expected = [low & ~high, high & ~top, top]
    for rle, image in zip(cropped, expected, strict=True):
        assert rle is not None
        assert (decode_rle(rle) == image).all()
    assert geometry.crop_covered([encode_mask(top), encode_mask(high)])[0] is None
    assert geometry.crop_covered([]) == []


@pytest.mark.parametrize("n", [0, 1])
def test_nothing(n: int) -> None:
    assert geometry.polygon_areas(np.zeros(0), np.zeros(n, np.int64)).tolist() == [0] * n
    assert geometry.enclosing_boxes(np.zeros(0), np.zeros(n, np.int64)).tolist() == [[0, 0, 0, 0]] * n
