"""Stamps of images: they change where the file of an image does, and with nothing else."""

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_sets import picture
from runs import write_photos
from vitrail.data.inputs import Item, inputs
from vitrail.data.sets import labelled
from vitrail.data.stamps import stamp


def listed(data: str) -> Iterator[Item]:
    return inputs([data])


def with_labels(data: str) -> Iterator[Item]:
    return labelled(data)[0]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `photos`, a tar of it, and a csv of two of its images."""
    monkeypatch.chdir(tmp_path)
    photos = write_photos(Path("photos"))
    with tarfile.open("photos.tar", "w") as tar:
        tar.add(photos)
    rows = ["photos/dark/0.png,dark", "photos/light/0.png,light"]
    Path("photos.csv").write_text("\n".join(["path,label", *rows, ""]))
    return photos


@pytest.mark.parametrize("given", [listed, with_labels])
@pytest.mark.parametrize(
    ("data", "file", "share"),
    [
        ("photos", "photos/dark/0.png", 1),
        ("photos.tar", "photos.tar", 20),
        ("photos.csv", "photos/dark/0.png", 1),
    ],
)
def test_a_stamp_changes_where_the_file_of_an_image_does(
    given: Callable[[str], Iterator[Item]], data: str, file: str, share: int, photos: Path
) -> None:
    first, again = list(given(data)), list(given(data))
    found = os.stat(file)

    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 1))

    later = list(given(data))
    changed = sum(a.stamp != b.stamp for a, b in zip(first, later, strict=True))
    assert [item.stamp for item in first] == [item.stamp for item in again]
    assert all(item.stamp for item in first)
    assert changed == share


def test_of_what_is_no_local_file_there_is_no_stamp(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path, tmp_path / "gone", tmp_path / "pipe", "s3://bucket/a.png", "a\0b"):
        assert stamp(str(path)) == ""
    assert {item.stamp for item in inputs(["digits"])} == {""}


def test_a_file_of_another_size_has_another_stamp(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(picture(0))
    found = os.stat(file)
    before = stamp(str(file))

    file.write_bytes(picture(0) + b"\n")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))

    assert stamp(str(file)) != before
