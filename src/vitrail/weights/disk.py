"""Writing to disk: whole or not at all, and a failure says what is free."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrail.errors import OutputError


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    # A name that is not UTF-8 becomes JSON's own escape, which reads back as the same name.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside, down to the disk, then renamed."""
    path = Path(os.path.realpath(path))  # a link stays one
    with written(path):
        if path.exists() and not path.is_file():  # /dev/null, a pipe: renaming would replace it
            path.write_bytes(data)
            return
        beside = _hidden(path, ".part")
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder beside `path`, which takes its place when all is written, or never."""
    path = Path(os.path.realpath(path))
    beside, old = _hidden(path, ".part"), _hidden(path, ".old")
    with written(path):
        if old.exists() and not path.exists():  # killed between the two renames below
            old.replace(path)
        for left in (beside, old):
            shutil.rmtree(left, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            yield beside
            _sync(beside)
            if path.exists():
                path.replace(old)
            beside.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.replace(path)
            shutil.rmtree(beside, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        _sync(path.parent)


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


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn a failure to write below `path` into an `OutputError` that says what is free."""
    try:
        yield
    except OSError as error:
        folder = next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))
        free = shutil.disk_usage(folder).free
        raise OutputError(
            f"{error.filename or path} cannot be written: {error.strerror or error} "
            f"({free:,} bytes are free there)"
        ) from error


def _hidden(path: Path, ending: str) -> Path:
    """Give a name beside `path`, cut so that a disk that takes the one takes the other."""
    return path.with_name("." + os.fsdecode(os.fsencode(path.name)[:240]) + ending)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
