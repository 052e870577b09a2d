"""The parts of a server, each alone: who is let in, what is filled up, what is dropped."""

import asyncio
import io
import json
import socket
import threading

import numpy as np
import pytest
import torch
from torch import Tensor

import vitrail
from conftest import TINY
from servers import tiny_bundle

pytest.importorskip("fastapi")

from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError
from vitrail.serving.answering import Answerer, Asked
from vitrail.serving.batcher import Batch, Batcher, Work
from vitrail.serving.gate import Gate
from vitrail.serving.guard import Access
from vitrail.serving.limits import Limits
from vitrail.serving.log import Log
from vitrail.serving.problem import Problem
from vitrail.serving.server import listen

SECONDS = {"predict": 0.1, "embed": 0.1, "explain": 0.4}


class Uneven:
    """An engine whose answers depend on the size of a batch, below `even` images."""

    name, dtype, reason = "uneven", "float32", ""
    device = torch.device("cpu")

    def __init__(self, even: int) -> None:
        self.even, self.sizes = even, list[int]()
        self.inner = vitrail.engine(tiny_bundle(), "torch", "float32", device="cpu")

    @property
    def preprocess(self) -> Preprocess:
        assert isinstance(self.inner.preprocess, Preprocess)
        return self.inner.preprocess

    def run(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        off = 0 if len(images) >= self.even else len(images)
        return self.inner.run(images) + off * torch.eye(TINY.classes)[0]


@pytest.mark.parametrize(("even", "floor"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_a_batch_is_filled_up_to_where_its_size_changes_nothing(even: int, floor: int) -> None:
    engine = Uneven(even)
    answerer = Answerer(tiny_bundle(), engine, batch_size=8, pixels=10**6)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 3, 40, 56), dtype=np.uint8)

    engine.sizes.clear()
    found = [answerer.predict([Asked(row, 5) for row in pixels[:n]])[0] for n in (1, 2, 3, 5, 8)]

    assert answerer.floor == floor
    assert engine.sizes == [max(n, floor) for n in (1, 2, 3, 5, 8)]
    assert found == [found[-1]] * 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_our_own_engine_needs_no_filling_up(dtype: str) -> None:
    engine = vitrail.engine(tiny_bundle(), "torch", dtype, device="cpu")
    images = torch.randint(0, 256, (16, 3, 40, 56), dtype=torch.uint8)

    largest = engine.run(images)

    for size in range(1, 17):
        assert torch.equal(engine.run(images[:size]), largest[:size])
        assert torch.equal(engine.run(images[-size:]), largest[-size:])


def test_the_gate_shuts_when_the_work_in_hand_takes_longer_than_may_be_waited() -> None:
    async def scene() -> None:
        gate = Gate(Limits(wait=1.0, batch_size=4), SECONDS)
        with gate.images("predict", 10):  # 1.0 s
            gate.check()
            with gate.images("explain", 1), pytest.raises(Problem, match=r"1\.4 s in hand") as told:
                gate.check()
        gate.check()

        assert told.value.status == 429
        assert told.value.headers == {"retry-after": "1"}

    asyncio.run(scene())


def test_one_batch_may_always_wait_however_slow_the_model() -> None:
    async def scene() -> None:
        gate = Gate(Limits(wait=0.5, batch_size=4), {"predict": 3.0})
        with gate.images("predict", 4):
            gate.check()
            with gate.images("predict", 1), pytest.raises(Problem, match="in hand"):
                gate.check()

    asyncio.run(scene())


def test_the_gate_learns_how_long_images_take() -> None:
    async def scene() -> None:
        gate = Gate(Limits(batch_size=8), SECONDS)
        for _ in range(60):
            gate.learn(Batch("predict", 8, 1.0, 4.0))

        assert gate.seconds["predict"] == pytest.approx(0.5, abs=1e-5)
        assert gate.seconds["explain"] == 0.4

    asyncio.run(scene())


def test_bodies_share_the_memory_there_is() -> None:
    async def scene() -> None:
        gate = Gate(Limits(body=60, bodies=100), SECONDS)
        with gate.body() as first, gate.body() as second:
            first.take(60)
            with pytest.raises(Problem) as large:
                first.take(1)
            second.take(40)
            with pytest.raises(Problem) as full:
                second.take(1)
            with pytest.raises(Problem):
                gate.check()
        gate.check()

        assert (large.value.status, full.value.status, gate.bytes) == (413, 429, 0)

    asyncio.run(scene())


def test_a_batch_is_of_one_kind_in_order_and_skips_what_was_cancelled() -> None:
    ran: list[list[int]] = []
    go = threading.Event()

    def run(payloads: object) -> list[int]:
        assert isinstance(payloads, list)
        go.wait(10)
        ran.append(payloads)
        return payloads

    async def scene() -> list[int]:
        batcher = Batcher({"a": Work(run, 3), "b": Work(run, 3)}, lambda batch: None)
        first = batcher.submit("a", 0)
        while batcher.jobs:
            await asyncio.sleep(0.001)
        rest = [batcher.submit(kind, i) for i, kind in enumerate("abaaba", start=1)]
        rest[2].cancel()
        go.set()
        found = await asyncio.gather(first, *(x for x in rest if not x.cancelled()))
        assert batcher.close(5)
        return found

    assert asyncio.run(scene()) == [0, 1, 2, 4, 5, 6]
    assert ran == [[0], [1, 4, 6], [2, 5]]


def test_an_error_of_the_model_is_everyones_in_the_batch_and_the_thread_goes_on() -> None:
    def run(payloads: object) -> list[int]:
        assert isinstance(payloads, list)
        if 1 in payloads:
            raise ZeroDivisionError
        return payloads

    async def scene() -> None:
        batcher = Batcher({"a": Work(run, 1)}, lambda batch: None)
        with pytest.raises(ZeroDivisionError):
            await batcher.submit("a", 1)
        assert await batcher.submit("a", 2) == 2
        assert batcher.close(5)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("host", "passes"),
    [("photos.example.org", True), ("photos.example.org:80", True), ("[::1]:8000", True),
     ("192.168.0.7", True), ("example.org", False), ("photos.example.org.evil.net", False),
     ("", False), ("127.0.0.1.evil.net", False), ("localhost.evil.net", False)],
)  # fmt: skip
def test_a_host_passes_where_it_is_allowed(host: str, passes: bool) -> None:
    access = Access(names=("photos.example.org",))
    scope = {"type": "http", "path": "/", "headers": [(b"host", host.encode())]}

    if passes:
        access.check(scope)
    else:
        with pytest.raises(Problem, match="does not answer to that host"):
            access.check(scope)


def test_a_log_is_lines_of_json_and_for_people_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (io.StringIO(), Terminal()):
        log = Log(stream)
        log("request", path="/a\nb\x1b[2J")
        log.close()
        (line,) = stream.getvalue().splitlines()
        assert "\x1b" not in line
        if not stream.isatty():
            assert json.loads(line)["path"] == "/a\nb\x1b[2J"


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    async def accepted(taken: socket.socket) -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def seen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inside = writer.get_extra_info("socket")
            found.set_result(inside.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(seen, sock=taken):
            _, writer = await asyncio.open_connection(*taken.getsockname())
            nodelay = await found
            writer.close()
        return nodelay

    assert asyncio.run(accepted(listen("127.0.0.1", 0))) == 1


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="only 8 fit the queue"):
        Limits(queue=8)
    with pytest.raises(ConfigError, match="wait is 0"):
        Limits(wait=0.0)
