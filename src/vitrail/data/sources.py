"""Where labelled images come from: one door to every kind of data set."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vitrail.data import digits
from vitrail.data.address import HELD_OUT, Address, parse, split_name
from vitrail.data.decode import size_of
from vitrail.data.folders import open_folders
from vitrail.data.held_out import split
from vitrail.data.listing import Found, Images
from vitrail.errors import DataError

WITH_COLUMNS = ("table", "list", "tar", "hub")  # addresses of data that may have columns


class Source(Protocol):
    """Labelled images, read one by one in any order; `classes` are the training classes."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def read(self, index: int) -> bytes: ...
    def label(self, index: int) -> int: ...
    def name(self, index: int) -> str: ...


class Splits(NamedTuple):
    """The training images, the held-out ones, and the digest of all listings.

    `test` is a third split where the data has one beside val; `notes` are for the user; `names`
    are the splits' own, none where the data was split here.
    """

    train: Source
    held_out: Source
    digest: str
    test: Source | None = None
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def parts(self) -> dict[str, Source]:
        """Give each split by its name; one that was held out here is val."""
        sources = [part for part in (self.train, self.held_out, self.test) if part is not None]
        return dict(zip(self.names or ("train", "val"), sources, strict=True))


class BadFile(NamedTuple):
    """A file that cannot be read, and why."""

    path: str
    reason: str


def path_of(source: Source, index: int) -> str:
    """Give a name that no image of another split of the data has."""
    return source.path(index) if isinstance(source, Images) else source.name(index)


def open_data(
    data: str,
    held_out_share: float = 0.2,
    split_seed: int = 0,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """Open all splits of a DATA address; one without a split of its own is split by class.

    Columns are those of a csv, a parquet file or a hub's data set, where their usual names do not
    tell. Raises `DataError` for an address that `address.parse` refuses, an empty class, a single
    class, or held-out classes that are not the training ones.
    """
    address = parse(data)
    if (image_column or label_column) and address.kind not in WITH_COLUMNS:
        raise DataError(f'"{data}" is no table, so that no column of it can be named')
    if address.kind == "digits":
        train, held_out = split(digits.load()[1], held_out_share, split_seed)
        return _with_digest([digits.Digits(train), digits.Digits(held_out)])
    try:
        found = _found(address, image_column, label_column)
    except OSError as error:
        raise DataError(f'"{data}" cannot be read: {error}') from error
    notes = [*found.notes]
    parts = {split_name(name): images for name, images in found.parts.items() if len(images)}
    twice = [
        name for name in found.parts if name != split_name(name) and split_name(name) in found.parts
    ]
    if twice:
        raise DataError(
            f'"{data}" has both {split_name(twice[0])} and {twice[0]}; keep one of them'
        )
    strange = sorted(parts.keys() - {"", "train", *HELD_OUT})
    if not parts:
        raise DataError(f'"{data}" holds no images')
    if strange or ("" in parts and len(parts) > 1):
        raise DataError(
            f'"{data}" has images in the split "{strange[0] if strange else ""}"; '
            "splits are train, val and test"
        )
    if len(parts) == 1:  # test-*.parquet alone is data like any other
        ((_, whole),) = parts.items()
        whole = _checked(whole, data)
        rows = split(whole.own_labels(), held_out_share, split_seed)
        return _with_digest([whole.take(part) for part in rows], notes)
    if "train" not in parts:
        raise DataError(f'"{data}" has no split train, only {" and ".join(parts)}')
    train = _checked(parts.pop("train"), data)
    names = [name for name in ("val", "test") if name in parts]
    for name, images in parts.items():
        _renumber(images, train, f"{name} of {data}", notes)
    splits = _with_digest([train, *(parts[name] for name in names)], notes)
    return splits._replace(names=("train", *names))


def whole(
    data: str, *, image_column: str | None = None, label_column: str | None = None
) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Give all images of a DATA address in its own order, by split ("": it has none); and notes.

    Nothing is held out, and no class is checked: this is for looking at data, not for training.
    """
    address = parse(data)
    if address.kind == "digits":
        return {"": digits.Digits(np.arange(len(digits.load()[1])))}, ()
    try:
        found = _found(address, image_column, label_column)
    except OSError as error:
        raise DataError(f'"{data}" cannot be read: {error}') from error
    return {split_name(name): images for name, images in found.parts.items()}, found.notes


def largest_side(
    data: str, image_column: str | None = None, label_column: str | None = None
) -> int:
    """Give the longer side, in pixels, of the first image that can be opened; 0 where none can."""
    try:
        parts = _found(parse(data), image_column, label_column).parts
    except OSError:
        return 0
    images = parts.get("train") or next(iter(parts.values()))
    for i in range(min(len(images), 5)):
        try:
            return max(size_of(images.read(i)))
        except (DataError, OSError):
            continue  # it is counted when it is read
    return 0


def _found(address: Address, image_column: str | None, label_column: str | None) -> Found:
    """Open what lies at an address; formats that few need are imported when they are met."""
    if address.kind in ("splits", "classes"):
        return open_folders(address)
    if address.kind == "tar":
        from vitrail.data.archives import open_tar

        return open_tar(address, image_column, label_column)
    if address.kind == "shards":
        from vitrail.data.shards import open_shards

        return open_shards(address)
    if address.kind == "idx":
        from vitrail.data.idx import open_idx

        return open_idx(address)
    if address.kind == "hub":
        from vitrail.data.hub_sets import open_hub_set

        return open_hub_set(address.path, image_column, label_column)
    from vitrail.data.tables import open_tables

    return open_tables(address, image_column, label_column)


def _checked(train: Images, data: str) -> Images:
    present = np.unique(train.own_labels())
    if len(present) < 2:
        raise DataError(f'"{data}" has {len(present)} class; there is nothing to tell apart')
    return train


def _renumber(images: Images, train: Images, where: str, notes: list[str]) -> None:
    """Give images the training classes' numbers, and say which classes they lack."""
    present = np.unique(images.own_labels())
    trained = {train.classes[i] for i in np.unique(train.own_labels())}
    strange = [images.classes[i] for i in present if images.classes[i] not in trained]
    if strange:
        raise DataError(
            f"{where} has classes that the training images lack: {', '.join(strange[:5])}; "
            f"the training images have {len(trained)}"
        )
    lacking = sorted(trained - {images.classes[i] for i in present})
    if lacking:
        more = ", ..." if len(lacking) > 5 else ""
        notes.append(f"{where} has no image of {', '.join(lacking[:5])}{more}")
    if images.classes != train.classes:
        place = {name: i for i, name in enumerate(train.classes)}
        images.labels = np.array([place.get(c, -1) for c in images.classes], np.int32)[
            images.labels
        ]
        images.classes = train.classes


def _with_digest(sources: Sequence[Source], notes: Sequence[str] = ()) -> Splits:
    digest = hashlib.sha256()
    for source in sources:
        for i in range(len(source)):
            row = f"{source.name(i)}\0{source.label(i)}\0"
            digest.update(row.encode("utf-8", "surrogateescape"))  # names are bytes on Linux
        digest.update(b"\0\0")
    train, held_out, *test = sources
    return Splits(train, held_out, digest.hexdigest(), test[0] if test else None, tuple(notes))
