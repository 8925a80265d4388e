"""Findings on classes that can be told without seeing the cell."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np

from rcmnet_jax.data import partition, shortcut
from rcmnet_jax.data.audit.findings import Finding, Subject
from rcmnet_jax.data.prepare import PreparedSet
from rcmnet_jax.data.shortcut import Usefulness, usefulness
from rcmnet_jax.files import sha256_bytes, write_atomic
from rcmnet_jax.runtime import circumstances

_SKILL = 0.3  # share of the way from chance to perfect from which a family is a shortcut worth a warning
_OTHERWISE = "A model that does no better has not learnt the cells."
_MEANT = {"colour and brightness": "Some of that is the cell itself; a model has to do better."}
# Families that hold other families: shown in the table, and no warning of their own.
_SUMS = ("all of these",)


def shortcut_findings(number: int, subject: Subject) -> tuple[list[Finding], list[dict[str, Any]]]:
    """A warning for each family of signals that predicts the class, and the table of all families.

    The name is shortcut_FAMILY, such as shortcut_image_size. Balanced accuracy is cross-validated over groups.
    """
    table, found = _table(subject.prepared), []
    for one in table:
        skill = (one.balanced_accuracy - one.chance) / (1 - one.chance)
        if one.family not in _SUMS and skill >= _SKILL and one.balanced_accuracy - 2 * one.error > one.chance:
            rows = _typical(subject)
            over, meant = f"{one.folds} folds by {one.by}", _MEANT.get(one.family, _OTHERWISE)
            found.append(
                Finding(
                    "shortcut_" + one.family.replace(" ", "_"),
                    "warning",
                    f"{subject.name}: {one.family} alone tells the classes apart with a balanced accuracy of "
                    f"{one.balanced_accuracy:.2f} (chance {one.chance:.2f}, {over}). {meant}",
                    tuple(subject.path(row) for row in rows),
                    tuple((number, row) for row in rows),
                    _plain(one),
                )
            )
    return found, [_plain(one) for one in table]


def _table(prepared: PreparedSet) -> list[Usefulness]:
    """`usefulness` of the set, or what it said in an earlier process: seconds of fits, and scikit-learn's import."""
    note = prepared.folder.parent.parent / "shortcuts" / f"{_circumstances(prepared)}.json"
    with contextlib.suppress(OSError, ValueError):  # no note, or a damaged one
        digest, content = note.read_text("utf-8").split("\n")
        if digest == sha256_bytes(content.encode()):
            return [Usefulness(**{**one, "signals": tuple(one["signals"])}) for one in json.loads(content)]
    table = usefulness(prepared.examples, len(prepared.classes))
    content = json.dumps([dataclasses.asdict(one) for one in table])
    with contextlib.suppress(OSError):  # a folder that cannot be written holds no note
        write_atomic(note, f"{sha256_bytes(content.encode())}\n{content}", durable=False)
    return table


def _circumstances(prepared: PreparedSet) -> str:
    """A digest of all that the table hangs on, of which the most is what is known of the images."""
    examples = prepared.examples
    known = [np.ascontiguousarray(x) for x in (examples.signals, examples.label, examples.group, examples.pixel_sha256)]
    seen = [(x.dtype, x.shape, sha256_bytes(x.tobytes())) for x in known]
    code, packages = (shortcut.__file__, partition.__file__), ("numpy", "scipy", "scikit-learn")
    return circumstances(code, packages, len(prepared.classes), examples.signal_names, seen)


def _typical(subject: Subject, each: int = 2) -> list[int]:
    label = subject.prepared.examples.label
    return [int(row) for k in range(min(len(subject.prepared.classes), 8)) for row in np.flatnonzero(label == k)[:each]]


def _plain(one: Any) -> dict[str, Any]:
    values = dataclasses.asdict(one)
    values["signals"] = list(one.signals)
    for key in ("balanced_accuracy", "chance", "error"):
        values[key] = round(values[key], 4)
    return values
