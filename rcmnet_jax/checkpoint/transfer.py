"""Head surgery: a pretrained body into a model with another head, class count or size, every leaf accounted for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcmnet_jax.errors import UserError

Tree = dict[str, Any]
Path = tuple[str, ...]

KINDS = ("loaded", "resized", "new", "unused")
_NAMED = 6  # leaves that a line of the report names before it only counts


@dataclass(frozen=True)
class Leaf:
    """What became of one leaf."""

    name: str  # 'params/fc/kernel', 'batch_stats/bn1/mean'
    kind: str  # loaded | resized | new (as initialised) | unused (of the source)
    shape: tuple[int, ...]  # in the target; in the source for an unused one
    source_shape: tuple[int, ...] | None = None  # of a resized one

    @property
    def parameters(self) -> int:
        """How many trainable numbers; running statistics are none."""
        return math.prod(self.shape) if self.name.startswith("params/") else 0


@dataclass(frozen=True)
class Report:
    """The account of a transfer: a target leaf is loaded, resized or new; a source leaf used or unused."""

    leaves: tuple[Leaf, ...]

    def of(self, kind: str) -> tuple[Leaf, ...]:
        """The leaves of one kind, by name."""
        return tuple(leaf for leaf in self.leaves if leaf.kind == kind)

    def parameters(self, kind: str) -> int:
        """Trainable numbers of one kind. Loaded, resized and new together are the target's parameter count."""
        return sum(leaf.parameters for leaf in self.of(kind))

    def lines(self) -> list[str]:
        """One line for each kind that occurs, for people."""
        return [self._line(kind, self.of(kind)) for kind in KINDS if self.of(kind)]

    def _line(self, kind: str, leaves: tuple[Leaf, ...]) -> str:
        line = f"{kind}: {len(leaves)} leaves, {self.parameters(kind):,} parameters"
        if kind == "loaded":
            return line
        shown = [_say(leaf) for leaf in leaves[:_NAMED]]
        more = f" and {len(leaves) - _NAMED} more" if len(leaves) > _NAMED else ""
        return f"{line} ({', '.join(shown)}{more})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: for each kind its leaves' names (with both shapes where resized), their number and parameters."""
        return {
            kind: {
                "leaves": len(self.of(kind)),
                "parameters": self.parameters(kind),
                "names": [_say(leaf) for leaf in self.of(kind)],
            }
            for kind in KINDS
        }


def transfer(
    source_params: Tree,
    source_stats: Tree,
    target_params: Tree,
    target_stats: Tree,
    *,
    head: Path,
    position: Callable[[Path], bool],
    allow_missing: bool = False,
) -> tuple[Tree, Tree, Report]:
    """The target's trees with the source's body in them; the head, and what the source lacks, stay as initialised.

    Position tables of another size are interpolated: relative ones (2H-1, d), named rel_*, linearly over the offset,
    where an offset o of the target is o H/H' of the source's cells; absolute ones (H, d) or (H, W, d) bilinearly.

    Args:
      source_params, source_stats: the pretrained weights and running statistics, numpy or JAX leaves.
      target_params, target_stats: freshly initialised, of the model to fill; they give every shape and dtype.
      head: key prefix of the classification head; () to transfer the head like the rest.
      position: whether the leaf of params at a path is a position table.
      allow_missing: whether leaves of the body that the source lacks may stay as initialised.

    Returns:
      params, batch_stats and the account. All arrays are of the host and new, whatever becomes of the arguments.

    Raises:
      UserError: a leaf that is missing, of a shape that does not fit, or not finite; or a source of which nothing fits.
    """

    def keeps_initial(path: Path) -> bool:
        return bool(head) and path[: len(head)] == head

    params, of_params = _merge("params", source_params, target_params, keeps_initial, position, allow_missing)
    stats, of_stats = _merge("batch_stats", source_stats, target_stats, keeps_initial, lambda _: False, allow_missing)
    report = Report(tuple(sorted(of_params + of_stats, key=lambda leaf: (leaf.name, leaf.kind))))
    if not report.of("loaded"):
        names = ", ".join(leaf.name for leaf in report.of("unused")[:3]) or "nothing"
        raise UserError(f"None of the weights fits the model; they hold {names}. Check the file and model.name.")
    return params, stats, report


