"""The named recipes, and the rules by which one is taken."""

from __future__ import annotations

import dataclasses

import pytest

from rcmnet_jax.checks import check
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.recipes import RECIPES, Score, affordable, best, most_chosen
from rcmnet_jax.settings import change
from tests.commands import ROOT


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_settings_that_can_work_and_the_docs_know_it(name):
    made = RECIPES[name].apply(ExperimentConfig().target)
    assert (made == ExperimentConfig().target) == (name == "default")
    check(change(ExperimentConfig(), target={**_flat(made), "epochs": made.epochs or 1.0}))
    factors = RECIPES[name].epochs, RECIPES[name].learning_rate
    changed = len(RECIPES[name].settings) + sum(factor != 1 for factor in factors)
    assert changed == {"default": 0, "probe": 2}.get(name, 1)  # one thing: else a choice tells nothing of it
    assert f"| `{name}` |" in (ROOT / "docs" / "transfer.md").read_text("utf-8")


def _flat(target):
    return {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}


def test_the_higher_accuracy_wins_and_a_tie_goes_to_the_likelier():
    assert best({"a": Score(0.7, 0.1), "b": Score(0.8, 0.9)}) == "b"
    assert best({"a": Score(0.8, 0.6), "b": Score(0.8, 0.5)}) == "b"
    assert best({"a": Score(0.8, 0.5), "b": Score(0.8, 0.5)}) == "a"


def test_the_final_model_takes_what_most_folds_took_and_a_tie_goes_to_the_mean_score():
    scores = [{"a": Score(0.9, 1), "b": Score(0.5, 1)}, {"a": Score(0.6, 1), "b": Score(0.7, 1)}]
    assert most_chosen(["a", "b", "b"], [*scores, scores[1]]) == "b"
    assert most_chosen(["a", "b"], scores) == "a"
    assert most_chosen(["b", "a"], scores) == "a"
    assert most_chosen(["a", "a"], [{}, {}]) == "a"


def test_a_budget_cuts_the_tail_in_the_given_order():
    steps = {"a": 10, "b": 30, "c": 1}  # at 8 images a step and 16 images/s: 5, 15 and 0.5 seconds

    def tried(seconds):
        return affordable(list(steps), steps, batch_size=8, speed=16.0, seconds=seconds)

    assert [tried(seconds) for seconds in (0.1, 5, 19.9, 20, 20.5)] == [1, 1, 1, 2, 3]
