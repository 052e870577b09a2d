"""Checkpoints that break, and weights that are not finite: what was good is kept and used."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vitrail
from runs import RECIPE, assert_equal_runs, never_stopped, status, stopped, with_train, write_photos
from vitrail.data.preprocess import Preprocess
from vitrail.errors import NonFiniteError
from vitrail.training import checkpoint
from vitrail.training.learner import Learner
from vitrail.training.loop import train
from vitrail.training.optimizer import Optimizer
from vitrail.training.recipe import Optimizer as Settings


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `RECIPE` that was never stopped; tests read it and change nothing."""
    return never_stopped(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("spoil", ["cut", "flipped", "gone", "index"])
def test_a_broken_checkpoint_is_told_and_the_one_before_is_used(
    spoil: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(7, "run")
    kept = checkpoint.steps(run / "checkpoints")
    assert sorted(kept) == [5, 7]
    name = "index.json" if spoil == "index" else "optimizer.safetensors"
    broken = kept[7] / name
    data = bytearray(broken.read_bytes())
    if spoil == "gone":
        broken.unlink()
    else:
        data[len(data) // 2] ^= 4
        broken.write_bytes(data[:10] if spoil == "cut" else data)
    capsys.readouterr()

    train(RECIPE, run)

    told = capsys.readouterr().err
    assert "step-00000007" in told and "step-00000005" in told
    assert_equal_runs(run, whole)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.replace('"step": 7', '"step": 5'),
        lambda index: index.replace('"sha256"', '"sha257"'),
        lambda index: "[]",
    ],
)
def test_an_index_that_lies_is_a_broken_checkpoint(
    change: Callable[[str], str], whole: Path
) -> None:
    run = stopped(7, "run")
    index = checkpoint.steps(run / "checkpoints")[7] / "index.json"
    index.write_text(change(index.read_text()))

    train(RECIPE, run)

    assert_equal_runs(run, whole)


def test_a_new_checkpoint_outlives_broken_ones_of_later_steps(whole: Path) -> None:
    run = stopped(7, "run")
    for path in checkpoint.steps(run / "checkpoints").values():
        (path / "model.safetensors").write_bytes(b"")

    stopped(2, "run")

    found, _ = checkpoint.newest(run / "checkpoints")
    assert found is not None and found.step == 2
    train(RECIPE, run)
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_stay_as_the_recipe_says(keep: int) -> None:
    train(with_train(epochs=4, keep=keep), "run")

    assert sorted(checkpoint.steps(Path("run/checkpoints"))) == [5, 10, 15, 20][-keep:]


def test_a_broken_checkpoint_is_not_counted_among_those_that_stay() -> None:
    run = stopped(7, "run")
    (checkpoint.steps(run / "checkpoints")[7] / "model.safetensors").write_bytes(b"")

    train(RECIPE, run)

    assert sorted(checkpoint.steps(run / "checkpoints")) == [5, 10]


def test_a_hundred_broken_checkpoints_are_told_in_a_line_and_do_not_hold_up_a_resume(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(7, "run")
    newest = checkpoint.steps(run / "checkpoints")[7]
    for step in range(8, 108):
        copy = Path(shutil.copytree(newest, newest.with_name(f"step-{step:08d}")))
        index = copy / "index.json"
        index.write_text(index.read_text().replace('"step": 7', f'"step": {step}'))
        (copy / "ema.safetensors").write_bytes((copy / "ema.safetensors").read_bytes()[:-9])
    capsys.readouterr()
    began = time.process_time()

    found, broken = checkpoint.newest(run / "checkpoints")

    assert time.process_time() - began < 2
    assert found and found.step == 7 and len(broken) == 100
    train(RECIPE, run)
    told = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert len(told) == 1 and len(told[0]) < 500
    assert "step-00000107 (and 99 older ones)" in told[0] and "step-00000007" in told[0]
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_a_kill_at_any_touch_of_the_disk_leaves_what_was_good(kind: str, tmp_path: Path) -> None:
    assert kill_points(tmp_path / "killed", kind) >= 14


@pytest.mark.slow
def test_a_run_that_is_killed_at_points_all_over_it_ends_as_the_one_that_was_not(
    tmp_path: Path,
) -> None:
    assert kill_points(tmp_path / "killed", "run", every=19) >= 80


def kill_points(folder: Path, kind: str, every: int = 1) -> int:
    folder.mkdir()
    script = Path(__file__).with_name("kill_points.py")
    words = [sys.executable, str(script), kind, str(folder), str(every)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=300)
    found = json.loads(told.stdout)
    assert not found["wrong"], found["wrong"]
    return found["points"]


def test_weights_that_are_not_finite_are_never_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = Optimizer.step, []

    def poisoned(self: Optimizer, factor: float) -> None:
        step(self, factor)
        steps.append(factor)
        if len(steps) == 10:  # the last before the second checkpoint; nothing is logged before it
            next(iter(self.names)).data.fill_(float("nan"))

    monkeypatch.setattr(Optimizer, "step", poisoned)

    with pytest.raises(NonFiniteError, match="step-00000005"):
        train(with_train(epochs=3, log_every=100, evaluate_every=100), "run")

    assert list(checkpoint.steps(Path("run/checkpoints"))) == [5]


def poison(patch: pytest.MonkeyPatch, spoilt: set[int]) -> None:
    """Make the images of these steps NaN, as normalised: uint8 can say no such thing."""
    step, normalize = Learner.step, Preprocess.normalize
    now = []

    def stepping(self: Learner, batch: Any, number: int) -> None:
        now[:] = [number]
        step(self, batch, number)
        now.clear()

    def spoiling(self: Preprocess, images: Any) -> Any:
        return normalize(self, images) * (float("nan") if spoilt & set(now) else 1)

    patch.setattr(Learner, "step", stepping)
    patch.setattr(Preprocess, "normalize", spoiling)


def test_a_batch_of_nan_stops_with_step_rate_loss_and_the_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison(monkeypatch, {6})

    with pytest.raises(NonFiniteError) as caught:
        train(RECIPE, "run")

    told = str(caught.value)
    assert "the loss was nan and the norm of the gradient nan at step 6" in told
    assert "learning rate 0.0" in told and "run/checkpoints/step-00000005" in told
    assert status("run") == "nonfinite" and caught.value.exit_code == 4


def test_a_step_that_is_not_finite_is_left_out_if_asked_and_a_resume_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = with_train(skip_nonfinite=True)
    poison(monkeypatch, {3, 7})

    whole = train(recipe, "whole")
    stopped(5, "run", recipe)
    run = train(recipe, "run")

    assert (whole.summary["status"], whole.summary["skipped_steps"]) == ("finished", 2)
    assert run.summary["skipped_steps"] == 2
    assert_equal_runs("run", "whole")
    assert "1 steps up to step 4 were not finite and left out" in Path("run/log.txt").read_text()


def test_leaving_out_changes_nothing_where_all_is_finite(whole: Path) -> None:
    assert_equal_runs(train(with_train(skip_nonfinite=True), "run").folder, whole)


def test_where_every_step_is_left_out_training_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(4, 10)))

    with pytest.raises(NonFiniteError, match=r"2 steps up to step 6 .* all there were"):
        train(with_train(skip_nonfinite=True), "run")


