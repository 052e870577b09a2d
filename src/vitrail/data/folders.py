"""Class folders: train/CLASS/* and val/CLASS/*, or CLASS/* alone."""

from collections import Counter

import numpy as np

from vitrail.data.address import HELD_OUT, Address, is_hidden, is_image
from vitrail.data.listing import Found, Images, Names
from vitrail.data.storage import join, read, scan
from vitrail.errors import DataError

_WORDS = {
    "hidden": "hidden or of the system",
    "other": "without the name of an image",
    "loose": "outside the class folders",
    "loops": "symbolic links to a folder that they lie in, or to themselves",
}


def open_folders(address: Address) -> Found:
    """Open class folders; raises `DataError` for one without an image."""
    passed: Counter[str] = Counter()
    if address.kind == "classes":
        parts = {"": _listed(address.path, passed)}
        return Found(parts, notes_of(passed))
    splits = [name for name in HELD_OUT if name in scan(address.path).folders]
    if not splits:
        raise DataError(
            f'"{address.path}" has a folder train but none to check on: '
            f"add one of {', '.join(HELD_OUT)}, or put the class folders side by side"
        )
    parts = {name: _listed(join(address.path, name), passed, name) for name in ("train", *splits)}
    return Found(parts, notes_of(passed))


def _listed(root: str, passed: Counter[str], split: str = "") -> Images:
    names, counts, classes = Names(), [], []
    top = scan(root)
    for name in top.folders:
        if is_hidden(name):
            passed["hidden"] += 1
            continue
        inside = scan(join(root, name))
        pipes = [file for file in inside.strange if is_image(file)]
        if pipes:
            raise DataError(
                f'"{join(root, name, pipes[0])}" is a pipe, a socket or a device, and reading it '
                "could hang for ever; take it away"
            )
        images = [file for file in inside.files if is_image(file)]
        if not images:
            raise DataError(
                f'class folder "{join(root, name)}" holds no image; fill it or remove it'
            )
        names.extend(f"{name}/{file}" for file in images)
        counts.append(len(images))
        classes.append(name)
        hidden = sum(map(is_hidden, inside.files)) + sum(map(is_hidden, inside.folders))
        passed["hidden"] += hidden
        passed["other"] += len(inside.files) + len(inside.folders) - len(images) - hidden
        passed["loops"] += inside.loops
    passed["loops"] += top.loops
    passed["loose"] += sum(map(is_image, top.files))
    if not classes:
        raise DataError(f'"{root}" holds no images in class folders; fill it or remove it')
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Images(
        names, labels, tuple(classes), lambda row: read(join(root, names[row])), folder=split
    )


def notes_of(passed: Counter[str]) -> tuple[str, ...]:
    """Say how many files of each kind were passed over."""
    told = [f"{count:,} {_WORDS[why]}" for why, count in passed.items() if count]
    return (f"passed over: {'; '.join(told)}",) if told else ()
