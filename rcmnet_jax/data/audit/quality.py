"""Findings on single images and classes: unreadable, junk, tiny, blank, blurred, badly exposed, rare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rcmnet_jax.data.audit.findings import MOST_LISTED, Finding, Subject, count, some
from rcmnet_jax.data.audit.inspection import inspect
from rcmnet_jax.data.formats.base import clash

_JUNK = ("hidden or system file", "not an image by its name")
_LEFT_OUT = ("not in a class folder", "class folder without images", "repeated row", "label is empty", "not in ", "in ")
_TINY = 8  # pixels of the shorter side: the smallest T cells in public sets have 10
_BLANK = 2.0  # grey levels of standard deviation: below it there is only noise
_ENOUGH = 20  # images, before "unlike the rest of the set" means anything
_BLUR = (4.0, 4.5)  # robust deviations of fineness, of edges; about 0.5% of published blood cells lie beyond either
_EXPOSURE = 6.0  # robust deviations of mean brightness
_DARK, _BRIGHT = 16.0, 250.0  # mean grey levels that are badly exposed in any set
_FEW = 10  # images of a class
_REASONS = 30  # why files are left out, in one message
_UNEVEN = 20.0  # largest class to smallest


@dataclass(frozen=True)
class _Flag:
    """Images of a set that share a fault."""

    name: str
    what: str  # after '3 images are'
    rows: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    unit: str


def quality_findings(number: int, subject: Subject) -> list[Finding]:
    """Warnings on files that cannot be read and images that show little. `number` is the set's place in the audit."""
    return _skipped(number, subject) + [_as_finding(number, subject, f) for f in _flags(subject) if len(f.rows)]


def _skipped(number: int, subject: Subject) -> list[Finding]:
    kinds: dict[str, list[Any]] = {"unreadable": [], "junk": [], "left_out": []}
    for item in subject.prepared.skipped:
        kind = "junk" if item.reason in _JUNK else "left_out" if item.reason.startswith(_LEFT_OUT) else "unreadable"
        kinds[kind].append(item)
    said = {
        "unreadable": (
            "warning",
            "cannot be read as an image and is left out",
            "cannot be read as images and are left out",
        ),
        "junk": ("warning", "is no image of the set and is left out", "are no images of the set and are left out"),
        "left_out": ("info", "is left out", "are left out"),
    }
    found = []
    for name, items in kinds.items():
        if items:
            level, one, many = said[name]
            reasons: dict[str, list[str]] = {}
            for item in items:
                reasons.setdefault(item.reason, []).append(item.path)
            shown = "; ".join(f"{reason}: {some(paths)}" for reason, paths in list(reasons.items())[:_REASONS])
            shown += f"; {len(reasons) - _REASONS} more reasons" if len(reasons) > _REASONS else ""
            found.append(
                Finding(
                    name,
                    level,
                    f"{subject.name}: {count(len(items), 'file')} {one if len(items) == 1 else many}: {shown}.",
                    tuple(item.path for item in items),
                    tuple((number, -1) for _ in items),
                    {"count": len(items), "reasons": {i.path: i.reason for i in items[:MOST_LISTED]}},
                )
            )
    return found


def _flags(subject: Subject) -> list[_Flag]:
    examples = subject.prepared.examples
    facts = inspect(subject.prepared)
    side = examples.sizes.min(1)
    tiny, blank = side < _TINY, facts.contrast < _BLANK
    sound = ~tiny & ~blank
    softness = np.maximum(-_deviation(facts.fineness, sound) / _BLUR[0], -_deviation(facts.edges, sound) / _BLUR[1])
    blurred = sound & (softness > 1)
    light = _deviation(facts.brightness, sound, least=4.0)
    usual = float(np.median(facts.brightness[sound])) if sound.any() else 128.0
    # A dim method makes a dim set: the fixed limits hold only where the set as a whole is within them.
    dark, bright = min(_DARK, usual / 2), max(_BRIGHT, (usual + 255) / 2)
    exposed = sound & ((np.abs(light) > _EXPOSURE) | (facts.brightness < dark) | (facts.brightness > bright))

    def flag(name: str, what: str, mask: npt.NDArray[np.bool_], values: npt.NDArray[np.float32], unit: str) -> _Flag:
        rows = np.flatnonzero(mask)
        order = np.argsort(values[rows] if name != "blurred" else -values[rows], kind="stable")
        return _Flag(name, what, rows[order], values[rows[order]], unit)

    return [
        flag("tiny", f"under {_TINY} pixels on the shorter side", tiny, side, "pixels"),
        flag("blank", "blank", blank, facts.contrast, "grey levels of deviation"),
        flag("blurred", "much softer than the rest of the set", blurred, softness, "times the limit"),
        flag(
            "badly_exposed", "much darker or brighter than the rest of the set", exposed, facts.brightness, "mean grey"
        ),
    ]


