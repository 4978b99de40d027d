"""Polygons and lines cut at straight lines along the axes, and the parts of cut ones joined again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ring = npt.NDArray[np.float64]  # (n, 2); closed: the last point is followed by the first
Line = npt.NDArray[np.float64]  # (n, 2); open
Rect = tuple[float, float, float, float]  # x0, y0, x1, y1


def area(ring: Ring) -> float:
    """The area of a ring, negative when it runs counter-clockwise on the screen."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def length(line: Line) -> float:
    """The length of a line."""
    return float(np.hypot(*np.diff(line, axis=0).T).sum())


def clip_polygon(ring: Ring, rect: Rect) -> list[Ring]:
    """The parts of a polygon in a rectangle, which may be several for a concave one; without those of no area."""
    rings = [ring]
    for axis, bound, sign in ((0, rect[0], -1), (0, rect[2], 1), (1, rect[1], -1), (1, rect[3], 1)):
        rings = [part for r in rings for part in _half(r, axis, bound, sign)]
    return rings


def _half(ring: Ring, axis: int, bound: float, sign: int) -> list[Ring]:
    """The parts of a polygon on one side of a line: sign * (bound - coordinate) >= 0.

    Its chains of points on that side end on the line. Along it every second stretch between ends is inside of the
    polygon: it joins the two ends. That parts a concave polygon, where Sutherland and Hodgman's algorithm does not.
    """
    inside = sign * (bound - ring[:, axis]) >= 0
    if inside.all():
        return [ring]
    if not inside.any():
        return []
    start = int(np.flatnonzero(~inside)[0])
    ring, inside = np.roll(ring, -start, 0), np.roll(inside, -start)
    edges = np.flatnonzero(np.diff(inside.astype(np.int8)) == 1) + 1  # each the first of a run inside
    chains = []
    for first in edges.tolist():
        last = first
        while last + 1 < len(ring) and inside[last + 1]:
            last += 1
        after = ring[(last + 1) % len(ring)]
        ends = [
            _crossing(ring[first - 1], ring[first], axis, bound),
            _crossing(ring[last], after, axis, bound),
        ]
        chains.append(np.vstack([ends[0], ring[first : last + 1], ends[1]]))
    return _joined(chains, 1 - axis)


def _crossing(a: Ring, b: Ring, axis: int, bound: float) -> Ring:
    t = (bound - a[axis]) / (b[axis] - a[axis])
    point: Ring = a + t * (b - a)
    point[axis] = bound
    return point


