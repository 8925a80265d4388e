"""The probe arm: a linear classifier on a frozen body, the baseline that any fine-tuning has to beat."""

from __future__ import annotations

import numpy as np

_ABSENT = -30.0  # logit of a class without training images: a probability of about 1e-13


def fit(
    embeddings: np.ndarray, labels: np.ndarray, classes: int, *, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Head weights of a logistic regression on standardised embeddings, classes weighted alike.

    Args:
      embeddings: float32 (N, C), of the training rows.
      labels: int (N,), in [0, classes).
      strength: of the L2 penalty, which is strength / N on the mean loss.

    Returns:
      kernel (C, K) and bias (K,), float32, to be applied to embeddings as they are: the scaling is folded in.
    """
    from sklearn.linear_model import LogisticRegression

    x = embeddings.astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, np.inf)  # a constant feature says nothing
    model = LogisticRegression(C=1 / strength, class_weight="balanced", max_iter=2000)
    model.fit((x - mean) / scale, labels)
    weights, offsets = model.coef_, model.intercept_  # (K', C), (K',)
    if len(model.classes_) == 2:  # scikit-learn keeps only the difference of two classes' logits
        weights, offsets = np.concatenate([-weights, weights]) / 2, np.concatenate([-offsets, offsets]) / 2
    kernel, bias = np.zeros((x.shape[1], classes)), np.full(classes, _ABSENT)
    kernel[:, model.classes_] = (weights / scale).T
    bias[model.classes_] = offsets - (weights / scale) @ mean
    return kernel.astype(np.float32), bias.astype(np.float32)
