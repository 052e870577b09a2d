"""Ctrl-C and SIGTERM: the run is left at once, but between two steps and never within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from vitrail.errors import VitrailError


class Interrupted(BaseException):
    """A signal asked the run to stop, and no step is half taken: what is there can be saved."""


class Interrupt:
    """The signal that asked the run to stop, if any."""

    received: int | None = None
    urgent = False  # it came twice: nothing that takes time is done any more
    held = False
    raised = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        self.urgent, self.received = self.received is not None, number
        if self.urgent:  # at once, without saving
            self.leave()
        if not self.held:
            self.stop()

    def stop(self) -> NoReturn:
        self.raised = True
        raise Interrupted

    def caused(self, error: BaseException) -> bool:
        """Say whether `error` comes of the signal: an import turns it into one of its own."""
        came = self.raised or self.urgent
        return isinstance(error, Interrupted) or (came and not isinstance(error, VitrailError))

    @contextmanager
    def later(self) -> Iterator[None]:
        """Let a signal wait until what is done here is whole."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.received is not None:
            self.stop()

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
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, interrupt.handle)
        yield interrupt
    except BaseException as error:
        if interrupt.caused(error):
            interrupt.leave()
        raise
    finally:
        interrupt.held = True
        for number, handler in before.items():
            signal.signal(number, handler)
