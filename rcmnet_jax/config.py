"""Every knob of a run, once, with its default, its unit and why. What values can work stands in checks.py."""

from __future__ import annotations

from dataclasses import dataclass, field

_BODIES = ("resnet18", "resnet34", "resnet50")
_PARTS = ("", "_cbam", "_mhsa", "_cbam_mhsa")
VIEWS = ("one", "dihedral")
MODEL_NAMES = (*(body + parts for body in _BODIES for parts in _PARTS), "rcmnet", "vit_s16")


def model_parts(model: str) -> list[str]:
    """What a model's name says it is made of, the body first: ['resnet18', 'cbam', 'mhsa'] for rcmnet."""
    return ("resnet18_cbam_mhsa" if model == "rcmnet" else model).split("_")


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
    gate: str = "auto"  # paper | identity (gates start at 1) | auto: identity for weights of a model without gates
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
    rotate: float = 0.0  # degrees: turned by U(-rotate, rotate); with `dihedral` 45 reaches every angle
    brightness: float = 0.1  # factor drawn from 1 +- brightness
    contrast: float = 0.1
    saturation: float = 0.1
    stain: float = 0.05  # jitter of each stain's optical density, factor 1 +- stain and as much offset / 2
    padding: str = "edge"  # beyond the image: edge (repeated) | reflect, for a `scale` over 0.3, where edges smear
    blur: float = 0.0  # sigma of a Gaussian, blur * U(0, 1) ** blur_power, as a fraction of the side
    blur_power: float = 1.0  # 3 leaves most images sharp and makes a few very blurred
    # The rest: other laboratories' staining, lamps and cameras, which the small jitter above does not reach.
    gamma: float = 0.0  # camera's response: x ** exp(U(-gamma, gamma))
    white: float = 0.0  # white balance: gain of each channel from exp(U(-white, white))
    hue: float = 0.0  # no hue rotation: optical densities of the channels mixed by I + U(-hue, hue), greys kept
    reinhard: float = 0.0  # probability that log colours' means and deviations move towards drawn ones
    grey: float = 0.0  # probability of greyscale
    noise: float = 0.0  # standard deviation drawn from U(0, noise), of values in [0, 1]
    erase: float = 0.0  # probability of hiding a rectangle of 2-20% of the area in the image's mean colour
    # Drawn once a batch; both set: one of the two by a coin.
    mixup: float = 0.0  # a of the Beta(a, a) that images and labels are blended by with their neighbour's
    cutmix: float = 0.0  # the same for a box of the neighbour, labels by area


@dataclass(frozen=True)
class SourceConfig:
    """The public set that pretraining reads."""

    data: str = "synthetic:pbc"  # folder, CSV, zip, npz, tfds:NAME, synthetic:NAME; none: transfer from init_from
    splits: str = ""  # CSV path,split[,group]; empty: the data's own, else drawn from the seed
    epochs: float = 10.0  # of the training part
    image_size: int = 0  # pixels; 0: as image_size at the top
    crop: float = 0.0  # central fraction of the side kept, where cells fill little of the frame; 0: as image.crop
    frame: int = 0  # as target.frame
    init_from: str = ""  # bundle, .safetensors or .pth to start from; imagenet: torchvision's own; empty: random
    val_fraction: float = 0.15  # of the images, where no split is given
    start_size: int = (
        0  # pixels: images are shrunk to this for the first steps, which cost less; 0: full size throughout
    )
    grow: float = 0.5  # share of the steps at start_size
    soft_labels: tuple[str, ...] = ()  # predictions tables of the training images, by networks that had not seen them
    soft_folds: int = 0  # such tables made here: networks trained on all folds of the training part but one; 0: off
    soft_weight: float = 0.5  # share of the target that their probabilities have; the rest is the smoothed label
    layer_decay: float = 1.0  # learning rate factor per stage below the head, where weights come from init_from
    pull: float = 0.0  # decay of weights from init_from to their start, in place of weight_decay
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
    crop: float = 0.0  # as source.crop
    frame: int = 0  # pixels of the image that the square shows, so that crops of any size keep their scale; 0: all
    inner_fraction: float = 0.2  # of a fold's training part: the only ground on which anything is chosen
    select: str = "last"  # last: EMA weights of the last step | inner: best epoch by inner balanced accuracy
    arms: tuple[str, ...] = ("auto",)  # auto: transfer, scratch, probe, shortcut, and direct where there is a detour
    head: str = "random"  # random | probe: the linear probe of the fold's training rows (LP-FT, Kumar et al. 2022)
    freeze_epochs: float = 0.0  # head alone for so long, then all
    layer_decay: float = 1.0  # learning rate factor per stage below the head, where weights were transferred
    batch_norm: str = "adapt"  # adapt: batch statistics | frozen: the source's | reestimate: adapt, then exact averages
    pull: float = 0.0  # decay of transferred weights to their start (L2-SP, Li et al. 2018), in place of weight_decay
    sampling: str = "uniform"  # uniform | balanced: the classes are drawn equally often
    limit: int = 0  # images a class that each fold trains on, for learning curves; 0: all. The test rows stay the same
    recipes: tuple[str, ...] = ()  # of recipes.py; several: each fold takes the best on its inner split
    budget_minutes: float = 0.0  # for all candidates of a run, as foreseen from the measured speed; 0: all are tried
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
class EvaluationConfig:
    """Views of an image at test time, and the error rate that conformal prediction sets are built for."""

    views: str = "one"  # one | dihedral: the mean over the 8 flips and quarter turns, at 8 times the cost
    error_rate: float = 0.1  # of conformal sets, per class: the true class may be missing from so many


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole run. Its hash names the default workdir."""

    image_size: int = 64  # pixels, both stages unless they say otherwise
    batch_size: int = 32  # global, over all devices
    steps_per_dispatch: int = 0  # steps that one program takes, a stop waits for them; 0: 1 on CPU, 8 on accelerators
    seed: int = 0
    source: SourceConfig = field(default_factory=SourceConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
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

    @property
    def has_detour(self) -> bool:
        """Whether weights from elsewhere go through the source first: what the arm `direct` leaves out."""
        return self.has_source and bool(self.source.init_from)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of the transfer stage by name, `auto` resolved."""
        if self.target.arms != ("auto",):
            return self.target.arms
        return ("transfer", *(("direct",) if self.has_detour else ()), "scratch", "probe", "shortcut")
