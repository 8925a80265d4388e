"""Which backend a program is traced for: what computes well on one may be slow, or not lower at all, on another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import jax

Function = TypeVar("Function", bound=Callable[..., object])

# Part of the key of JAX's caches, so that nothing traced for one purpose serves the other.
_PORTABLE = jax.make_user_context(False)  # type: ignore[no-untyped-call]


def portable() -> AbstractContextManager[None]:
    """Programs traced in this context take XLA's own forms alone: they run on every backend, for exports."""
    context: AbstractContextManager[None] = _PORTABLE(True)
    return context


def on_cpu() -> bool:
    """Whether programs traced now are for the CPU at hand."""
    return not _PORTABLE.value and jax.default_backend() == "cpu"


def traced_once(*static: str) -> Callable[[Function], Function]:
    """Has a function traced and lowered once for all arguments of the same shapes, within a program as well.

    A network calls its parts with few shapes many times. Without this each call is written out anew: tracing RCMNet's
    training step took 1.3 to 1.6 times as long, its text had twice the lines (docs/performance.md). XLA puts the copies
    in place before it looks at the program. `static` names the arguments that are no arrays; whether the program is to
    be `portable` is part of the key as well.
    """
    return functools.partial(jax.jit, static_argnames=static)  # type: ignore[return-value]
