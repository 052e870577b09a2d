"""Threads that fill the rows of batches: none outlives its user, none is waited for for ever."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import Any
from weakref import finalize

import numpy as np

from vitrail.errors import DataError

_TICKS = 20  # looks at a wait: a process that was stopped for an hour has missed one of them
_PATIENCE = 2.0  # seconds for all samples in hand when the threads are sent home


class Work:
    """A batch in the making: `rows` of any kind, and how many of them are still to be filled."""

    def __init__(self, places: np.ndarray, rows: Any, draws: np.ndarray | None) -> None:
        self.places, self.rows, self.draws = places, rows, draws
        self.left = 0
        self.done = Event()
        self.error: BaseException | None = None


class Readers:
    """Threads that call `fill(work, row)` for every row asked for, in the order of asking.

    A context: at its end the threads are gone, but for one that hangs in a read, which no program
    can call back; it ends with the process at the latest.
    """

    def __init__(
        self,
        threads: int,
        fill: Callable[[Work, int], None],
        name_of: Callable[[int], str],
        timeout: float,
    ) -> None:
        self.fill, self.name_of, self.timeout = fill, name_of, timeout
        self.waiting: SimpleQueue[tuple[Work, int] | None] = SimpleQueue()
        self.in_hand: dict[int, int] = {}  # the place that a thread is at
        self.filled, self.lock, self.closed = 0, Lock(), False
        # Daemons, or a read that hangs would keep the process from ending.
        self.threads = [
            Thread(target=self._run, args=(number,), name=f"decode-{number}", daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> "Readers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed = True
        for _ in self.threads:
            self.waiting.put(None)
        deadline = monotonic() + _PATIENCE
        for thread in self.threads:
            thread.join(max(deadline - monotonic(), 0))

    def submit(self, work: Work, rows: np.ndarray) -> None:
        """Have these rows filled."""
        work.left = len(rows)
        if not len(rows):
            work.done.set()
        for row in rows.tolist():
            self.waiting.put((work, row))

    def wait(self, work: Work) -> None:
        """Wait until all rows are filled; raises what `fill` raised.

        `DataError` where nothing at all was filled for `timeout` seconds: it names what hangs.
        """
        quiet, filled = 0, self.filled
        while not work.done.wait(self.timeout / _TICKS):
            quiet = quiet + 1 if filled == self.filled else 0
            filled = self.filled
            if quiet >= _TICKS:
                raise DataError(self._hanging())
        if work.error is not None:
            raise work.error

    def _run(self, number: int) -> None:
        while (task := self.waiting.get()) is not None and not self.closed:
            work, row = task
            self.in_hand[number] = int(work.places[row])
            try:
                self.fill(work, row)
            except BaseException as error:  # it is the user's of the batch, who waits for it
                work.error = error
            del self.in_hand[number]
            with self.lock:
                self.filled += 1
                work.left -= 1
                over = not work.left or work.error is not None
            if over:
                work.done.set()
            del task, work  # or a thread that waits would hold the memory of a batch

    def _hanging(self) -> str:
        names = [self.name_of(place) for place in self.in_hand.copy().values()]
        return (
            f"no answer within {self.timeout:g} s (data.timeout) from the storage of "
            f"{', '.join(names)}: a pipe, a mount that is gone, or a network too slow; "
            "mend it, take the file away, or give --data.timeout more seconds"
        )


class Memory:
    """Arrays of one shape, each used again once nobody holds it: fresh pages cost time."""

    def __init__(self, make: Callable[[], np.ndarray]) -> None:
        self.make = make
        self.free: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """Give an array with anything in it."""
        whole = self.free.pop() if self.free else self.make()
        view = whole[:]
        finalize(view, self.free.append, whole).atexit = False
        return view
