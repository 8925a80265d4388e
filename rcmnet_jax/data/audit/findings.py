"""What an audit says: findings with a fixed name each, so that one can be allowed by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rcmnet_jax.errors import UserError, suggestion

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import PreparedSet

LEVELS = ("error", "warning", "info")
# All that can stop a run, and so all that `audit.allow` may name. Class names that differ only in spelling are an error
# of the command `audit` too, but a run refuses them before its audit.
ERRORS = (
    "exact_duplicate_across_sets",
    "exact_duplicate_across_splits",
    "group_across_splits",
    "near_duplicate_across_sets",
    "near_duplicate_across_splits",
)
MOST_LISTED = 1000  # entries of one finding in audit.json; `count` is always the full number

Place = tuple[int, int]  # (set, row); row -1 for a file that is no example


@dataclass(frozen=True)
class Finding:
    """One thing to know about the data. `places` are the images to show, with their `paths` beside them."""

    name: str
    level: str
    message: str  # one sentence or two, beginning with the set's name
    paths: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """All findings, errors first, and the plain facts of each set."""

    findings: tuple[Finding, ...]
    sets: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, the same for the same data: no times, no folders of this machine."""
        return {
            "format_version": 1,
            "counts": {level: sum(f.level == level for f in self.findings) for level in LEVELS},
            "sets": list(self.sets),
            "findings": [
                {
                    "name": f.name,
                    "level": f.level,
                    "message": f.message,
                    "paths": list(f.paths[:MOST_LISTED]),
                    "details": f.details,
                }
                for f in self.findings
            ],
        }


@dataclass(frozen=True)
class Subject:
    """A set under audit, with what is known of its splits."""

    name: str
    prepared: PreparedSet
    side: npt.NDArray[np.str_]  # (N,) part of each row, such as 'train', 'test' or 'fold 0'; '' in none
    own: bool  # whether the user's split column made the sides
    learnt: npt.NDArray[np.bool_]  # (N,) rows that something is fitted to or chosen on
    tested: npt.NDArray[np.bool_]  # (N,) rows that something is reported on

    def path(self, row: int) -> str:
        """Path of a row in the set."""
        return str(self.prepared.examples.path[row])

    def label(self, row: int) -> str:
        """Class name of a row, empty where it has none."""
        k = int(self.prepared.examples.label[row])
        return self.prepared.classes[k] if k >= 0 else ""


def blocking(audit: Audit, allow: Collection[str] = ()) -> list[Finding]:
    """The findings of level error that `allow` does not name.

    Raises:
      UserError: `allow` names something that no error is called.
    """
    for name in allow:
        if name not in ERRORS:
            raise UserError(
                f"config.audit.allow: no finding that may stand is called '{name}'{suggestion(name, ERRORS)}"
            )
    return [f for f in audit.findings if f.level == "error" and f.name not in allow]


def ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then the rest; by name within a level."""
    return tuple(sorted(findings, key=lambda f: (LEVELS.index(f.level), f.name, f.message)))


def some(paths: Sequence[str], most: int = 3) -> str:
    """The first few of the paths, and how many more."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


def count(n: int, one: str, many: str = "") -> str:
    """'1 pair', '13 pairs'."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
