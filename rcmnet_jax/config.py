"""Every knob of a run, once, with its default, its unit and why; and every check, before any device is touched."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rcmnet_jax.errors import UserError

T = TypeVar("T")

_BODIES = ("resnet18", "resnet34", "resnet50")
_PARTS = ("", "_cbam", "_mhsa", "_cbam_mhsa")
MODEL_NAMES = (*(body + parts for body in _BODIES for parts in _PARTS), "rcmnet", "vit_s16")


@dataclass(frozen=True)
class ModelConfig:
    """The network. `rcmnet` is resnet18_cbam_mhsa; arXiv 2205.04230's abstract says no more, the rest is our choice."""

    name: str = "rcmnet"  # resnet{18,34,50}[_cbam][_mhsa], rcmnet, vit_s16
    width: int = 64  # channels of the stem and stage 1; 64 is the published ResNet, 8 is for tests
    norm: str = "batch"  # batch | group (groups of 16 channels, no running statistics)
    cbam_reduction: int = 16  # channel gate's bottleneck C -> C/reduction, as in CBAM's paper
    cbam_kernel: int = 7  # spatial gate's convolution, pixels
    cbam_placement: str = (
        "block"  # block: in every residual block, before the shortcut is added | stage: after each stage
    )
    gate: str = "auto"  # paper | identity (gates start at 1) | auto: identity where weights are imported, else paper
    heads: int = 4  # self-attention heads, as in BoTNet
    position: str = "relative"  # relative | absolute | none: position term of the attention logits


@dataclass(frozen=True)
class OptimizerConfig:
    """Optax update rule of one stage."""

    name: str = "sgd"  # sgd (Nesterov) | adamw
    learning_rate: float = 0.2  # peak, for a batch of 256; scaled linearly with batch_size (sgd), by its root (adamw)
    momentum: float = 0.9  # sgd only
    weight_decay: float = 5e-4  # on kernels only: norms, biases and position tables are left out
    warmup_epochs: float = 1.0  # linear from 0; at most a fifth of the stage
    clip_norm: float = 5.0  # global gradient norm; 0 turns clipping off
    label_smoothing: float = 0.1
    class_weights: str = "none"  # none | balanced: loss weights n / (K n_k)
    ema_decay: float = 0.998  # per step, of weights and BatchNorm statistics; ramps up as (1+t)/(10+t)
    precision: str = "float32"  # float32 | bfloat16: compute type; the state is always float32


@dataclass(frozen=True)
class AugmentConfig:
    """Random views, drawn on the device from (seed, position) alone."""

    dihedral: bool = True  # the 8 flips and quarter turns: a smear has no up
    scale: float = 0.15  # zoom drawn from exp(U(-scale, scale))
    shift: float = 0.08  # translation, as a fraction of the side
    brightness: float = 0.1  # factor drawn from 1 +- brightness
    contrast: float = 0.1
    saturation: float = 0.1
    stain: float = 0.05  # jitter of each stain's optical density, factor 1 +- stain and as much offset / 2


@dataclass(frozen=True)
class SourceConfig:
    """The public set that pretraining reads."""

    data: str = "synthetic:pbc"  # folder, CSV, zip, npz, tfds:NAME, synthetic:NAME; none: transfer from init_from
    splits: str = ""  # CSV path,split[,group]; empty: the data's own, else drawn from the seed
    epochs: float = 10.0  # of the training part
    image_size: int = 0  # pixels; 0: as image_size at the top
    init_from: str = ""  # weights to start from; empty: random
    val_fraction: float = 0.15  # of the images, where no split is given
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class TargetConfig:
    """The small clinical set that the pretrained body is transferred to, by grouped, stratified cross-validation."""

    data: str = "synthetic:cart"  # as source.data; "none": pretrain only
    splits: str = ""
    folds: str = "auto"  # auto: 5, or the number of groups if there are fewer
    seeds: int = 1  # repetitions of the whole cross-validation, each with its own folds
    epochs: float = 8.0  # of each fold's training part
    image_size: int = 0
    inner_fraction: float = 0.2  # of a fold's training part: the only ground on which anything is chosen
    select: str = "last"  # last: EMA weights of the last step | inner: best epoch by inner balanced accuracy
    arms: tuple[str, ...] = ("transfer", "scratch", "probe", "shortcut")
    freeze_epochs: float = 0.0  # head alone for so long, then all
    layer_decay: float = 1.0  # learning rate factor per stage below the head
    batch_norm: str = "adapt"  # adapt: batch statistics | frozen: the source's | reestimate: adapt, then exact averages
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=0.05))
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class ImageConfig:
    """How any image becomes image_size x image_size x 3 uint8; the same in training and prediction."""

    square: str = "pad"  # pad (edge colour's median) | crop | stretch
    crop: float = 1.0  # central fraction of the side kept before resizing
    resample: str = "bilinear"  # bilinear | bicubic | lanczos | box, antialiased


