"""What a DATA argument names, found out without reading an image or importing torch."""

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from vitrail.data.storage import Scan, exists, is_folder, is_remote, join, parent, scan
from vitrail.errors import DataError, nearest

# Read from an allow-list: the year's holes sit in rare formats.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
HELD_OUT = ("val", "validation", "test")
_SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "Thumbs.db", "desktop.ini")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_IDX = re.compile(r"images?[-.]idx[34]-ubyte(\.gz)?$")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_WANTED = (
    "CLASS/IMAGE, or train/CLASS/IMAGE and val/CLASS/IMAGE, or a split.csv of path,label,split, "
    ".tar, .parquet, .csv or idx files"
)


class Address(NamedTuple):
    """A data set: `kind` says how it is read, `name` is what its runs are called.

    `files` are the parts of a set of several files, relative to `path` where that is a folder.
    """

    kind: Literal["digits", "splits", "classes", "list", "table", "tar", "shards", "idx", "hub"]
    name: str
    path: str
    files: tuple[str, ...] = ()


def parse(data: str) -> Address:
    """Read a DATA argument: `digits`, `hf:OWNER/NAME`, a folder, or a file or address of a kind.

    Raises `DataError` where there is nothing, or nothing that is images, at that address.
    """
    if not data:
        raise DataError("DATA is empty; wanted is `digits`, hf:OWNER/NAME, or a file or folder")
    if data.startswith("hf:"):
        if not _HUB.fullmatch(data[3:]):
            raise DataError(f'"{data}" names no data set of the hub; wanted is hf:OWNER/NAME')
        return Address("hub", _name(data[3:].partition("@")[0]), data[3:])
    try:
        path = data if is_remote(data) else str(Path(data).expanduser())
        there = exists(path)
        if data == "digits" and _are_digits(path):
            return Address("digits", "digits", path)
        if not there and _RANGE.search(data):
            return _shards(path)
        if not there:
            raise DataError(
                f'there is no data at "{data}": it is neither `digits` nor a folder that exists.'
                f"{nearest(Path(path).name, _beside(path))}"
            )
        return _folder(data, path) if is_folder(path) else _file(data, path)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a home nobody has
        raise DataError(f'there is no data at "{data}": {error}') from error


def located(data: str, folder: str | None) -> str:
    """Give a DATA argument of a command that was given in `folder` as it is found from here.

    A path is that below `folder`, or the same one here where the data has moved along.
    """
    if not data or folder is None or data.startswith("hf:") or is_remote(data):
        return data
    here, there = os.path.expanduser(data), os.path.join(folder, os.path.expanduser(data))
    if os.path.realpath(here) == os.path.realpath(there):
        return data
    if data == "digits" and _are_digits(there):
        return data
    return data if exists(here) and not exists(there) else there


def _are_digits(path: str) -> bool:
    """Say whether `digits`, which would be this path, names scikit-learn's: a run is no data."""
    return not is_folder(path) or exists(join(path, "recipe.toml"))


def _file(data: str, path: str) -> Address:
    lower = path.lower()
    if lower.endswith(_PACKED):
        raise DataError(
            f'"{data}" is compressed, so that no image in it can be reached without reading all '
            "before it: unpack it, into a folder or a plain .tar, and give that"
        )
    if lower.endswith(".tar"):
        return Address("tar", _name(path), path)
    if lower.endswith((".csv", ".parquet")):
        return Address("table", _name(path), parent(path), (path.rpartition("/")[2],))
    raise DataError(
        f'"{data}" is a file; a folder of class folders is wanted, or `digits`, '
        "or a file that ends in .tar, .parquet or .csv"
    )


def _folder(data: str, path: str) -> Address:
    top = scan(path)
    name = _name(path if is_remote(path) else os.path.realpath(path))
    folders = [folder for folder in top.folders if not is_hidden(folder)]
    files = [file for file in top.files if not is_hidden(file)]
    if any(_IDX.search(file) for file in files):
        return Address("idx", name, path, tuple(file for file in files if _IDX.search(file)))
    tars = [file for file in files if file.endswith(".tar")]
    if "split.csv" in files:
        has_own = any(has_images(join(path, folder)) for folder in folders)
        if len(tars) == 1 and not has_own:
            return Address("tar", name, join(path, tars[0]), ("split.csv",))
        return Address("list", name, path, ("split.csv",))
    # A class may be called train: vehicles have one.
    split = any(held_out in folders for held_out in HELD_OUT)
    train = scan(join(path, "train")) if "train" in folders else Scan([], [])
    if class_folders(train) or (split and "train" in folders and not _parts(path, folders, files)):
        return Address("splits", name, path)
    if any(has_images(join(path, folder)) for folder in folders):
        return Address("classes", name, path)
    parts = _parts(path, folders, files)
    if len(parts) == 1 and parts[0].endswith(".tar"):
        return Address("tar", name, join(path, parts[0]))
    if parts:
        return Address("shards" if parts[0].endswith(".tar") else "table", name, path, parts)
    packed = [file for file in files if file.lower().endswith(_PACKED)]
    if packed:
        return _file(join(data, packed[0]), join(path, packed[0]))
    raise DataError(
        f'"{data}" holds no images in class folders: {_found(folders)}; wanted are {_WANTED} '
        f"(images: {' '.join(SUFFIXES)})"
    )


