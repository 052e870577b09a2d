"""A training run as a whole command, measured from outside: for the scripts beside this one."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """What a run's `summary.json` says, and the processor seconds of its whole command."""

    summary: dict[str, Any]
    cpu_seconds: float

    @property
    def top1(self) -> float:
        """Accuracy of the last weights on the held-out images."""
        return self.summary["top1"]

    @property
    def cpu_minutes(self) -> float:
        return self.cpu_seconds / 60


def train(data: str | Path, out: Path, *flags: str) -> Measured:
    """Train by `vitrail train DATA --out OUT FLAGS` in a process of its own."""
    command = [sys.executable, "-m", "vitrail.cli", "train", str(data), "--out", str(out), *flags]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Measured(json.loads(done.stdout), spent)
