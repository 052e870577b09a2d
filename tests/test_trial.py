"""What is settled by a few steps before a run: once, and never again."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import RECIPE, assert_equal_runs, rows, stopped, with_train, write_photos
from vitrail.cli import main
from vitrail.data.loader import Batch
from vitrail.errors import ConfigError
from vitrail.training import trial as trials
from vitrail.training.learner import Learner
from vitrail.training.loop import dry_run, train
from vitrail.training.recipe import read_recipe
from vitrail.training.trial import Trial


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))


def measured(seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have every step of a trial take `seconds`, and an evaluation ten times as long."""
    trials_made: list[int] = []

    def told(*_args: Any) -> Trial:
        trials_made.append(1)
        return Trial(seconds, 10 * seconds, 0, 3, steps=10, evaluations=2)

    monkeypatch.setattr(trials, "_tried", told)
    return trials_made


def test_minutes_become_steps_once_and_a_resume_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = measured(1.0, monkeypatch)
    recipe = with_train(minutes=0.5)  # an evaluation every 5 steps: 3 s a step, one evaluation more

    run = train(recipe, "whole")
    stopped(4, "stopped", recipe)
    measured(100.0, monkeypatch)  # another machine
    train(recipe, "stopped")

    assert run.summary["steps"] == run.summary["step"] == 6
    assert_equal_runs("whole", "stopped")
    assert len(made) == 2 and read_recipe("whole/recipe.toml") == replace(
        recipe, model=recipe.model.replace(classes=2)
    )
    assert train(recipe, "whole").summary == run.summary


def test_the_trial_leaves_nothing_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_steps_within", lambda *_: 6)
    train(with_train(minutes=0.5), "timed")
    train(with_train(steps=6), "counted")

    assert rows("timed") == rows("counted")
    weights = [(Path(run) / "last/model.safetensors").read_bytes() for run in ("timed", "counted")]
    assert weights[0] == weights[1]


def too_large(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the device's memory take `most` images at once."""
    step = Learner.step

    def limited(self: Learner, batch: Batch, number: int) -> None:
        if (self.recipe.train.micro_batch or len(batch.labels)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, batch, number)

    monkeypatch.setattr(Learner, "step", limited)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    too_large(3, monkeypatch)

    assert dry_run(with_train(batch_size=10)).micro_batch == 3
    too_large(0, monkeypatch)
    with pytest.raises(ConfigError, match="one image at a time does not fit"):
        dry_run(with_train(batch_size=10))


def test_a_trial_meets_the_largest_images_of_a_run_in_which_they_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, step = [], Learner.step

    def watched(self: Learner, batch: Batch, number: int) -> None:
        sizes.append(self.input_shape(number)[1:])
        step(self, batch, number)

    monkeypatch.setattr(Learner, "step", watched)

    dry_run(with_train(first_size=(4, 4), epochs=50))

    assert sizes[0] == (4, 4)
    assert sizes[-1] == (8, 8)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "a step with 4 images at a time does not"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "give --train.micro-batch 2"),
        (RuntimeError("shapes cannot be multiplied"), None),
    ],
)
def test_a_step_that_does_not_fit_says_what_to_do(
    error: RuntimeError, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(self: Learner, batch: Batch, number: int) -> None:
        raise error

    monkeypatch.setattr(Learner, "step", limited)

    with pytest.raises(ConfigError if told else RuntimeError, match=told or "shapes cannot"):
        train(with_train(micro_batch=4, batch_size=8), "run")

    assert json.loads(Path("run/summary.json").read_text())["status"] == "failed"


def test_a_dry_run_writes_nothing_and_says_what_to_expect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(os.listdir())
    flags = "--epochs 3 --batch-size 8 --device cpu --model.depth 1 --train.evaluate-every 1"
    words = ["train", "photos", "--dry-run", *flags.split()]

    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(words) == 0

    text = capsys.readouterr().out
    assert (found["steps"], found["evaluations"], found["micro_batch"]) == (6, 3, 8)
    assert found["seconds"] == pytest.approx(
        6 * found["step_seconds"] + 3 * found["evaluation_seconds"]
    )
    assert found["peak_bytes"] > 10**7
    assert "6 steps and 3 evaluations" in text and "MiB at most" in text
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_run_of_very_few_steps_is_timed_too(steps: int) -> None:
    found = dry_run(with_train(steps=steps))

    assert found.steps == steps and found.step_seconds > 0


def test_minutes_are_above_zero() -> None:
    with pytest.raises(ConfigError, match="minutes"):
        replace(RECIPE.train, minutes=0.0)
