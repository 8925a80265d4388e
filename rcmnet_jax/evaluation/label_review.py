"""label_review.csv: labels that a person should look at again. Nothing here changes a label or leaves an image out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from rcmnet_jax.evaluation.calibration import per_image
from rcmnet_jax.evaluation.table import Floats, Ints, Table
from rcmnet_jax.files import csv_text, write_atomic

FILE = "label_review.csv"
COLUMNS = ("path", "label", "suggested", "score", "rank")


@dataclass(frozen=True)
class Review:
    """What confident learning (Northcutt, Jiang & Chuang 2021) makes of N labels."""

    suggested: Ints  # (N,) the class that an image belongs to with more than that class's usual confidence, or -1
    score: Floats  # (N,) in [0, 1], low where the label is doubtful

    @property
    def order(self) -> Ints:
        """(N,) the images, those with a suggestion first, then by score."""
        return np.lexsort((self.score, self.suggested < 0))

    @property
    def doubtful(self) -> int:
        """How many labels have another class suggested."""
        return int((self.suggested >= 0).sum())


def review(probabilities: Floats, labels: Ints) -> Review:
    """Compares labels (N,) with probabilities (N, K) of a model that has not seen the images.

    A class's threshold is the mean probability of it over the images labelled so (eq. 2). An image counts as of the
    class, among those whose threshold it reaches, that is most probable (eq. 1); if that is not its label, it is
    suggested. The score is the normalised margin (p(label) - max p(other) + 1) / 2 of probabilities less the
    thresholds, shifted up by their largest and normalised: a class that the model knows less well is not suspected
    for that.
    """
    n, classes = probabilities.shape
    everyone = np.arange(n)
    thresholds = np.array(
        [probabilities[labels == k, k].mean() if (labels == k).any() else np.inf for k in range(classes)]
    )
    reached = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)
    confident = np.where(reached.max(1) >= 0, reached.argmax(1), labels)
    usual = np.where(np.isfinite(thresholds), thresholds, 1.0)  # a class without images is never doubted for
    adjusted = probabilities - usual + usual.max()
    adjusted /= adjusted.sum(1, keepdims=True)
    others = adjusted.copy()
    others[everyone, labels] = -np.inf
    score = (adjusted[everyone, labels] - others.max(1) + 1) / 2
    return Review(np.where(confident == labels, -1, confident), score)


def write_review(folder: Path, table: Table) -> str:
    """Writes label_review.csv from a table of held-out predictions, and returns what a person is told of it.

    Each labelled image is a line, the most doubtful label first; `suggested` is empty where no other class is. One
    image under several seeds has the geometric mean of its probabilities.
    """
    log_p, truth = per_image(table)
    paths, known = np.unique(table.path), truth >= 0
    found = review(softmax(log_p[known], axis=1), truth[known])
    rows: list[tuple[object, ...]] = [COLUMNS]
    for rank, i in enumerate(found.order.tolist(), 1):
        suggested = table.classes[found.suggested[i]] if found.suggested[i] >= 0 else ""
        label = table.classes[truth[known][i]]
        rows.append((str(paths[known][i]), label, suggested, f"{found.score[i]:.6f}", rank))
    write_atomic(folder / FILE, csv_text(rows).encode("utf-8", "backslashreplace"))
    if not found.doubtful:
        return f"No label of {len(found.score)} stands out as wrong; {FILE} ranks them all."
    return (
        f"{found.doubtful} of {len(found.score)} labels are worth a second look, the most doubtful first in {FILE}. "
        "None was changed."
    )
