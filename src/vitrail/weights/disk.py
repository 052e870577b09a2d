"""Writing to disk: whole or not at all, and a failure says what is needed and what is free."""

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vitrail.errors import OutputError

Piece = bytes | memoryview

_FULL = (errno.ENOSPC, errno.EDQUOT)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, fcntl.h and fs.h


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    # A name that is not UTF-8 becomes JSON's own escape, which reads back as the same name.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    write_pieces(path, [data], len(data))


def write_pieces(path: Path, pieces: Iterable[Piece], size: int) -> None:
    """Write a file of `size` bytes whole or not at all: beside, down to the disk, then renamed."""
    with new_file(path, size) as file:
        file.writelines(pieces)


@contextmanager
def new_file(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Fill a file beside `path`, which takes its place when all is written, or never."""
    path = Path(os.path.realpath(path))  # a link stays one
    with written(path, size):
        if path.exists() and not path.is_file():  # /dev/null, a pipe: renaming would replace it
            with path.open("wb") as file:
                yield file
            return
        beside = _hidden(path, ".part")
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def write_plainly(path: Path, pieces: Iterable[Piece], size: int) -> None:
    """Write a file of `size` bytes into a folder that is still beside its place."""
    with written(path, size), path.open("wb") as file:
        file.writelines(pieces)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder beside `path`, which takes its place when all is written, or never."""
    beside = begin_folder(path)
    with filling(beside, path):
        yield beside
    place_folder(beside, path)


def begin_folder(path: Path) -> Path:
    """Make an empty folder beside `path`, for `place_folder`."""
    path = Path(os.path.realpath(path))
    beside, old = _hidden(path, ".part"), _hidden(path, ".old")
    with written(path):
        if old.exists() and not path.exists():  # killed between the two renames below
            old.replace(path)
        for left in (beside, old):
            shutil.rmtree(left, ignore_errors=True)
        beside.mkdir(parents=True)
    return beside


@contextmanager
def filling(beside: Path, path: Path) -> Iterator[None]:
    """Drop the folder `beside` where it cannot be filled; a full disk is an `OutputError`."""
    with written(path):
        try:
            yield
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def place_folder(beside: Path, path: Path) -> None:
    """Bring a folder down to the disk, its files being there, and put it in the place of `path`."""
    path = Path(os.path.realpath(path))
    old = _hidden(path, ".old")
    with filling(beside, path):
        sync(beside)
        try:
            if path.exists() and not _exchange(beside, path):
                path.replace(old)
            if not path.exists():
                beside.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.replace(path)
            raise
    with written(path):
        try:
            sync(path.parent)
        finally:
            for left in (beside, old):  # what was there before
                shutil.rmtree(left, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, down to the disk."""
    with written(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Remove a folder: half of one that was killed meanwhile is left to `mend`."""
    gone = _hidden(path, ".part")
    with written(path):
        shutil.rmtree(gone, ignore_errors=True)
        path.replace(gone)
        shutil.rmtree(gone)


def mend(folder: Path) -> None:
    """Clear what writing left in `folder` when it was killed; a folder moved aside comes back."""
    for left in folder.glob(".*.old"):
        target = folder / left.name.removeprefix(".").removesuffix(".old")
        if left.is_dir() and not target.exists():
            left.replace(target)
    for left in (*folder.glob(".*.old"), *folder.glob(".*.part")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def check_place(file: str) -> None:
    """Raise `OutputError` where no file can be: a folder is there, or there is none above it."""
    path = Path(file).expanduser()
    if file.endswith("/") or path.is_dir():
        raise OutputError(f'"{file}" is a folder; name a file to write')
    if not path.absolute().parent.is_dir():
        raise OutputError(
            f'"{path}" cannot be written: there is no folder "{path.parent}"; make it, or name '
            "another file"
        )


def check_room(path: Path, needed: int) -> None:
    """Raise `OutputError` where the disk of `path` has not as many bytes free."""
    free = _free(path)
    if free < needed:
        raise OutputError(
            f"{path} cannot be written: {needed:,} bytes are needed, {free:,} bytes are free "
            "there; make room and give the same command again"
        )


@contextmanager
def written(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn a failure to write below `path` into an `OutputError`; of a full disk, with sizes."""
    try:
        yield
    except OSError as error:
        room = ""
        if error.errno in _FULL:
            wanted = "" if needed is None else f"{needed:,} bytes are needed, "
            room = f" ({wanted}{_free(path):,} bytes are free there)"
        raise OutputError(
            f"{error.filename or path} cannot be written: {error.strerror or error}{room}"
        ) from error


def _free(path: Path) -> int:
    folder = next((p for p in (path, *path.absolute().parents) if p.is_dir()), Path("/"))
    return shutil.disk_usage(folder).free


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one move, so that no kill finds neither; False: cannot.

    Python has no name for it, and not every disk can: tmpfs and those of Linux can, NFS cannot.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    places = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return rename(*places, _RENAME_EXCHANGE) == 0


def _hidden(path: Path, ending: str) -> Path:
    """Give a name beside `path`, cut so that a disk that takes the one takes the other."""
    return path.with_name("." + os.fsdecode(os.fsencode(path.name)[:240]) + ending)
