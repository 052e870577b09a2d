"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Progress on standard error; standard output stays free for results."""

    def __init__(
        self, steps: int, start: int, steps_per_epoch: int, *, is_shown: bool = True
    ) -> None:
        self.is_shown = is_shown  # the first process of a run speaks for all
        self.steps, self.start, self.steps_per_epoch = steps, start, steps_per_epoch
        self.console = Console(stderr=True, highlight=False)
        self.began = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        self.figures = self.held_out = ""
        if self.console.is_terminal and is_shown:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self.task = self.bar.add_task(
                "train", total=steps, completed=start, epoch="1", numbers=""
            )

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

    def step(self, done: int) -> None:
        """Move the bar to `done` steps."""
        if self.bar:
            self.bar.update(self.task, completed=done)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self._line(done)

    def train(self, row: Mapping[str, Any]) -> None:
        """Remember the figures of the last steps, a row; show them at once at the end."""
        done, share = row["step"], row["peak_share"]
        self.figures = f"loss {row['loss']:.3f}  top-1 {row['top1']:6.1%}"
        self.figures += f"  {row['images_per_second']:,.0f} images/s"
        if share is not None:
            self.figures += f" ({share:.0%} of peak)"
        if self.bar:
            numbers = self.figures + self.held_out
            self.bar.update(self.task, epoch=self._epoch(done), numbers=numbers)
        elif done == self.steps:
            self._line(done)

    def _line(self, done: int) -> None:
        if not self.is_shown:
            return
        self.last_line = time.monotonic()
        spent = self.last_line - self.began
        left = spent / max(done - self.start, 1) * (self.steps - done)
        words = [f"epoch {self._epoch(done)}", f"step {done}/{self.steps}", self.figures]
        words += [self.held_out.strip(), f"{left:.0f} s left"]
        tell("  ".join(word for word in words if word))

    def _epoch(self, done: int) -> str:
        return f"{-(-done // self.steps_per_epoch)}/{-(-self.steps // self.steps_per_epoch)}"

    def evaluated(self, top1: float) -> None:
        """Remember the accuracy on the held-out images, to be shown with the next figures."""
        self.held_out = f"  held-out {top1:.1%}"

    def say(self, text: str) -> None:
        """Print a line of its own."""
        with suppress(BrokenPipeError):
            self.console.print(text, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a line on standard error; a reader that left does not stop the training."""
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)
