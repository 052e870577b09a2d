"""What a person sees while a run trains: how far it is, and the figures of its last steps."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from vitrail.data.progress import Counter


class Display:
    """Steps as they are counted anywhere, with loss, accuracy and speed beside them."""

    def __init__(
        self, steps: int, start: int, steps_per_epoch: int, *, is_shown: bool = True
    ) -> None:
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.figures = self.held_out = ""
        # The first process of a run speaks for all.
        self.counter = Counter(self._what(start), steps, start, is_shown=is_shown)

    def __enter__(self) -> Self:
        self.counter.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.counter.__exit__(kind, error, trace)

    def step(self, done: int) -> None:
        """Be at `done` steps."""
        self.counter.what = self._what(done)
        self.counter.to(done)

    def train(self, row: Mapping[str, Any]) -> None:
        """Remember the figures of the last steps, a row; show them at once at the end."""
        done, share = row["step"], row["peak_share"]
        self.figures = f"loss {row['loss']:.3f}  top-1 {row['top1']:6.1%}"
        self.figures += f"  {row['images_per_second']:,.0f} images/s"
        if share is not None:
            self.figures += f" ({share:.0%} of peak)"
        self.counter.about = self._about()
        if done == self.steps:
            self.counter.to(done, at_once=True)

    def evaluated(self, top1: float) -> None:
        """Remember the accuracy on the held-out images."""
        self.held_out = f"held-out {top1:.1%}"
        self.counter.about = self._about()

    def _about(self) -> str:
        return "  ".join(filter(None, (self.figures, self.held_out)))

    def _what(self, done: int) -> str:
        per_epoch = self.steps_per_epoch
        return f"epoch {-(-done // per_epoch)}/{-(-self.steps // per_epoch)}  step"
