import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vitrail.data import digits
from vitrail.data.decode import decode
from vitrail.data.sources import Source, open_data
from vitrail.errors import DataError


def picture(grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, format="PNG")
    return file.getvalue()


def fill(root: Path, *names: str) -> Path:
    """Write a small picture, of another grey each, at every name below `root`."""
    for grey, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(grey))
    return root


def several(*classes: str, count: int = 5) -> list[str]:
    return [f"{name}/{i}.png" for name in classes for i in range(count)]


def listing(source: Source) -> dict[str, str]:
    """Give the class name of every file of a source."""
    return {source.name(i): source.classes[source.label(i)] for i in range(len(source))}


def test_the_digits_are_split_as_scikit_learn_splits_them() -> None:
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=0.2, stratify=labels, random_state=0)

    splits = open_data("digits")

    assert (len(splits.train), len(splits.held_out)) == (1437, 360)
    for source, wanted, wanted_labels in zip(splits[:2], parts[:2], parts[2:], strict=True):
        scaled = np.rint(np.asarray(wanted).reshape(-1, 8, 8) * 255 / 16)
        read = [decode(source.read(i))[..., 0] for i in range(len(source))]
        assert np.array_equal(read, scaled)
        assert [source.label(i) for i in range(len(source))] == list(wanted_labels)


