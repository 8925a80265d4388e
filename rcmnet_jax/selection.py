"""Which recipe a fold takes: each is trained on the fold's training part without its inner split, and scored on that.

Nothing that a fold reports on takes part: neither its test rows nor what other folds chose.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from scipy.special import log_softmax

from rcmnet_jax import jobs, training_job
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.config import TargetConfig
from rcmnet_jax.data.splits import Fold
from rcmnet_jax.errors import GuardError
from rcmnet_jax.evaluation.metrics import balanced_accuracy
from rcmnet_jax.evaluation.predict import forward
from rcmnet_jax.files import remove, write_json
from rcmnet_jax.recipes import RECIPES, Score, affordable, best, most_chosen
from rcmnet_jax.settings import to_dict
from rcmnet_jax.training.sharding import barrier, is_main_process, main_process_value
from rcmnet_jax.training.step import Controls
from rcmnet_jax.training_job import Job, Run, Trained, TrainingImages
from rcmnet_jax.workdir import read_json

if TYPE_CHECKING:
    from rcmnet_jax.intake import Data

FOLDER = "candidates"
CHOOSING = ("transfer", "direct")  # arms that choose; the baselines stay as the settings say
_TIMED = 8  # steps; on accelerators too few to be exact, but none is that short of time


@dataclass(frozen=True)
class Search:
    """The recipes that every fold tries, and what it takes to try one."""

    run: Run
    pixels: TrainingImages
    source: Bundle | None
    names: tuple[str, ...]

    def choose(self, fold: Fold, arm: str, place: str) -> str:
        """The recipe of a fold, noted in its leaf's choice.json; `place` is 'seed_S/fold_K'."""
        scores: dict[str, Score] = {}
        if len(self.names) > 1 and len(fold.inner):
            scores = {name: self._score(fold, arm, f"{FOLDER}/{arm}/{place}/{name}", name) for name in self.names}
        name = best(scores) if scores else self.names[0]
        facts = {
            "recipe": name,
            "settings": to_dict(self.settings(name)),
            "inner_images": len(fold.inner),
            "scores": {each: asdict(score) for each, score in scores.items()},
        }
        if is_main_process():
            write_json(self.run.workdir / arm / place / "choice.json", facts)
        if scores:
            shown = ", ".join(f"{each} {score.balanced_accuracy:.3f}" for each, score in scores.items())
            self.run.services.console.say(f"{arm}/{place}: takes '{name}' ({shown} on {len(fold.inner)} inner images)")
        return name

    def settings(self, name: str) -> TargetConfig:
        """The target's settings under a recipe."""
        return RECIPES[name].apply(self.run.config.target)

    def _score(self, fold: Fold, arm: str, folder: str, name: str) -> Score:
        path = self.run.workdir / folder / "score.json"
        checkpoints = self.run.workdir / folder / "checkpoints"
        if main_process_value(path.exists()):
            if is_main_process():
                remove(checkpoints)  # a kill may have come before it
            return Score(**read_json(path))
        rows = np.setdiff1d(fold.train, fold.inner)
        job = jobs.make_job(self.run, self.pixels, folder, arm, rows, self.source, self.settings(name))
        try:
            score = measured(job, training_job.fit(job), fold.inner)
        except GuardError as error:  # a recipe that diverges is out, the run is not
            self.run.services.console.warn(str(error))
            score = Score(-1.0, 0.0)
        if is_main_process():
            write_json(path, asdict(score))
            remove(checkpoints)  # 100 MB for each, and only the score counts
        barrier(folder)
        return score


def search(run: Run, pixels: TrainingImages, data: Data, source: Bundle | None) -> Search | None:
    """The search that the settings ask for, None without recipes. A budget is turned into a number of recipes once.

    How fast this machine trains is measured when the run begins and kept in candidates/plan.json, so that a run that
    goes on tries the same ones.
    """
    names = run.config.target.recipes
    if not names:
        return None
    made = Search(run, pixels, source, names)
    path = run.workdir / FOLDER / "plan.json"
    if run.config.target.budget_minutes and len(names) > 1:
        if not main_process_value(path.exists()):
            plan = _plan(made, data)
            if is_main_process():
                write_json(path, plan)
            barrier("plan")
        plan = read_json(path)
        run.services.console.say(_said(plan))
        made = Search(run, pixels, source, tuple(plan["tried"]))
    return made