def _parts(path: str, folders: list[str], files: list[str]) -> tuple[str, ...]:
    """Give the parquet, csv or tar files of a folder, or those in data/ or train/ and val/."""
    below = [name for name in ("data", "train", *HELD_OUT) if name in folders]
    inside = [f"{name}/{file}" for name in below for file in scan(join(path, name)).files]
    for suffix in (".parquet", ".csv", ".tar"):
        for names in (files, inside):
            found = tuple(name for name in names if name.endswith(suffix) and not is_hidden(name))
            if found:
                return found
    return ()


def _shards(path: str) -> Address:
    """Write out `{000..099}`."""
    match = _RANGE.search(path)
    assert match is not None
    first, last = match.groups()
    if not int(first) <= int(last) < int(first) + 1_000_000:
        raise DataError(f'"{path}" counts from {first} to {last}; wanted is {{000..099}}')
    names = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    files = [path[: match.start()] + name + path[match.end() :] for name in names]
    missing = [file for file in files if not exists(file)]
    if missing:
        raise DataError(
            f'{len(missing)} of the {len(files)} files that "{path}" counts are not there; '
            f'the first is "{missing[0]}"'
        )
    folder = parent(path[: match.start()] + "0")
    stem = re.sub(r"\.(tar|parquet|csv)$", "", _RANGE.sub("", path.rpartition("/")[2])).strip("-_.")
    kind = "shards" if path.endswith(".tar") else "table"
    below = tuple(file.removeprefix(join(folder, "")) for file in files)
    return Address(kind, _name(stem or folder.replace(".", "shards")), folder, below)


def split_of(file: str) -> str:
    """Give the split that the name of a file, or else its folder, begins with: train, val, ..."""
    folder, _, name = file.rpartition("/")
    for part in (name, folder.rpartition("/")[2]):
        match = re.match(
            r"(train|training|validation|valid|val|dev|test)(?![A-Za-z])", part.lower()
        )
        if match:
            return split_name(match[1])
    return ""


def split_name(word: str) -> str:
    """Give one word for each split, whatever it is called; any other word is kept."""
    same = {"training": "train", "validation": "val", "valid": "val", "dev": "val"}
    return same.get(word.lower(), word.lower())


def class_folders(inside: Scan) -> list[str]:
    """Give the folders that may be classes: not hidden ones and those of other programs."""
    return [folder for folder in inside.folders if not is_hidden(folder)]


def is_data(word: str) -> bool:
    """Say whether a word that is no folder names a data set, rather than one image."""
    if word.startswith("hf:") or word == "digits" or word.lower().endswith(_PACKED):
        return word != "digits" or not exists(word)
    return word.lower().endswith((".tar", ".csv", ".parquet"))


def has_images(folder: str) -> bool:
    """Say whether a folder holds at least one image."""
    return any(is_image(file) for file in scan(folder).files)


def is_image(name: str) -> bool:
    """Say whether a file name is an image's, and not hidden."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is hidden, or some program's own."""
    return name.startswith(".") or name in _SYSTEM


def _name(path: str) -> str:
    last = path.rstrip("/").rpartition("/")[2]
    stem = re.sub(r"\.(tar|csv|parquet)$", "", last)
    return re.sub(r"[^\w.-]+", "-", stem).strip("-") or "data"


def _beside(path: str) -> list[str]:
    parent = Path(path).parent
    if is_remote(path) or not parent.is_dir():
        return ["digits"]
    return ["digits", *(file.name for file in parent.iterdir())]


def _found(folders: list[str]) -> str:
    if not folders:
        return "it has no folders"
    more = ", ..." if len(folders) > 3 else ""
    return f"its folders are {', '.join(folders[:3])}{more}"
