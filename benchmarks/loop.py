"""What the training loop costs beside its steps, on this machine's CPU.

    python benchmarks/loop.py [--steps 40] [--rounds 3] [--write docs/loop.md]

Makes a folder of photos, trains on them by `vitrail.train` as a user would, and times each part
where the loop calls it. Overhead is 1 - (seconds of `train_step`) / (seconds of the loop), without
evaluations and checkpoints, from the second step on: the first waits for its batch. What is left
is named: making the model's input (augmenting, mixing, normalising), waiting for the next batch,
and the rest (logging, the running mean, the progress line). Each round is a run of its own; figures
are medians over the rounds.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from runs import Page  # the script beside this one
from vitrail.cli import main as vitrail
from vitrail.training import learner, record
from vitrail.training.learner import Learner
from vitrail.training.session import Session

CASES = {
    "ViT-S/16, 224 px, batch 16": (
        *("--recipe", "fine-tune", "--model", "vit-s16", "--batch-size", "16"),
        *("--train.dtype", "bfloat16"),
    ),
    "small-images at 64 px, batch 128": (
        *("--recipe", "small-images", "--model.image-size", "64", "64"),
        *("--model.patch-size", "8", "--train.dtype", "bfloat16"),
    ),
    "small-images at 32 px, batch 128": ("--recipe", "small-images"),
}


def write_photos(folder: Path, count: int = 512, size: tuple[int, int] = (300, 200)) -> None:
    """Write JPEG files of smooth random colours in two classes."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
        file = folder / f"{'train' if i % 8 else 'val'}" / f"class-{i // 8 % 2}" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, quality=90)


class Clock:
    """Seconds spent in each part of the loop, from the second step on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.began = 0.0  # when the first step was done

    def add(self, name: str, seconds: float) -> None:
        if self.began:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give `function`, whose time is counted as `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.add(name, time.perf_counter() - began)

        return call

    def waited(self, batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Give `batches`, where the wait for the next one is counted, and the loop's whole time."""

        def all_of_them(*args: Any) -> Iterator[Any]:
            waiting = iter(batches(*args))
            for number in range(10**9):
                began = time.perf_counter()
                batch = next(waiting, None)
                self.add("the next batch", time.perf_counter() - began)
                if batch is None:
                    break
                yield batch
                if number == 0:
                    self.began = time.perf_counter()
            self.seconds["all"] = time.perf_counter() - self.began

        return all_of_them


def shares(data: Path, flags: tuple[str, ...], steps: int) -> dict[str, float]:
    """Train for so many steps; give the share of the loop's time that each part took."""
    clock = Clock()
    parts: tuple[tuple[str, Any, str], ...] = (
        ("train_step", learner, "train_step"),
        ("the model's input", Learner, "prepared"),
        ("evaluation", record, "evaluate"),
        ("checkpoint", record, "save"),
    )
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for name, owner, attribute in parts:
            timed = clock.timed(name, getattr(owner, attribute))
            stack.enter_context(patch.object(owner, attribute, timed))
        stack.enter_context(patch.object(Session, "batches", clock.waited(Session.batches)))
        stack.enter_context(redirect_stdout(io.StringIO()))
        told = stack.enter_context(redirect_stderr(io.StringIO()))
        words = ["train", str(data), *flags, "--train.steps", str(steps), "--out", f"{folder}/run"]
        if code := vitrail(words):
            raise SystemExit(f"exit code {code}: {told.getvalue()}")
    seconds = clock.seconds
    whole = seconds.pop("all") - seconds.pop("evaluation", 0.0) - seconds.pop("checkpoint", 0.0)
    found = {name: spent / whole for name, spent in seconds.items()}
    return {"overhead": 1 - found["train_step"], **found, "the rest": 1 - sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    columns = ("overhead", "the model's input", "the next batch", "the rest")
    rounds_of = f"{arguments.rounds} rounds of {arguments.steps} steps"
    about = f"{rounds_of} on {torch.get_num_threads()} threads"
    page = Page("What the loop costs", __doc__, about, ("", *columns))
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder))
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
        for _ in range(arguments.rounds):
            for name, flags in CASES.items():
                rounds[name].append(shares(Path(folder), flags, arguments.steps))
    for name, found in rounds.items():
        cells = [f"{median(each[column] for each in found):.1%}" for column in columns]
        page.row(name, *cells)
    page.write(arguments.write)


if __name__ == "__main__":
    main()
