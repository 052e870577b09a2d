"""How far a long look at data is: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


class Counter:
    """Counts up to `total` on standard error; standard output stays free for results."""

    def __init__(self, what: str, total: int) -> None:
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
            left = (now - self.began) / self.done * (self.total - self.done)
            with suppress(BrokenPipeError):  # a reader of progress that left stops nothing
                line = f"{self.what} {self.done:,} of {self.total:,}  {left:.0f} s left"
                print(line, file=sys.stderr, flush=True)
