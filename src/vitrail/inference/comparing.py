"""Two models on the same images: is the difference more than luck?"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Comparison(NamedTuple):
    """Answers to the images that both models could read, paired.

    `p_value` is McNemar's, exact and two-sided: how often models of one accuracy would differ as
    much on the images where just one of the two is right.
    """

    images: int
    top1: float
    top1_against: float
    difference: float
    difference_interval: tuple[float, float]  # 95 %
    only_this_right: int
    only_other_right: int
    p_value: float


def compare(this: Mapping[int, bool], other: Mapping[int, bool]) -> Comparison:
    """Compare whether two models are right, by the images' places."""
    both = sorted(this.keys() & other.keys())
    ours, theirs = (np.array([found[place] for place in both], bool) for found in (this, other))
    gained, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    count = len(both)
    return Comparison(
        count,
        float(ours.mean()),
        float(theirs.mean()),
        (gained - lost) / count,
        difference_interval(gained, lost, count),
        gained,
        lost,
        mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Give the exact two-sided p-value of a fair coin that fell so often on either side."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def difference_interval(
    gained: int, lost: int, count: int, z: float = 1.959964
) -> tuple[float, float]:
    """Give the 95 % interval of a difference of paired shares (Agresti and Min 2005, Wald + 2)."""
    b, c, n = gained + 0.5, lost + 0.5, count + 2
    half = z * np.sqrt(b + c - (b - c) ** 2 / n) / n
    return float(max((b - c) / n - half, -1.0)), float(min((b - c) / n + half, 1.0))