def _joined(chains: list[Ring], along: int) -> list[Ring]:
    """Rings of chains that all end on one line, joined there two by two."""
    places = np.array([p for c in chains for p in (c[0, along], c[-1, along])])
    order = np.argsort(places, kind="stable")
    partner = np.empty(len(order), np.int64)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    used: set[int] = set()
    rings = []
    for k in range(len(chains)):
        if k in used:
            continue
        parts, end = [], 2 * k  # enter a chain by this end
        while end // 2 not in used:
            used.add(end // 2)
            parts.append(chains[end // 2][:: -1 if end % 2 else 1])
            end = int(partner[end ^ 1])
        ring = without_repeats(np.vstack(parts))
        if len(ring) >= 3 and abs(area(ring)) > 0:
            rings.append(ring)
    return rings


def without_repeats(ring: Ring) -> Ring:
    """The ring without points that are the same as the one before."""
    kept: Ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    return kept


def clip_line(line: Line, rect: Rect) -> list[Line]:
    """The parts of a line in a rectangle, in its direction; without those of no length (Liang and Barsky)."""
    a, d = line[:-1], np.diff(line, axis=0)
    low, high = np.zeros(len(a)), np.ones(len(a))
    for axis in (0, 1):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.stack([(rect[axis] - a[:, axis]) / d[:, axis], (rect[axis + 2] - a[:, axis]) / d[:, axis]])
        still = d[:, axis] == 0
        within = (a[:, axis] >= rect[axis]) & (a[:, axis] <= rect[axis + 2])
        enter, leave = np.fmin(*t), np.fmax(*t)
        low = np.maximum(low, np.where(still, np.where(within, 0, 2), enter))
        high = np.minimum(high, np.where(still, np.where(within, 1, -1), leave))
    parts: list[list[Ring]] = []
    joined = False
    for i in np.flatnonzero(low < high).tolist():
        begin = a[i] if low[i] == 0 else _on_border(a[i] + low[i] * d[i], rect)
        end = line[i + 1] if high[i] == 1 else _on_border(a[i] + high[i] * d[i], rect)
        if joined and low[i] == 0 and parts and (parts[-1][-1] == begin).all():
            parts[-1].append(end)
        else:
            parts.append([begin, end])
        joined = bool(high[i] == 1)
    return [np.vstack(p) for p in parts]


def _on_border(point: Ring, rect: Rect) -> Ring:
    """A point that was computed to lie on a border of the rectangle, exactly there, and never beyond it."""
    out = np.clip(point, rect[:2], rect[2:])
    for axis in (0, 1):
        for bound in (rect[axis], rect[axis + 2]):
            if abs(out[axis] - bound) < 1e-9 * max(1.0, abs(bound)):
                out[axis] = bound
    return out


# joining what was cut

Cuts = tuple[frozenset[float], frozenset[float]]  # the x, and the y, of lines along which was cut


def join_rings(rings: Sequence[Ring], cuts: Cuts) -> list[Ring] | None:
    """The polygons that were cut into these rings, which touch each other but don't overlap; None: there is a hole.

    Sides that two rings share in opposite directions vanish; the others make the rings of the whole.
    """
    whole = [r if area(r) > 0 else r[::-1] for r in rings]
    points = _matched(whole)
    ends = [(p, q) for ring in points for p, q in _sides(ring, points, cuts)]
    sides: dict[tuple[tuple[float, float], tuple[float, float]], int] = {}
    for p, q in ends:
        if sides.get((q, p)):
            sides[q, p] -= 1
        else:
            sides[p, q] = sides.get((p, q), 0) + 1
    following: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for (p, q), n in sides.items():
        following.setdefault(p, []).extend([q] * n)
    made = []
    for first in list(following):
        while following.get(first):
            ring = [first]
            while following.get(ring[-1]):
                at = following[ring[-1]]
                ring.append(_next(ring, at) if len(at) > 1 else at.pop())
                if ring[-1] == first and not (len(following.get(first, ())) and len(ring) < 3):
                    break
            if ring[-1] != first:
                return None
            found = _plain(np.array(ring[:-1]), cuts)
            if len(found) >= 3 and abs(area(found)) > 1e-9:
                if area(found) < 0:
                    return None
                made.append(found)
    return made


def _next(ring: list[tuple[float, float]], choices: list[tuple[float, float]]) -> tuple[float, float]:
    """Of several ways on from the last point, the one that turns most to the inside: it keeps touching parts apart."""
    if len(ring) < 2:
        return choices.pop()
    back = np.subtract(ring[-2], ring[-1])
    angle = [
        (np.arctan2(*np.subtract(c, ring[-1])[::-1]) - np.arctan2(back[1], back[0])) % (2 * np.pi)
        for c in choices
    ]
    return choices.pop(int(np.argmax(angle)))


def _matched(rings: Sequence[Ring]) -> list[list[tuple[float, float]]]:
    """The rings as points, those that are equal but for rounding made equal."""
    known: dict[tuple[int, int], tuple[float, float]] = {}
    out = []
    for ring in rings:
        points = []
        for x, y in ring.tolist():
            key = (round(x * 1e6), round(y * 1e6))
            near = next(
                (
                    known[k]
                    for dx in (0, -1, 1)
                    for dy in (0, -1, 1)
                    if (k := (key[0] + dx, key[1] + dy)) in known
                ),
                None,
            )
            points.append(known.setdefault(key, near or (x, y)))
        out.append([p for p, q in zip(points, [points[-1], *points[:-1]], strict=True) if p != q])
    return out


def _sides(
    ring: list[tuple[float, float]], rings: Sequence[list[tuple[float, float]]], cuts: Cuts
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The sides of a ring; those on a cut are divided where any ring has a point, so that what is shared is equal."""
    out = []
    for p, q in zip(ring, [*ring[1:], ring[0]], strict=True):
        axis = next((k for k in (0, 1) if p[k] == q[k] and p[k] in cuts[k]), None)
        if axis is None:
            out.append((p, q))
            continue
        low, high = sorted((p[1 - axis], q[1 - axis]))
        between = {o for r in rings for o in r if o[axis] == p[axis] and low < o[1 - axis] < high}
        stops = [p, *sorted(between, key=lambda o: o[1 - axis], reverse=p[1 - axis] > q[1 - axis]), q]
        out += list(itertools.pairwise(stops))
    return out


def _plain(points: Ring, cuts: Cuts, closed: bool = True) -> Ring:
    """Without the points that cutting has put into straight sides."""
    keep = np.ones(len(points), bool)
    for i in range(len(points)):
        x, y = points[i]
        if (x not in cuts[0] and y not in cuts[1]) or (not closed and i in (0, len(points) - 1)):
            continue
        before = next((j for j in range(i - 1, i - len(points), -1) if keep[j]), i - 1)
        a, b = points[i] - points[before], points[(i + 1) % len(points)] - points[i]
        if abs(a[0] * b[1] - a[1] * b[0]) <= 1e-9 * max(1.0, np.hypot(*a) * np.hypot(*b)) and a @ b >= 0:
            keep[i] = False
    return points[keep]


def join_lines(lines: Sequence[Line], cuts: Cuts) -> list[Line]:
    """The lines that were cut into these: the end of one at a cut is where another begins."""
    left = [_matched_line(line) for line in lines]
    joined = True
    while joined:
        joined = False
        starts = {line[0]: k for k, line in enumerate(left) if _at_cut(line[0], cuts)}
        for k, line in enumerate(left):
            other = starts.get(line[-1])
            if other is not None and other != k:
                left[k] = [*line, *left[other][1:]]
                del left[other]
                joined = True
                break
    return [_plain(np.array(line), cuts, closed=False) for line in left]


def _matched_line(line: Line) -> list[tuple[float, float]]:
    return [
        (round(x, 6), round(y, 6)) if i in (0, len(line) - 1) else (x, y)
        for i, (x, y) in enumerate(line.tolist())
    ]


def _at_cut(point: tuple[float, float], cuts: Cuts) -> bool:
    return point[0] in cuts[0] or point[1] in cuts[1]
