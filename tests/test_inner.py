"""The benchmark of settings on inner splits: what it is given reaches the run, and no reported row is scored."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import inner
from configs.base import SMOKE, change
from rcmnet_jax.errors import UserError
from tests.bad_input.case import BUNDLE

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_settings_are_those_given_over_the_preset():
    config = inner.settings("cells, new.csv", str(BUNDLE), "target.epochs=3,target.crop=0.75,model.width=8")
    assert (config.target.epochs, config.target.crop, config.model.width) == (3.0, 0.75, 8)
    assert (config.target.data, config.source.data, config.evaluation.views) == ("cells, new.csv", "none", "dihedral")
    with pytest.raises(UserError, match="no such setting; did you mean 'epochs'"):
        inner.settings("cells.csv", str(BUNDLE), "target.epoch=3")


@pytest.mark.slow
def test_each_fold_is_scored():
    config = inner.settings("synthetic:cart-tiny", str(BUNDLE), "target.epochs=1,target.folds=2")
    small = change(config, **{key: value for key, value in SMOKE.items() if key != "source"})
    once = inner.scores(dataclasses.replace(small, seed=1), 1)
    both = inner.scores(dataclasses.replace(small, seed=1), 2)
    assert len(both) == 2
    assert once == both[:1], "the same settings give the same score"
    assert all(0 <= score.balanced_accuracy <= 1 and score.nll > 0 for score in both)
