"""A file of rows that is written in parts: killed anywhere, it goes on where it stopped.

Beside `answers.csv` lies `.answers.csv.journal`, as `journal.py` has it. What stands behind the
last part that counts was cut off in the middle, and is written again. The journal stays when all is
written: the same command then finds nothing to do, and another one is refused.
"""

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, BinaryIO, Self

from vitrail.data.inputs import Item
from vitrail.errors import OutputError
from vitrail.inference import journal
from vitrail.inference.journal import Part
from vitrail.weights.disk import sync, written

SECONDS = 1.0  # of work that a kill may cost: no part is written sooner after the last one


class ResumableFile:
    """Rows of one command in one file. A context: at its end what was added is on the disk.

    `made_by` is what another command would have otherwise: the model, the flags. Raises
    `ConfigError` for a file that another command wrote, or that was changed since, and
    `OutputError` where another process is at it.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any], seconds: float = SECONDS) -> None:
        self.path = Path(os.path.realpath(path))  # a link stays one
        self.log_path = journal.beside(self.path)
        self.made_by, self.seconds = dict(made_by), seconds
        self.waiting: list[bytes] = []
        self.images = self.failed = 0  # of all rows, those that wait included
        self.names, self.stamps, self.content = (hashlib.sha256() for _ in range(3))
        self.ahead: deque[str] = deque()  # stamps of images whose rows are still to come
        self.parts = [Part()]  # that are in the file
        self.file: BinaryIO | None = None
        self.open = ExitStack()

    @property
    def part(self) -> Part:
        """Say how far the file is."""
        return self.parts[-1]

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise OutputError(f'"{self.path}" is a folder; name a file to write')
        if not self.log_path.exists():
            journal.check_unknown(self.path)
        with written(self.path), ExitStack() as open:
            self.log = open.enter_context(self.log_path.open("a+b"))
            try:
                fcntl.flock(self.log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f'another process is writing "{self.path}"; wait for it, or give another -o'
                ) from error
            self._begin()
            self.open = open.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.open:
            if self.waiting and not isinstance(error, OutputError):  # a full disk has told of it
                self._write_part()

    def left(self, items: Iterable[Item]) -> Iterator[Item]:
        """Give the images whose rows are still to be written, after a look at the others.

        Raises `ConfigError` where the file was written for other images, or some have changed.
        """
        rest, rows = iter(items), self.part.images
        for part in self.parts:
            first = self.images + 1
            while self.images < part.images and (item := next(rest, None)) is not None:
                self._count(item.name, item.stamp)
            journal.check_names(self.path, self.names.hexdigest() == part.names, rows)
            journal.check_stamps(
                self.path, self.stamps.hexdigest() == part.stamps, first, part.images
            )
        more = self.part.done and next(rest, None) is not None
        journal.check_names(self.path, not more, rows)
        return self._stamped(rest)

    def _stamped(self, items: Iterator[Item]) -> Iterator[Item]:
        """Give images, and keep the stamps that they had before they were read."""
        for item in items:
            self.ahead.append(item.stamp)
            yield item

    def add(self, rows: bytes, names: Iterable[str] = (), failed: int = 0) -> None:
        """Add the rows of a batch, whose images have these names and are the next of `left`."""
        for name in names:
            self._count(name, self.ahead.popleft())
        self.failed += failed
        self.waiting.append(rows)
        if monotonic() - self.written_at >= self.seconds:
            self._write_part()

    def finish(self, tail: bytes = b"") -> None:
        """Write what is left, and note that it is all."""
        if not self.part.done:
            self.waiting.append(tail)
            self._write_part(done=True)

    def replace(self, write: Callable[[Path], None], like: Part) -> None:
        """Have the whole file written by `write`, and note that it holds the rows of `like`."""
        with written(self.path):
            write(self.path)
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        self._note(Part(**{**asdict(like), "bytes": size, "content": content}))

    def remove(self) -> None:
        """Remove the file and its journal."""
        with written(self.path):
            self.path.unlink(missing_ok=True)
            self.log_path.unlink(missing_ok=True)

    def _begin(self) -> None:
        self.log.seek(0)
        text = self.log.read()
        lines = journal.whole_lines(text)
        if not lines or not self.path.exists():  # never begun, or taken away
            if not lines:
                journal.check_unknown(self.path)
            self.log.truncate(0)
            self._append(self.log, journal.line(self.made_by))
        else:
            journal.check_made_by(self.path, lines[0], self.made_by)
            parts = [Part(), *(Part(**values) for values in lines[1:])]
            self.parts, self.content = journal.held(self.path, parts)
            kept = text.splitlines(keepends=True)[: len(self.parts)]
            self.log.truncate(sum(map(len, kept)))
        self.failed, self.written_at = self.part.failed, monotonic()

    def _count(self, name: str, stamp: str) -> None:
        self.images += 1
        self.names.update(name.encode("utf-8", "surrogateescape") + b"\0")
        self.stamps.update(stamp.encode() + b"\0")

    def _write_part(self, done: bool = False) -> None:
        rows, self.waiting = b"".join(self.waiting), []
        with written(self.path, len(rows)):
            if self.file is None:  # what was cut off in the middle goes
                self.file = self.open.enter_context(self.path.open("ab"))
                self.file.truncate(self.part.bytes)
                sync(self.path.parent)
            self._append(self.file, rows)
        self.content.update(rows)
        self._note(
            Part(
                images=self.images,
                failed=self.failed,
                bytes=self.part.bytes + len(rows),
                content=self.content.hexdigest(),
                names=self.names.hexdigest(),
                stamps=self.stamps.hexdigest(),
                done=done,
            )
        )

    def _note(self, part: Part) -> None:
        with written(self.log_path):
            self._append(self.log, journal.line(asdict(part)))
        self.parts.append(part)
        self.written_at = monotonic()

    @staticmethod
    def _append(file: BinaryIO, data: bytes) -> None:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
