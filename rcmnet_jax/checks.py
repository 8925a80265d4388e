"""Which values of a config can work; others are refused before any data or device is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rcmnet_jax.checkpoint import published
from rcmnet_jax.config import MODEL_NAMES, VIEWS, ExperimentConfig, ModelConfig, TargetConfig, model_parts
from rcmnet_jax.errors import UserError, suggestion
from rcmnet_jax.recipes import RECIPES
from rcmnet_jax.settings import to_dict

ARMS = ("transfer", "direct", "scratch", "probe", "shortcut")

CHOICES: dict[str, tuple[str, ...]] = {
    "model.name": MODEL_NAMES,
    "model.norm": ("batch", "group"),
    "model.cbam_placement": ("block", "stage"),
    "model.gate": ("paper", "identity", "auto"),
    "model.position": ("relative", "absolute", "none"),
    "image.square": ("pad", "crop", "stretch"),
    "image.resample": ("bilinear", "bicubic", "lanczos", "box"),
    "loader.kind": ("auto", "resident", "stream"),
    "target.select": ("last", "inner"),
    "target.head": ("random", "probe"),
    "target.batch_norm": ("adapt", "frozen", "reestimate"),
    "target.sampling": ("uniform", "balanced"),
    "evaluation.views": VIEWS,
    "*.optimizer.name": ("sgd", "adamw"),
    "*.optimizer.class_weights": ("none", "balanced"),
    "*.optimizer.precision": ("float32", "bfloat16"),
    "*.augment.padding": ("edge", "reflect"),
}

LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_size": (lambda v: v >= 32, "at least 32 pixels: the network halves it five times"),
    "*.image_size": (lambda v: v == 0 or v >= 32, "0 (as image_size) or at least 32 pixels"),
    "batch_size": (lambda v: v >= 1, "at least 1"),
    "steps_per_dispatch": (lambda v: 0 <= v <= 64, "0 (as the backend likes it) or from 1 to 64"),
    "seed": (lambda v: 0 <= v < 2**31, "in [0, 2^31)"),
    "*.epochs": (lambda v: v > 0, "above 0"),
    "*.optimizer.learning_rate": (lambda v: v > 0, "above 0"),
    "*.optimizer.ema_decay": (lambda v: v < 1, "in [0, 1)"),
    "*.optimizer.label_smoothing": (lambda v: v < 1, "in [0, 1)"),
    **{f"*.augment.{name}": (lambda v: v <= 1, "a probability, from 0 to 1") for name in ("reinhard", "grey", "erase")},
    "*.augment.rotate": (lambda v: 0 <= v <= 180, "from 0 to 180 degrees"),
    "*.augment.blur": (lambda v: v <= 0.5, "at most 0.5 of the side"),
    "*.augment.blur_power": (lambda v: v > 0, "above 0"),
    "model.width": (lambda v: v >= 8 and v % 8 == 0, "a multiple of 8"),
    "model.heads": (lambda v: v >= 1, "at least 1"),
    "model.cbam_kernel": (lambda v: v >= 1 and v % 2 == 1, "odd"),
    "model.cbam_reduction": (lambda v: v >= 1, "at least 1"),
    "image.crop": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "*.crop": (lambda v: v <= 1, "0 (as image.crop) or in (0, 1]"),
    "source.start_size": (lambda v: v == 0 or v >= 32, "0 (full size throughout) or at least 32 pixels"),
    "source.grow": (lambda v: 0 < v < 1, "in (0, 1)"),
    "source.soft_folds": (lambda v: v == 0 or 2 <= v <= 20, "0 (off) or from 2 to 20"),
    "source.soft_weight": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "source.val_fraction": (lambda v: 0 < v < 0.5, "in (0, 0.5)"),
    "target.inner_fraction": (lambda v: 0 < v < 0.5, "in (0, 0.5)"),
    "*.frame": (lambda v: v == 0 or 8 <= v <= 4096, "0 (the whole image) or from 8 to 4,096 pixels"),
    "*.layer_decay": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "target.limit": (lambda v: v == 0 or v >= 2, "0 (all images) or at least 2 of each class"),
    "target.seeds": (lambda v: v >= 1, "at least 1"),
    "target.folds": (lambda v: v == "auto" or (v.isdecimal() and int(v) >= 2), "auto or a whole number of at least 2"),
    "evaluation.error_rate": (lambda v: 0 < v < 0.5, "in (0, 0.5)"),
    "checkpoint.keep": (lambda v: v >= 1, "at least 1"),
    "checkpoint.every_steps": (lambda v: v >= 0, "0 (by time alone) or more"),
    "loader.workers": (lambda v: v >= 0, "0 (one per core) or more"),
    "audit.max_distance": (lambda v: 0 <= v <= 16, "from 0 to 16 of 64 bits"),
}


def check(config: ExperimentConfig) -> None:
    """Refuses values that cannot work.

    Raises:
      UserError: the first such value, with its field and what it must be.
    """
    values = dict(_leaves(to_dict(config)))
    for name, value in values.items():
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise UserError(f"config.{name}={value!r}: must be a finite number, not negative.")
    for pattern, choices in CHOICES.items():
        for name in _named(pattern):
            if values[name] not in choices:
                raise UserError(f"config.{name}={values[name]!r}: no such choice{suggestion(values[name], choices)}")
    for pattern, (good, must) in LIMITS.items():
        for name in _named(pattern):
            if not good(values[name]):
                raise UserError(f"config.{name}={values[name]!r}: must be {must}.")
    _check_model(config.model)
    _check_stages(config)


def _check_model(model: ModelConfig) -> None:
    """Refuses a width that the heads or the groups do not divide."""
    if "mhsa" in model_parts(model.name) and 8 * model.width % model.heads:
        raise UserError(
            f"config.model.heads={model.heads}: must divide the {8 * model.width} channels of the last stage "
            "(model.width times 8). Take 4."
        )
    if model.norm == "group" and model.width % max(model.width // 16, 1):  # later stages have multiples of 16
        raise UserError(
            f"config.model.width={model.width}: with model.norm=group its channels must part into groups of 16. "
            "Take a multiple of 16."
        )


def _check_stages(config: ExperimentConfig) -> None:
    arms = config.arms
    for arm in arms:
        if arm not in ARMS:
            raise UserError(f"config.target.arms: '{arm}' is no arm{suggestion(arm, ('auto', *ARMS))}")
    if len(set(arms)) != len(arms):
        raise UserError(f"config.target.arms={','.join(arms)}: names an arm twice. Name each once.")
    if config.has_target and "transfer" not in arms:
        raise UserError(f"config.target.arms={','.join(arms)}: must contain transfer.")
    if "direct" in arms and not config.has_detour:
        raise UserError(
            f"config.target.arms={','.join(arms)}: direct goes from source.init_from past the source, so it needs "
            "both. Give them, or leave direct out."
        )
    for name, stage in (("source", config.source), ("target", config.target)):
        if stage.frame and config.image.square != "pad":
            raise UserError(
                f"config.{name}.frame={stage.frame}: images are laid in a frame only with image.square=pad, not "
                f"{config.image.square}. Set it so, or the frame to 0."
            )
    _check_target(config)
    if not config.has_source and not config.has_target:
        raise UserError("config.target.data=none: with source.data=none there is nothing to do. Give one of them.")
    if not config.has_source and not config.source.init_from:
        raise UserError("config.source.init_from='': source.data=none needs weights to start from. Give a path here.")
    _check_source(config)


def _check_source(config: ExperimentConfig) -> None:
    for name in ("pull", "soft_folds", "soft_labels", "start_size"):
        if not config.has_source and getattr(config.source, name):
            way = " Set target.pull." if name == "pull" else ""
            raise UserError(
                f"config.source.{name}={getattr(config.source, name)}: is of no use with source.data=none, where "
                f"nothing is trained on a source. Leave it out.{way}"
            )
    if config.source.soft_labels and config.source.soft_folds:
        raise UserError(
            f"config.source.soft_folds={config.source.soft_folds}: makes the tables that config.source.soft_labels "
            "gives. Leave one of them out."
        )
    if config.source.pull and not config.source.init_from:
        raise UserError(
            f"config.source.pull={config.source.pull:g}: pulls towards the weights of source.init_from, and there are "
            "none. Give them, or set it to 0."
        )
    if config.source.start_size >= config.source_size:
        raise UserError(
            f"config.source.start_size={config.source.start_size}: must be below the images' size of "
            f"{config.source_size} pixels. Make it smaller, or 0 for full size throughout."
        )
    if config.source.init_from == published.WORD:
        published.file_of(config.model)


def _check_target(config: ExperimentConfig) -> None:
    target = config.target
    _check_fine_tuning(target, config.model, "")
    for name in target.recipes:
        if name not in RECIPES:
            raise UserError(f"config.target.recipes: '{name}' is no recipe{suggestion(name, RECIPES)}")
        _check_fine_tuning(RECIPES[name].apply(target), config.model, name)
    if len(set(target.recipes)) != len(target.recipes):
        raise UserError(f"config.target.recipes={','.join(target.recipes)}: names a recipe twice. Name each once.")
    if target.recipes and target.select != "last":
        raise UserError(
            f"config.target.select={target.select!r}: target.recipes uses the inner split, and no epoch can be chosen "
            "on it as well. Set select to last, or give no recipes."
        )
    if target.budget_minutes and not target.recipes:
        raise UserError(
            f"config.target.budget_minutes={target.budget_minutes:g}: is the time for trying target.recipes, of which "
            "there are none. Name some, or set it to 0."
        )


def _check_fine_tuning(target: TargetConfig, model: ModelConfig, recipe: str) -> None:
    """Refuses settings that contradict one another, as given or as the recipe of this name makes them."""
    field = "config.target.{}" if not recipe else f"config.target.recipes: '{recipe}' sets {{}}"
    if target.sampling == "balanced" and target.optimizer.class_weights == "balanced":
        raise UserError(
            f"{field.format('sampling')}=balanced: with target.optimizer.class_weights=balanced rare classes count "
            "twice. Take one of them."
        )
    if target.batch_norm != "adapt" and (model.norm == "group" or model.name.startswith("vit")):
        raise UserError(f"{field.format('batch_norm')}={target.batch_norm}: this model has no BatchNorm. Leave it out.")
    if target.freeze_epochs and target.optimizer.name == "adamw":
        raise UserError(
            f"{field.format('freeze_epochs')}={target.freeze_epochs:g}: with optimizer.name=adamw the body would leap "
            "when it is let go, its moments being those of nothing. Take target.head=probe instead, or sgd."
        )
    if target.freeze_epochs and target.freeze_epochs >= target.epochs > 0:
        raise UserError(
            f"{field.format('freeze_epochs')}={target.freeze_epochs:g}: with {target.epochs:g} epochs in all nothing "
            "but the head would be trained. Make it smaller, or take the arm probe."
        )


def _leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _named(pattern: str) -> list[str]:
    """A field's name, or both stages' where it begins with a star."""
    return [f"{stage}{pattern[1:]}" for stage in ("source", "target")] if pattern.startswith("*") else [pattern]
