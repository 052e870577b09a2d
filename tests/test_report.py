"""`vitrail report`: pages of evaluations, of runs with their images, and of several at once."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runs import RECIPE, write_photos
from test_reporting import NASTY, Tags, change, write_run
from vitrail.cli import main
from vitrail.data.sources import BadFile
from vitrail.errors import DataError, OutputError
from vitrail.inference.comparing import compare
from vitrail.inference.evaluate import Scored
from vitrail.inference.evaluation_files import write_evaluation
from vitrail.reporting.report import report
from vitrail.training.loop import train


def scored(labels: list[int], answers: list[int], names: list[str], sure: float = 3.0) -> Scored:
    """Answers to images of several sizes, each `sure` logits above the other classes."""
    scores = np.zeros((len(labels), len(names)), np.float32)
    scores[np.arange(len(labels)), answers] = sure + np.arange(len(labels)) / 100
    sides = np.array([[30 + 40 * (i % 3), 200] for i in range(len(labels))], np.int32)
    paths = tuple(f"{names[label]}/{i}.png" for i, label in enumerate(labels))
    places = np.arange(len(labels))
    bad = (BadFile(f"{names[0]}/bad.png", "no image"),)
    return Scored(scores, np.array(labels), tuple(names), places, paths, sides, bad)


def write_eval(folder: Path, answered: Scored, **more: Any) -> Path:
    about = {"model": "runs/photos-1", "data": "nowhere", "data_options": {}}
    found = answered.evaluation().to_json() | about | more
    write_evaluation(found, answered, str(folder))
    return folder


def read(page: Path) -> tuple[str, Tags]:
    text = page.read_text("utf-8")
    tags = Tags(text)
    assert tags.open == []
    heads = [int(tag[1]) for tag, _ in tags.seen if re.fullmatch("h[1-6]", tag)]
    assert heads[0] == 1 and heads.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(heads))
    assert all(a.get("alt") for tag, a in tags.seen if tag == "img")
    return text, tags


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of photos, `one` and `two`, that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_photos(Path("photos"))
        for seed, name in enumerate(("one", "two")):
            train(replace(RECIPE, train=replace(RECIPE.train, seed=seed)), name)
    return folder


@pytest.fixture
def copied(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the same runs, as if they had been trained where they are now."""
    folder = shutil.copytree(runs, tmp_path / "runs")
    for run, name in product(("one", "two"), ("environment.json", "evaluation.json")):
        change(folder / run / name, started_in=str(folder))
    monkeypatch.chdir(folder)
    return folder


def test_a_run_leaves_what_eval_would_write(copied: Path) -> None:
    assert main(["eval", "one", "photos", "-o", "measured", "--device", "cpu"]) == 0

    ours, evals = (
        json.loads((copied / folder / "evaluation.json").read_text())
        for folder in ("one", "measured")
    )

    assert ours.keys() == evals.keys()
    for key in ("images", "confusion", "per_class", "sizes", "data", "data_options"):
        assert ours[key] == evals[key], key
    assert ours["nll"] == pytest.approx(evals["nll"], rel=1e-5)
    rows = [
        (copied / f / "predictions.jsonl").read_text().splitlines() for f in ("one", "measured")
    ]
    paths = [[json.loads(line)["path"] for line in lines] for lines in rows]
    assert paths[0] == paths[1] and len(paths[0]) == 4


