"""`vitrail data`: what it prints, draws and refuses, and that it leaves the data as it is."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import write_photos
from vitrail.cli import main

TINY = ["--model.width", "16", "--model.heads", "2", "--model.depth", "1", "--batch-size", "4"]


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of ten noisy pictures, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"))


def digest(root: Path) -> str:
    """Give a hash of all names, contents, kinds and times below a folder."""
    found = sha256()
    for path in [root, *sorted(root.rglob("*"))]:
        found.update(f"{os.fsencode(path)!r} {path.lstat().st_mtime_ns}".encode())
        found.update(path.read_bytes() if path.is_file() else b"folder")
    return found.hexdigest()


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["data", *words])
    out, err = capsys.readouterr()
    return code, str(out), str(err)


def test_a_page_for_people_goes_to_standard_output_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = say(capsys, "photos")

    assert (code, err) == (0, "")
    assert out.startswith("photos: 20 images (16 train + 4 val), 2 classes\nno split of its own")
    assert "20% are held out, by class, with seed 0" in out
    assert "sizes    8 x 8 pixels" in out and "formats  20 PNG" in out


def test_json_is_one_document_whatever_the_names_are(capsys: pytest.CaptureFixture[str]) -> None:
    os.rename("photos/dark", os.fsencode("photos/new\nline 고 ") + b"\xff")
    Path("photos/light/bad \x1b.png").write_bytes(b"")

    code, out, err = say(capsys, "photos", "--json")

    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["classes"] == ["light", os.fsdecode("new\nline 고 ".encode() + b"\xff")]
    assert [bad["path"] for bad in found["bad"]] == ["light/bad \x1b.png"]
    assert sum(split["images"] for split in found["splits"].values()) == 21


def test_columns_of_other_names_are_found_by_every_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [f"{path},{path.parent.name}" for path in sorted(Path("photos").rglob("*.png"))]
    Path("table.csv").write_text("\n".join(["photo,kind", *files]))
    columns = ["--image-column", "photo", "--label-column", "kind"]

    code, out, err = say(capsys, "table.csv", *columns, "--show", "seen.png")
    assert (code, out, err) == (0, "seen.png\n", "")
    columns = [word.replace("--", "--data.") for word in columns]
    for more in (["--print-recipe"], ["--resume", "--out", "empty", "--print-recipe"]):
        assert main(["train", "table.csv", *columns, *more]) == 0
        assert 'label_column = "kind"' in str(capsys.readouterr().out)


def test_what_was_passed_over_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/dark/notes.txt").write_text("mine")
    note = "passed over: 1 without the name of an image"

    assert note in say(capsys, "photos")[1]
    assert say(capsys, "photos", "--json")[2] == note + "\n"
    assert say(capsys, "photos", "--show", "x.png")[1:] == ("x.png\n", note + "\n")


def test_bad_files_are_a_result_and_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    for file in Path("photos/dark").iterdir():
        file.write_bytes(b"<html>")

    code, out, _ = say(capsys, "photos")

    assert code == 0
    assert "10 images cannot be read (50.00%)" in out and "HTML page" in out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("nowhere", 2, ['there is no data at "nowhere"']),
        ("phottos", 2, ['Did you mean "photos"?']),
        ("photos --held-out-share 1.5", 2, ["held_out_share is 1.5", "below 1"]),
        ("photos --threads 0", 2, ["threads is 0", "1 or more"]),
        ("photos --split-seed -1", 2, ["split_seed is -1"]),
        ("photos --shwo x.png", 2, ['no flag "--shwo"', '"--show"']),
        ("photos --recipe digist", 2, ['"digist"', '"digits"']),
        ("nowhere --show x.gif", 2, ['"x.gif"', ".png .svg .pdf .jpg"]),
        ("one", 2, ['"one" has 1 class']),
        ("t.csv --label-column c", 2, ['lacks the column "c"', "path, label"]),
        ("photos --show file/x.png", 5, ["x.png", "cannot be written"]),
        ("photos --show gone/x.png", 5, ["x.png", "cannot be written"]),
    ],
)
def test_a_mistake_is_told_in_one_message(
    words: str, code: int, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(Path("one"), ("only",))
    Path("file").write_text("mine")
    Path("t.csv").write_text("path,label\na.png,1\n")

    found, out, err = say(capsys, *words.split())

    assert (found, out) == (code, "")
    assert [part for part in told if part not in err] == []
    assert err.count("\n") == 1 and "defect" not in err


def test_what_is_shown_is_split_as_training_splits_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text("[data]\nheld_out_share = 0.4\n")

    sizes = []
    for words in ([], ["--recipe", "mine.toml"], ["--held-out-share", "0.3"]):
        found = json.loads(say(capsys, "photos", "--json", *words)[1])
        sizes.append(found["splits"]["val"]["images"])
    assert sizes == [4, 8, 6]
    main(["train", "photos", *TINY, "--epochs", "1", "--out", "run", "--data.split-seed", "3"])
    capsys.readouterr()
    _, out, _ = say(capsys, "photos", "--split-seed", "3", "--json")
    held_out = json.loads(Path("run/summary.json").read_text())["held_out_images"]
    assert json.loads(out)["splits"]["val"]["images"] == held_out


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "jpg"])
def test_show_draws_the_first_images_and_says_where(
    suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = say(capsys, "photos", "--show", f"batch.{suffix}", "--recipe", "small-images")

    assert (code, out, err) == (0, f"batch.{suffix}\n", "")
    assert Path(f"batch.{suffix}").stat().st_size > 5000
    assert sorted(p.name for p in Path().iterdir()) == [f"batch.{suffix}", "photos"]


def test_show_depends_on_the_seed_and_on_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for name, more in {"a": [], "b": ["--threads", "3"], "c": ["--seed", "7"]}.items():
        assert say(capsys, "photos", "--show", f"{name}.png", *more)[0] == 0

    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


def test_show_as_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(say(capsys, "photos", "--show", "x.png", "--json")[1]) == {"show": "x.png"}


def test_show_tells_which_images_it_could_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/dark/new\nline.png").write_bytes(b"")

    code, out, err = say(capsys, "photos", "--show", "x.png", "--held-out-share", "0.1")

    assert (code, out) == (0, "x.png\n")
    assert err == "not read: dark/new\\nline.png: the file is empty\n"


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("x.png").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, out, err = say(capsys, "photos", "--show", "x.png")

    assert (code, out) == (5, "") and "No space left" in err
    assert Path("x.png").read_bytes() == b"old"
    assert sorted(p.name for p in Path().iterdir()) == ["photos", "x.png"]


@pytest.mark.parametrize("words", [[], ["--json"], ["--show", "x.png"]])
def test_the_data_stays_as_it_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(whole).save("photos/dark/corrupt.jpg")
    Path("photos/dark/corrupt.jpg").write_bytes(Path("photos/dark/corrupt.jpg").read_bytes()[:-90])
    before = digest(Path("photos"))

    assert say(capsys, "photos", *words)[0] == 0

    assert digest(Path("photos")) == before


@pytest.mark.parametrize("verb", ["data", "eval"])
def test_columns_of_a_table_can_be_named(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "photos", *TINY, "--epochs", "1", "--out", "run"]) == 0
    rows = [f"photos/{c}/{i}.png,{c}" for c in ("dark", "light") for i in range(10)]
    Path("t.csv").write_text("\n".join(["where,what", *rows]))
    words = ["t.csv", "--image-column", "where", "--label-column", "what", "--json"]
    capsys.readouterr()

    code = main([verb, *(["run"] if verb == "eval" else []), *words])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    images = found["images"] if verb == "eval" else found["splits"]["val"]["images"]
    assert images == 4


def test_progress_elsewhere_than_on_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.data.progress.SECONDS_BETWEEN_LINES", 0.0)

    code, out, err = say(capsys, "photos", "--json")

    assert (code, len(json.loads(out)["classes"])) == (0, 2)
    assert err.splitlines()[-1].startswith("images 20/20 ")


def test_progress_on_a_terminal_is_a_bar_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)

    code, out, err = say(capsys, "photos")

    assert code == 0 and out.startswith("photos: 20 images")
    assert "images" in err and "\x1b[3" not in err  # no colours


@pytest.mark.slow
def test_no_answer_but_a_picture_needs_torch() -> None:
    commands = ["data photos", "data photos --json", "data nowhere", "data photos --show x.gif",
                "data nowhere --show x.png", "data photos --recipe nothing --show x.png",
                "data --help", "data photos --split-seed -1"]  # fmt: skip
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


def test_the_readme_shows_the_real_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Look at your images first")[1]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    exec(section.split("```python\n")[1].split("```")[0], {})

    assert say(capsys, "photos") == (0, section.split("```text\n")[1].split("```")[0], "")
