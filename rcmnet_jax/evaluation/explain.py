"""Where in an image a network finds its answer: Grad-CAM and LayerCAM of a feature map, the last block's attention.

Such a map shows what the score depends on to first order, on the grid of a feature map. It is no proof of a reason:
docs/evaluation.md has the checks by weight randomisation and by deletion and insertion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rcmnet_jax.models import Network

Tree = Any
Floats = NDArray[np.float32]
Program = Callable[[Tree, Tree, Array, Array], tuple[Array, ...]]

BATCH = 32  # images a pass, the last one padded: one compiled program whatever their number
METHODS = ("gradcam", "layercam")
NAMES = {"gradcam": "Grad-CAM", "layercam": "LayerCAM"}
FINE = 4  # positions along a side, below which a map can hardly say more than "the middle"


def choice(network: Network) -> tuple[str, str]:
    """The layer and method to show: the last layer whose map has 4 positions a side, by Grad-CAM.

    Of the maps that change with the weights, this one did best in deletion and insertion. LayerCAM did better, but
    looks much the same with another head: it shows the cell, not the answer (docs/evaluation.md has the figures).
    """
    halvings = {"layer4": 5, "layer3": 4, "layer2": 3}
    for layer, times in halvings.items():
        if layer in network.layers and min(network.image_size) >= FINE << times:
            return layer, "gradcam"
    return network.layers[0], "gradcam"


def grad_cam(features: Array, gradient: Array) -> Array:
    """ReLU(sum_k a_k A^k), a_k the spatial mean of dy/dA^k (Selvaraju et al. 2017, eq. 1 and 2).

    features and gradient are (B, h, w, C); returns (B, h, w).
    """
    return jax.nn.relu((features * gradient.mean((1, 2), keepdims=True)).sum(-1))


def layer_cam(features: Array, gradient: Array) -> Array:
    """ReLU(sum_k ReLU(dy/dA^k) A^k), position by position (Jiang et al. 2021, eq. 6 and 7); shapes as `grad_cam`."""
    return jax.nn.relu((features * jax.nn.relu(gradient)).sum(-1))


def heat(
    network: Network,
    params: Tree,
    batch_stats: Tree,
    images: NDArray[np.uint8],
    classes: NDArray[np.integer],
    *,
    layer: str,
    method: str,
) -> Floats:
    """How much each position of a layer's feature map speaks for a class, (N, h, w), not negative.

    y is the class's logit, before the softmax. Runs on one device of this process.

    Args:
      images: uint8 (N, S, S, 3).
      classes: (N,) the class asked about, for each image.
      layer: one of `network.layers`.
      method: gradcam or layercam.
    """
    return _batched(_program(network, layer, method, False), params, batch_stats, images, classes)[0]


def attention(network: Network, params: Tree, batch_stats: Tree, images: NDArray[np.uint8]) -> Floats:
    """Attention that each position of the last block's map receives, (N, h, w), summing to 1.

    The mean over heads and queries; it belongs to no class. Only for a network that `attends`.
    """
    return _batched(_program(network, "", "", True), params, batch_stats, images, np.zeros(len(images), np.int32))[0]


def chosen(
    network: Network, params: Tree, batch_stats: Tree, images: NDArray[np.uint8], classes: NDArray[np.integer]
) -> tuple[Floats, Floats | None]:
    """`heat` by the layer and method of `choice`, and `attention` where the network attends: one program, one pass."""
    layer, method = choice(network)
    found = _batched(_program(network, layer, method, network.attends), params, batch_stats, images, classes)
    return found[0], found[1] if network.attends else None


def enlarge(maps: Floats, size: int) -> Floats:
    """Maps (N, h, w) at the image's size, (N, size, size) bilinear, each from 0 to 1; a map of zeros stays so."""
    top = maps.max((1, 2), keepdims=True, initial=0)
    scaled = jnp.asarray(maps / np.where(top > 0, top, 1))
    large: Floats = np.clip(np.asarray(jax.image.resize(scaled, (len(maps), size, size), "linear")), 0, 1)
    return large


@functools.lru_cache(maxsize=64)
def _program(network: Network, layer: str, method: str, received: bool) -> Program:
    """The heat map of a layer, none where that is '', and the attention received where it is asked for."""

    def run(params: Tree, batch_stats: Tree, images: Array, classes: Array) -> tuple[Array, ...]:
        weights, x = (params, batch_stats), images.astype(jnp.float32) / 255
        heats = (_heat(network, weights, x, classes, layer, method),) if layer else ()
        return heats + ((_received(network, weights, x),) if received else ())

    return jax.jit(run)


def _heat(network: Network, weights: tuple[Tree, Tree], x: Array, classes: Array, layer: str, method: str) -> Array:
    features = network.feature_map(*weights, x, layer)

    def score(features: Array) -> Array:
        logits = network.logits_of_map(*weights, features, layer)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()  # images do not touch each other

    return {"gradcam": grad_cam, "layercam": layer_cam}[method](features, jax.grad(score)(features))


def _received(network: Network, weights: tuple[Tree, Tree], x: Array) -> Array:
    height, width = jax.eval_shape(network.features, *weights, x).shape[1:3]
    return network.attention(*weights, x).mean((1, 2)).reshape(-1, height, width)  # of (B, heads, N, N)


def _batched(
    run: Program, params: Tree, batch_stats: Tree, images: NDArray[np.uint8], classes: NDArray[np.integer]
) -> list[Floats]:
    """What the program gives for all images."""
    if not len(images):
        return [np.zeros((0, 1, 1), np.float32)] * 2
    parts: list[list[Floats]] = []
    for start in range(0, len(images), BATCH):
        rows = np.arange(start, start + BATCH) % len(images)  # filled up with images seen before
        found = run(params, batch_stats, jnp.asarray(images[rows]), jnp.asarray(classes[rows], jnp.int32))
        parts.append([np.asarray(each)[: len(images) - start] for each in found])
    return [np.concatenate(each) for each in zip(*parts, strict=True)]
