"""What programs are traced for, and that parts of a network are traced no more often than they have to be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.models.backend import on_cpu, portable, traced_once


def test_a_part_is_traced_once_for_a_shape_and_anew_for_what_runs_elsewhere():
    traced = []

    @traced_once("times")
    def part(x: jax.Array, times: int) -> jax.Array:
        traced.append((x.shape, times, on_cpu()))
        return times * x

    def program(x: jax.Array) -> jax.Array:
        return part(part(part(x, times=2), times=2), times=3)

    here = jax.default_backend() == "cpu"
    np.testing.assert_array_equal(jax.jit(program)(jnp.ones(4)), np.full(4, 12.0))
    assert traced == [((4,), 2, here), ((4,), 3, here)]
    with portable():
        np.testing.assert_array_equal(jax.jit(program)(jnp.ones(4)), np.full(4, 12.0))
    assert traced[2:] == [((4,), 2, False), ((4,), 3, False)]
