"""The command line at work: answers in every form, signals, closed pipes, and no torch too soon."""

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from PIL import Image

from runs import status, write_photos
from vitrail.cli import main
from vitrail.inference.formats import run_text

TINY = ["--model.width", "16", "--model.heads", "2", "--model.depth", "1", "--batch-size", "4"]
NAMES = ["plain.png", "two words.png", "제비 🐈 é.png", "new\nline.png", "-b.jpg", "a,b;c.png"]
COMMAND = [sys.executable, "-W", "error", "-m", "vitrail.cli"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that has ended."""
    assert main(["train", "photos", *TINY, "--epochs", "1", "--out", "run"]) == 0
    capsys.readouterr()
    return Path("run")


def vitrail(*words: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.run([*COMMAND, *map(str, words)], text=True, env=ONE_THREAD, **how)


def test_train_says_on_standard_output_how_it_ended_and_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "photos", *TINY, "--epochs", "1"]) == 0

    out, err = capsys.readouterr()
    assert "top-1 " in out and out.splitlines()[-1] == "runs/photos-1"
    assert "loss" in err and "images/s" in err


def test_train_ends_with_a_table_of_what_is_known() -> None:
    rates = {"label": "a", "count": 10, "precision": 1.0, "recall": 0.9, "f1": 0.95}
    found = {"images": 360, "top1_interval": [0.964, 0.992], "per_class": [rates] * 10}
    summary = {
        "top1": 0.98333,
        "top5": 0.99722,
        "loss": 0.08541,
        "best_top1": 0.98611,
        "best_step": 1120,
        "parameters": 202186,
        "step": 1680,
        "seconds": 23.9,
        "cpu_seconds": 12.0,
        "images_per_second": 1616.6,
        "peak_share": 0.127,
        "skipped_steps": 3,
        "bad": [{"path": "a.jpg", "reason": "empty"}],
        "evaluation": found,
    }

    assert run_text(Path("my run"), summary).splitlines() == [
        "top-1           98.33%   95 % interval 96.4% to 99.2%; 6 of 360 wrong",
        "top-5           99.72%",
        "loss            0.0854",
        "best top-1      98.61%   at step 1,120",
        "parameters     202,186",
        "steps            1,680",
        "seconds             24   12 CPU-seconds",
        "images/s         1,617   13% of what this device multiplies at most",
        "skipped              3   steps that were not finite",
        "bad files            1   left out; the report lists them",
        "",
        "report: my run/report.html",
        "try it: vitrail predict 'my run' 'my run/examples'/*",
        "my run",
    ]


def test_a_table_leaves_out_what_a_run_of_before_did_not_know(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    new = ("best_step", "images_per_second", "peak_share", "skipped_steps")
    old = {name: value for name, value in summary.items() if name not in new}

    named = [line.split("  ")[0] for line in run_text(run, old).splitlines()]

    assert set(new) <= summary.keys() and summary["best_step"] == summary["step"]
    assert named[:6] == ["top-1", "loss", "best top-1", "parameters", "steps", "seconds"]
    assert named[6] == ""  # two classes have no top-5, and nothing was skipped or bad


def test_the_line_to_try_is_a_command_for_any_folder_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["train", "photos", *TINY, "--epochs", "1", "--out", "my run's"])

    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("try it: "))
    words = shlex.split(line.removeprefix("try it: "))
    assert words[:3] == ["vitrail", "predict", "my run's"]


def test_every_file_name_is_answered_for_under_its_own(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        Image.new("RGB", (8, 8)).save(name)

    code = main(["predict", str(run), "--format", "jsonl", "--", *NAMES])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0
    assert [line["path"] for line in lines] == NAMES
    assert all(list(line) == ["path", "error", "top"] for line in lines)
    assert all(sum(a["probability"] for a in line["top"]) == pytest.approx(1) for line in lines)


@pytest.mark.parametrize("how", ["table", "csv", "jsonl", "json"])
@pytest.mark.parametrize("to", ["file", "stdout"])
def test_a_bad_file_is_a_row_and_the_others_are_answered(
    how: str, to: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.png").write_text("<html>not found</html>")
    words = ["photos/dark/0.png", "bad.png", "gone.png", "photos/light", "--top", "1"]
    words += ["--json"] if how == "json" else ["--format", how]

    code = main(["predict", str(run), *words, *(["-o", "answers"] if to == "file" else [])])

    out, err = capsys.readouterr()
    text = Path("answers").read_text() if to == "file" else out
    assert (code, err.count("\n")) == (2, 1) and err.startswith("engine torch, float32: ")
    assert to == "stdout" or out == ""
    if how == "table":
        lines = text.splitlines()
        assert len(lines) == 13
        assert "error: this is an HTML page" in lines[1] and "No such file" in lines[2]
        return
    if how == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert list(rows[0]) == ["path", "label", "probability", "labels", "probabilities", "error"]
        errors = [row["error"] or None for row in rows]
        labels = [row["label"] or None for row in rows]
    else:
        rows = [json.loads(x) for x in text.splitlines()] if how == "jsonl" else json.loads(text)
        errors = [row["error"] for row in rows]
        labels = [row["top"][0]["label"] if row["top"] else None for row in rows]
    assert [row["path"] for row in rows][:3] == ["photos/dark/0.png", "bad.png", "gone.png"]
    assert [error is not None for error in errors] == [False, True, True] + [False] * 10
    assert labels[1:3] == [None, None] and set(labels) == {None, "dark", "light"}


def test_output_goes_into_what_is_no_plain_file_and_not_in_its_place(run: Path) -> None:
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)

    code = main(["predict", str(run), "photos/dark/0.png", "--format", "jsonl", "-o", "pipe"])

    text = os.read(reader, 65536)
    os.close(reader)
    assert (code, json.loads(text)["path"]) == (0, "photos/dark/0.png")
    assert Path("pipe").is_fifo()


def test_a_bundle_that_lost_a_tensor_is_told_and_not_changed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "last" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["norm.weight"]
    tensors["head.bias"] = tensors["head.bias"][:1].clone()
    safetensors.torch.save_file(tensors, file)
    before = file.read_bytes()

    codes = [main([verb, str(run), "photos"]) for verb in ("predict", "eval")]

    err = capsys.readouterr().err
    assert codes == [2, 2]
    assert "norm.weight" in err and "head.bias (1,), not (2,)" in err
    assert file.read_bytes() == before


def test_eval_measures_the_held_out_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())

    assert main(["eval", str(run), "photos", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["failed"], found["top1"]) == (4, 0, summary["top1"])
    assert main(["eval", str(run), "photos"]) == 0
    assert "95 % interval" in capsys.readouterr().out


def test_resume_alone_continues_the_run_by_its_own_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("vitrail.training.loop.finish", _interrupted)
        assert main(["train", "photos", *TINY, "--epochs", "1"]) == 130

    code = main(["train", "photos", "--resume"])

    assert (code, status("runs/photos-1")) == (0, "finished")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_saves_and_the_printed_command_ends_the_run(number: int, code: int) -> None:
    words = ["train", "photos", *TINY, "--epochs", "40", "--train.log-every", "1"]
    out = "my run"
    with open("err.txt", "w") as err:
        process = subprocess.Popen([*COMMAND, *words, "--out", out], stderr=err, env=ONE_THREAD)
    try:
        metrics = Path(out, "metrics.jsonl")
        deadline = time.monotonic() + 60
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(60) == code
    finally:
        process.kill()
        process.wait()
    assert status(out) == "interrupted"
    told = Path("err.txt").read_text()
    line = next(x.strip() for x in told.splitlines() if x.strip().startswith("vitrail train"))

    assert "Traceback" not in told
    if number == signal.SIGINT:
        assert main(shlex.split(line)[1:]) == 0
        assert status(out) == "finished"


@pytest.mark.slow
def test_the_way_to_an_answer_without_a_model_imports_no_torch() -> None:
    commands = [
        "--help",
        "--version",
        "train --help",
        "train --help-all",
        "presets --json",
        "train digits --epoch 3",
        "train digits --epochs x",
        "train digits --model vit-ti61",
        "train digits --recipe digist",
        "train digits --model.width 30",
        "train photos --print-recipe",
        "train nowhere",
        "eval nano nowhere",
        "predict nowhere x.png",
    ]
    script = f"""
import sys
from vitrail.cli import main
for words in {commands!r}:
    try:
        main(words.split())
    except SystemExit:
        pass
    if "torch" in sys.modules:
        sys.exit(words)
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", ["presets --json", "--help"])
def test_a_reader_that_left_is_no_error(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    done = vitrail(*words.split(), stdout=writing)

    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_of_progress_that_left_does_not_stop_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Left(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Left())

    assert main(["train", "photos", *TINY, "--epochs", "1", "--out", "run"]) == 0

    assert status("run") == "finished"


@pytest.mark.slow
def test_doctor_and_presets_have_a_page_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert [main(["presets"]), main(["doctor"])] == [0, 0]

    out = capsys.readouterr().out
    assert "blog-b16" in out and "86,567,656" in out
    assert "packages" in out and "cores" in out


def test_an_error_of_ours_says_so_and_debug_shows_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.doctor.examine", lambda: 1 / 0)

    assert main(["doctor"]) == 1
    assert "defect of vitrail" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["doctor", "--debug"])
