"""What an evaluation says beyond its headline: confusions, trust, image sizes, doubtful labels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vitrail.inference.calibration import Bin, Covered, Scaled, reliability, risk_coverage, scaled
from vitrail.inference.label_errors import LikelyError, likely_errors
from vitrail.inference.measures import softmax, wilson


class Confused(NamedTuple):
    """Images of one class that were answered with another."""

    label: str
    answered: str
    images: int


class SizeResult(NamedTuple):
    """Images whose shorter side has `low` to `high` pixels."""

    low: int
    high: int
    images: int
    top1: float
    top1_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Details:
    """What follows from the answers to single images."""

    confused: tuple[Confused, ...]  # the most frequent first
    temperature_scaled: Scaled | None
    reliability: tuple[Bin, ...]
    aurc: float  # area under the risk-coverage curve: the lower, the better
    coverage: tuple[Covered, ...]
    sizes: tuple[SizeResult, ...]
    likely_errors: tuple[LikelyError, ...]

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        values: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if hasattr(value, "_asdict"):
                value = value._asdict()
            elif isinstance(value, tuple):
                value = [row._asdict() for row in value]
            values[name] = value
        return values


def examine(
    scores: np.ndarray,
    labels: np.ndarray,
    sides: np.ndarray,
    paths: tuple[str, ...],
    names: tuple[str, ...],
) -> Details:
    """Look at answers: logits, N classes, labels, N, the images' heights and widths, N 2, paths."""
    scores = scores.astype(np.float64)
    probabilities = softmax(scores)
    answers, sure = scores.argmax(axis=1), probabilities.max(axis=1)
    right = answers == labels
    aurc, coverage = risk_coverage(sure, right)
    return Details(
        confused=_confused(labels, answers, names),
        temperature_scaled=scaled(scores, labels),
        reliability=reliability(sure, right),
        aurc=aurc,
        coverage=coverage,
        sizes=by_size(sides.min(axis=1), right),
        likely_errors=likely_errors(probabilities, labels, paths, names),
    )


def by_size(shorter: np.ndarray, right: np.ndarray) -> tuple[SizeResult, ...]:
    """Give the accuracy of images by their shorter side, N, in steps of twice the pixels."""
    step = np.floor(np.log2(shorter)).astype(int)
    found = []
    for own in np.unique(step).tolist():
        inside = right[step == own]
        hits = int(inside.sum())
        low, high = int(shorter[step == own].min()), int(shorter[step == own].max())
        found.append(
            SizeResult(low, high, len(inside), hits / len(inside), wilson(hits, len(inside)))
        )
    return tuple(found)


def _confused(
    labels: np.ndarray, answers: np.ndarray, names: tuple[str, ...]
) -> tuple[Confused, ...]:
    wrong = labels != answers
    pairs, counts = np.unique(
        np.stack([labels[wrong], answers[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    return tuple(
        Confused(names[pairs[i, 0]], names[pairs[i, 1]], int(counts[i])) for i in order.tolist()
    )
