"""Likely label errors by confident learning (Northcutt, Jiang and Chuang 2021)."""

from typing import NamedTuple

import numpy as np


class LikelyError(NamedTuple):
    """An image whose label the model contradicts as surely as it knows that other class."""

    path: str
    label: str
    answered: str
    probability: float  # of the answered class
    of_label: float


def likely_errors(
    probabilities: np.ndarray, labels: np.ndarray, paths: tuple[str, ...], names: tuple[str, ...]
) -> tuple[LikelyError, ...]:
    """Give the likely label errors among images that the model has not learned from, worst first.

    A class has the threshold of its mean probability among the images labelled so (equation 2 of
    the paper). An image belongs to the likeliest class that reaches its threshold; where that is
    not its label, the label is in doubt, the more so the further apart the two probabilities are.
    """
    count = np.bincount(labels, minlength=len(names))
    own = probabilities[np.arange(len(labels)), labels]
    mean = np.bincount(labels, weights=own, minlength=len(names)) / np.maximum(count, 1)
    threshold = np.where(count > 0, mean, np.inf)  # a class that no label names is no answer
    sure = np.where(probabilities >= threshold, probabilities, -1.0)
    belongs = sure.argmax(axis=1)
    doubtful = np.flatnonzero((sure.max(axis=1) >= 0) & (belongs != labels))
    margin = own[doubtful] - probabilities[doubtful, belongs[doubtful]]
    found = []
    for i in doubtful[np.argsort(margin, kind="stable")].tolist():
        given, better = int(labels[i]), int(belongs[i])
        likely = float(probabilities[i, better])
        found.append(LikelyError(paths[i], names[given], names[better], likely, float(own[i])))
    return tuple(found)
