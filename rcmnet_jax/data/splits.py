"""Who trains and who is tested: by group, stratified, reproducible from the seed, the user's own split taken as it is.

Rows joined by a group, or as exact or near duplicates, are one unit, and no drawn split cuts a unit. Unlabelled rows
take no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rcmnet_jax.data.partition import Rows, Strings, deal, units
from rcmnet_jax.data.user_split import own_fold, own_split
from rcmnet_jax.errors import UserError

if TYPE_CHECKING:
    from rcmnet_jax.data.prepare import Examples

Links = tuple[Strings, ...]

_DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class Fold:
    """One round of cross-validation, as sorted int64 rows of the set.

    `test` is what the fold reports on; `train` all that it may learn from; `inner` the part of `train` on which
    anything is chosen or calibrated (so the weights are fitted on `train` without `inner` where something is).
    `inner` may be empty.
    """

    train: Rows
    inner: Rows
    test: Rows


def holdout(
    examples: Examples, classes: Sequence[str], *, seed: int, val_fraction: float, twins: Strings | None = None
) -> dict[str, Rows]:
    """Rows of 'train', 'val' and 'test' for the source, sorted int64, disjoint.

    The `split` column holds exactly where there is one; without 'val' in it, val is drawn from train. Without the
    column, `val_fraction` of every class goes to val, by whole units, and test is empty. `twins` is as for
    `cross_validation`.

    Raises:
      UserError: nothing labelled, fewer than two classes to train on, nothing to validate or test on, or a split
        column that cannot be followed.
    """
    labelled = _labelled(examples, classes)
    own = own_split(examples, labelled)
    train = own["train"] if own else labelled
    if own and not len(train):
        raise UserError("The split column names no 'train' rows, so there is nothing to learn from. Add some.")
    val = own["val"] if own else np.empty(0, np.int64)
    _two_classes(examples, train, "the training part")
    if not len(val):
        val, _ = _part_off(examples, classes, train, val_fraction, seed, _links(examples, twins))
        train = np.setdiff1d(train, val)
    test = own["test"] if own else np.empty(0, np.int64)
    if not len(val) and not len(test):
        raise UserError(
            f"The source's {len(labelled)} labelled images leave none to validate on: no class can spare one. "
            "Add images, or name 'val' rows in a split column."
        )
    return {"train": train, "val": val, "test": test}


def describe_holdout(examples: Examples, classes: Sequence[str], parts: Mapping[str, Rows]) -> str:
    """One line: the sizes of `holdout`'s parts, and what is wrong with them (groups cut, contradicting labels)."""
    said = [", ".join(f"{len(rows)} {name}" for name, rows in parts.items()) + " images."]
    groups = {name: set(examples.group[rows]) - {""} for name, rows in parts.items()}
    cut = sorted(g for name, here in groups.items() if name != "train" for g in here & groups["train"])
    if cut:
        said.append(
            f"{len(cut)} groups, '{cut[0]}' the first, are in training and outside it: scores there are too good."
        )
    return " ".join(said + contradictions(examples, classes))


def cross_validation(
    examples: Examples,
    classes: Sequence[str],
    *,
    folds: str,
    seed: int,
    inner_fraction: float,
    twins: Strings | None = None,
) -> tuple[list[Fold], str]:
    """Folds of the target, and one line that says how they were made and what they fall short of.

    Args:
      folds: 'auto' (5, or the number of units if there are fewer) or a whole number in digits.
      seed: fixes folds and inner splits.
      inner_fraction: of each fold's training part, drawn by whole units and stratified.
      twins: (N,) names that images of one picture share, as `audit.twins` finds them; they are kept on one side too.

    Every labelled row is in exactly one fold's test part. A split column replaces the drawing: one fold, whose test
    part is 'test' (without it 'val'), and whose inner part is 'val' where both are there.

    Raises:
      UserError: nothing labelled, one class alone, more folds than units, or a split column that cannot be followed.
    """
    labelled = _labelled(examples, classes)
    _two_classes(examples, labelled, "the data")
    links = _links(examples, twins)
    own = own_split(examples, labelled)
    if own and (len(own["test"]) or len(own["val"])):
        pairs, said = own_fold(own, folds)
    else:
        pairs, said = _drawn_folds(examples, classes, labelled, folds, seed, links)
    result = []
    for k, (train, inner, test) in enumerate(pairs):
        _two_classes(examples, train, f"fold {k}'s training part")
        if inner is None:
            inner, note = _inner(examples, classes, train, inner_fraction, seed, k, links)
            said += [note] if note and note not in said else []
        result.append(Fold(train, inner, test))
    said += _absences(examples, classes, result)
    said += contradictions(examples, classes, labelled)
    return result, " ".join(said)


