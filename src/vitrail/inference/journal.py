"""How far a file of rows is: one line of JSON for each part, in a file beside it.

The first line says which command writes the file. A part counts once its line is on the disk, and
its line is written after its rows are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.errors import ConfigError

_CHUNK = 2**20
_NOTHING = hashlib.sha256().hexdigest()
_CURE = "remove it, or give another -o"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """How far a file is: images answered for, those that failed, bytes, and digests of it all."""

    images: int = 0
    failed: int = 0
    bytes: int = 0
    content: str = _NOTHING  # of the file up to here
    names: str = _NOTHING  # of the images up to here
    stamps: str = _NOTHING  # of what tells that they are the same ones still
    done: bool = False


def beside(path: Path) -> Path:
    """Give the journal of a file."""
    return path.with_name(f".{path.name}.journal")


def begun(path: Path) -> dict[str, Any]:
    """Give what the command that began a file noted of itself; nothing where none did."""
    log = beside(path)
    found = whole_lines(log.read_bytes()) if path.exists() and log.is_file() else []
    return found[0] if found else {}


def line(values: Mapping[str, Any]) -> bytes:
    """Give a line of the journal."""
    return json.dumps(values).encode() + b"\n"


def whole_lines(text: bytes) -> list[dict[str, Any]]:
    """Give the lines up to the first that was cut off in the middle."""
    found = []
    for row in text.splitlines(keepends=True):
        try:
            found.append(json.loads(row if row.endswith(b"\n") else b""))
        except ValueError:  # a kill, or a power cut
            break
    return found


def held(path: Path, parts: Iterable[Part]) -> tuple[list[Part], Any]:
    """Give the parts that the file holds, and the running digest of the last of them.

    Raises `ConfigError` where the file holds something else.
    """
    size, digest, place = path.stat().st_size, hashlib.sha256(), 0
    found = [part for part in parts if part.bytes <= size]
    with path.open("rb") as file:
        for part in found:
            while place < part.bytes:
                chunk = file.read(min(_CHUNK, part.bytes - place))
                place += len(chunk)
                digest.update(chunk)
            if digest.hexdigest() != part.content or (part.done and size > part.bytes):
                raise ConfigError(f'"{path}" was changed since it was written: {_CURE}')
    return found, digest


def check_unknown(path: Path) -> None:
    """Raise `ConfigError` where there is a file that no journal tells of."""
    if path.exists() and path.stat().st_size:
        raise ConfigError(
            f'"{path}" is there already, and nothing beside it says that this command wrote it: '
            f"{_CURE}"
        )


def check_made_by(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `ConfigError` that says what is another in the command that wrote the file."""
    other = [
        "by another model" if key == "model" else f"with {key} {before.get(key)}, not {value}"
        for key, value in now.items()
        if before.get(key) != value
    ]
    if other:
        raise ConfigError(f'"{path}" was written {" and ".join(other)}: {_CURE}')


def check_stamps(path: Path, same: bool, first: int, last: int) -> None:
    """Raise `ConfigError` where images have changed since their rows, from `first` on, were made.

    They are known to be the same by the stamps of `data/stamps.py`.
    """
    if not same:
        raise ConfigError(
            f'"{path}" has rows of images that have changed since, at least one of those '
            f"{first:,} to {last:,}: {_CURE}"
        )


def check_names(path: Path, same: bool, images: int) -> None:
    """Raise `ConfigError` where the images of the rows in a file are not those asked for."""
    if not same:
        raise ConfigError(
            f'"{path}" was written for other images, or in another order: its {images:,} rows are '
            f"not the answers to these; {_CURE}"
        )
