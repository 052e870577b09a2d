"""HTTP on a connection: uvicorn's, with the clocks that it lacks.

- A head that comes byte by byte (slow loris) has `limits.header` seconds.
- What is still to come of a body that was refused is thrown away for a moment, so that the answer
  is read before the connection is cut (RFC 9112, section 9.6).
- Beyond `limits.connections` a connection is told so and closed.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitrail.serving.limits import Limits
from vitrail.serving.problem import Problem

_LINGER = 2.0  # seconds


def protocol(limits: Limits) -> type[H11Protocol]:
    """Give the protocol for these limits."""

    class Protocol(H11Protocol):
        clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(_raw(503, Problem(503, "busy", "too many connections")))
                transport.close()
                return
            self._begin(limits.header)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self.transport.write(_raw(400, Problem(400, "http", msg)))
            self.transport.close()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._begin(_LINGER)  # who has not read the answer by then will not

        def _watch(self) -> None:
            """Start the clock where the client is to send, stop it where it is to wait."""
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering or self.transport.is_closing():
                self._rest()
            elif self.conn.their_state is h11.SEND_BODY:
                self._begin(_LINGER)
            elif self.conn.trailing_data[0]:
                self._begin(limits.header)
            else:  # between two requests uvicorn's own clock runs
                self._rest()

        def _begin(self, seconds: float) -> None:
            if self.clock is None:
                self.clock = self.loop.call_later(seconds, self.transport.abort)

        def _rest(self) -> None:
            if self.clock is not None:
                self.clock.cancel()
                self.clock = None

    return Protocol


def _raw(status: int, problem: Problem) -> bytes:
    body = problem.body()
    lines = [
        f"HTTP/1.1 {status} {'Bad Request' if status == 400 else 'Service Unavailable'}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "x-content-type-options: nosniff",
        *(["retry-after: 1"] if status == 503 else []),
        "connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
