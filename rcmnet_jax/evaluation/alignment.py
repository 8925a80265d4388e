"""Several tables brought to the same images, class order and groups, so that rows can be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.table import Table, reorder


def align(tables: Mapping[str, Table]) -> tuple[dict[str, Table], dict[str, int], list[str]]:
    """The tables on their common labelled images, of one class order and one grouping.

    Returns:
      the tables, how many rows each lost, and warnings of what they disagreed on.

    Raises:
      UserError: other classes, no image in common, or one image with two labels.
    """
    common, dropped = _on_common_images(tables)
    return _regrouped(common), dropped, _clashes(common)


def _on_common_images(tables: Mapping[str, Table]) -> tuple[dict[str, Table], dict[str, int]]:
    """The tables on their common labelled paths, columns in the first's class order; and how many rows each lost."""
    names = list(tables)
    classes = tables[names[0]].classes
    for name, table in tables.items():
        if set(table.classes) != set(classes):
            raise UserError(
                f"{name}: its classes ({', '.join(table.classes)}) are not those of {names[0]} ({', '.join(classes)}). "
                "Only predictions over the same classes can be compared."
            )
    common = set.intersection(*(set(t.path[t.label != ""].tolist()) for t in tables.values()))
    if not common:
        raise UserError(
            f"{', '.join(names)} have no labelled image in common. Paths must be relative to the same data folder."
        )
    aligned, dropped = {}, {}
    labels: dict[str, str] = {}
    for name, table in tables.items():
        keep = np.array([path in common and label != "" for path, label in zip(table.path, table.label, strict=True)])
        dropped[name] = int((~keep).sum())
        kept = reorder(table, classes).select(keep)
        for path, label in zip(kept.path.tolist(), kept.label.tolist(), strict=True):
            if labels.setdefault(path, label) != label:
                raise UserError(f"{name}: '{path}' is '{label}' here but '{labels[path]}' in another table. Mend one.")
        aligned[name] = kept
    return aligned, dropped


def _clashes(tables: Mapping[str, Table]) -> list[str]:
    """Warnings of images of which the tables, or two rows of one, name different groups or SHA-256."""
    found: dict[str, dict[str, set[str]]] = {"group": {}, "sha256": {}}
    for table in tables.values():
        for column, named in found.items():
            for path, value in zip(table.path.tolist(), getattr(table, column).tolist(), strict=True):
                if value:
                    named.setdefault(path, set()).add(value.lower() if column == "sha256" else value)
    count = {column: sum(len(values) > 1 for values in named.values()) for column, named in found.items()}
    said = []
    if count["group"]:
        said.append(
            f"{count['group']} images have different groups in the tables: those of the table with the fewest images "
            "without a group, then the fewest groups, are used."
        )
    if count["sha256"]:
        said.append(f"{count['sha256']} images have different sha256 in the tables: other files under the same path.")
    return said


def _grouping(tables: Mapping[str, Table]) -> dict[str, str]:
    """The group of each path, '' for none, whatever the order of the tables.

    Groups are taken of one table as a whole, since a mixture of two groupings can be finer than both: the one with the
    fewest images without a group; of equals that with the fewest groups, whose intervals are the widest; of equals the
    alphabetically first. What it leaves empty comes from the next one by that order.
    """
    given = []
    for table in tables.values():
        rows = sorted(zip(table.path.tolist(), table.group.tolist(), strict=True), reverse=True)
        given.append({path: group for path, group in rows if group})  # rows that differ: the first by the alphabet
    given.sort(key=lambda groups: (-len(groups), len(set(groups.values())), sorted(groups.items())))
    return {path: group for groups in reversed(given) for path, group in groups.items()}


def _regrouped(tables: Mapping[str, Table]) -> dict[str, Table]:
    groups = _grouping(tables)
    return {
        name: dataclasses.replace(table, group=np.array([groups.get(p, "") for p in table.path.tolist()], np.str_))
        for name, table in tables.items()
    }
