"""Threads that read: they end with their user, and what hangs is named."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_sets import picture
from vitrail.data.loader import Loader
from vitrail.data.preprocess import Preprocess
from vitrail.data.readers import Memory
from vitrail.data.sources import open_data
from vitrail.data.storage import read, read_range
from vitrail.errors import ConfigError, DataError
from vitrail.training.recipe import Data

GREY = Preprocess(size=(4, 4), mean=(0.5,), std=(0.5,))


class Hanging:
    """Images of which one never comes: not until it is let go."""

    classes = ("a", "b")

    def __init__(self, count: int = 12, at: int = 5) -> None:
        self.count, self.at, self.free = count, at, threading.Event()
        self.reached = threading.Event()

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        if index == self.at:
            self.reached.set()
            self.free.wait()
        return picture(index)

    def label(self, index: int) -> int:
        return index % 2

    def name(self, index: int) -> str:
        return f"image-{index}.png"


def decoding() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("decode")]


def loader(source: Any, **how: Any) -> Loader:
    return Loader(source, GREY, 4, **how)


def run(code: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **how,
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_a_read_that_hangs_is_named_within_the_time_limit(threads: int) -> None:
    source = Hanging()

    with pytest.raises(DataError, match=r"image-5\.png") as caught:
        list(loader(source, threads=threads, timeout=0.3).once())

    assert source.reached.is_set()
    assert "0.3 s (data.timeout)" in str(caught.value)
    (left,) = decoding()  # nobody can call it back
    assert left.daemon
    source.free.set()
    left.join(10)
    assert not decoding()


def test_many_hanging_reads_are_left_as_soon_as_one() -> None:
    class AllHang(Hanging):
        def read(self, index: int) -> bytes:
            self.free.wait(60)
            return picture(index)

    source = AllHang()
    began = time.monotonic()

    with pytest.raises(DataError, match=r"no answer within 0\.2 s"):
        list(loader(source, threads=8, timeout=0.2).once())

    assert time.monotonic() - began < 6  # not two seconds for each of the threads
    left = decoding()
    source.free.set()
    assert len(left) == 8
    for thread in left:
        thread.join(10)


def test_a_slow_read_is_no_hanging_one() -> None:
    class Slow(Hanging):
        def read(self, index: int) -> bytes:
            time.sleep(0.02)
            return picture(index)

    batches = list(loader(Slow(40, at=-1), threads=1, timeout=0.4).once())

    assert sum(len(b.labels) for b in batches) == 40


def test_a_time_limit_is_one_that_the_clock_can_count() -> None:
    assert list(loader(Hanging(at=-1), timeout=Data(timeout=1e6).timeout).once())

    with pytest.raises(ConfigError, match=r"timeout is 1000000000000\.0; it should be above 0"):
        Data(timeout=1e12)


@pytest.mark.slow
def test_a_process_with_a_hanging_read_ends(tmp_path: Path) -> None:
    (tmp_path / "case.py").write_text(
        "from test_readers import *\nlist(loader(Hanging(), timeout=0.2).once())\n"
    )

    done = run(f"exec(open({str(tmp_path / 'case.py')!r}).read())", cwd=Path(__file__).parent)

    assert done.returncode == 1 and "image-5.png" in done.stderr


@pytest.mark.slow
def test_time_in_which_the_process_was_stopped_is_nobody_s_fault(tmp_path: Path) -> None:
    code = (
        "from test_readers import *\n"
        "class Slow(Hanging):\n"
        "    def read(self, index):\n"
        "        print(index, flush=True); time.sleep(0.3); return picture(index)\n"
        "list(loader(Slow(6, at=-1), threads=1, timeout=1.0).once())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parent
    )
    assert child.stdout is not None
    child.stdout.readline()  # it is in its first read

    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(child.pid, signal.SIGCONT)

    assert child.wait(60) == 0
    child.stdout.close()


@pytest.mark.parametrize("error", [RuntimeError("a defect"), MemoryError()])
def test_what_is_no_fault_of_a_file_is_raised_where_the_batches_are_used(error: Exception) -> None:
    class Broken(Hanging):
        def read(self, index: int) -> bytes:
            if index == 5:
                raise error
            return picture(index)

    with pytest.raises(type(error)):
        list(loader(Broken(at=-1)).once())

    assert not decoding()


def test_ctrl_c_leaves_no_thread() -> None:
    with pytest.raises(KeyboardInterrupt):
        for _ in loader(Hanging(100, at=-1), threads=4).once():
            assert decoding()
            raise KeyboardInterrupt

    assert not decoding()


def test_ctrl_c_while_a_read_hangs_comes_through() -> None:
    source = Hanging(at=0)

    def press() -> None:
        source.reached.wait()
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        list(loader(source, timeout=600).once())
    pressing.join()
    source.free.set()


def fifo(folder: Path, name: str = "hangs.png") -> Path:
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for i in range(4):
            (folder / label / f"{i}.png").write_bytes(picture(i))
    os.mkfifo(folder / "a" / name)
    return folder / "a" / name


def test_a_pipe_among_the_images_is_named_before_anything_is_read(tmp_path: Path) -> None:
    pipe = fifo(tmp_path / "photos")

    with pytest.raises(DataError, match=r"hangs\.png.* is a pipe"):
        open_data(str(tmp_path / "photos"))

    assert pipe.is_fifo()


def test_a_pipe_that_a_table_lists_is_a_bad_file(tmp_path: Path) -> None:
    fifo(tmp_path / "photos")
    rows = [f"photos/{c}/{i}.png,{c}" for c in "ab" for i in range(4)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join([*rows, "photos/a/hangs.png,a"]))
    splits = open_data(str(tmp_path / "list.csv"))
    readers = [loader(part, max_bad_share=1.0) for part in (splits.train, splits.held_out)]

    for reader in readers:
        list(reader.once())

    (bad,) = [bad for reader in readers for bad in reader.bad.values()]
    assert bad.path == "photos/a/hangs.png" and "is a pipe" in bad.reason


def test_a_link_to_a_device_is_not_read(tmp_path: Path) -> None:
    link = tmp_path / "endless.png"
    link.symlink_to("/dev/zero")

    for reading in (lambda: read(str(link)), lambda: read_range(str(link), 0, 10)):
        with pytest.raises(DataError, match="not a file"):
            reading()


def test_a_folder_in_place_of_a_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read(str(tmp_path))


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    made: list[np.ndarray] = []

    def make() -> np.ndarray:
        made.append(np.zeros(4, np.uint8))
        return made[-1]

    memory = Memory(make)
    first, second = memory.take(), memory.take()
    part = torch.from_numpy(first)[1:3]
    del first
    third = memory.take()  # `part` still looks at the first
    assert len(made) == 3
    del part
    fourth = memory.take()

    assert len(made) == 3 and fourth.base is made[0]
    assert {id(a.base) for a in (second, third, fourth)} == {id(m) for m in made}


def test_batches_that_are_held_keep_their_pixels() -> None:
    source = Hanging(40, at=-1)

    held = list(loader(source).once())

    assert [int(i) for b in held for i in b.images[:, 0, 0, 0]] == list(range(40))
