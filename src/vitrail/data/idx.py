"""MNIST-style idx files, also gzipped: train-images-idx3-ubyte and train-labels-idx1-ubyte."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable
from math import prod

import numpy as np

from vitrail.data.address import Address
from vitrail.data.digits import png
from vitrail.data.listing import Found, Images, Names, class_names, numbered
from vitrail.data.storage import exists, join, open_file, read_range, size
from vitrail.errors import DataError

_MOST = 8 * 2**30  # bytes that a compressed file may unpack to
_UBYTE = 8  # of all element types of the format, the one that images and labels have


def open_idx(address: Address) -> Found:
    """Open every pair of an images' and a labels' file of a folder."""
    known = class_names(address.path)
    parts: dict[str, Images] = {}
    for file in address.files:
        name = _split(file)
        if name in parts:
            raise DataError(f'"{address.path}" has two files of images for "{name}": {file}')
        parts[name] = _open(address.path, file, name, known)
    return Found(parts)


def _open(folder: str, file: str, split: str, known: tuple[str, ...]) -> Images:
    path = join(folder, file)
    stem = re.sub(r"images?([-.])idx\d", r"labels\1idx1", file).removesuffix(".gz")
    options = [name for name in (stem, stem + ".gz", stem.replace("labels", "label")) if name]
    labels_file = next((name for name in options if exists(join(folder, name))), "")
    if not labels_file:
        raise DataError(f'"{path}" has no labels beside it: "{stem}" or "{stem}.gz" is wanted')
    values_shape, values = _contents(join(folder, labels_file))
    shape, read_bytes = _contents(path)
    if len(values_shape) != 1 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
        raise DataError(
            f'"{path}" holds {_times(shape)} and "{labels_file}" {_times(values_shape)} bytes; '
            "wanted are images x height x width (x 3) and one label an image"
        )
    if shape[0] != values_shape[0]:
        raise DataError(
            f'"{path}" has {shape[0]:,} images and "{labels_file}" {values_shape[0]:,} labels'
        )
    numbers = np.frombuffer(values(0, values_shape[0]), np.uint8).astype(np.int64)
    labels, classes = numbered(numbers, known, f'"{labels_file}"')
    each = prod(shape[1:])

    def read_row(row: int) -> bytes:
        return png(np.frombuffer(read_bytes(row * each, each), np.uint8).reshape(shape[1:]))

    names = Names(f"{split or 'image'}-{row:05d}.png" for row in range(shape[0]))
    return Images(names, labels, classes, read_row)


def _contents(path: str) -> tuple[tuple[int, ...], Callable[[int, int], bytes]]:
    """Give the shape in an idx file's header, and a function that reads (start, length) after it.

    A gzipped file is kept in memory; no more of it is unpacked than its header promises.
    """
    packed = path.endswith(".gz")
    with open_file(path) as raw:
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            magic = file.read(4)
            if (
                len(magic) < 4
                or magic[:2] != b"\0\0"
                or magic[2] != _UBYTE
                or magic[3] not in (1, 3, 4)
            ):
                raise DataError(
                    f'"{path}" is no idx file of bytes: it begins with {magic.hex(" ")}'
                )
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise DataError(f'"{path}" is cut short in its header')
            shape = struct.unpack(f">{magic[3]}I", header)
            data = b""
            wanted, before = prod(shape), 4 + len(header)
            if not packed:
                length = size(path) - before
            elif wanted > _MOST:
                raise DataError(f'"{path}" promises {wanted:,} bytes; the limit is {_MOST:,}')
            else:
                data = file.read(wanted + 1)
                length = len(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f'"{path}" is no gzip file, or a damaged one: {error}') from error
    if length != wanted:
        what = "more" if length > wanted else f"{length:,}"
        raise DataError(f'"{path}" promises {_times(shape)} bytes and has {what}; copy it again')
    if packed:
        return shape, lambda start, count: data[start : start + count]
    return shape, lambda start, count: read_range(path, before + start, count)


def _split(file: str) -> str:
    lower = file.lower()
    if "t10k" in lower or "test" in lower:
        return "test"
    return "val" if "val" in lower else "train" if "train" in lower else ""


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{side:,}" for side in shape)
