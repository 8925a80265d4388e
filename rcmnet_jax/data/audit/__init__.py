"""The check of the data before any training: duplicates, leaks, broken images, shortcuts.

`audit` looks at sets by themselves, `audit_run` at a run's source and target with the splits that it will use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rcmnet_jax.config import AuditConfig
from rcmnet_jax.data.audit.duplicates import Pair, exact_groups, exact_pairs, near_duplicates
from rcmnet_jax.data.audit.findings import ERRORS, Audit, Finding, Subject, blocking, ordered
from rcmnet_jax.data.audit.leaks import contradiction_findings, duplicate_findings, group_findings
from rcmnet_jax.data.audit.quality import class_findings, quality_findings
from rcmnet_jax.data.audit.shortcuts import shortcut_findings

if TYPE_CHECKING:
    from rcmnet_jax.data.partition import Rows
    from rcmnet_jax.data.prepare import PreparedSet
    from rcmnet_jax.data.splits import Fold

__all__ = ["ERRORS", "Audit", "AuditConfig", "Finding", "audit", "audit_run", "blocking", "twins"]


def audit(sets: Sequence[PreparedSet], config: AuditConfig, names: Sequence[str] = ()) -> Audit:
    """Audits prepared sets with the splits of their own split columns, if they have any.

    Of two sets that share pictures the earlier counts as learnt from and the later as tested on. `names` are what the
    findings call the sets; by default the ends of their specs.
    """
    names = names or _short_names([s.spec for s in sets])
    return _audit([_subject(name, s, s.examples.split, own=True) for name, s in zip(names, sets, strict=True)], config)


def audit_run(
    source: PreparedSet | None,
    holdout: Mapping[str, Rows],
    target: PreparedSet | None,
    folds: Sequence[Fold],
    config: AuditConfig,
) -> Audit:
    """Audits a run's sets as 'source' and 'target' with the parts that it trains and tests on.

    Args:
      holdout: the source's parts, as `splits.holdout` gives them; may be empty without a source.
      folds: the target's, of one seed, as `splits.cross_validation` gives them.
    """
    subjects = []
    if source is not None:
        side = np.full(len(source.examples.label), "", "<U5")
        for name, rows in holdout.items():
            side[rows] = name
        subjects.append(_subject("source", source, side, own=_has_split(source)))
    if target is not None:
        side = np.full(len(target.examples.label), "", "<U12")
        own = len(folds) == 1 and _has_split(target)
        for k, fold in enumerate(folds):
            if own:  # the user's val is a side of its own, though the fold learns from it: something is chosen on it
                used = np.union1d(fold.train, fold.test)
                side[used] = target.examples.split[used]
            else:
                side[fold.test] = f"fold {k}"
        subjects.append(_subject("target", target, side, own=own))
    return _audit(subjects, config)


def twins(prepared: PreparedSet, config: AuditConfig) -> npt.NDArray[np.str_]:
    """A name (N,) shared by the images of a set that show the same picture, exactly or nearly; '' for all others.

    Splits that keep equal names on one side cannot leak by near duplicates. Quick after or before an audit of the set:
    the pixels are read once.
    """
    from rcmnet_jax.data.partition import joined

    pairs = _pairs([prepared], config)
    ends = np.array([(p.first[1], p.second[1]) for p in pairs], np.int64).reshape(-1, 2)
    return joined(len(prepared.examples.label), ends)


def _short_names(specs: Sequence[str]) -> list[str]:
    """The last part of each path, of CSVs the last two; whole specs where that is not enough to tell them apart."""
    ends = [Path(spec) for spec in specs]
    short = [str(Path(p.parent.name, p.name)) if p.suffix.lower() == ".csv" else p.name for p in ends]
    return short if len(set(short)) == len(specs) and all(short) else list(specs)


def _has_split(prepared: PreparedSet) -> bool:
    return bool((prepared.examples.split != "").any())


def _subject(name: str, prepared: PreparedSet, side: npt.NDArray[np.str_], *, own: bool) -> Subject:
    everything = np.ones(len(side), bool)
    tested, learnt = everything, everything
    if (side == "train").any():
        held = "test" if (side == "test").any() else "val"
        tested, learnt = side == held, (side != "test") & (side != "")
    return Subject(name, prepared, side, own, learnt, tested)


def _pairs(sets: Sequence[PreparedSet], config: AuditConfig) -> list[Pair]:
    pairs = exact_pairs(exact_groups(sets))
    return pairs + (near_duplicates(sets, config.max_distance) if config.near_duplicates else [])


def _audit(subjects: Sequence[Subject], config: AuditConfig) -> Audit:
    pairs = _pairs([s.prepared for s in subjects], config)
    findings = duplicate_findings(subjects, pairs) + contradiction_findings(subjects, pairs) + group_findings(subjects)
    facts: list[dict[str, Any]] = []
    for number, subject in enumerate(subjects):
        shortcuts, table = shortcut_findings(number, subject)
        findings += quality_findings(number, subject) + class_findings(number, subject) + shortcuts
        examples = subject.prepared.examples
        sides, sizes = np.unique(subject.side[subject.side != ""], return_counts=True)
        facts.append(
            {
                "name": subject.name,
                "images": len(examples.label),
                "groups": len(set(examples.group.tolist()) - {""}),
                "classes": {name: int((examples.label == k).sum()) for k, name in enumerate(subject.prepared.classes)},
                "parts": {str(s): int(n) for s, n in zip(sides, sizes, strict=True)},
                "left_out": len(subject.prepared.skipped),
                "fingerprint": subject.prepared.fingerprint,
                "synthetic": subject.prepared.synthetic,
                "shortcuts": table,
            }
        )
    return Audit(ordered(findings), tuple(facts))
