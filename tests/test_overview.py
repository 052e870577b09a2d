"""What an overview of data says: counts, bad files, copies and leaks, whatever the data lies in."""

import gzip
import io
import json
import struct
import zlib
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_sets import pack, picture, pictures
from vitrail.data.decode import Look, look
from vitrail.data.overview import Copy, Overview, overview
from vitrail.data.overview_page import page
from vitrail.data.sources import BadFile, open_data
from vitrail.errors import DataError


def photo(seed: int, size: tuple[int, int] = (24, 16), form: str = "JPEG") -> bytes:
    """Give noise that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def bomb() -> bytes:
    """Give the 69 bytes of a PNG that would unpack to ten gigabytes."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    parts = (b"IHDR" + header, b"IDAT" + zlib.compress(b"\0"), b"IEND")
    chunks = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def look_over(data: str, **how: Any) -> Overview:
    return overview(data, open_data(data, **how))


def pets(root: Path, more: dict[str, bytes]) -> str:
    """Write two classes of three photos and one for validation, and `more`."""
    names = [f"train/{c}/{i}.jpg" for c in ("cat", "dog") for i in range(3)]
    names += ["validation/cat/8.jpg", "validation/dog/9.jpg"]
    return write(root, {name: photo(seed) for seed, name in enumerate(names)} | more)


def paths(groups: tuple[tuple[Copy, ...], ...]) -> list[list[str]]:
    return [[copy.path for copy in group] for group in groups]


def test_class_folders_are_counted_by_split_and_class(tmp_path: Path) -> None:
    wide = photo(99, (40, 10), "PNG")

    found = look_over(pets(tmp_path, {"train/dog/wide.png": wide}))

    assert found.classes == ("cat", "dog")
    assert found.splits == {"train": (3, 4), "val": (1, 1)}
    assert found.formats == {"JPEG": 8, "PNG": 1}
    assert found.sizes == {(24, 16): 8, (40, 10): 1}
    assert (found.images, found.bad, found.duplicates) == (9, (), ())


def test_the_json_has_the_form_of_the_design(tmp_path: Path) -> None:
    data = pets(tmp_path, {"validation/cat/same.jpg": photo(0), "train/cat/bad.jpg": b""})

    found = look_over(data).to_json()

    assert json.loads(json.dumps(found)) == {
        "source": data,
        "classes": ["cat", "dog"],
        "splits": {
            "train": {"images": 7, "per_class": {"cat": 4, "dog": 3}},
            "val": {"images": 3, "per_class": {"cat": 2, "dog": 1}},
        },
        "formats": {"JPEG": 9},
        "sizes": {"24x16": 9},
        "bad": [{"path": "train/cat/bad.jpg", "reason": "the file is empty"}],
        "duplicates": [["train/cat/0.jpg", "validation/cat/same.jpg"]],
        "leaks": [["train/cat/0.jpg", "validation/cat/same.jpg"]],
    }


def test_equal_files_are_found_within_a_split_and_across(tmp_path: Path) -> None:
    found = look_over(
        pets(
            tmp_path,
            {
                "train/cat/copy.jpg": photo(0),
                "train/dog/same as cat 1.jpg": photo(1),
                "validation/dog/same as cat 2.jpg": photo(2),
                "validation/dog/same as 9.jpg": photo(7),
            },
        )
    )

    assert paths(found.duplicates) == [
        ["train/cat/0.jpg", "train/cat/copy.jpg"],
        ["train/cat/1.jpg", "train/dog/same as cat 1.jpg"],
        ["train/cat/2.jpg", "validation/dog/same as cat 2.jpg"],
        ["validation/dog/9.jpg", "validation/dog/same as 9.jpg"],
    ]
    assert paths(found.leaks) == [["train/cat/2.jpg", "validation/dog/same as cat 2.jpg"]]
    assert paths(found.conflicts) == paths(found.duplicates[1:3])


