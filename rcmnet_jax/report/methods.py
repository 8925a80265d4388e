"""What a run knows of how it was done: the card's items on method, as sentences made from config, data and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rcmnet_jax.evaluation.metrics import HEADLINES
from rcmnet_jax.recipes import RECIPES
from rcmnet_jax.report import sentences
from rcmnet_jax.report.inputs import DataFacts
from rcmnet_jax.settings import from_dict, to_dict

Lines = dict[str, list[str]]


def of_run(config: Mapping[str, Any]) -> Lines:
    """Items that the settings answer, `config` as `to_dict` gives it."""
    used = _stages(config)
    return {
        "goal": ["A model is made and tested within the same data; it is not compared with human readers."],
        "initial": [_start(config)],
        "updating": [_carried_on(config)],
        "ensemble": [_together(config)],
        "imbalance": [
            *(_imbalance(name, stage) for name, stage in used.items()),
            "Balanced accuracy and means over classes give each class the same weight, whatever its share.",
        ],
        "selection": _selection(config),
        "explanation": [
            "Grad-CAM of the predicted class beside the most confident errors in report.html, and for any image by "
            "predict --explain. Measured (docs/evaluation.md), no such map beats one that knows nothing of the "
            "network: none is evidence that an image was read rightly."
        ],
    }


def settings(config: Mapping[str, Any]) -> list[str]:
    """How each stage was trained, a line a stage."""
    return [_setting(name, stage, config["batch_size"]) for name, stage in _stages(config).items()]


def _setting(name: str, stage: Mapping[str, Any], batch: int) -> str:
    if not stage["epochs"]:
        return f"{name}: a linear probe alone."
    rule, rate = stage["optimizer"]["name"], stage["optimizer"]["learning_rate"]
    scaled = "linearly" if rule == "sgd" else "by the root"
    return (
        f"{name}: {stage['epochs']:g} epochs, batches of {batch}, {rule}, learning rate {rate:g} for batches of 256, "
        f"scaled {scaled} to these; augmentation and all else in config.json."
    )


def under(config: Mapping[str, Any], recipe: str) -> Mapping[str, Any]:
    """The run's config with what the recipe that the shipped network was trained by makes of it."""
    if not (config and recipe in RECIPES):
        return config
    target = to_dict(RECIPES[recipe].apply(from_dict(config).target))
    return {**config, "target": {**target, "recipes": config["target"]["recipes"]}}


def of_evaluation(model: str, metrics: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> Lines:
    """Items that the metrics, from `compute`, and the comparison of arms answer."""
    name, main = sentences.headline(metrics)
    groups = f" of {metrics['groups']} groups" if metrics["groups"] else ""
    good = (
        ""
        if main["value"] is None
        else f": {name.lower()} {sentences.number(main['value'])} ({sentences.limits(main)})"
    )
    known = {
        "summary": [
            f"A deep neural network ({model}) that tells {len(metrics['classes'])} classes of cell images apart, "
            f"tested on {metrics['n']} images{groups}{good}."
        ],
        "measures": [
            f"{', '.join(HEADLINES.values())}, macro AUPRC, MCC, class-wise calibration error; seven a class."
        ],
        "uncertainty": _uncertainty(main, comparison),
    }
    spread = [float(part["top1"]["value"]) for part in metrics["per_fold"]]
    lines = [sentences.seeds(metrics)] if sentences.seeds(metrics) else []
    if len(spread) > 1:
        low, high = sentences.number(min(spread)), sentences.number(max(spread))
        lines.append(f"Top-1 over {len(spread)} folds: {low} to {high}.")
    return {**known, "robustness": lines}


def of_data(data: Sequence[DataFacts], metrics: Mapping[str, Any] | None) -> Lines:
    """Items that the data sets answer."""
    lines = ["Images that cannot be read are left out; images without a label take no part in training or testing."]
    if any(facts.groups for facts in data):
        lines.append("An image without group counts as a group of its own.")
    if metrics and metrics["unlabelled"]:
        lines.append(f"{metrics['unlabelled']} predicted images have no label.")
    return {"missing": lines}


def _stages(config: Mapping[str, Any]) -> dict[str, Any]:
    names = {"source": "Pretraining", "target": "Transfer"}
    return {name: config[key] for key, name in names.items() if config and config[key]["data"] not in ("", "none")}


def _start(config: Mapping[str, Any]) -> str:
    given = config["source"]["init_from"]
    return f"From the weights of {given}." if given else "From random weights."


def _carried_on(config: Mapping[str, Any]) -> str:
    used, given = _stages(config), config["source"]["init_from"]
    if "Transfer" not in used:
        return f"All layers of {given} were trained on." if given else "No: training began with random weights."
    body = f"{given} trained on {config['source']['data']}" if given else config["source"]["data"]
    body = body if "Pretraining" in used else given
    compared = "; the baselines say what that changed" if len(from_dict(config).arms) > 1 else ""
    if not config["target"]["epochs"]:
        return f"No: a linear head was fitted on the features of a body from {body}{compared}."
    return f"A body from {body} was fine-tuned with a new head{compared}."


def _together(config: Mapping[str, Any]) -> str:
    if config["evaluation"]["views"] == "one":
        return "None: one network answers, from one view of each image."
    return "One network answers by the mean over the 8 flips and quarter turns of each image."


def _imbalance(name: str, stage: Mapping[str, Any]) -> str:
    weights = {"none": "the loss weighs every image alike", "balanced": "the loss weighs each class alike"}
    said = weights[stage["optimizer"]["class_weights"]]
    drawn = ", rare classes are drawn as often as common ones" if stage.get("sampling") == "balanced" else ""
    return f"{name}: {said}{drawn}."


def _selection(config: Mapping[str, Any]) -> list[str]:
    target = config["target"]
    if "Transfer" not in _stages(config):
        return ["The moving average of the weights at the last step: no result chose it."]
    if len(target.get("recipes", ())) == 1:
        first = f"All folds took the recipe {target['recipes'][0]}."
    elif target.get("recipes"):
        tried = ", ".join(target["recipes"])
        first = f"Each fold took one of {tried}, as many as the time let it try, by a part of its training images."
    elif target["select"] == "inner":
        first = "Each fold took its best epoch by a part of its training images."
    else:
        first = "The moving average of the weights at the last step: no result chose it."
    last = "The network to use was then trained on all target images: its own accuracy is not measured, the folds' is."
    return [first, last]


def _uncertainty(main: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> list[str]:
    lines = [] if main["value"] is None else [f"95% intervals, such as that of balanced accuracy: {main['method']}."]
    if pairs := (comparison or {}).get("pairs"):
        entries = [pair["balanced_accuracy"] for pair in pairs]
        method = next((entry["method"] for entry in entries if entry.get("low") != entry.get("high")), None)
        lines.append(f"Differences between arms: {method or 'none could be had'}; Holm's correction over {len(pairs)}.")
    return lines
