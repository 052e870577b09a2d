"""Figures of merit: from logits, N classes, and labels, N, to numbers; no model, no files."""

import numpy as np


def softmax(scores: np.ndarray) -> np.ndarray:
    """Give probabilities, N classes, of logits."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def negative_log_likelihood(scores: np.ndarray, labels: np.ndarray) -> float:
    """Give the mean cross-entropy, in nats."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    of_label = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - of_label).mean())


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Give the mean squared distance to the truth, 0 to 2 (Brier 1950)."""
    missed = probabilities.copy()
    missed[np.arange(len(labels)), labels] -= 1
    return float((missed**2).sum(axis=1).mean())


def rank_of_label(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give how many classes are rated above the right one, N; of equal ones the first counts more.

    So does the likeliest class. In bfloat16 many of a thousand classes are equal, and an answer of
    equal scores must not be right for every label.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Give how often each class, a row, was answered with each class, a column."""
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, answers), 1)
    return confusion


def wilson(right: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Give the 95 % interval of a share (Wilson 1927): it holds near 0 and 1 too."""
    share, slack = right / count, z * z / count
    centre = (share + slack / 2) / (1 + slack)
    half = z * np.sqrt(share * (1 - share) / count + slack / (4 * count)) / (1 + slack)
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))
