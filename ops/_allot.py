"""Dividing units (items, or groups of items) among parts by ratios: exactly, and evenly over strata."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def shares(n: int, ratios: Sequence[float]) -> Ints:
    """Whole numbers that sum to n and are nearest to n * ratio (largest remainders; of equals the earlier part)."""
    quotas = n * np.asarray(ratios)
    out = np.floor(quotas + 1e-9).astype(np.int64)
    rest = np.argsort(-(quotas - out), kind="stable")[: n - int(out.sum())]
    out[rest] += 1
    return out


def table_of_shares(sizes: Ints, ratios: Sequence[float]) -> Ints:
    """How many of each stratum go to each part, shape (strata, parts): rows sum to the sizes, columns to the shares of all.

    Every number is within one of size * ratio, where both sums allow it.
    """
    r = np.asarray(ratios)
    quotas = sizes[:, None] * r
    out = np.floor(quotas + 1e-9).astype(np.int64)
    wanted = shares(int(sizes.sum()), ratios)
    due = wanted - quotas.sum(0)  # so that what is given at last is exact
    for row in range(len(sizes)):
        due += quotas[row] - out[row]
        for part in np.argsort(-due, kind="stable")[: int(sizes[row] - out[row].sum())]:
            out[row, part] += 1
            due[part] -= 1
    over = out.sum(0) - wanted
    order = np.argsort(-sizes, kind="stable").tolist()
    while over.any():  # the largest strata take what is left over, one each
        give, take = int(over.argmax()), int(over.argmin())
        row = next(r for r in order if out[r, give])
        order.append(order.pop(order.index(row)))
        out[row, give] -= 1
        out[row, take] += 1
        over[give] -= 1
        over[take] += 1
    made: Ints = out
    return made


def dealt(strata: Ints, order: Floats, hashes: Ints, ratios: Sequence[float]) -> Ints:
    """The part of each unit; every stratum is divided by the ratios, evenly over the range of `order`, ties by hash."""
    ranked = np.lexsort((hashes, order, strata))
    _, sizes = np.unique(strata, return_counts=True)
    table = table_of_shares(sizes, ratios)
    out = np.empty(len(strata), np.int64)
    start = 0
    for size, row in zip(sizes.tolist(), table, strict=True):
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in row.tolist() if n])
        parts = np.repeat(np.arange(len(row)), row)
        out[ranked[start : start + size]] = parts[np.argsort(places, kind="stable")]
        start += size
    return out


def packed(
    sizes: Ints, units: Ints, labels: Ints, counts: Ints, hashes: Ints, ratios: Sequence[float]
) -> Ints:
    """The part of each unit, where units have several items that stay together.

    sizes: items of each unit; (units, labels, counts): how many annotations of each label a unit has. The largest units
    first, each to the part that then has the least too much, of labels and of items.
    """
    r = np.asarray(ratios)
    width = int(labels.max(initial=-1)) + 2
    totals = np.zeros(width)
    np.add.at(totals, labels, counts)
    totals[-1] = sizes.sum()
    wanted = np.maximum(totals[:, None] * r, 1e-9)
    have = np.zeros((width, len(r)))
    by_unit = np.argsort(units, kind="stable")
    ends = np.searchsorted(units[by_unit], np.arange(len(sizes) + 1))
    out = np.empty(len(sizes), np.int64)
    for unit in np.lexsort((hashes, -sizes)).tolist():
        mine = by_unit[ends[unit] : ends[unit + 1]]
        rows = np.append(labels[mine], width - 1)
        amount = np.append(counts[mine], sizes[unit]).astype(float)
        after = have[rows] + amount[:, None]
        weight = np.append(
            np.ones(len(mine)), max(1, len(mine))
        )  # items weigh as much as all labels together
        cost = (weight[:, None] * after / wanted[rows]).sum(0)
        part = int(np.lexsort((np.arange(len(r)), -(wanted[-1] - have[-1]), cost.round(12)))[0])
        out[unit] = part
        have[rows, part] += amount
    return out
