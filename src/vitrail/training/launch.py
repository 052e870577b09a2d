"""`--processes N`: PyTorch's own engine starts the processes; when one dies, all start again."""

import ctypes
import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from vitrail.data.config import check_batch
from vitrail.errors import ConfigError
from vitrail.training.recipe import Recipe, from_toml, to_toml

# What the processes find in their environment, for a launcher that is killed would leave files: its
# process id, the recipe, and the words that the user gave (`run_folder.environment`).
_LAUNCHER, _RECIPE, _COMMAND = "VITRAIL_LAUNCHER", "VITRAIL_RECIPE", "VITRAIL_COMMAND"
_PR_SET_PDEATHSIG = 1  # of Linux, prctl.h


class End(NamedTuple):
    """How a start of all processes ended: an exit code (below 0: a signal), and whose it was."""

    code: int
    rank: int = 0
    is_asked: bool = False  # the launcher was told to stop


def check(recipe: Recipe, processes: int, max_restarts: int) -> None:
    """Raise `ConfigError` where processes cannot be started as the flags say."""
    if processes < 1:
        raise ConfigError(f"--processes is {processes}; it should be 1 or more")
    if max_restarts < 0:
        raise ConfigError(f"--max-restarts is {max_restarts}; it should be 0 or more")
    if processes == 1 and max_restarts:
        raise ConfigError(
            f"--max-restarts is {max_restarts}, but nothing watches over a single process; give "
            "--processes 2 or more, or give the same command again after a failure"
        )
    if processes > 1 and "WORLD_SIZE" in os.environ:
        raise ConfigError(
            f"--processes is {processes}, but torchrun has started this process (WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']}); leave one of the two out"
        )
    check_batch(recipe.train.batch_size, processes, recipe.augment)


def launch(
    recipe: Recipe,
    out: str | None,
    flags: dict[str, bool],
    processes: int,
    max_restarts: int,
) -> int:
    """Train with `processes` of them on this machine; give the exit code of the one that failed."""
    from vitrail.training.run_folder import choose, claim
    from vitrail.training.world import World

    cores = _cores()
    device = World(processes - 1, processes, processes - 1).device(recipe.train.device)
    if device.type == "cpu" and processes > max(cores, 2):  # two may share one, to try it
        raise ConfigError(
            f"--processes is {processes}, but this machine has {cores} cores for them, and more "
            f"processes than cores are slower than one each; give at most --processes {cores}"
        )
    run = choose(recipe, out, flags["--resume"])
    if out is None and not (flags["--resume"] or flags["--dry-run"]):
        run = claim(recipe)  # here, so that a restart goes on with the same run
    print(
        f"{processes} processes on this machine ({recipe.parallel.kind}), "
        f"{recipe.train.batch_size // processes} images of each batch for each",
        file=sys.stderr,
    )
    # Their recipe is the one handed down: the flag only spares them a look at the images.
    words = ["-m", "vitrail.cli", "train", recipe.data.source, "--recipe", "digits"]
    words += ["--out", str(run.path), *(flag for flag, given in flags.items() if given)]
    handed = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(cores // processes, 1))),
        _LAUNCHER: str(os.getpid()),
        _RECIPE: to_toml(recipe),
        _COMMAND: json.dumps(sys.argv),
    }
    try:
        with _environment(handed):
            return _watched(words, processes, max_restarts)
    finally:
        with suppress(OSError):  # nothing was begun
            run.path.rmdir()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _watched(words: Sequence[str], processes: int, max_restarts: int) -> int:
    """Start the processes, and again where one died of what another start may not meet."""
    for restart in range(max_restarts + 1):
        end = _run(words, processes)
        # 2 to 5 are errors that a new start meets again, 130 and 143 signals that were obeyed.
        if end.is_asked or not (end.code == 1 or end.code < 0):
            return end.code
        goes_on = restart < max_restarts
        what = f"ended by {signal.Signals(-end.code).name}" if end.code < 0 else "lost to an error"
        then = "the same command goes on from the last checkpoint"
        if goes_on:
            then = f"all start again ({restart + 1} of {max_restarts})"
        if goes_on or end.code < 0:  # its error it has told
            print(f"vitrail: process {end.rank} of {processes} was {what}; {then}", file=sys.stderr)
    return 1


def _run(words: Sequence[str], processes: int) -> End:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each start is a launch of its own: with gloo 4 of 10 restarts worked where they met in the
    # store of the start before, and all of them where they do not.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    logging.disable(logging.CRITICAL)  # the processes speak for themselves
    try:
        elastic_launch(config, sys.executable)(*words)
    except SignalException as error:
        return End(128 + int(error.sigval), is_asked=True)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return End(failure.exitcode, rank)
    finally:
        logging.disable(logging.NOTSET)
    return End(0)


def handed() -> Recipe | None:
    """Give the recipe of the launcher that started this process, and die with it from now on.

    Also where it is killed: Linux sees to that.
    """
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None:
        return None
    if sys.platform.startswith("linux"):
        libc: Any = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):
            os._exit(1)
    return from_toml(os.environ[_RECIPE])
