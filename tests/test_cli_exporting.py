"""`export`, and `predict` and `eval` of what it wrote, as a person types them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vitrail
from conftest import needs, randomize
from runs import write_photos
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT

MODEL = ViTConfig(image_size=(16, 24), patch_size=8, classes=2, width=16, depth=1, heads=2)
PHOTO = "photos/dark/0.png"


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photos, a model that knows their classes, and that model as a torch package."""
    home = tmp_path_factory.mktemp("home")
    write_photos(home / "photos")
    bundle = vitrail.Bundle(
        model=randomize(ViT(MODEL)),
        preprocess=Preprocess(size=(16, 24)),
        labels=("dark", "light"),
        origin={"held_out_share": 0.5},
    )
    vitrail.save(bundle, home / "model")
    vitrail.export(bundle, home / "model.pt2", "torch")
    return home


@pytest.fixture
def say(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def say(*words: str) -> Said:
        return Said(main(words), *map(str, capsys.readouterr()))

    return say


@pytest.mark.parametrize(
    "ending", ["pt2", *(pytest.param(e, marks=pytest.mark.slow) for e in ("onnx", "xml"))]
)
def test_a_file_is_measured_and_asked_as_its_model_is(say: Any, ending: str) -> None:
    for name in {"onnx": ["onnx"], "xml": ["onnx", "openvino"], "pt2": []}[ending]:
        needs(name)
    file = f"new.{ending}"
    trust = ["--trust"] if ending == "pt2" else []

    written = say("export", "model", file, "--check", "photos", "--json")

    assert written.code == 0
    card = json.loads(written.out)
    # Split as in the model's own run: half of them are held out.
    assert (card["on_images"]["images"], card["on_images"]["agreement"]) == (10, 1)
    words = ["photos", "--split", "all", "--json"]
    of_model = json.loads(say("eval", "model", *words, "--engine", "torch").out)
    of_file = json.loads(say("eval", file, *words, *trust).out)
    assert of_file["confusion"] == of_model["confusion"]
    assert of_file["loss"] == pytest.approx(of_model["loss"], abs=1e-5)
    (row,) = json.loads(say("predict", "model", PHOTO, "--json").out)
    (mine,) = json.loads(say("predict", file, PHOTO, "--json", *trust).out)
    assert [a["label"] for a in mine["top"]] == [a["label"] for a in row["top"]]


def test_a_torch_package_wants_trust(say: Any) -> None:
    said = say("predict", "model.pt2", PHOTO)

    assert (said.code, said.out) == (3, "")
    assert "give --trust" in said.err


def test_a_model_is_held_against_its_file(say: Any) -> None:
    words = ["eval", "model", "photos", "--split", "all", "--against", "model.pt2", "--trust"]

    said = say(*words, "--json")

    against = json.loads(said.out)["against"]
    assert said.code == 0
    assert against["model"] == "model.pt2"
    assert "p = 1" in say(*words).out


def test_a_file_of_answers_goes_on_with_the_file_that_began_it(say: Any) -> None:
    words = ["predict", "model.pt2", "photos", "--trust", "--dtype", "auto", "-o", "a.jsonl"]

    first, again = say(*words), say(*words)

    assert (first.code, again.code) == (0, 0)
    assert len(Path("a.jsonl").read_text().splitlines()) == 20
    other = say("predict", "model", "photos", "-o", "a.jsonl")
    assert other.code == 2 and "model" in other.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model", "new.onxx"], 'give one of .onnx, .xml, .pt2. Did you mean ".onnx"'),
        (["modle", "new.pt2"], 'there is no model "modle"'),
        (["model", "new.pt2", "--dtype", "bfloat16"], "labelled images by --check DATA"),
        (["model", "new.pt2", "--calibrate", "photos"], "--calibrate is for int8"),
        (["model", "new.pt2", "--check", "fotos"], '"fotos"'),
        (["model", "new.pt2", "--agreement", "99"], "it should be a share, from 0 to 1"),
        (["vit-ti16", "new.pt2", "--image-size", "224", "100"], "nearest sizes that it does: 96"),
        (["model", "new.pt2", "--image-size", "16", "20"], "patch size 8 does not divide 20"),
        (["model", "new.pt2", "--anysize"], 'Did you mean "--any-size"'),
        (["model.pt2", "new.pt2"], "wants the weights that it was made from"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_and_nothing_is_written(say: Any, words: list[str], told: str) -> None:
    said = say("export", *words)

    assert said.code == 2 and told in said.err
    assert not list(Path().glob("*new*"))


def test_what_is_there_stays(say: Any) -> None:
    before = Path("model.pt2").read_bytes()

    said = say("export", "model", "model.pt2")

    assert said.code == 5 and "is there already" in said.err
    assert Path("model.pt2").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--engine", "openvino"], 'is run by engine "torch", not "openvino"'),
        (["--merge", "2"], "has no merge"),
        (["--dtype", "bfloat16"], "computes in float32, and not in bfloat16"),
    ],
)
def test_what_a_file_cannot_is_told(say: Any, words: list[str], told: str) -> None:
    needs("openvino")
    said = say("predict", "model.pt2", PHOTO, "--trust", *words)

    assert said.code == 2 and told in said.err


@pytest.mark.parametrize("verb", [["embed", "-o", "x.npy"], ["explain", "-o", "x"], ["summary"]])
def test_other_verbs_want_the_model_itself(say: Any, verb: list[str]) -> None:
    said = say(verb[0], "model.pt2", *["photos"][: len(verb) - 1], *verb[1:])

    assert said.code == 2
    assert "`vitrail predict` and `vitrail eval` run it" in said.err


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 kB, which has room for the weights and not for all of the file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_told_and_left_empty(say: Any, small: Path) -> None:
    said = say("export", "model", str(small / "new.pt2"))

    assert said.code == 5 and "bytes are free there" in said.err
    assert list(small.iterdir()) == []


def test_a_disk_without_room_for_the_weights_is_told_first(say: Any, small: Path) -> None:
    (small / "filler").write_bytes(bytes(30_000))

    said = say("export", "model", str(small / "new.pt2"))

    assert said.code == 5 and "bytes are needed" in said.err
    assert [path.name for path in small.iterdir()] == ["filler"]
