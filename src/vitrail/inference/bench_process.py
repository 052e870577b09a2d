"""A setting of `bench` in a process of its own, whose end is not the end of the others."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import IO, Any

# The packages are found where this process has found them, wherever it was started.
_CODE = """import sys
sys.path = sys.argv[1:]
from vitrail.inference.bench_worker import main
main()"""


class Failed(Exception):
    """Why a setting has no figures."""


class Process:
    """A process that measures one setting: what it writes goes to `log`."""

    def __init__(self, log: IO[bytes]) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command, which ends this process itself
        )

    def ask(self, task: str, *given: Any) -> Any:
        """Give what the process finds; raises `Failed` where it cannot, or ends."""
        self.tell(task, *given)
        return self.hear()

    def tell(self, task: str, *given: Any) -> None:
        """Give the process something to do, and do not wait for it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `hear` says how it ended
            self.process.stdin.write(json.dumps([task, *given]) + "\n")
            self.process.stdin.flush()

    def hear(self) -> Any:
        """Give what came of it; raises `Failed` where nothing did."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._end())
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply["found"]

    def _end(self) -> str:
        """Say how the process ended."""
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed: most likely for want of memory"
        if code < 0:
            return f"its process crashed with {signal.Signals(-code).name}"
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with code {code}: {last[-1] if last else 'without a word'}"


@contextmanager
def started() -> Iterator[Process]:
    """Start a process, and end it whatever it does."""
    with TemporaryFile() as log:
        process = Process(log)
        try:
            yield process
        finally:
            process.process.kill()
            with suppress(BrokenPipeError):  # of what it did not read
                process.process.communicate()
