"""Ctrl-C and SIGTERM: remembered, so that the loop ends between two steps and saves."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """The signal that asked the run to stop, if any."""

    received: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:  # asked twice: at once, without saving
            signal.default_int_handler(number, _frame)
        self.received = number

    def leave(self) -> None:
        """End as the signal would have ended the program: exit code 130 or 143."""
        if self.received == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[Interrupt]:
    """Remember SIGINT and SIGTERM; outside the main thread signals do not come, and none is."""
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
