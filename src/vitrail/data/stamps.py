"""What tells that a file is still the one that was read: its size and the time of its last change.

As for make and rsync. It costs one look at the file's entry, no byte of it, and nothing at all of
what fsspec reads (`s3://...`), where a look is a request: that is known by its name alone.
"""

import hashlib
import os
import stat

from vitrail.data.address import Address
from vitrail.data.storage import is_remote, join


def stamp(path: str) -> str:
    """Give the stamp of a local file; of anything else there is none."""
    if is_remote(path):
        return ""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else ""


def stamp_of_set(address: Address) -> str:
    """Give one stamp of all the files that a data set is packed into; "" where images are files."""
    files = [address.path, *(join(address.path, file) for file in address.files)]
    found = "\0".join(map(stamp, files))
    return hashlib.sha256(found.encode()).hexdigest() if found.strip("\0") else ""
