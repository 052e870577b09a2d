"""The process that `bench` measures one setting in: it builds an engine, and does as it is told.

A line of JSON in, a line of JSON out, until there are no more.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.engines.build import engine
from vitrail.engines.engine import Engine
from vitrail.errors import VitrailError
from vitrail.inference.memory import meter
from vitrail.inference.peak import wait
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle
from vitrail.weights.loading import load

# Built first, so that all of a runtime is imported before memory is measured.
_SMALLEST = ViTConfig(image_size=(8, 8), patch_size=8, classes=2, width=8, depth=1, heads=1)
_WARM = 0.2  # seconds, or one batch: kernels are chosen, and memory is taken


class Worker:
    """One setting: an engine, and a batch for it.

    `about` has its `engine`, `dtype`, `batch`, `device` and `threads`, and the `folder` with the
    bundle and a sample of images.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        if about["threads"] is not None:
            torch.set_num_threads(about["threads"])
        self.batch, folder = about["batch"], Path(about["folder"])
        how = (about["engine"], about["dtype"])
        half = (0.5, 0.5, 0.5)
        plain = Preprocess(size=_SMALLEST.image_size, mean=half, std=half)
        small = Bundle(model=ViT(_SMALLEST), preprocess=plain, labels=("a", "b"))
        tried = engine(small, *how, device=about["device"])
        tried.run(torch.zeros(1, 3, *_SMALLEST.image_size))
        self.sample: Tensor = torch.load(folder / "sample.pt", weights_only=True)
        self.grown = meter(tried.device)
        self.engine: Engine = engine(load(folder / "bundle"), *how, device=about["device"])
        self.images = self.sample[torch.arange(self.batch) % len(self.sample)]
        self.time(_WARM)

    def time(self, seconds: float) -> float:
        """Give the seconds that a batch takes, in the mean of as many as fill the time."""
        batches, began = 0, time.perf_counter()
        while not batches or time.perf_counter() - began < seconds:
            self.engine.run(self.images)
            wait(self.engine.device)
            batches += 1
        return (time.perf_counter() - began) / batches

    def memory(self) -> int | None:
        """Give the bytes that loading, building and answering have taken at most."""
        return self.grown()

    def answers(self) -> list[int]:
        """Give the likeliest class of each image of the sample."""
        found = [self.engine.run(images).argmax(dim=1) for images in self.sample.split(self.batch)]
        return torch.cat(found).tolist()


def main() -> None:
    """Serve standard input until its end."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints is no reply
    worker: Worker | None = None
    for line in sys.stdin:
        task, *given = json.loads(line)
        try:
            if task == "build":
                worker, found = Worker(*given), None
            else:
                found = getattr(worker, task)(*given)
            reply = {"found": found}
        except VitrailError as error:
            reply = {"error": str(error)}
        except Exception as error:  # of a runtime, or of too little memory: it is this row's alone
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
