"""The exceptions that carry an exit status. Everything else that escapes is a defect of ours: traceback, status 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RunError(Exception):
    """A run ended for a reason that a person can act on; `status` is the process's exit status."""

    status: int = 1


class UserError(RunError):
    """The input or the machine is at fault: one sentence that names the file or field, its value and the way out."""

    status = 2


class GuardError(RunError):
    """The run's own guard stopped it, for instance on a non-finite loss or a failed start-up check."""

    status = 3


class Interrupted(RunError):
    """Stopped from outside with the last step safe: the same command goes on from there."""

    status = 75


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: '; did you mean X?' where a known word is near, else the list with a full stop."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names)}."
