"""Servers in processes of their own, and a client that hides nothing of HTTP."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import vitrail
from conftest import TINY, randomize
from vitrail.weights.bundle import default_preprocess

PNG = {"Content-Type": "image/png"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in small letters
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Process:
    """A server that listens; `lines` are those of its log so far."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process, self.log = process, log
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Give the first line of the log that is wanted, once it is written."""
        end = time.monotonic() + 30
        while not (found := [line for line in self.lines() if wanted(line)]):
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        return found[0]

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = self.connect()
        connection.request(method, path, body, named)
        try:
            return read(connection)
        finally:
            connection.close()

    def form(self, path: str, files: Sequence[tuple[str, bytes]], field: str = "images") -> Answer:
        kind, body = form(files, field)
        return self.ask("POST", path, body, content_type=kind)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def read(connection: HTTPConnection) -> Answer:
    found = connection.getresponse()
    headers = {name.lower(): value for name, value in found.getheaders()}
    return Answer(found.status, headers, found.read())


def form(files: Sequence[tuple[str, bytes]], field: str = "images") -> tuple[str, bytes]:
    """Give the type and the body of a form with these files."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return "multipart/form-data; boundary=edge", b"".join(parts) + b"--edge--\r\n"


def picture(seed: int = 0, height: int = 60, width: int = 90, form: str = "PNG") -> bytes:
    """Give an image file of noise in large spots."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(spots).resize((width, height)).save(file, form)
    return file.getvalue()


def tiny_bundle() -> vitrail.Bundle:
    torch.manual_seed(0)
    model = randomize(vitrail.ViT(TINY))
    labels = tuple(f"class-{i}" for i in range(TINY.classes))
    return vitrail.Bundle(model=model, preprocess=default_preprocess(TINY), labels=labels)


@contextmanager
def serving(folder: Path, *flags: str, model: str = "model") -> Iterator[Process]:
    """Run `vitrail serve` on the tiny bundle in `folder`, until the end of the context.

    Its engine is torch, bit for bit that of `vitrail.predict`, where the flags name no other.
    """
    if not (folder / model).exists():
        vitrail.save(tiny_bundle(), folder / model)
    log = folder / f"log-{time.monotonic_ns()}"
    words = [sys.executable, "-m", "vitrail.cli", "serve", str(folder / model), "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "VITRAIL_TOKEN"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [*words, "--device", "cpu", "--engine", "torch", *flags],  # the last one counts
            stderr=file,
            stdout=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
    server = Process(process, log)
    try:
        while not (said := [x for x in server.lines() if x["event"] == "listening"]):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        server.port = int(said[0]["url"].rpartition(":")[2])
        while True:  # it has bound the port before, but not listened
            try:
                server.ask("GET", "/health")
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
