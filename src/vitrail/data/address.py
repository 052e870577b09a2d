"""What a DATA argument names, found out without reading an image or importing torch."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from vitrail.errors import DataError, nearest

# Read from an allow-list: the year's holes sit in rare formats.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
HELD_OUT = ("val", "validation", "test")
_IGNORED = (".ipynb_checkpoints", "__MACOSX")


class Address(NamedTuple):
    """A data set: `kind` says how it is read, `name` is what its runs are called."""

    kind: Literal["digits", "splits", "classes"]
    name: str
    path: Path


def parse(data: str) -> Address:
    """Read a DATA argument: `digits`, a folder of train/CLASS/* and val/CLASS/*, or of CLASS/*.

    Raises `DataError` where there is nothing, or nothing that is an image, at that address.
    """
    try:
        path = Path(data).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise DataError(f'there is no data at "{data}": {error}') from error
    if data == "digits" and not path.is_dir():
        return Address("digits", "digits", path)
    if not there:
        raise DataError(
            f'there is no data at "{data}": it is neither `digits` nor a folder that exists.'
            f"{nearest(path.name, _beside(path))}"
        )
    if not path.is_dir():
        raise DataError(f'"{data}" is a file; a folder of class folders is wanted, or `digits`')
    name = re.sub(r"[^\w.-]+", "-", path.resolve().name).strip("-") or "data"
    folders = [entry.name for entry in class_folders(path)]
    # A class may be called train: vehicles have one.
    split = any(name in folders for name in HELD_OUT)
    if "train" in folders and (split or class_folders(path / "train")):
        return Address("splits", name, path)
    if any(has_images(path / folder) for folder in folders):
        return Address("classes", name, path)
    raise DataError(
        f'"{data}" holds no images in class folders: {_found(folders)}; wanted are CLASS/IMAGE, '
        f"or train/CLASS/IMAGE and val/CLASS/IMAGE (images: {' '.join(SUFFIXES)})"
    )


def class_folders(path: Path) -> list[Path]:
    """Give the folders in `path` by name, without hidden ones and those of other programs."""
    return sorted(f for f in path.iterdir() if not _is_ignored(Path(f.name, "")) and f.is_dir())


def images_in(folder: Path) -> list[Path]:
    """Give the image files of one class folder, by name."""
    return sorted(f for f in folder.iterdir() if _is_image(f))


def expand(paths: Iterable[str]) -> list[str]:
    """Give each path, and in place of a folder the images below it, by name.

    Raises `DataError` for a folder without any; a file is not looked at.
    """
    found = []
    for path in paths:
        if not _is_folder(path):
            found.append(path)
            continue
        files = (file for file in Path(path).rglob("*") if _is_image(file))
        inside = sorted(str(file) for file in files if not _is_ignored(file.relative_to(path)))
        if not inside:
            raise DataError(f'folder "{path}" holds no image ({" ".join(SUFFIXES)})')
        found += inside
    return found


def largest_side(address: Address) -> int:
    """Give the longer side, in pixels, of the first image that can be opened; 0 where none can."""
    from vitrail.data.decode import size_of

    root = address.path / "train" if address.kind == "splits" else address.path
    for folder in class_folders(root):
        for file in images_in(folder)[:5]:
            try:
                return max(size_of(file.read_bytes()))
            except (DataError, OSError):
                continue  # it is counted when it is read
    return 0


def has_images(folder: Path) -> bool:
    """Say whether a class folder holds at least one image."""
    return any(_is_image(f) for f in folder.iterdir())


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and not file.is_dir()


def _is_ignored(file: Path) -> bool:
    return any(part.startswith(".") or part in _IGNORED for part in file.parts)


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # a name too long: who reads it says so
        return False


def _beside(path: Path) -> list[str]:
    parent = path.parent
    return ["digits", *(f.name for f in parent.iterdir())] if parent.is_dir() else ["digits"]


def _found(folders: list[str]) -> str:
    if not folders:
        return "it has no folders"
    more = ", ..." if len(folders) > 3 else ""
    return f"its folders are {', '.join(folders[:3])}{more}"