def _deviation(
    values: npt.NDArray[np.float32], use: npt.NDArray[np.bool_], least: float = 0.15
) -> npt.NDArray[np.float32]:
    """Robust z (N,) against the median of the used; 0 where the set is too small to be compared with."""
    if use.sum() < _ENOUGH:
        return np.zeros(len(values), np.float32)
    middle = np.median(values[use])
    spread = max(1.4826 * float(np.median(np.abs(values[use] - middle))), least)
    return np.asarray((values - middle) / spread, np.float32)


def _as_finding(number: int, subject: Subject, flag: _Flag) -> Finding:
    paths = tuple(subject.path(row) for row in flag.rows)
    verb = "is" if len(paths) == 1 else "are"
    return Finding(
        flag.name,
        "warning",
        f"{subject.name}: {count(len(paths), 'image')} {verb} {flag.what}: {some(paths)}.",
        paths,
        tuple((number, int(row)) for row in flag.rows),
        {
            "count": len(paths),
            "unit": flag.unit,
            "values": {p: round(float(v), 2) for p, v in list(zip(paths, flag.values, strict=True))[:MOST_LISTED]},
        },
    )


def class_findings(number: int, subject: Subject) -> list[Finding]:
    """Class sizes; classes that are rare, come from one group, or whose names differ only in spelling."""
    examples, classes = subject.prepared.examples, subject.prepared.classes
    sizes = (
        np.bincount(examples.label[examples.label >= 0], minlength=len(classes)) if len(classes) else np.zeros(0, int)
    )
    found = []
    if len(classes):
        shown = ", ".join(f"{name} {size:,}" for name, size in zip(classes, sizes, strict=True))
        least, most = int(sizes.min()), int(sizes.max())
        rare = least < _FEW or most > _UNEVEN * least
        places = [(number, int(np.flatnonzero(examples.label == k)[0])) for k in np.argsort(sizes) if sizes[k]][:8]
        found.append(
            Finding(
                "class_sizes",
                "warning" if rare else "info",
                f"{subject.name}: images a class: {shown}.{' The smallest is hard to learn and test.' if rare else ''}",
                tuple(subject.path(row) for _, row in places),
                tuple(places),
                {"images": {name: int(size) for name, size in zip(classes, sizes, strict=True)}},
            )
        )
    return found + _lone_groups(number, subject) + _case(number, subject)


def _lone_groups(number: int, subject: Subject) -> list[Finding]:
    """A class that one group alone holds: the model can learn the patient in place of the cell."""
    examples = subject.prepared.examples
    if len(set(examples.group.tolist()) - {""}) < 2:
        return []
    lone = []
    for k, name in enumerate(subject.prepared.classes):
        rows = np.flatnonzero(examples.label == k)
        if len(rows) and len(set(examples.group[rows])) == 1 and examples.group[rows[0]]:
            lone.append((name, str(examples.group[rows[0]]), int(rows[0])))
    if not lone:
        return []
    named = some([f"{name} (all {group})" for name, group, _ in lone])
    return [
        Finding(
            "class_from_one_group",
            "warning",
            f"{subject.name}: {count(len(lone), 'class comes', 'classes come')} from one group alone: {named}. "
            "What is learnt may be the group.",
            tuple(subject.path(row) for _, _, row in lone),
            tuple((number, row) for _, _, row in lone),
            {"groups": {name: group for name, group, _ in lone}},
        )
    ]


def _case(number: int, subject: Subject) -> list[Finding]:
    forms: dict[str, list[int]] = {}
    for k, name in enumerate(subject.prepared.classes):
        forms.setdefault(clash(name), []).append(k)
    twins = [ks for ks in forms.values() if len(ks) > 1]
    if not twins:
        return []
    examples, classes = subject.prepared.examples, subject.prepared.classes
    named = some([" and ".join(f"'{classes[k]}'" for k in ks) for ks in twins], 5)
    rows = [int(r[0]) for ks in twins for k in ks if len(r := np.flatnonzero(examples.label == k))]
    return [
        Finding(
            "class_names_differ_by_case",
            "error",
            f"{subject.name}: class names that differ only by case, space or Unicode spelling mean one class: {named}. "
            "Use one form.",
            tuple(subject.path(row) for row in rows),
            tuple((number, row) for row in rows),
            {"names": [[classes[k] for k in ks] for ks in twins]},
        )
    ]
