"""A training run as a whole command, measured from outside: for the scripts beside this one."""

import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vitrail import __version__ as version

# So that no processor minute is spent on threads that wait for each other.
ONE_THREAD = ("--train.cpu-threads", "1", "--data.threads", "1")


class Measured(NamedTuple):
    """What a run's `summary.json` says, and the processor seconds of its whole command."""

    summary: dict[str, Any]
    cpu_seconds: float

    @property
    def minutes(self) -> str:
        return f"{self.cpu_seconds / 60:.1f}"

    def __str__(self) -> str:
        top1, (low, high) = self.summary["top1"], self.summary["evaluation"]["top1_interval"]
        images = self.summary["held_out_images"]
        return f"{top1:.2%} of {images:,} ({low:.1%} to {high:.1%})"


def train(data: str | Path, out: Path, *flags: str) -> Measured:
    """Train by `vitrail train DATA --out OUT FLAGS` in a process of its own."""
    out.parent.mkdir(parents=True, exist_ok=True)
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


class Page:
    """A table in Markdown, under what its script says of itself; printed as it grows."""

    def __init__(self, title: str, doc: str | None, about: str, columns: tuple[str, ...]) -> None:
        machine = platform.processor() or platform.machine()
        self.lines: list[str] = []
        self._add("# " + title, "", *(doc or "").strip().split("\n\n", 2)[2:], "")
        self._add(f"{about}; {machine}, torch {torch.__version__}, vitrail {version}.", "")
        self._add(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")

    def row(self, *cells: str) -> None:
        self._add(f"| {' | '.join(cells)} |")

    def write(self, path: Path | None) -> None:
        """Write the page where a path was given."""
        if path is not None:
            path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def _add(self, *lines: str) -> None:
        self.lines += lines
        print("\n".join(lines), flush=True)