@dataclass(frozen=True)
class AuditConfig:
    """The check of the data before any training."""

    allow: tuple[str, ...] = ()  # findings of level error that may stand, by name
    near_duplicates: bool = True  # perceptual hashes under the 8 dihedral views
    max_distance: int = 4  # Hamming distance of 64-bit hashes that counts as a near duplicate


@dataclass(frozen=True)
class LoaderConfig:
    """Where the pixels live while training."""

    kind: str = "auto"  # resident: on the device | stream: Grain from ArrayRecord | auto: resident where it fits
    resident_gib: float = 8.0  # a larger decoded set streams
    workers: int = 0  # Grain's threads; 0: one per core
    cache: str = ""  # folder of prepared sets; empty: RCMNET_CACHE, else the user's cache folder


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is written, and how much is kept."""

    every_seconds: float = 120.0  # wall time between saves within a stage
    every_steps: int = 0  # if set, also at each multiple
    keep: int = 2  # newest steps kept


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole run. Its hash names the default workdir."""

    image_size: int = 64  # pixels, both stages unless they say otherwise
    batch_size: int = 32  # global, over all devices
    seed: int = 0
    source: SourceConfig = field(default_factory=SourceConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def source_size(self) -> int:
        """Side of the source's images, pixels."""
        return self.source.image_size or self.image_size

    @property
    def target_size(self) -> int:
        """Side of the target's images, pixels."""
        return self.target.image_size or self.image_size

    @property
    def has_source(self) -> bool:
        """Whether there is a pretraining stage; without one the target starts from source.init_from."""
        return self.source.data not in ("", "none")

    @property
    def has_target(self) -> bool:
        """Whether there is a transfer stage at all."""
        return self.target.data not in ("", "none")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config dataclass, tuples kept."""
    return {
        f.name: to_dict(v) if dataclasses.is_dataclass(v := getattr(config, f.name)) else v
        for f in dataclasses.fields(config)
    }


@typing.overload
def from_dict(values: Mapping[str, Any]) -> ExperimentConfig: ...
@typing.overload
def from_dict(values: Mapping[str, Any], kind: type[T], where: str = "config") -> T: ...
def from_dict(values: Mapping[str, Any], kind: type[Any] = ExperimentConfig, where: str = "config") -> Any:
    """Builds the dataclass `kind` from nested values.

    Raises:
      UserError: a key that does not exist (with the nearest that does), or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            raise UserError(f"{where}.{key}: no such setting{suggestion(str(key), known)}.")
    return kind(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def suggestion(word: str, known: typing.Iterable[str]) -> str:
    """'; did you mean X?' where a known word is near, else the list."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names)}"


def _convert(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a group of settings, got {value!r}.")
        return from_dict(value, typing.cast(type, hint), where)
    if typing.get_origin(hint) is tuple:
        items = [v for v in value.replace(";", ",").split(",") if v.strip()] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise UserError(f"{where}: expected a list, got {value!r}.")
        return tuple(_convert(v.strip() if isinstance(v, str) else v, typing.get_args(hint)[0], where) for v in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(hint, types.UnionType) or not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r} ({type(value).__name__}).")
    return value


def config_hash(config: ExperimentConfig) -> str:
    """8 hex digits of the resolved config."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def _floats(values: Mapping[str, Any], where: str = "") -> typing.Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _floats(value, f"{where}{key}.")
        elif isinstance(value, float):
            yield f"{where}{key}", value


def check(config: ExperimentConfig) -> None:
    """Refuses values that cannot work, each with the field and the way out. Touches neither data nor devices."""

    def need(good: bool, name: str, must: str) -> None:
        if not good:
            value: Any = config
            for part in name.split("."):
                value = getattr(value, part)
            raise UserError(f"config.{name}={value!r}: {must}.")

    def one_of(name: str, choices: tuple[str, ...]) -> None:
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        need(
            value in choices,
            name,
            f"must be one of {', '.join(choices)}{suggestion(value, choices)[:60] if value not in choices else ''}",
        )

    one_of("model.name", MODEL_NAMES)
    one_of("model.norm", ("batch", "group"))
    one_of("model.cbam_placement", ("block", "stage"))
    one_of("model.gate", ("paper", "identity", "auto"))
    one_of("model.position", ("relative", "absolute", "none"))
    one_of("image.square", ("pad", "crop", "stretch"))
    one_of("image.resample", ("bilinear", "bicubic", "lanczos", "box"))
    one_of("loader.kind", ("auto", "resident", "stream"))
    one_of("target.select", ("last", "inner"))
    one_of("target.batch_norm", ("adapt", "frozen", "reestimate"))
    for stage in ("source", "target"):
        one_of(f"{stage}.optimizer.name", ("sgd", "adamw"))
        one_of(f"{stage}.optimizer.class_weights", ("none", "balanced"))
        one_of(f"{stage}.optimizer.precision", ("float32", "bfloat16"))
        need(getattr(config, stage).epochs > 0, f"{stage}.epochs", "must be above 0")
        need(getattr(config, stage).optimizer.learning_rate > 0, f"{stage}.optimizer.learning_rate", "must be above 0")
        need(0 <= getattr(config, stage).optimizer.ema_decay < 1, f"{stage}.optimizer.ema_decay", "must be in [0, 1)")
        need(
            0 <= getattr(config, stage).optimizer.label_smoothing < 1,
            f"{stage}.optimizer.label_smoothing",
            "must be in [0, 1)",
        )
        size = getattr(config, stage).image_size
        need(size == 0 or size >= 32, f"{stage}.image_size", "must be 0 (as image_size) or at least 32 pixels")
    need(config.image_size >= 32, "image_size", "must be at least 32 pixels: the network halves it five times")
    need(config.batch_size >= 1, "batch_size", "must be at least 1")
    need(0 <= config.seed < 2**31, "seed", "must be in [0, 2^31)")
    need(config.model.width >= 8 and config.model.width % 8 == 0, "model.width", "must be a multiple of 8")
    need(config.model.heads >= 1, "model.heads", "must be at least 1")
    need(config.model.cbam_kernel % 2 == 1, "model.cbam_kernel", "must be odd")
    need(0 < config.image.crop <= 1, "image.crop", "must be in (0, 1]")
    need(config.target.seeds >= 1, "target.seeds", "must be at least 1")
    need(0 < config.target.inner_fraction < 0.5, "target.inner_fraction", "must be in (0, 0.5)")
    need(0 < config.source.val_fraction < 0.5, "source.val_fraction", "must be in (0, 0.5)")
    need(0 < config.target.layer_decay <= 1, "target.layer_decay", "must be in (0, 1]")
    need(
        config.target.folds == "auto" or (config.target.folds.isdigit() and int(config.target.folds) >= 2),
        "target.folds",
        "must be auto or a whole number of at least 2",
    )
    need(config.checkpoint.keep >= 1, "checkpoint.keep", "must be at least 1")
    need(config.checkpoint.every_steps >= 0, "checkpoint.every_steps", "must not be negative")
    need(config.model.cbam_reduction >= 1, "model.cbam_reduction", "must be at least 1")
    need(config.loader.workers >= 0, "loader.workers", "must not be negative")
    need(0 <= config.audit.max_distance <= 16, "audit.max_distance", "must be from 0 to 16 of 64 bits")
    need(len(set(config.target.arms)) == len(config.target.arms), "target.arms", "must name each arm once")
    for name, number in _floats(to_dict(config)):
        need(math.isfinite(number) and number >= 0, name, "must be a finite number, not negative")
    arms = ("transfer", "scratch", "probe", "shortcut")
    for arm in config.target.arms:
        if arm not in arms:
            raise UserError(f"config.target.arms: '{arm}' is no arm{suggestion(arm, arms)}.")
    need("transfer" in config.target.arms or not config.has_target, "target.arms", "must contain transfer")
    need(config.has_source or config.has_target, "target.data", "with source.data=none there must be a target")
    need(config.has_source or bool(config.source.init_from), "source.init_from", "source.data=none needs weights here")
