"""One process at a time on a run folder: a lock that dies with the process that holds it."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.errors import ConfigError, VitrailError
from vitrail.weights.disk import written

NAME = ".lock"


@contextmanager
def held(folder: Path, rank: int = 0) -> Iterator[None]:
    """Hold `folder`, made where it is not there; of the processes of one run, rank 0 holds it.

    Raises `ConfigError` that names the holder where another process has it.
    """
    if rank:
        yield
        return
    path = folder / NAME
    with written(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    try:
        yield
    finally:
        # Removed while it is still held: whoever opened it meanwhile finds that it is gone.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the lock that a process left which was killed after its last write."""
    if (folder / NAME).exists():
        with suppress(VitrailError), held(folder):
            pass


def _take(path: Path) -> int:
    """Give the descriptor of the file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, path)
            if _is_at(descriptor, path):
                holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(holder).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between the two calls: there is a new one


def _lock(descriptor: int, path: Path) -> None:
    """Take the lock or raise `ConfigError`; the kernel lets it go when the process dies.

    Over NFS a process on another host is seen too, where server and mount have locks. On a disk
    without any (some network and FUSE file systems) nothing keeps two processes apart: no file
    can tell a process that lives elsewhere from one that was killed, and a run must go on after
    a kill.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        try:
            holder = json.loads(os.read(descriptor, 4096))
            who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        except (ValueError, KeyError, TypeError):  # it has just begun
            who = "another process"
        raise ConfigError(
            f"{path.parent} is in use by {who}; wait for it, stop it, or give another --out"
        ) from error
    except OSError:
        return


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
