"""Which images are held out, against scikit-learn's own split."""

import math

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from vitrail.data.held_out import split


@pytest.mark.parametrize("seed", range(20))
def test_a_split_is_that_of_scikit_learn(seed: int) -> None:
    draws = np.random.default_rng(seed)
    classes = int(draws.integers(2, 12))
    labels = np.append(draws.integers(0, classes, 40 * classes), np.repeat(range(classes), 5))
    share = 0.1 + 0.035 * seed
    held = math.ceil(share * len(labels))
    wanted = train_test_split(
        np.arange(len(labels)), test_size=held, stratify=labels, random_state=seed
    )

    found = split(labels, share, seed)

    for part, theirs in zip(found, wanted, strict=True):
        assert part.tolist() == list(theirs)


def test_a_class_that_fell_to_one_side_has_an_image_on_both() -> None:
    labels = np.repeat([0, 1, 2, 3], [500, 2, 2, 3])

    for seed in range(50):
        train, held_out = split(labels, 0.01, seed)

        assert sorted([*train, *held_out]) == list(range(len(labels)))
        assert set(labels[train]) == set(labels[held_out]) == {0, 1, 2, 3}
