"""What a report may be made from. Only the table is needed: whatever else is missing, the report says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcmnet_jax.evaluation.table import Table

ImageReader = Callable[[str], NDArray[np.uint8] | None]
Explainer = Callable[[Table], list[dict[str, NDArray[np.uint8]]]]


@dataclass(frozen=True)
class DataFacts:
    """One data set of the run and what became of its files."""

    role: str  # source, target, test
    name: str  # as the user wrote it
    images: int
    groups: int = 0
    found: int | None = None  # files before any was left out
    skipped: Mapping[str, int] = field(default_factory=dict)  # reason -> files
    classes: Mapping[str, int] = field(default_factory=dict)  # class -> images
    parts: Mapping[str, int] = field(default_factory=dict)  # such as train, val, test -> images
    synthetic: bool = False


@dataclass(frozen=True)
class Embedding:
    """Pooled features of images and words on whose they are, for the map of how the images lie to each other."""

    path: NDArray[np.str_]  # (N,) of the table
    values: NDArray[np.floating]  # (N, C)
    whose: str  # such as 'the pretrained network, which has not seen these images'


@dataclass(frozen=True)
class ReportInputs:
    """All that `render` shows.

    `metrics` is the main arm's, from `compute`; left out, it is computed. `arms` maps each arm's name to its metrics,
    the main one first. `log` holds rows of log.jsonl. `images` takes a path of the table and returns that image as
    (H, W, 3) uint8, or None. `findings` are the audit's, each {"level", "name", "message"}; None where there was no
    audit. `comparison` is what `compare` returned. `provenance` maps a heading to anything that JSON can hold.
    `explain` takes rows of the table and gives for each what the network that predicted it saw, pictures by title.
    """

    table: Table
    metrics: Mapping[str, Any] | None = None
    title: str = "Predictions evaluated"
    model: str = ""
    data: Sequence[DataFacts] = ()
    trained: Sequence[str] = ()  # sentences on what was trained on what, after those made from `data`
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    images: ImageReader | None = None
    findings: Sequence[Mapping[str, Any]] | None = None
    comparison: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)  # of the bundle to use, as in calibration.json
    doubts: Sequence[str] = ()  # of the notes those that a reader has to know before the numbers
    explain: Explainer | None = None
    embedding: Embedding | None = None
    notes: Sequence[str] = ()  # warnings of the run that the reader must see
    provenance: Mapping[str, Any] = field(default_factory=dict)
    synthetic: bool = False