def test_the_page_of_a_run_shows_images_and_where_the_model_looked(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    before = (runs / "one" / "report.html").read_bytes()

    page, tags = read(report([Path("one")]))

    images = [a["alt"] or "" for tag, a in tags.seen if tag == "img"]
    assert sum(", labelled " in alt for alt in images) >= 4  # the four held-out ones hesitate
    assert sum(alt.startswith("Where the model looked in it: most at the") for alt in images) >= 4
    assert "Where it hesitates" in tags.text and "How far to trust it" in tags.text
    assert "training images 16, 8 of each class" in tags.text
    assert "What this page lacks" not in tags.text
    assert page.encode() == before  # the run itself has written the same


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        ("photos", 'The images are not shown: there is no data at "photos"'),
        ("one/last", "Where the model looked is not shown: "),
        ("one/predictions.jsonl", "predictions.jsonl is not in the folder: mistakes and doubts."),
        ("one/evaluation.json", "evaluation.json is not in the folder: calibration"),
        ("one/environment.json", "environment.json is not in the folder: where it was made."),
        ("one/metrics.jsonl", "metrics.jsonl is not in the folder: how it learned."),
        ("one/recipe.toml", "recipe.toml is not in the folder"),
        ("one/summary.json", "summary.json is not in the folder: how the run ended"),
    ],
)
def test_what_is_lost_is_told_and_the_rest_is_shown(copied: Path, lose: str, words: str) -> None:
    path = copied / lose
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    _, tags = read(report([Path("one")]))

    assert words in tags.text.partition("What this page lacks")[2]


def test_a_page_finds_the_data_from_any_folder(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(RECIPE, train=replace(RECIPE.train, epochs=1)), "here")
    assert main(["eval", "here", "photos", "-o", "measured", "--device", "cpu"]) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    _, run = read(report([copied / "here"]))
    _, measured = read(report([copied / "measured"]))
    _, both = read(report([copied / "here", copied / "measured"]))

    for tags in (run, measured):
        images = [a["alt"] or "" for tag, a in tags.seen if tag == "img"]
        assert sum(alt.startswith("Where the model looked in it") for alt in images) >= 4
        assert "What this page lacks" not in tags.text
    assert f"vitrail eval {copied}/here {copied}/photos" in run.text
    assert f"vitrail eval {copied}/here {copied}/photos -o {copied}/measured" in measured.text
    assert "here measured 4 0 0" in both.text


def test_eval_says_where_the_run_had_its_data(
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["eval", "runs/one", "photos"]) == 2
    told = capsys.readouterr().err
    assert main(["eval", "runs/one", "nowhere"]) == 2
    silent = capsys.readouterr().err

    assert f'was trained in "{copied}", where there is: give "{copied}/photos"' in told
    assert "was trained in" not in silent


def test_an_image_that_is_no_longer_what_it_was_is_counted(copied: Path) -> None:
    for path in (copied / "photos").rglob("*.png"):
        path.write_bytes(b"no image")

    _, tags = read(report([Path("one")]))

    assert re.search(r"4 of the 4 images below could not be found again", tags.text)


def test_a_run_that_goes_on_does_not_show_the_evaluation_it_had(copied: Path) -> None:
    change(copied / "one" / "summary.json", status="running", evaluation=None)

    _, tags = read(report([Path("one")]))

    assert "What it confuses" not in tags.text
    assert "This run had not ended" in tags.text


def test_two_runs_are_compared_by_curve_recipe_and_image(copied: Path) -> None:
    path = report([Path("one"), Path("two")])

    _, tags = read(path)

    assert path == Path("comparison.html")
    assert "train.seed 0 1" in tags.text
    assert "optimizer.lr" not in tags.text
    right = []
    for run in ("one", "two"):
        lines = (copied / run / "predictions.jsonl").read_text().splitlines()
        answers = [json.loads(line) for line in lines]
        right.append({i: a["label"] == a["top"][0]["label"] for i, a in enumerate(answers)})
    found = compare(*right)
    assert f"one two 4 {found.only_this_right} {found.only_other_right}" in tags.text
    assert "Held-out accuracy" in tags.text
    labels = [a["aria-label"] or "" for tag, a in tags.seen if tag == "svg" and "aria-label" in a]
    assert sum("one ends at" in label and "two ends at" in label for label in labels) == 3


