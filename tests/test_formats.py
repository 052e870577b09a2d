import csv
import json
import os
from pathlib import Path

import pytest

from vitrail.errors import OutputError
from vitrail.inference.formats import write_predictions
from vitrail.inference.predict import Answer, Prediction

NAMES = ["a,b", 'say "a"', "new\nline", "return\rhere", "🦊 é", "-b", "semi;colon", " blank ", ""]


def rows() -> list[Prediction]:
    good = [
        Prediction(
            path=f"{name}.png",
            error=None,
            top=(
                Answer(label=name, index=i, probability=0.1 + i / 100),
                Answer(label="other", index=99, probability=1e-9),
            ),
        )
        for i, name in enumerate(NAMES)
    ]
    return [*good, Prediction(path="bad,\n.png", error='no "image", here', top=())]


def test_csv_parses_back_whatever_the_names_are(tmp_path: Path) -> None:
    failed = write_predictions(rows(), "csv", str(tmp_path / "a.csv"))

    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert failed == 1
    assert list(read[0]) == ["path", "label", "probability", "labels", "probabilities", "error"]
    assert [row["path"] for row in read] == [row.path for row in rows()]
    assert [row["label"] for row in read] == [*NAMES, ""]
    assert [float(row["probability"]) for row in read[:-1]] == [
        r.top[0].probability for r in rows()[:-1]
    ]
    assert [float(p) for p in read[0]["probabilities"].split(";")] == [0.1, 1e-9]
    assert read[0]["labels"] == "a,b;other"
    assert [row["error"] for row in read] == [""] * len(NAMES) + ['no "image", here']


def test_json_lines_have_the_form_that_others_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    failed = write_predictions(rows(), "jsonl", None)

    lines = capsys.readouterr().out.split("\n")
    read = [json.loads(line) for line in lines[:-1]]
    assert failed == 1 and lines[-1] == ""
    assert [list(row) for row in read] == [["path", "error", "top"]] * (len(NAMES) + 1)
    assert [row["path"] for row in read] == [row.path for row in rows()]
    assert read[1]["top"][0] == {"label": 'say "a"', "index": 1, "probability": 0.11}
    assert read[1]["error"] is None
    assert (read[-1]["error"], read[-1]["top"]) == ('no "image", here', [])


def test_one_json_document_is_a_list_of_the_lines(tmp_path: Path) -> None:
    write_predictions(rows(), "json", str(tmp_path / "a.json"))

    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps([row.to_json() for row in rows()]))


def test_a_table_has_one_line_for_each_image(capsys: pytest.CaptureFixture[str]) -> None:
    write_predictions(rows(), "table", None)

    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == len(NAMES) + 2
    assert lines[0].split() == ["a,b.png", "a,b", "10.0%", "other", "0.0%"]
    assert lines[-2].endswith('error: no "image", here')


def test_a_name_that_is_not_utf_8_is_written_in_every_form(tmp_path: Path) -> None:
    row = Prediction(path="caf\udce9.png", error=None, top=())

    for form in ("table", "csv", "jsonl", "json"):
        assert write_predictions([row], form, str(tmp_path / form)) == 0
        assert b"caf" in (tmp_path / form).read_bytes()


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_predictions(rows(), "csv", str(tmp_path))
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    write_predictions([], "csv", str(tmp_path / "pipe"))

    assert (tmp_path / "pipe").is_fifo()
    assert os.read(reader, 1000).startswith(b"path,label")
    os.close(reader)
