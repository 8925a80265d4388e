"""The model card fills in what is known, lists what is not, and lets no name become markup."""

import numpy as np
import pytest

from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.evaluation.metrics import compute
from rcmnet_jax.evaluation.tables import make_table
from rcmnet_jax.report.card import CardFacts, answers, plain, render_card
from rcmnet_jax.report.card_answers import ASKED
from rcmnet_jax.report.inputs import DataFacts
from rcmnet_jax.report.items import ITEMS
from rcmnet_jax.settings import from_dict, to_dict


def measured():
    rng = np.random.default_rng(0)
    truth, logits = np.arange(60) % 2, rng.normal(size=(60, 2))
    logits[np.arange(60), truth] += 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = ("blast", "mono_cyte")
    group = [f"g{i % 12}" for i in range(60)]
    paths = [str(i) for i in range(60)]
    return compute(make_table(paths, p, names, label=[names[k] for k in truth], group=group, fold=np.arange(60) % 3))


def test_a_bare_card_lists_nearly_everything_as_missing():
    text = render_card(CardFacts("rcmnet", ("a", "b")))
    assert "Research use only, not a medical device" in text
    assert "Who labelled" in text.split("## Not stated")[1]
    assert f"3 of {len(ITEMS)} items are answered" in text


@pytest.mark.parametrize(("guideline", "items"), [("TRIPOD+AI", 27), ("CLAIM", 42)])
def test_every_item_of_both_guidelines_is_asked(guideline, items):
    named = set()
    for part in "; ".join(item.sources for item in ITEMS).split("; "):
        if part.startswith(guideline):
            for word in part.removeprefix(guideline).split(", "):
                first, _, last = word.strip().partition("-")
                named |= set(range(int(first), int(last or first) + 1))
    assert named == set(range(1, items + 1))
    assert len({item.key for item in ITEMS}) == len(ITEMS)


def test_what_neither_the_run_derives_nor_the_file_asks_is_nothing():
    facts = CardFacts(
        "rcmnet",
        ("blast", "mono_cyte"),
        config=to_dict(ExperimentConfig()),
        preprocessing={"size": 64},
        data=[DataFacts("target", "cells", 60, groups=12, found=60)],
        metrics=measured(),
        calibration={"temperature": 1.25},
        findings=[],
        comparison={"sentences": ["rcmnet beats nothing."]},
        provenance={"seed": 0},
    )
    assert {item.key for item in ITEMS} - set(answers(facts)) == set(ASKED)


@pytest.mark.parametrize(
    ("change", "key", "sentence"),
    [
        ({}, "initial", "From random weights."),
        ({"source": {"init_from": "x.pth"}}, "initial", "From the weights of x.pth."),
        ({"target": {"select": "inner"}}, "selection", "Each fold took its best epoch"),
        ({"target": {"data": "none"}}, "updating", "No: training began with random weights."),
        ({}, "training", "sgd, learning rate 0.05 for batches of 256, scaled linearly to these"),
        ({"target": {"arms": "transfer"}}, "updating", "was fine-tuned with a new head."),
        ({"target": {"arms": "transfer,probe"}}, "updating", "with a new head; the baselines say"),
        ({"target": {"recipes": "long"}}, "selection", "All folds took the recipe long."),
        ({"target": {"recipes": "long,probe"}}, "selection", "Each fold took one of long, probe, as many as"),
        ({}, "ensemble", "from one view of each image"),
        ({"evaluation": {"views": "dihedral"}}, "ensemble", "the mean over the 8 flips and quarter turns"),
        ({"target": {"sampling": "balanced"}}, "imbalance", "rare classes are drawn as often"),
        ({"source": {"optimizer": {"class_weights": "balanced"}}}, "imbalance", "the loss weighs each class alike"),
    ],
)
def test_the_method_is_told_as_it_is_set(change, key, sentence):
    facts = CardFacts("rcmnet", ("a", "b"), config=to_dict(from_dict(change)))
    assert any(sentence in line for line in answers(facts)[key])


def test_the_shipped_network_is_told_of_by_the_recipe_that_it_took():
    config = to_dict(from_dict({"target": {"recipes": "balanced,long,probe", "epochs": 40.0}}))
    told = {
        recipe: answers(CardFacts("rcmnet", ("a", "b"), config=config, provenance={"recipe": recipe}))
        for recipe in ("balanced", "long", "probe")
    }
    assert any("rare classes are drawn as often" in line for line in told["balanced"]["imbalance"])
    assert any("Transfer: 80 epochs" in line for line in told["long"]["training"])
    assert "Transfer: a linear probe alone." in told["probe"]["training"]
    assert told["probe"]["updating"][0].startswith("No: a linear head was fitted")


def test_known_items_are_filled_in_and_leave_the_missing_list():
    facts = CardFacts(
        "rcmnet",
        ("blast", "mono_cyte"),
        preprocessing={"size": 64, "square": "pad", "crop": 0.8, "resample": "bilinear"},
        data=[DataFacts("target", "cells", 60, groups=12, skipped={"no image": 2}, synthetic=True)],
        metrics=measured(),
        calibration={"temperature": 1.25, "fitted_on": "60 rows", "conformal": {"alpha": 0.1, "rare": ["blast"]}},
        findings=[],
        comparison={"sentences": ["rcmnet beats nothing."]},
        provenance={"seed": 0},
        answers={"ethics": "Approved by nobody: a test."},
    )
    text = render_card(facts)
    shown, missing = text.split("## Not stated")
    for words in (
        "SYNTHETIC DATA",
        "64 x 64",
        "12 groups",
        "1.250",
        "2 x no image",
        "Approved by nobody",
        "Top-1 accuracy",
    ):
        assert words in shown, words
    assert "mono\\_cyte" in shown
    assert "ethics board" not in missing
    assert render_card(facts) == text
    assert set(answers(facts)) <= {item.key for item in ITEMS}


def test_hostile_names_stay_text():
    name = "<script>alert(1)</script>\n# [x](javascript:y) |"
    text = render_card(CardFacts(name, (name,), data=[DataFacts("target", name, 1, skipped={name: 1})]))
    assert "<script" not in text
    assert "\n# [" not in text
    assert "[x](" not in text
    assert plain("a\n*b*") == "a \\*b\\*"