def source_folds(
    examples: Examples, classes: Sequence[str], rows: Rows, *, count: int, seed: int, twins: Strings | None = None
) -> tuple[list[Fold], str]:
    """Folds of the source's training `rows`, without inner parts, and a line on what they fall short of.

    `twins` is as for `cross_validation`.

    Raises:
      UserError: fewer units than folds, or a fold that leaves one class to train on.
    """
    unit = units(*(column[rows] for column in (examples.group, *_links(examples, twins))))
    if (many := int(unit.max()) + 1) < count:
        raise UserError(
            f"source.soft_folds={count}: the training part has {many} groups or distinct images. Set fewer."
        )
    part = deal(unit, examples.label[rows], len(classes), np.full(count, 1 / count), seed)
    folds = [Fold(rows[part != k], np.empty(0, np.int64), rows[part == k]) for k in range(count)]
    for k, fold in enumerate(folds):
        _two_classes(examples, fold.train, f"fold {k} of source.soft_folds")
    return folds, " ".join([f"{count} folds of {len(rows)} training images.", *_absences(examples, classes, folds)])


def contradictions(examples: Examples, classes: Sequence[str], rows: Rows | None = None) -> list[str]:
    """A sentence, or none, on images whose pixels are identical and whose labels differ."""
    rows = np.flatnonzero(examples.label >= 0) if rows is None else rows
    rows = rows[examples.pixel_sha256[rows] != ""]
    pairs = np.unique(
        np.stack([np.unique(examples.pixel_sha256[rows], return_inverse=True)[1], examples.label[rows]]), axis=1
    )
    image, labels = np.unique(pairs[0], return_counts=True)
    torn = image[labels > 1]
    if not len(torn):
        return []
    hashes = np.unique(examples.pixel_sha256[rows])
    twins = rows[examples.pixel_sha256[rows] == hashes[torn[0]]]
    names = ", ".join(f"{examples.path[i]} ({classes[examples.label[i]]})" for i in twins[:4])
    many = "1 image stands" if len(torn) == 1 else f"{len(torn)} images stand"
    return [f"{many} under two labels, pixel for pixel the same, for instance {names}."]


def _links(examples: Examples, twins: Strings | None) -> Links:
    """The columns, beside the group, that join images: pixel hashes, and the twins where they are known."""
    return (examples.pixel_sha256,) if twins is None else (examples.pixel_sha256, twins)


def _labelled(examples: Examples, classes: Sequence[str]) -> Rows:
    rows = np.flatnonzero(examples.label >= 0).astype(np.int64)
    if not len(rows):
        raise UserError(f"None of the {len(examples.label)} images has a label, so nothing can be split. Add labels.")
    if examples.label.max() >= len(classes):
        raise UserError(f"Label number {examples.label.max()} has no name among {len(classes)} classes.")
    return rows


def _two_classes(examples: Examples, rows: Rows, where: str) -> None:
    if len(np.unique(examples.label[rows])) < 2:
        raise UserError(
            f"{where[0].upper()}{where[1:]} has {len(rows)} labelled images of a single class or none; telling "
            "classes apart needs two. Add images of another class, or of another group that has it."
        )


