"""Polygons drawn many at a time are those that pycocotools draws one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from rayds import raster
from rayds.raster import polygon_rles

Polygon = tuple[list[float], int, int]  # x0, y0, x1, y1, ..., height, width


def drawn_alone(points: list[float], height: int, width: int) -> str:
    if len(points) < 6:
        found = coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    else:
        found = coco_mask.frPyObjects([points], height, width)[0]
    text: str = found["counts"].decode()
    return text


def drawn_together(polygons: list[Polygon]) -> pa.Array:
    return polygon_rles(
        np.array([v for p, _, _ in polygons for v in p], np.float64),
        np.array([len(p) for p, _, _ in polygons], np.int64),
        np.array([h for _, h, _ in polygons], np.int64),
        np.array([w for _, _, w in polygons], np.int64),
    )


def check(polygons: list[Polygon]) -> None:
    assert drawn_together(polygons).to_pylist() == [drawn_alone(*p) for p in polygons]


sizes = st.integers(1, 40)
anywhere = st.one_of(
    st.integers(-20, 60).map(float),  # on the borders of pixels, and far outside
    st.integers(-40, 120).map(lambda n: n / 2),
    st.integers(-200, 600).map(lambda n: n / 10),
    st.floats(-30, 70, allow_nan=False),
)
polygons = st.tuples(st.lists(anywhere, max_size=24), sizes, sizes)


@given(st.lists(polygons, max_size=6))
@example([([0, 0, 4, 0, 4, 4, 0, 4], 4, 4), ([], 3, 5), ([1, 1, 1, 1, 1, 1], 4, 4)])
@example([([0, 0, 9, 9, 0, 9, 9, 0], 9, 9)])  # crosses itself
@example([([-5, -5, 50, -5, 50, 50, -5, 50], 7, 3)])  # covers the image
@example([([2, 0, 2, 9, 2.5, 9, 2.5, 0], 9, 9)])  # between two columns
@example([([1, 2, 3, 4, 5, 6, 7], 8, 8)])  # a number too many
def test_any_polygons(some: list[Polygon]) -> None:
    check(some)


def star(seed: int, corners: int, height: int, width: int) -> Polygon:
    random = np.random.default_rng(seed)
    angle = np.sort(random.uniform(0, 2 * np.pi, corners))
    radius = random.uniform(0.1, 0.7, corners)
    points = np.stack([width * (0.5 + radius * np.cos(angle)), height * (0.5 + radius * np.sin(angle))], 1)
    return points.ravel().round(int(seed % 4)).tolist(), height, width


@given(
    st.lists(
        st.builds(
            star, st.integers(0, 1 << 20), st.integers(3, 60), st.integers(1, 400), st.integers(1, 400)
        ),
        max_size=5,
    )
)
def test_shapes_with_many_corners(some: list[Polygon]) -> None:
    check(some)


@pytest.mark.parametrize(("crossings", "pixels"), [(1, 1 << 32), (50, 1 << 32), (1 << 18, 20_000)])
def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch, crossings: int, pixels: int) -> None:
    some = [star(seed, 3 + seed % 30, 50 + seed, 90 - seed) for seed in range(60)]
    some.insert(7, ([], 5, 5))
    monkeypatch.setattr(raster, "CROSSINGS", crossings)
    monkeypatch.setattr(raster, "PIXELS", pixels)
    check(some)


def test_runs_longer_than_31_bits() -> None:
    side = 60_000  # pixels, of which more than 2**31 are before or after the polygon
    check([([5, 5, 9, 5, 9, 9], side, side), ([50_000, 5, 50_009, 5, 50_009, 9], side, side)])


def test_no_polygons() -> None:
    assert drawn_together([]).to_pylist() == []


def test_coordinates_beyond_all_bounds_end_at_the_border() -> None:
    found = drawn_together([([0, 0, 1e300, 0, 1e300, 1e300, 0, 1e300], 3, 4)])
    assert found.to_pylist() == [drawn_alone([0, 0, 9, 0, 9, 9, 0, 9], 3, 4)]
