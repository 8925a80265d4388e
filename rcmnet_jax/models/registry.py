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
        params, stats = network.abstract()
        image = placeholder((1, image_size, image_size, 3))
        with portable():  # on the CPU some forms save a part of the products
            program = jax.make_jaxpr(lambda *args, network=network: network(*args)[0])(params, stats, image)
        work = _flops(program.jaxpr)
        rows.append({"name": name, "parameters": count(params), "gflops": round(work / 1e9, 3)})
    return rows


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
