"""Ctrl-C and SIGTERM at every moment of a run: saved, told how to go on, and ended as asked."""

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runs import RECIPE, STEPS, assert_equal_runs, never_stopped, status, write_photos
from vitrail.data.loader import Loader
from vitrail.training import checkpoint, finish, interrupt, loop
from vitrail.training.learner import Learner
from vitrail.training.loop import train
from vitrail.training.run_folder import RunFolder
from vitrail.training.session import Session

# What is being done when the signal comes, at its how-manieth time, and the step it is saved at.
MOMENTS = {
    "the folder is begun": (RunFolder, "start", 1, 0),
    "nothing is loaded yet": (checkpoint, "newest", 1, 0),
    "a batch is waited for": (Loader, "_finish", 4, 3),
    "a step is taken": (Learner, "step", 3, 3),
    "a row is written": (RunFolder, "add_metrics", 1, 2),
    "a checkpoint is written": (checkpoint, "write", 1, 5),
    "an evaluation is made": (Session, "measure", 1, 5),
    "the best is kept": (Session, "bundle", 1, 5),
    "the last evaluation is made": (Session, "measure", 2, STEPS),
    "the last weights are kept": (finish, "write_examples", 1, STEPS),
}


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `RECIPE` that was never stopped; tests read it and change nothing."""
    return never_stopped(tmp_path_factory.mktemp("whole"))


def signalled(
    patch: pytest.MonkeyPatch, owner: Any, name: str, time: int, *numbers: int
) -> list[int]:
    """Have this process get signals as a function is called for the `time`-th time."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = []

    def interrupted(*given: Any, **more: Any) -> Any:
        calls.append(len(calls) + 1)
        if calls[-1] == time:
            for number in numbers:
                os.kill(os.getpid(), number)
        return real(*given, **more)

    patch.setattr(owner, name, interrupted)
    return calls


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_loses_no_step(
    moment: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, name, time, saved = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        signalled(patch, owner, name, time, signal.SIGTERM)
        train(RECIPE, "run")

    assert caught.value.code == 143
    assert status("run") == "interrupted"
    found, broken = checkpoint.newest(Path("run/checkpoints"))
    assert (found.step if found else 0, broken) == (saved, {})
    assert not [path for path in Path("run").rglob(".*")]
    told = capsys.readouterr().err.splitlines()
    words = shlex.split(next(line for line in told if line.startswith("  vitrail train")))
    assert words[words.index("--out") + 1] == "run" and Path("run/recipe.toml").is_file()
    train(RECIPE, "run")
    assert_equal_runs("run", whole)


@pytest.mark.parametrize(
    ("numbers", "code"), [((signal.SIGTERM, signal.SIGTERM), 143), ((signal.SIGINT,) * 2, 130)]
)
@pytest.mark.parametrize("moment", ["a step is taken", "a checkpoint is written"])
def test_a_second_signal_ends_the_run_at_once(
    moment: str, numbers: tuple[int, int], code: int, whole: Path
) -> None:
    owner, name, time, _ = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, owner, name, time, *numbers)
        with pytest.raises(KeyboardInterrupt if code == 130 else SystemExit) as caught:
            train(RECIPE, "run")

    assert code == 130 or getattr(caught.value, "code", None) == code
    assert not list(Path("run/checkpoints").iterdir())  # at once: without saving
    assert not [path for path in Path("run").rglob(".*")]
    train(RECIPE, "run")
    assert_equal_runs("run", whole)


def test_a_signal_outside_of_the_work_ends_as_it_asks() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt.listening(interrupt.Interrupt()):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_signal_while_the_page_is_drawn_ends_the_run_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signalled(monkeypatch, loop, "write_run_page", 1, signal.SIGINT)
    signalled(monkeypatch, Learner, "step", 3, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, "run")

    assert status("run") == "interrupted"
