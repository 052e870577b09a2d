"""What words name: files, folders, patterns, data sets; and how they are read as one stream."""

import os
import threading
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch

from data_sets import grey_of, pack, picture, pictures
from vitrail.data import stream
from vitrail.data.inputs import Item, check, file_item, inputs
from vitrail.data.preprocess import Preprocess
from vitrail.data.stream import decoded
from vitrail.errors import ConfigError, DataError

GREY = Preprocess(size=(4, 4), mean=(0.5,), std=(0.5,), interpolation="bilinear")
ODD = ["b c.png", "a/제비 🐈.PNG", "a/new\nline.png", "a-b/x,y;z.png", "a/[1].png", "-b.png"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(root: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def names(*words: str) -> list[str]:
    check(words)
    return [item.name for item in inputs(words)]


def greys(*words: str, **how: Any) -> list[int]:
    """Open every image, and give its grey."""
    return [int(GREY.pixels(item.open())[0, 0, 0]) for item in inputs(words, **how)]


def test_a_folder_is_the_images_below_it_by_name() -> None:
    hidden = {".a.png": b"", ".d/a.png": b"", "__MACOSX/a.png": b"", "a/notes.txt": b""}
    write("photos", pictures(*ODD) | hidden)

    found = names("photos")

    assert found == sorted(f"photos/{name}" for name in ODD)
    assert names("photos/", "photos/b c.png") == [*found, "photos/b c.png"]
    assert sorted(greys("photos")) == list(range(len(ODD)))


def test_a_folder_below_a_hidden_one_is_looked_into_all_the_same() -> None:
    write(".cache/photos", pictures("a.png"))

    assert names(".cache/photos") == [".cache/photos/a.png"]


def test_a_file_keeps_its_place_whether_or_not_it_is_there() -> None:
    write(".", pictures("a.png"))

    assert names("gone.png", "a.png", "a" * 300, "a\0b") == ["gone.png", "a.png", "a" * 300, "a\0b"]


def test_a_pattern_is_what_it_matches_and_a_name_like_one_is_itself() -> None:
    write(".", pictures("p/b.png", "p/a.png", "p/q/c.png", "p/[1].png"))

    assert names("p/?.png") == ["p/a.png", "p/b.png"]
    assert names("p/**/*.png") == ["p/[1].png", "p/a.png", "p/b.png", "p/q/c.png"]
    assert names("p/*") == ["p/[1].png", "p/a.png", "p/b.png", "p/q/c.png"]  # of a folder, all
    assert names("p/[1].png") == ["p/[1].png"]


def test_symbolic_links_in_a_circle_end() -> None:
    write(".", pictures("a/1.png", "b/2.png"))
    os.symlink("../b", "a/to-b")
    os.symlink("../a", "b/to-a")

    assert names("a") == ["a/1.png", "a/to-b/2.png"]


def test_data_sets_need_no_labels() -> None:
    from pyarrow import parquet, table

    pack(Path("loose.tar"), {**pictures("a.png", "d/e/b.png"), "notes.txt": b""})
    pack(Path("shards/0.tar"), pictures("x.png"))
    pack(Path("shards/1.tar"), pictures("y.png", "z.png"))
    rows = {"image": [{"bytes": picture(7), "path": None}, {"bytes": picture(9), "path": None}]}
    parquet.write_table(table(rows), "rows.parquet")
    write(".", pictures("a.png", "b.png") | {"list.csv": b"file\nb.png\na.png\n"})

    assert names("loose.tar") == ["loose.tar/a.png", "loose.tar/d/e/b.png"]
    assert names("shards") == ["shards/0.tar/x.png", "shards/1.tar/y.png", "shards/1.tar/z.png"]
    assert names("shards/{0..1}.tar", "loose.tar")[2:] == [
        "shards/1.tar/z.png",
        *names("loose.tar"),
    ]
    assert names("rows.parquet") == ["rows.parquet/0.png", "rows.parquet/1.png"]
    assert names("list.csv") == ["b.png", "a.png"]
    assert greys("loose.tar", "shards", "rows.parquet", "list.csv") == [0, 1, 0, 0, 1, 7, 9, 1, 0]
    assert greys("list.csv", image_column="file") == [1, 0]


def test_the_digits_are_images_in_their_own_order() -> None:
    found = list(islice(inputs(["digits"]), 3))

    assert [item.name for item in found] == [f"digit-000{i}-is-{i}.png" for i in range(3)]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("empty", 'folder "empty" holds no image'),
        ("*.jpg", 'no file "\\*.jpg"'),
        ("gone.tar", 'no data at "gone.tar"'),
        ("packed.zip", "compressed"),
        ("hf:nothing", "OWNER/NAME"),
    ],
)
def test_words_without_an_image_are_refused_at_once(word: str, told: str) -> None:
    write(".", {"empty/notes.txt": b"", "packed.zip": b"PK"})

    with pytest.raises(DataError, match=told):
        check(["a.png", word])
    with pytest.raises(ConfigError, match="name files"):
        check([])


