"""The command `convert`: weights of torchvision or timm become a bundle, every leaf accounted for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rcmnet_jax import bundle as bundles
from rcmnet_jax.bundle import Bundle, flatten
from rcmnet_jax.checkpoint import published
from rcmnet_jax.checkpoint.foreign import State, as_trees, described, is_imported, read_state
from rcmnet_jax.checkpoint.torch import to_torch
from rcmnet_jax.checkpoint.transfer import transfer
from rcmnet_jax.config import MODEL_NAMES, ModelConfig
from rcmnet_jax.console import Console
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.errors import GuardError, UserError, suggestion
from rcmnet_jax.files import sha256_file
from rcmnet_jax.models import Network
from rcmnet_jax.settings import from_dict

Tree = dict[str, Any]
TOLERANCE = 1e-4  # of probabilities
_HEAD = ("fc.weight", "head.weight")  # torchvision's ResNets and timm's; timm's ViTs
_HEADS_LEAVES = (*_HEAD, "fc.bias", "head.bias")


def convert(
    weights: Path,
    output: Path,
    name: str,
    *,
    classes: tuple[str, ...] | None = None,
    size: int | None = None,
    allow_missing: bool = False,
    verify: str | None = None,
) -> Bundle:
    """Writes the bundle `output` of the model `name`, filled from the state dict at `weights`; says what became of it.

    Args:
      weights: the file; 'imagenet' for torchvision's of the model's body.
      classes: the names; without them class_0, class_1, ... as many as the file's head has. The file's head is taken
        where it has as many classes, else the head stays as initialised.
      size: side of the images that the bundle takes, pixels; without it as an export of ours says, else 224.
      allow_missing: whether leaves that the file lacks may stay as initialised (seed 0).
      verify: images to compare the result on with the same network in plain PyTorch; needs PyTorch.

    Raises:
      UserError: weights or arguments that cannot be used; `output` is there already.
      GuardError: plain PyTorch answers otherwise; nothing is written.
    """
    if size is None:
        size = _described_size(weights)
    _check(output, name, size, verify)
    console = Console()
    if str(weights) == published.WORD:
        weights = published.fetch(ModelConfig(name=name), console)
    state = read_state(weights)
    names, keeps_head = _classes(weights, state, classes)
    config = _config(weights, state, name)
    network = Network(config, classes=len(names), image_size=size, imported=is_imported(weights, state))
    found = as_trees(weights, state)
    if not allow_missing:
        _refuse_missing(weights, network, *found, keeps_head)
    head, position = () if keeps_head else network.head, network.is_position_table
    params, stats, report = transfer(
        *found, *network.init(0), head=head, position=position, allow_missing=allow_missing
    )
    for line in report.lines():
        console.say(line)
    if not keeps_head:
        console.warn("the head starts at random: train it before its answers mean anything")
    elif "cls_token" in state:
        console.warn("the file's head reads a class token, this model's the patches' mean: train it before use")
    origin = {"file": weights.name, "sha256": sha256_file(weights), "leaves": report.to_dict()}
    provenance = {"stage": "converted", "weights": origin}
    made = Bundle(network, names, ImageRule(size), jax.device_get(params), jax.device_get(stats), provenance)
    if verify is not None:
        resized = {leaf.name.rsplit("/", 1)[-1] for leaf in report.of("resized")}
        _verify(made, state, keeps_head, resized, verify, console)
    bundles.write(output, made)
    console.say(f"bundle: {output}")
    console.say(bundles.DISCLAIMER)
    return made


def _check(output: Path, name: str, size: int, verify: str | None) -> None:
    from rcmnet_jax.export.folder import refuse_occupied
    from rcmnet_jax.export.pytorch import need

    refuse_occupied(output)
    if name not in MODEL_NAMES:
        raise UserError(f"--model={name}: no such model{suggestion(name, MODEL_NAMES)}")
    if not 32 <= size <= 4096:
        raise UserError(f"--size={size}: must be from 32 to 4096 pixels.")
    if verify is not None:
        need("torch", what="--verify")


def _classes(weights: Path, state: State, wanted: tuple[str, ...] | None) -> tuple[tuple[str, ...], bool]:
    """The class names, and whether the file has a head for them."""
    head = next((state[name] for name in _HEAD if name in state and state[name].ndim == 2), None)
    if wanted is None:
        if head is None:
            raise UserError(f"{weights}: has no head, so the classes are not known. Name them with --classes=A,B,...")
        wanted = tuple(f"class_{k}" for k in range(len(head)))
    if not all(wanted) or len(set(wanted)) < len(wanted) or not 2 <= len(wanted) <= 10_000:
        raise UserError(f"--classes={','.join(wanted)[:80]}: must be at least two names, each once, none empty.")
    return wanted, head is not None and len(head) == len(wanted)


def _config(weights: Path, state: State, name: str) -> ModelConfig:
    """The model `name` as an export of ours describes it, else as published, of the width that the file has."""
    told = described(weights).get("model", {})
    if told.get("name") == name:
        return from_dict(told, ModelConfig, "architecture.json: model")
    if name.startswith("vit") and (other := _OTHER_VITS.get(_channels(state))):
        raise UserError(f"{weights}: has {_channels(state)} channels, as {other}, whose heads are not ViT-S/16's 6.")
    return ModelConfig(name=name, width=_width(state, name))


def _described_size(weights: Path) -> int:
    """The side of the images that an export of ours was trained on, else the published networks'."""
    height, width = described(weights).get("image_size", (224, 224))
    if height != width:
        raise UserError(f"{weights}: its network takes images of {height} x {width} pixels. Give the side as --size.")
    return int(height)


