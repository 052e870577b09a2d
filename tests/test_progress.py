"""How far a long look is: on standard error, with or without a known end."""

import pytest

from vitrail.data import progress
from vitrail.data.progress import Counter, counted


@pytest.fixture
def _each_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)


@pytest.mark.usefixtures("_each_one")
def test_a_line_says_how_much_of_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    with Counter("images:", 1200) as counter:
        counter.add(1000)

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("images: 1,000 of 1,200  ")
    assert err.endswith(" s left\n")


@pytest.mark.usefixtures("_each_one")
def test_without_an_end_it_says_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("abc", "letters:")) == ["a", "b", "c"]

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split("  ")[0] for line in lines] == ["letters: 1", "letters: 2", "letters: 3"]
    assert all(line.endswith(" a second") for line in lines)


def test_nothing_is_said_of_what_takes_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("abc", "letters:")) == ["a", "b", "c"]

    assert capsys.readouterr() == ("", "")
