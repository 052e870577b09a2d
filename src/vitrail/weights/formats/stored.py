"""A tensor that lies in a file: what it is, and how its values come into memory."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import RawIOBase
from math import prod
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.errors import WeightsError

# A file may say more than it holds: packed arrays, names that share a storage. Past both, it lies.
BOMB_RATIO, BOMB_BYTES = 64, 64 * 2**20
MOST_AXES = 64  # torch's own limit
AGAIN = "fetch or save the file again"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file: shape and dtype are known at once, values are read when asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor] = field(repr=False)  # gives memory of its own, never a mapped file
    fill: Callable[[Tensor], None] | None = field(default=None, repr=False)  # into memory given

    def read_into(self, place: Tensor) -> None:
        """Read the values into a contiguous tensor of the same shape and dtype."""
        if self.fill is None:
            place.copy_(self.read())
        else:
            self.fill(place)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class RawFile(NamedTuple):
    """A file as it was when it was first looked at; nothing is read once it has changed."""

    path: Path
    size: int
    stamp: tuple[int, int, int]

    @contextmanager
    def open(self) -> Iterator[RawIOBase]:
        """Open the file for reading, without a buffer between it and whoever reads."""
        with told(self.path), self.path.open("rb", buffering=0) as file:
            if _stamp(os.fstat(file.fileno())) != self.stamp:
                raise WeightsError(f"{self.path} has changed since it was opened; load it again")
            yield file

    def bytes(self, start: int, count: int) -> bytes:
        """Give `count` bytes from `start` on; where the file ends before, that is an error."""
        missing = start + count - self.size
        if missing > 0:
            raise WeightsError(f"{self.path} is cut: {missing:,} bytes are missing; {AGAIN}")
        data = bytearray(count)
        self._fill(memoryview(data), start)
        return bytes(data)

    def tensor(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Read a tensor that lies in the file as it does in memory, straight into its place."""
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        self.into(start, tensor)
        return tensor

    def into(self, start: int, place: Tensor) -> None:
        """Read what `tensor` would into a contiguous tensor."""
        self._fill(memory(place), start)

    def stored(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Stored:
        """Give the tensor that `tensor` would read."""
        read = partial(self.tensor, start, shape, dtype)
        return Stored(shape, dtype, read, partial(self.into, start))

    def _fill(self, buffer: memoryview, start: int) -> None:
        with self.open() as file:
            file.seek(start)
            done = 0
            while done < len(buffer):  # Linux gives 2 GiB a call at most
                got = file.readinto(buffer[done:])
                if not got:
                    raise WeightsError(
                        f"{self.path} was cut while it was read: {len(buffer) - done:,} bytes of "
                        f"a tensor are missing; {AGAIN}"
                    )
                done += got


def look(path: Path) -> RawFile:
    """Take note of a file's size and identity; what is no file is a `WeightsError`."""
    with told(path):
        try:
            status = path.stat()
        except (FileNotFoundError, ValueError) as error:  # ValueError: a NUL in the path
            raise WeightsError(f"there is no weight file {path}; check the path") from error
    if S_ISDIR(status.st_mode):
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise WeightsError(f"{path} is a folder with {inside}; name the weight file in it")
    if not S_ISREG(status.st_mode):
        raise WeightsError(f"{path} is a pipe or a device, no weight file; save it to a file first")
    return RawFile(path, status.st_size, _stamp(status))


def memory(tensor: Tensor) -> memoryview:
    """Give the bytes of a contiguous tensor, to be read or written in place."""
    return tensor.flatten().view(torch.uint8).numpy().data


def is_count(value: object) -> bool:
    """Tell whether that is a number of things; larger ones have no text that ends."""
    return type(value) is int and 0 <= value < 2**63


def is_shape(value: object) -> bool:
    """Tell whether a tensor can have these sizes."""
    return isinstance(value, list | tuple) and len(value) <= MOST_AXES and all(map(is_count, value))


def clean(text: str) -> str:
    """Give text of a file so that a terminal can show it."""
    return text[:80].encode("unicode_escape").decode()


def check_total(file: RawFile, tensors: Mapping[str, Stored]) -> None:
    """Refuse a small file whose tensors would fill the memory."""
    for name, tensor in tensors.items():
        # Without a number in it, a tensor may be of any size but what torch can count.
        if prod(max(size, 1) for size in tensor.shape) * tensor.dtype.itemsize >= 2**63:
            raise WeightsError(f"{file.path}: {clean(name)} has the shape {tensor.shape}; {AGAIN}")
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > max(BOMB_BYTES, BOMB_RATIO * file.size):
        raise WeightsError(
            f"{file.path} has {file.size:,} bytes and would take {total:,} in memory; weights "
            "take about as much as their file: this one is made to fill the memory, do not use it"
        )


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into a `WeightsError` that names the file."""
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
