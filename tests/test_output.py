"""Where predictions go: every form reads back, and a file that was cut anywhere is completed."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from vitrail.data.inputs import Item, file_item
from vitrail.errors import ConfigError, OutputError
from vitrail.inference import journal
from vitrail.inference.output import check_output, write_predictions
from vitrail.inference.predict import Answer, Prediction
from vitrail.inference.resumable import ResumableFile

NAMES = ["a,b", 'say "a"', "new\nline", "return\rhere", "🦊 é", "-b", "semi;colon", " blank ", ""]
NAMES += ["참새와 제비", "caf\udce9"]  # the last is no UTF-8
FORMS = ["table", "csv", "jsonl", "json", "parquet"]
MADE_BY = {"model": "0123", "top": 2}
BATCH = 3


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written thousands of times here, and no power fails."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def answer(item: Item) -> Prediction:
    if item.name.startswith("bad"):
        return Prediction(path=item.name, error='no "image", here', top=())
    top = (
        Answer(label=item.name.removesuffix(".png"), index=len(item.name), probability=0.75),
        Answer(label="other", index=99, probability=1e-9),
    )
    return Prediction(path=item.name, error=None, top=top)


def answers(items: Iterable[Item]) -> Iterator[list[Prediction]]:
    rest = iter(items)
    while batch := [answer(item) for item in islice(rest, BATCH)]:
        yield batch


def images() -> list[Item]:
    return [file_item(f"{name}.png") for name in NAMES] + [file_item("bad,\n.png")]


def write(
    how: str, output: Path | None, items: Iterable[Item] | None = None, **made_by: Any
) -> int:
    target = None if output is None else str(output)
    items = images() if items is None else items
    return write_predictions(answers, items, how, target, {**MADE_BY, **made_by}, seconds=0)


def paths(how: str, file: Path) -> list[str]:
    """Read the paths back."""
    if how == "csv":
        with file.open(newline="", encoding="utf-8") as lines:
            return [row["path"] for row in csv.DictReader(lines)]
    if how == "parquet":
        return parquet.read_table(file).column("path").to_pylist()
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text) if how == "json" else [json.loads(x) for x in text.split("\n")[:-1]]
    return [row["path"] for row in rows]


def shown(how: str) -> list[str]:
    """Give the names as a form shows them: JSON keeps even what is no UTF-8."""
    as_is = [item.name for item in images()]
    return (
        as_is if how.startswith("json") else [name.replace("\udce9", "\\udce9") for name in as_is]
    )


@pytest.mark.parametrize("how", ["csv", "jsonl", "json", "parquet"])
def test_every_form_reads_back_whatever_the_names_are(how: str, tmp_path: Path) -> None:
    assert write(how, tmp_path / "a") == 1

    assert paths(how, tmp_path / "a") == shown(how)


def test_csv_has_the_columns_that_others_rely_on(tmp_path: Path) -> None:
    write("csv", tmp_path / "a.csv")

    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["path", "label", "probability", "labels", "probabilities", "error"]
    assert [row["label"] for row in read[:-2]] == NAMES[:-1]
    assert [float(row["probability"]) for row in read[:-1]] == [0.75] * len(NAMES)
    assert [float(p) for p in read[0]["probabilities"].split(";")] == [0.75, 1e-9]
    assert read[0]["labels"] == "a,b;other"
    assert [row["error"] for row in read] == [""] * len(NAMES) + ['no "image", here']


def test_json_lines_have_the_form_that_others_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert write("jsonl", None) == 1

    lines = capsys.readouterr().out.split("\n")
    read = [json.loads(line) for line in lines[:-1]]
    assert [list(row) for row in read] == [["path", "error", "top"]] * (len(NAMES) + 1)
    assert read[1]["top"][0] == {"label": 'say "a"', "index": 11, "probability": 0.75}
    assert read[1]["error"] is None
    assert (read[-1]["error"], read[-1]["top"]) == ('no "image", here', [])


def test_parquet_has_the_columns_of_csv_in_their_own_types(tmp_path: Path) -> None:
    write("parquet", tmp_path / "a.parquet")

    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert list(rows[0]) == ["path", "label", "probability", "labels", "probabilities", "error"]
    assert (rows[0]["label"], rows[0]["probability"], rows[0]["error"]) == ("a,b", 0.75, None)
    assert (rows[0]["labels"], rows[0]["probabilities"]) == (["a,b", "other"], [0.75, 1e-9])
    assert (rows[-1]["label"], rows[-1]["labels"], rows[-1]["error"]) == (
        None,
        [],
        'no "image", here',
    )


def test_one_json_document_is_a_list_of_the_lines(tmp_path: Path) -> None:
    write("json", tmp_path / "a.json")

    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps([answer(item).to_json() for item in images()]))
    write("json", tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_a_table_has_one_line_for_each_image(capsys: pytest.CaptureFixture[str]) -> None:
    write("table", None)

    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == len(NAMES) + 2
    assert lines[0].split() == ["a,b.png", "a,b", "75.0%", "other", "0.0%"]
    assert lines[-2].endswith('error: no "image", here')


@pytest.mark.parametrize("how", ["table", "csv", "jsonl", "json"])
def test_a_file_cut_anywhere_is_completed(how: str, tmp_path: Path) -> None:
    file = tmp_path / "a"
    write(how, file)
    log, whole = tmp_path / ".a.journal", file.read_bytes()
    parts = log.read_bytes()
    ends = [part["bytes"] for part in journal.whole_lines(parts)[1:]]
    assert len(ends) >= 4

    around = {end + step for end in ends for step in (-1, 0, 1)}
    for cut in sorted((around | set(range(0, len(whole), 61))) & set(range(len(whole)))):
        file.write_bytes(whole[:cut])
        log.write_bytes(parts)

        assert write(how, file) == 1

        assert file.read_bytes() == whole, cut
        assert log.read_bytes() == parts, cut


def test_a_journal_cut_anywhere_behind_its_first_line_costs_rows_and_loses_none(
    tmp_path: Path,
) -> None:
    file, log = tmp_path / "a", tmp_path / ".a.journal"
    write("csv", file)
    whole, parts = file.read_bytes(), log.read_bytes()

    for cut in range(parts.index(b"\n") + 1, len(parts), 43):
        file.write_bytes(whole)
        log.write_bytes(parts[:cut])

        write("csv", file)

        assert (file.read_bytes(), log.read_bytes()) == (whole, parts)


def test_what_is_in_the_file_is_not_answered_for_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def stopping(after: int) -> Callable[[Iterable[Item]], Iterator[list[Prediction]]]:
        def some(items: Iterable[Item]) -> Iterator[list[Prediction]]:
            for number, batch in enumerate(answers(items)):
                if number == after:
                    raise KeyboardInterrupt
                asked.extend(row.path for row in batch)
                yield batch

        return some

    for form in FORMS:
        asked.clear()
        given = [images(), form, str(tmp_path / form), MADE_BY]
        with pytest.raises(KeyboardInterrupt):
            write_predictions(stopping(2), *given, seconds=1e9)  # what waits is written on leaving
        assert write_predictions(stopping(9), *given, seconds=0) == 1
        assert write_predictions(stopping(0), *given, seconds=0) == 1  # nothing is left to do

        assert asked == [item.name for item in images()]


@pytest.mark.parametrize("how", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "4567"}, "by another model"),
        ({"top": 3}, "with top 2, not 3"),
        ({"top": 3, "model": "1"}, "by another model and with top 2, not 3"),
    ],
)
def test_a_file_of_another_command_is_refused_and_not_touched(
    how: str, changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write(how, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()

    with pytest.raises(ConfigError, match=f"{told}: remove it"):
        write(how, tmp_path / "a", **changes)

    assert (tmp_path / "a").read_bytes() == before


def test_a_file_in_another_form_is_refused(tmp_path: Path) -> None:
    write("csv", tmp_path / "a")

    with pytest.raises(ConfigError, match="with format csv, not jsonl"):
        write("jsonl", tmp_path / "a")


@pytest.mark.parametrize("how", FORMS)
def test_other_images_or_another_order_are_refused(how: str, tmp_path: Path) -> None:
    write(how, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    more = [*images(), file_item("more.png")]

    for other in (images()[:-1], images()[::-1], more, []):
        with pytest.raises(ConfigError, match="for other images, or in another order: its 12 rows"):
            write(how, tmp_path / "a", other)

    assert (tmp_path / "a").read_bytes() == before


@pytest.mark.parametrize("how", ["jsonl", "parquet"])
def test_a_file_that_was_changed_or_is_not_ours_is_left_alone(how: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    write(how, tmp_path / "a")
    changed = bytearray((tmp_path / "a").read_bytes())
    changed[5] ^= 1

    with pytest.raises(ConfigError, match="is there already"):
        write(how, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"
    for other in (bytes(changed), (tmp_path / "a").read_bytes() + b"more\n"):
        (tmp_path / "a").write_bytes(other)
        with pytest.raises(ConfigError, match="was changed since"):
            write(how, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == other


def test_a_file_that_was_taken_away_is_written_anew(tmp_path: Path) -> None:
    for how in ("csv", "parquet"):
        write(how, tmp_path / how)
        (tmp_path / how).rename(tmp_path / "old")

        assert write(how, tmp_path / how, top=5) == 1

        assert paths(how, tmp_path / how) == paths(how, tmp_path / "old")
    (tmp_path / "empty").touch()
    assert write("csv", tmp_path / "empty") == 1


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        ResumableFile(tmp_path / "a", MADE_BY),
        pytest.raises(OutputError, match="another process is writing"),
    ):
        write("csv", tmp_path / "a")


@pytest.mark.slow
def test_a_kill_at_any_touch_of_the_disk_loses_no_row_and_writes_none_twice(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("kill_points.py")
    for kind in ("answers", "answers-parquet"):
        (tmp_path / kind).mkdir()
        words = [sys.executable, str(script), kind, str(tmp_path / kind)]

        told = subprocess.run(words, capture_output=True, text=True, timeout=300)

        found = json.loads(told.stdout)
        assert found["wrong"] == [] and found["points"] >= 10


def test_a_line_that_is_half_on_the_disk_ends_a_journal() -> None:
    first, second = journal.line({"a": 1}), journal.line({"b": 2})

    assert journal.whole_lines(first + second) == [{"a": 1}, {"b": 2}]
    for rest in (second[:-1], b"", b"\0" * 20 + b"\n"):
        assert journal.whole_lines(first + rest + (second if rest[-1:] == b"\n" else b"")) == [
            {"a": 1}
        ]


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for how in ("csv", "parquet"):
        with pytest.raises(OutputError):
            write(how, tmp_path)
        with pytest.raises(OutputError):
            write(how, tmp_path / "no" / "such" / "folder")
    assert not list(tmp_path.glob("*"))
    with pytest.raises(OutputError, match="there is no folder"):
        check_output("csv", str(tmp_path / "no" / "a.csv"))
    with pytest.raises(OutputError, match="is a folder"):
        check_output("table", f"{tmp_path}/missing/")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    write("csv", tmp_path / "pipe", [])

    assert (tmp_path / "pipe").is_fifo()
    assert os.read(reader, 1000).startswith(b"path,label")
    os.close(reader)


def test_parquet_wants_a_name_and_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="name a file with -o"):
        write("parquet", None)

    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(ConfigError, match=r"pip install vitrail\[datasets\]"):
        write("parquet", tmp_path / "a")


@pytest.mark.parametrize("how", ["csv", "parquet"])
def test_rows_of_images_that_have_changed_are_refused(how: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{place}.png" for place in range(8)]
    for file in files:
        file.write_bytes(b"an image")
    before = files[4].stat()

    def listed() -> list[Item]:
        return [file_item(file) for file in files]

    write(how, tmp_path / "a", listed())
    os.utime(files[4], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    told = "images that have changed since, at least one of those 4 to 6: remove it"
    with pytest.raises(ConfigError, match=told if how == "csv" else "of those 1 to 8: remove it"):
        write(how, tmp_path / "a", listed())
    os.utime(files[4], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert write(how, tmp_path / "a", listed()) == 0
    files[4].write_bytes(b"another image")
    os.utime(files[4], ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(ConfigError, match="have changed since"):
        write(how, tmp_path / "a", listed())


def test_what_has_not_been_answered_for_yet_may_change(tmp_path: Path) -> None:
    files = [tmp_path / f"{place}.png" for place in range(8)]
    for file in files:
        file.write_bytes(b"an image")

    def stopping(items: Iterable[Item]) -> Iterator[list[Prediction]]:
        yield next(answers(items))
        raise KeyboardInterrupt

    given = ("csv", str(tmp_path / "a"), MADE_BY)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(stopping, map(file_item, files), *given)
    files[3].write_bytes(b"another image")

    assert write_predictions(answers, map(file_item, files), *given) == 0

    assert paths("csv", tmp_path / "a") == [str(file) for file in files]
