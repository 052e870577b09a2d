"""Tables: csv and parquet files of a path and a label, and parquet files that hold the images."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vitrail.data.address import Address, split_name, split_of
from vitrail.data.layout import Layout
from vitrail.data.listing import Found, Images, Names, class_names, numbered
from vitrail.data.storage import is_remote, join, parent, read
from vitrail.errors import DataError, nearest

IMAGE_COLUMNS = ("image", "img", "path", "file", "filename", "file_name")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")


class Listed(NamedTuple):
    """The rows of a table: where each image is, its label and its split."""

    paths: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: np.ndarray  # of texts; "" where the table has none

    def found(self, read_row: Callable[[int], bytes], layout: Layout | None = None) -> Found:
        """Give the source of each split, whose rows are read by `read_row`."""
        names = Names(self.paths)
        whole = Images(names, self.labels, self.classes, read_row, layout=layout)
        splits = np.unique(self.splits).tolist()
        return Found({name: whole.take(np.flatnonzero(self.splits == name)) for name in splits})


def open_tables(address: Address, image_column: str | None, label_column: str | None) -> Found:
    """Open csv or parquet files, one or more for each split, or a folder's `split.csv`."""
    if address.files[0].endswith(".parquet"):
        from vitrail.data.parquet import open_parquet

        return open_parquet(address, image_column, label_column)
    known = class_names(address.path)
    parts: dict[str, Images] = {}
    for name in address.files:
        file = join(address.path, name)
        listed = listed_rows(read_csv(read(file), file), file, known, image_column, label_column)
        # A file's paths start where it lies.
        folder = parent(file)
        found = listed.found(lambda row, p=listed.paths, f=folder: read_path(f, p[row]))
        own = split_of(name) if len(address.files) > 1 else ""
        for split, images in found.parts.items():
            if (split or own) in parts:
                raise DataError(
                    f'"{file}" and a file before it both have the split "{split or own}"; '
                    "put their rows into one file"
                )
            parts[split or own] = images
    return Found(parts)


def read_path(folder: str, path: str) -> bytes:
    """Read a file that a table in `folder` names; one on another machine names none of this one."""
    if is_remote(folder) or is_remote(path):
        if path.startswith("/") or ".." in path.split("/") or is_remote(path):
            raise DataError(f'"{path}" is not below "{folder}", which lists it')
        return read(join(folder, path))
    return read(path if path.startswith("/") else join(folder, path))


def read_csv(data: bytes, where: str) -> dict[str, list[str]]:
    """Read a csv file with a header into its columns."""
    try:
        text = data.decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in next(rows, [])]
        if twice := [name for i, name in enumerate(header) if name and name in header[:i]]:
            raise DataError(f'"{where}" has the column "{twice[0]}" twice; name each differently')
        columns: list[list[str]] = [[] for _ in header]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f'"{where}", line {rows.line_num}: {len(row)} fields; '
                    f"the header has {len(header)}: {','.join(header)}"
                )
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f'"{where}" is no csv file in UTF-8: {error}') from error
    if not header or not columns[0]:
        raise DataError(f'"{where}" has no rows; wanted are a header, path,label, and rows')
    return dict(zip(header, columns, strict=True))


def listed_rows(
    table: dict[str, list[str]],
    where: str,
    classes: tuple[str, ...],
    image_column: str | None,
    label_column: str | None,
) -> Listed:
    """Give the rows of a csv: without `classes`, numbered labels take the names of the folders."""
    paths = table[pick(table, image_column, IMAGE_COLUMNS, "image", where)]
    values = [v.strip() for v in table[pick(table, label_column, LABEL_COLUMNS, "label", where)]]
    check_filled(values, paths, where)
    column = split_column(table)
    splits = np.array([split_name(v.strip()) for v in table[column]] if column else [""])
    splits = np.broadcast_to(splits, len(values))
    strange = sorted(set(splits.tolist()) - {"train", "val", "test"})
    if strange and column:
        raise DataError(
            f'"{where}" has the split "{strange[0]}"; splits are train, val and test.'
            f"{nearest(strange[0], ('train', 'val', 'test'))}"
        )
    labels, found = numbered(values, classes, f'"{where}"')
    return Listed(paths, labels, classes or folders_names(labels, found, paths), splits)


def pick(
    columns: Sequence[str] | dict[str, list[str]],
    given: str | None,
    usual: Sequence[str],
    what: str,
    where: str,
) -> str:
    """Give the name of the column that holds the images or labels."""
    lower = {name.lower(): name for name in columns}
    if given is not None and given in columns:
        return given
    found = [lower[name] for name in usual if name in lower] if given is None else []
    if found:
        return found[0]
    asked = f'the column "{given}"' if given is not None else f"a column of {what}s: {usual[0]}"
    raise DataError(
        f'"{where}" lacks {asked}; it has {", ".join(columns)}.'
        f"{nearest(given or what, columns)} Name it with --data.{what}-column"
    )


def split_column(columns: Iterable[str]) -> str | None:
    """Give the column that says each row's split, None where there is none."""
    return next((name for name in columns if name.lower() == "split"), None)


def check_filled(values: Sequence[object], names: Sequence[object], where: str) -> None:
    """Raise `DataError` for the first row without a label."""
    for row, value in enumerate(values):
        if value is None or value == "":
            raise DataError(f'"{where}": row {row + 1}, {names[row]!r}, has no label')


def folders_names(
    labels: np.ndarray, classes: tuple[str, ...], paths: Sequence[str]
) -> tuple[str, ...]:
    """Name numbered classes like the folders that their images lie in, where each has its own."""
    if not all(name.isdigit() for name in classes):
        return classes
    folders: dict[int, set[str]] = {}
    for label, path in zip(labels.tolist(), paths, strict=True):
        folders.setdefault(label, set()).add(path.rpartition("/")[0].rpartition("/")[2])
    names = [min(folders[i]) for i in range(len(classes))]
    alone = all(len(of) == 1 for of in folders.values()) and len(set(names)) == len(names)
    return tuple(names) if alone and all(names) else classes
