"""Labelled images as a compact list: 100,000 of them cost their names and 20 bytes each."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vitrail.data.layout import Layout
from vitrail.data.storage import exists, join, read
from vitrail.errors import DataError


class Names:
    """Many texts in one: a Python list of paths would take four times the memory."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.letters, self.ends = bytearray(), array("q", [0])
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        letters, ends = self.letters, self.ends
        for text in texts:
            letters += text.encode("utf-8", "surrogateescape")  # names are bytes on Linux
            ends.append(len(letters))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(row)
        part = self.letters[self.ends[row] : self.ends[row + 1]]
        return part.decode("utf-8", "surrogateescape")


class Images:
    """A source: rows of a listing, and a function that reads the image of one row."""

    def __init__(
        self,
        names: Names,
        labels: np.ndarray,
        classes: tuple[str, ...],
        read_row: Callable[[int], bytes],
        rows: np.ndarray | None = None,
        layout: Layout | None = None,
        folder: str = "",
    ) -> None:
        self.names, self.labels, self.classes, self.read_row = names, labels, classes, read_row
        self.layout = layout  # None: each image is a file
        self.rows = np.arange(len(names)) if rows is None else rows
        self.folder = folder  # of its split, where names start below it

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> bytes:
        return self.read_row(int(self.rows[index]))

    def label(self, index: int) -> int:
        return int(self.labels[self.rows[index]])

    def name(self, index: int) -> str:
        return self.names[int(self.rows[index])]

    def path(self, index: int) -> str:
        """Give a name that no image of another split has."""
        return f"{self.folder}/{self.name(index)}" if self.folder else self.name(index)

    def own_labels(self) -> np.ndarray:
        """Give the labels of these images alone."""
        return self.labels[self.rows]

    def take(self, places: np.ndarray) -> "Images":
        """Give the source of some of these images."""
        names, labels, classes, read_row = self.names, self.labels, self.classes, self.read_row
        rows = self.rows[places]
        return Images(names, labels, classes, read_row, rows, self.layout, self.folder)


class Found(NamedTuple):
    """What lies at an address: a source for each split, all under "" where it has no splits."""

    parts: dict[str, Images]
    notes: tuple[str, ...] = ()


def numbered(
    values: Sequence[str] | np.ndarray, names: Sequence[str] = (), where: str = ""
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn labels into places among the classes: `names` if given, else all labels, in order.

    Whole numbers are places in `names`; other labels are names. Raises `DataError` for a label that
    `names` does not have.
    """
    found, places = np.unique(np.asarray(values), return_inverse=True)
    texts = [str(value) for value in found.tolist()]
    whole = all(map(_is_whole, found.tolist()))
    if whole and not set(texts) <= set(names):
        texts = [str(int(text)) for text in texts]  # 01 is 1, and 10 comes after 9
    names = names or sorted(set(texts), key=int if whole else None)
    by_number = whole and not set(texts) <= set(names)
    place = {name: i for i, name in enumerate(map(str, range(len(names))) if by_number else names)}
    strange = [text for text in texts if text not in place]
    if strange:
        raise DataError(
            f"{where} has the label {strange[0]}, but there are {len(names)} classes: "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        )
    return np.array([place[text] for text in texts], np.int32)[places], tuple(names)


def class_names(folder: str) -> tuple[str, ...]:
    """Give the lines of `classes.txt` (or `classnames.txt`) in a folder; none where it has none."""
    for name in ("classes.txt", "classnames.txt"):
        file = join(folder, name)
        if exists(file):
            return parse_class_names(read(file), file)
    return ()


def parse_class_names(data: bytes, where: str) -> tuple[str, ...]:
    """Read class names, one a line; raises `DataError` for a name that comes twice."""
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f'"{where}" is no text in UTF-8: {error}') from error
    twice = sorted({name for name in lines if lines.count(name) > 1})
    if twice:
        raise DataError(f'"{where}" has the class {twice[0]} twice; each needs a name of its own')
    return tuple(lines)


def one_line(name: str) -> str:
    """Give a name as a terminal may show it: line ends, escapes and broken bytes spelt out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def suffix_of(image: bytes) -> str:
    """Give the suffix that a file of these bytes would have; rows of tables have no names."""
    starts = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif"}
    return next((suffix for start, suffix in starts.items() if image.startswith(start)), "")


def _is_whole(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (
        isinstance(value, str) and value.isascii() and value.isdigit()
    )
