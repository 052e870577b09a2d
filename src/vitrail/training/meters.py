"""What is counted while a run trains, on the device: nothing here waits before it is read."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.training.step import StepResult

_COUNTS = ("seen", "taken", "skipped", "skipped_before")


class Window(NamedTuple):
    """Means over the steps since the last time they were read."""

    loss: float
    top1: float
    grad_norm: float
    update_norm: float | None  # of the last step, where it was taken and measured
    images: int
    timed: int  # of these images, those of this session
    skipped: int  # steps that were left out


class Meters:
    """Sums since they were last read, and the first step that was not finite."""

    def __init__(self, device: torch.device) -> None:
        self.sums = {n: torch.zeros((), device=device) for n in ("loss", "right", "grad_norm")}
        self.update_norm: Tensor | None = None
        self.seen, self.taken = 0, 0  # images and steps in the sums
        self.seen_before = 0  # images in the sums that an earlier session has seen
        self.skipped = self.skipped_before = 0  # steps left out, in all and before the sums
        self.first_bad = torch.full((), -1, device=device)  # first step that was not finite
        self.bad_figures = torch.zeros(2, device=device)  # its loss and norm of the gradient

    def count(self, result: StepResult, images: int, step: int) -> None:
        """Take a step in."""
        self.update_norm = result.update_norm
        if not result.taken:
            self.skipped += 1
            return
        self.sums["loss"] += result.loss
        self.sums["right"] += result.right
        self.sums["grad_norm"] += result.grad_norm
        self.seen, self.taken = self.seen + images, self.taken + 1
        bad = ~(result.loss + result.grad_norm).isfinite() & (self.first_bad < 0)
        self.first_bad = torch.where(bad, step, self.first_bad)
        figures = torch.stack([result.loss, result.grad_norm])
        self.bad_figures = torch.where(bad, figures, self.bad_figures)

    def read(self) -> Window:
        """Give the means since the last call, and start anew; this waits for the device."""
        sums = {name: float(value) for name, value in self.sums.items()}
        window = Window(
            loss=sums["loss"] / max(self.taken, 1),
            top1=sums["right"] / max(self.seen, 1),
            grad_norm=sums["grad_norm"] / max(self.taken, 1),
            update_norm=None if self.update_norm is None else float(self.update_norm),
            images=self.seen,
            timed=self.seen - self.seen_before,
            skipped=self.skipped - self.skipped_before,
        )
        for value in self.sums.values():
            value.zero_()
        self.seen = self.taken = self.seen_before = 0
        self.skipped_before = self.skipped
        return window

    def bad_step(self) -> tuple[int, str] | None:
        """Give the first step whose loss or gradient was not finite, and what they were."""
        step, (loss, norm) = int(self.first_bad), self.bad_figures.tolist()
        told = f"the loss was {loss:.4g} and the norm of the gradient {norm:.4g}"
        return None if step < 0 else (step, told)

    def state(self) -> dict[str, Tensor]:
        """Give all that a resume needs."""
        return {**self.sums, **{name: torch.tensor(getattr(self, name)) for name in _COUNTS}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        for name, value in self.sums.items():
            value.copy_(state[name])
        for name in _COUNTS:
            setattr(self, name, int(state[name]))
        self.seen_before = self.seen
