"""The audit as one HTML page that holds its thumbnails, runs no script and loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from rcmnet_jax.data.audit.findings import MOST_LISTED, Audit, Finding, Place, count

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import PreparedSet

THUMBNAIL = 112  # pixels
_SHOWN = 12  # images of a finding
_FILES = 20  # names of a finding about files


def render(audit: Audit, sets: Sequence[PreparedSet]) -> str:
    """The page's HTML, the same for the same audit. `sets` are those audited, in their order; names are always text."""
    import jinja2

    page = (resources.files("rcmnet_jax") / "report" / "templates" / "audit.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    names = [str(facts["name"]) for facts in audit.sets]
    counts = audit.to_json()["counts"]
    return environment.from_string(page).render(
        title=f"Audit of {' and '.join(names)}",
        lead=f"{count(counts['error'], 'error')}, {count(counts['warning'], 'warning')}, {counts['info']} notes.",
        synthetic=" and ".join(n for n, s in zip(names, sets, strict=True) if s.synthetic),
        findings=[_shown(finding, sets) for finding in audit.findings],
        sets=audit.sets,
    )


def _shown(finding: Finding, sets: Sequence[PreparedSet]) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": finding.name, "level": finding.level, "message": finding.message}
    pictures = [place for place in finding.places if place[1] >= 0]
    total = len(finding.paths)
    shown |= {"total": total, "named": min(total, MOST_LISTED)}
    if not pictures:
        reasons = finding.details.get("reasons", {})
        files = [(path, reasons.get(path, "")) for path in finding.paths[:_FILES]]
        return shown | {"files": files, "shots": [], "pairs": [], "more": max(0, total - len(files))}
    shots = [_shot(place, sets) for place in pictures[:_SHOWN]]
    paired = "pairs" in finding.details
    pairs = [shots[i : i + 2] for i in range(0, len(shots), 2)] if paired else []
    return shown | {"files": [], "shots": shots, "pairs": pairs, "more": max(0, total - len(shots))}


def _shot(place: Place, sets: Sequence[PreparedSet]) -> dict[str, str]:
    from PIL import Image

    number, row = place
    prepared = sets[number]
    image = Image.fromarray(prepared.images(np.array([row]))[0])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, subsampling=0)
    k = int(prepared.examples.label[row])
    path, label = str(prepared.examples.path[row]), prepared.classes[k] if k >= 0 else ""
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"uri": uri, "path": path, "label": label, "alt": f"{label} {path}".strip()}
