"""How large files are put together on an object store: nothing is lost, and no part is too small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayds.multipart import MIN_PART, plan_parts

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=30).map(lambda b: (b, len(b))),
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 300)),
    ),
    max_size=40,
)


@given(PIECES, st.integers(1, 20), st.integers(20, 100))
def test_parts_of_any_pieces(pieces: list[tuple[bytes | str, int]], least: int, most: int) -> None:
    parts = plan_parts(pieces, min_part=least, max_copy=most, max_parts=10**6)
    # every byte once, in order
    made = [(s.source, n) for p in parts for s in p.slices for n in range(s.start, s.end)]
    assert made == [(source, n) for source, size in pieces for n in range(size)]
    sizes = [sum(s.size for s in p.slices) for p in parts]
    assert all(n >= least for n in sizes[:-1])
    for part, size in zip(parts, sizes, strict=True):
        if part.copy:
            (only,) = part.slices
            assert isinstance(only.source, str)
            assert least <= size <= max(most, 2 * least)
        else:  # held in memory: the literal bytes, and little more
            assert size < 2 * least + sum(s.size for s in part.slices if isinstance(s.source, bytes))


def test_large_files_are_copied_and_small_ones_brought_together() -> None:
    parts = plan_parts([(b"[", 1), ("a", 100 * MIN_PART), (b",", 1), ("b", 2000 * MIN_PART), (b"]", 1)])
    assert sum(p.copy for p in parts) >= 20
    assert sum(s.size for p in parts if not p.copy for s in p.slices) <= 3 * 2 * MIN_PART


def test_not_more_parts_than_are_allowed() -> None:
    pieces: list[tuple[bytes | str, int]] = [(f"part-{i}", MIN_PART + i) for i in range(25_000)]
    parts = plan_parts(pieces)
    assert len(parts) <= 10_000
    assert sum(s.size for p in parts for s in p.slices) == sum(size for _, size in pieces)
