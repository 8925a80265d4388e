"""The studies behind the defaults: which runs there are, by name. `python -m benchmarks.study` does those not done yet.

    python launch.py --config="configs/ablation.py:pbc/64 px, random" --config.seed=1 \\
        --config.source.data=PBC_dataset_normal_DIB.zip --config.source.splits=split.csv       one run, by hand

(A run of a study with `images` needs the smaller split file that the command makes.)

A study asks one question with one base and changes one thing a run, or, where it is crossed, many at once. `{pbc}` and
the like are places, which each user has elsewhere: the study's command fills them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from configs.base import GROWN, PBC, RARELY_BLURRED, REAL, SHARP, SMOKE, SPEEDRUN, change, config_dict
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.errors import UserError, suggestion

Changes = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Runs that answer one question; the first is what the others are compared with, seed by seed."""

    question: str
    base: Changes
    runs: dict[str, Changes]
    seeds: int = 3
    images: int = 0  # of the source's training part, the same ones in every run; 0: all
    primary: str = "balanced_accuracy"
    switches: tuple[str, ...] = ()  # of a crossed study, whose runs are the rows of `crossed`


_PBC: Changes = {"source": {"data": "{pbc}", "splits": "{split}"}, "target": {"data": "none"}}
# With less blur than `configs/pbc.py` has since: what most records were made with.
_RECIPE: Changes = {
    "source": {**_PBC["source"], **PBC, "augment": SHARP},
    "target": _PBC["target"],
    "evaluation": {"views": "dihedral"},
}
_WEIGHTS: Changes = {"source": {"init_from": "{weights}"}}

# Transfers start from bundles of the study "pbc", which the command is told the places of.
_TRANSFER: Changes = {
    "source": {"data": "none"},
    "target": {**REAL, "arms": ("transfer", "probe", "shortcut")},
    "evaluation": {"views": "dihedral"},
}
_RED: Changes = {"target": {"data": "{chula}", "crop": 0.75}}
_ONE_VIEW: Changes = {"evaluation": {"views": "one"}}
# Chosen on inner splits, where 64 px had 0.809 at the rate of `real` and 0.820 at this one.
_LARGE: Changes = {"target": {"image_size": 96, "epochs": 30.0, "optimizer": {"learning_rate": 0.4}}}
# Chosen on inner splits too: at 64 px, from ImageNet by way of PBC, 0.840 (NLL 0.550) against 0.820 (0.581).
_TURNED: Changes = {"target": {"augment": {"rotate": 45.0}}}
_LONG: Changes = {"target": {"epochs": 60.0, "optimizer": {"learning_rate": 0.4}}}
_T: Changes = {"target": {"data": "{tcell}", "epochs": 20.0}}
_STARTS: dict[str, Changes] = {
    "ImageNet, then PBC": {"source": {"init_from": "{imagenet_pbc}"}},
    "ImageNet": {"source": {"init_from": "{weights}"}},
    "PBC": {"source": {"init_from": "{pbc_alone}"}},
}
_MODELS: dict[str, Changes] = {name: {"model": {"name": key}} for name, key in {
    "RCMNet": "rcmnet", "ResNet-18": "resnet18", "ResNet-18 + CBAM": "resnet18_cbam",
    "ResNet-18 + MHSA": "resnet18_mhsa", "ResNet-50": "resnet50", "ViT-S/16": "vit_s16",
}.items()}  # fmt: skip
_FROM_MODELS: Changes = {"source": {"init_from": "{models}"}, "target": {"arms": ("transfer", "probe")}}
_SCRATCH: Changes = {"arms": ("transfer", "scratch", "probe", "shortcut")}  # once: it has no start


def _with(*parts: Changes) -> Changes:
    """Nested changes, the later ones winning."""
    made: Changes = {}
    for part in parts:
        for key, value in part.items():
            made[key] = _with(made.get(key, {}), value) if isinstance(value, dict) else value
    return made


def _augment(**values: Any) -> Changes:
    return {"source": {"augment": values}}


def _optimizer(**values: Any) -> Changes:
    return {"source": {"optimizer": values}}


def _fewer(epochs: float, images: int) -> dict[str, Changes]:
    """Runs with so few images a class, and as many updates as `epochs` of `images` a class have."""
    return {f"{n} a class": {"target": {"limit": n, "epochs": epochs * images / n}} for n in (50, 25, 10)}


def crossed() -> list[list[bool]]:
    """Which of eleven switches is on in each of 24 runs, so that every run tells of every switch.

    The twelve runs of Plackett and Burman (Biometrika 33, 1946), where any two switches are on together, off together
    and apart equally often, then their mirror, which frees each switch's effect from what two of the others do
    together. An effect is the difference of two means of twelve runs, so it has the standard error that 12 seeds each
    of with and without would give, for 24 runs and not 264.
    """
    first = [sign == "+" for sign in "++-+++---+-"]
    rows = [first[-shift:] + first[:-shift] for shift in range(len(first))] + [[False] * len(first)]
    return rows + [[not on for on in row] for row in rows]


