"""A server under load, over loopback, against `vitrail predict` with the same engine.

    python benchmarks/serving.py [--model vit-s16] [--engine torch] [--seconds 60] [--minutes 10]
        [--rounds 3] [--write docs/serve-speed.md]

A model with random weights, which change no arithmetic, is saved, served in a process of its own,
and asked with JPEGs of 500 x 375 pixels of noise in spots, one a request, over connections that
stay open. The client runs on the same cores.

- sustained: 16 clients, each of which asks again as soon as it is answered, or a tenth of a second
  after it was refused, for as long as predicting the same images offline took; both in turns,
  medians of the rounds' ratios
- at 80 % of that rate: requests at random times (Poisson), whether or not others are answered
- at 4 times that rate: the same; those that are let in, and those that are refused
- afterwards: how long after the last of these an image alone is answered as fast as before
- at twice that rate for minutes: the server's memory, and that every answer is, to the last bit,
  the offline one
- an upload of 1 GiB: how long until it is refused

A batch is what the engine takes for the largest batch of the server, alone.
"""

import argparse
import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import vitrail
from vitrail.weights.bundle import default_preprocess

IMAGES = 64
BATCH = 8  # the server's own default
CLIENTS = 16  # two batches
REFUSED = (429, 503)  # there is too much work, or there are too many connections


class Reply(NamedTuple):
    """One request: when it was sent, how long its answer took, and what it was."""

    at: float
    seconds: float
    status: int
    image: int
    body: bytes


class Client:
    """Asks a server, over as many connections as are needed at once."""

    def __init__(self, port: int, photos: Sequence[bytes]) -> None:
        self.port = port
        head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        self.requests = [
            f"{head}Content-Length: {len(photo)}\r\n\r\n".encode() + photo for photo in photos
        ]
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, image: int) -> Reply:
        """Give the reply to one image."""
        began = time.perf_counter()
        while True:
            reader, writer, rested = await self._connection()
            writer.write(self.requests[image])
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                break
            except (asyncio.IncompleteReadError, ConnectionResetError):
                writer.close()
                if not rested:  # else the server closed it while it was resting: it may
                    raise
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        self.free.append((reader, writer))
        status = int(head[9:12])
        return Reply(began, time.perf_counter() - began, status, image, body)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        """Give a connection, and whether it has been used before."""
        while self.free:
            reader, writer = self.free.pop()
            if not reader.at_eof():
                return reader, writer, True
            writer.close()
        return *(await asyncio.open_connection(port=self.port)), False

    async def closed(self, clients: int, seconds: float) -> list[Reply]:
        """Ask again and again, so many at once, for a time."""
        end, found = time.perf_counter() + seconds, list[Reply]()

        async def one(number: int) -> None:
            image = number
            while time.perf_counter() < end:
                found.append(await self.ask(image % len(self.requests)))
                image += clients
                if found[-1].status in REFUSED:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*map(one, range(clients)))
        return found

    async def opened(self, rate: float, seconds: float, seed: int = 0) -> list[Reply]:
        """Ask at random times, `rate` a second on average, for a time."""
        draws, tasks = random.Random(seed), list[asyncio.Task[Reply]]()
        begin = at = time.perf_counter()
        while at < begin + seconds:
            at += draws.expovariate(rate)
            await asyncio.sleep(max(at - time.perf_counter(), 0))
            image = draws.randrange(len(self.requests))
            tasks.append(asyncio.create_task(self.ask(image)))
        return await asyncio.gather(*tasks)

    def drop(self) -> None:
        """Close what is open; the next connections are new."""
        for _, writer in self.free:
            writer.close()
        self.free.clear()


