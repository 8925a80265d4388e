"""On real cells that took no part in the fit, each class is in its prediction sets as often as was asked."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from scipy import stats

from rcmnet_jax.config import EvaluationConfig
from rcmnet_jax.evaluation import calibration
from rcmnet_jax.evaluation.metrics import compute
from rcmnet_jax.evaluation.tables import make_table
from tests.real_tables import real

ASKED = EvaluationConfig().error_rate


def halves(t):
    """One division, fixed by the paths alone, so that nobody can have looked for a lucky one."""
    return np.array([hashlib.sha256(path.encode()).digest()[0] % 2 == 0 for path in t.path])


def fitted(t, rows):
    return calibration.calibrate(np.log(np.maximum(t.p[rows], 1e-12)), t.truth[rows], t.classes, alpha=ASKED)


def test_coverage_of_every_class_lies_in_its_beta_binomial_interval():
    t = real("pbc_val")
    fit = halves(t)
    facts = fitted(t, fit)
    found = calibration.apply(facts, np.log(np.maximum(t.p[~fit], 1e-12)), t.classes)
    sets = calibration.prediction_sets(found.probabilities, facts["conformal"]["thresholds"], t.classes)
    assert facts["conformal"]["rare"] == []
    for k, name in enumerate(t.classes):
        own = t.truth[~fit] == k
        cases, known = int(own.sum()), int((t.truth[fit] == k).sum())
        rank = math.ceil((known + 1) * (1 - ASKED))
        # Coverage given the fit is Beta(rank, known + 1 - rank) (Vovk 2012); 99% over all classes together.
        law = stats.betabinom(cases, rank, known + 1 - rank)
        tail = 0.01 / len(t.classes) / 2
        assert law.ppf(tail) <= sets[own, k].sum() <= law.ppf(1 - tail), name


def test_the_share_answered_and_how_it_fares_are_as_counted():
    t = real("pbc_val")
    fit = halves(t)
    facts = fitted(t, fit)
    found = calibration.apply(facts, np.log(np.maximum(t.p[~fit], 1e-12)), t.classes)
    p, limits = found.probabilities, [facts["conformal"]["thresholds"][name] for name in t.classes]
    chosen = [{k for k in range(len(t.classes)) if 1 - row[k] <= limits[k] + 1e-12} for row in p]
    abstains = np.array([found_set != {int(row.argmax())} for found_set, row in zip(chosen, p, strict=True)])
    np.testing.assert_array_equal(found.abstain, abstains)
    labels = [t.classes[k] for k in t.truth[~fit]]
    ood = np.arange(len(p)) % 10 == 0
    told = compute(make_table(t.path[~fit], p, t.classes, label=labels, abstain=found.abstain, ood=ood))["selective"]
    right = p.argmax(1) == t.truth[~fit]
    assert told["coverage"] == 1 - abstains.mean()
    assert told["top1_of_answered"] == right[~abstains].mean()
    assert told["top1_of_abstained"] == right[abstains].mean()
    assert told["out_of_distribution"] == ood.mean()