def _rows(switches: dict[str, Changes]) -> dict[str, Changes]:
    """The runs of a crossed study; each adds its number to the seed, so that rows do not share their luck."""
    return {
        f"row {row}": _with({"seed": row}, *(switches[name] for name, on in zip(switches, ons, strict=True) if on))
        for row, ons in enumerate(crossed())
    }


# Stains, lamps, cameras and scales as they differ between laboratories, short of what hides the cell.
LABORATORIES: Changes = {
    "scale": 0.3, "padding": "reflect", "gamma": 0.25, "white": 0.12, "hue": 0.08, "reinhard": 0.25, "stain": 0.15,
    "blur": 0.015, "noise": 0.02,
}  # fmt: skip

# What pretraining may have besides the middle of the frame, which the study "crop" settled. Off is the study's base.
_SWITCHES: dict[str, Changes] = {
    "layer decay 0.5": {"source": {"layer_decay": 0.5}},
    "colours": _augment(**{key: SHARP[key] for key in ("gamma", "white", "hue", "reinhard", "stain")}),
    "optics": _augment(**{key: SHARP[key] for key in ("scale", "padding", "blur", "noise")}),
    "turns by any angle": _augment(rotate=45.0),
    "mixup 0.2": _augment(mixup=0.2),
    "cutmix 1": _augment(cutmix=1.0),
    "erase 0.25": _augment(erase=0.25),
    "averaged weights": _optimizer(ema_decay=0.998),
    "label smoothing 0.1": _optimizer(label_smoothing=0.1),
    "rate 0.4, not 0.2": _optimizer(learning_rate=0.4),
    "48 px for half the steps": {"source": {"start_size": 48, "grow": 0.5}},
}
_SWITCHED_OFF = _with({"source": {"crop": PBC["crop"], "epochs": 8.0}}, _optimizer(ema_decay=0.0, label_smoothing=0.0))

