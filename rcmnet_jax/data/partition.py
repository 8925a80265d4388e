"""Deals units (patients, or images where none are given) to parts, so that every part has its share of every class.

scikit-learn's StratifiedGroupKFold has equal shares only, orders groups by their class spread whatever the seed, so
that repetitions give the same folds, and may leave a class out of a fold that it could reach. Hence this: a seeded
greedy start, a local search by moves and swaps, and single images dealt last by Sainte-Laguë's divisor method.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]

_SEARCHED = 600  # units; with more, the greedy start is balanced already and swaps cost the square
_PASSES = 8
_ABSENT = 1e3  # cost of a class that a part lacks, against deviations of about 1


def units(*columns: Strings) -> Rows:
    """Numbers (N,) of the units that no split may cut: rows that share a name in any column, however far the chain.

    Args:
      columns: (N,) each, such as group and pixel hash; an empty name joins nothing.

    Returns numbers 0..U-1 in the order of first appearance.
    """
    n = len(columns[0])
    ends = []
    offset = n
    for column in columns:
        names, node = np.unique(column, return_inverse=True)
        linked = np.flatnonzero(column != "")
        ends.append(np.stack([linked, node[linked] + offset], axis=1))
        offset += len(names)
    component = _components(np.concatenate(ends), offset)[:n]
    first, number = np.unique(component, return_index=True, return_inverse=True)[1:]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[number]


def joined(count: int, pairs: Rows) -> Strings:
    """Names (count,) that rows share which a chain of `pairs` (P, 2) joins; '' for rows in no pair."""
    component = _components(pairs, count)
    names = np.full(count, "", "<U12")
    ends = np.unique(pairs)
    names[ends] = component[ends].astype(str)
    return names


def limited(label: npt.NDArray[np.integer[Any]], group: Strings, rows: Rows, limit: int, seed: int) -> Rows:
    """Up to `limit` of the rows of each class, sorted: groups keep their shares, and a smaller limit takes a part.

    Args:
      label, group: (N,) of all rows.
      rows: those to draw from.
      limit: rows a class.
      seed: fixes the result.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, 2)))  # apart from the folds' own draws
    draw, start = rng.random((2, len(label)))
    kept = []
    for k in np.unique(label[rows]):
        ours = rows[label[rows] == k]
        # A row's place is in shares of its group: the first m of n places hold about m / n of each group.
        place = np.empty(len(ours))
        for name in np.unique(group[ours]):
            own = np.flatnonzero(group[ours] == name)
            place[own] = (draw[ours[own]].argsort().argsort() + start[ours[own[0]]]) / len(own)
        kept.append(ours[np.lexsort((draw[ours], place))[:limit]])
    return np.sort(np.concatenate(kept))


def _components(ends: Rows, count: int) -> Rows:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def deal(unit: Rows, label: npt.NDArray[np.integer[Any]], classes: int, shares: npt.ArrayLike, seed: int) -> Rows:
    """Part (N,) of each row, in 0..F-1: units stay whole and part f gets about shares[f] of every class.

    Args:
      unit: (N,) unit of each row, any numbers.
      label: (N,) class of each row, in 0..classes-1.
      shares: (F,) positive, summing to 1. Earlier parts go first where a class cannot reach all.
      seed: fixes the result; another seed gives another one of equal worth where there is any.
    """
    rng = np.random.default_rng(seed)
    names, number = np.unique(unit, return_inverse=True)
    size = np.bincount(number)
    counts = np.zeros((len(names), classes))
    np.add.at(counts, (number, label), 1.0)
    share = np.asarray(shares, float)
    goal = share[:, None] * counts.sum(0)  # (F, K)
    part = np.full(len(names), -1, np.int64)
    many = rng.permutation(np.flatnonzero(size > 1))
    filled = np.zeros_like(goal)
    if len(many):
        part[many] = _search(counts[many], goal, size.max() > 2, rng)
        np.add.at(filled, part[many], counts[many])
    single = np.flatnonzero(size == 1)
    of_class = counts[single].argmax(1)
    # The rarest class first, so that the common ones even out the parts' sizes.
    for k in np.argsort(np.bincount(of_class, minlength=classes), kind="stable"):
        ones = rng.permutation(single[of_class == k])
        part[ones] = _seats(filled, k, share, len(ones))
        filled[:, k] += np.bincount(part[ones], minlength=len(share))
    return part[number]


