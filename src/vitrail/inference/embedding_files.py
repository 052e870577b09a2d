"""Embeddings as files, written batch by batch: parquet, or .npy with a table of its rows beside."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitrail.errors import ConfigError
from vitrail.inference.embed import Embedded
from vitrail.weights.disk import check_place, new_file

_HEADER = 128  # bytes of an .npy header, with room for any shape
_SUFFIXES = (".parquet", ".npy")
Writer = Callable[[Embedded], None]


def check_file(file: str) -> None:
    """Raise `ConfigError` for a form that there is not, or for parquet without pyarrow.

    Raises `OutputError` for a place where no file can be.
    """
    suffix = Path(file).suffix
    if suffix not in _SUFFIXES:
        raise ConfigError(f'-o "{file}" should end in {" or ".join(_SUFFIXES)}')
    if suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ConfigError("parquet needs pyarrow: pip install vitrail[datasets]") from error
    check_place(file)


def embeddings_writer(file: str) -> AbstractContextManager[Writer]:
    """Open a file for embeddings, which is there whole at the end, or not at all."""
    path = Path(file).expanduser()
    if path.suffix == ".npy":
        return _npy(path)
    from vitrail.inference.parquet import embeddings

    return embeddings(path)


@contextmanager
def _npy(path: Path) -> Iterator[Writer]:
    """Write `FILE.npy`, and `FILE.csv` of path, label and split, a row for each of its rows."""
    shape: list[int] = [0]
    with new_file(path) as array, new_file(path.with_suffix(".csv")) as table:
        array.write(bytes(_HEADER))
        table.write(b"path,label,split\n")

        def write(found: Embedded) -> None:
            if len(found.vectors):
                shape[1:] = found.vectors.shape[1:]
            shape[0] += len(found.items)
            array.write(np.ascontiguousarray(found.vectors, "<f4").tobytes())
            table.write(_csv((item.name, item.label, item.split) for item in found.items))

        yield write
        _write_header(array, tuple(shape if len(shape) > 1 else [0, 0]))


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a float32 array where room was left for it (NEP 1, version 1.0)."""
    words = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    size = _HEADER - 10
    file.seek(0)
    file.write(b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + words.ljust(size - 1) + b"\n")


def _csv(rows: Iterable[tuple[str | None, ...]]) -> bytes:
    text = ""
    for row in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(row)  # fields with either are quoted
        text += line.getvalue().removesuffix("\r\n") + "\n"
    return text.encode("utf-8", "backslashreplace")
