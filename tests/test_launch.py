"""`--processes N`: the command that starts processes, watches them, and starts them again."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rank_runs
from rank_runs import LONG, SHARED, trained
from ranks import Nursery, descendants, started, values
from runs import assert_equal_runs, status, write_photos
from vitrail.cli import main
from vitrail.errors import ConfigError
from vitrail.training import checkpoint, launch
from vitrail.training.launch import End
from vitrail.training.recipe import from_toml, to_toml
from vitrail.training.world import World

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells which there are")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))
    Path("long.toml").write_text(to_toml(LONG))
    Path("tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


def command(out: str, *more: str) -> list[str]:
    words = "-W error -m vitrail.cli train photos --recipe long.toml --processes 2"
    return [sys.executable, *words.split(), "--out", out, *more]


def wait_for_rows(out: str, count: int) -> None:
    metrics, end = Path(out, "metrics.jsonl"), time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < count:
        assert time.monotonic() < end, "no row was written"
        time.sleep(0.02)


def wait_for_checkpoint(out: str) -> None:
    """Wait for something to go on from: a run that is killed sooner begins anew, its log too."""
    end = time.monotonic() + 120
    while not list(Path(out, "checkpoints").glob("step-*")):
        assert time.monotonic() < end, "no checkpoint was written"
        time.sleep(0.02)


def assert_gone(pids: list[int]) -> None:
    """No process is left: gone, or dead and not yet waited for by the first process there is."""
    end = time.monotonic() + 5
    for pid in pids:
        state = Path(f"/proc/{pid}/status")
        while state.exists() and "Z (zombie)" not in state.read_text():
            assert time.monotonic() < end, f"process {pid} is left"
            time.sleep(0.05)


# Real processes: one start each for what only they can show.


@pytest.mark.slow
@on_linux
@pytest.mark.usefixtures("photos")
def test_a_killed_process_is_started_again_and_the_end_is_the_same(nursery: Nursery) -> None:
    with started([command("killed", "--max-restarts", "1", "--json")]) as (launcher,):
        wait_for_checkpoint("killed")
        children = descendants(launcher.pid)
        os.kill(children[1], signal.SIGKILL)
        values(nursery.take(2, trained, LONG, "whole", seconds=120))
        printed, errors = launcher.communicate(timeout=180)

    assert launcher.returncode == 0, errors
    assert "process 1 of 2 was ended by SIGKILL; all start again (1 of 1)" in errors
    log = Path("killed/log.txt").read_text()
    assert log.count("starts at step") == 2 and "starts at step 0 of" in log  # the kill was one
    assert json.loads(printed)["status"] == "finished"  # one document
    assert_gone(children)
    assert_equal_runs("killed", "whole")
    given = json.loads(Path("killed/environment.json").read_text())["command"]
    assert given[1:] == command("killed", "--max-restarts", "1", "--json")[5:]


@pytest.mark.slow
@on_linux
@pytest.mark.usefixtures("photos")
def test_of_two_commands_at_once_one_is_killed_and_one_gets_sigterm_everywhere() -> None:
    with started([command("killed"), command("run", "--max-restarts", "1")]) as (killed, other):
        wait_for_rows("killed", 1)
        children = descendants(killed.pid)
        killed.kill()
        killed.wait(10)
        assert len(children) == 2
        assert_gone(children)
        # SLURM, systemd and containers signal every process: the launcher passes on what all have.
        wait_for_rows("run", 2)
        children = descendants(other.pid)
        for pid in (*children, other.pid):
            os.kill(pid, signal.SIGTERM)
        _, errors = other.communicate(timeout=60)

    assert (other.returncode, status("run")) == (143, "interrupted")
    assert len(children) == 2 and "Traceback" not in errors
    assert errors.count("this goes on:") == 1 and "--processes 2" in errors
    done = json.loads(Path("run/summary.json").read_text())["step"]
    assert max(checkpoint.steps(Path("run/checkpoints"))) == done
    assert_gone(children)
    left = [path.name for path in Path("tmp").iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor")]  # a cache of torch


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_an_error_is_told_once_with_its_code_and_not_tried_again() -> None:
    for file in Path("photos/dark").iterdir():
        file.write_bytes(b"no image")

    with started([command("run", "--max-restarts", "1")]) as (launcher,):
        _, errors = launcher.communicate(timeout=120)

    assert launcher.returncode == 2
    assert errors.count("files cannot be read") == 1 and "Traceback" not in errors
    assert (status("run"), Path("run/log.txt").read_text().count("starts at")) == ("failed", 1)


# What the launcher makes of how a start ended.


@pytest.mark.parametrize(
    ("ends", "restarts", "code", "told"),
    [
        ([End(0)], 3, 0, []),
        ([End(-9, 1), End(0)], 1, 0, ["process 1 of 2 was ended by SIGKILL; all start again"]),
        ([End(1, 1), End(-6), End(0)], 2, 0, ["(1 of 2)", "process 0 of 2 was ended by SIGABRT"]),
        ([End(-9, 1), End(-9, 1)], 1, 1, ["(1 of 1)", "the same command goes on from the last"]),
        ([End(1, 1)], 0, 1, []),
        ([End(4)], 3, 4, []),
        ([End(143)], 3, 143, []),
        ([End(130, is_asked=True)], 3, 130, []),
    ],
)
def test_what_a_new_start_may_cure_is_started_again(
    ends: list[End],
    restarts: int,
    code: int,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = [*ends]
    monkeypatch.setattr(launch, "_run", lambda *_: left.pop(0))

    assert (launch._watched([], 2, restarts), left) == (code, [])

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told)
    assert all(part in line for part, line in zip(told, lines, strict=True))


@pytest.mark.usefixtures("photos")
def test_the_processes_get_the_recipe_and_the_words_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = dict(os.environ)
    seen: dict[str, str] = {}

    def run(words: list[str], processes: int) -> End:
        seen.update(os.environ)
        assert processes == 2 and words[-2:] == ["--out", "run"]
        return End(0)

    monkeypatch.setattr(launch, "_run", run)
    monkeypatch.setattr(sys, "argv", ["vitrail", "train", "photos", "--processes", "2"])
    words = ["train", "photos", "--recipe", "long.toml", "--out", "run", "--processes", "2"]

    assert main([*words, "--seed", "7"]) == 0

    handed = from_toml(seen["VITRAIL_RECIPE"])
    assert (handed.train.seed, handed.train.epochs) == (7, LONG.train.epochs)
    assert json.loads(seen["VITRAIL_COMMAND"]) == sys.argv
    assert dict(os.environ) == before
    assert not Path("run").exists()


# What is told before a process is started.


@pytest.mark.parametrize(
    ("processes", "restarts", "told"),
    [
        (0, 0, "--processes is 0; it should be 1 or more"),
        (-1, 0, "--processes is -1; it should be 1 or more"),
        (2, -1, "--max-restarts is -1"),
        (1, 3, "nothing watches over a single process"),
        (3, 0, "batch_size 8 does not split over 3 processes in whole blocks"),
    ],
)
def test_a_mistake_is_told_before_a_process_is_started(
    processes: int, restarts: int, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        launch.check(SHARED, processes, restarts)


@pytest.mark.usefixtures("photos")
def test_more_processes_than_cores_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_cores", lambda: 2)
    words = ["train", "photos", "--recipe", "long.toml", "--batch-size", "198"]

    code = main([*words, "--processes", "99", "--device", "cpu"])

    assert (code, Path("runs").exists()) == (2, False)
    assert "--processes is 99, but this machine has 2 cores" in capsys.readouterr().err


@pytest.mark.usefixtures("photos")
def test_fewer_gpus_than_processes_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where CUDA_VISIBLE_DEVICES names one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["train", "photos", "--recipe", "long.toml", "--processes", "2", "--device", "cuda"]

    code = main(words)

    assert (code, Path("runs").exists()) == (2, False)
    assert "finds 1 GPUs" in (told := capsys.readouterr().err) and "at most 1 processes" in told


def test_processes_on_apple_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    with pytest.raises(ConfigError, match="the device is mps"):
        World(0, 2, 0).device("mps")


def test_processes_within_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match="torchrun has started this process"):
        launch.check(SHARED, 2, 0)


@pytest.mark.usefixtures("photos")
def test_one_process_is_a_run_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(launch, "launch", started)
    Path("short.toml").write_text(to_toml(rank_runs.GRADIENT))
    words = ["train", "photos", "--recipe", "short.toml", "--out", "run", "--processes", "1"]

    assert main(words) == 0
    assert status("run") == "finished"
