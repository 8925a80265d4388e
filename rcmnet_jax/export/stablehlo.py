"""A bundle as one StableHLO program with its weights inside, for CPU, CUDA and TPU, any number of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from rcmnet_jax.bundle import Bundle
from rcmnet_jax.evaluation.predict import dihedral
from rcmnet_jax.export.folder import temperature_of
from rcmnet_jax.files import write_atomic
from rcmnet_jax.models.backend import portable

PLATFORMS = ("cpu", "cuda", "tpu")


def program(bundle: Bundle) -> export.Exported:
    """uint8 images (N, S, S, 3) -> float32 probabilities (N, K), N free."""
    size, temperature = bundle.rule.size, temperature_of(bundle)

    def probabilities(images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 255
        if bundle.views == "dihedral":
            each, _ = bundle.network(bundle.params, bundle.batch_stats, jnp.concatenate(dihedral(x)))
            logits = each.reshape(8, images.shape[0], -1).mean(0)
        else:
            logits, _ = bundle.network(bundle.params, bundle.batch_stats, x)
        return jax.nn.softmax(logits / temperature)

    (count,) = export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)  # type: ignore[no-untyped-call]
    # Otherwise a GPU may multiply in TF32 and a TPU in bfloat16: too coarse for probabilities that agree to 1e-4.
    with portable(), jax.default_matmul_precision("highest"):
        return export.export(jax.jit(probabilities), platforms=PLATFORMS)(images)


def write(bundle: Bundle, folder: Path, images: np.ndarray) -> np.ndarray:
    """Writes model.stablehlo, as jax.export serialises it, and answers the images by what was written."""
    path = folder / "model.stablehlo"
    write_atomic(path, bytes(program(bundle).serialize()))
    read: Any = export.deserialize(bytearray(path.read_bytes()))
    return np.asarray(read.call(images))
