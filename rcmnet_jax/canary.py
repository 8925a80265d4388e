"""A check before anything is trusted: programs that XLA is known to get wrong, and this model's attention and gates."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rcmnet_jax import models
from rcmnet_jax.errors import GuardError
from rcmnet_jax.models.cbam import CBAM
from rcmnet_jax.models.mhsa import MHSA
from rcmnet_jax.models.norm import EPSILON
from rcmnet_jax.runtime import KEEP_DEFECT, YNN_FLAG, circumstances, cores, user_flags

Tree = dict[str, Any]
Result = tuple[str, Any, np.ndarray]  # what it is, what JAX gives, what is right
Reference = Callable[[np.ndarray, Tree], np.ndarray]
_WIDTH, _HEADS, _SIDE = 8, 2, 4


def check(folder: Path | None = None) -> None:
    """Runs small programs against NumPy in float64; a second or two, and nothing where `folder` says it did before.

    Args:
      folder: where compiled programs are kept, so that what passed once would be the same programs again. Looked at on
        the CPU alone, whose compiler is jaxlib itself: those of accelerators and their libraries have no one version.

    Raises:
      GuardError: a result is off by more than rounding: nothing this machine computes is to be trusted.
    """
    note = folder / f"checked-{_circumstances()}" if folder is not None and jax.default_backend() == "cpu" else None
    with contextlib.suppress(OSError):  # a folder that cannot be read holds no note
        if note is not None and note.exists():
            return
    # Devices that multiply in TF32 or bfloat16 are off by up to some 1e-2, the known defects by much more.
    bound = 1e-4 if jax.default_backend() == "cpu" else 5e-2
    for name, got, want in (*_known_wrong(), *_attention(), *_gates()):
        limit = bound * np.abs(want).max()
        error = np.abs(np.asarray(got, np.float64) - want).max()
        if not error <= limit:
            raise GuardError(
                f"The compiler of this machine gets {name} wrong (off by {error:.3g}, at most {limit:.3g} is rounding; "
                f"jaxlib {importlib.metadata.version('jaxlib')}, XLA_FLAGS='{os.environ.get('XLA_FLAGS', '')}'). Unset "
                f"{KEEP_DEFECT}, or add '--{YNN_FLAG}=' to XLA_FLAGS, or install another jaxlib."
            )
    with contextlib.suppress(OSError):  # nor one that cannot be written
        if note is not None:
            note.touch()


def _circumstances() -> str:
    """A digest of processor, cores, packages, XLA's flags and the environment's settings of JAX, and our code."""
    places = ("CACHE", "COORDINATOR", "PROCESS")  # where things are, not how they are compiled
    named = [name for name in os.environ if name.startswith("JAX_") and not any(place in name for place in places)]
    settings = [(name, os.environ[name]) for name in sorted(named)]
    code = (Path(__file__), *sorted(Path(models.__file__).parent.glob("*.py")))
    packages = ("jax", "jaxlib", "flax", "numpy")
    return circumstances(code, packages, cores(), jax.device_count(), user_flags(), settings)


def _known_wrong() -> Iterator[Result]:
    """A matrix-vector product under vmap with its squared norm; a batched product with a broadcast operand."""
    steps = np.arange(32_769, dtype=np.float32)
    rows = np.stack([steps, 0 * steps, 0 * steps], axis=1)
    random = np.random.default_rng(0)
    queries = random.standard_normal((4, 4, 16, 32), dtype=np.float32)
    table = random.standard_normal((1, 1, 16, 32), dtype=np.float32)

    @jax.jit
    def norms(matrix: jax.Array, rows: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)

    @jax.jit
    def logits(queries: jax.Array, table: jax.Array) -> jax.Array:
        return jnp.einsum("bhnd,bhmd->bhnm", queries, jnp.broadcast_to(table, queries.shape))

    exact = queries.astype(np.float64) @ table.astype(np.float64).transpose(0, 1, 3, 2)
    yield "a sum of squares", norms(np.eye(3, dtype=np.float32), rows), steps.astype(np.float64) ** 2
    yield "a batched product", logits(queries, table), exact


def _attention() -> Iterator[Result]:
    """Self-attention with relative positions."""
    module = MHSA(_WIDTH, _WIDTH, (_SIDE, _SIDE), heads=_HEADS, position="relative")
    return _compared("self-attention", module, lambda module, x: module(x), _attention_in_numpy)


def _gates() -> Iterator[Result]:
    """Both gates of CBAM in training mode, so that the batch is normalised by its own moments."""
    module = CBAM(_WIDTH, reduction=4, kernel=7, kind="batch", identity=False)
    return _compared("the attention gates", module, lambda module, x: module(x, True), _gates_in_numpy)


def _compared(name: str, module: nnx.Module, call: Callable[..., jax.Array], reference: Reference) -> Iterator[Result]:
    """Output, and the gradients of one random projection of it by input and by each parameter, all values random."""
    random = np.random.default_rng(1)
    parts: tuple[Any, Any, Any] = nnx.split(module, nnx.Param, nnx.BatchStat)  # type: ignore[assignment]
    graph, blank, blank_stats = parts

    def fill(leaf: Any) -> np.ndarray:
        return np.asarray(random.normal(0, 0.5, leaf.shape), np.float32)

    params = jax.tree.map(fill, dict(nnx.to_pure_dict(blank)))
    stats = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), dict(nnx.to_pure_dict(blank_stats)))
    x = random.standard_normal((2, _SIDE, _SIDE, _WIDTH), dtype=np.float32)
    weights = random.standard_normal(x.shape, dtype=np.float32)

    @jax.jit
    def run(x: jax.Array, params: Tree, stats: Tree, weights: jax.Array) -> Any:
        def projected(x: jax.Array, params: Tree) -> tuple[jax.Array, jax.Array]:
            y = call(nnx.merge(graph, params, stats), x)
            return (y * weights).sum(), y

        return jax.value_and_grad(projected, (0, 1), has_aux=True)(x, params)

    (_, y), gradients = run(x, params, stats, weights)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), (x, params))
    yield name, y, reference(*wide)
    right = _slopes(lambda: float((reference(*wide) * weights).sum()), wide)
    for got, want in zip(jax.tree.leaves(gradients), right, strict=True):
        yield f"{name}, a gradient", got, want


def _slopes(value: Callable[[], float], arguments: Any, step: float = 1e-5) -> list[np.ndarray]:
    """Central differences of `value` by each element of the float64 arrays that it reads; right to some 1e-9."""
    slopes = []
    for leaf in jax.tree.leaves(arguments):
        slope, flat = np.zeros(leaf.size), leaf.reshape(-1)
        for i, kept in enumerate(flat.tolist()):
            flat[i] = kept + step
            above = value()
            flat[i] = kept - step
            slope[i] = (above - value()) / (2 * step)
            flat[i] = kept
        slopes.append(slope.reshape(leaf.shape))
    return slopes


def _attention_in_numpy(x: np.ndarray, params: Tree) -> np.ndarray:
    """BoTNet's attention (Srinivas et al. 2021, fig. 4) on (B, H, W, C)."""
    batch, height, width, _ = x.shape
    depth = _WIDTH // _HEADS
    tokens = x.reshape(batch, height * width, -1)
    query, key, value = (
        (tokens @ params[name]["kernel"][0, 0]).reshape(batch, -1, _HEADS, depth).transpose(0, 2, 1, 3)
        for name in ("query", "key", "value")
    )
    row, column = np.divmod(np.arange(height * width), width)
    across = params["rel_height"][row - row[:, None] + height - 1]  # (N, N, d): from each query to each key
    along = params["rel_width"][column - column[:, None] + width - 1]
    places = ((across + along) @ query[..., None])[..., 0]
    logits = (query @ key.transpose(0, 1, 3, 2) + places) / np.sqrt(depth)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    mixed: np.ndarray = (odds / odds.sum(-1, keepdims=True)) @ value
    return mixed.transpose(0, 2, 1, 3).reshape(x.shape)