def test_an_evaluation_has_a_page(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat"]
    folder = write_eval(
        tmp_path / "e", scored([0] * 10 + [1] * 10 + [2] * 10, [0] * 11 + [1] * 9 + [2] * 10, names)
    )

    page, tags = read(report([folder]))

    assert "runs/photos-1 named 29 of 30 held-out images of nowhere right." in tags.text
    assert "bee ant 1 10.0%" in tags.text
    assert (
        "named ant, 9" in tags.text and "labelled bee, " in tags.text and "bee/10.png" in tags.text
    )
    assert "1 file could not be read and is in no figure" in tags.text
    assert f"vitrail eval runs/photos-1 nowhere -o {folder}" in tags.text
    assert (
        "Of the 20 images with a shorter side of 70–110 pixels 95.0% are named right" in tags.text
    )
    assert 'The images are not shown: there is no data at "nowhere"' in tags.text
    assert page.count("<svg") == 3


@pytest.mark.parametrize(
    ("labels", "answers", "sure", "words"),
    [
        ([0, 1], [0, 1], 9.0, ("Every answer is right", "It made no mistake", "0 of 2 held-out")),
        ([0, 1], [1, 0], 9.0, ("Every answer is wrong", "surer than it should be", "named 0 of 2")),
        ([0], [0], 9.0, ("named 1 of 1 held-out image of", "With 1 image to judge by")),
        ([0, 0], [0, 1], 0.0, ("named 1 of 2",)),
    ],
)
def test_its_words_are_true_at_the_ends(
    tmp_path: Path, labels: list[int], answers: list[int], sure: float, words: tuple[str, ...]
) -> None:
    folder = write_eval(tmp_path / "e", scored(labels, answers, ["ant", "bee"], sure))

    _, tags = read(report([folder]))

    for text in words:
        assert text.replace("0 of 2 held-out", "0 of 2 held-out images") in tags.text


def test_the_most_confident_mistake_comes_first(tmp_path: Path) -> None:
    folder = write_eval(tmp_path / "e", scored([0, 0, 0, 1], [1, 1, 0, 1], ["ant", "bee"]))

    _, tags = read(report([folder]))

    worst = tags.text.partition("Its worst mistakes")[2].partition("Where it hesitates")[0]
    assert worst.index("ant/1.png") < worst.index("ant/0.png")
    assert "ant/2.png" not in worst


def test_what_a_person_named_is_text_on_every_page(tmp_path: Path) -> None:
    names = [NASTY, "<script>alert(1)</script>", "$x_$"]
    answered = scored([0, 1, 2, 2], [1, 0, 2, 2], names)
    one = write_eval(tmp_path / NASTY, answered, model=NASTY, data=NASTY)
    two = write_eval(tmp_path / "$x_$", answered)
    run = write_run(tmp_path / "run", names)

    for page in (
        report([one]),
        report([two]),
        report([run]),
        report([one, two, run], tmp_path / "c.html"),
    ):
        text, tags = read(page)
        assert "<b>" not in text.replace('<b class="', "")
        assert [a for tag, a in tags.seen if tag == "script"] == [{}]
        assert "alert(1)" in tags.text or page.name == "c.html"


def test_a_thousand_classes_fit_on_a_page(tmp_path: Path) -> None:
    names = [f"class number {i} with a long name" for i in range(1000)]
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 1000, 3000).tolist()
    answers = [n if draws.random() < 0.7 else int(draws.integers(0, 1000)) for n in labels]
    folder = write_eval(tmp_path / "e", scored(labels, answers, names, 6.0))

    page, tags = read(report([folder]))

    assert len(page) < 1_500_000
    assert "With 1,000 classes the matrix is a picture" in tags.text
    assert "A cell stands for 5 x 5 classes." in tags.text
    assert page.count('<th scope="row">class number') == 1000


def test_rows_with_the_best_classes_alone_are_enough(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(8)]
    answered = scored([0, 7, 3], [0, 1, 3], names)
    folder = tmp_path / "e"
    found = answered.evaluation().to_json()
    write_evaluation(found, answered, folder, whole=False)

    _, tags = read(report([folder]))

    assert '"probabilities"' not in (folder / "predictions.jsonl").read_text()
    assert "named c1" in tags.text and "labelled c7" in tags.text


