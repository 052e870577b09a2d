"""The directory of a zip file, checked before anything is unpacked."""

import struct
import zlib
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from vitrail.errors import WeightsError
from vitrail.weights.formats.stored import AGAIN, BOMB_BYTES, BOMB_RATIO, RawFile, clean

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # its mark, and the lengths of the name and the rest


class Member(NamedTuple):
    """A file in a zip file: where its bytes lie, and what they unpack to."""

    start: int
    packed: int
    size: int
    deflated: bool
    crc: int


def directory(file: RawFile) -> dict[str, Member]:
    """Give the members of a zip file by name; one that cannot be what it says is refused."""
    try:
        with file.open() as raw, ZipFile(raw) as archive:
            listed = [info for info in archive.infolist() if not info.is_dir()]
    # zipfile expects whole files: made-up bytes lead to any of these.
    except (BadZipFile, ValueError, LookupError, NotImplementedError, OverflowError, EOFError,
            struct.error) as error:  # fmt: skip
        raise WeightsError(
            f"{file.path} is a zip file that is cut or broken ({error}); {AGAIN}"
        ) from error
    if len({info.filename for info in listed}) < len(listed):
        raise WeightsError(f"{file.path} holds two members of one name; {AGAIN}")
    unpacked = sum(info.file_size for info in listed)
    if unpacked > max(BOMB_BYTES, BOMB_RATIO * file.size):
        raise WeightsError(
            f"{file.path} has {file.size:,} bytes and unpacks to {unpacked:,}; no weights shrink "
            "that far: this file is made to fill the memory, do not use it"
        )
    return {info.filename: _member(file, info) for info in listed}


def unpack(file: RawFile, member: Member) -> bytes:
    """Give the bytes of a member."""
    data = file.bytes(member.start, member.packed)
    if not member.deflated:
        return data
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
    except zlib.error as error:
        raise _broken(file, str(error)) from error
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise _broken(file, "a member unpacks to something else than was packed")
    return data


def _member(file: RawFile, info: ZipInfo) -> Member:
    if info.flag_bits & 1:
        raise WeightsError(f"{file.path} is locked with a password; unpack it and zip it without")
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise WeightsError(
            f"{file.path} packs {clean(info.filename)} with method {info.compress_type}; weights "
            "are stored plain or deflated: save the file again"
        )
    if info.header_offset < 0:
        raise _broken(file, f"{clean(info.filename)} begins before the file")
    # The directory at the end says where a member's header is, only the header how long it is.
    mark, name, rest = _LOCAL_HEADER.unpack(file.bytes(info.header_offset, _LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + name + rest
    deflated = info.compress_type == ZIP_DEFLATED
    if mark != b"PK\3\4" or not (deflated or info.file_size == info.compress_size):
        raise _broken(file, f"{clean(info.filename)} is not what the directory says")
    if start + info.compress_size > file.size:
        raise _broken(file, f"{clean(info.filename)} ends behind the file")
    return Member(start, info.compress_size, info.file_size, deflated, info.CRC)


def _broken(file: RawFile, reason: str) -> WeightsError:
    return WeightsError(f"{file.path} is a broken zip file: {reason}; {AGAIN}")
