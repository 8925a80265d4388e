"""Soft labels: earlier networks' predictions as part of the target, for instance the folds' of one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.table import Floats, Text, reorder
from rcmnet_jax.evaluation.tables import read_table


def read(files: Sequence[str], path: Text, classes: tuple[str, ...]) -> Floats:
    """Probabilities (N, K) of the images at `path` (N,), 0 throughout for those that no table knows.

    Several rows of a path, in one table or in several, are averaged. Whether the tables' networks had seen the images
    is not known here: what was trained on an image says little more of it than its label.

    Raises:
      UserError: a table that cannot be read, of other classes, or none that knows any of the images.
    """
    place = {name: row for row, name in enumerate(path.tolist())}
    total, count = np.zeros((len(path), len(classes))), np.zeros((len(path), 1))
    for file in files:
        table = read_table(Path(file))
        if set(table.classes) != set(classes):
            odd = sorted(set(table.classes) ^ set(classes))[0]
            lacks = f"no column p_{odd}" if odd in classes else f"a column p_{odd}, which is no class of source.data"
            raise UserError(f"{file}: {lacks}. config.source.soft_labels takes tables of the source's own classes.")
        known = np.array([place.get(name, -1) for name in table.path.tolist()])
        found = reorder(table, classes).probabilities[known >= 0]
        np.add.at(total, known[known >= 0], found)
        np.add.at(count, known[known >= 0], 1)
    if not count.any():
        raise UserError(
            f"config.source.soft_labels={','.join(files)}: names none of the training images, such as {path[0]}. "
            "Give tables of source.data, whose column path is relative to its root."
        )
    mean: Floats = total / np.maximum(count, 1)
    mean /= np.maximum(mean.sum(1, keepdims=True), 1e-9)  # written with nine digits, or other people's four
    return mean
