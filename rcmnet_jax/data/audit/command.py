"""The command `audit`: prepares the sets, says what it found, and writes audit.json and audit.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rcmnet_jax.config import AuditConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data.audit import Audit, blocking
from rcmnet_jax.data.audit import audit as audit_sets
from rcmnet_jax.data.audit.page import render
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.data.prepare import prepare
from rcmnet_jax.errors import UserError
from rcmnet_jax.files import write_atomic

SIZE = 128  # pixels: blur of a few original pixels still shows, and 14,000 images take seconds


def audit(specs: Sequence[str], output: Path | None = None, *, strict: bool = False) -> Audit:
    """Audits each set and all of them against each other; the earlier count as learnt from, the later as tested on.

    Args:
      specs: DATA, as for training.
      output: folder for audit.json and audit.html; None writes nothing.
      strict: whether a finding of level error is raised at the end, after all is written.

    Raises:
      UserError: DATA or a folder that cannot be used; with `strict`, errors in the data.
    """
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"--output={output}: is a file. Name a folder.")
    console = Console()
    sets = []
    for spec in specs:
        with console.progress(f"prepare {spec}", 0, unit=1) as bar:
            sets.append(
                prepare(
                    spec,
                    ImageRule(SIZE),
                    clashes=True,
                    progress=lambda done, total, bar=bar: bar.update(done, total=total),  # type: ignore[misc]
                )
            )
    found = audit_sets(sets, AuditConfig())
    for finding in found.findings:
        if finding.level == "warning":
            console.warn(f"{finding.name}: {finding.message}")
        else:
            console.say(f"{'error: ' if finding.level == 'error' else ''}{finding.name}: {finding.message}")
    for facts in found.sets:
        rows = [[u["family"], f"{u['balanced_accuracy']:.3f}", f"{u['chance']:.3f}"] for u in facts["shortcuts"]]
        if rows:
            console.table(f"{facts['name']}: without seeing the cell", ["from", "balanced accuracy", "chance"], rows)
    if output is not None:
        content = json.dumps(found.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomic(output / "audit.json", content)
        write_atomic(output / "audit.html", render(found, sets))
        console.say(f"{output / 'audit.html'}, {output / 'audit.json'}")
    errors = blocking(found)
    if strict and errors:
        more = f" (and {len(errors) - 1} more findings of level error)" if len(errors) > 1 else ""
        raise UserError(f"audit: {errors[0].message}{more}")
    return found
