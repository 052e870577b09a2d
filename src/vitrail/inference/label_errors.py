"""Likely label errors by confident learning (Northcutt, Jiang and Chuang 2021)."""

from typing import NamedTuple

import numpy as np

from vitrail.inference.measures import confusion_matrix


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

    The paper takes labels to be right more often than not. Where most images of a label belong
    elsewhere, or most of those that belong to a class are labelled otherwise, it is the model, or
    the order of its classes, that is in doubt: no label is then, from or towards that class.
    """
    count = np.bincount(labels, minlength=len(names))
    own = probabilities[np.arange(len(labels)), labels]
    mean = np.bincount(labels, weights=own, minlength=len(names)) / np.maximum(count, 1)
    threshold = np.where(count > 0, mean, np.inf)  # a class that no label names is no answer
    sure = np.where(probabilities >= threshold, probabilities, -1.0)
    belongs = sure.argmax(axis=1)
    some = sure.max(axis=1) >= 0
    joint = confusion_matrix(labels[some], belongs[some], len(names))
    same = 2 * joint.diagonal()
    known_label, known_class = same > joint.sum(axis=1), same > joint.sum(axis=0)
    at_odds = some & (belongs != labels)
    doubtful = np.flatnonzero(at_odds & known_label[labels] & known_class[belongs])
    margin = own[doubtful] - probabilities[doubtful, belongs[doubtful]]
    found = []
    for i in doubtful[np.argsort(margin, kind="stable")].tolist():
        given, better = int(labels[i]), int(belongs[i])
        likely = float(probabilities[i, better])
        found.append(LikelyError(paths[i], names[given], names[better], likely, float(own[i])))
    return tuple(found)
