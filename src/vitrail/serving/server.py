"""A server from its first listening to its last answer."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn

from vitrail.engines.build import Engine
from vitrail.errors import ConfigError
from vitrail.serving.answering import Answerer
from vitrail.serving.app import build
from vitrail.serving.guard import Access, Guard
from vitrail.serving.limits import Limits
from vitrail.serving.log import Handler, Log
from vitrail.serving.protocol import protocol
from vitrail.serving.service import Service
from vitrail.weights.bundle import Bundle

_KEEP_ALIVE = 15  # seconds that a connection may rest between two requests
_LAST = 2  # seconds for threads and connections to end when all is answered


def listen(host: str, port: int) -> socket.socket:
    """Take a port, so that a mistake shows before a model is loaded; nobody is answered yet.

    Raises `ConfigError` where it is taken or there is no such address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        # The number of TCP is not left out: asyncio sends small packets at once only by it, and
        # without it each answer would wait 40 ms for an acknowledgement.
        taken = socket.socket(family, kind, number or socket.IPPROTO_TCP)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{host} port {port} cannot be listened at: {reason}; give another --port or --host"
        ) from error
    taken.setblocking(False)
    return taken


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches what listens at a host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def serve(
    bundle: Bundle,
    engine: Engine,
    taken: socket.socket,
    *,
    name: str,
    access: Access,
    limits: Limits,
    threads: int = 2,
) -> int:
    """Answer until SIGTERM or SIGINT; gives the exit code.

    Then no more requests are let in, those in hand have `limits.grace` seconds, and the code is 0,
    or 130 for SIGINT, or 1 where some were cut off. A second signal ends at once.
    """
    log = Log()
    service = Service(Answerer(bundle, engine, limits.batch_size, limits.pixels), limits, threads)
    app = build(service, name, with_token=access.token is not None)
    config = uvicorn.Config(
        Guard(app, access, service.gate, service.metrics, log),
        http=protocol(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_LAST,
        backlog=limits.connections,
    )
    _speak(log)
    server = Server(config, service, log)
    host, port = taken.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log("listening", url=f"http://{shown}:{port}", model=name, engine=engine.name)
    try:
        server.run([taken])
    finally:
        in_time = service.stop(_LAST)
        log("stopped", requests=sum(service.metrics.requests.values()), cut_off=server.cut_off)
        log.close()
    code = 1 if server.cut_off else 130 if server.signal == signal.SIGINT else 0
    if not in_time:  # a thread that still computes would keep the process from ending
        os._exit(code)
    return code


class Server(uvicorn.Server):
    """uvicorn's server, which stops when all that was let in is answered."""

    def __init__(self, config: uvicorn.Config, service: Service, log: Log) -> None:
        super().__init__(config)
        self.service, self.log = service, log
        self.signal, self.cut_off = 0, 0
        self.draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to signals in the loop; uvicorn would raise them again at the end."""
        loop = asyncio.get_running_loop()
        self.service.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def stop(self, number: int) -> None:
        """Begin to stop; the second time, end."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        gate = self.service.gate
        gate.is_stopping = True
        self.log("stopping", requests_in_hand=gate.requests, grace=self.service.limits.grace)
        self.draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        gate = self.service.gate
        try:
            await asyncio.wait_for(gate.idle.wait(), self.service.limits.grace)
        except TimeoutError:
            self.cut_off = gate.requests
        self.should_exit = True


def _speak(log: Log) -> None:
    """Have what uvicorn and asyncio warn of go to our log."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Handler(log)], False
        logger.setLevel(logging.WARNING)
