"""Ctrl-C and SIGTERM: the run is left at once, but between two steps and never within one."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from vitrail.errors import VitrailError

# Of several processes: a cluster signals all of them, and torchrun, which is one of all, passes its
# own signal on. What comes so soon after the first is the same wish.
ECHO_SECONDS = 2.0


class Interrupted(BaseException):
    """A signal asked the run to stop, and no step is half taken: what is there can be saved."""

    @property
    def number(self) -> int | None:
        """The signal, where another process got it."""
        return self.args[0] if self.args else None


class Interrupt:
    """The signal that asked the run to stop, if any."""

    received: int | None = None
    since = 0.0  # when it came
    urgent = False  # it came twice: nothing that takes time is done any more
    held = False
    raised = False
    told: int | None = None  # the signal that another process got: its own may come later
    shared = False  # with other processes, which must leave at the same place

    def handle(self, number: int, _frame: FrameType | None) -> None:
        is_again, now = self.received is not None, time.monotonic()
        if is_again and self.shared and now - self.since < ECHO_SECONDS:
            return
        self.urgent, self.received, self.since = is_again, number, now
        if self.urgent:  # at once, without saving
            self.leave()
        if not self.held:
            self.stop()

    def stop(self) -> NoReturn:
        self.raised = True
        raise Interrupted(self.received)

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
            self.held = self.shared
        if self.received is not None and not self.shared:
            self.stop()

    @contextmanager
    def now(self) -> Iterator[None]:
        """Let a signal end what is done here: the other processes have no part in it."""
        before = self.held
        try:
            self.held = False
            if self.received is not None:
                self.stop()
            yield
        finally:
            self.held = before

    def leave(self) -> NoReturn:
        """End as the signal would have ended the program: exit code 130 or 143."""
        if (self.received or self.told) == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt


@contextmanager
def listening(interrupt: Interrupt, *, shared: bool = False) -> Iterator[Interrupt]:
    """Raise `Interrupted` at SIGINT and SIGTERM; outside the main thread signals do not come.

    With `shared` they wait until all processes of the run can agree to leave.
    """
    interrupt.shared = interrupt.held = shared
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
