"""Whether a model is as sure as it is right: reliability, temperature, risk and coverage."""

from typing import NamedTuple

import numpy as np

from vitrail.inference.measures import brier, negative_log_likelihood, softmax

_BINS = 15  # of the reliability diagram (Guo et al. 2017, section 2)
_COVERAGES = np.arange(1, 21) / 20


class Bin(NamedTuple):
    """The answers whose confidence is above `low`, at most `high`: a bar of the diagram."""

    low: float
    high: float
    images: int
    confidence: float  # mean; 0 in an empty bin
    accuracy: float


class Scaled(NamedTuple):
    """What temperature scaling gives to images that the temperature was not fitted on.

    The images of each class are dealt out to two halves in turn; each half is scaled by the
    temperature that is best for the other, and the figures are those of both together.
    """

    temperatures: tuple[float, float]
    nll: float
    brier: float
    ece: float
    method: str = "cross-fitted on two halves"


class Covered(NamedTuple):
    """The accuracy on the share of images that the model is surest of."""

    coverage: float
    accuracy: float
    confidence: float  # of the least sure of them


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Give the mean gap between confidence and accuracy over equal bins (Guo et al. 2017)."""
    bins = reliability(confidence, right)
    return sum(b.images * abs(b.confidence - b.accuracy) for b in bins) / len(right)


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    """Give confidence and accuracy in 15 equal bins of confidence, (0, 1/15] the first."""
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    count = np.bincount(bins, minlength=_BINS)
    some = np.maximum(count, 1)
    sure = np.bincount(bins, weights=confidence, minlength=_BINS) / some
    accuracy = np.bincount(bins, weights=right, minlength=_BINS) / some
    return tuple(
        Bin(b / _BINS, (b + 1) / _BINS, int(count[b]), float(sure[b]), float(accuracy[b]))
        for b in range(_BINS)
    )


def best_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Give the divisor of the logits, 0.05 to 20, with the least cross-entropy on these images."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(scores / np.exp(log_t), labels),
        bounds=(np.log(0.05), np.log(20.0)),
        method="bounded",
    )
    return float(np.exp(found.x))


def scaled(scores: np.ndarray, labels: np.ndarray) -> Scaled | None:
    """Give what temperature scaling is worth, honestly; None where there is no second half."""
    half = _turn_in_class(labels) % 2 == 1
    if not half.any():
        return None
    first, second = (best_temperature(scores[own], labels[own]) for own in (~half, half))
    calm = scores / np.where(half, first, second)[:, None]
    probabilities = softmax(calm)
    right = probabilities.argmax(axis=1) == labels
    return Scaled(
        (first, second),
        negative_log_likelihood(calm, labels),
        brier(probabilities, labels),
        calibration_error(probabilities.max(axis=1), right),
    )


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[float, tuple[Covered, ...]]:
    """Give the area under the risk-coverage curve, and accuracies at 5 % to 100 % coverage.

    The area is the mean error among the 1, 2, ... N surest images (Geifman and El-Yaniv 2017).
    Equally sure ones count with their mean, so that the order of files has no say.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], right[order].astype(np.float64)
    _, group = np.unique(-sure, return_inverse=True)
    expected = (np.bincount(group, weights=hits) / np.bincount(group))[group]
    accuracy = expected.cumsum() / np.arange(1, len(hits) + 1)
    last = np.ceil(_COVERAGES * len(hits) - 1e-9).astype(int) - 1
    curve = zip(_COVERAGES.tolist(), accuracy[last].tolist(), sure[last].tolist(), strict=True)
    return float((1 - accuracy).mean()), tuple(Covered(*point) for point in curve)


def _turn_in_class(labels: np.ndarray) -> np.ndarray:
    """Give which image of its class each one is: 0, 1, 2 ..., N."""
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    turns = np.empty(len(labels), np.int64)
    turns[order] = np.arange(len(labels)) - np.repeat(
        starts, np.diff(np.append(starts, len(labels)))
    )
    return turns
