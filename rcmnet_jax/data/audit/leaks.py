"""Findings on pictures and groups that stand twice: within a set, across its splits, across sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rcmnet_jax.data.audit.duplicates import Pair
from rcmnet_jax.data.audit.findings import MOST_LISTED, Finding, Subject, count, some
from rcmnet_jax.data.audit.hashing import VIEWS


def duplicate_findings(subjects: Sequence[Subject], pairs: Sequence[Pair]) -> list[Finding]:
    """Findings on exact and near pairs, one for each kind of relation and each set or two sets.

    Across a set's splits, and between what is learnt in an earlier set and tested in a later one, the level is error.
    """
    sorted_pairs: dict[tuple[int, int, bool, bool], list[Pair]] = {}
    for pair in pairs:
        (a, i), (b, j) = sorted((pair.first, pair.second))
        one, other = subjects[a], subjects[b]
        if a == b:
            leak = bool(one.side[i]) and bool(one.side[j]) and one.side[i] != one.side[j]
        else:
            leak = bool(one.learnt[i] and other.tested[j])
        sorted_pairs.setdefault((a, b, pair.exact, leak), []).append(pair)
    return [_duplicates(subjects, a, b, exact, leak, found) for (a, b, exact, leak), found in sorted_pairs.items()]


def _duplicates(subjects: Sequence[Subject], a: int, b: int, exact: bool, leak: bool, pairs: Sequence[Pair]) -> Finding:
    name = "exact_duplicate" if exact else "near_duplicate"
    same = "pixel for pixel the same" if exact else "the same picture (re-encoded, scaled, turned or nearly so)"
    (_, i), (_, j) = pairs[0].first, pairs[0].second
    eg = f"for instance {subjects[pairs[0].first[0]].path(i)} and {subjects[pairs[0].second[0]].path(j)}"
    who, where, end = subjects[a].name, "", ""
    if a != b:
        name += "_across_sets"
        who += f" and {subjects[b].name}"
        end = f" {subjects[a].name} is learnt from and {subjects[b].name} tested on." if leak else " None is tested on."
    elif leak:
        name += "_across_splits"
        where = " on two sides of a split"
        end = f" They are in {' and '.join(sorted({str(subjects[a].side[i]), str(subjects[a].side[j])}))}."
    number = count(len(pairs), "pair")
    message = f"{who}: {number} of images{where} {'is' if len(pairs) == 1 else 'are'} {same}, {eg}.{end}"
    places = tuple(place for pair in pairs for place in (pair.first, pair.second))
    return Finding(
        name,
        "error" if leak else "warning",
        message,
        tuple(subjects[k].path(row) for k, row in places),
        places,
        {"count": len(pairs), "pairs": [_entry(subjects, pair) for pair in pairs[:MOST_LISTED]]},
    )


def _eg(paths: Sequence[str]) -> str:
    return f"{paths[0]} and {paths[1]}"


def _entry(subjects: Sequence[Subject], pair: Pair) -> dict[str, Any]:
    ends = []
    for k, row in (pair.first, pair.second):
        s = subjects[k]
        ends.append({"set": s.name, "path": s.path(row), "label": s.label(row), "split": str(s.side[row])})
    entry: dict[str, Any] = {"first": ends[0], "second": ends[1]}
    if not pair.exact:
        entry |= {"distance": pair.distance, "view": VIEWS[pair.view], "correlation": pair.correlation}
    return entry


def contradiction_findings(subjects: Sequence[Subject], pairs: Sequence[Pair]) -> list[Finding]:
    """Warnings on pictures of one set that stand under two labels, exact or near."""
    found = []
    for k, subject in enumerate(subjects):

        def torn(pair: Pair, k: int = k, subject: Subject = subject) -> bool:
            (a, i), (b, j) = pair.first, pair.second
            label = subject.prepared.examples.label
            return a == b == k and min(label[i], label[j]) >= 0 and bool(label[i] != label[j])

        bad = [pair for pair in pairs if torn(pair)]
        if bad:
            rows = [row for pair in bad for _, row in (pair.first, pair.second)]
            named = [f"{subject.path(row)} ({subject.label(row)})" for row in rows[:2]]
            found.append(
                Finding(
                    "contradictory_labels",
                    "warning",
                    f"{subject.name}: {count(len(bad), 'pair')} of images show one picture under two labels: "
                    f"{_eg(named)}. "
                    "Correct one label, or remove both.",
                    tuple(subject.path(row) for row in rows),
                    tuple((k, row) for row in rows),
                    {"count": len(bad), "pairs": [_entry(subjects, pair) for pair in bad[:MOST_LISTED]]},
                )
            )
    return found


def group_findings(subjects: Sequence[Subject]) -> list[Finding]:
    """Groups on two sides of a split, an error if the user's split does it, else a warning; and groups in two sets."""
    found = []
    for k, subject in enumerate(subjects):
        group, side = subject.prepared.examples.group, subject.side
        sides: dict[str, set[str]] = {}
        for g, s in set(zip(group.tolist(), side.tolist(), strict=True)):
            if g and s:
                sides.setdefault(g, set()).add(s)
        cut = sorted(g for g, parts in sides.items() if len(parts) > 1)
        if cut:
            what = f"{count(len(cut), 'group stands', 'groups stand')} on two sides of the split: {some(cut)}"
            why = "" if subject.own else " The split was drawn so because there are too few groups."
            rows = _one_a_side(group, side, cut)
            found.append(
                Finding(
                    "group_across_splits" if subject.own else "group_across_drawn_splits",
                    "error" if subject.own else "warning",
                    f"{subject.name}: {what}.{why}",
                    tuple(subject.path(row) for row in rows),
                    tuple((k, row) for row in rows),
                    {"count": len(cut), "groups": {g: sorted(sides[g]) for g in cut[:MOST_LISTED]}},
                )
            )
    return found + _shared_groups(subjects)


def _one_a_side(group: np.ndarray, side: np.ndarray, cut: Sequence[str], most: int = 50) -> list[int]:
    rows = []
    for g in cut[:most]:
        members = np.flatnonzero((group == g) & (side != ""))
        rows += sorted(int(members[i]) for i in np.unique(side[members], return_index=True)[1])
    return rows


def _shared_groups(subjects: Sequence[Subject]) -> list[Finding]:
    found = []
    names: Callable[[Subject], set[str]] = lambda s: set(s.prepared.examples.group.tolist()) - {""}  # noqa: E731
    for a, one in enumerate(subjects):
        for b in range(a + 1, len(subjects)):
            shared = sorted(names(one) & names(subjects[b]))
            if shared:
                other = subjects[b]
                firsts = [
                    (k, int(np.flatnonzero(s.prepared.examples.group == g)[0]))
                    for g in shared[:6]
                    for k, s in ((a, one), (b, other))
                ]
                found.append(
                    Finding(
                        "group_across_sets",
                        "warning",
                        f"{one.name} and {other.name}: "
                        f"{count(len(shared), 'group name stands', 'group names stand')} in both: "
                        f"{some(shared)}. If they are the same patients, the target's test is not new to the model.",
                        tuple(subjects[k].path(row) for k, row in firsts),
                        tuple(firsts),
                        {"count": len(shared), "groups": shared[:MOST_LISTED]},
                    )
                )
    return found
