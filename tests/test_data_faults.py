"""What can be wrong with data, one test a fault: each proves that the fault fired."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from test_decode import png_claiming
from vitrail.cli import main
from vitrail.data import folders

TINY = (
    "--train.steps 2 --batch-size 4 --device cpu --model.depth 1 --model.width 24 --model.heads 2 "
    "--model.image-size 8 8 --model.patch-size 4 --train.cpu-threads 1"
)
COUNT = 10  # images of a class


def photo(number: int, size: tuple[int, int] = (8, 8), form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


def photos(root: Path, classes: str = "ab", count: int = COUNT) -> Path:
    for c in classes:
        (root / c).mkdir(parents=True)
        for i in range(count):
            (root / c / f"{i}.jpg").write_bytes(photo(100 * ord(c) + i))
    return root


def tree(root: Path) -> dict[str, str]:
    """Give the sha256 of every file below a folder."""
    files = [file for file in root.rglob("*") if file.is_file()]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def train(data: Path, *flags: str) -> int:
    return main(["train", str(data), "--out", "run", *TINY.split(), *flags])


def summary() -> dict[str, Any]:
    return json.loads(Path("run/summary.json").read_text())


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


WHOLE = photo(0)
BAD = {
    "truncated": WHOLE[: len(WHOLE) // 2],
    "empty": b"",
    "text": b"no photo at all",
    "html": b"<!DOCTYPE html><html>404</html>",
    "bomb": png_claiming(60_000, 60_000),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_read_is_counted_listed_and_never_replaced(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(Path("photos"))
    (root / "a" / "bad one.jpg").write_bytes(BAD[kind])
    before = tree(root)

    assert train(root, "--data.max-bad-share", "0.5", "--train.steps", "10") == 0

    (bad,) = summary()["bad"]
    assert bad["path"].endswith("a/bad one.jpg") and bad["reason"]
    assert summary()["status"] == "finished"
    assert tree(root) == before
    if kind == "bomb":
        assert "100,000,000" in bad["reason"]
    capsys.readouterr()


@pytest.mark.parametrize("kind", BAD)
def test_more_bad_files_than_allowed_stop_the_run_with_their_names(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(Path("photos"))
    for i in range(6):
        (root / "b" / f"bad{i}.jpg").write_bytes(BAD[kind])

    assert train(root, "--train.steps", "10") == 2

    told = capsys.readouterr().err
    assert "bad" in told and ".jpg" in told and "max_bad_share" in told
    assert "Traceback" not in told
    assert summary()["status"] == "failed"


def test_one_pixel_is_an_image() -> None:
    root = photos(Path("photos"))
    (root / "a" / "dot.png").write_bytes(photo(3, (1, 1), "PNG"))

    assert train(root, "--data.max-bad-share", "0", "--train.steps", "10") == 0
    assert train(root, "--out", "cropped", "--augment.crop-scale", "0.1", "--override") == 0

    assert summary()["bad"] == []


def test_held_out_classes_are_the_training_ones_or_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos(Path("more/train"), "abc")
    photos(Path("more/val"), "bc")
    photos(Path("strange/train"), "ab")
    photos(Path("strange/val"), "abz")

    assert train(Path("more")) == 0
    assert "val of more has no image of a" in capsys.readouterr().err
    assert json.loads(Path("run/last/config.json").read_text())["labels"] == ["a", "b", "c"]
    assert train(Path("strange"), "--override") == 2
    assert "classes that the training images lack: z" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda r: (photos(r), (r / "c").mkdir()), 'class folder "photos/c" holds no image'),
        (lambda r: photos(r, "a"), "has 1 class"),
        (lambda r: (r / "a").mkdir(parents=True), "holds no images"),
        (lambda r: r.mkdir(), "holds no images"),
        (lambda r: photos(r, "ab", 1), "one image"),
        (lambda r: photos(r, "ab", 2), "batch_size 4 is more than the 2 training images"),
    ],
    ids=["empty class", "one class", "no images", "empty folder", "one image", "large batch"],
)
def test_too_little_data_is_told_and_no_step_is_no_success(
    make: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(Path("photos"))

    assert train(Path("photos")) == 2

    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("repeats", "told"), [("15", "the 15 images of an epoch"), ("17", "augment.repeats to 1")]
)
def test_repeats_that_leave_no_step_are_named(
    repeats: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(Path("photos"))

    assert train(Path("photos"), "--batch-size", "16", "--augment.repeats", repeats) == 2

    error = capsys.readouterr().err
    assert told in error and f"augment.repeats {repeats} times each, of 16 training" in error
    assert not Path("run/last").exists()


NAMES = ("a b.jpg", "Ärger.jpg", "🦊.jpg", "-b.jpg", "two\nlines.jpg", "--out.jpg")


def test_any_file_name_works_and_outputs_do_not_overwrite_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path("my photos")
    for c in ("- dash", "émoji 🦊"):
        (root / c).mkdir(parents=True)
        for i, name in enumerate(NAMES * 2):
            (root / c / (name if i < len(NAMES) else f"{i}{name}")).write_bytes(photo(i))

    assert train(root) == 0
    examples = sorted(Path("run/examples").iterdir())

    held_out = summary()["held_out_images"]
    assert len(examples) == min(held_out, 10) and len({*examples}) == len(examples)
    capsys.readouterr()
    assert main(["predict", "run", "--format", "jsonl", "--", *map(str, examples)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == [str(e) for e in examples]
    assert {top["label"] for row in rows for top in row["top"]} == {"- dash", "émoji 🦊"}


@pytest.mark.parametrize("kind", ["../out.jpg", "/outside/out.jpg", "link"])
def test_a_tar_that_points_outside_is_refused_and_nothing_is_written(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open("set.tar", "w") as tar:
        member = tarfile.TarInfo("a/link.jpg" if kind == "link" else kind)
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "../../out.jpg"
            tar.addfile(member)
        else:
            member.size = len(WHOLE)
            tar.addfile(member, io.BytesIO(WHOLE))

    assert train(Path("set.tar")) == 3

    told = capsys.readouterr().err
    assert ("a/link.jpg" if kind == "link" else kind) in told
    assert sorted(os.listdir()) == ["set.tar"]


def test_a_pipe_is_named_and_nothing_waits_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(Path("photos"))
    os.mkfifo(root / "a" / "pipe.jpg")

    assert train(root, "--data.timeout", "1") == 2

    assert "pipe.jpg" in capsys.readouterr().err


def test_storage_that_goes_silent_is_named_within_the_time_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from threading import Event

    root, silent, read = photos(Path("photos")), Event(), folders.read
    reached: list[str] = []

    def hanging(path: str) -> bytes:
        if path.endswith("a/3.jpg"):
            reached.append(path)
            silent.wait(60)
        return read(path)

    monkeypatch.setattr(folders, "read", hanging)

    assert train(root, "--data.timeout", "0.5", "--data.held-out-share", "0.1") == 2

    assert reached and "a/3.jpg" in capsys.readouterr().err
    silent.set()


def test_no_command_changes_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(Path("photos"))
    (root / "a" / "corrupt.jpg").write_bytes(BAD["truncated"])
    before, times = tree(root), {f: os.stat(f).st_mtime_ns for f in tree(root)}
    files = [str(file) for file in sorted(root.rglob("*.jpg"))]

    train(root, "--data.max-bad-share", "1")
    main(["eval", "run", str(root)])
    main(["predict", "run", *files])

    capsys.readouterr()
    assert tree(root) == before and {f: os.stat(f).st_mtime_ns for f in before} == times
