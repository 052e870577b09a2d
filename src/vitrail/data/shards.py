"""WebDataset shards: tar files of KEY.jpg and KEY.cls, read in any order by an index of bytes."""

import io
import json
import os
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitrail.data.address import Address, is_hidden, is_image, split_of
from vitrail.data.archives import tar_index
from vitrail.data.listing import Found, Images, Names, class_names, numbered
from vitrail.data.members import Members
from vitrail.data.storage import fingerprint, is_remote, join, read_range
from vitrail.errors import DataError

_VERSION = "1"  # of the cached index; another number makes all of them anew


class Shard(NamedTuple):
    """The samples of one shard: names of the images, where their bytes lie, and label texts."""

    names: Names
    starts: np.ndarray
    lengths: np.ndarray
    labels: list[str]


def open_shards(address: Address) -> Found:
    """Open shards as one set, or as splits where their names begin with train, val and test."""
    known = class_names(address.path)
    by_split: dict[str, list[str]] = {}
    for file in address.files:
        by_split.setdefault(split_of(file) if len(address.files) > 1 else "", []).append(file)
    return Found({name: _open(address.path, by_split[name], known) for name in by_split})


def _open(folder: str, files: list[str], known: tuple[str, ...]) -> Images:
    paths = [join(folder, file) for file in files]
    shards = [shard_index(path) for path in paths]
    names = Names()
    for file, shard in zip(files, shards, strict=True):
        names.extend(f"{file}/{shard.names[row]}" for row in range(len(shard.names)))
    texts = [label for shard in shards for label in shard.labels]
    if not texts:
        raise DataError(f'"{paths[0]}" holds no samples: wanted are KEY.jpg and KEY.cls')
    labels, classes = numbered(texts, known, f'"{folder}"')
    stored = Members(
        paths,
        np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.names) for shard in shards]),
        np.concatenate([shard.starts for shard in shards]),
        np.concatenate([shard.lengths for shard in shards]),
    )
    return Images(names, labels, classes, stored.read, layout=stored.layout)


def shard_index(path: str) -> Shard:
    """Give the samples of a shard, from the cache where the shard is the one indexed there."""
    mark = f"{_VERSION}-{fingerprint(path)}"
    file = _cache_file(path)
    cached = _cached(file, mark)
    if cached is not None:
        return cached
    shard = _samples(path)
    table = {"mark": mark, "labels": shard.labels}
    content = io.BytesIO()
    np.savez(
        content,
        table=np.frombuffer(json.dumps(table).encode(), np.uint8),
        letters=np.frombuffer(bytes(shard.names.letters), np.uint8),
        ends=np.asarray(shard.names.ends, np.int64),
        starts=shard.starts,
        lengths=shard.lengths,
    )
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        file.parent.mkdir(parents=True, exist_ok=True)
        # With its folder goes what was written of it, where the disk is full.
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder, "part")
            part.write_bytes(content.getvalue())
            part.replace(file)
    return shard


def _samples(path: str) -> Shard:
    """Group the members of a shard by their names up to the first dot."""
    index = tar_index(path)
    images: dict[str, int] = {}
    texts: dict[str, int] = {}
    for row in range(len(index.names)):
        name = index.names[row]
        if any(map(is_hidden, name.split("/"))):
            continue
        folder, _, file = name.rpartition("/")
        key = f"{folder}/{file.partition('.')[0]}"
        kind = images if is_image(name) else texts if name.endswith(".cls") else None
        if kind is None:
            continue
        if key in kind:
            raise DataError(f'"{path}" has two of "{name}" for one sample; each has a key alone')
        kind[key] = row
    if alone := sorted(images.keys() ^ texts.keys()):
        member = index.names[(images | texts)[alone[0]]]
        lacks = "label (.cls)" if alone[0] in images else "image"
        raise DataError(
            f'"{path}" has {len(alone)} samples without both; "{member}" has no {lacks}'
        )
    rows = np.array(list(images.values()), np.int64)
    labels = []
    for key in images:
        row = texts[key]
        data = read_range(path, int(index.starts[row]), min(int(index.lengths[row]), 1000))
        try:
            labels.append(data.decode().strip())
        except UnicodeDecodeError as error:
            raise DataError(f'"{path}": "{index.names[row]}" is no text: {error}') from error
        if not labels[-1]:
            raise DataError(f'"{path}": "{index.names[row]}" is empty; wanted is a label')
    return Shard(
        Names(index.names[row] for row in rows), index.starts[rows], index.lengths[rows], labels
    )


def _cached(file: Path, mark: str) -> Shard | None:
    """Read a cached index; None where there is none, or where it is another shard's or broken."""
    try:
        with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
            table = json.loads(arrays["table"].tobytes())
            if table["mark"] != mark:
                return None
            names = Names()
            names.letters = bytearray(arrays["letters"].tobytes())
            names.ends.frombytes(arrays["ends"][1:].tobytes())
            shard = Shard(names, arrays["starts"], arrays["lengths"], table["labels"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    sizes = {len(names), len(shard.starts), len(shard.lengths), len(shard.labels)}
    return shard if len(sizes) == 1 else None


def _cache_file(path: str) -> Path:
    """Give where the index of a shard is kept: never beside it, data is left as it is."""
    from hashlib import sha256

    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    whole = path if is_remote(path) else os.path.realpath(path)
    return Path(root, "vitrail", "shards", sha256(os.fsencode(whole)).hexdigest() + ".npz")