def photo(seed: int) -> bytes:
    draws = np.random.default_rng(seed)
    spots = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(spots.resize((500, 375))).astype(np.int16)
    noise = draws.integers(-20, 21, pixels.shape)
    file = io.BytesIO()
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def served(folder: Path, engine: str) -> tuple["subprocess.Popen[bytes]", int]:
    """Start a server of the bundle in a folder, and give its process and port."""
    words = ["serve", str(folder / "model"), "--port", "0", "--device", "cpu"]
    words += ["--engine", engine, "--dtype", "float32"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vitrail.cli", *words], stderr=file, stdout=subprocess.DEVNULL
        )
    while '"listening"' not in log.read_text():
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.1)
    line = next(x for x in log.read_text().splitlines() if '"listening"' in x)
    time.sleep(0.5)  # it says so right before it listens
    return process, int(json.loads(line)["url"].rpartition(":")[2])


def p99(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.99)) if values else float("nan")


def taken(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def resident(process: int) -> float:
    """Give the MiB that a process holds."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("needs Linux")


async def gigabyte(port: int) -> float:
    """Give the seconds until an upload of 1 GiB is refused by its length."""
    reader, writer = await asyncio.open_connection(port=port)
    head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    began = time.perf_counter()
    writer.write(f"{head}Content-Length: {2**30}\r\n\r\n".encode())
    status = await reader.readuntil(b"\r\n")
    seconds = time.perf_counter() - began
    assert b" 413 " in status, status
    writer.close()
    return seconds


async def measured(
    given: argparse.Namespace, port: int, process: int, bundle: vitrail.Bundle
) -> list[tuple[str, str, str]]:
    """Give each figure: what, how much, and what it should be."""
    photos = [photo(seed) for seed in range(IMAGES)]
    client = Client(port, photos)
    chosen: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    how = {**chosen, "engine": given.engine, "batch_size": 64}
    wanted = [
        [{"label": a.label, "index": a.index, "probability": a.probability} for a in row.top]
        for row in vitrail.predict(bundle, photos, **how)
    ]
    pixels = torch.from_numpy(np.stack([bundle.preprocess.pixels(_opened(x)) for x in photos]))
    engine = vitrail.engine(bundle, given.engine, **chosen)
    engine.run(pixels[:BATCH])
    batch = median(taken(lambda: engine.run(pixels[:BATCH])) for _ in range(9))
    alone = median([(await client.ask(i)).seconds for i in range(9)])

    ratios, rates, offline = [], [], []
    for _ in range(given.rounds):
        many = photos * given.repeats
        seconds = taken(lambda many=many: vitrail.predict(bundle, many, **how))
        offline.append(len(many) / seconds)
        began = time.perf_counter()
        replies = await client.closed(CLIENTS, seconds)
        rates.append(_right(replies, wanted) / (time.perf_counter() - began))
        ratios.append(rates[-1] / offline[-1])
        print(f"offline {offline[-1]:.1f}, served {rates[-1]:.1f} images/s", file=sys.stderr)
    rate = median(rates)
    rows = [
        ("offline", f"{median(offline):.1f} images/s", ""),
        ("the largest batch", f"{1e3 * batch:.0f} ms", ""),
        ("an image alone", f"{1e3 * alone:.0f} ms", ""),
        ("sustained", f"{rate:.1f} images/s, {median(ratios):.1%} of offline", "90 % or more"),
    ]
    replies = await client.opened(0.8 * rate, given.seconds)
    _right(replies, wanted)
    admitted = [reply.seconds for reply in replies if reply.status == 200]
    rows += [
        ("at 80 %: refused", f"{len(replies) - len(admitted)} of {len(replies)}", ""),
        ("at 80 %: median", f"{1e3 * median(admitted):.0f} ms", ""),
        ("at 80 %: p99", f"{p99(admitted):.2f} s, {p99(admitted) / batch:.1f} batches", "under 3"),
    ]
    replies = await client.opened(4 * rate, given.seconds, seed=1)
    last = max(reply.at for reply in replies)  # those that were let in may still be answered
    normal = float("inf")
    while normal == float("inf"):  # an image alone, until it is answered as fast as before
        reply = await client.ask(0)
        if reply.status == 200 and reply.seconds < 1.5 * alone + 0.05:
            normal = reply.at - last
    _right(replies, wanted)
    admitted = [reply.seconds for reply in replies if reply.status == 200]
    refused = [reply.seconds for reply in replies if reply.status in REFUSED]
    rows += [
        ("at 4 times: answered", f"{len(admitted) / given.seconds:.1f} images/s", ""),
        ("at 4 times: p99", f"{p99(admitted):.2f} s", "bounded"),
        ("at 4 times: refused", f"{len(refused)} of {len(replies)}", ""),
        ("at 4 times: p99 of refusals", f"{1e3 * p99(refused):.0f} ms", "under 100 ms"),
        ("normal again after", f"{max(normal, 0):.2f} s", "under 2 s"),
    ]
    if given.minutes:
        rows += await soak(client, process, 2 * rate, given.minutes, wanted)
    rows.append(("413 for 1 GiB", f"{1e3 * await gigabyte(port):.0f} ms", "at once"))
    client.drop()
    return rows


async def soak(
    client: Client, process: int, rate: float, minutes: float, wanted: Sequence[Any]
) -> list[tuple[str, str, str]]:
    """Ask at a rate for minutes; memory is read after each tenth of them."""
    memory, right, asked = [], 0, 0
    for part in range(10):
        replies = await client.opened(rate, 6 * minutes, seed=2 + part)
        right += _right(replies, wanted)
        asked += len(replies)
        memory.append(resident(process))
    told = ", ".join(f"{each:.0f}" for each in memory)
    return [
        ("at twice: answered alike", f"{right:,} of {right:,}, {asked - right:,} refused", "all"),
        ("at twice: memory", f"{told} MiB", "flat"),
    ]


def _right(replies: Sequence[Reply], wanted: Sequence[Any]) -> int:
    """Count the answers; all of them have to be the offline ones."""
    answered = [reply for reply in replies if reply.status == 200]
    for reply in answered:
        found = json.loads(reply.body)["results"][0]
        if found["top"] != wanted[reply.image]:
            raise SystemExit(f"image {reply.image}: {found} is not {wanted[reply.image]}")
    strange = {reply.status for reply in replies} - {200, *REFUSED}
    if strange:
        raise SystemExit(f"answers with {strange}")
    return len(answered)


def _opened(data: bytes) -> Any:
    from vitrail.data.decode import open_image

    return open_image(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="vit-s16")
    parser.add_argument("--engine", default="torch", help="of the server, and offline")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4, help="of the images, in a round")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()

    model = vitrail.create(given.model, seed=0)
    labels = tuple(map(str, range(model.config.classes)))
    bundle = vitrail.Bundle(model=model, preprocess=default_preprocess(model.config), labels=labels)
    with tempfile.TemporaryDirectory() as name:
        vitrail.save(bundle, Path(name, "model"))
        process, port = served(Path(name), given.engine)
        try:
            rows = asyncio.run(measured(given, port, process.pid, bundle))
            process.send_signal(signal.SIGTERM)
            rows.append(("exit code after SIGTERM", str(process.wait(60)), "0"))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    lines = ["| | measured | promised |", "|---|---|---|"]
    lines += [f"| {what} | {found} | {promised} |" for what, found, promised in rows]
    lines += [
        "",
        f"{given.model}, float32 by {given.engine}, {torch.get_num_threads()} threads of torch, "
        f"{os.cpu_count()} cores, batches of {BATCH} at most, torch {torch.__version__}, vitrail "
        f"{vitrail.__version__}; {given.rounds} rounds, {given.seconds:g} s at each load.",
    ]
    print("\n".join(lines))
    if given.write:
        what, _, how = (__doc__ or "").split("\n\n", 2)
        text = f"# A server under load\n\n{what}\n\n{how.strip()}"
        again = "`python benchmarks/serving.py` repeats it."
        page = "\n".join([text, "", again, "", *lines])
        given.write.write_text(f"{page}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