def test_a_third_split_leaks_too(tmp_path: Path) -> None:
    data = pets(tmp_path, {})
    (tmp_path / "validation").rename(tmp_path / "val")
    write(tmp_path, {"test/cat/a.jpg": photo(0), "test/dog/b.jpg": photo(7)})

    found = look_over(data)

    assert [*found.splits] == ["train", "val", "test"]
    assert paths(found.leaks) == [["train/cat/0.jpg", "test/cat/a.jpg"]]
    assert paths(found.duplicates)[1:] == [["val/dog/9.jpg", "test/dog/b.jpg"]]
    assert "from train to val or test" in page(found)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (photo(50)[:-200], "truncated"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"", "empty"),
        (b"hello", "no image of a known format"),
        (bomb(), "100,000,000 pixels, which is the limit"),
        (photo(51, (2, 500), "PNG"), "2 x 500 pixels"),
    ],
    ids=["truncated", "html", "empty", "text", "bomb", "strip"],
)
def test_a_bad_file_is_listed_with_its_reason_and_is_no_duplicate(
    data: bytes, reason: str, tmp_path: Path
) -> None:
    found = look_over(pets(tmp_path, {"train/cat/x.jpg": data, "train/cat/y.jpg": data}))

    assert [bad.path for bad in found.bad] == ["train/cat/x.jpg", "train/cat/y.jpg"]
    assert all(reason in bad.reason for bad in found.bad)
    assert found.splits["train"] == (5, 3)
    assert (sum(found.sizes.values()), found.duplicates) == (8, ())


def test_a_file_that_cannot_be_opened_is_bad(tmp_path: Path) -> None:
    data = pets(tmp_path, {})
    (tmp_path / "train/cat/broken.jpg").symlink_to("nowhere.jpg")

    (bad,) = look_over(data).bad

    assert bad.path == "train/cat/broken.jpg"
    assert "No such file" in bad.reason


def test_data_without_a_split_is_split_as_for_training(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)]
    data = write(tmp_path, pictures(*names) | {"dog/again.png": picture(0)})

    found = look_over(data, held_out_share=0.4, split_seed=3)

    splits = open_data(data, 0.4, 3)
    assert splits.names == ()
    assert {n: sum(c) for n, c in found.splits.items()} == {
        "train": len(splits.train),
        "val": len(splits.held_out),
    }
    assert sorted(paths(found.duplicates)[0]) == ["cat/0.png", "dog/again.png"]


def test_tars_say_in_which_split_a_copy_is(tmp_path: Path) -> None:
    files = pictures("train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png")
    tar = pack(tmp_path / "set.tar", files | {"test/a/same.png": picture(0)})

    found = look_over(str(tar))

    assert found.splits == {"train": (1, 1), "test": (2, 1)}
    assert paths(found.leaks) == [["train/a/0.png", "test/a/same.png"]]


def test_a_table_names_its_files_as_it_lists_them(tmp_path: Path) -> None:
    files = pictures("x/0.png", "x/1.png", "y/2.png", "y/3.png") | {"y/4.png": picture(0)}
    rows = [f"{name},{name[0]},{'val' if name[2] in '134' else 'train'}" for name in files]
    table = "\n".join(["path,label,split", *rows]).encode()

    found = look_over(write(tmp_path, files | {"split.csv": table}))

    assert found.splits == {"train": (1, 1), "val": (1, 2)}
    assert paths(found.leaks) == paths(found.conflicts) == [["x/0.png", "y/4.png"]]


def test_idx_files_are_looked_through(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("t10k", 2)):
        pixels, labels = bytes(range(4 * count)), bytes(i % 2 for i in range(count))
        images = struct.pack(">IIII", 0x803, count, 2, 2) + pixels
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, count) + labels
        )

    found = look_over(str(tmp_path))

    assert found.splits == {"train": (2, 2), "test": (1, 1)}
    assert found.sizes == {(2, 2): 6}
    assert paths(found.leaks) == [["train-00000.png", "test-00000.png"],
                                  ["train-00001.png", "test-00001.png"]]  # fmt: skip


def test_the_digits_have_no_copies() -> None:
    found = look_over("digits")

    assert (found.images, found.sizes, found.bad) == (1797, {(8, 8): 1797}, ())
    assert found.duplicates == ()


def test_the_result_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in "abc" for i in range(30)]
    files = pictures(*names) | {"a/bad.png": b"", "c/bad.png": b"no", "c/copy.png": picture(3)}
    data = write(tmp_path, files)
    counted: list[int] = []

    first = overview(data, open_data(data), threads=1, seen=counted.append)

    assert first == overview(data, open_data(data), threads=5)
    assert sum(counted) == first.images == 93


def test_a_file_that_hangs_is_named_in_time(tmp_path: Path) -> None:
    data = pets(tmp_path, {})
    splits, mended = open_data(data), Event()
    real = splits.train.read
    splits.train.read = lambda i: (i == 4 and mended.wait(), real(i))[1]  # type: ignore[method-assign]

    with pytest.raises(DataError, match=r"no answer within 0\.2 s .* of train/dog/1\.jpg"):
        overview(data, splits, timeout=0.2)
    mended.set()


