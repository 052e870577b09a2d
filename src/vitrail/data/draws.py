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
    return _share(_bits(seed, epoch, index, count, first))


def order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Give the order in which an epoch visits 0 .. length - 1, each exactly once."""
    return np.argsort(_keys(seed, epoch, length)[:, 0], kind="stable")


def grouped_order(seed: int, epoch: int, groups: np.ndarray, window: int) -> np.ndarray:
    """Give an order in which the samples of a group come near each other, each exactly once.

    The groups are shuffled, and then every sample moves back by up to `window` places: only those
    groups are in use that a window reaches, and one after the other they come and go.
    """
    _, number = np.unique(groups, return_inverse=True)
    keys = _keys(seed, epoch, len(groups), 3)
    of_group = _keys(seed, epoch, number.max(initial=-1) + 1, 3)[:, 2]
    by_group = np.lexsort((keys[:, 0], of_group[number]))
    place = np.arange(len(groups)) + window * _share(keys[:, 1])
    return by_group[np.argsort(place, kind="stable")]


def repeated(places: np.ndarray, repeats: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the first of `places` so many times each, and which of its copies each is.

    As many samples as before, to a remainder. A block, in which samples are mixed, has one copy of
    each; the next block has the next copies of the same.
    """
    count = len(places) // repeats
    block = max(min(block, count), 1)
    blocks = places[: count - count % block].reshape(-1, 1, block)
    copies = np.arange(repeats).reshape(1, -1, 1)
    blocks, copies = np.broadcast_arrays(np.tile(blocks, (1, repeats, 1)), copies)
    return blocks.reshape(-1), copies.reshape(-1)


def _keys(seed: int, epoch: int, length: int, count: int = 1) -> np.ndarray:
    # Epoch -1 - e draws from other numbers than the augmentation of epoch e.
    return _bits(seed, -1 - epoch, np.arange(length), count)


def _share(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
