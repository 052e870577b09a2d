"""Small things that a user runs into: told in the user's words, or simply done right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail.cli import main
from vitrail.errors import ConfigError, DataError, WeightsError
from vitrail.training.recipe import Data, Recipe, Train
from vitrail.weights.files import read_rows

TINY = vitrail.ViTConfig(
    image_size=(4, 4), patch_size=2, channels=1, width=8, depth=1, heads=2, classes=2
)


@pytest.fixture
def noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders of images that cannot be told apart, only learned by heart."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("heads", "tails"):
        (tmp_path / "noise" / name).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 256, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "noise" / name / f"{i}.png")
    return tmp_path / "noise"


def recipe(**data: object) -> Recipe:
    train = Train(epochs=2, batch_size=8, evaluate_every=1, save_every=1)
    return Recipe(model=TINY, data=replace(Data(source="noise"), **data), train=train)


def test_eval_measures_the_images_that_the_run_held_out(
    noise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = vitrail.train(recipe(split_seed=5, held_out_share=0.4), "run")
    capsys.readouterr()

    main(["eval", "run", str(noise), "--json"])

    found = json.loads(capsys.readouterr().out)
    assert found["images"] == run.summary["held_out_images"] == 8
    assert found["confusion"] == run.summary["evaluation"]["confusion"]
    assert found["loss"] == pytest.approx(run.summary["loss"])


def test_a_run_goes_on_however_its_data_is_spelt(noise: Path) -> None:
    run = vitrail.train(recipe(), "run")

    again = vitrail.train(recipe(source=f"./{noise.name}/"), "run")

    assert again.summary == run.summary


def test_resume_of_a_folder_takes_the_recipe_that_is_in_it(
    noise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vitrail.train(recipe(), "run")

    code = main(["train", "noise", "--out", "run", "--resume"])

    assert code == 0
    assert capsys.readouterr().out.endswith("run\n")


def test_data_is_named_once(noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "noise", "--data.source", "digits"])

    assert code == 2
    assert "give the data as DATA" in capsys.readouterr().err


def test_a_metrics_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n')

    with pytest.raises(DataError, match=r"metrics\.jsonl line 2 is no row: hello"):
        read_rows(tmp_path / "metrics.jsonl")


def test_a_bundle_that_a_run_does_not_have_is_told(noise: Path) -> None:
    run = vitrail.train(recipe(), "run")

    with pytest.raises(ConfigError, match='"last" and "best", not "bst"'):
        run.bundle("bst")


def test_a_keyword_that_contradicts_the_tensors_is_named(noise: Path) -> None:
    vitrail.train(recipe(), "run")

    with pytest.raises(WeightsError, match=r"(?s)cls_token .*what was given: width"):
        vitrail.load("run", width=16)


def test_a_summary_takes_the_name_of_a_preset() -> None:
    walk = vitrail.summary("blog-b16")

    assert walk.model == "blog-b16"
    assert walk.parameters == 86_567_656


def test_random_weights_are_told(noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", "nano", str(noise / "heads" / "0.png")])

    assert "nano has random weights" in capsys.readouterr().err
