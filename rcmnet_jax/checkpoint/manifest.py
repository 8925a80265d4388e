"""What a checkpoint folder is called and what it says it holds: a mismatch is named before any array is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rcmnet_jax.errors import UserError

LEAVES = "leaves.json"
FACTS = "facts.json"
_STEP = re.compile(r"step_(\d{9,})")

Leaves = dict[tuple[str, ...], Any]  # path of string keys to leaf, in the tree's order
Shapes = dict[str, dict[str, Any]]  # 'params/conv1/kernel' to {"shape": [...], "dtype": "float32"}


def step_folder(step: int) -> str:
    """`step_000000123`, so that names sort as numbers do."""
    return f"step_{step:09d}"


def steps_in(folder: Path) -> list[int]:
    """The steps whose folders stand in `folder`, ascending; everything of another name is none of ours."""
    if not folder.is_dir():
        return []
    found = ((_STEP.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(int(m[1]) for m, path in found if m and path.name == step_folder(int(m[1])) and path.is_dir())


def flatten(tree: Any) -> tuple[Leaves, jax.tree_util.PyTreeDef]:
    """The leaves by their path of string keys: dict keys, field names and positions alike ('opt_state', '0', 'trace').

    Raises:
      ValueError: two leaves whose paths read the same, such as keys 1 and '1' in one dict.
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves: Leaves = {}
    for path, leaf in pairs:
        keys = tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or ("value",)
        if keys in leaves:
            raise ValueError(f"Two leaves are both called {'/'.join(keys)!r}.")
        leaves[keys] = leaf
    return leaves, structure


def nest(leaves: Leaves) -> dict[str, Any]:
    """Nested dicts with string keys only, which any later code can read without the classes that made the tree."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def describe(leaves: Leaves) -> Shapes:
    """Shape and dtype of each leaf, for `leaves.json`."""
    return {
        "/".join(path): {"shape": [int(n) for n in np.shape(leaf)], "dtype": str(leaf.dtype)}
        for path, leaf in leaves.items()
    }


def dump(values: Mapping[str, Any]) -> str:
    """JSON that is the same for the same values."""
    return json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"


def check_fit(saved: Shapes, wanted: Shapes, where: Path) -> None:
    """Refuses a checkpoint that holds another tree than the run has.

    Raises:
      UserError: names the first leaf that is missing, left over, or of another shape or dtype.
    """
    way_out = "It was made with other settings: go back to them, or choose another --workdir."
    for name in sorted(wanted.keys() | saved.keys()):
        if name not in saved:
            raise UserError(f"{where}: has no '{name}', which this run needs. {way_out}")
        if name not in wanted:
            raise UserError(f"{where}: holds '{name}', for which this run has no place. {way_out}")
        if saved[name] != wanted[name]:
            raise UserError(f"{where}: '{name}' is {_say(saved[name])} there and {_say(wanted[name])} here. {way_out}")


def _say(leaf: Mapping[str, Any]) -> str:
    return f"{leaf['dtype']} {tuple(leaf['shape'])}"