STUDIES: dict[str, Study] = {
    "crop": Study(
        "How much of PBC's frame? 64 px, 4,000 images, 8 epochs, from ImageNet's conv1 to layer3.",
        _with(_PBC, _WEIGHTS, {"source": {"epochs": 8.0}}),
        {
            "all": {},
            "middle 0.8": {"image": {"crop": 0.8}},
            "middle 0.65": {"image": {"crop": 0.65}},
            "middle 0.65, laboratories": _with({"image": {"crop": 0.65}}, _augment(**LABORATORIES)),
            "middle 0.65, layer decay 0.5": {"image": {"crop": 0.65}, "source": {"layer_decay": 0.5}},
        },
        images=4000,
    ),
    "screen": Study(
        "Which switch of pretraining helps on PBC? 64 px, 4,000 images, 8 epochs, from ImageNet's conv1 to layer3.",
        _with(_PBC, _WEIGHTS, {"evaluation": {"views": "dihedral"}}, _SWITCHED_OFF),
        _rows(_SWITCHES),
        seeds=1,
        images=4000,
        primary="top1",
        switches=tuple(_SWITCHES),
    ),
    "pbc": Study(
        "What has PBC's recipe on its validation images? At 64 px it is `blur 0.04 rarely`; it was the first.",
        _RECIPE,
        {
            "64 px, ImageNet": _WEIGHTS,
            "64 px, random": {},
            "128 px, ImageNet": _with(_WEIGHTS, {"image_size": 128, "source": GROWN}),
            "64 px, ImageNet, distilled": _with(_WEIGHTS, {"source": {"soft_folds": 2}}),
            "64 px, ImageNet, turned": _with(_WEIGHTS, _augment(rotate=45.0)),
            "64 px, ImageNet, turned, 24 epochs": _with(_WEIGHTS, _augment(rotate=45.0), {"source": {"epochs": 24.0}}),
            "64 px, ImageNet, mixup 0.2": _with(_WEIGHTS, _augment(mixup=0.2)),
            "64 px, ImageNet, mixup 0.2, blur 0.03": _with(_WEIGHTS, _augment(mixup=0.2, blur=0.03)),
            "64 px, ImageNet, blur 0.04 rarely": _with(_WEIGHTS, _augment(**RARELY_BLURRED)),
            "128 px, ImageNet, blur 0.04 rarely":
            _with(_WEIGHTS, {"image_size": 128, "source": GROWN}, _augment(**RARELY_BLURRED)),
            "64 px, ImageNet, mixup 0.2, blur 0.04 rarely, 24 epochs":
            _with(_WEIGHTS, _augment(**RARELY_BLURRED, mixup=0.2), {"source": {"epochs": 24.0}}),
        },
        primary="top1",
    ),
    "speedrun": Study(
        "In how little time does PBC's validation set reach 98.5% top-1?",
        _with(_RECIPE, _WEIGHTS),
        {
            "96 px from 64": {"image_size": 96, "source": SPEEDRUN},
            "96 px from 48": {"image_size": 96, "source": {"epochs": 8.0, "start_size": 48, "grow": 0.65}},
            "128 px from 64": {"image_size": 128, "source": {"epochs": 8.0, "start_size": 64, "grow": 0.7}},
        },
        primary="top1",
    ),
    "red-cells": Study(
        "Does the public set help on red cells (Chula, 5 folds by smear), and from which start?",
        _with(_TRANSFER, _RED),
        {**_STARTS, **{f"{name}, 96 px": _with(start, _LARGE, {"target": _SCRATCH} if name == "PBC" else {})
                       for name, start in _STARTS.items()},
         "ImageNet, then PBC, 96 px, turned": _with(_STARTS["ImageNet, then PBC"], _LARGE, _TURNED),
         "ImageNet, 96 px, turned": _with(_STARTS["ImageNet"], _LARGE, _TURNED),
         "PBC, turned": _with(_STARTS["PBC"], _LONG, _TURNED),
         "ImageNet, then PBC, turned": _with(_STARTS["ImageNet, then PBC"], _LONG, _TURNED, {"target": _SCRATCH})},
    ),
    "t-cells": Study(
        "Does the public set help on T cells without a stain (4 donors, one left out at a time)?",
        _with(_TRANSFER, _T),
        {f"{name}, {words}": _with(start, {"target": {"frame": frame, **(_SCRATCH if name == "PBC" else {})}})
         for name, start in _STARTS.items() for words, frame in (("frame 52", 52), ("whole", 0))}
        | {"ImageNet, then PBC, frame 52, turned":
           _with(_STARTS["ImageNet, then PBC"], {"target": {"frame": 52}}, _TURNED)},
    ),
    "models": Study(
        "Is RCMNet better than its parts and others on PBC? 64 px, 4,000 images, 8 epochs, random weights, one recipe.",
        _with(_RECIPE, _ONE_VIEW, {"source": {"epochs": 8.0}}),
        _MODELS | {"RCMNet, GroupNorm": {"model": {"norm": "group"}}},
        images=4000,
        primary="top1",
    ),
    "models-red": Study(
        "Is it better on red cells (Chula, 5 folds by smear)? From the bundles of `models`, 20 epochs.",
        _with(_TRANSFER, _FROM_MODELS, _ONE_VIEW, _RED, {"target": {"epochs": 20.0}}),
        _MODELS,
    ),
    "models-t": Study(
        "Is it better on T cells (4 donors, one left out at a time)? From the bundles of `models`, 10 epochs.",
        _with(_TRANSFER, _FROM_MODELS, _ONE_VIEW, _T, {"target": {"epochs": 10.0, "frame": 52}}),
        _MODELS,
    ),
    "red-curve": Study(
        "Red cells: what do transfer and probe lose with fewer images a class? As many updates as in `red-cells`.",
        _with(_TRANSFER, _STARTS["ImageNet, then PBC"], _RED),
        _fewer(REAL["epochs"], images=80),
    ),
    "t-curve": Study(
        "T cells: what do transfer and probe lose with fewer images a class? As many updates as in `t-cells`.",
        _with(_TRANSFER, _STARTS["ImageNet, then PBC"], _T, {"target": {"frame": 52}}),
        _fewer(_T["target"]["epochs"], images=250),
    ),
    "smoke": Study(
        "Does the study's command work? Toy size, synthetic cells; says nothing of any switch.",
        _with(SMOKE, {"source": {"data": "{pbc}", "epochs": 1.0}, "target": {"data": "none"}}),
        {"base": {}, "mixup 0.2": _augment(mixup=0.2)},
        seeds=2,
    ),
}  # fmt: skip


def settings(study: str, run: str) -> Changes:
    """All that a run of a study changes of the default config.

    Raises:
      UserError: no such study or run, with those there are.
    """
    if study not in STUDIES:
        raise UserError(f"configs/ablation.py:{study}: no such study{suggestion(study, STUDIES)}")
    found = STUDIES[study]
    if run not in found.runs:
        raise UserError(f"configs/ablation.py:{study}/{run}: no such run{suggestion(run, found.runs)}")
    return _with(found.base, found.runs[run])


def get_config(preset: str = "") -> ConfigDict:
    """The config of STUDY/RUN."""
    study, _, run = preset.partition("/")
    return config_dict(change(ExperimentConfig(), **settings(study, run)))
