"""TensorBoard and Weights & Biases: each row of metrics.jsonl once, and no run lost to them."""

import json
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from runs import RECIPE, assert_equal_runs, rows, stopped, with_train, write_photos
from vitrail.cli import main
from vitrail.errors import ConfigError
from vitrail.training import trackers
from vitrail.training.loop import train
from vitrail.training.recipe import differences, to_toml

SHOWN = with_train(tensorboard=True)
SENT = with_train(wandb="windows")
READER = "tensorboard.backend.event_processing.event_accumulator"
needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="pip install 'vitrail[tensorboard]'"
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))


class Fake:
    """A tracker that keeps the rows, and fails from the `fails`-th on."""

    def __init__(self, fails: int = 99) -> None:
        self.fails, self.rows, self.closed = fails, [], 0

    def add(self, row: Any) -> None:
        self.rows.append(row)
        if len(self.rows) >= self.fails:
            raise ConnectionError("the server is gone")

    def close(self) -> None:
        self.closed += 1


def events(run: Path | str) -> dict[str, dict[int, float]]:
    """Read the event files back: tag -> step -> value, each step once."""
    found = import_module(READER).EventAccumulator(str(Path(run) / "tensorboard")).Reload()
    series = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    for tag, points in series.items():
        assert len({point.step for point in points}) == len(points), tag
    return {tag: {point.step: point.value for point in points} for tag, points in series.items()}


def wanted(run: Path | str) -> dict[str, dict[int, Any]]:
    """Give the same of metrics.jsonl."""
    found: dict[str, dict[int, Any]] = {}
    for line in (Path(run) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name in row.keys() - {"step", "split"}:
            if row[name] is not None:
                series = found.setdefault(f"{row['split']}/{name}", {})
                series[row["step"]] = pytest.approx(row[name], rel=1e-6)
    return found


def text_of(run: Path) -> str:
    found = import_module(READER).EventAccumulator(str(run / "tensorboard")).Reload()
    (event,) = found.Tensors("recipe/text_summary")
    return event.tensor_proto.string_val[0].decode()


@needs_tensorboard
def test_event_files_hold_every_row_once_and_the_recipe() -> None:
    run = train(SHOWN, "run").folder

    assert events(run) == wanted(run)
    assert text_of(run).split() == to_toml(SHOWN).split()


@needs_tensorboard
@pytest.mark.parametrize("died", [False, True])
def test_rows_of_steps_that_are_taken_again_are_shown_once(
    died: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(7, "run", SHOWN)
    if died:  # it took six steps again; its last checkpoint is that of step 5
        for file in (run / "checkpoints/step-00000007").iterdir():
            file.write_bytes(b"")

    train(SHOWN, run)

    assert events(run) == wanted(run)
    train(RECIPE, "whole")
    assert_equal_runs(run, "whole")


@needs_tensorboard
def test_a_tracker_that_comes_late_has_the_rows_of_before() -> None:
    run = stopped(7, "run")

    train(SHOWN, run)

    assert events(run) == wanted(run)


def fakes(monkeypatch: pytest.MonkeyPatch, *made: Fake) -> None:
    left = iter(made)
    monkeypatch.setattr(trackers, "TensorBoard", lambda *_: next(left))
    monkeypatch.setattr(trackers, "WeightsAndBiases", lambda *_: next(left))
    monkeypatch.setattr("vitrail.training.loop.check_installed", lambda _: None)


def test_a_tracker_that_fails_is_told_once_and_the_run_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing, whole = Fake(fails=3), Fake()
    fakes(monkeypatch, failing, whole)

    run = train(with_train(tensorboard=True, wandb="windows"), "run")

    assert run.summary["status"] == "finished"
    assert len(failing.rows) == 3 and len(whole.rows) == len(rows("run")) == 7
    assert (failing.closed, whole.closed) == (0, 1)
    told = "tensorboard failed and gets no more rows; the run goes on: the server is gone"
    assert capsys.readouterr().err.count(told) == 1
    assert Path("run/log.txt").read_text().count(told) == 1


def test_a_tracker_that_cannot_begin_is_told_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes(monkeypatch)  # there is none: StopIteration

    assert train(SENT, "run").summary["status"] == "finished"
    assert "wandb failed and gets no more rows; the run goes on" in capsys.readouterr().err


def test_a_run_that_is_stopped_closes_its_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    fakes(monkeypatch, fake)

    stopped(3, "run", SHOWN)

    assert fake.closed == 1 and len(fake.rows) == 1


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["nothing", "a folder"])
@pytest.mark.parametrize(("name", "value"), [("tensorboard", ""), ("wandb", "windows")])
def test_a_missing_package_is_told_before_anything_is_written(
    name: str,
    value: str,
    found: ModuleSpec | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: found)

    code = main(["train", "photos", f"--train.{name}", *value.split(), "--out", "run"])

    assert code == 2
    assert f"pip install 'vitrail[{name}]'" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_run_goes_on_with_or_without_trackers() -> None:
    assert differences(RECIPE, with_train(tensorboard=True, wandb="windows")) == []


def test_a_project_has_a_name() -> None:
    with pytest.raises(ConfigError, match="the name of a project"):
        with_train(wandb="")


def records(run: Path, kind: str) -> list[Any]:
    """Read one kind of record of the offline files that wandb has left."""
    Record = import_module("wandb.proto.wandb_internal_pb2").Record
    found = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, at, part = file.read_bytes(), 7, b""  # after the file's own head
        while at + 7 <= len(data):  # LevelDB's log: checksum, size, place in the record
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            size, place = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
            if place in (1, 4):  # whole, or the last piece
                record, part = Record.FromString(part), b""
                if record.WhichOneof("record_type") == kind:
                    found.append(getattr(record, kind))
    return found


# Not among the packages of the tests: with its 14 dependencies it is 73 MB.
@pytest.mark.slow
def test_wandb_offline_gets_every_row_once_the_recipe_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("wandb", reason="pip install 'vitrail[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = stopped(7, "run", SENT)
    for file in (run / "checkpoints/step-00000007").iterdir():
        file.write_bytes(b"")

    train(SENT, run)

    found: dict[str, dict[int, float]] = {}
    for history in records(run, "history"):
        items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in history.item}
        for name, value in items.items():
            if name.startswith(("train/", "val/")):
                series = found.setdefault(name, {})
                assert items["step"] not in series, (name, items["step"])
                series[items["step"]] = value
    clock = ("seconds", "images_per_second", "peak_share")  # of rows that were sent before a stop
    steady = {name: points for name, points in wanted(run).items() if not name.endswith(clock)}
    assert {name: points for name, points in found.items() if not name.endswith(clock)} == steady
    started = records(run, "run")
    assert {record.run_id for record in started} == {
        json.loads(Path("run/wandb.json").read_text())["id"]
    }
    assert {record.project for record in started} == {"windows"}
    config = {
        item.key: json.loads(item.value_json) for record in started for item in record.config.update
    }
    assert config["train"]["wandb"] == "windows" and config["model"]["width"] == 16
    assert not records(run, "output_raw") and not records(run, "output")
    assert not list(run.glob("wandb/offline-run-*/files/*"))  # they would be sent
