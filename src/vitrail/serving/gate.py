"""Who is let in: the work in hand, how long it will take, and a no before anything is read.

Everything here runs in the event loop, so that nothing is locked.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vitrail.serving.batcher import Batch
from vitrail.serving.limits import Limits
from vitrail.serving.problem import Problem, busy, stopping

_NEW = 0.2  # the weight of a full batch in the seconds that an image takes


class Gate:
    """Counts work, and refuses what would wait longer than `limits.wait`."""

    def __init__(self, limits: Limits, seconds: Mapping[str, float]) -> None:
        self.limits = limits
        self.seconds = dict(seconds)  # of the model for an image, by kind of work
        self.decoding = 0.0  # seconds of all threads together for an image
        self.in_hand: Counter[str] = Counter()  # images, by kind, from their decoding on
        self.requests = self.bytes = 0
        self.is_stopping = False
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def expected(self) -> float:
        """The seconds that the work in hand will take."""
        # While the model runs, the next images are decoded: what takes longer counts.
        each = {kind: max(seconds, self.decoding) for kind, seconds in self.seconds.items()}
        return sum(count * each[kind] for kind, count in self.in_hand.items())

    @property
    def is_full(self) -> bool:
        """Whether what comes now would wait too long: for more than one batch, and `limits.wait`.

        What it would add does not count: with nothing in hand the largest request is taken.
        """
        if sum(self.in_hand.values()) >= self.limits.queue:
            return True
        batch = self.limits.batch_size * max(self.seconds["predict"], self.decoding)
        return self.expected > max(self.limits.wait, batch)

    def check(self) -> None:
        """Raise `Problem` where a request that comes now would be refused: it need not be read."""
        if self.is_stopping:
            raise stopping()
        if self.is_full or self.bytes >= self.limits.bodies:
            raise busy(self.expected)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request, which a stop waits for."""
        self.requests += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self.idle.set()

    @contextmanager
    def images(self, kind: str, count: int) -> Iterator[None]:
        """Count images of a request in hand; raises `Problem` as `check`, or where none fits."""
        total = sum(self.in_hand.values())
        if self.is_full or total + count > self.limits.queue:
            raise busy(self.expected)
        self.in_hand[kind] += count
        try:
            yield
        finally:
            self.in_hand[kind] -= count

    @contextmanager
    def body(self) -> Iterator["Room"]:
        """Give the room that a body may take, and take it back."""
        room = Room(self)
        try:
            yield room
        finally:
            self.bytes -= room.taken

    def learn(self, batch: Batch) -> None:
        """Learn from a batch how long an image takes; small batches say less of a full queue."""
        each = batch.seconds / batch.size
        self.seconds[batch.kind] += _NEW * batch.share * (each - self.seconds[batch.kind])

    def decoded(self, seconds: float) -> None:
        """Learn how long an image took to decode, by as many threads as there are."""
        self.decoding += _NEW / self.limits.batch_size * (seconds - self.decoding)


class Room:
    """The memory of one body."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.taken = gate, 0

    def check(self, size: int) -> None:
        """Raise `Problem` where a body is larger than any may be."""
        most = self.gate.limits.body
        if size > most:
            message = f"the body has {size:,} bytes or more; the limit is {most:,}"
            raise Problem(413, "too_large", message)

    def take(self, size: int) -> None:
        """Take more room; raises `Problem` where the body is too large, or all bodies are."""
        self.check(self.taken + size)
        if self.gate.bytes + size > self.gate.limits.bodies:
            raise busy(self.gate.expected)
        self.taken += size
        self.gate.bytes += size
