"""Parquet files: rows of an image's bytes (the Hugging Face layout) or path, and a label."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from vitrail.data.address import Address, split_name, split_of
from vitrail.data.layout import Kept, layout
from vitrail.data.listing import Found, Names, class_names, numbered, suffix_of
from vitrail.data.storage import join, open_file, parent
from vitrail.data.tables import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Listed,
    check_filled,
    folders_names,
    pick,
    read_path,
    split_column,
)
from vitrail.errors import DataError


class RowGroups:
    """Images of parquet files, read a row group at a time; the groups used last are kept."""

    def __init__(self, tables: list["Table"]) -> None:
        self.tables = tables
        sizes = [(t, g, n) for t, table in enumerate(tables) for g, n in enumerate(table.groups)]
        self.places = [(t, g) for t, g, _ in sizes]
        rows = [n for *_, n in sizes]
        self.ends = np.cumsum(rows)
        stored = np.array([tables[t].bytes_of(g) for t, g in self.places], np.int64)
        self.layout = layout(np.repeat(np.arange(len(rows)), rows), stored, slow=True)
        self.kept = Kept(self._group, lambda column: column.nbytes)

    def read(self, row: int) -> bytes:
        """Give the bytes of one image."""
        group = int(self.layout.groups[row])
        first = int(self.ends[group - 1]) if group else 0
        value = self.kept[group][row - first].as_py()
        table = self.tables[self.places[group][0]]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not value:
            raise DataError("the row has no image")
        return value if isinstance(value, bytes) else read_path(table.folder, value)

    def _group(self, group: int) -> Any:
        t, g = self.places[group]
        return self.tables[t].column(self.tables[t].image, [g])


class Table:
    """One parquet file: labels at once, images by row group."""

    def __init__(
        self,
        path: str,
        image_column: str | None,
        label_column: str | None = None,
        labelled: bool = True,
    ) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        self.path, self.folder = path, parent(path)
        self.errors = (pyarrow.ArrowException, OSError)
        try:
            with open_file(path) as file:
                opened = ParquetFile(file)
                self.metadata, schema = opened.metadata, opened.schema_arrow
        except pyarrow.ArrowException as error:
            raise DataError(f'"{path}" is no parquet file, or a damaged one: {error}') from error
        self.image = pick(schema.names, image_column, IMAGE_COLUMNS, "image", path)
        self.label = ""
        if labelled:
            self.label = pick(schema.names, label_column, LABEL_COLUMNS, "label", path)
        count = self.metadata.num_row_groups
        self.groups = [self.metadata.row_group(g).num_rows for g in range(count)]
        self.split = split_column(schema.names)
        self.classes = _class_label(schema.metadata, self.label)
        kind, types = schema.field(self.image).type, pyarrow.types
        self.has_paths = types.is_string(kind) or types.is_large_string(kind)
        if types.is_primitive(kind) or types.is_list(kind):
            raise DataError(
                f'"{path}" has neither images nor paths in the column "{self.image}" but {kind}; '
                "name another with --data.image-column"
            )

    def bytes_of(self, group: int) -> int:
        """Give the bytes that the images of a row group have, without reading them."""
        found = self.metadata.row_group(group)
        columns = [found.column(i) for i in range(found.num_columns)]
        of_images = [c for c in columns if c.path_in_schema.partition(".")[0] == self.image]
        return sum(column.total_uncompressed_size for column in of_images)

    def column(self, name: str, groups: list[int] | None = None) -> Any:
        """Give a column, of some row groups or of all."""
        from pyarrow.parquet import ParquetFile

        groups = list(range(len(self.groups))) if groups is None else groups
        try:
            # Opened for each group, so that no file stays open; its metadata is read once.
            with open_file(self.path) as file:
                opened = ParquetFile(file, metadata=self.metadata)
                return opened.read_row_groups(groups, columns=[name], use_threads=False).column(0)
        except self.errors as error:
            raise DataError(f'"{self.path}" cannot be read: {error}') from error


def open_parquet(address: Address, image_column: str | None, label_column: str | None) -> Found:
    """Open parquet files; those whose names begin with train, val or test are splits."""
    _check_pyarrow(join(address.path, address.files[0]))
    by_split: dict[str, list[str]] = {}
    for file in address.files:
        by_split.setdefault(split_of(file) if len(address.files) > 1 else "", []).append(file)
    known = class_names(address.path)
    parts = {}
    for split, files in by_split.items():
        tables = [Table(join(address.path, f), image_column, label_column) for f in files]
        for name, images in _open(tables, known).parts.items():
            if (name or split) in parts:
                raise DataError(
                    f'"{join(address.path, files[0])}" and a file before it both have the split '
                    f'"{name or split}"; name the files by their splits, or give all rows one'
                )
            parts[name or split] = images
    return Found(parts)


def unlabelled_rows(path: str, image_column: str | None) -> tuple[Names, Callable[[int], bytes]]:
    """Give the names of the rows of a parquet file, and what reads the image of one."""
    _check_pyarrow(path)
    table = Table(path, image_column, labelled=False)
    reader, stem = RowGroups([table]), path.rpartition("/")[2]
    if table.has_paths:
        return Names(map(str, table.column(table.image).to_pylist())), reader.read
    suffix = _suffix(reader, 0) if table.groups else ""
    return Names(f"{stem}/{row}{suffix}" for row in range(sum(table.groups))), reader.read


def _check_pyarrow(path: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError(f'"{path}" needs pyarrow: pip install vitrail[datasets]') from error


def _open(tables: list[Table], known: tuple[str, ...]) -> Found:
    values: list[Any] = []
    names: list[str] = []
    reader = RowGroups(tables)
    splits: list[str] = []
    for table in tables:
        stem = table.path.rpartition("/")[2]
        own = table.column(table.label).to_pylist()
        suffix = _suffix(reader, len(values)) if own else ""
        named = [f"{stem}/{row}{suffix}" for row in range(len(own))]
        if table.has_paths:
            named = [str(name) for name in table.column(table.image).to_pylist()]
        check_filled(own, named, table.path)
        values += own
        names += named
        if table.split is not None:
            splits += [split_name(str(name)) for name in table.column(table.split).to_pylist()]
    if splits and len(splits) != len(values):
        lacks = next(table.path for table in tables if table.split is None)
        raise DataError(f'"{lacks}" has no column "split", but others beside it have one')
    if not values:
        raise DataError(f'"{tables[0].path}" has no rows')
    if any(isinstance(value, float | list | dict | bytes) for value in values):
        raise DataError(
            f'"{tables[0].path}" has labels in the column "{tables[0].label}" that are neither '
            "whole numbers nor texts; name another with --data.label-column"
        )
    labels, classes = numbered(values, tables[0].classes or known, f'"{tables[0].path}"')
    if tables[0].has_paths and not tables[0].classes and not known:
        classes = folders_names(labels, classes, names)
    parts = np.array(splits) if splits else np.full(len(values), "")
    return Listed(names, labels, classes, parts).found(reader.read, reader.layout)


def _suffix(reader: RowGroups, row: int) -> str:
    try:
        return suffix_of(reader.read(row))
    except (DataError, OSError):  # it is counted when it is read
        return ""


def _class_label(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Give the class names that `datasets` writes into a parquet file's schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):  # not one of theirs, or a column of plain numbers
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()
