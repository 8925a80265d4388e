"""Named ways to fine-tune on a few hundred images: `target.recipes` says which are tried, and each fold takes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rcmnet_jax.config import TargetConfig
from rcmnet_jax.settings import change


@dataclass(frozen=True)
class Recipe:
    """What of the target's settings differs from those given."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: float = 1.0  # factor
    learning_rate: float = 1.0  # factor

    def apply(self, target: TargetConfig) -> TargetConfig:
        """The target's settings under this recipe."""
        rate = {"learning_rate": target.optimizer.learning_rate * self.learning_rate}
        return change(target, epochs=target.epochs * self.epochs, optimizer=rate, **self.settings)


# Each differs in one thing from settings that train long enough, as those of `configs/cart.py:real`. What settles most
# on small sets comes first: a budget cuts the tail.
RECIPES: dict[str, Recipe] = {
    "default": Recipe(),
    "probe": Recipe({"head": "probe"}, epochs=0),  # the linear probe, nothing fine-tuned
    "turned": Recipe({"augment": {"rotate": 45.0}}),  # with the flips and quarter turns every angle
    "high-rate": Recipe(learning_rate=2),
    "long": Recipe(epochs=2),  # a hundred images are few steps an epoch
    "probe-tune": Recipe({"head": "probe"}),  # LP-FT (Kumar et al. 2022)
    "pull": Recipe({"pull": 0.01}),  # L2-SP at the strength that its authors found (2018)
    "frozen": Recipe({"batch_norm": "frozen"}),  # the source's statistics, for the smallest sets
    "gentle": Recipe({"layer_decay": 0.5}),  # early stages hardly move (Howard & Ruder 2018)
    "balanced": Recipe({"sampling": "balanced"}),
}


@dataclass(frozen=True)
class Score:
    """How a candidate did on the inner split."""

    balanced_accuracy: float
    nll: float  # nats

    @property
    def rank(self) -> tuple[float, float]:
        """The higher the better; equal accuracies are told apart by the likelihood."""
        return self.balanced_accuracy, -self.nll


def best(scores: Mapping[str, Score]) -> str:
    """The name with the best score; of equals the first."""
    return max(scores, key=lambda name: scores[name].rank)


def most_chosen(chosen: Sequence[str], scores: Sequence[Mapping[str, Score]]) -> str:
    """What most folds chose; ties go to the better mean score over all folds.

    Args:
      chosen: a name for each fold.
      scores: of each fold, all of the same names; empty where a fold could not choose.
    """

    def worth(name: str) -> tuple[float, float, float]:
        ranks = [each[name].rank for each in scores if name in each] or [(0.0, 0.0)]
        accuracy, likelihood = (sum(values) / len(ranks) for values in zip(*ranks, strict=True))
        return list(chosen).count(name), accuracy, likelihood

    return max(dict.fromkeys(chosen), key=worth)


def affordable(names: Sequence[str], steps: Mapping[str, int], *, batch_size: int, speed: float, seconds: float) -> int:
    """How many of the candidates, from the first on, can be trained in the time; at least one.

    Args:
      steps: of each candidate in one fold.
      speed: images a second.
      seconds: for one fold.
    """
    count, left = 0, seconds
    for name in names:
        left -= steps[name] * batch_size / speed
        if left < 0 and count:
            break
        count += 1
    return count
