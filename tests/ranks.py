"""Runs on several processes: how the tests start them, and what those do that train many at once.

`python ranks.py` is one process of a world; it takes every run of `SCENARIOS` in the folder that it
is started in, which holds `photos`.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from runs import MODEL, with_train, write_photos
from vitrail.data.config import Augment
from vitrail.model.config import DropRates
from vitrail.model.vit import seeded
from vitrail.training.recipe import Ema, Optimizer, Parallel, Recipe, Schedule
from vitrail.weights.bundle import Bundle, default_preprocess, save

# Two steps an epoch, whose batches split in whole blocks of 2 over 2 processes.
SHARED = with_train(batch_size=8, epochs=3, log_every=2)
LONG = with_train(SHARED, epochs=25, evaluate_every=25, save_every=2)
# The same numbers on any number of processes: dropout is another draw on each.
EQUAL = with_train(SHARED, drop=DropRates())
# One step of it moves each weight by its gradient.
GRADIENT = replace(
    with_train(EQUAL, steps=1),
    optimizer=Optimizer(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.0),
    schedule=Schedule(name="constant", warmup=0.0),
    ema=Ema(),
)
# Of most batches one process can read none of its images.
BAD = replace(
    with_train(GRADIENT, steps=4, micro_batch=2),
    data=replace(GRADIENT.data, source="bad", max_bad_share=0.9),
)
# Of a frozen model that `write_pretrained` has written the head alone learns.
PROBE = replace(with_train(GRADIENT, steps=6, freeze=-1, weights="pretrained"), augment=Augment())
TIMED = with_train(EQUAL, minutes=0.02)
FSDP, SHARDED = Parallel(kind="fsdp"), Parallel(kind="fsdp", checkpoints="sharded")


def spread(recipe: Recipe, parallel: Parallel = FSDP) -> Recipe:
    return replace(recipe, parallel=parallel)


def write_pretrained() -> None:
    names, how = ("dark", "light"), default_preprocess(MODEL)
    save(Bundle(model=seeded(MODEL, seed=9), preprocess=how, labels=names), "pretrained")


def write_bad(root: Path) -> None:
    """Write photos of which six of twenty can be read."""
    for file in write_photos(root).rglob("*.png"):
        if file.stem not in ("0", "3", "7"):
            file.write_bytes(b"no image")


def adamw(recipe: Recipe) -> Recipe:
    return replace(recipe, optimizer=Optimizer(name="adamw"))


@contextmanager
def started(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]] = ()
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start commands; at the end none of them, and nothing that they started, is left."""
    before = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command,
            env=before | dict(environments[i] if environments else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for i, command in enumerate(commands)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def descendants(pid: int) -> list[int]:
    """Give the processes that a process has started, and they, as Linux tells."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [p for child in map(int, children) for p in (child, *descendants(child))]


def world(size: int) -> list[dict[str, str]]:
    """Give the environment of each process of a world, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def take_all(size: int, timeout: float = 120) -> None:
    """Take every run of `SCENARIOS` on `size` processes."""
    command = [sys.executable, "-W", "error", __file__]
    with started([command] * size, world(size)) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors


def _stopped(recipe: Recipe, out: str, step: int, rank: int) -> None:
    """Stop a run by a signal that only one of its processes gets."""
    from vitrail.training.learner import Learner
    from vitrail.training.loop import train

    whole = Learner.step

    def stopping(self: Learner, batch: Any, number: int) -> None:
        whole(self, batch, number)
        if number == step - 1 and self.world.rank == rank:
            os.kill(os.getpid(), signal.SIGINT)

    Learner.step = stopping  # type: ignore[method-assign]
    try:
        train(recipe, out)
    except KeyboardInterrupt:
        return
    finally:
        Learner.step = whole  # type: ignore[method-assign]
    raise AssertionError("the run was not stopped")


def _empty(recipe: Recipe, out: str) -> None:
    """Train, and prove that a process had a step without any image."""
    from vitrail.training.learner import Learner
    from vitrail.training.loop import train

    whole, empty = Learner.step, []

    def counting(self: Learner, batch: Any, number: int) -> None:
        empty.append(not len(batch.labels) and self.world.images > 0)
        whole(self, batch, number)

    Learner.step = counting  # type: ignore[method-assign]
    world = train(recipe, out) and dist.get_world_size()
    Learner.step = whole  # type: ignore[method-assign]
    found: list[bool] = [False] * world
    dist.all_gather_object(found, any(empty))
    assert any(found)


def _runs(size: int) -> Iterator[tuple[str, Callable[[str], object]]]:
    from vitrail.training.loop import train

    def whole(recipe: Recipe) -> Callable[[str], object]:
        return lambda out: train(recipe, out)

    recipe = with_train(SHARED, batch_size=4 * size if size == 2 else 2 * size)
    yield "ddp", whole(recipe)
    yield "stopped", lambda out: _stopped(recipe, out, 3, size - 1)
    yield "stopped", whole(recipe)
    if size > 2:
        return
    yield "long", whole(LONG)
    yield "again", whole(SHARED)
    yield "equal", whole(EQUAL)
    yield "from-one", whole(EQUAL)
    yield "to-one", lambda out: _stopped(EQUAL, out, 3, 0)
    yield "gradient", whole(GRADIENT)
    yield "gradient-micro", whole(with_train(GRADIENT, micro_batch=3))
    yield "gradient-fsdp", whole(spread(GRADIENT))
    yield "gradient-fsdp-micro", whole(with_train(spread(GRADIENT), micro_batch=3))
    yield "probe", whole(PROBE)
    yield "probe-fsdp", whole(spread(PROBE))
    yield "timed", lambda out: _stopped(TIMED, out, 1, 1)  # in the trial before its first step
    yield "timed", whole(TIMED)
    yield "fsdp", whole(spread(EQUAL))
    yield "fsdp-adamw", lambda out: _stopped(spread(adamw(EQUAL), SHARDED), out, 3, 1)
    yield "fsdp-adamw", whole(adamw(EQUAL))
    yield "bad-ddp", lambda out: _empty(BAD, out)
    yield "bad-fsdp", lambda out: _empty(spread(BAD), out)
    yield "ddp-adamw", lambda out: _stopped(adamw(EQUAL), out, 3, 1)
    yield "ddp-adamw", whole(spread(adamw(EQUAL), SHARDED))


def _fail() -> int:
    """Train by the command, and fail in a step of one process."""
    from vitrail.cli import main
    from vitrail.training.learner import Learner

    whole = Learner.step

    def step(self: Learner, batch: Any, number: int) -> None:
        if number == 3 and self.world.rank == 1:
            raise RuntimeError("the machine is on fire")
        whole(self, batch, number)

    Learner.step = step  # type: ignore[method-assign]
    return main(["train", "photos", "--recipe", "long.toml", "--out", "run"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["fails"]:
        sys.exit(_fail())
    dist.init_process_group("gloo")
    for name, take in _runs(dist.get_world_size()):
        take(name)
    dist.destroy_process_group()
