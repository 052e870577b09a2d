"""Which images are held out of training: a share of each class, fixed by a seed."""

import math
from collections.abc import Sequence

import numpy as np

from vitrail.errors import DataError


def split(
    labels: Sequence[int] | np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give the places of training and held-out images, `share` of all, split by class.

    Where `share` leaves each class an image on both sides it is scikit-learn's `train_test_split`,
    stratified, with `random_state=seed`. Raises `DataError` for a share or a class too small.
    """
    labels = np.asarray(labels)
    if not 0 < share < 1:
        raise DataError(f"the held-out share is {share}; it should be above 0 and below 1")
    counts = np.unique(labels, return_counts=True)[1]
    if counts.min() < 2:
        raise DataError(
            "a class with one image cannot be split into training and held-out images; "
            "give each class two images or more, or folders train/ and val/"
        )
    # Enough for each class to have an image in both.
    held = min(max(math.ceil(share * len(labels)), len(counts)), len(labels) - len(counts))
    train, held_out = _stratified(labels, held, np.random.RandomState(seed))
    # Of a rare class all images may have gone to one side: one of them crosses over.
    train, held_out = _completed(train, held_out, labels)
    held_out, train = _completed(held_out, train, labels)
    return train, held_out


def _stratified(
    labels: np.ndarray, held: int, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Draw as scikit-learn's `StratifiedShuffleSplit`, whose import takes longer than training.

    The stream of `RandomState` is fixed for ever (NEP 19), so that a run's split is, too.
    """
    counts = np.unique(labels, return_counts=True)[1]
    kept = _shares(counts, len(labels) - held, random)
    taken = _shares(counts - kept, held, random)
    train, held_out = [], []
    of_class = np.split(np.argsort(labels, kind="stable"), counts.cumsum()[:-1])
    for places, first, second in zip(of_class, kept, taken, strict=True):
        drawn = places[random.permutation(len(places))]
        train.append(drawn[:first])
        held_out.append(drawn[first : first + second])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(held_out))


def _shares(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """Share `total` out by `counts`: rounded down, then one more by remainder; ties are drawn."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    left, remainder = int(total - shares.sum()), exact - shares
    for value in np.unique(remainder)[::-1]:
        if not left:
            break
        tied = np.flatnonzero(remainder == value)
        chosen = random.choice(tied, size=min(len(tied), left), replace=False)
        shares[chosen] += 1
        left -= len(chosen)
    return shares.astype(int)


def _completed(
    part: np.ndarray, other: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bring one image of each class that `part` lacks over from `other`."""
    lacking = np.setdiff1d(labels[other], labels[part])
    if not len(lacking):
        return part, other
    crossing = [np.flatnonzero(labels[other] == label)[0] for label in lacking]
    return np.append(part, other[crossing]), np.delete(other, crossing)
