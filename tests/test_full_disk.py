"""A disk that is full, read-only or too small: told with its numbers, and what is there stays."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runs import RECIPE, assert_equal_runs, never_stopped, status, write_photos
from vitrail.cli import main
from vitrail.errors import OutputError
from vitrail.training import checkpoint
from vitrail.training.learner import Learner
from vitrail.training.loop import train

# 9 MB of weights.
LARGE = replace(RECIPE, model=RECIPE.model.replace(width=256, depth=3))


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `RECIPE` that was never stopped; tests read it and change nothing."""
    return never_stopped(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_too_small_is_told_before_the_first_step(small: Path) -> None:
    with pytest.raises(OutputError) as caught:
        train(LARGE, small / "run")

    told = str(caught.value)
    assert str(small / "run") in told
    assert "bytes are needed" in told and "bytes are free" in told
    assert not [path for path in small.rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_keeps_what_is_there_and_the_run_goes_on_later(
    small: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, filler = Learner.step, small / "filler"

    def filling(self: Learner, batch: Any, number: int) -> None:
        step(self, batch, number)
        if number == 8:
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    with monkeypatch.context() as patch, pytest.raises(OutputError) as caught:
        patch.setattr(Learner, "step", filling)
        train(RECIPE, small / "run")

    assert str(small / "run") in str(caught.value) and " bytes are free" in str(caught.value)
    found, broken = checkpoint.newest(small / "run" / "checkpoints")
    assert found and (found.step, broken) == (5, {})
    assert not [path for path in small.rglob(".*")]
    filler.unlink()
    train(RECIPE, small / "run")
    assert_equal_runs(small / "run", whole)


def test_a_read_only_disk_is_told_before_the_first_step(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)

    codes = [main(["train", "photos", "--out", str(small / name)]) for name in ("run", "new")]

    assert codes == [5, 5]
    assert capsys.readouterr().err.count("read-only disk") == 2


def test_a_finished_run_on_a_read_only_disk_gives_its_summary(small: Path) -> None:
    first = train(RECIPE, small / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)

    assert train(RECIPE, small / "run").summary == first.summary


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For users who may not mount: a limit for the size of any file stands for the disk."""
    step, limits = Learner.step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Learner, batch: Any, number: int) -> None:
        step(self, batch, number)
        if number == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))

    try:
        with monkeypatch.context() as patch, pytest.raises(OutputError, match="too large"):
            patch.setattr(Learner, "step", limited)
            train(RECIPE, "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert status("run") == "failed"
    assert list(checkpoint.steps(Path("run/checkpoints"))) == [5]
    assert not [path for path in Path("run").rglob(".*")]
    train(RECIPE, "run")
    assert_equal_runs("run", whole)


def test_a_failed_run_of_no_room_writes_its_summary_where_it_can(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OutputError("no room for the checkpoint")

    monkeypatch.setattr(checkpoint, "write", full)

    with pytest.raises(OutputError, match="no room"):
        train(RECIPE, small / "run")

    assert status(small / "run") == "failed"
    assert os.listdir(small / "run" / "checkpoints") == []
