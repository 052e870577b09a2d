"""`predict` and `eval` with `--engine`, as a person types them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import vitrail
from conftest import needs, randomize
from runs import write_photos
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.engines import automatic
from vitrail.inference import choosing
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT

MODEL = ViTConfig(image_size=(16, 24), patch_size=8, classes=2, width=16, depth=1, heads=2)


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photos, and two models that know their classes."""
    home = tmp_path_factory.mktemp("home")
    write_photos(home / "photos")
    for name in ("model", "other"):
        bundle = vitrail.Bundle(
            model=randomize(ViT(MODEL)),
            preprocess=Preprocess(size=(16, 24)),
            labels=("dark", "light"),
        )
        vitrail.save(bundle, home / name)
    return home


@pytest.fixture
def say(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def say(*words: str) -> Said:
        code = main([*words, "--device", "cpu"] if words[0] in ("predict", "eval") else words)
        return Said(code, *map(str, capsys.readouterr()))

    return say


@pytest.fixture
def two_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO is here, twice as fast as torch, and 20 images are worth it."""
    needs("openvino")
    times = {"torch": 1.0, "openvino": 0.5}
    rough = {"float32": 1.0, "bfloat16": 0.5}
    monkeypatch.setattr(
        automatic, "_seconds", lambda runs, images: times[runs.name] * rough[runs.dtype]
    )
    monkeypatch.setattr(automatic, "_WORTH", 1.0)
    monkeypatch.setattr(automatic, "_MOST_IMAGES", 20)
    monkeypatch.setattr(choosing, "_WORTH_A_SAMPLE", 20)


def test_a_few_photos_are_answered_for_by_torch_at_once(say: Any) -> None:
    said = say("predict", "model", "photos/dark/0.png")

    assert said.code == 0
    assert said.err == (
        "engine torch, float32: 1 image is answered for before another engine is built\n"
    )


@pytest.mark.parametrize("name", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_engine_that_is_named_answers_as_torch_does(say: Any, name: str) -> None:
    needs(name)
    words = ["predict", "model", "photos", "--json", "--engine"]

    by_torch, said = say(*words, "torch"), say(*words, name)

    assert (by_torch.code, said.code, by_torch.err, said.err) == (0, 0, "", "")
    rows, found = json.loads(by_torch.out), json.loads(said.out)
    assert len(found) == 20
    for row, mine in zip(rows, found, strict=True):
        assert mine["path"] == row["path"]
        assert [a["label"] for a in mine["top"]] == [a["label"] for a in row["top"]]
        probabilities = [a["probability"] for a in row["top"]]
        assert [a["probability"] for a in mine["top"]] == pytest.approx(probabilities, abs=1e-5)


def test_auto_says_what_it_chose_and_a_file_goes_on_with_that(
    say: Any, two_engines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", "model", "photos", "-o", "a.jsonl"]

    first = say(*words)
    rows = Path("a.jsonl").read_bytes()
    # Another time torch would be the faster one.
    monkeypatch.setattr(automatic, "_seconds", lambda runs, images: len(runs.name))
    again = say(*words)
    anew = say(*words[:-1], "b.jsonl")

    assert (first.code, again.code) == (0, 0)
    assert "engine openvino, float32: 2.0 times as fast here as torch" in first.err
    assert "engine openvino, float32: as a.jsonl was begun" in again.err
    assert "engine torch, float32: openvino is no faster here, 0.6 times" in anew.err
    assert Path("a.jsonl").read_bytes() == rows
    named = say(*words, "--engine", "torch")
    assert named.code == 2 and "with engine openvino, not torch" in named.err
    named = say(*words, "--dtype", "bfloat16")
    assert named.code == 2 and "with dtype float32, not bfloat16" in named.err


def test_dtype_auto_looks_at_a_sample_of_the_images(
    say: Any, two_engines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    monkeypatch.setattr(automatic, "SAMPLE", 10)
    monkeypatch.setattr(choosing, "SAMPLE", 10)

    said = say("predict", "model", "photos", "--dtype", "auto", "-o", "a.jsonl")

    assert said.code == 0
    assert "of 10 images as float32 does" in said.err
    measured = say("eval", "model", "photos", "--split", "all", "--dtype", "auto")
    assert measured.code == 0 and "of 10 images as float32 does" in measured.err


def test_eval_measures_by_any_engine_and_notes_it(say: Any) -> None:
    needs("openvino")
    words = ["eval", "model", "photos", "--split", "all", "--against", "other", "--json"]

    by_torch = say(*words, "--engine", "torch")
    said = say(*words, "--engine", "openvino", "-o", "measured")

    found, wanted = json.loads(said.out), json.loads(by_torch.out)
    assert (said.code, by_torch.code) == (0, 0)
    assert found["confusion"] == wanted["confusion"]
    assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
    assert found["against"] == wanted["against"]
    noted = json.loads(Path("measured/evaluation.json").read_text())
    assert (noted["engine"], noted["dtype"]) == ("openvino", "float32")
    assert say("report", "measured").code == 0


@pytest.mark.parametrize("words", [["predict", "no-model", "no-image"], ["eval", "no", "no"]])
def test_an_engine_that_cannot_be_is_told_before_anything_is_read(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    codes = [
        main([*words, "--engine", "openvino", "--device", device]) for device in ("cpu", "mps")
    ]

    assert codes == [2, 2]
    missing, elsewhere = capsys.readouterr().err.splitlines()
    assert "pip install 'vitrail[openvino]'" in missing
    assert 'runs on the CPU, not on "mps"' in elsewhere


def test_many_machines_choose_nothing(say: Any) -> None:
    said = say("predict", "model", "photos", "--ray", "local", "--dtype", "auto")

    assert said.code == 2 and "name a dtype with --ray" in said.err
