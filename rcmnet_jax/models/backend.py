"""Which backend a program is traced for: what computes well on one may be slow, or not lower at all, on another."""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax

# Part of the key of JAX's caches, so that nothing traced for one purpose serves the other.
_PORTABLE = jax.make_user_context(False)  # type: ignore[no-untyped-call]


def portable() -> AbstractContextManager[None]:
    """Programs traced in this context take XLA's own forms alone: they run on every backend, for exports."""
    context: AbstractContextManager[None] = _PORTABLE(True)
    return context


def on_cpu() -> bool:
    """Whether programs traced now are for the CPU at hand."""
    return not _PORTABLE.value and jax.default_backend() == "cpu"
