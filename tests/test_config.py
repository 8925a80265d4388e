"""The config: types, typos, limits, and the files that make one."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from rcmnet_jax.checks import check
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.errors import UserError
from rcmnet_jax.settings import check_setting, config_hash, from_dict, to_dict

GOLDEN = Path(__file__).parent / "golden"
PRESETS = [
    *(("cart", preset) for preset in ("", "smoke", "real", "shapes", "paper", "auto")),
    *(("pbc", preset) for preset in ("", "128", "224", "speedrun", "speedrun-gpu", "plain", "smoke")),
    ("bloodmnist", ""),
]


def test_a_config_survives_the_way_through_json():
    config = from_dict({"batch_size": 48, "target": {"arms": "transfer,probe", "folds": 3}})
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert config.target.arms == ("transfer", "probe")
    assert config.target.folds == "3"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sorce": {}}, "config.sorce: no such setting; did you mean 'source'"),
        ({"source": {"epoch": 3}}, "config.source.epoch: no such setting; did you mean 'epochs'"),
        ({"batch_size": "many"}, "config.batch_size: expected int, got 'many'"),
        ({"batch_size": True}, "config.batch_size: expected int"),
        ({"source": 3}, "config.source: expected a group"),
    ],
)
def test_a_wrong_key_or_type_is_named(values, sentence):
    with pytest.raises(UserError, match=sentence):
        from_dict(values)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("config.wrkdir", "config.wrkdir: no such setting; known: audit, batch_size, "),
        ("config.source.epohcs", "config.source.epohcs: no such setting; did you mean 'epochs'?"),
        ("config.source.epochs.q", "config.source.epochs: is a value and no group of settings, it has no 'q'."),
        ("config.", "config.: no such setting"),
    ],
)
def test_a_name_that_no_setting_has_is_refused(name, sentence):
    check_setting("config.source")
    check_setting("config.source.augment.blur")
    with pytest.raises(UserError) as refusal:
        check_setting(name)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"name": "rcmnt"}},
        {"image_size": 16},
        {"batch_size": 0},
        {"seed": -1},
        {"target": {"folds": "1"}},
        {"target": {"folds": "some"}},
        {"target": {"arms": "scratch"}},
        {"target": {"arms": "transfer,magic"}},
        {"target": {"arms": "transfer,direct"}},
        {"target": {"recipes": "default,magic"}},
        {"target": {"recipes": "long,long"}},
        {"target": {"recipes": "long", "select": "inner"}},
        {"target": {"sampling": "balanced", "optimizer": {"class_weights": "balanced"}}},
        {"target": {"limit": 1}},
        {"source": {"epochs": 0.0}},
        {"source": {"start_size": 64}},
        {"source": {"start_size": 16}},
        {"source": {"start_size": 32, "grow": 1.0}},
        {"source": {"soft_weight": 1.5}},
        {"source": {"augment": {"padding": "zero"}}},
        {"target": {"augment": {"reinhard": 1.5}}},
        {"source": {"data": "none"}},
        {"source": {"data": "none"}, "target": {"data": "none"}},
        {"target": {"optimizer": {"learning_rate": -1.0}}},
        {"image": {"crop": 0.0}},
        {"source": {"crop": 1.5}},
        {"target": {"frame": 4}},
        {"image": {"square": "stretch"}, "target": {"frame": 64}},
        {"source": {"layer_decay": 0.0}},
        {"model": {"cbam_kernel": 4}},
        {"checkpoint": {"keep": 0}},
        {"evaluation": {"error_rate": 0.0}},
        {"source": {"epochs": float("inf")}},
        {"target": {"optimizer": {"clip_norm": float("nan")}}},
        {"target": {"freeze_epochs": -1.0}},
        {"target": {"arms": "transfer,transfer"}},
        {"target": {"recipes": "default,balanced", "optimizer": {"class_weights": "balanced"}}},
        {"target": {"recipes": "default,frozen"}, "model": {"norm": "group"}},
        {"target": {"batch_norm": "reestimate"}, "model": {"name": "vit_s16"}},
        {"target": {"budget_minutes": 10.0}},
        {"target": {"freeze_epochs": 8.0}},
        {"target": {"freeze_epochs": 1.0, "optimizer": {"name": "adamw"}}},
        {"source": {"pull": 0.01}},
        {"source": {"data": "none", "init_from": "w.pth", "pull": 0.1}},
        {"source": {"data": "none", "init_from": "w.pth", "soft_folds": 2}},
        {"source": {"data": "none", "init_from": "w.pth", "soft_labels": "a.csv"}},
        {"source": {"data": "none", "init_from": "w.pth", "start_size": 32}},
        {"model": {"heads": 3}},
        {"model": {"width": 56, "norm": "group"}},
        {"target": {"folds": "\u00b2"}},
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_field(values):
    with pytest.raises(UserError, match=r"^config\."):
        check(from_dict(values))


@pytest.mark.parametrize(
    "model", [{"heads": 3, "name": "resnet18_cbam"}, {"width": 56}, {"width": 24, "norm": "group"}]
)
def test_a_width_is_refused_only_where_something_must_divide_it(model):
    check(from_dict({"model": model}))


def test_the_hash_follows_every_setting():
    base = ExperimentConfig()
    other = dataclasses.replace(base, model=dataclasses.replace(base.model, heads=2))
    assert config_hash(base) != config_hash(other)
    assert config_hash(base) == config_hash(from_dict(to_dict(base)))


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_the_resolved_configs_are_as_reviewed(name, preset):
    """After a deliberate change: python -m tests.golden.update."""
    made = importlib.import_module(f"configs.{name}").get_config(preset).to_dict()
    config = from_dict(made)
    check(config)
    golden = json.loads((GOLDEN / f"{name}{'-' if preset else ''}{preset}.json").read_text())
    assert json.loads(json.dumps(to_dict(config))) == golden
