"""One request from its body to its answer: read, let in, decode, run, write."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, NamedTuple

from starlette.requests import Request

from vitrail.errors import DataError
from vitrail.serving.answering import Answerer
from vitrail.serving.batcher import Batch, Batcher
from vitrail.serving.bodies import Upload, media_type, read, uploads
from vitrail.serving.gate import Gate, Room
from vitrail.serving.limits import Limits
from vitrail.serving.metrics import Metrics
from vitrail.serving.problem import Problem, late


class Row(NamedTuple):
    """One image of a request: what came of it, or why nothing did."""

    name: str
    error: str | None
    result: Any


class Service:
    """What requests share: the gate, the threads that decode, and the model's thread."""

    def __init__(self, answerer: Answerer, limits: Limits, threads: int) -> None:
        self.answerer, self.limits = answerer, limits
        self.gate, self.metrics = Gate(limits, answerer.seconds()), Metrics()
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, "decode")
        self.batcher: Batcher | None = None

    def start(self) -> None:
        """Begin to work for the event loop that runs."""
        self.batcher = Batcher(self.answerer.kinds(), self._seen)

    def stop(self, seconds: float) -> bool:
        """End all threads; says whether they ended in time."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        return self.batcher is None or self.batcher.close(seconds)

    async def answer(
        self, request: Request, kind: str, prepare: Callable[[bytes], Any]
    ) -> list[Row]:
        """Give a row for each image of a request, in order.

        `prepare` makes of an image's bytes what this kind of work takes, in a thread. Raises
        `Problem` where the request as a whole is refused; an image alone that is broken is one.
        """
        deadline = asyncio.get_running_loop().time() + self.limits.timeout
        try:
            async with asyncio.timeout_at(deadline):
                with self.gate.body() as room:
                    found = await self._uploads(request, room, deadline)
                    request.scope["vitrail"] = {"images": len(found), "bytes": room.taken}
                    with self.gate.images(kind, len(found)):
                        rows = await _unless_gone(request, self._rows(kind, found, prepare))
        except TimeoutError:
            raise late(self.limits.timeout) from None
        for row in rows:
            self.metrics.images[kind, "ok" if row.error is None else "error"] += 1
        if len(rows) == 1 and rows[0].error is not None:
            raise Problem(422, "not_an_image", rows[0].error)
        return rows

    async def _uploads(self, request: Request, room: Room, deadline: float) -> Sequence[Upload]:
        _, boundary = media_type(request)
        length = request.headers.get("content-length", "")
        room.check(int(length) if length.isdecimal() else 0)
        body = await read(request, room, self.limits, deadline)
        if not boundary:  # nothing is to be taken apart
            return uploads(body, boundary, self.limits.images)
        take = uploads, body, boundary, self.limits.images
        return await asyncio.get_running_loop().run_in_executor(self.pool, *take)

    async def _rows(
        self, kind: str, found: Sequence[Upload], prepare: Callable[[bytes], Any]
    ) -> list[Row]:
        rows = await asyncio.gather(
            *(self._row(kind, upload, prepare) for upload in found), return_exceptions=True
        )
        for row in rows:
            if isinstance(row, BaseException):
                raise row
        return [row for row in rows if isinstance(row, Row)]

    async def _row(self, kind: str, upload: Upload, prepare: Callable[[bytes], Any]) -> Row:
        assert self.batcher is not None
        loop = asyncio.get_running_loop()

        def timed() -> tuple[Any, float]:
            began = monotonic()
            return prepare(upload.data), monotonic() - began

        try:
            payload, seconds = await loop.run_in_executor(self.pool, timed)
        except DataError as error:
            return Row(upload.name, str(error), None)
        self.gate.decoded(seconds / self.threads)
        return Row(upload.name, None, await self.batcher.submit(kind, payload))

    def _seen(self, batch: Batch) -> None:
        self.gate.learn(batch)
        self.metrics.batch(batch)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, list[Row]]) -> list[Row]:
    """Give what comes of the work; it ends where nobody waits for it any more."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body: that the client left
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Problem(499, "gone", "nobody waits for the answer")
    finally:
        working.cancel()
        gone.cancel()