def _plan(made: Search, data: Data) -> dict[str, Any]:
    """Which recipes are tried: those, from the first on, whose steps fit into each fold's share of the budget."""
    config, batch = made.run.config, made.run.config.batch_size
    folds = [fold for folds in data.folds for fold in folds]
    arms = [arm for arm in config.arms if arm in CHOOSING]
    largest = max((np.setdiff1d(fold.train, fold.inner) for fold in folds), key=len)
    # One epoch at least: a probe trains nothing, but sees each image.
    steps = {name: jobs.steps_of(max(made.settings(name).epochs, 1.0), len(largest), batch) for name in made.names}
    settings = (largest, made.source, config.target)
    speed = _speed(jobs.make_job(made.run, made.pixels, f"{FOLDER}/speed", arms[0], *settings))
    seconds = 60 * config.target.budget_minutes / (len(folds) * len(arms))
    count = affordable(made.names, steps, batch_size=batch, speed=speed, seconds=seconds)
    return {
        "budget_minutes": config.target.budget_minutes,
        "images_per_second": round(speed, 1),
        "steps_of_a_fold": steps,
        "folds": len(folds) * len(arms),
        "tried": list(made.names[:count]),
        "left_out": list(made.names[count:]),
    }


def _speed(job: Job) -> float:
    """Images a second of the job's training step, after it is compiled."""
    plan, state, step, loader = training_job.prepared(job)
    begun = 0.0
    for k in range(_TIMED + 1):
        rate = float(plan.learning_rates[0])
        state, metrics = step(state, loader.batch(k), Controls.on_host(rate, True, plan.class_weights, plan.seed))
        if k == 0:
            jax.block_until_ready((state, metrics))  # type: ignore[no-untyped-call]
            begun = time.monotonic()
    jax.block_until_ready((state, metrics))  # type: ignore[no-untyped-call]
    return _TIMED * plan.batch_size / (time.monotonic() - begun)


def _said(plan: dict[str, Any]) -> str:
    out = f"; left out: {', '.join(plan['left_out'])}" if plan["left_out"] else ""
    return (
        f"recipes: at {plan['images_per_second']:g} images/s, measured when the run began, without compilation, "
        f"{plan['budget_minutes']:g} minutes are enough for {', '.join(plan['tried'])}{out}."
    )


def measured(job: Job, trained: Trained, rows: np.ndarray) -> Score:
    """Balanced accuracy and NLL of the trained network on rows that it has not seen, looked at as its bundle would.

    Its last checkpoint is on disk first: only the score counts, so callers remove the folder.
    """
    trained.settle()
    data, run = job.pixels.data, job.pixels.run
    weights, views = (trained.params, trained.batch_stats), run.config.evaluation.views
    logits = forward(job.network, *weights, data.images(rows), run.placement, views=views)
    labels = data.examples.label[rows]
    nll = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(rows)), labels].mean()
    return Score(balanced_accuracy(logits.argmax(-1) == labels, labels), float(nll))


def settled(workdir: Path, folds: Sequence[Sequence[Fold]]) -> str:
    """The recipe of the final model: what most of the transfer arm's folds took, ties to the better mean score."""
    choices = list(_choices(workdir, "transfer", folds))
    scores = [{name: Score(**values) for name, values in choice["scores"].items()} for choice in choices]
    return most_chosen([choice["recipe"] for choice in choices], scores)


def summary(run: Run, folds: Sequence[Sequence[Fold]]) -> list[str]:
    """A sentence for each arm that chose: what its folds took."""
    if not (run.config.target.recipes and folds):
        return []
    said = []
    for arm in (arm for arm in run.config.arms if arm in CHOOSING):
        choices = list(_choices(run.workdir, arm, folds))
        taken = Counter(choice["recipe"] for choice in choices)
        if not any(choice["scores"] for choice in choices):
            said.append(f"Recipe of all folds of {arm}: '{choices[0]['recipe']}'. No other was tried.")
            continue
        shown = ", ".join(f"'{name}' in {count}" for name, count in taken.most_common())
        final = f" The final model: '{settled(run.workdir, folds)}'." if arm == "transfer" else ""
        said.append(f"Recipes that the folds of {arm} chose on their inner splits: {shown} of {taken.total()}.{final}")
    return said


def _choices(workdir: Path, arm: str, folds: Sequence[Sequence[Fold]]) -> Iterator[dict[str, Any]]:
    for seed, each in enumerate(folds):
        for number in range(len(each)):
            yield read_json(workdir / arm / f"seed_{seed}" / f"fold_{number}" / "choice.json")