def _merge(
    root: str,
    source: Tree,
    target: Tree,
    keeps_initial: Callable[[Path], bool],
    position: Callable[[Path], bool],
    allow_missing: bool,
) -> tuple[Tree, list[Leaf]]:
    """One tree of the transfer and what became of its leaves and of the source's."""
    have = dict(_walk(source))
    leaves: list[Leaf] = []
    result: Tree = {}
    for path, initial in _walk(target):
        name = "/".join((root, *path))
        found = None if keeps_initial(path) else have.pop(path, None)
        if found is None and not (keeps_initial(path) or allow_missing):
            raise UserError(
                f"{name}: the model needs it with shape {np.shape(initial)}, and the weights have no such leaf. "
                "Take weights of this model, or allow missing leaves to start as initialised."
            )
        value, leaf = _fill(name, found, initial, position(path))
        leaves.append(leaf)
        _put(result, path, value)
    leaves += [Leaf("/".join((root, *path)), "unused", np.shape(value)) for path, value in have.items()]
    return result, leaves


def resize_relative(table: np.ndarray, rows: int) -> np.ndarray:
    """A relative table (2H-1, d) for another axis length H' = (rows + 1) / 2, float64 (rows, d).

    Offset o of the target lies at o H/H' in the source, so that a table keeps its meaning as a fraction of the image;
    offset 0 stays exactly. Beyond the source's last offset its edge value holds.
    """
    old, new = (len(table) + 1) // 2, (rows + 1) // 2
    return _interpolate(table, 0, np.arange(-(new - 1), new) * (old / new) + (old - 1))


def resize_absolute(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An absolute table, (H, d) or (H, W, d), at another size: linear over cell centres on each axis, edges held."""
    result = np.asarray(table, np.float64)
    for axis, new in enumerate(shape[:-1]):
        old = result.shape[axis]
        result = _interpolate(result, axis, (np.arange(new) + 0.5) * (old / new) - 0.5)
    return result


def _interpolate(table: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """Linear interpolation along an axis at fractional indices, clamped to the table."""
    values = np.moveaxis(np.asarray(table, np.float64), axis, 0)
    places = np.clip(places, 0, len(values) - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (places - low).reshape(-1, *[1] * (values.ndim - 1))
    return np.moveaxis(values[low] * (1 - share) + values[high] * share, 0, axis)


def _fill(name: str, found: Any, initial: Any, is_position: bool) -> tuple[Any, Leaf]:
    shape, dtype = np.shape(initial), initial.dtype
    if found is None:
        return np.array(initial), Leaf(name, "new", shape)
    value = np.asarray(found)
    if not np.isfinite(value.astype(np.float64)).all():
        raise UserError(
            f"{name}: the weights hold values that are not finite (shape {value.shape}). Take a sound copy."
        )
    if value.shape == shape:
        return np.array(value, dtype), Leaf(name, "loaded", shape)
    relative = name.rsplit("/", 1)[-1].startswith("rel_")
    fits = value.ndim == len(shape) >= 2 and value.shape[-1] == shape[-1] and min(value.shape) > 0
    if not (is_position and fits and (not relative or value.shape[0] % 2 == shape[0] % 2 == 1)):
        raise UserError(
            f"{name}: the weights have shape {value.shape}, the model needs {shape}. "
            "Use the model's settings that the weights were made with."
        )
    resized = resize_relative(value, shape[0]) if relative else resize_absolute(value, shape)
    return np.asarray(resized, dtype), Leaf(name, "resized", shape, value.shape)


def _walk(tree: Mapping[str, Any], prefix: Path = ()) -> Iterable[tuple[Path, Any]]:
    for key in sorted(tree):
        path = (*prefix, key)
        if isinstance(tree[key], Mapping):
            yield from _walk(tree[key], path)
        else:
            yield path, tree[key]


def _put(tree: Tree, path: Path, value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _say(leaf: Leaf) -> str:
    if leaf.source_shape is None:
        return leaf.name
    return f"{leaf.name} {leaf.source_shape} -> {leaf.shape}"
