import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from vitrail.data.address import located, parse
from vitrail.data.sources import largest_side, open_data
from vitrail.errors import DataError


def fill(root: Path, *names: str) -> Path:
    """Write a picture of 5 x 4 pixels at every name below `root`."""
    file = io.BytesIO()
    Image.new("L", (5, 4)).save(file, format="PNG")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(file.getvalue())
    return root


def several(*classes: str, count: int = 5) -> list[str]:
    return [f"{name}/{i}.png" for name in classes for i in range(count)]


def found(root: Path) -> set[str]:
    """Give the names of all files that both splits read."""
    splits = open_data(str(root))
    return {source.name(i) for source in splits[:2] for i in range(len(source))}


def test_an_address_says_how_it_is_read_and_what_its_runs_are_called(tmp_path: Path) -> None:
    fill(tmp_path / "my pets!", *several("cat", "dog"))
    fill(tmp_path / "split", "train/cat/1.png", "val/cat/1.png")

    assert parse("digits")[:2] == ("digits", "digits")
    assert parse(str(tmp_path / "my pets!"))[:2] == ("classes", "my-pets")
    assert parse(str(tmp_path / "split"))[:2] == ("splits", "split")


def test_an_empty_address_is_not_the_folder_one_is_in() -> None:
    with pytest.raises(DataError, match="DATA is empty"):
        parse("")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, *several("bus", "car", "train"))

    assert open_data(str(tmp_path)).train.classes == ("bus", "car", "train")


def test_hidden_files_and_what_is_no_image_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", "dog"))
    strange = [".hidden/a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png"]
    fill(tmp_path, *strange, "cat/.a.png", "cat/notes.txt", "dog/folder.png/a.png", "loose.png")

    assert found(tmp_path) == set(several("cat", "dog"))


@pytest.mark.parametrize(
    ("names", "empty", "telling"),
    [
        (several("cat", "dog"), "emu", "emu"),
        (several("cat"), None, "1 class"),
        ([*several("cat"), "dog/1.png"], None, "one image"),
        (["cat/1.txt", "dog/notes.md"], None, "no images.*cat, dog"),
        (["1.png", "2.png"], None, "no folders"),
        (several("train/cat", "train/dog"), None, "val, validation, test"),
        (["train/cat/1.png", "val/cat/2.png"], None, "1 class"),
        (several("train/cat", "train/dog", "val/cat"), "val/dog", "dog"),
    ],
)
def test_folders_that_no_run_can_use_are_refused(
    tmp_path: Path, names: list[str], empty: str | None, telling: str
) -> None:
    fill(tmp_path, *names)
    if empty is not None:
        (tmp_path / empty).mkdir(parents=True)

    with pytest.raises(DataError, match=telling):
        open_data(str(tmp_path))


def test_a_missing_folder_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    fill(tmp_path, *several("flowers/rose", "flowers/tulip"))

    with pytest.raises(DataError, match='Did you mean "flowers"'):
        open_data(str(tmp_path / "flower"))
    with pytest.raises(DataError, match='Did you mean "digits"'):
        open_data("digit")


@pytest.mark.parametrize("address", ["a" * 300, "~nobody-has-this-name/photos", "a\0b"])
def test_an_address_that_no_file_system_takes_is_refused(address: str) -> None:
    with pytest.raises(DataError):
        open_data(address)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_bytes(b"")

    with pytest.raises(DataError, match="is a file; a folder"):
        open_data(str(tmp_path / "cats.txt"))


@pytest.mark.parametrize("name", ["cats.tar.xz", "cats.tgz", "cats.TAR.GZ", "cats.zip"])
def test_a_compressed_archive_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(DataError, match=r"compressed.*unpack it"):
        open_data(str(tmp_path / name))
    with pytest.raises(DataError, match=r"compressed.*unpack it"):
        open_data(str(tmp_path))  # the only thing in its folder


def test_the_largest_side_is_the_first_image_s_that_can_be_opened(tmp_path: Path) -> None:
    root = fill(tmp_path, "cat/3.png", "dog/1.png")
    (root / "cat" / "0.png").write_bytes(b"")
    (root / "cat" / "1.png").write_bytes(b"<html>")
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    bomb = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    (root / "cat" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(bomb))

    assert largest_side(str(root)) == 5


def test_data_of_another_folder_is_found_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there / "photos", there / "both", here / "both", here / "moved"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)

    for data, wanted in {
        "photos": f"{there}/photos",
        "both": f"{there}/both",  # not another one of that name
        "moved": "moved",
        "gone": f"{there}/gone",  # an error names it in full
        "shards-{00..12}.tar": f"{there}/shards-{{00..12}}.tar",
        str(here / "both"): str(here / "both"),
        "digits": "digits",
        "hf:me/photos": "hf:me/photos",
        "s3://bucket/photos": "s3://bucket/photos",
        "": "",
    }.items():
        assert located(data, str(there)) == wanted
        assert located(data, str(here)) == located(data, None) == data


def test_a_run_that_is_called_digits_does_not_hide_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "digits/examples/1.png")
    assert parse("digits").kind == "classes"

    (tmp_path / "digits" / "recipe.toml").write_text("")

    assert parse("digits").kind == "digits"
    assert located("digits", str(tmp_path.parent)) == "digits"
