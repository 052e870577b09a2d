"""Several processes: the same run as one, the same twice, and one end for all of them."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import ranks
from runs import assert_equal_runs, rows, status, stopped, write_photos
from vitrail.errors import ConfigError
from vitrail.training import checkpoint, launch
from vitrail.training.joining import joined
from vitrail.training.loop import train
from vitrail.training.recipe import Parallel, Recipe, Train, to_toml
from vitrail.training.session import Session
from vitrail.training.world import World

# Muon makes its steps orthogonal in bfloat16: a last bit of a gradient may be 2^-9 of a step.
MUON = 2e-3


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of `ranks.py` on two processes, and those they are to equal on one."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_photos(Path("photos"))
        ranks.write_bad(Path("bad"))
        ranks.write_pretrained()
        for out, recipe in (("one", ranks.EQUAL), ("gradient-one", ranks.GRADIENT)):
            train(recipe, out)
        train(ranks.BAD, "bad-one")
        train(ranks.PROBE, "probe-one")
        stopped(3, "from-one", ranks.EQUAL)
        ranks.take_all(2)
        train(ranks.EQUAL, "to-one")
    return folder


def parts(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = checkpoint.newest(run / "checkpoints")[0]
    assert found is not None
    return found.parts


def farthest(one: Path, other: Path) -> float:
    """Give the largest difference between two runs' weights."""
    a, b = parts(one), parts(other)
    return max(float((a["model"][n] - b["model"][n]).abs().max()) for n in a["model"])


@pytest.mark.slow
def test_two_processes_twice_and_stopped_on_one_of_them_are_equal_to_the_bit(two: Path) -> None:
    assert_equal_runs(two / "again", two / "ddp")
    assert_equal_runs(two / "stopped", two / "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "-micro", "-fsdp", "-fsdp-micro"])
def test_the_gradient_of_two_processes_is_that_of_one(how: str, two: Path) -> None:
    assert farthest(two / f"gradient{how}", two / "gradient-one") < 1e-6
    moves = [rows(two / name)[0]["update_norm"] for name in (f"gradient{how}", "gradient-one")]
    assert moves[0] == pytest.approx(moves[1], rel=1e-5) and moves[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_files_that_cannot_be_read_count_as_nothing_on_any_process(how: str, two: Path) -> None:
    one, other = (json.loads((two / f"bad-{n}/summary.json").read_text()) for n in ("one", how))

    assert farthest(two / f"bad-{how}", two / "bad-one") < 5e-6  # four steps at a rate of 1
    assert sorted(b["path"] for b in one["bad"]) == sorted(b["path"] for b in other["bad"])
    assert len(one["bad"]) == 14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equal", "fsdp", "from-one", "to-one"])
def test_a_run_is_the_same_on_other_numbers_of_processes(name: str, two: Path) -> None:
    assert farthest(two / name, two / "one") < MUON
    for row, wanted in zip(rows(two / name), rows(two / "one"), strict=True):
        assert row["step"] == wanted["step"] and row["top1"] == wanted["top1"]
        assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "-fsdp"])
def test_a_head_alone_learns_the_same_on_two_processes(how: str, two: Path) -> None:
    assert farthest(two / f"probe{how}", two / "probe-one") < 5e-6  # six steps at a rate of 1


@pytest.mark.slow
def test_minutes_are_settled_by_a_trial_of_all_processes(two: Path) -> None:
    settled = json.loads((two / "timed/settled.json").read_text())
    summary = json.loads((two / "timed/summary.json").read_text())

    assert settled["micro_batch"] == 4 and settled["steps"] == summary["step"] == summary["steps"]
    assert summary["status"] == "finished"


@pytest.mark.slow
def test_an_evaluation_on_two_processes_is_that_of_one(two: Path) -> None:
    one, both = (
        json.loads((two / name / "summary.json").read_text())["evaluation"]
        for name in ("gradient-one", "gradient")
    )

    counts = ("images", "failed", "top1", "top1_interval", "top5", "per_class", "confusion")
    assert [one[name] for name in counts] == [both[name] for name in counts]
    assert both["loss"] == pytest.approx(one["loss"], abs=1e-6)


@pytest.mark.slow
def test_ddp_and_fsdp_go_on_with_each_others_checkpoints(two: Path) -> None:
    # One went from FSDP to DDP, the other from DDP to FSDP and to pieces, which reading joins.
    assert farthest(two / "fsdp-adamw", two / "ddp-adamw") < 1e-6
    pieces = {p.name for p in (two / "ddp-adamw/checkpoints/step-00000006").iterdir()}
    assert {"model.0-of-2.safetensors", "model.1-of-2.safetensors"} <= pieces
    shapes = [{n: t.shape for n, t in parts(two / n)["optimizer"].items()} for n in NAMES]
    assert shapes[0] == shapes[1]


NAMES = ("fsdp-adamw", "ddp-adamw")


@pytest.mark.slow
def test_a_checkpoint_in_pieces_that_lacks_one_is_passed_over(two: Path, tmp_path: Path) -> None:
    whole = two / "ddp-adamw/checkpoints/step-00000006"
    beside = tmp_path / whole.name
    beside.mkdir()
    for file in whole.iterdir():
        (beside / file.name).write_bytes(file.read_bytes())
    index = json.loads((beside / "index.json").read_text())
    del index["sha256"]["model.1-of-2.safetensors"]
    (beside / "index.json").write_text(json.dumps(index))

    found, broken = checkpoint.newest(tmp_path)

    assert found is None and "index.json is not as it was written" in broken[6]


@pytest.mark.slow
def test_three_processes_resume_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))

    ranks.take_all(3)

    assert_equal_runs("stopped", "ddp")


