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

    def __str__(self) -> str:
        top1, (low, high) = self.summary["top1"], self.summary["evaluation"]["top1_interval"]
        images = self.summary["held_out_images"]
        return f"{top1:.2%} of {images:,} ({low:.1%} to {high:.1%})"


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