def _seats(filled: npt.NDArray[np.float64], k: int, share: npt.NDArray[np.float64], n: int) -> Rows:
    """Parts (n,) that take the next n rows of class k: Sainte-Laguë, first seats before second ones."""
    parts = len(share)
    have = filled[:, k, None] + np.arange(n)  # (F, n)
    priority = np.where(have < 1, 0.0, (have + 0.5) / share[:, None])
    room = (filled.sum(1) / share)[:, None].repeat(n, 1)
    order = np.arange(parts)[:, None].repeat(n, 1)
    # Ties go to the part that is emptiest over all; for a first seat to the earlier part, which is training's.
    tie = np.where(have < 1, order if len(set(share.round(12))) > 1 else room, room)
    ranked = np.lexsort((order.ravel(), tie.ravel(), priority.ravel().round(9)))[:n]
    return np.asarray(ranked // max(n, 1), np.int64)


def _cost(filled: npt.NDArray[np.float64], goal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cost (...,) of parts with `filled` (..., K) where `goal` (..., K) was wanted: chi-square, and absences."""
    exists = goal > 0
    deviation = np.where(exists, (filled - goal) ** 2 / np.where(exists, goal, 1.0), 0.0).sum(-1)
    total = goal.sum(-1)
    deviation += (filled.sum(-1) - total) ** 2 / total
    absent = (exists & (filled == 0)).sum(-1)
    empty = (filled.sum(-1) == 0) * (goal.shape[-1] + 1)
    return np.asarray(deviation + _ABSENT * (absent + empty))


def _search(
    counts: npt.NDArray[np.float64], goal: npt.NDArray[np.float64], swaps: bool, rng: np.random.Generator
) -> Rows:
    """Parts (U,) of units with class counts (U, K): greedy from the largest, then moves and swaps while they help."""
    size = counts.sum(1)
    # The jitter lets seeds differ where groups differ in size, which is where they always do.
    order = np.argsort(-size * rng.uniform(0.7, 1.3, len(size)), kind="stable")
    part = np.empty(len(counts), np.int64)
    filled = np.zeros_like(goal)
    for u in order:
        gain = _cost(filled + counts[u], goal) - _cost(filled, goal)
        best = np.flatnonzero(gain <= gain.min() + 1e-9)
        part[u] = best[rng.integers(len(best))] if filled[best].sum() == 0 else best[0]
        filled[part[u]] += counts[u]
    if swaps and len(counts) <= _SEARCHED:
        for _ in range(_PASSES):
            if not sum(_improve(u, part, counts, filled, goal) for u in rng.permutation(len(counts))):
                break
    return part


def _improve(
    u: int, part: Rows, counts: npt.NDArray[np.float64], filled: npt.NDArray[np.float64], goal: npt.NDArray[np.float64]
) -> bool:
    """Moves unit u, or swaps it with another, where that lowers the cost; changes `part` and `filled` in place."""
    here, x = part[u], counts[u]
    now = _cost(filled, goal)  # (F,)
    # Candidates: u alone to each part, then u against each unit elsewhere.
    to = np.concatenate([np.arange(len(goal)), part])
    back = np.concatenate([np.zeros_like(goal), counts])  # (F + U, K)
    change = (
        _cost(filled[here] - x + back, np.broadcast_to(goal[here], back.shape))
        + _cost(filled[to] + x - back, goal[to])
        - now[here]
        - now[to]
    )
    change[to == here] = 0.0
    best = int(change.argmin())
    if change[best] > -1e-9:
        return False
    there = to[best]
    filled[here] += back[best] - x
    filled[there] += x - back[best]
    part[u] = there
    if best >= len(goal):
        part[best - len(goal)] = here
    return True
