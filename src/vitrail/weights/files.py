"""Weight files: the only place that opens one."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vitrail.errors import DataError, OutputError, WeightsError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Give the tensors of a safetensors file by name; anything else is a `WeightsError`."""
    if not path.is_file():
        raise WeightsError(f"there is no weight file {path}")
    try:
        # Copies: what `load_file` gives lies in the mapped file, at odd addresses, for which some
        # kernels give other last bits, and changes or crashes when the file does.
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise WeightsError(
            f"{path} is no whole safetensors file ({size:,} bytes): {error}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Give the object in a JSON file; a missing or broken one is a `WeightsError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds {type(values).__name__}, not an object")
    return values


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Give the rows of a file of JSON lines; a last line that was cut short is not one.

    A file that is not there has none; a line that is no JSON object is a `DataError`.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is no row: {line.strip()[:80]}; remove the line")
        rows.append(row)
    return rows


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, down to the disk, and give its sha256."""
    data = safetensors.torch.save({name: t.detach().contiguous() for name, t in tensors.items()})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


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


def sha256(path: Path) -> str:
    """Give the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
