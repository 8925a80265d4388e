"""A batch split over devices: each computes its own images, and only sums over all of them travel."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from rcmnet_jax.models import conv, norm, reduce
from rcmnet_jax.models.kernel_gradient import turned_conv
from rcmnet_jax.models.winograd import winograd_conv
from rcmnet_jax.training.sharding import Placement

IMAGES, KERNEL = (16, 8, 8, 16), (3, 3, 16, 16)
# What computes it, the shape that is split, and the shapes that every device has whole.
PARTS = {
    "batch norm": (norm.batch_norm, IMAGES, (16,), (16,)),
    "layer norm": (norm.layer_norm, (16, 4, 16), (16,), (16,)),
    "channel gate": (reduce.summarise_space, IMAGES),
    "spatial gate": (reduce.summarise_channels, IMAGES),
    "bias": (reduce.biased, (16, 8), (8,)),
    "pool": (conv.max_pool, IMAGES),
    "pointwise": (lambda x, kernel: conv.pointwise_conv(x, kernel, 2), IMAGES, (1, 1, 16, 16)),
    "band": (lambda x, kernel: conv.banded_conv(x, kernel, 3), (16, 8, 8, 2), (7, 7, 2, 1)),
    "taps": (lambda x, kernel: conv.taps_conv(x, kernel, 2, 1), IMAGES, KERNEL),
    "patches": (lambda x, kernel: conv.patches_conv(x, kernel, 2, 1), IMAGES, KERNEL),
    "turned": (lambda x, kernel: turned_conv(x, kernel, 2, 1), IMAGES, KERNEL),
    "tiles of two": (lambda x, kernel: winograd_conv(x, kernel, 2), (16, 7, 7, 16), KERNEL),
    "tiles of four": (lambda x, kernel: winograd_conv(x, kernel, 4), IMAGES, KERNEL),
}


@pytest.mark.parametrize("name", PARTS)
def test_no_pixels_travel_between_devices(name):
    part, split, *whole = PARTS[name]
    placement = Placement.everywhere()
    assert placement.devices == 8

    def loss(*values):
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(part(*values)))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (split, *whole)]
    step = jax.jit(
        jax.value_and_grad(loss, argnums=tuple(range(len(shapes)))),
        in_shardings=(placement.split, *[placement.replicated] * len(whole)),
    )
    moved = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", step.lower(*shapes).compile().as_text())
    assert "all-reduce" in moved, "the loss is a sum over all images"
    assert set(moved) == {"all-reduce"}
