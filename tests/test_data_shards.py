import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_sets import greys, listing, pack, picture
from vitrail.data.shards import _cache_file, shard_index
from vitrail.data.sources import open_data
from vitrail.data.storage import read_range
from vitrail.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def samples(first: int, count: int) -> dict[str, bytes]:
    files = {}
    for i in range(first, first + count):
        files |= {f"{i:04d}.png": picture(i), f"{i:04d}.cls": str(i % 2).encode()}
    return files


def shards(root: Path, count: int = 3, before: str = "") -> str:
    for i in range(count):
        pack(root / f"{before}{i:03d}.tar", samples(4 * i, 4))
    return str(root / f"{before}{{000..{count - 1:03d}}}.tar")


@pytest.mark.parametrize("form", ["braces", "folder"])
def test_shards_are_one_set_read_in_any_order(tmp_path: Path, form: str) -> None:
    address = shards(tmp_path / "shards")

    found = open_data(address if form == "braces" else str(tmp_path / "shards"))

    together = {**greys(found.held_out), **greys(found.train)}
    assert together == {f"{i // 4:03d}.tar/{i:04d}.png": i for i in range(12)}
    assert found.train.classes == ("0", "1")
    assert all(name[-5] in "02468" for name, c in listing(found.train).items() if c == "0")


def test_class_names_stand_in_classes_txt(tmp_path: Path) -> None:
    address = shards(tmp_path)
    (tmp_path / "classes.txt").write_text("even\nodd\n")

    assert open_data(address).train.classes == ("even", "odd")


def test_shards_whose_names_begin_with_a_split_are_that_split(tmp_path: Path) -> None:
    shards(tmp_path, 2, "train-")
    shards(tmp_path, 1, "val-")

    found = open_data(str(tmp_path))

    assert (len(found.train), len(found.held_out)) == (8, 4)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    address = shards(tmp_path)
    (tmp_path / "001.tar").unlink()

    with pytest.raises(DataError, match=r"1 of the 3 .*001\.tar"):
        open_data(address)


@pytest.mark.parametrize(
    ("more", "telling"),
    [
        ({"9.png": picture()}, r"9\.png.* no label"),
        ({"9.cls": b"1"}, r"9\.cls.* no image"),
        ({"9.png": picture(), "9.cls": b" "}, "is empty"),
        ({"9.png": picture(), "9.jpg": picture(), "9.cls": b"1"}, "two of"),
        ({"9.png": picture(), "9.cls": b"\xff"}, "no text"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(
    tmp_path: Path, more: dict[str, bytes], telling: str
) -> None:
    pack(tmp_path / "a.tar", {**samples(0, 4), **more})

    with pytest.raises(DataError, match=telling):
        open_data(str(tmp_path / "a.tar"))


def test_an_index_is_read_from_the_cache_and_leaves_the_data_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = shards(tmp_path)
    first = open_data(address)
    monkeypatch.setattr("vitrail.data.shards.tar_index", None)

    again = open_data(address)

    assert again.digest == first.digest and greys(again.train) == greys(first.train)
    assert sorted(os.listdir(tmp_path)) == ["000.tar", "001.tar", "002.tar"]


def test_a_shard_that_changed_is_indexed_anew(tmp_path: Path) -> None:
    address = shards(tmp_path)
    stamp = os.stat(tmp_path / "001.tar")
    before = open_data(address).digest
    pack(tmp_path / "001.tar", dict(reversed(samples(104, 4).items())))
    os.utime(tmp_path / "001.tar", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    after = open_data(address)

    assert os.stat(tmp_path / "001.tar").st_size == stamp.st_size
    assert after.digest != before
    assert {*greys(after.train).values(), *greys(after.held_out).values()} >= {104, 105, 106, 107}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04nonsense", b"\x93NUMPY"])
def test_a_broken_cache_is_made_anew(tmp_path: Path, content: bytes) -> None:
    address = shards(tmp_path)
    wanted = open_data(address).digest
    for file in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.npz"):
        file.write_bytes(content)

    assert open_data(address).digest == wanted


def test_a_full_disk_keeps_no_part_of_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(pack(tmp_path / "0.tar", samples(0, 3)))

    def full(part: Path, data: bytes) -> int:
        part.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    assert len(shard_index(path).labels) == 3
    assert not [file for file in _cache_file(path).parent.rglob("*")]


def test_a_cache_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    assert len(open_data(shards(tmp_path / "shards")).train) == 9


@given(
    labels=st.lists(st.text("abc01", min_size=1, max_size=5), max_size=12),
    swapped=st.booleans(),
)
def test_an_index_finds_every_sample(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], swapped: bool
) -> None:
    files = {}
    for i, label in enumerate(labels):
        both = [(f"x/{i}.png", picture(i)), (f"x/{i}.cls", label.encode())]
        files |= dict(reversed(both) if swapped else both)
    path = str(pack(tmp_path_factory.mktemp("shards") / "a.tar", files))

    for shard in (shard_index(path), shard_index(path)):  # the second time from the cache
        assert shard.labels == labels
        for i in range(len(labels)):
            data = read_range(path, int(shard.starts[i]), int(shard.lengths[i]))
            assert data == files[shard.names[i]] == picture(i)
