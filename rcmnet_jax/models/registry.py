"""What models there are, with their size and work."""

from __future__ import annotations

import math
from typing import Any

import jax

from rcmnet_jax.config import ModelConfig
from rcmnet_jax.models.backend import portable
from rcmnet_jax.models.layers import placeholder
from rcmnet_jax.models.network import Network, count
from rcmnet_jax.models.rcmnet import MODELS


def table(image_size: int = 224, classes: int = 8) -> list[dict[str, Any]]:
    """One row a model: name, parameters, gflops (one image's forward pass by definition, 2 a multiply-add)."""
    rows = []
    for name in MODELS:
        network = Network(ModelConfig(name=name), classes=classes, image_size=image_size)
        gflops = round(forward_flops(network) / 1e9, 3)
        rows.append({"name": name, "parameters": count(network.abstract()[0]), "gflops": gflops})
    return rows


def forward_flops(network: Network) -> int:
    """Of one image's forward pass by definition: 2 for each multiply-add of convolutions and products."""
    with portable():  # on the CPU some forms save a part of the products
        image = placeholder((1, *network.image_size, 3))
        program = jax.make_jaxpr(lambda *args: network(*args)[0])(*network.abstract(), image)
    return _flops(program.jaxpr)


def _flops(jaxpr: Any) -> int:
    """2 for each multiply-add of the convolutions and products in a program, and in the programs it calls."""
    total = 0
    for equation in jaxpr.eqns:
        shape = equation.outvars[0].aval.shape
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += 2 * math.prod(shape) * math.prod(kernel[:3])
        elif equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(shape) * math.prod(left[a] for a in axes)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                total += _flops(inner) if hasattr(inner, "eqns") else 0
    return total
