"""How far a long piece of work is: a bar on a terminal, a line every few seconds elsewhere.

Training, answers and a look at data show it alike, on standard error: results have the other.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 5.0
T = TypeVar("T")


def counted(items: Iterable[T], what: str) -> Iterator[T]:
    """Give items, of which nobody knows how many there are, and count them as they are taken."""
    with Counter(what, None) as counter:
        for item in items:
            yield item
            counter.add(1)


class Counter:
    """Counts from `done`, up to `total` where there is one.

    `what` is counted, and `about` says more of it: both may change on the way.
    """

    def __init__(
        self, what: str, total: int | None, done: int = 0, *, is_shown: bool = True
    ) -> None:
        self.what, self.about = what, ""
        self.total, self.start, self.done, self.is_shown = total, done, done, is_shown
        self.began = self.last_line = time.monotonic()
        console = Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        if console.is_terminal and is_shown:
            rest = Column(ratio=1, no_wrap=True)  # where a terminal is narrow, this is cut
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(20),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[about]}", table_column=rest),
                console=console,
                expand=True,
                transient=True,
            )
            self.task = self.bar.add_task(self._far(), total=total, completed=done, about="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def add(self, count: int) -> None:
        """Count `count` more."""
        self.to(self.done + count)

    def to(self, done: int, *, at_once: bool = False) -> None:
        """Be at `done`; with `at_once` that is told even if something was told just now."""
        self.done, now = done, time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=done, description=self._far(), about=self.about)
        elif self.is_shown and (at_once or now - self.last_line >= SECONDS_BETWEEN_LINES):
            self.last_line = now
            tell(self._line(now - self.began))

    def _line(self, seconds: float) -> str:
        done = self.done - self.start
        if self.total is None:
            pace = f"{done / max(seconds, 1e-9):,.0f} a second"
        else:
            pace = f"{_time(seconds / max(done, 1) * (self.total - self.done))} left"
        return "  ".join(filter(None, (self._far(), self.about, pace)))

    def _far(self) -> str:
        of = "" if self.total is None else f"/{self.total:,}"
        return f"{self.what} {self.done:,}{of}"


def tell(text: str) -> None:
    """Print a line on standard error; a reader that left stops nothing."""
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