def test_models_on_other_images_are_not_compared_image_by_image(tmp_path: Path) -> None:
    names = ["ant", "bee"]
    answered = scored([0, 1, 0, 1], [0, 1, 1, 1], names)
    one = write_eval(tmp_path / "one", answered)
    two = write_eval(tmp_path / "two", answered, data="elsewhere")
    three = write_eval(tmp_path / "three", scored([1, 0, 1, 0], [1, 0, 1, 0], names))

    _, tags = read(report([one, two, three], tmp_path / "c.html"))

    assert "one and two are not compared image by image: they were measured on" in tags.text
    assert "one and three are not compared image by image: no image was answered" in tags.text
    assert "They were measured on different data" in tags.text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("evaluation.json", "{", "cannot be read"),
        ("evaluation.json", '{"images": 3}', "holds no evaluation"),
        ("predictions.jsonl", '{"path": "a"}\n', "line 1 is no answer"),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, words: str
) -> None:
    folder = write_eval(tmp_path / "e", scored([0, 1], [0, 1], ["ant", "bee"]))
    (folder / name).write_text(text, "utf-8")

    assert main(["report", str(folder)]) == 2

    error = capsys.readouterr().err
    assert words in error and name in error


def test_a_recipe_that_is_no_text_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["ant", "bee"])
    (run / "recipe.toml").write_bytes(b"\xff\xfe")

    with pytest.raises(DataError, match=r"recipe\.toml cannot be read"):
        report([run])


def test_what_is_no_run_is_answered_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/photos-1"), ["ant", "bee"])
    Path("empty").mkdir()
    Path("file").write_text("")

    for words, wanted in (
        ((), "`vitrail report RUN` writes its page"),
        (("runs/photo-1",), "there is no runs/photo-1; give a folder that `vitrail train` or"),
        (("runs/photo-1",), 'Did you mean "photos-1"?'),
        (("runs",), "runs is no run but holds 1, such as runs/photos-1"),
        (("runs/photos-1/last",), "is a part of the run runs/photos-1; give that"),
        (("empty",), "empty holds neither a run nor an evaluation"),
        (("file",), "file is a file and no folder of a run"),
        (("runs/photos-1", "empty"), "empty holds neither"),
    ):
        assert main(["report", *words]) == 2
        assert wanted in capsys.readouterr().err
    with pytest.raises(OutputError, match=r"empty is a folder; -o names the page's file"):
        report([Path("runs/photos-1")], Path("empty"))
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize("folders", [["nothing"], ["e"], ["e", "run"]])
def test_torch_waits_for_a_model_and_a_mistake_for_nothing(
    tmp_path: Path, folders: list[str]
) -> None:
    write_eval(tmp_path / "e", scored([0, 1], [0, 1], ["ant", "bee"]))
    write_run(tmp_path / "run", ["ant", "bee"])
    words = ["report", *(str(tmp_path / folder) for folder in folders)]
    heavy = ("torch", "sklearn", "matplotlib")
    code = (
        "import sys; from vitrail.cli import main\n"
        f"main([*{words}, '-o', {str(tmp_path / 'page.html')!r}])\n"
        f"print(*(m for m in {heavy} if m in sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == ""
    assert (tmp_path / "page.html").exists() == (folders != ["nothing"])


def test_open_shows_the_page_in_the_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", ["ant", "bee"])
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)))

    assert main(["report", str(run), "--open", "-o", str(tmp_path / "my page.html")]) == 0

    out, error = capsys.readouterr()
    assert out == f"{tmp_path / 'my page.html'}\n"
    assert opened == [(tmp_path / "my page.html").as_uri()]
    assert "no browser was found; open" in error
    assert not (run / "report.html").exists()