def test_every_image_is_read_once(tmp_path: Path) -> None:
    data = pets(tmp_path, {})
    splits, read = open_data(data), []
    for source in splits.parts().values():
        real = source.read
        source.read = lambda i, real=real: (read.append(1), real(i))[1]  # type: ignore[method-assign]

    overview(data, splits)

    assert len(read) == 8


def test_a_look_gives_the_upright_size_and_the_format_of_the_content() -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(turned, format="JPEG", exif=exif)

    assert look(turned.getvalue()) == Look("JPEG", 20, 30)
    assert look(photo(0, form="WEBP")) == Look("WEBP", 24, 16)
    with pytest.raises(DataError, match="truncated"):
        look(photo(0)[:-100])


def made(counts: dict[str, tuple[int, ...]], **more: object) -> Overview:
    """Give an overview of these counts: classes c0, c1 ..."""
    classes = tuple(f"c{i}" for i in range(len(counts["train"])))
    values: dict[str, object] = {"source": "set", "classes": classes, "splits": counts,
        "formats": {"PNG": 1}, "sizes": {(8, 8): 1}, "bad": (), "duplicates": ()}  # fmt: skip
    return Overview(**{**values, **more})  # type: ignore[arg-type]


def test_a_page_fits_80_columns_and_its_bars_are_as_long_as_the_counts() -> None:
    text = page(made({"train": (4000, 2000, 0), "val": (0, 1000, 1)}))

    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    bars = {line.split()[0]: line for line in lines if line.startswith("c") and "class" not in line}
    assert len(bars["c0"]) > 75
    assert abs(bars["c0"].count("█") - 2 * bars["c1"].count("█")) <= 1
    assert (bars["c2"].count("█"), bars["c2"].count("▒")) == (0, 1)  # one image has a bar
    assert "4,000 (c0) to 0 (c2) in train" in text


def test_of_a_thousand_classes_the_largest_and_the_smallest_are_shown() -> None:
    counts = tuple(range(1, 1001))

    text = page(made({"train": counts, "val": counts}))

    shown = [line.split()[0] for line in text.splitlines() if line.startswith("c")][1:]
    assert shown == [f"c{i}" for i in [*range(999, 979, -1), *range(19, -1, -1)]]
    assert "960 classes between" in text and "1000.0 to 1" in text


def test_sizes_are_told_by_area() -> None:
    found = made({"train": (5,), "val": (5,)}, sizes={(4, 4): 2, (9, 2): 1, (5, 5): 6, (50, 1): 1})

    assert "smallest 4 x 4, median 5 x 5, largest 50 x 1" in page(found)


def test_names_of_every_kind_are_one_line_in_their_columns() -> None:
    names = ("new\nline", "고양이", "\x1b[31mred", "bad \udcff byte", "x" * 300)
    found = made({"train": (1,) * 5, "val": (1,) * 5}, classes=names, source="a\nb")

    lines = page(found).splitlines()

    assert lines[0].startswith(r"a\nb: 10 images")
    text = "\n".join(lines)
    assert all(
        part in text for part in (r"new\nline", "고양이", r"\x1b[31mred", r"bad \udcff byte")
    )
    assert "x" * 33 not in text and "\x1b" not in text
    text.encode()


def test_long_lists_are_cut_and_counted() -> None:
    bad = tuple(BadFile(f"{i}.jpg", "why\nnot") for i in range(13))

    text = page(made({"train": (500,), "val": (500,)}, bad=bad))

    assert "13 images cannot be read (1.30%)" in text
    assert "  9.jpg: why\\nnot\n  and 3 more (--json lists all)" in text
    assert "10.jpg" not in text


def test_notes_stand_at_the_head_of_the_page() -> None:
    text = page(made({"train": (1,), "val": (1,)}), ["passed over: 3 hidden"])

    assert text.splitlines()[1] == "passed over: 3 hidden"


def test_a_leak_is_a_warning_that_says_what_to_do(tmp_path: Path) -> None:
    same = {f"validation/dog/odd {i}.jpg": photo(i) for i in range(2)}

    text = page(look_over(pets(tmp_path, same)))

    assert "WARNING: 2 leaks from train to val" in text and "Remove all but" in text
    assert "train/cat/0.jpg (cat) = validation/dog/odd 0.jpg (dog)" in text
    assert "WARNING: 2 files in more than one class" in text
    assert "on the same side" not in text