def test_a_set_whose_images_are_none_is_refused_when_it_is_read() -> None:
    pack(Path("empty.tar"), {"notes.txt": b""})

    with pytest.raises(DataError, match='"empty\\.tar" holds no images'):
        names("empty.tar")
    with pytest.raises(DataError, match="no column"):
        list(inputs(["digits"], "image"))


def items(count: int) -> Any:
    for grey in range(count):
        yield Item(f"{grey}", lambda grey=grey: _opened(picture(grey % 200)))


def _opened(data: bytes) -> Any:
    from vitrail.data.decode import open_image

    return open_image(data)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_stream_keeps_the_order_and_the_pixels(threads: int, batch_size: int) -> None:
    batches = list(decoded(items(23), GREY, batch_size, threads=threads))

    assert [item.name for batch in batches for item in batch.items] == [str(i) for i in range(23)]
    assert torch.cat([s.images for b in batches for s in b.stacks])[:, 0, 0, 0].tolist() == [
        *range(23)
    ]
    assert [len(batch.items) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


def test_bad_files_of_every_kind_have_a_reason_in_their_place() -> None:
    os.mkfifo("pipe.png")
    good = picture(3)
    write(
        ".",
        {
            "good.png": good,
            "empty.png": b"",
            "page.jpg": b"<html>",
            "cut.png": good[:-20],
            "text.png": b"hello",
            "folder.png/a.txt": b"",
        },
    )
    words = ["good.png", "empty.png", "page.jpg", "cut.png", "text.png", "folder.png", "gone.png"]
    words += ["pipe.png", "good.png"]

    batches = list(decoded(map(file_item, words), GREY, 4))

    found = [error for batch in batches for error in batch.errors]
    told = ["", "empty", "HTML", "decoded", "no image", "directory", "No such", "a pipe", ""]
    missing = [(part, e) for part, e in zip(told, found, strict=True) if part not in (e or "")]
    assert missing == []
    assert [error is None for error in found] == [not part for part in told]
    assert [[len(s.images) for s in batch.stacks] for batch in batches] == [[1], [], [1]]
    assert grey_of(good) == 3
    assert all((stack.images == 3).all() for batch in batches for stack in batch.stacks)


def test_four_batches_at_most_live_at_once_however_long_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ref[Any]] = []

    class Counted(stream.Work):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(ref(self))

    monkeypatch.setattr(stream, "Work", Counted)
    most, count = 0, 0
    for batch in decoded(items(400), GREY, 4, threads=2):
        count += len(batch.items)
        most = max(most, sum(alive() is not None for alive in made))

    assert (count, len(made)) == (400, 101)
    assert most <= 4


def test_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh: list[int] = []

    def counted(*given: Any) -> np.ndarray:
        fresh.append(1)
        return np.zeros(*given)

    monkeypatch.setattr(stream.np, "empty", counted)
    for _ in decoded(items(400), GREY, 4):
        pass

    assert len(fresh) <= 6


def test_no_thread_outlives_a_stream_that_is_left() -> None:
    found = decoded(items(100), GREY, 4, threads=3)
    next(found)

    found.close()  # type: ignore[attr-defined]

    assert not [t.name for t in threading.enumerate() if t.name.startswith("decode")]


def test_an_error_of_the_list_itself_reaches_its_user() -> None:
    def broken() -> Any:
        yield from items(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(decoded(broken(), GREY, 2))
