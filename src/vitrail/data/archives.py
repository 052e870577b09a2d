"""Images inside tar files, read where they lie: nothing is unpacked, ever."""

import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitrail.data.address import Address, is_hidden, is_image, split_name
from vitrail.data.folders import notes_of
from vitrail.data.listing import Found, Images, Names, class_names, parse_class_names
from vitrail.data.members import Members
from vitrail.data.storage import exists, join, open_file, parent, read, size
from vitrail.data.tables import listed_rows, read_csv
from vitrail.errors import DataError, UnsafeError

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstandard"}


class Index(NamedTuple):
    """The regular files of a tar: their names, first bytes and lengths."""

    names: Names
    starts: np.ndarray
    lengths: np.ndarray


def tar_index(path: str) -> Index:
    """Read the headers of a tar.

    Raises `UnsafeError` for a member that would lie outside of a folder it is unpacked in, or that
    is a link or a device, and `DataError` for what is no whole, plain tar.
    """
    names, starts, lengths, total = Names(), [], [], size(path)
    with open_file(path) as file:
        head = file.read(8)
        for magic, method in _PACKED.items():
            if head.startswith(magic):
                raise DataError(
                    f'"{path}" is a tar compressed with {method}, so that no image in it can be '
                    "reached without reading all before it: unpack it, and give the plain .tar"
                )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # or a million of them would stay in memory
                    _check(member, path)
                    if not member.isfile():
                        continue
                    if member.offset_data + member.size > total:
                        raise DataError(
                            f'"{path}" is cut short: it has {total:,} bytes, and "{member.name}" '
                            f"would end at byte {member.offset_data + member.size:,}"
                        )
                    if member.issparse():
                        raise DataError(f'"{path}" has the sparse member "{member.name}"')
                    names.extend([member.name.removeprefix("./")])
                    starts.append(member.offset_data)
                    lengths.append(member.size)
                # `next` ends in silence at a damaged header, too.
                file.seek(tar.offset)
                whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except tarfile.TarError as error:
            raise DataError(f'"{path}" is no tar, or a damaged one: {error}') from error
    if not whole:
        raise DataError(
            f'"{path}" is cut short or damaged: neither a member nor the end of a tar stands at '
            f"byte {tar.offset:,} of {total:,}; copy it again"
        )
    return Index(names, np.array(starts, np.int64), np.array(lengths, np.int64))


def open_tar(address: Address, image_column: str | None, label_column: str | None) -> Found:
    """Open a tar of class folders, with or without train/ and val/ or a `split.csv`."""
    columns = (image_column, label_column)
    path, index = address.path, tar_index(address.path)
    members = {index.names[row]: row for row in range(len(index.names))}
    if any(name.endswith(".cls") for name in members):
        from vitrail.data.shards import open_shards

        file = path.rpartition("/")[2]
        return open_shards(Address("shards", address.name, parent(path), (file,)))

    stored = Members([path], np.zeros(len(index.names), np.int32), index.starts, index.lengths)
    inside = [name for name in members if name.rpartition("/")[2] == "split.csv"]
    beside = join(parent(path), "split.csv")
    if address.files or (not inside and exists(beside)):
        return _listed(path, members, "", read(beside), beside, stored, columns)
    if len(inside) == 1:
        root = inside[0].removesuffix("split.csv")
        text = stored.read(members[inside[0]])
        where = f"{path}: {inside[0]}"
        return _listed(path, members, root, text, where, stored, columns)
    passed: Counter[str] = Counter()
    images = []
    for name in members:
        if any(map(is_hidden, name.split("/"))):
            passed["hidden"] += 1
        elif not is_image(name):
            passed["other"] += 1
        else:
            images.append(name)
    if not images:
        raise DataError(f'"{path}" holds no images')
    groups = _by_folder(images, path, passed)
    parts = {}
    for split, found in groups.items():
        rows = np.array([members[name] for _, name in found], np.int64)
        classes = tuple(sorted({folder for folder, _ in found}))
        place = {name: i for i, name in enumerate(classes)}
        names = Names(f"{folder}/{name.rpartition('/')[2]}" for folder, name in found)
        labels = np.array([place[folder] for folder, _ in found], np.int32)
        parts[split] = Images(
            names,
            labels,
            classes,
            lambda row, rows=rows: stored.read(rows[row]),
            layout=stored.layout.at(rows),
            folder=split,
        )
    return Found(parts, notes_of(passed))


def _check(member: tarfile.TarInfo, path: str) -> None:
    name = member.name
    if name.startswith("/") or ".." in name.split("/"):
        raise UnsafeError(
            f'"{path}" has the member "{name}", which points outside of the archive; '
            "pack the images again with names below one folder"
        )
    if not (member.isfile() or member.isdir()):
        kind = "link" if member.issym() or member.islnk() else "device"
        to = f' to "{member.linkname}"' if kind == "link" else ""
        raise UnsafeError(
            f'"{path}" has the member "{name}", a {kind}{to}; pack the images themselves '
            "(tar --dereference --hard-dereference)"
        )


def _by_folder(
    images: Sequence[str], path: str, passed: Counter[str]
) -> dict[str, list[tuple[str, str]]]:
    """Give (class, member) for each image of each split, without the folder all of them lie in."""
    top = {name.partition("/")[0] for name in images}
    depth = 0
    while len(top) == 1 and all(name.count("/") >= depth + 2 for name in images):
        depth += 1
        top = {name.split("/")[depth] for name in images}
    # A class may be called train, as in folders.
    splits = {split_name(name) for name in top} <= {"train", "val", "test"} and all(
        name.count("/") >= depth + 2 for name in images
    )
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in images:
        folders = name.split("/")[depth:-1]
        if len(folders) == 0:
            passed["loose"] += 1
            continue
        if len(folders) > 1 + splits:
            raise DataError(
                f'"{path}" has the image "{name}" in too many folders; wanted are CLASS/IMAGE, '
                "or train/CLASS/IMAGE and val/CLASS/IMAGE"
            )
        groups.setdefault(folders[0] if splits else "", []).append((folders[-1], name))
    return {split: sorted(found) for split, found in groups.items()}


def _listed(
    path: str,
    members: dict[str, int],
    root: str,
    text: bytes,
    where: str,
    stored: Members,
    columns: tuple[str | None, str | None],
) -> Found:
    """Give the images that a `split.csv` lists; its paths start at `root`, or one folder up."""
    table = read_csv(text, where)
    listed = listed_rows(table, where, (), *columns)
    paths = [name.removeprefix("./") for name in listed.paths]
    roots = [root, *sorted({name.partition("/")[0] + "/" for name in members if "/" in name})]
    root = next((r for r in roots if r + paths[0] in members), root)
    missing = [name for name in paths if root + name not in members]
    if missing:
        raise DataError(
            f'"{where}" lists {len(missing)} images that "{path}" does not have; the first is '
            f'"{missing[0]}"'
        )
    known = class_names(parent(path))
    classes_file = next(
        (root + n for n in ("classes.txt", "classnames.txt") if root + n in members), ""
    )
    if classes_file:
        known = parse_class_names(stored.read(members[classes_file]), f"{path}: {classes_file}")
    if known:
        listed = listed_rows(table, where, known, *columns)
    rows = np.array([members[root + name] for name in paths], np.int64)
    return listed.found(lambda row: stored.read(rows[row]), stored.layout.at(rows))
