"""The model's own thread: it takes whatever waits, up to a batch, and never waits for more.

While a batch runs, the next one gathers, so that batches are as large as the load is high, and an
image alone is answered at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Thread
from typing import Any, NamedTuple


class Work(NamedTuple):
    """One kind of work: what it does to a batch, which gives a result for each, and how many."""

    run: Callable[[Sequence[Any]], Sequence[Any]]
    most: int


class Job(NamedTuple):
    kind: str
    payload: Any
    future: "asyncio.Future[Any]"


class Batch(NamedTuple):
    """What a batch was: for those who count."""

    kind: str
    size: int
    share: float  # of the most that it could have been
    seconds: float


class Batcher:
    """Runs jobs in a thread, in the order of the oldest; results come to the event loop.

    `seen` is called in the loop with every `Batch`.
    """

    def __init__(self, kinds: Mapping[str, Work], seen: Callable[[Batch], None]) -> None:
        self.kinds, self.seen = kinds, seen
        self.jobs: deque[Job] = deque()
        self.ready, self.closed = Condition(), False
        self.loop = asyncio.get_running_loop()
        self.thread = Thread(target=self._run, name="model", daemon=True)
        self.thread.start()

    def submit(self, kind: str, payload: Any) -> "asyncio.Future[Any]":
        """Give the future of a result; what was cancelled meanwhile is not computed."""
        future = self.loop.create_future()
        with self.ready:
            self.jobs.append(Job(kind, payload, future))
            self.ready.notify()
        return future

    def close(self, seconds: float) -> bool:
        """End the thread; says whether it ended in time."""
        with self.ready:
            self.closed = True
            self.ready.notify()
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def _take(self) -> list[Job]:
        """Wait for work; give the oldest jobs of one kind, none once closed."""
        with self.ready:
            while not self.closed:
                if batch := self._oldest():
                    return batch
                self.ready.wait()
        return []

    def _oldest(self) -> list[Job]:
        """Take the oldest job that is still wanted, and those of its kind, up to a batch."""
        batch: list[Job] = []
        others: list[Job] = []
        while self.jobs and not (batch and len(batch) == self.kinds[batch[0].kind].most):
            job = self.jobs.popleft()
            if not job.future.cancelled():
                (batch if not batch or job.kind == batch[0].kind else others).append(job)
        self.jobs.extendleft(reversed(others))
        return batch

    def _run(self) -> None:
        while batch := self._take():
            kind, began = batch[0].kind, time.monotonic()
            try:
                results = self.kinds[kind].run([job.payload for job in batch])
            except Exception as error:  # it is theirs who wait for it
                results = [error] * len(batch)
            share = len(batch) / self.kinds[kind].most
            done = Batch(kind, len(batch), share, time.monotonic() - began)
            pairs = [(job.future, result) for job, result in zip(batch, results, strict=True)]
            self.loop.call_soon_threadsafe(self._deliver, pairs, done)
            del batch, pairs, results  # or a thread that waits would hold the memory of a batch

    def _deliver(self, pairs: list[tuple["asyncio.Future[Any]", Any]], done: Batch) -> None:
        self.seen(done)
        for future, result in pairs:
            if future.done():  # cancelled while it was computed
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
