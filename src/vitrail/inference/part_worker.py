"""The process that answers for ranges of a list: one model, and a place in the list."""

import os
import pickle
import platform
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from vitrail import __version__
from vitrail.data.inputs import Item
from vitrail.errors import ConfigError, DataError, VitrailError
from vitrail.inference.cluster import Claim
from vitrail.inference.parts import Fill, Parts, Range, Written, digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every process is told."""

    items: Callable[[], Iterable[Item]]  # opens the list
    writer: Callable[..., Fill]  # of a bundle and a device
    parts: Parts
    cwd: str  # the folder that the addresses of images are relative to
    version: str = __version__


class Cursor:
    """A list of images that is walked once, as long as what is asked for lies ahead."""

    def __init__(self, items: Callable[[], Iterable[Item]]) -> None:
        self.items = items
        self.rest, self.place = iter(items()), 0

    def take(self, part: Range) -> list[Item]:
        """Give the images of a range; raises `DataError` where they are others."""
        if part.start < self.place:
            self.rest, self.place = iter(self.items()), 0
        ahead = part.start - self.place
        found = list(islice(self.rest, ahead, ahead + part.images))
        self.place = part.start + part.images
        if digest(item.name for item in found) != part.names:
            raise DataError(
                f"on {platform.node()} the images {part.start + 1:,} to {self.place:,} are not "
                "those of the list with which the command began: all machines must find the same "
                "data at the same address, and it must not change meanwhile"
            )
        return found


class Worker:
    """An actor of Ray Data: ranges in, and out what came of each, or the error it ended with."""

    def __init__(self, job: Job, bundle: Any, taken: Claim) -> None:
        self.job, self.bundle, self.taken = job, bundle, taken
        self.cursor: Cursor | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        values = {name: column[0] for name, column in rows.items()}
        numbers = {name: int(values[name]) for name in ("number", "start", "images")}
        part = Range(names=str(values["names"]), stamps=str(values["stamps"]), **numbers)
        outcome: Written | Exception
        try:
            outcome = self._write(part)
        except VitrailError as error:
            outcome = error
        except Exception:  # a defect of ours: it ends the command, where it can be told
            outcome = RuntimeError(f"on {platform.node()}:\n{traceback.format_exc()}")
        return {"number": [part.number], "outcome": [pickle.dumps(outcome)]}

    def _write(self, part: Range) -> Written:
        if self.cursor is None:
            self._begin()
        assert self.cursor is not None
        return self.job.parts.write(part, self.cursor.take(part), self.fill)

    def _begin(self) -> None:
        """Open the list and build the model: once, and where its errors can be told."""
        import ray  # pyright: ignore[reportMissingImports]

        job, node = self.job, platform.node()
        if job.version != __version__:
            raise ConfigError(
                f"{node} has vitrail {__version__}, and the command is given with {job.version}: "
                "install the same version on all machines"
            )
        job.parts.check_seen(node)
        try:
            os.chdir(job.cwd)
        except OSError as error:
            raise ConfigError(
                f'{node} has no folder "{job.cwd}", in which the command was given: give it in '
                "one that all machines have"
            ) from error
        torch.set_num_threads(self.taken.threads)
        device = "cuda" if self.taken.gpus else "cpu"
        self.fill = job.writer(ray.get(self.bundle), device=device)
        self.cursor = Cursor(job.items)
