"""Runs: the same twice, the same after any stop, and a folder that says what happened."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from runs import (
    RECIPE,
    STEPS,
    assert_equal_runs,
    never_stopped,
    rows,
    status,
    stop_after,
    stopped,
    with_train,
    write_photos,
)
from vitrail.errors import DataError
from vitrail.model.config import ViTConfig
from vitrail.training import checkpoint, loop, record
from vitrail.training.learner import Learner
from vitrail.training.loop import Run, train
from vitrail.training.recipe import Recipe, Train, read_recipe
from vitrail.training.session import Session


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `RECIPE` that was never stopped; tests read it and change nothing."""
    return never_stopped(tmp_path_factory.mktemp("whole"))


def test_the_same_recipe_twice_is_the_same_run_to_the_bit(whole: Path) -> None:
    again = train(RECIPE, "again").folder

    assert_equal_runs(again, whole)
    assert [row["step"] for row in rows(whole) if row["split"] == "train"] == [2, 4, 6, 8, 10]
    assert [row["step"] for row in rows(whole) if row["split"] == "val"] == [5, 10]


@pytest.mark.parametrize("steps", [1, 4, 5, 7, 9])
def test_a_run_that_was_stopped_and_resumed_is_the_one_that_was_not(
    steps: int, whole: Path
) -> None:
    run = stopped(steps, "run")
    assert status(run) == "interrupted"
    assert list(checkpoint.steps(run / "checkpoints"))[-1] == steps

    train(RECIPE, run)

    assert_equal_runs(run, whole)
    assert status(run) == "finished"


def test_other_reading_threads_before_and_after_a_stop_change_nothing(whole: Path) -> None:
    one = replace(RECIPE, data=replace(RECIPE.data, threads=1))
    three = replace(RECIPE, data=replace(RECIPE.data, threads=3))
    run = stopped(3, "run", one)

    train(three, run)

    assert_equal_runs(run, whole)


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_that_died_without_a_word_goes_on_from_its_last_checkpoint(
    step: int, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = record.log

    def dies(session: Session) -> dict[str, Any]:
        row = log(session)
        if session.done > step:
            raise SystemError  # as a kill would: nothing else is written
        return row

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(record, "log", dies)
        patch.setattr(loop, "write_summary", lambda *_, **__: None)
        train(RECIPE, "run")
    with open("run/metrics.jsonl", "a") as file:
        file.write('{"step": 9, "epo')  # a row that was cut short

    train(RECIPE, "run")

    assert_equal_runs("run", whole)


def test_a_stop_right_before_the_end_is_measured_and_written_once(whole: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "finish", _interrupted)
        train(RECIPE, "run")

    train(RECIPE, "run")

    assert_equal_runs("run", whole)


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_folder_holds_the_files_of_the_design_and_no_others(whole: Path) -> None:
    found = {path.name for path in whole.iterdir()} - {"report.html"}

    assert found == {
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "log.txt",
        "checkpoints",
        "best",
        "last",
        "examples",
        "summary.json",
        "evaluation.json",
        "predictions.jsonl",
    }
    assert {p.name for p in (whole / "last").iterdir()} == {"model.safetensors", "config.json"}
    assert not [path for path in whole.rglob("*") if path.name.startswith(".")]
    assert read_recipe(whole / "recipe.toml") == RECIPE


def test_metrics_and_summary_have_the_keys_of_the_design(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((whole / "summary.json").read_text())

    keys = "step epoch split loss top1 lr grad_norm images_per_second seconds"
    keys += " update_norm peak_share"
    assert all(list(line) == keys.split() for line in lines)
    assert [line["epoch"] for line in lines if line["split"] == "val"] == [1.0, 2.0]
    assert {"status", "step", "top1", "top5", "loss", "parameters"} <= summary.keys()
    assert {"seconds", "cpu_seconds"} <= summary.keys()
    last = lines[-1]
    assert (summary["top1"], summary["loss"]) == (last["top1"], last["loss"])
    assert (summary["status"], summary["step"]) == ("finished", STEPS)


def test_both_bundles_answer_and_last_is_the_running_mean(whole: Path) -> None:
    run = Run(whole, {})
    mean = checkpoint.newest(whole / "checkpoints")[0]
    assert mean is not None

    for which in ("last", "best"):
        answers = vitrail.predict(run.bundle(which), sorted((whole / "examples").iterdir()))
        assert [len(answer.top) for answer in answers] == [2] * 4

    last = run.bundle().model.state_dict()
    assert all(torch.equal(last[name], value) for name, value in mean.parts["ema"].items())


def test_a_run_on_the_digits_leaves_ten_examples_that_predict_reads() -> None:
    digits = Recipe(
        model=ViTConfig(image_size=(8, 8), patch_size=4, channels=1, width=16, depth=1, heads=2),
        train=Train(epochs=1, steps=2),
    )

    run = train(digits)

    examples = sorted((run.folder / "examples").iterdir())
    assert len(examples) == 10
    assert [a.error for a in vitrail.predict(run.bundle(), examples)] == [None] * 10
    assert run.folder == Path("runs/digits-1")
    assert (run.summary["held_out_images"], run.summary["step"]) == (360, 2)


def test_a_failure_is_told_in_the_summary_and_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Learner, "step", _fails)
        train(RECIPE, "run")

    assert status("run") == "failed"
    assert "the machine is on fire" in Path("run/log.txt").read_text()


def _fails(*_: Any) -> None:
    raise RuntimeError("the machine is on fire")


def test_sigterm_saves_and_leaves_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(3, monkeypatch, signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        train(RECIPE, "run")

    assert caught.value.code == 143
    assert list(checkpoint.steps(Path("run/checkpoints"))) == [3]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"compile": False}, {"steps": 3}])
def test_other_ways_to_train_run_to_their_end(changes: dict[str, Any]) -> None:
    recipe = with_train(**changes)

    run = train(recipe, "run")

    assert run.summary["status"] == "finished"
    assert run.summary["step"] == changes.get("steps", STEPS)
    weights = run.bundle().model.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_bad_files_are_left_out_and_listed(photos: Path) -> None:
    names = ["dark/bad.png", "light/empty.png"]
    for name, data in zip(names, (b"<html>no</html>", b""), strict=True):
        (photos / name).write_bytes(data)
    recipe = replace(RECIPE, data=replace(RECIPE.data, max_bad_share=0.5))

    summary = train(recipe, "run").summary

    assert sorted(bad["path"] for bad in summary["bad"]) == names
    assert {bad["reason"] for bad in summary["bad"]} == {
        "this is an HTML page, not an image",
        "the file is empty",
    }


def test_too_many_bad_files_stop_the_run_with_their_names(photos: Path) -> None:
    for file in (photos / "dark").iterdir():
        file.write_bytes(b"no image")

    with pytest.raises(DataError, match=r"dark/\d\.png: this is no image"):
        train(RECIPE, "run")

    assert status("run") == "failed"


def test_training_changes_nothing_in_the_data(photos: Path) -> None:
    (photos / "dark" / "0.png").write_bytes(b"no image")
    recipe = replace(RECIPE, data=replace(RECIPE.data, max_bad_share=0.5))
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}

    train(recipe, "run")

    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before