def _gates_in_numpy(x: np.ndarray, params: Tree) -> np.ndarray:
    """CBAM (Woo et al. 2018, eq. 1 to 3) on (B, H, W, C), its norm by the batch's moments."""
    squeeze, expand = params["channel"]["squeeze"], params["channel"]["expand"]

    def shared(summary: np.ndarray) -> np.ndarray:
        hidden = np.maximum(summary @ squeeze["kernel"] + squeeze["bias"], 0)
        return np.asarray(hidden @ expand["kernel"] + expand["bias"])

    logits = shared(x.mean((1, 2))) + shared(x.max((1, 2)))
    x = x / (1 + np.exp(-logits))[:, None, None, :]
    kernel, norm = params["spatial"]["conv"]["kernel"], params["spatial"]["bn"]
    reach = len(kernel) // 2
    maps = np.pad(np.stack([x.max(-1), x.mean(-1)], -1), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(maps, kernel.shape[:2], (1, 2))  # (B, H, W, 2, k, k)
    y = np.tensordot(views, kernel[..., 0], ((4, 5, 3), (0, 1, 2)))
    y = (y - y.mean()) / np.sqrt(y.var() + EPSILON) * norm["scale"] + norm["bias"]
    gated: np.ndarray = x / (1 + np.exp(-y))[..., None]
    return gated
