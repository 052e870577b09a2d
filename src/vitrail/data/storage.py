"""Files and folders by address: a local path, or anything that fsspec reads (`s3://...`)."""

import errno
import hashlib
import os
import re
import stat
from typing import Any, NamedTuple

from vitrail.errors import DataError

_REMOTE = re.compile(r"[A-Za-z][\w+.-]*(://|::)")
_SAMPLED = 64 * 1024  # bytes at each end of a file that its fingerprint reads


class Scan(NamedTuple):
    """What one folder holds, by name; `loops` are symbolic links that lead back into themselves.

    `strange` are pipes, sockets and devices: reading them would hang, or never end.
    """

    folders: list[str]
    files: list[str]
    loops: int = 0
    strange: tuple[str, ...] = ()


def is_remote(address: str) -> bool:
    """Say whether fsspec reads this address, and not the local file system."""
    return _REMOTE.match(address) is not None


def join(folder: str, *names: str) -> str:
    """Give the address of something below a folder."""
    return (folder if folder.endswith("/") else folder + "/") + "/".join(names)


def parent(address: str) -> str:
    """Give the folder that a file lies in."""
    folder = address.rpartition("/")[0]
    if not is_remote(address):
        return folder or ("/" if address.startswith("/") else ".")
    return folder + "/" if folder.endswith(":/") else folder  # memory://file


def scan(folder: str) -> Scan:
    """List one folder, sorted, without looking at any file in it."""
    folders, files, strange, loops = [], [], [], 0
    if is_remote(folder):
        system, path = _system(folder)
        for entry in _ours(folder, system.ls, path, detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if name and entry["name"].rstrip("/") != path.rstrip("/"):
                (folders if entry["type"] == "directory" else files).append(name)
        return Scan(sorted(folders), sorted(files))
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                loops += 1
                continue
            if is_folder and entry.is_symlink() and _leads_up(entry.path):
                loops += 1
            elif is_folder or is_file or not os.path.exists(entry.path):  # a link to nothing is bad
                (folders if is_folder else files).append(entry.name)
            else:
                strange.append(entry.name)
    return Scan(sorted(folders), sorted(files), loops, tuple(sorted(strange)))


def exists(address: str) -> bool:
    """Say whether there is a file or folder at an address."""
    if is_remote(address):
        system, path = _system(address)
        return _ours(address, system.exists, path)
    return os.path.exists(address)


def is_folder(address: str) -> bool:
    """Say whether an address is a folder."""
    if is_remote(address):
        system, path = _system(address)
        return _ours(address, system.isdir, path)
    return os.path.isdir(address)


def read(address: str) -> bytes:
    """Give all bytes of a file."""
    if is_remote(address):
        system, path = _system(address)
        return _ours(address, system.cat_file, path)
    with open(_opened(address), "rb") as file:
        return file.read()


def read_range(address: str, start: int, length: int) -> bytes:
    """Give `length` bytes of a file from `start` on; raises `DataError` where it ends before."""
    if is_remote(address):
        system, path = _system(address)
        data = _ours(address, system.cat_file, path, start=start, end=start + length)
    else:
        file = _opened(address)
        try:
            data = os.pread(file, length, start)
        finally:
            os.close(file)
    if len(data) != length:
        raise DataError(
            f'"{address}" ends before byte {start + length}: it was cut short while in use'
        )
    return data


def open_file(address: str) -> Any:
    """Open a file for reading bytes, with seek."""
    if is_remote(address):
        system, path = _system(address)
        return _ours(address, system.open, path, "rb")
    return open(_opened(address), "rb")  # the caller closes it


def size(address: str) -> int:
    """Give the bytes that a file has."""
    if is_remote(address):
        system, path = _system(address)
        return int(_ours(address, system.size, path))
    return os.stat(address).st_size


def fingerprint(address: str) -> str:
    """Give a digest that another file, or a changed one, does not have: size, time, both ends."""
    length = size(address)
    if is_remote(address):
        system, path = _system(address)
        info = _ours(address, system.info, path)
        stamp = [str(info.get(key)) for key in ("ETag", "etag", "mtime", "created", "LastModified")]
    else:
        stamp = [str(os.stat(address).st_mtime_ns)]
    ends = min(length, _SAMPLED)
    digest = hashlib.sha256("\0".join([str(length), *stamp]).encode())
    digest.update(read_range(address, 0, ends))
    digest.update(read_range(address, length - ends, ends))
    return digest.hexdigest()


def _opened(path: str) -> int:
    """Open a local file; a pipe would hang and a device never end, so they raise `DataError`."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL inside
        raise DataError(f"no file can be called {path!r}: {error}") from error
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return file
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise DataError(f'"{path}" is a pipe, a socket or a device, not a file')


def _system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return _ours(address, url_to_fs, address)


def _ours(address: str, call: Any, *args: Any, **how: Any) -> Any:
    """Call into a file system; what its client raises that is no OSError becomes a DataError."""
    try:
        return call(*args, **how)
    except OSError:
        raise
    except Exception as error:  # every store's client has exceptions of its own
        reason = str(error) or type(error).__name__
        raise DataError(f'"{address}" cannot be reached: {reason}') from error


def _leads_up(link: str) -> bool:
    """Say whether a symbolic link points at a folder that it lies in."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, place]) == target
