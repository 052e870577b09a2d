"""The images of a data set in its own order, with their labels and splits or without."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from vitrail.data.address import Address, is_hidden, is_image, parse
from vitrail.data.inputs import Item, inputs, opened
from vitrail.data.parts import Part, part
from vitrail.data.sources import path_of, whole
from vitrail.data.stamps import stamp, stamp_of_set
from vitrail.data.storage import join, parent, read, read_range
from vitrail.errors import DataError

Row = tuple[str, Callable[[], bytes], str]  # a name, what reads the image, a stamp


def unlabelled(address: Address, word: str, image_column: str | None) -> Iterator[Item]:
    """Give the images of a data set; a tar or a table needs no label for this.

    Raises `DataError` where there is none.
    """
    if image_column and address.kind not in ("table", "list"):
        raise DataError(f'"{word}" is no table, so that no column of it can be named')
    if address.kind in ("tar", "shards"):
        files = address.files if address.kind == "shards" else ()
        found = _members([join(address.path, file) for file in files] or [address.path])
    elif address.kind in ("table", "list"):
        found = _rows(address, image_column)
    else:
        found = _labelled(word, address)
    if (first := next(found, None)) is None:
        raise DataError(f'"{word}" holds no images')
    for name, read_bytes, changes in chain([first], found):
        yield Item(name, partial(opened, read_bytes), stamp=changes)


def labelled(data: str, which: Part = "all", **how: Any) -> tuple[Iterator[Item], tuple[str, ...]]:
    """Give the images of a DATA address with their labels, and notes for the user.

    `which` and `how` are as for `part`. Raises `DataError` where there are no labels, or no such
    split.
    """
    if which == "all":
        columns = {name: how[name] for name in ("image_column", "label_column") if name in how}
        parts, notes = whole(data, **columns)
    else:
        source, notes = part(data, which, **how)
        parts = {which: source}

    address = parse(data)
    packed = stamp_of_set(address)

    def items() -> Iterator[Item]:
        for split, source in parts.items():
            for i in range(len(source)):
                read_bytes, path = partial(opened, source.read, i), path_of(source, i)
                label = source.classes[source.label(i)]
                changes = packed + stamp(join(address.path, path))
                yield Item(path, read_bytes, False, label, split or None, changes)

    return items(), notes


def labelled_or_not(
    data: str, which: Part = "all", **how: Any
) -> tuple[Iterator[Item], tuple[str, ...]]:
    """Give the same without labels, where there are none and neither they nor a split are named."""
    try:
        return labelled(data, which, **how)
    except DataError:
        if which != "all" or how.get("label_column"):
            raise
        return inputs([data], how.get("image_column")), ()


def _members(tars: list[str]) -> Iterator[Row]:
    from vitrail.data.archives import tar_index

    for tar in tars:
        index, changes = tar_index(tar), stamp(tar)
        for row in range(len(index.names)):
            name = index.names[row]
            if is_image(name) and not any(map(is_hidden, name.split("/"))):
                start, length = int(index.starts[row]), int(index.lengths[row])
                yield f"{tar}/{name}", partial(read_range, tar, start, length), changes


def _rows(address: Address, image_column: str | None) -> Iterator[Row]:
    from vitrail.data.tables import IMAGE_COLUMNS, pick, read_csv, read_path

    for file in (join(address.path, name) for name in address.files):
        if file.endswith(".parquet"):
            from vitrail.data.parquet import unlabelled_rows

            changes = stamp(file)
            names, read_row = unlabelled_rows(file, image_column)
            yield from ((names[row], partial(read_row, row), changes) for row in range(len(names)))
            continue
        table = read_csv(read(file), file)
        paths = table[pick(table, image_column, IMAGE_COLUMNS, "image", file)]
        for path in paths:
            yield path, partial(read_path, parent(file), path), stamp(join(parent(file), path))


def _labelled(word: str, address: Address) -> Iterator[Row]:
    """Give what is read only with its labels: digits, idx files, sets of the hub."""
    changes = stamp_of_set(address)
    for source in whole(word)[0].values():
        for i in range(len(source)):
            yield path_of(source, i), partial(source.read, i), changes
