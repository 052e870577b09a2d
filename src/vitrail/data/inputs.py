"""What a command is given to answer for: files, folders, patterns and data sets, as one stream.

Nothing here imports torch before an image is opened, and a tree of a million images costs the names
in one of its folders.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vitrail.data.address import SUFFIXES, is_data, is_hidden, is_image, parse
from vitrail.data.stamps import stamp
from vitrail.data.storage import is_remote, join, read, scan
from vitrail.errors import ConfigError, DataError


class Item(NamedTuple):
    """One image to be read: what it is called, and how it is opened."""

    name: str
    open: Callable[[], Any]  # gives a `Picture`; raises DataError or OSError
    in_memory: bool = False  # nothing is read: its owner may change it once the next one comes
    label: str | None = None
    split: str | None = None
    stamp: str = ""  # changes where the image does


def check(words: Iterable[str]) -> None:
    """Raise `DataError` for a folder, a pattern or a data set without any image, at once."""
    words = list(words)
    if not words:
        raise ConfigError("there is no image to answer for: name files, folders or a data set")
    for word in words:
        if (kind := _kind(word)) == "folder":
            next(_below(word))
        elif kind == "pattern":
            next(_matches(word))


def inputs(words: Iterable[str], image_column: str | None = None) -> Iterator[Item]:
    """Give every image that the words name, in their order.

    A folder stands for the images below it, by name; a pattern (`*`, `?`, `[...]`, `**`) for what
    it matches; any other DATA address for all of its images, labelled or not, in its own order.
    A file is not looked at before it is opened: one that is missing has its place like the others.
    """
    for word in words:
        kind = _kind(word)
        if kind == "data":
            from vitrail.data.sets import unlabelled

            yield from unlabelled(parse(word), word, image_column)
        elif kind == "pattern":
            for match in _matches(word):
                yield from map(file_item, _below(match) if os.path.isdir(match) else [match])
        else:
            yield from map(file_item, _below(word) if kind == "folder" else [word])


def file_item(path: str | Path) -> Item:
    """Give the image in a file."""
    return Item(str(path), partial(opened, read, str(path)), stamp=stamp(str(path)))


def opened(read_bytes: Callable[..., bytes], *where: Any) -> Any:
    """Give the image in the bytes that are read from `where`."""
    from vitrail.data.decode import open_image

    return open_image(read_bytes(*where))


def _kind(word: str) -> Literal["data", "folder", "pattern", "file"]:
    try:
        if is_remote(word):
            return "file" if is_image(word) else "data"
        if os.path.isdir(word):
            return "folder" if next(_images(word, ()), None) is not None else _data(word)
        if is_data(word):
            parse(word)
            return "data"
        return "pattern" if has_magic(word) and not os.path.lexists(word) else "file"
    except (OSError, ValueError):  # a name too long or with a NUL in it: who reads it says so
        return "file"


def _data(folder: str) -> Literal["data"]:
    """Say that a folder without an image is a data set; raises `DataError` where it is none."""
    try:
        parse(folder)
    except DataError as error:
        raise DataError(
            f'folder "{folder}" holds no image ({" ".join(SUFFIXES)}) and no set of them '
            "(.tar, .parquet, .csv or idx files)"
        ) from error
    return "data"


def _matches(pattern: str) -> Iterator[str]:
    found = sorted(glob(pattern, recursive=True))
    if not found:
        raise DataError(f'there is no file "{pattern}", and as a pattern it matches none')
    yield from found


def _below(folder: str) -> Iterator[str]:
    """Give the images below a folder, by name; raises `DataError` where there is none."""
    try:
        yield from _images(folder, ())
    except OSError as error:
        raise DataError(f'"{error.filename}" cannot be read: {error.strerror}') from error


def _images(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Give the images below a folder in the order of their paths, one folder in memory at a time.

    `above` are the folders that it lies in, so that a symbolic link back to one ends there.
    """
    place = os.path.realpath(folder)
    if place in above:
        return
    inside = scan(folder)
    # Of a pipe with the name of an image, whoever opens it is told.
    files = [name for name in (*inside.files, *inside.strange) if is_image(name)]
    folders = [f"{name}/" for name in inside.folders if not is_hidden(name)]
    for name in sorted(files + folders):
        path = join(folder, name)
        yield from _images(path.rstrip("/"), (*above, place)) if name.endswith("/") else [path]
