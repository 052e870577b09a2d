"""Where labelled images come from: random access to bytes, labels and class names."""

import hashlib
import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from vitrail.data.address import HELD_OUT, Address, class_folders, images_in, parse
from vitrail.errors import DataError


class Source(Protocol):
    """Labelled images, read one by one in any order; `classes` are the training classes."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def read(self, index: int) -> bytes: ...
    def label(self, index: int) -> int: ...
    def name(self, index: int) -> str: ...


class Splits(NamedTuple):
    """The training images, the held-out ones, and the digest of both listings."""

    train: Source
    held_out: Source
    digest: str


class Digits:
    """Scikit-learn's 1,797 real handwritten digits, 8 x 8 grey pixels, as PNG bytes."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.classes = tuple("0123456789")

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes:
        # The scanner counted 0 to 16 dark dots a pixel.
        grey = np.rint(_digits()[0][self.indices[index]] * (255 / 16)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(grey).save(file, format="PNG")
        return file.getvalue()

    def label(self, index: int) -> int:
        return int(_digits()[1][self.indices[index]])

    def name(self, index: int) -> str:
        return f"digit-{self.indices[index]:04d}-is-{self.label(index)}.png"


class ClassFolders:
    """Image files with a label each, as found in class folders."""

    def __init__(self, root: Path, files: Sequence[tuple[str, int]], classes: tuple[str, ...]):
        self.root, self.files, self.classes = root, files, classes

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return (self.root / self.files[index][0]).read_bytes()

    def label(self, index: int) -> int:
        return self.files[index][1]

    def name(self, index: int) -> str:
        return self.files[index][0]


def open_data(data: str, held_out_share: float = 0.2, split_seed: int = 0) -> Splits:
    """Open both splits of a DATA address; one without a split of its own is split by class.

    Raises `DataError` for an address that `address.parse` refuses, an empty class, a single class,
    or held-out classes that are not the training ones.
    """
    address = parse(data)
    if address.kind == "digits":
        train, held_out = split(_digits()[1], held_out_share, split_seed)
        return _with_digest(Digits(train), Digits(held_out))
    if address.kind == "splits":
        return _with_digest(*_split_folders(address))
    files, classes = _listing(address.path)
    train, held_out = split([label for _, label in files], held_out_share, split_seed)
    return _with_digest(
        *(
            ClassFolders(address.path, [files[i] for i in part], classes)
            for part in (train, held_out)
        )
    )


def split(
    labels: Sequence[int] | np.ndarray, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split indices by class, fixed by the seed: scikit-learn's own stratified split."""
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise DataError(f"the held-out share is {share}; it should be above 0 and below 1")
    counts = np.bincount(np.asarray(labels))
    if counts.min() < 2:
        raise DataError(
            "a class with one image cannot be split into training and held-out images; "
            "give each class two images or more, or folders train/ and val/"
        )
    everything = np.arange(len(labels))
    # Each class has an image in both, however few there are.
    held = min(max(math.ceil(share * len(labels)), len(counts)), len(labels) - len(counts))
    train, held_out = train_test_split(
        everything, test_size=held, stratify=labels, random_state=seed
    )
    return list(map(int, train)), list(map(int, held_out))


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.asarray(pixels).reshape(-1, 8, 8), np.asarray(labels)


def _listing(
    root: Path, classes: tuple[str, ...] = ()
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """List a folder of class folders; with `classes` given, labels are places in these."""
    found = tuple(folder.name for folder in class_folders(root))
    classes = classes or found
    strange = [name for name in found if name not in classes]
    if strange:
        raise DataError(
            f'"{root}" has classes that the training images lack: {", ".join(strange[:5])}; '
            f"`classes` of the run are the training folders' names, {len(classes)} of them"
        )
    files = []
    for name in found:
        images = images_in(root / name)
        if not images:
            raise DataError(f'class folder "{root / name}" holds no image; fill it or remove it')
        files += [(f"{name}/{image.name}", classes.index(name)) for image in images]
    if len(classes) < 2:
        raise DataError(f'"{root}" has {len(classes)} class; there is nothing to tell apart')
    return files, classes


def _split_folders(address: Address) -> tuple[Source, Source]:
    train_root = address.path / "train"
    roots = [address.path / name for name in HELD_OUT if (address.path / name).is_dir()]
    if not roots:
        raise DataError(
            f'"{address.path}" has a folder train but none to check on: '
            f"add one of {', '.join(HELD_OUT)}, or put the class folders side by side"
        )
    files, classes = _listing(train_root)
    held_out = _listing(roots[0], classes)[0]
    if not held_out:
        raise DataError(f'"{roots[0]}" holds no images in class folders; fill it or remove it')
    return ClassFolders(train_root, files, classes), ClassFolders(roots[0], held_out, classes)


def _with_digest(train: Source, held_out: Source) -> Splits:
    digest = hashlib.sha256()
    for source in (train, held_out):
        for i in range(len(source)):
            row = f"{source.name(i)}\0{source.label(i)}\0"
            digest.update(row.encode("utf-8", "surrogateescape"))  # names are bytes on Linux
        digest.update(b"\0\0")
    return Splits(train, held_out, digest.hexdigest())
