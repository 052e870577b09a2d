"""How images lie on storage, and what was read of it last: large pieces, kept for a while."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

import numpy as np

KEPT_BYTES = 512 * 2**20  # of the pieces that were read last
_TOGETHER = 8  # groups that are shuffled together, where the memory allows


T = TypeVar("T")


class Layout(NamedTuple):
    """Which images lie together, and whether another order than theirs is slow to read."""

    groups: np.ndarray  # the group of neighbours that each row of the listing is in
    window: int  # images that may be shuffled so that the groups in use stay in memory
    slow: bool

    def at(self, rows: np.ndarray) -> "Layout":
        """Give the layout of a listing that has only some rows, or has them in another order."""
        return self._replace(groups=self.groups[rows])


def layout(groups: np.ndarray, group_bytes: np.ndarray, slow: bool) -> Layout:
    """Give the layout of rows in `groups`, of so many bytes each.

    Storage is only as slow as what does not stay in memory after it was read once.
    """
    most = int(group_bytes.max(initial=1))
    together = min(max(KEPT_BYTES // (2 * most), 1), _TOGETHER)
    window = max(len(groups) * together // max(len(group_bytes), 1), 1)
    return Layout(groups.astype(np.int32), window, slow and int(group_bytes.sum()) > KEPT_BYTES)


class Kept(Generic[T]):
    """The pieces used last, up to `KEPT_BYTES`; each is read once, by whoever asks first."""

    def __init__(self, read: Callable[[int], T], size: Callable[[T], int]) -> None:
        self.read, self.size = read, size
        self.pieces: OrderedDict[int, T] = OrderedDict()
        self.bytes, self.lock = 0, Lock()
        self.reading: dict[int, Lock] = {}

    def __getitem__(self, number: int) -> T:
        with self.lock:
            if number in self.pieces:
                self.pieces.move_to_end(number)
                return self.pieces[number]
            reading = self.reading.setdefault(number, Lock())
        with reading:
            with self.lock:
                if number in self.pieces:  # another thread has read it meanwhile
                    return self.pieces[number]
            piece = self.read(number)
            with self.lock:
                self.reading.pop(number, None)
                if number in self.pieces:  # put back after others had pushed it out: counted once
                    return self.pieces[number]
                self.pieces[number] = piece
                self.bytes += self.size(piece)
                while self.bytes > KEPT_BYTES and len(self.pieces) > 1:
                    self.bytes -= self.size(self.pieces.popitem(last=False)[1])
        return piece