# Published with other numbers of heads, which no shape in a file tells.
_OTHER_VITS = {192: "ViT-Ti", 768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}


def _channels(state: State) -> int:
    """Those of the stem, 0 where the file has none."""
    found = state.get("patch_embed.proj.weight", state.get("conv1.weight"))
    return 0 if found is None else int(found.shape[0])


def _width(state: State, name: str) -> int:
    """The stem's width, by the file; the published one where it does not say."""
    width = _channels(state) // (6 if name.startswith("vit") else 1)
    return width if width >= 8 and width % 8 == 0 and width <= 512 else ModelConfig.width


def _refuse_missing(weights: Path, network: Network, params: Tree, stats: Tree, keeps_head: bool) -> None:
    wanted, have = network.abstract(), flatten(params, "") | flatten(stats, "")
    lacking = [k for k in flatten(wanted[0], "") | flatten(wanted[1], "") if k not in have]
    if not keeps_head:
        lacking = [k for k in lacking if k.split(".")[1] not in network.head]
    if lacking:
        parts = Counter(".".join(k.split(".")[1:4] if k.startswith(".layer") else k.split(".")[1:2]) for k in lacking)
        shown = ", ".join(f"{part} ({n})" for part, n in list(parts.items())[:12])
        more = f" and {len(parts) - 12} parts more" if len(parts) > 12 else ""
        raise UserError(
            f"{weights}: {network.config.name} has {len(lacking)} leaves that the file lacks: {shown}{more}. "
            "Take whole weights of this model, or give --allow-missing to leave them as initialised."
        )


def _verify(made: Bundle, state: State, keeps_head: bool, resized: set[str], data: str, console: Console) -> None:
    """Compares with plain PyTorch that reads the file's own arrays wherever it has them."""
    from rcmnet_jax.data.prepare import prepare
    from rcmnet_jax.export import pytorch
    from rcmnet_jax.training.sharding import Placement

    theirs = to_torch(made.params, made.batch_stats)
    own = [k for k in theirs.keys() & state.keys() if k.rsplit(".", 1)[-1] not in resized]
    own = [k for k in own if keeps_head or k not in _HEADS_LEAVES]
    theirs |= {k: state[k].astype(np.float32) for k in own}
    twin = pytorch.module(made.network, theirs)
    images = prepare(data, made.rule, labelled=False).images()
    wanted, found = pytorch.answers(twin, images), made.answers(images, Placement.everywhere()).probabilities
    worst = float(np.abs(found - wanted).max())
    console.say(f"verified on {len(images)} images: probabilities within {worst:.1e} of plain PyTorch's")
    if not worst <= TOLERANCE:
        raise GuardError(f"The probabilities differ from plain PyTorch's by {worst:.1e}: nothing was written.")
