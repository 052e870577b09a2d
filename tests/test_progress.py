"""How far a long look is: on standard error, with or without a known end."""

import pytest

from vitrail.data import progress
from vitrail.data.progress import Counter, counted
from vitrail.training.display import Display


@pytest.fixture
def _each_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)


@pytest.mark.usefixtures("_each_one")
def test_a_line_says_how_much_of_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    with Counter("images", 1200) as counter:
        counter.add(1000)

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("images 1,000/1,200  ")
    assert err.endswith(" s left\n")


@pytest.mark.usefixtures("_each_one")
def test_without_an_end_it_says_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("abc", "letters")) == ["a", "b", "c"]

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split("  ")[0] for line in lines] == ["letters 1", "letters 2", "letters 3"]
    assert all(line.endswith(" a second") for line in lines)


def test_nothing_is_said_of_what_takes_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("abc", "letters")) == ["a", "b", "c"]

    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(10, "90 s"), (30, "4 min"), (780, "117 min"), (801, "2 h 0 min"), (86400, "216 h 0 min")],
)
def test_a_long_time_is_told_in_minutes_and_hours(
    seconds: float, left: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    with Counter("images", 1000, 0) as counter:
        now[0] = seconds
        counter.add(100)

    assert capsys.readouterr().err == f"images 100/1,000  {left} left\n"


def test_training_counts_its_steps_as_others_count_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    row = {"step": 60, "loss": 0.5, "top1": 0.75, "images_per_second": 1234.5, "peak_share": 0.2}

    with Display(100, 50, 20) as display:
        display.train(row)  # is shown with the next line
        display.evaluated(0.875)
        now[0] = 10.0
        display.step(60)
        now[0] = 11.0
        display.step(61)  # too soon after the last one
        display.train({**row, "step": 100, "peak_share": None})

    assert capsys.readouterr().err.splitlines() == [
        "epoch 3/5  step 60/100  loss 0.500  top-1  75.0%  1,234 images/s (20% of peak)  "
        "held-out 87.5%  40 s left",
        "epoch 4/5  step 100/100  loss 0.500  top-1  75.0%  1,234 images/s  held-out 87.5%  "
        "0 s left",
    ]


def test_a_process_that_is_not_the_first_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Counter("images", 3, is_shown=False) as counter:
        counter.to(3, at_once=True)

    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_it_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "100")

    with Counter("images", 8) as counter:
        counter.about = "all of them"
        counter.add(3)

    err = capsys.readouterr().err
    assert "images" in err and "3/8" in err and "all of them" in err and "left" not in err
