"""Ctrl-C and SIGTERM: the run is left at once, but between two steps and never within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupted(BaseException):
    """A signal asked the run to stop, and no step is half taken: what is there can be saved."""


class Interrupt:
    """The signal that asked the run to stop, if any."""

    received: int | None = None
    urgent = False  # it came twice: nothing that takes time is done any more
    held = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        self.urgent, self.received = self.received is not None, number
        if self.urgent:  # at once, without saving
            self.leave()
        if not self.held:
            raise Interrupted

    @contextmanager
    def later(self) -> Iterator[None]:
        """Let a signal wait until what is done here is whole."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.received is not None:
            raise Interrupted

    def leave(self) -> NoReturn:
        """End as the signal would have ended the program: exit code 130 or 143."""
        if self.received == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[Interrupt]:
    """Raise `Interrupted` at SIGINT and SIGTERM; outside the main thread signals do not come."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {n: signal.signal(n, interrupt.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
