"""What a data set holds: classes, sizes, formats, bad files, and files that are there twice."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from vitrail.data.decode import Look, look
from vitrail.data.readers import Readers, Work
from vitrail.data.sources import BadFile, Source, Splits, path_of
from vitrail.errors import DataError

_CHUNK = 16  # images that are waited for together
_DIGEST = 16  # bytes: of a billion files, two would agree by chance once in 10^20 times


class Copy(NamedTuple):
    """One of several equal files."""

    path: str
    split: str
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """What was found in all images of a data set, each decoded to its end."""

    source: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]  # of each split, the images of each class
    formats: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]  # (width, height): images
    bad: tuple[BadFile, ...]
    duplicates: tuple[tuple[Copy, ...], ...]  # of good files: equal to the byte

    @property
    def images(self) -> int:
        """All images, good and bad."""
        return sum(map(sum, self.splits.values()))

    @property
    def leaks(self) -> tuple[tuple[Copy, ...], ...]:
        """Equal files on both sides of the line between training and measuring."""
        return tuple(
            group for group in self.duplicates if len({c.split == "train" for c in group}) == 2
        )

    @property
    def conflicts(self) -> tuple[tuple[Copy, ...], ...]:
        """Equal files in different classes."""
        return tuple(group for group in self.duplicates if len({c.label for c in group}) > 1)

    def to_json(self) -> dict[str, Any]:
        """Give plain values, as `vitrail data --json` prints them."""
        return {
            "source": self.source,
            "classes": list(self.classes),
            "splits": {
                name: {
                    "images": sum(counts),
                    "per_class": dict(zip(self.classes, counts, strict=True)),
                }
                for name, counts in self.splits.items()
            },
            "formats": dict(self.formats),
            "sizes": {f"{wide}x{tall}": count for (wide, tall), count in self.sizes.items()},
            "bad": [bad._asdict() for bad in self.bad],
            "duplicates": [[copy.path for copy in group] for group in self.duplicates],
            "leaks": [[copy.path for copy in group] for group in self.leaks],
        }


def overview(
    data: str,
    splits: Splits,
    *,
    threads: int = 2,
    timeout: float = 60.0,
    seen: Callable[[int], None] = lambda _: None,
) -> Overview:
    """Read and decode every image of `splits` once; `seen` is told how many more are done.

    Raises `DataError` where nothing could be read for `timeout` seconds.
    """
    parts = splits.parts()
    formats: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    bad: list[BadFile] = []
    digests = np.zeros(sum(map(len, parts.values())), f"S{_DIGEST}")
    before = 0  # images of the splits before
    for source in parts.values():
        for first, found in _looks(source, threads, timeout):
            for place, (digest, what) in enumerate(found, first):
                if isinstance(what, Look):
                    formats[what.format] += 1
                    sizes[what.width, what.height] += 1
                    digests[before + place] = digest
                else:
                    bad.append(BadFile(path_of(source, place), what))
            seen(len(found))
        before += len(source)
    return Overview(
        source=data,
        classes=splits.train.classes,
        splits={name: _counts(source) for name, source in parts.items()},
        formats=dict(formats.most_common()),
        sizes=dict(sorted(sizes.items(), key=lambda item: item[0][0] * item[0][1])),
        bad=tuple(bad),
        duplicates=tuple(_equal(parts, digests)),
    )


def _looks(
    source: Source, threads: int, timeout: float
) -> Iterator[tuple[int, list[tuple[bytes, Look | str]]]]:
    """Give the place of the first of a few images, and of each its digest and what it is."""

    def fill(work: Work, row: int) -> None:
        work.rows[row] = _look_at(source, int(work.places[row]))

    def path(place: int) -> str:
        return path_of(source, place)

    ahead: deque[Work] = deque()  # what waits here is small: never an image
    with Readers(threads, fill, path, timeout) as readers:
        for first in range(0, len(source), _CHUNK):
            places = np.arange(first, min(first + _CHUNK, len(source)))
            ahead.append(Work(places, np.empty(len(places), object), None))
            readers.submit(ahead[-1], np.arange(len(places)))
            while len(ahead) > 2 * threads or (ahead and places[-1] == len(source) - 1):
                work = ahead.popleft()
                readers.wait(work)
                yield int(work.places[0]), work.rows.tolist()


def _look_at(source: Source, place: int) -> tuple[bytes, Look | str]:
    try:
        data = source.read(place)
        return blake2b(data, digest_size=_DIGEST).digest(), look(data)
    except (DataError, OSError) as error:
        return b"", str(error)


def _counts(source: Source) -> tuple[int, ...]:
    labels = np.fromiter((source.label(i) for i in range(len(source))), np.int64, len(source))
    return tuple(np.bincount(labels, minlength=len(source.classes)).tolist())


def _equal(parts: Mapping[str, Source], digests: np.ndarray) -> list[tuple[Copy, ...]]:
    """Give the groups of equal files, in the order of their first ones."""
    order = np.argsort(digests, kind="stable")
    ranked = digests[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    ends = np.append(starts[1:], len(order))
    several = (ends - starts > 1) & (ranked[starts] != b"")
    runs = zip(starts[several].tolist(), ends[several].tolist(), strict=True)
    groups = sorted(order[start:end].tolist() for start, end in runs)
    return [tuple(_copy(parts, row) for row in group) for group in groups]


def _copy(parts: Mapping[str, Source], row: int) -> Copy:
    """Give the image that is number `row` of all splits together."""
    for name, source in parts.items():
        if row < len(source):
            return Copy(path_of(source, row), name, source.classes[source.label(row)])
        row -= len(source)
    raise IndexError(row)