@pytest.mark.parametrize("how", ["rate", "weight"])
def test_training_that_is_not_finite_stops_and_keeps_what_is(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, optimizer=Settings(lr=1e30)) if how == "rate" else RECIPE
    if how == "weight":
        step = Learner.step

        def poisoned(self: Learner, batch: Any, number: int) -> None:
            step(self, batch, number)
            if number == 7:
                next(self.model.parameters()).data.fill_(float("nan"))

        monkeypatch.setattr(Learner, "step", poisoned)

    with pytest.raises(NonFiniteError) as caught:
        train(recipe, "run")

    message = str(caught.value)
    assert status("run") == "nonfinite"
    assert ("at step 7" if how == "weight" else "at step 1") in message
    assert ("step-00000005" if how == "weight" else "no checkpoint yet") in message
    assert how == "weight" or ("1e+30" in message and "the loss was nan" in message)
    assert not Path("run/last").exists()
    assert Path("run/best").exists() == (how == "weight")
    kept = checkpoint.newest(Path("run/checkpoints"))[0]
    assert (kept is not None) == (how == "weight")
    for tensors in kept.parts.values() if kept else ():
        assert all(bool(t.isfinite().all()) for t in tensors.values())
    if how == "weight":
        best = vitrail.load("run/best").model
        assert all(bool(p.isfinite().all()) for p in best.parameters())