def _drawn_folds(
    examples: Examples, classes: Sequence[str], labelled: Rows, folds: str, seed: int, links: Links
) -> tuple[list[tuple[Rows, Rows | None, Rows]], list[str]]:
    unit = units(examples.group[labelled], *(column[labelled] for column in links))
    many = int(unit.max()) + 1
    named = len(set(examples.group[labelled]) - {""})
    what = "groups" if named else "distinct images"
    joined = ""
    if named and not (examples.group[labelled] == "").any() and many < named:
        joined = f" ({named} groups are named, but identical images join some of them)"
    if many < 2:
        raise UserError(
            f"All {len(labelled)} images belong to one of the {what}{joined}: none can be held out. "
            "Add a second group, clear the group column if it means nothing, or give a split column."
        )
    if folds != "auto" and int(folds) < 2:
        raise UserError(f"target.folds={folds}: cross-validation needs at least 2. Set it higher, or to auto.")
    if folds != "auto" and int(folds) > many:
        raise UserError(
            f"target.folds={folds}: there are {many} {what}{joined}, and a fold needs one of its own. "
            f"Set target.folds to {many} or fewer, or to auto."
        )
    count = min(_DEFAULT_FOLDS, many) if folds == "auto" else int(folds)
    part = deal(unit, examples.label[labelled], len(classes), np.full(count, 1 / count), seed)
    # In the order of their first row, so that fold numbers mean the same where seeds give the same folds.
    numbers = sorted(range(count), key=lambda k: int(np.flatnonzero(part == k)[0]))
    why = "" if folds != "auto" else (" (auto)" if many >= _DEFAULT_FOLDS else f" (auto: no more than the {what})")
    said = f"{count} folds{why} over {many} {what}{joined}, {len(labelled)} images, stratified by class, seed {seed}."
    return [(labelled[part != k], None, labelled[part == k]) for k in numbers], [said]


def _part_off(
    examples: Examples, classes: Sequence[str], rows: Rows, fraction: float, seed: int, links: Links
) -> tuple[Rows, str]:
    """About `fraction` of `rows`, by group if the groups allow, else by image; and why, where groups are cut."""
    label = examples.label[rows]

    def draw(group: Strings) -> Rows:
        unit = units(group, *(column[rows] for column in links))
        off = deal(unit, label, len(classes), (1 - fraction, fraction), seed) == 1
        for lost in np.setdiff1d(label, label[~off]):  # training comes first where a class has one unit
            off &= ~np.isin(unit, unit[label == lost])
        return np.flatnonzero(off)

    drawn = draw(examples.group[rows])
    if len(np.unique(label[drawn])) >= 2:
        return rows[drawn], ""
    groups = len(np.unique(examples.group[rows]))
    drawn = draw(np.full(len(rows), ""))
    if not (examples.group[rows] != "").any():
        return rows[drawn], ""
    return rows[drawn], "comes from one group" if groups == 1 else f"has {groups} groups that cannot be parted by class"


def _inner(
    examples: Examples, classes: Sequence[str], train: Rows, fraction: float, seed: int, fold: int, links: Links
) -> tuple[Rows, str]:
    """Inner rows out of `train`, and a sentence where they are not what one would wish."""
    key = int(np.random.SeedSequence((seed, fold, 1)).generate_state(1)[0])  # apart from the folds' own draw
    inner, why = _part_off(examples, classes, train, fraction, key, links)
    if len(np.unique(examples.label[inner])) < 2:  # of one class a network that knows no other is perfect
        few = f"Fold {fold}: its training part is too small for an inner split, so nothing can be chosen on it."
        return inner[:0], few
    if why:
        why = (
            f"Fold {fold}: the training part {why}, so its inner split is by image (duplicates together), and what is "
            "chosen or calibrated on it will look better than it is."
        )
    return inner, why


def _absences(examples: Examples, classes: Sequence[str], folds: list[Fold]) -> list[str]:
    """Sentences on classes that a fold cannot learn, or cannot be tested on."""
    said = []
    for k, name in enumerate(classes):
        present = [f for fold in folds for f in (fold.train, fold.test)]
        has = [bool((examples.label[rows] == k).any()) for rows in present]
        if not any(has):
            said.append(f"Class '{name}' has no labelled image.")
            continue
        unlearnt = [str(i) for i, seen in enumerate(has[0::2]) if not seen]
        untested = [str(i) for i, seen in enumerate(has[1::2]) if not seen]
        if unlearnt:
            said.append(f"Class '{name}' is all held out in fold {', '.join(unlearnt)}, which cannot learn it.")
        if untested:
            said.append(
                f"Class '{name}' is missing from the test part of fold {', '.join(untested)}: it has too few groups."
            )
    return said
