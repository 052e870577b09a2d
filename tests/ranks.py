"""Processes that tests start: commands, and worlds of several processes that do something at once.

A `Nursery` has torch and vitrail loaded, and forks each process of a world from itself: what takes
seconds to start by the command takes a tenth of one. Each has its own connections, signals and end.
"""

import atexit
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch


class Ended(NamedTuple):
    """How a process ended: its exit code (less than 0: a signal), what it gave, what it told."""

    code: int
    value: Any
    out: str
    err: str


class Nursery:
    """A process that forks others."""

    def __init__(self) -> None:
        path = [str(Path(__file__).parent), *filter(None, sys.path)]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", "import ranks; ranks.serve()"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def take(
        self, size: int, do: Callable[..., Any], *args: Any, seconds: float = 60.0, **more: Any
    ) -> list[Ended]:
        """Have a world of `size` do something in this folder; who is not done in time is killed."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        pickle.dump((os.getcwd(), world(size), do, args, more, seconds), stdin)
        stdin.flush()
        return pickle.load(stdout)

    def close(self) -> None:
        """End it; those that it has forked have ended by then."""
        self.process.communicate()


def values(ended: Sequence[Ended]) -> list[Any]:
    """Give what each process gave; none may have failed."""
    assert all(each.code == 0 for each in ended), "\n".join(each.err for each in ended)
    return [each.value for each in ended]


def serve() -> None:
    """Fork the worlds that are asked for on standard input."""
    import rank_runs

    torch.set_num_threads(1)
    rank_runs.load_all()
    gc.freeze()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            folder, environments, do, args, more, seconds = pickle.load(requests)
        except EOFError:  # nobody asks any more
            return
        pids = []
        for environment in environments:
            if (pid := os.fork()) == 0:
                _be(folder, environment, do, args, more)
            pids.append(pid)
        codes = _codes(pids, time.monotonic() + seconds)
        ended = [_ended(Path(folder), str(rank), code) for rank, code in enumerate(codes)]
        pickle.dump(ended, answers)
        answers.flush()


def _be(
    folder: str, environment: Mapping[str, str], do: Callable[..., Any], args: Any, more: Any
) -> NoReturn:
    """Be one process of a world."""
    os.chdir(folder)
    os.environ.update(environment)
    rank, code = environment["RANK"], 0
    for number, name in enumerate(("in", "out", "err")):
        file = os.open(f".{rank}.{name}", os.O_CREAT | os.O_RDWR | os.O_TRUNC)
        os.dup2(file, number)
    try:
        Path(f".{rank}.value").write_bytes(pickle.dumps(do(*args, **more)))
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 99
    # As the interpreter ends, but for the seconds in which it takes apart what was loaded.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _codes(pids: Sequence[int], end: float) -> list[int]:
    """Wait for processes; kill those that have not ended by then."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        late = time.monotonic() > end
        for pid in pids:
            if pid not in codes:
                if late:
                    os.kill(pid, signal.SIGKILL)
                if (done := os.waitpid(pid, 0 if late else os.WNOHANG))[0]:
                    codes[pid] = os.waitstatus_to_exitcode(done[1])
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def _ended(folder: Path, rank: str, code: int) -> Ended:
    files = {name: folder / f".{rank}.{name}" for name in ("in", "out", "err", "value")}
    value = pickle.loads(files["value"].read_bytes()) if files["value"].exists() else None
    found = Ended(code, value, files["out"].read_text(), files["err"].read_text())
    for file in files.values():
        file.unlink(missing_ok=True)
    return found


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
