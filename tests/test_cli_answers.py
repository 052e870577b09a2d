"""`predict`, `embed` and `eval` as a person types them, on a run that has ended."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import vitrail
from runs import write_photos
from vitrail.cli import main

TINY = ["--model.width", "16", "--model.heads", "2", "--model.depth", "1", "--batch-size", "4"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Say = Callable[..., Said]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, beside its photos; tests change nothing in it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_photos(folder / "photos")
    assert main(["train", str(data), *TINY, "--epochs", "1", "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))

    def say(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Said(code, str(out), str(err))

    return say


def test_predict_answers_for_patterns_folders_and_sets(trained: Path, say: Say) -> None:
    words = ["photos/dark/?.png", "photos/light", "digits"]

    said = say("predict", trained, *words, "--format", "jsonl", "--top", 1)

    paths = [json.loads(line)["path"] for line in said.out.splitlines()]
    assert said.code == 0 and len(paths) == 20 + 1797
    assert paths[:2] == ["photos/dark/0.png", "photos/dark/1.png"]
    assert paths[20] == "digit-0000-is-0.png"


def test_grey_images_are_answered_for_by_a_model_of_colours(trained: Path, say: Say) -> None:
    Image.fromarray(np.full((9, 7), 200, np.uint8)).save("-grey.png")
    Image.fromarray(np.full((9, 7, 3), 200, np.uint8)).save("rgb.png")

    said = say("predict", trained, "--format", "jsonl", "--", "-grey.png", "rgb.png")

    grey, colour = (json.loads(line) for line in said.out.splitlines())
    assert (said.code, grey["path"], grey["error"]) == (0, "-grey.png", None)
    assert grey["top"] == colour["top"]


def test_the_same_command_again_has_nothing_to_do_and_another_one_is_refused(
    trained: Path, say: Say
) -> None:
    words = ["predict", trained, "photos", "--format", "csv", "-o", "a.csv"]

    assert say(*words).code == 0
    first = Path("a.csv").read_bytes()

    assert say(*words).code == 0
    assert Path("a.csv").read_bytes() == first
    assert len(list(csv.reader(first.decode().splitlines()))) == 21
    other = say(*words, "--top", 1)
    assert other.code == 2 and "with top 5, not 1" in other.err
    other = say(*words, "--merge", 2)
    assert other.code == 2 and "with merge 0, not 2" in other.err
    other = say(*words, "--aspect")
    assert other.code == 2 and "with aspect False, not True" in other.err
    other = say("predict", "nano", "photos", "--format", "csv", "-o", "a.csv")
    assert other.code == 2 and "by another model" in other.err
    assert Path("a.csv").read_bytes() == first


def test_images_of_many_shapes_are_answered_for_in_their_order(trained: Path, say: Say) -> None:
    draws = np.random.default_rng(0)
    Path("shapes").mkdir()
    for i in range(11):
        pixels = draws.integers(0, 256, (60 + 40 * (i % 3), 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"shapes/{i:02}.png")
    words = ["predict", trained, "shapes", "--aspect"]

    said = say(*words, "--batch-size", 2, "-o", "a.jsonl")
    alone = [
        json.loads(say(*words[:2], f"shapes/{i:02}.png", "--aspect", "--json").out)[0]
        for i in range(11)
    ]

    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert said.code == 0 and [row["path"] for row in rows] == [row["path"] for row in alone]
    for row, wanted in zip(rows, alone, strict=True):
        assert row["top"][0]["index"] == wanted["top"][0]["index"]
        # A batch of two and of one differ in the last bits of float32.
        assert row["top"][0]["probability"] == pytest.approx(wanted["top"][0]["probability"], 1e-4)


@pytest.mark.slow
def test_a_file_is_in_the_form_that_its_name_asks_for(trained: Path, say: Say) -> None:
    words = ["predict", trained, "photos/dark"]

    codes = [say(*words, "-o", name).code for name in ("a.csv", "a.jsonl", "a.json", "a.txt")]
    said = say(*words, "-o", "b.csv", "--format", "jsonl")

    assert codes == [0, 0, 0, 0] and said.code == 0
    assert Path("a.csv").read_text().startswith("path,label,probability,")
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert lines == json.loads(Path("a.json").read_text()) and Path("a.txt").read_text()[0] != "{"
    assert Path("b.csv").read_text() == Path("a.jsonl").read_text()


def test_a_killed_prediction_goes_on_to_the_same_file(trained: Path, say: Say) -> None:
    words = ["predict", str(trained), "digits", "--format", "jsonl", "--batch-size", "1"]
    say(*words, "-o", "whole.jsonl")
    command = [sys.executable, "-m", "vitrail.cli", *words, "-o", "a.jsonl"]

    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not Path("a.jsonl").is_file():
        pass
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert Path("a.jsonl").stat().st_size < Path("whole.jsonl").stat().st_size
    assert say(*words, "-o", "a.jsonl").code == 0

    assert Path("a.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_embed_writes_a_file_and_says_what_is_alike(trained: Path, say: Say) -> None:
    Path("photos/light/copy.png").write_bytes(Path("photos/light/3.png").read_bytes())
    words = ["embed", trained, "photos", "-o", "a.npy", "--neighbours", 1, "--probe"]

    said = say(*words, "--threshold", 0.99999, "--json")

    found = json.loads(said.out)
    assert (said.code, found["images"], np.load("a.npy").shape) == (0, 21, (21, 16))
    pairs = [pair["paths"] for pair in found["near_duplicates"]]
    assert ["light/3.png", "light/copy.png"] in pairs
    nearest = {row["path"]: row["nearest"][0]["path"] for row in found["neighbours"]}
    assert nearest["light/3.png"] == "light/copy.png"
    assert {row["name"]: row["images"] for row in found["probes"]} == {"kNN": 21, "logistic": 21}


def test_embed_takes_one_split_and_says_which(trained: Path, say: Say) -> None:
    photos = trained.parent / "photos"  # what the run was trained on
    words = ["embed", trained, photos]

    every, train = say(*words, "--probe"), say(*words, "--probe", "--split", "train")
    held = say(*words, "--split", "held-out", "-o", "held.npy")
    others = say("embed", trained, "photos", "--probe")

    assert [said.code for said in (every, train, held, others)] == [0, 0, 0, 0]
    assert "probed on 20 images: all splits" in every.out
    assert "the model has learned from some of these images" in every.err
    assert train.out.startswith("16 images (train), 16 numbers each")
    assert "probed on 16 images: split train" in train.out
    assert "the model has learned from these images" in train.err
    assert held.out == "4 images (held-out), 16 numbers each\n"
    assert "has learned" not in held.err + others.err
    rows = Path("held.csv").read_text().splitlines()[1:]
    measured = say("eval", trained, photos, "--predictions", "rows.csv")
    assert measured.code == 0
    answered = Path("rows.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [row.split(",")[0] for row in answered]
    assert all(row.endswith(",held-out") for row in rows)


def test_a_split_of_images_without_labels_is_refused(trained: Path, say: Say) -> None:
    said = say("embed", trained, "photos/dark", "--split", "held-out", "-o", "a.npy")

    assert said.code == 2 and "class folders" in said.err


def test_embed_takes_images_without_labels(trained: Path, say: Say) -> None:
    said = say("embed", trained, "photos/dark", "-o", "a.parquet")

    assert (said.code, said.out) == (0, "10 images, 16 numbers each\n")
    refused = say("embed", trained, "photos/dark", "--probe")
    assert refused.code == 2 and "class folders" in refused.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("photos", "-o FILE, --neighbours K or --probe"),
        ("photos --probe --tokens patches", "many vectors an image"),
        ("photos --neighbours 0", "neighbours is 0"),
        ("photos --neighbours 1 --threshold 1.5", "threshold is 1.5"),
        ("photos --neighbours 1 --threshold nan", "threshold is nan"),
        ("photos -o a.txt", ".parquet or .npy"),
        ("*.gif -o a.npy", 'no file "*.gif"'),
        ("photos -o a.npy --layer 7", "no layer 7"),
        ("photos -o a.npy --tokens patches --aspect", "as many as each has"),
    ],
)
def test_embed_refuses_what_it_cannot_do(words: str, told: str, trained: Path, say: Say) -> None:
    said = say("embed", trained, *words.split())

    assert said.code == 2 and told in said.err and not Path("a.npy").exists()


def test_eval_compares_corrupts_and_writes(trained: Path, say: Say) -> None:
    words = ["eval", trained, "photos", "--against", trained, "--corruptions"]
    words += ["--predictions", "rows.csv", "-o", "evaluation"]

    said, as_json = say(*words), json.loads(say(*words, "--json").out)

    assert said.code == 0
    for part in ("McNemar's exact p = 1", "top-1, corrupted", "area under risk", "95 % interval"):
        assert part in said.out
    assert as_json["against"]["difference"] == 0 and len(as_json["corruptions"]) == 25
    written = json.loads(Path("evaluation/evaluation.json").read_text())
    assert {name: written[name] for name in as_json} == as_json
    assert (written["model"], written["data"]) == (str(trained), "photos")
    rows = Path("evaluation/predictions.jsonl").read_text().splitlines()
    assert len(rows) == as_json["images"] == len(Path("rows.csv").read_text().splitlines()) - 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("photos --predictions rows.txt", 2, ".jsonl or .csv"),
        ("photos -o photos", 5, "photos"),
        ("photos --against nowhere", 2, "nowhere"),
        ("photos --against nano", 2, "that nano does not know"),
        ("photos --predictions no/rows.csv", 5, "there is no folder"),
        ("photos --split test", 2, "has no split test, only train and val"),
        ("photos --aspect --corruptions", 2, "--corruptions are of images in one shape"),
        ("photos --merge -1", 2, "merge is -1; it should be a whole number of patches"),
    ],
)
def test_eval_refuses_what_it_cannot_do(
    words: str, code: int, told: str, trained: Path, say: Say
) -> None:
    said = say("eval", trained, *words.split())

    assert said.code == code and told in said.err


def test_eval_says_what_it_measures_and_measures_what_it_is_asked_to(
    trained: Path, say: Say
) -> None:
    counts = {}
    for split in ("held-out", "val", "train", "all"):
        said = say("eval", trained, "photos", "--split", split, "--json")
        counts[split] = json.loads(said.out)["images"]
        assert ("--split all" in said.err) == (split == "held-out")

    assert counts["held-out"] == counts["val"] and counts["train"] > counts["val"]
    assert (
        counts["train"] + counts["val"] == counts["all"] == len(list(Path("photos").rglob("*.png")))
    )


def test_merging_is_measured_and_told(trained: Path, say: Say) -> None:
    plain, merged = (
        say("eval", trained, "photos", "--merge", merge, "-o", f"merge-{merge}") for merge in (0, 9)
    )

    assert (plain.code, merged.code) == (0, 0)
    found = [json.loads(Path(f"merge-{m}/evaluation.json").read_text()) for m in (0, 9)]
    assert [values.get("merge", 0) for values in found] == [0, 9]
    source = vitrail.open_data("photos").held_out
    assert source is not None
    for values in found:
        wanted = vitrail.evaluate(vitrail.load(trained), source, merge=values.get("merge", 0))
        assert values["loss"] == pytest.approx(wanted.loss, abs=1e-6)
    assert abs(found[0]["loss"] - found[1]["loss"]) > 1e-4


def test_a_run_on_a_table_is_measured_on_a_folder_too(trained: Path, say: Say) -> None:
    bundle = vitrail.load(trained)
    origin = {**(bundle.origin or {}), "image_column": "photo", "label_column": "kind"}
    vitrail.save(replace(bundle, origin=origin), "of-a-table")

    assert say("eval", "of-a-table", "photos").code == 0


def test_images_of_one_class_can_be_measured(trained: Path, say: Say) -> None:
    Path("photos/light").rename("away")

    said = say("eval", trained, "photos", "--split", "all", "--json")

    found = json.loads(said.out)
    counts = {row["label"]: row["count"] for row in found["per_class"]}
    assert said.code == 0 and counts == {"dark": found["images"], "light": 0}


def test_an_evaluation_that_was_killed_while_it_was_written_is_written_again(
    trained: Path, say: Say
) -> None:
    Path("evaluation").mkdir()
    Path("evaluation/.predictions.jsonl.part").write_bytes(b"{")

    assert say("eval", trained, "photos", "-o", "evaluation").code == 0
    assert {p.name for p in Path("evaluation").iterdir()} == {
        "evaluation.json",
        "predictions.jsonl",
    }
