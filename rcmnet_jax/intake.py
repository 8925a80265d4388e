"""From the config's data to audited, split, prepared sets: all that happens before the first device step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcmnet_jax.checkpoint import initial, published
from rcmnet_jax.config import ExperimentConfig, SourceConfig, TargetConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data import audit as auditing
from rcmnet_jax.data import splits
from rcmnet_jax.data.audit.findings import Audit
from rcmnet_jax.data.audit.page import render
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.data.partition import limited, units
from rcmnet_jax.data.prepare import PreparedSet, cache_folder, prepare
from rcmnet_jax.data.split_file import write_splits
from rcmnet_jax.data.splits import Fold
from rcmnet_jax.errors import UserError
from rcmnet_jax.files import write_atomic, write_json
from rcmnet_jax.training.sharding import barrier, is_main_process
from rcmnet_jax.training.stop import StopRequest
from rcmnet_jax.workdir import read_json

Rows = np.ndarray
Facts = dict[str, dict[str, Any]]  # of a set or of weights: spec, fingerprint, and of a set how many images
_SPREAD = 1.5  # of the sides' 90% over their 10% point, above which a set looks like crops around cells


@dataclass(frozen=True)
class Data:
    """What a run trains on. `folds[s][k]` is fold k of seed s."""

    source: PreparedSet | None
    holdout: dict[str, Rows]
    target: PreparedSet | None
    folds: tuple[tuple[Fold, ...], ...]
    notes: tuple[str, ...]
    audit: Audit


def image_rule(config: ExperimentConfig, stage: SourceConfig | TargetConfig, size: int) -> ImageRule:
    """A stage's image rule at a size in pixels."""
    return ImageRule(size, config.image.square, stage.crop or config.image.crop, config.image.resample, stage.frame)


def gather(
    config: ExperimentConfig,
    workdir: Path,
    console: Console,
    stop: StopRequest,
    at_source: Callable[[int, int], None] | None = None,
) -> Data:
    """Prepares, splits and audits both sets; writes splits.csv, audit.json, audit.html and sets.json into data/.

    `at_source` is called with the numbers of the source's classes and images as soon as they are known.

    Raises:
      UserError: data that cannot be used, a leak that `audit.allow` does not name, or data that changed since the run
        began.
    """
    source = None
    holdout: dict[str, Rows] = {}
    notes: list[str] = []
    if config.has_source:
        source = _prepare("source", config, config.source_size, console, stop, at_source)
        holdout = splits.holdout(
            source.examples,
            source.classes,
            seed=config.seed,
            val_fraction=config.source.val_fraction,
            twins=auditing.twins(source, config.audit),
        )
        console.say(f"source: {splits.describe_holdout(source.examples, source.classes, holdout)}")
        notes += splits.contradictions(source.examples, source.classes)
    target = None
    folds: list[tuple[Fold, ...]] = []
    if config.has_target:
        target = _prepare("target", config, config.target_size, console, stop)
        drawn, said = _folds(config, target)
        folds += drawn
        console.say(f"target: {said}")
        notes.append(said)
        notes += splits.contradictions(target.examples, target.classes)
    facts = _facts(config, source, target) if is_main_process() else {}
    _refuse_changes(workdir, facts)
    found = _audit(config, workdir, source, holdout, target, folds, console)
    if is_main_process():
        _write(workdir, source, holdout, target, folds, facts)
    barrier("intake")
    return Data(source, holdout, target, tuple(folds), tuple(notes), found)


def _folds(config: ExperimentConfig, target: PreparedSet) -> tuple[list[tuple[Fold, ...]], str]:
    """The folds of each seed, and what is to be said of those of the first."""
    asked, twins = config.target, auditing.twins(target, config.audit)
    every, told, unchosen = [], "", 0
    for seed in range(asked.seeds):
        drawn, said = splits.cross_validation(
            target.examples,
            target.classes,
            folds=asked.folds,
            seed=config.seed + seed,
            inner_fraction=asked.inner_fraction,
            twins=twins,
        )
        if asked.limit:
            drawn = [_limited(target, fold, twins, asked.limit, config.seed + seed) for fold in drawn]
            unchosen += sum(not len(fold.inner) for fold in drawn)
            said += f" Each fold trains on at most {asked.limit} images of a class (target.limit)."
        every.append(tuple(drawn))
        told = told or said
    if unchosen and (len(asked.recipes) > 1 or asked.select == "inner"):
        told += (
            f" In {unchosen} of {sum(map(len, every))} folds target.limit={asked.limit} leaves nothing to choose by: "
            "they take the first recipe, or the last epoch."
        )
    return every, told


def _limited(data: PreparedSet, fold: Fold, twins: npt.NDArray[np.str_], limit: int, seed: int) -> Fold:
    """The fold with `limit` images a class to train on, of which those in its inner split stay there.

    But each class keeps an image outside of it: where it would have none, one comes out of the inner split, and with it
    what no split may cut from it.
    """
    label, group = data.examples.label, data.examples.group
    train = limited(label, group, fold.train, limit, seed)
    inner, unit = np.intersect1d(fold.inner, train), units(group, twins)
    for k in np.unique(label[train]):
        if k not in label[np.setdiff1d(train, inner)]:
            inner = inner[unit[inner] != unit[inner[label[inner] == k][0]]]
    return Fold(train, inner, fold.test)


