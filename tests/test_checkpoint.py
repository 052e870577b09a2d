"""Checkpoints that break, and weights that are not finite: what was good is kept and used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vitrail
from runs import RECIPE, assert_equal_runs, never_stopped, status, stopped, with_train, write_photos
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
    assert "1e+30" in message or how == "weight"
    assert not Path("run/last").exists()
    assert Path("run/best").exists() == (how == "weight")
    kept = checkpoint.newest(Path("run/checkpoints"))[0]
    assert (kept is not None) == (how == "weight")
    for tensors in kept.parts.values() if kept else ():
        assert all(bool(t.isfinite().all()) for t in tensors.values())
    if how == "weight":
        best = vitrail.load("run/best").model
        assert all(bool(p.isfinite().all()) for p in best.parameters())