def test_the_digits_are_read_without_scikit_learn() -> None:
    code = (
        "import sys; from vitrail.data.sources import open_data; open_data('digits')\n"
        "print(*(m for m in ('sklearn', 'scipy', 'torch') if m in sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "\n"


def test_digits_that_lie_elsewhere_are_found_by_scikit_learn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = digits.load()
    monkeypatch.setattr(digits, "_FILE", "moved.csv.gz")

    there = digits.load.__wrapped__()

    assert all(map(np.array_equal, here, there))


def test_the_digits_have_ten_classes_and_a_name_each() -> None:
    source = open_data("digits").held_out

    names = {source.name(i) for i in range(len(source))}

    assert source.classes == tuple("0123456789")
    assert len(names) == 360
    assert source.name(0).endswith(f"-is-{source.label(0)}.png")


def test_class_folders_are_split_class_by_class_and_each_file_once(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", "dog", count=10))

    splits = open_data(str(tmp_path))

    assert len(splits.train) == 16 and len(splits.held_out) == 4
    assert sorted(listing(splits.held_out).values()) == ["cat", "cat", "dog", "dog"]
    together = {**listing(splits.train), **listing(splits.held_out)}
    assert together == {name: name.split("/")[0] for name in several("cat", "dog", count=10)}


def test_what_is_read_is_the_file_that_is_named(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", "dog"))

    source = open_data(str(tmp_path)).train

    for i in range(len(source)):
        assert source.read(i) == (tmp_path / source.name(i)).read_bytes()


def test_a_few_images_a_class_are_enough_for_a_split(tmp_path: Path) -> None:
    fill(tmp_path, *several(*"abcdefgh", count=2))

    splits = open_data(str(tmp_path))

    assert sorted(listing(splits.train).values()) == list("abcdefgh")
    assert sorted(listing(splits.held_out).values()) == list("abcdefgh")


@pytest.mark.parametrize("share", [0.0, 1.0, 1])
def test_a_share_that_leaves_one_split_empty_is_refused(tmp_path: Path, share: float) -> None:
    fill(tmp_path, *several("cat", "dog"))

    with pytest.raises(DataError, match="share"):
        open_data(str(tmp_path), held_out_share=share)


@pytest.mark.parametrize("folder", ["val", "validation", "test"])
def test_a_split_that_the_folders_make_is_kept(tmp_path: Path, folder: str) -> None:
    fill(
        tmp_path, "train/cat/1.png", "train/dog/2.png", f"{folder}/cat/3.png", f"{folder}/dog/4.png"
    )

    train, held_out, *_ = open_data(str(tmp_path))

    assert listing(train) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert listing(held_out) == {"cat/3.png": "cat", "dog/4.png": "dog"}


def test_a_class_that_val_lacks_does_not_renumber_the_others(tmp_path: Path) -> None:
    fill(tmp_path, "train/ant/1.png", "train/bee/1.png", "train/cow/1.png", "val/cow/1.png")

    held_out = open_data(str(tmp_path)).held_out

    assert held_out.classes == ("ant", "bee", "cow")
    assert held_out.label(0) == 2


def test_a_class_that_only_val_has_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/emu/1.png")

    with pytest.raises(DataError, match="training images lack: emu"):
        open_data(str(tmp_path))


def test_val_without_an_image_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.png", "train/dog/1.png")
    (tmp_path / "val").mkdir()

    with pytest.raises(DataError, match="val"):
        open_data(str(tmp_path))


STRANGE = ["a b.png", "é ü.jpg", "🦊.png", "-b.png", "new\nline.png", "UPPER.PNG", "a,b;c.png"]


def test_strange_names_are_read_like_any_other(tmp_path: Path) -> None:
    root = tmp_path / "-my photos 🦊"
    fill(root, *(f"{name}/{file}" for name in ("-b", "zweite Klasse é") for file in STRANGE))

    train, held_out, *_ = open_data(str(root))

    files = {*listing(train), *listing(held_out)}
    assert files == {f"{name}/{file}" for name in ("-b", "zweite Klasse é") for file in STRANGE}
    assert all(train.read(i) for i in range(len(train)))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_a_name_that_is_not_utf_8_is_read_like_any_other(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", "dog"))
    Path(os.fsdecode(os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")).write_bytes(picture())

    train, held_out, digest, *_ = open_data(str(tmp_path))

    assert len(train) + len(held_out) == 11
    assert digest == open_data(str(tmp_path)).digest


def test_the_digest_is_the_listing_s(tmp_path: Path) -> None:
    first = open_data(str(fill(tmp_path / "a", *several("cat", "dog")))).digest
    again = open_data(str(fill(tmp_path / "b", *several("cat", "dog")))).digest
    longer = open_data(str(fill(tmp_path / "b", "dog/new.png"))).digest
    fill(tmp_path / "c", *several("cat"), *several("emu"))

    assert first == again
    assert len({first, longer, open_data(str(tmp_path / "c")).digest}) == 3


def test_symbolic_loops_and_what_is_no_image_are_passed_over_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, *several("cat", "dog"), ".ipynb_checkpoints/a.png", "cat/._0.png", "loose.png")
    (tmp_path / "dog" / "Thumbs.db").touch()
    (tmp_path / "dog" / "notes.txt").touch()
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    (tmp_path / "emu").symlink_to(tmp_path)
    (tmp_path / "dog" / "self.png").symlink_to(tmp_path / "dog" / "self.png")

    found = open_data(str(tmp_path))

    assert {*listing(found.train), *listing(found.held_out)} == set(several("cat", "dog"))
    (note,) = found.notes
    assert "3 hidden" in note and "3 symbolic links" in note
    assert "1 without the name of an image" in note and "1 outside the class folders" in note


def test_a_test_split_beside_val_is_a_third(tmp_path: Path) -> None:
    classes = ("cat", "dog")
    fill(
        tmp_path,
        *(f"{split}/{c}/{split}.png" for split in ("train", "val", "test") for c in classes),
    )

    found = open_data(str(tmp_path))

    assert found.test is not None and not found.notes
    assert listing(found.held_out) == {f"{c}/val.png": c for c in classes}
    assert listing(found.test) == {f"{c}/test.png": c for c in classes}


def test_two_names_of_one_split_are_refused(tmp_path: Path) -> None:
    fill(
        tmp_path, *(f"{split}/{c}/1.png" for split in ("train", "val", "validation") for c in "ab")
    )

    with pytest.raises(DataError, match="both val and validation"):
        open_data(str(tmp_path))


def test_a_class_that_val_lacks_is_told(tmp_path: Path) -> None:
    fill(tmp_path, "train/ant/1.png", "train/bee/1.png", "val/bee/1.png")

    assert "has no image of ant" in open_data(str(tmp_path)).notes[0]


def test_a_folder_of_many_files_opens_with_little_memory(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2500):
            (tmp_path / name / f"image_{i:06d}.jpg").touch()
    open_data(str(tmp_path))  # imports
    tracemalloc.start()

    found = open_data(str(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(found.train) == 4000
    assert peak < 200 * 5000


def test_a_column_of_what_is_no_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no table"):
        open_data("digits", label_column="species")
