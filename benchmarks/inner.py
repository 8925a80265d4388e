"""Scores settings of a transfer on inner splits alone: what may choose among them, since no reported row takes part.

    python -m benchmarks.inner DATA WEIGHTS --folds 2 --try target.epochs=30 --try target.epochs=30,target.crop=0.75

Each --try trains, in each of the first folds, on the training part without its inner split, and is scored on that: mean
balanced accuracy and NLL. WEIGHTS is what `source.init_from` takes; the rest is as configs/cart.py:real has it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import publish
from configs.cart import get_config
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts
from rcmnet_jax.checks import check
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.recipes import Score
from rcmnet_jax.settings import from_dict


def scores(config: ExperimentConfig, folds: int) -> list[Score]:
    """The config's score on the inner split of each of its first folds."""
    from rcmnet_jax import intake, jobs, training_job
    from rcmnet_jax.console import Console
    from rcmnet_jax.selection import measured
    from rcmnet_jax.training.loop import RunServices
    from rcmnet_jax.training.records import Records
    from rcmnet_jax.training.sharding import Placement
    from rcmnet_jax.training.stop import StopRequest

    with tempfile.TemporaryDirectory() as folder:
        work, console = Path(folder), Console(active=False)
        services = RunServices(Records(work, active=False), console, StopRequest())
        run = training_job.Run(config, work, Placement.everywhere(), services)
        data = intake.gather(config, work, console, services.stop)
        assert data.target is not None
        pixels, found = training_job.TrainingImages(data.target, run), []
        for k, fold in enumerate(data.folds[0][:folds]):
            rows = np.setdiff1d(fold.train, fold.inner)
            job = jobs.make_job(run, pixels, f"c/{k}", "transfer", rows, None, config.target)
            found.append(measured(job, training_job.fit(job), fold.inner))
    return found


def settings(data: str, weights: str, text: str) -> ExperimentConfig:
    """The config of cart.py:real for a target and weights, with settings like `target.epochs=30,image_size=96`.

    Raises:
      UserError: a setting that does not exist or cannot work.
    """
    values = get_config("real").to_dict()
    given = [f"target.data={data}", f"source.init_from={weights}", "source.data=none"]
    for pair in (*given, *(text.split(",") if text else ())):
        place, (key, _, value) = values, pair.partition("=")
        *groups, name = key.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = _parsed(value)
    config = from_dict(values)
    check(config)
    return config


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("--folds", type=int, default=2, help="so many of the first seed's folds")
    parser.add_argument("--try", action="append", default=[], dest="tried", metavar="KEY=VALUE,...")
    parser.add_argument("--output", type=Path, help="JSON")
    given = parser.parse_args(words)
    runtime.set_up()
    rows, facts = [], {}
    for number, text in enumerate(given.tried or [""], 1):
        print(f"{number}: {text or 'as real'}", flush=True)  # too long for a column of the table
        start = time.perf_counter()
        found = scores(settings(given.data, given.weights, text), given.folds)
        each = [score.balanced_accuracy for score in found]
        nll = float(np.mean([score.nll for score in found]))
        took = time.perf_counter() - start
        print(f"   {np.mean(each):.3f}, NLL {nll:.3f}", flush=True)  # an hour may pass before the table
        rows.append([str(number), f"{np.mean(each):.3f}", " ".join(f"{v:.3f}" for v in each), f"{nll:.3f}",
                     f"{took:.0f}"])  # fmt: skip
        facts[text] = {"balanced_accuracy": each, "nll": nll, "seconds": took}
    head = ["", "balanced accuracy", "each fold", "NLL", "seconds"]
    publish(f"{given.data}: inner splits of {given.folds} folds", head, rows, {"tried": facts}, given.output)


if __name__ == "__main__":
    main()
