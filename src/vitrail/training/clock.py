"""The time of a run: what all its sessions took, and what the training took of it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import SupportsFloat


class Clock:
    """Wall and processor seconds since it was made, and those of earlier sessions."""

    def __init__(self) -> None:
        self.spent = {"seconds": 0.0, "cpu_seconds": 0.0}  # in earlier sessions
        self.began, self.cpu_began = time.monotonic(), time.process_time()
        self.cpu_elsewhere = 0.0  # of the other processes, when last told
        self.lap_began = self.began

    def total(self) -> dict[str, float]:
        """Give the seconds of all sessions of this run, on all processes."""
        return {
            "seconds": self.spent["seconds"] + time.monotonic() - self.began,
            "cpu_seconds": self.spent["cpu_seconds"] + self.cpu() + self.cpu_elsewhere,
        }

    def cpu(self) -> float:
        """Give the processor seconds of this process in this session."""
        return time.process_time() - self.cpu_began

    def go_on_from(self, spent: Mapping[str, SupportsFloat]) -> None:
        """Count what earlier sessions took, as `total` gave it."""
        self.spent = {name: float(spent[name]) for name in self.spent}

    def lap(self) -> float:
        """Give the seconds since the last lap, without what was aside."""
        began, self.lap_began = self.lap_began, time.monotonic()
        return self.lap_began - began

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Keep what is done here, which is no training, out of the lap."""
        began = time.monotonic()
        yield
        self.lap_began += time.monotonic() - began
