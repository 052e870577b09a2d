"""What lies together on slow storage is fetched together, and shuffled near itself."""

import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from data_sets import grey_of, pack, picture
from vitrail.data import layout as layouts
from vitrail.data import members
from vitrail.data.layout import Kept, layout
from vitrail.data.listing import Images
from vitrail.data.loader import Loader
from vitrail.data.preprocess import Preprocess
from vitrail.data.sources import open_data

GREY = Preprocess(size=(4, 4), mean=(0.5,), std=(0.5,))
SHARDS, EACH = 6, 20


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the address of shards in a file system that is not local."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    for s in range(SHARDS):
        files: dict[str, bytes] = {}
        for i in range(EACH * s, EACH * (s + 1)):
            files |= {f"{i:03d}.png": picture(i), f"{i:03d}.cls": str(i % 2).encode()}
        file = pack(tmp_path / f"{s}.tar", files)
        system.pipe(f"/sets/{tmp_path.name}/{s}.tar", file.read_bytes())
    return f"memory://sets/{tmp_path.name}/{{0..{SHARDS - 1}}}.tar"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the requests for members, by their lengths."""
    asked: list[int] = []
    read_range = members.read_range

    def counting(path: str, start: int, length: int) -> bytes:
        asked.append(length)
        return read_range(path, start, length)

    monkeypatch.setattr(members, "read_range", counting)
    return asked


def test_a_remote_shard_is_fetched_in_runs_and_not_image_by_image(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = open_data(remote)
    asked = counted(monkeypatch)

    for part in (found.train, found.held_out):
        for i in range(len(part)):
            assert grey_of(part.read(i)) == int(part.name(i)[-7:-4])

    assert len(asked) == SHARDS  # each of them is shorter than a run


def test_a_run_ends_where_the_next_would_make_it_too_long(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "RUN_BYTES", 8192)
    found = open_data(remote)
    asked = counted(monkeypatch)

    for i in range(len(found.train)):
        assert grey_of(found.train.read(i)) == int(found.train.name(i)[-7:-4])

    assert SHARDS < len(asked) < SHARDS * EACH / 2
    assert max(asked) <= 8192 + 1024


@pytest.mark.parametrize("kept", ["all of it", "a part"])
def test_slow_storage_is_shuffled_by_groups_where_it_does_not_fit_in_memory(
    remote: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept == "a part":
        monkeypatch.setattr(layouts, "KEPT_BYTES", 3 * EACH * 1024 * 2)
        monkeypatch.setattr("vitrail.data.loader.KEPT_BYTES", 0)  # decoded images
    train = open_data(remote).train

    loader = Loader(train, GREY, 8, max_bad_share=0)
    asked = counted(monkeypatch)
    seen = [int(i) for batch in loader.epoch(0, 0) for i in batch.places]

    assert len(set(seen)) == len(seen) == loader.steps() * 8
    assert (loader.groups is not None) == (kept == "a part")
    # With two threads some run may be fetched twice; image by image it would be 96 times.
    assert len(asked) <= SHARDS + 4


def test_what_is_asked_for_is_done(remote: str) -> None:
    train = open_data(remote).train

    assert Loader(train, GREY, 8, shuffle="grouped").groups is not None
    assert Loader(train, GREY, 8, shuffle="whole").groups is None
    assert Loader(train, GREY, 8).groups is None  # small: it stays in memory


def test_a_local_tar_is_read_image_by_image_and_has_groups_for_who_asks(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": picture(i) for c in "ab" for i in range(10)}
    train = open_data(str(pack(tmp_path / "set.tar", files))).train

    assert isinstance(train, Images) and train.layout is not None
    assert not train.layout.slow and len(train.layout.groups) == len(files)
    assert Loader(train, GREY, 4, shuffle="grouped").groups is not None


def test_a_parquet_file_is_slow_where_it_does_not_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    images = [{"bytes": picture(i), "path": None} for i in range(100)]
    table = pa.table({"image": images, "label": [i % 2 for i in range(100)]})
    parquet.write_table(table, tmp_path / "set.parquet", row_group_size=10)
    whole = open_data(str(tmp_path / "set.parquet")).train
    monkeypatch.setattr(layouts, "KEPT_BYTES", 3000)
    large: Any = open_data(str(tmp_path / "set.parquet")).train

    assert Loader(whole, GREY, 8).groups is None
    groups = Loader(large, GREY, 8).groups
    assert groups is not None and len(groups.groups) == 80
    assert sorted(set(groups.groups.tolist())) == list(range(10))


def test_the_window_is_as_many_groups_as_the_memory_holds() -> None:
    groups = np.repeat(np.arange(100), 10)

    def window(each: int) -> int:
        return layout(groups, np.full(100, each), slow=True).window

    assert window(1) == 80
    assert window(layouts.KEPT_BYTES // 4) == 20
    assert window(2 * layouts.KEPT_BYTES) == 10


def test_a_piece_is_read_once_by_whoever_asks_first() -> None:
    reads: list[int] = []
    gate = threading.Barrier(4)

    def slow(number: int) -> bytes:
        reads.append(number)
        return bytes(number)

    kept = Kept(slow, len)

    def ask() -> None:
        gate.wait()
        assert kept[7] == bytes(7)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert reads == [7] and not kept.reading


def test_a_piece_that_two_read_because_it_was_pushed_out_meanwhile_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layouts, "KEPT_BYTES", 10)
    reads: list[int] = []

    def read(number: int) -> bytes:
        reads.append(number)
        if reads == [0]:  # in the middle of it, others forget that 0 is being read, and read it
            del kept.reading[0]
            assert kept[0] == bytes(10)
        return bytes(10)

    kept = Kept(read, len)

    assert kept[0] == bytes(10)
    assert reads == [0, 0] and kept.bytes == 10
    assert kept[1] == bytes(10) and kept.bytes == 10 and list(kept.pieces) == [1]


def test_the_pieces_used_last_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "KEPT_BYTES", 30)
    reads: list[int] = []
    kept = Kept(lambda n: reads.append(n) or bytes(10), len)

    for number in (1, 2, 3, 1, 4, 1, 2):
        assert len(kept[number]) == 10

    assert reads == [1, 2, 3, 4, 2]
    assert kept.bytes == 30 and list(kept.pieces) == [4, 1, 2]


def test_a_piece_that_failed_is_tried_again() -> None:
    answers = iter([OSError("gone"), b"here"])

    def read(_number: int) -> bytes:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    kept = Kept(read, len)

    with pytest.raises(OSError, match="gone"):
        kept[0]
    assert kept[0] == b"here"