def test_each_image_is_read_once_an_epoch_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))
    from vitrail.data.sources import open_data
    from vitrail.training.run_folder import RunFolder

    data = open_data("photos", 0.2, 0)
    seen = []
    for rank in range(2):
        session = Session(ranks.SHARED, data, RunFolder(Path("run")))
        session.world = World(rank, 2, rank)
        loader = session._loader(data.train, 8, ranks.SHARED.augment)
        seen += [p for batch in loader.epoch(0, 0) for p in batch.places.tolist()]

    assert sorted(seen) == list(range(16))


# The command.


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))
    Path("long.toml").write_text(to_toml(ranks.LONG))


def command(out: str, *more: str) -> list[str]:
    words = "-W error -m vitrail.cli train photos --recipe long.toml --processes 2"
    return [sys.executable, *words.split(), "--out", out, *more]


def wait_for_rows(out: str, count: int) -> None:
    metrics, end = Path(out, "metrics.jsonl"), time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < count:
        assert time.monotonic() < end, "no row was written"
        time.sleep(0.02)


def assert_gone(pids: list[int]) -> None:
    """No process is left: gone, or dead and not yet waited for by the first process there is."""
    end = time.monotonic() + 5
    for pid in pids:
        state = Path(f"/proc/{pid}/status")
        while state.exists() and "Z (zombie)" not in state.read_text():
            assert time.monotonic() < end, f"process {pid} is left"
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="Linux tells which processes there are")
@pytest.mark.usefixtures("photos")
def test_a_killed_process_is_started_again_and_the_end_is_the_same(two: Path) -> None:
    with ranks.started([command("killed", "--max-restarts", "1")]) as (launcher,):
        wait_for_rows("killed", 3)
        children = ranks.descendants(launcher.pid)
        os.kill(children[1], signal.SIGKILL)
        _, errors = launcher.communicate(timeout=90)

    assert launcher.returncode == 0, errors
    log = Path("killed/log.txt").read_text()
    assert log.count("starts at step") == 2 and "starts at step 0 of" in log  # the kill was one
    assert_gone(children)
    assert_equal_runs("killed", two / "long")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="Linux tells which processes there are")
@pytest.mark.usefixtures("photos")
def test_sigterm_saves_and_ends_all_processes() -> None:
    with ranks.started([command("run")]) as (launcher,):
        wait_for_rows("run", 2)
        children = ranks.descendants(launcher.pid)
        began = time.monotonic()
        launcher.terminate()
        _, errors = launcher.communicate(timeout=30)

    assert time.monotonic() - began < 20
    assert (launcher.returncode, status("run")) == (143, "interrupted")
    assert len(children) == 2 and "Traceback" not in errors
    assert errors.count("this goes on:") == 1 and "--processes 2" in errors
    done = json.loads(Path("run/summary.json").read_text())["step"]
    assert max(checkpoint.steps(Path("run/checkpoints"))) == done
    assert_gone(children)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends them")
@pytest.mark.usefixtures("photos")
def test_processes_die_with_the_one_that_started_them() -> None:
    with ranks.started([command("run")]) as (launcher,):
        wait_for_rows("run", 1)
        children = ranks.descendants(launcher.pid)
        launcher.kill()
        launcher.wait(10)

        assert len(children) == 2
        assert_gone(children)


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_an_error_is_told_once_with_its_code_and_not_tried_again() -> None:
    for file in Path("photos/dark").iterdir():
        file.write_bytes(b"no image")

    with ranks.started([command("run", "--max-restarts", "1")]) as (launcher,):
        _, errors = launcher.communicate(timeout=60)

    assert launcher.returncode == 2
    assert errors.count("files cannot be read") == 1 and "Traceback" not in errors
    assert (status("run"), Path("run/log.txt").read_text().count("starts at")) == ("failed", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_a_process_that_fails_ends_the_others_in_time() -> None:
    began = time.monotonic()
    commands = [[sys.executable, ranks.__file__, "fails"]] * 2

    with ranks.started(commands, ranks.world(2)) as processes:
        errors = [process.communicate(timeout=60)[1] for process in processes]

    assert time.monotonic() - began < 60
    assert [process.returncode for process in processes] == [1, 1]
    assert "the machine is on fire" in errors[1]
    assert "process 0 of 2 lost another one" in errors[0]


@pytest.mark.parametrize(
    ("processes", "restarts", "told"),
    [
        (0, 0, "--processes is 0; it should be 1 or more"),
        (2, -1, "--max-restarts is -1"),
        (1, 3, "nothing watches over a single process"),
        (3, 0, "batch_size 8 does not split over 3 processes in whole blocks"),
    ],
)
def test_a_mistake_is_told_before_a_process_is_started(
    processes: int, restarts: int, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        launch.check(ranks.SHARED, processes, restarts)


def test_processes_within_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match="torchrun has started this process"):
        launch.check(ranks.SHARED, 2, 0)
    with pytest.raises(ConfigError, match="RANK, LOCAL_RANK"), joined("cpu"):
        pass


def test_what_cannot_work_in_pieces_is_refused() -> None:
    with pytest.raises(ConfigError, match="with ddp each process has all weights"):
        Parallel(checkpoints="sharded")
    with pytest.raises(ConfigError, match="give --dtype bfloat16"):
        Recipe(train=Train(dtype="float16"), parallel=Parallel(kind="fsdp"))


def test_one_process_has_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    with joined("cpu") as world:
        assert (world.rank, world.size) == (0, 1)
        assert not torch.distributed.is_initialized()
        assert world.exchange(3) == world.collect(3) == [3] and world.any(True)
