"""Files of numpy arrays, as numpy.savez and JAX write them, read array by array."""

import io
import zlib
from functools import partial
from math import prod
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import UnsafeError, WeightsError
from vitrail.weights.formats.stored import AGAIN, RawFile, Stored, clean, is_shape, memory
from vitrail.weights.formats.zips import Member, unpack

_HEADER_BYTES = 10_000  # numpy's own limit for a header that it parses

# bfloat16 has no name in numpy: JAX writes it as two bytes of nothing.
_DTYPES = {
    "b1": torch.bool, "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64,
    "u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64,
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "V2": torch.bfloat16,
}  # fmt: skip


def read_arrays(file: RawFile, members: dict[str, Member]) -> dict[str, Stored]:
    """Give the arrays of an .npz file by name; an array of Python objects is an `UnsafeError`."""
    return {
        name.removesuffix(".npy"): _stored(file, name.removesuffix(".npy"), member)
        for name, member in members.items()
    }


def _stored(file: RawFile, name: str, member: Member) -> Stored:
    head = _head(file, member)
    try:
        version = np.lib.format.read_magic(head)
        parse = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = parse(head, max_header_size=_HEADER_BYTES)
    # The header is a Python literal: made-up ones fail in any of these ways.
    except (ValueError, LookupError, TypeError, SyntaxError, TokenError, MemoryError,
            RecursionError) as error:  # fmt: skip
        raise _broken(file, name, "has no header that numpy can read") from error
    if dtype.hasobject:
        raise UnsafeError(
            f"{file.path}: {clean(name)} is an array of Python objects, which are a pickle and "
            "could run code; nothing was run; save it as numbers"
        )
    kind = f"{dtype.kind}{dtype.itemsize}"
    if kind not in _DTYPES or dtype.names or dtype.subdtype:
        raise WeightsError(
            f"{file.path}: {clean(name)} is an array of {clean(str(dtype))}; weights are numbers "
            "that torch has: leave it out or save it as such"
        )
    if not is_shape(shape):
        raise _broken(file, name, "has a shape that no array has")
    wanted = head.tell() + prod(shape) * dtype.itemsize
    if member.size != wanted:
        raise _broken(file, name, f"has {member.size:,} bytes and its header says {wanted:,}")
    order = (fortran, not dtype.isnative)
    read = partial(_read, file, name, member, head.tell(), shape, _DTYPES[kind], *order)
    return Stored(tuple(shape), _DTYPES[kind], read)


def _read(
    file: RawFile,
    name: str,
    member: Member,
    skip: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    fortran: bool,
    swapped: bool,
) -> Tensor:
    laid_out = shape[::-1] if fortran else shape
    if member.deflated:
        tensor = torch.empty(laid_out, dtype=dtype, device="cpu")
        memory(tensor)[:] = unpack(file, member)[skip:]
    else:
        tensor = file.tensor(member.start + skip, laid_out, dtype)
        crc = zlib.crc32(memory(tensor), zlib.crc32(file.bytes(member.start, skip)))
        if crc != member.crc:
            raise _broken(file, name, "does not have the numbers that were saved")
    if swapped:
        plain = np.frombuffer(memory(tensor), dtype=f"V{dtype.itemsize}").view(f"u{dtype.itemsize}")
        plain.byteswap(inplace=True)
    if fortran:
        return tensor.permute(*range(len(shape))[::-1]).contiguous()
    return tensor


def _head(file: RawFile, member: Member) -> io.BytesIO:
    """Give the first bytes of a member, enough for any header."""
    count = min(_HEADER_BYTES + 16, member.size)
    if not member.deflated:
        return io.BytesIO(file.bytes(member.start, count))
    # Deflate never makes anything much longer than it was.
    packed = file.bytes(member.start, min(member.packed, 2 * count))
    try:
        return io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, count))
    except zlib.error as error:
        raise WeightsError(f"{file.path} is a broken zip file: {error}; {AGAIN}") from error


def _broken(file: RawFile, name: str, reason: str) -> WeightsError:
    return WeightsError(f"{file.path}: {clean(name)} {reason}; {AGAIN}")
