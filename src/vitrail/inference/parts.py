"""A folder of answers in parts: ranges of one list of images, each of them written on its own.

    part-00000.csv ...      rows; all parts in the order of their names are the rows of one file
    _parts/command.json     which command writes them, and for how many images
    _parts/part-00000.json  what is in a part, which counts once this is there

Whoever reads a folder as one table (pyarrow, Spark, Ray Data) passes over names that begin with _.
A part is filled beside its place, brought down to the disk and renamed, and then told of: processes
on any machine may write the same one at once, or be killed anywhere. They would write the same.
"""

import fcntl
import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.data.inputs import Item
from vitrail.errors import ConfigError, OutputError
from vitrail.inference import journal
from vitrail.weights.disk import sync, write_json, written

DEATHS = 3  # of processes at the same part, after which no other one is risked


class Range(NamedTuple):
    """Consecutive images of a list: its number, the place of the first, how many, which."""

    number: int
    start: int
    images: int
    names: str  # a digest
    stamps: str  # a digest of what tells that they are the same ones still

    @property
    def stem(self) -> str:
        """Give the name of its part."""
        return f"part-{self.number:05}"


class Written(NamedTuple):
    """What is in a part: images, how many of them failed, the shape of an embedding."""

    images: int
    failed: int
    shape: tuple[int, ...] = ()  # of an embedding
    bad: tuple[tuple[str, str], ...] = ()  # images that have no row, and why


class DeadPart(OutputError):
    """A part at which one process after the other has died."""


Fill = Callable[[Iterable[Item], Path], Written]  # answers for images, into a new file


def ranges(items: Iterable[Item], size: int) -> Iterator[Range]:
    """Give the parts of a list, `size` images each; one of them is in memory at a time."""
    rest, number = iter(items), 0
    while found := list(islice(rest, size)):
        names = digest(item.name for item in found)
        stamps = digest(item.stamp for item in found)
        yield Range(number, number * size, len(found), names, stamps)
        number += 1


def digest(texts: Iterable[str]) -> str:
    """Give a digest of texts in their order."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The folder of one command; `made_by` is what another one would have otherwise."""

    folder: Path
    suffix: str
    made_by: Mapping[str, Any]

    @contextmanager
    def begun(self, images: int, names: str) -> Iterator[None]:
        """Keep the folder for the answers to these images, whose names have this digest.

        Raises `ConfigError` for one that another command wrote, and `OutputError` where another
        process is at it or it cannot be written.
        """
        about = {"made_by": dict(self.made_by), "images": images, "names": names}
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f'"{self.folder}" is a file; parts need a folder')
        self._check(about)
        with written(self.folder):
            self._log("").mkdir(parents=True, exist_ok=True)
            with self._log("lock").open("a+b") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise OutputError(
                        f'another process is writing "{self.folder}"; wait for it, or give '
                        "another -o"
                    ) from error
                self._check(about)
                for left in self._log("").glob(".*part-*"):  # of processes that were killed
                    left.unlink()
                write_json(self._log("command.json"), about)
                sync(self.folder)
                yield

    def check_seen(self, node: str) -> None:
        """Raise `OutputError` where this machine, called `node`, sees another folder or none."""
        seen = _read(self._log("command.json"))
        if seen is None or seen["made_by"] != self.made_by:
            raise OutputError(
                f'"{self.folder}" on {node} is not the folder in which this command began: it '
                "must be on a disk that all machines share, by the same path"
            )

    def path(self, part: Range) -> Path:
        """Give the place of a part."""
        return self.folder / f"{part.stem}{self.suffix}"

    def found(self, part: Range) -> Written | None:
        """Say what is in a part, None where it is still to be written.

        Raises `ConfigError` for one that is another's.
        """
        path, note = self.path(part), _read(self._log(f"{part.stem}.json"))
        if note is None or not path.exists():
            return None
        size = path.stat().st_size
        if (note["made_by"], note["names"], note["bytes"]) != (self.made_by, part.names, size):
            raise ConfigError(
                f'"{path}" was written by another command, or changed since: remove it, or give '
                "another -o"
            )
        journal.check_stamps(
            path, note["stamps"] == part.stamps, part.start + 1, part.start + part.images
        )
        bad = tuple((name, reason) for name, reason in note["bad"])
        return Written(note["images"], note["failed"], tuple(note["shape"]), bad)

    def write(self, part: Range, items: Iterable[Item], fill: Fill) -> Written:
        """Write a part, unless it is there; say what is in it.

        Raises `DeadPart` where too many processes have died at it.
        """
        if (found := self.found(part)) is not None:
            return found
        path, note = self.path(part), self._log(f"{part.stem}.json")
        beside = self._log(f".{part.stem}.{uuid.uuid4().hex}{self.suffix}")
        with written(path):
            if len(list(beside.parent.glob(f".{part.stem}.*{self.suffix}"))) >= DEATHS:
                raise DeadPart(
                    f"{DEATHS} processes were killed at {path.name} (images {part.start + 1:,} to "
                    f"{part.start + part.images:,} of the list): for want of memory, it may be"
                )
            beside.touch()  # stays where this process is killed, and tells of it
        try:
            found = fill(items, beside)
            values = {**found._asdict(), "names": part.names, "stamps": part.stamps}
            values["bytes"] = beside.stat().st_size
            with written(path):
                beside.replace(path)
                sync(path.parent)
            write_json(beside, {"made_by": self.made_by, **values})
            with written(note):
                beside.replace(note)
                sync(note.parent)
        finally:
            beside.unlink(missing_ok=True)
        return found

    def _log(self, name: str) -> Path:
        return self.folder / "_parts" / name

    def _check(self, about: Mapping[str, Any]) -> None:
        """Refuse a folder that holds anything but parts of this command."""
        before = _read(self._log("command.json"))
        if before is not None:
            journal.check_made_by(self.folder, before["made_by"], about["made_by"])
            same = before["names"] == about["names"]
            journal.check_names(self.folder, same, before["images"])
            return
        inside = self.folder.iterdir() if self.folder.exists() else ()
        others = [path.name for path in inside if not path.name.startswith((".", "_"))]
        if others:
            raise ConfigError(
                f'"{self.folder}" holds "{min(others)}" already, and nothing in it says that this '
                "command wrote it: give a new or empty folder"
            )


def _read(path: Path) -> Any:
    """Give what is in a JSON file; None where there is none, or half of one."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