def _prepare(
    which: str,
    config: ExperimentConfig,
    size: int,
    console: Console,
    stop: StopRequest,
    at_open: Callable[[int, int], None] | None = None,
) -> PreparedSet:
    stage: SourceConfig | TargetConfig = getattr(config, which)
    rule = image_rule(config, stage, size)
    with console.progress(f"prepare {which}", 0, unit=1) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done, total=total)
            stop.check_alone()

        cache = cache_folder(config.loader.cache)
        prepared = prepare(stage.data, rule, cache=cache, splits=stage.splits, progress=progress, at_open=at_open)
    what = "SYNTHETIC images" if prepared.synthetic else "images"
    counts = np.bincount(prepared.examples.label[prepared.examples.label >= 0], minlength=len(prepared.classes))
    shown = ", ".join(f"{name} {count}" for name, count in zip(prepared.classes, counts, strict=True))
    console.say(f"{which}: {stage.data}: {len(prepared.examples.label)} {what} at {size} px: {shown}")
    report_skipped(which, prepared, console)
    _say_scale(which, prepared, console)
    return prepared


def _say_scale(which: str, prepared: PreparedSet, console: Console) -> None:
    """A hint where images differ so much in size that they may be crops of one scale, which the image rule undoes."""
    rule, sides = prepared.rule, prepared.examples.sizes.max(1)
    low, high = np.quantile(sides, (0.1, 0.9))
    if rule.square == "pad" and not rule.frame and high > _SPREAD * low:
        console.say(
            f"{which}: images are {sides.min()} to {sides.max()} px a side. If they are crops at one scale, "
            f"--config.{which}.frame={math.ceil(np.quantile(sides, 0.99))} keeps the cells' sizes."
        )


def report_skipped(which: str, prepared: PreparedSet, console: Console, most: int = 5) -> None:
    """Says which files were left out and why: the count of each reason, and the first few names."""
    reasons: dict[str, list[str]] = {}
    for item in prepared.skipped:
        reasons.setdefault(item.reason, []).append(item.path)
    for reason, paths in reasons.items():
        more = f" and {len(paths) - most} more" if len(paths) > most else ""
        console.warn(f"{which}: {len(paths)} left out, {reason}: {', '.join(paths[:most])}{more}")


def _audit(
    config: ExperimentConfig,
    workdir: Path,
    source: PreparedSet | None,
    holdout: dict[str, Rows],
    target: PreparedSet | None,
    folds: list[tuple[Fold, ...]],
    console: Console,
) -> Audit:
    found = auditing.audit_run(source, holdout, target, folds[0] if folds else (), config.audit)
    for finding in found.findings:
        if finding.level == "warning":
            console.warn(f"audit: {finding.message}")
        elif finding.name in config.audit.allow:
            console.warn(f"audit, {finding.name} is allowed: {finding.message}")
    page = workdir / "data" / "audit.html"
    if is_main_process():
        write_json(workdir / "data" / "audit.json", found.to_json())
        write_atomic(page, render(found, [data for data in (source, target) if data is not None]))
    blocking = auditing.blocking(found, config.audit.allow)
    if blocking:
        first = blocking[0]
        more = f" (and {len(blocking) - 1} more findings)" if len(blocking) > 1 else ""
        raise UserError(
            f"The audit stopped the run: {first.message}{more} All are in {page}. "
            "Mend the data, or pass "
            f"--config.audit.allow={','.join(sorted({finding.name for finding in blocking}))} if it may stand."
        )
    return found


def _facts(config: ExperimentConfig, source: PreparedSet | None, target: PreparedSet | None) -> Facts:
    """What data/sets.json says of the run's sets, and of the weights that it starts from."""
    facts: Facts = {
        which: {"spec": data.spec, "fingerprint": data.fingerprint, "images": len(data.examples.label)}
        for which, data in (("source", source), ("target", target))
        if data is not None
    }
    weights = config.source.init_from
    if weights not in ("", published.WORD):
        facts["weights"] = {"spec": weights, "fingerprint": initial.fingerprint(weights)}
    return facts


def _refuse_changes(workdir: Path, found: Facts) -> None:
    """Raises a UserError, before anything is written, where the run began with other data or weights."""
    file = workdir / "data" / "sets.json"
    old = read_json(file) if file.exists() else {}
    for which, facts in found.items():
        if old.get(which, facts)["fingerprint"] != facts["fingerprint"]:
            field = "source.init_from" if which == "weights" else f"{which}.data"
            raise UserError(
                f"config.{field}={facts['spec']}: its content has changed since {workdir} began. "
                "Restore it, or give another --workdir."
            )


def _write(
    workdir: Path,
    source: PreparedSet | None,
    holdout: dict[str, Rows],
    target: PreparedSet | None,
    folds: list[tuple[Fold, ...]],
    facts: Facts,
) -> None:
    folder = workdir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    write_splits(
        folder / "splits.csv",
        source=(source.examples, source.classes, holdout) if source else None,
        target=(target.examples, target.classes, dict(enumerate(folds))) if target else None,
    )
    write_json(folder / "sets.json", facts)
