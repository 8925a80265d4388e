"""The user's own split column, taken as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rcmnet_jax.data.partition import Rows
from rcmnet_jax.errors import UserError

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import Examples

_SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def own_split(examples: Examples, labelled: Rows) -> dict[str, Rows]:
    """Rows of train, val and test by the user's own column; empty where there is none."""
    column = np.char.lower(np.char.strip(examples.split.astype(str)))[labelled]
    if not (column != "").any():
        return {}
    for word, meant in _SYNONYMS.items():
        column = np.where(column == word, meant, column)
    missing = labelled[column == ""]
    if len(missing):
        raise UserError(
            f"{examples.path[missing[0]]}: {len(missing)} of {len(labelled)} labelled images have no split. "
            "Write train, val or test for each, or for none."
        )
    unknown = labelled[~np.isin(column, ("train", "val", "test"))]
    if len(unknown):
        raise UserError(
            f"{examples.path[unknown[0]]}: split '{examples.split[unknown[0]]}' is not train, val or test. Correct it."
        )
    return {name: labelled[column == name] for name in ("train", "val", "test")}


def own_fold(own: dict[str, Rows], folds: str) -> tuple[list[tuple[Rows, Rows | None, Rows]], list[str]]:
    """The one (train, inner, test) that the column means, inner None where it is to be drawn; and what to say of it."""
    held = "test" if len(own["test"]) else "val"
    inner = own["val"] if held == "test" and len(own["val"]) else None
    train = np.union1d(own["train"], own["val"]) if held == "test" else own["train"]
    if not len(own["train"]):
        raise UserError("The split column names no 'train' rows, so there is nothing to learn from. Add some.")
    said = f"1 fold, by the data's split column: {len(train)} images to learn from, {len(own[held])} '{held}' held out."
    if folds not in ("auto", "1"):
        said += f" target.folds={folds} is not used."
    return [(train, inner, own[held])], [said]
