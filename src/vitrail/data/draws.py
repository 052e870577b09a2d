"""Randomness without a state: every number is a function of (seed, epoch, index).

So the same samples come in the same order with the same augmentation whatever the number of
threads or restarts, and a place in an epoch is an integer. The numbers are SplitMix64's (Steele,
Lea and Flood 2014), whose output function scrambles a counter.
"""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, epoch: int, index: np.ndarray, count: int, *, first: int = 0) -> np.ndarray:
    """Give `count` numbers in [0, 1) for each sample of `index`: float64, (len(index), count).

    They are the `first`-th and those after it of a row that never ends: two users of the same
    sample who draw independently draw from other parts of it.
    """
    bits = _bits(seed, epoch, index, count, first) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Give the order in which an epoch visits 0 .. length - 1, each exactly once."""
    # Epoch -1 - e draws from other numbers than the augmentation of epoch e.
    keys = _bits(seed, -1 - epoch, np.arange(length), 1)[:, 0]
    return np.argsort(keys, kind="stable")


def _bits(seed: int, epoch: int, index: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    key = _scramble(_scramble(_word(seed)) ^ _word(epoch))
    sample = _scramble(key ^ _scramble(index.astype(np.uint64)))
    step = (np.arange(first + 1, first + count + 1, dtype=np.uint64)) * np.uint64(_GOLDEN)
    return _scramble(sample[:, None] + step)


def _word(number: int) -> np.ndarray:
    return np.array([number % 2**64], np.uint64)


def _scramble(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
