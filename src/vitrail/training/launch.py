"""`--processes N`: PyTorch's own engine starts the processes, and starts them again."""

import ctypes
import logging
import os
import signal
import sys
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitrail.data.config import check_batch
from vitrail.errors import ConfigError
from vitrail.training.recipe import Recipe, to_toml

_LAUNCHER, _ENDED = "VITRAIL_LAUNCHER", "VITRAIL_ENDED"
_PR_SET_PDEATHSIG = 1  # of Linux, prctl.h


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

    World(processes - 1, processes, processes - 1).device(recipe.train.device)
    run = choose(recipe, out, flags["--resume"])
    if out is None and not (flags["--resume"] or flags["--dry-run"]):
        run = claim(recipe)  # here, so that a restart goes on with the same run
    print(
        f"{processes} processes on this machine ({recipe.parallel.kind}), "
        f"{recipe.train.batch_size // processes} images of each batch for each",
        file=sys.stderr,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
            file = Path(folder, "recipe.toml")
            file.write_text(to_toml(recipe), encoding="utf-8")
            words = ["-m", "vitrail.cli", "train", recipe.data.source, "--recipe", str(file)]
            words += ["--out", str(run.path), *(flag for flag, given in flags.items() if given)]
            _set_environment(processes, Path(folder, "ended"))
            return _run(words, processes, max_restarts, folder)
    finally:
        with suppress(OSError):  # nothing was begun
            run.path.rmdir()


def _set_environment(processes: int, ended: Path) -> None:
    """Set what the processes are to find."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max((cores or 1) // processes, 1)))
    # With a store of its own each start finds nothing of the one before: with gloo 10 of 10
    # restarts work, and 4 of 10 without.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[_LAUNCHER], os.environ[_ENDED] = str(os.getpid()), str(ended)


def _run(words: list[str], processes: int, max_restarts: int, folder: str) -> int:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    logging.disable(logging.CRITICAL)  # the processes speak for themselves
    try:
        elastic_launch(config, sys.executable)(*words)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(
            f"vitrail: process {rank} of {processes} was ended by {name}; the same command goes "
            "on from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    finally:
        logging.disable(logging.NOTSET)
    return 0


def follow_launcher() -> None:
    """Die with the process that started this one, even where it is killed: Linux sees to it."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    libc: Any = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):
        os._exit(1)


def ended() -> int | None:
    """Give the exit code of an earlier start whose error a restart does not cure."""
    file = Path(os.environ.get(_ENDED, os.devnull))
    return int(file.read_text()) if file.is_file() else None


def end(code: int) -> None:
    """Let no other start try what ended with an error that it would meet again."""
    if _ENDED in os.environ and code != 1:
        Path(os.environ[_ENDED]).write_text(str(code))
