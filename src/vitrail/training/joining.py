"""Joining the processes of a run, and what happens when one of them is lost.

They are what torchrun starts (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). A process
without these variables is a world of one.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from vitrail.errors import ConfigError, VitrailError
from vitrail.training.world import World

# A process that dies is noticed at once, by its connections; these are for one that hangs.
STEP_TIMEOUT = timedelta(minutes=5)
CONTROL_TIMEOUT = timedelta(minutes=30)  # while one process writes or reads, the others wait
AGENT_SECONDS = 15.0  # torchrun looks after its processes ten times a second


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes of this run, and leave them at the end."""
    world = _from_environment()
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    where = world.device(device)
    backend = "gloo"
    if where.type == "cuda":
        torch.cuda.set_device(where)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=STEP_TIMEOUT)
        group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        assert isinstance(group, dist.ProcessGroup)
        world.control = group
    except RuntimeError as error:
        raise VitrailError(_not_joined(world, str(error))) from error
    try:
        yield world
    except BaseException as error:
        is_lost = isinstance(error, PeerLostError)
        # Its own end must not come first: the exit code of the run is that of what ended. So it
        # waits for the agent's signal, which may have come already.
        if is_lost and "TORCHELASTIC_RUN_ID" in os.environ and world.interrupt.received is None:
            time.sleep(AGENT_SECONDS)
        # Where the processes did not agree to end, nccl would wait for a step that never comes.
        agreed = isinstance(error, VitrailError | KeyboardInterrupt | SystemExit) and not is_lost
        if agreed or backend == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


class PeerLostError(VitrailError):
    """Another process of the run has ended."""

    # torchrun and --processes tell which one and why.
    quiet = "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def connected(world: World) -> Iterator[None]:
    """Raise `PeerLostError` where the connection to another process breaks."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise PeerLostError(
            f"process {world.rank} of {world.size} lost another one, and no step can be taken "
            "without it; the same command goes on from the last checkpoint"
        ) from error


def _not_joined(world: World, reason: str) -> str:
    port = os.environ.get("MASTER_PORT")
    who = f"process {world.rank} of {world.size}"
    if "EADDRINUSE" in reason:
        return (
            f"{who} cannot be met at port {port}, which another program of this machine uses; give "
            "torchrun --standalone, or another --rdzv-endpoint or --master-port"
        )
    return f"{who} found no others at {os.environ.get('MASTER_ADDR')}:{port}: {reason}"


def _from_environment() -> World:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if given.get("WORLD_SIZE", "1") == "1":
        return World()
    lacking = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking or not all(value.isdecimal() for value in given.values()):
        raise ConfigError(
            f"WORLD_SIZE is {given['WORLD_SIZE']}, but {', '.join(lacking) or 'RANK'} is no number "
            "or missing: start the processes with --processes or torchrun, which set them"
        )
    return World(int(given["RANK"]), int(given["WORLD_SIZE"]), int(given["LOCAL_RANK"]))
