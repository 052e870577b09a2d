"""How far a long look at data is: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0
T = TypeVar("T")


def counted(items: Iterable[T], what: str) -> Iterator[T]:
    """Give items, of which nobody knows how many there are, and count them as they are taken."""
    with Counter(what, None) as counter:
        for item in items:
            yield item
            counter.add(1)


class Counter:
    """Counts, up to `total` where there is one, on standard error: results have the other."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.began = self.last_line = time.monotonic()
        console = Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            remaining = TimeRemainingColumn(compact=True)
            self.bar = Progress(*columns, remaining, console=console, transient=True)
            self.task = self.bar.add_task(what, total=total)

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
        self.done += count
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=self.done)
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            line, seconds = f"{self.what} {self.done:,}", now - self.began
            if self.total is None:
                line += f"  {self.done / seconds:.0f} a second"
            else:
                left = seconds / self.done * (self.total - self.done)
                line += f" of {self.total:,}  {left:.0f} s left"
            with suppress(BrokenPipeError):  # a reader of progress that left stops nothing
                print(line, file=sys.stderr, flush=True)
