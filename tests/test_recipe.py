"""Recipes: what ships reads, what is written reads back equal, and what is wrong is named."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrail.data.config import Augment
from vitrail.errors import ConfigError
from vitrail.model.config import DropRates, PositionResize
from vitrail.model.presets import preset, presets
from vitrail.training.recipe import (
    Data,
    Ema,
    Objective,
    Optimizer,
    Recipe,
    Schedule,
    Train,
    default_recipe,
    differences,
    from_table,
    read_recipe,
    shipped,
    to_toml,
)

# Every leaf differs from its default, so that one which is not written or read shows.
EVERYTHING = Recipe(
    model=preset("nano").replace(
        width=24,
        depth=1,
        layer_scale=1e-5,
        position_resize=PositionResize(mode="bilinear", antialias=False, offset=0.1),
    ),
    data=Data(source="photos", threads=3, max_bad_share=0.5, held_out_share=0.25, split_seed=4),
    augment=Augment(
        rotate=5.0,
        scale=0.1,
        shear=0.2,
        shift=0.3,
        elastic=0.1,
        flip=True,
        brightness=0.4,
        fill="border",
    ),
    optimizer=Optimizer(
        name="muon",
        lr=0.3,
        adamw_lr=3e-22,
        weight_decay=0.0,
        layer_decay=0.65,
        clip=2.0,
        beta1=0.8,
        beta2=0.95,
        eps=1e-6,
        momentum=0.5,
    ),
    schedule=Schedule(name="wsd", warmup=0.5, warmup_start=0.033, final=0.25, cooldown=0.2),
    objective=Objective(label_smoothing=0.1),
    train=Train(
        epochs=3,
        steps=7,
        batch_size=4,
        seed=5,
        device="cpu",
        dtype="bfloat16",
        cpu_threads=1,
        compile=True,
        log_every=2,
        evaluate_every=3,
        save_every=4,
        position_scale=2.0,
        first_size=(4, 4),
        drop=DropRates(attention=0.1, mlp=0.2, residual=0.3, stochastic_depth=0.4, patches=0.5),
    ),
    ema=Ema(decay=0.99),
)


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return file


def photos(root: Path, side: int) -> str:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (side, side // 2)).save(root / name / "1.png")
    return str(root)


def test_at_least_the_digits_and_small_images_ship() -> None:
    assert {"digits", "small-images"} <= set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_reads_and_reads_back_from_its_own_toml(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)

    again = read_recipe(written(tmp_path, to_toml(recipe)))

    assert again == recipe


@pytest.mark.parametrize("name", presets())
def test_every_preset_reads_back_equal_as_the_model_of_a_recipe(name: str) -> None:
    recipe = Recipe(model=preset(name))

    assert from_table(tomllib.loads(to_toml(recipe))) == recipe


def test_every_leaf_is_written_and_read_back_equal() -> None:
    table = tomllib.loads(to_toml(EVERYTHING))

    again = from_table(table)

    assert again == EVERYTHING
    assert type(again.train.seed) is int
    assert type(again.optimizer.clip) is float


@pytest.mark.parametrize(
    "source",
    [
        'a "quoted" name',
        "back\\slash\\n",
        "two\nlines\tand a tab\r",
        "제비 🐈 é",
        "\x00\x1b\x7f\x85",
        "'''",
        "# no comment",
        "",
    ],
)
def test_any_text_survives_toml(source: str) -> None:
    recipe = Recipe(data=Data(source=source))

    assert from_table(tomllib.loads(to_toml(recipe))) == recipe


def test_a_model_is_a_preset_with_changes_and_its_other_widths_follow(tmp_path: Path) -> None:
    file = written(tmp_path, '[model]\npreset = "vit-ti16"\nwidth = 96\nimage_size = [32, 48]\n')

    model = read_recipe(file).model

    assert model == preset("vit-ti16").replace(width=96, image_size=(32, 48))
    assert (model.head_width, model.mlp_width) == (32, 384)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[optimiser]\nlr = 1", ["optimiser", '"optimizer"']),
        ("[train]\nepoch = 1", ["[train]", '"epoch"', '"epochs"']),
        ("[train.drop]\nmpl = 0.1", ["[train.drop]", '"mpl"', '"mlp"']),
        ("[train.dorp]\nmlp = 0.1", ["[train]", '"dorp"', '"drop"']),
        ("[model]\nwidht = 3", ["[model]", '"widht"', '"width"']),
        ('[model]\npreset = "nanno"', ['"nanno"', '"nano"']),
        ("[model.position_resize]\nmoed = 1", ["position_resize", '"moed"', '"mode"']),
        ('[train]\nepochs = "3"', ["[train]", "epochs", "'3'", "a whole number"]),
        ("[train]\nepochs = 3.5", ["[train]", "epochs", "3.5", "a whole number"]),
        ("[train]\nepochs = true", ["[train]", "epochs", "True", "a whole number"]),
        ("[train]\ncompile = 1", ["[train]", "compile", "true or false"]),
        ("[data]\nsource = 1979-05-27", ["[data]", "source", "a text"]),
        ("[model]\nimage_size = [32]", ["[model]", "image_size", "2 whole numbers"]),
        ("[model]\nwidth = 30", ["[model]", "width 30", "4 heads", "28 and 32"]),
        ("train = 3", ["train", "3", "a table", "[train]"]),
        ("[train]\ndrop = 3", ["train.drop", "3", "a table"]),
        ("[train]\nepochs = 0", ["[train]", "epochs is 0", "1 or more"]),
        ("[optimizer]\nlr = 0", ["[optimizer]", "lr is 0", "above 0"]),
        ("[optimizer]\nlr = nan", ["[optimizer]", "lr is nan"]),
        ("[optimizer]\nlayer_decay = 0", ["[optimizer]", "layer_decay is 0", "above 0, at most 1"]),
        ("[optimizer]\nlayer_decay = 1.1", ["layer_decay is 1.1", "above 0, at most 1"]),
        ("[optimizer]\nbeta2 = 1", ["[optimizer]", "beta2 is 1", "from 0 to below 1"]),
        ("[optimizer]\nbeta1 = -0.1", ["beta1 is -0.1", "from 0 to below 1"]),
        ("[optimizer]\nmomentum = nan", ["momentum is nan", "from 0 to below 1"]),
        ("[optimizer]\neps = 0", ["eps is 0", "above 0"]),
        ('[schedule]\nname = "wsd"\nwarmup = 0.6\ncooldown = 0.5', ["warmup 0.6", "cooldown 0.5"]),
        ("[schedule]\nwarmup_start = 2", ["warmup_start is 2", "from 0 to 1"]),
        ("[schedule]\nwarmup = 1.5", ["[schedule]", "warmup is 1.5", "from 0 to 1"]),
        ("[ema]\ndecay = 1", ["[ema]", "decay is 1"]),
        ("[train.drop]\nmlp = 1.0", ["[train.drop]", "mlp is 1.0"]),
        ('[optimizer]\nname = "adamm"', ["[optimizer]", "name", "adamm", '"adamw"', "muon"]),
        ("[train]\nepochs = ", ["no TOML", "Invalid value"]),
        ("[train\n", ["no TOML", "line 1"]),
    ],
)
def test_a_mistake_is_told_with_file_place_and_cure(
    text: str, told: list[str], tmp_path: Path
) -> None:
    file = written(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        read_recipe(file)

    message = str(caught.value)
    assert message.startswith(str(file))
    assert [part for part in told if part not in message] == []


def test_a_file_that_is_no_text_is_told_by_name(tmp_path: Path) -> None:
    file = tmp_path / "photo.toml"
    file.write_bytes(b"\x89PNG\xff")

    with pytest.raises(ConfigError, match=r"photo\.toml is no TOML"):
        read_recipe(file)


@pytest.mark.parametrize("name", ["digist", "small-image", "."])
def test_an_unknown_recipe_is_told_with_those_that_ship(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(name)

    assert f'"{name}"' in str(caught.value)
    assert ", ".join(shipped()) in str(caught.value)
    assert "Did you mean" in str(caught.value) or name == "."


def test_equal_recipes_have_no_difference_and_reading_threads_make_none() -> None:
    other_threads = replace(EVERYTHING, data=replace(EVERYTHING.data, threads=9))

    assert differences(EVERYTHING, EVERYTHING) == []
    assert differences(EVERYTHING, other_threads) == []


def test_each_leaf_that_differs_is_a_line_with_both_values() -> None:
    changed: Any = replace(
        EVERYTHING,
        model=EVERYTHING.model.replace(layer_scale=None, position_resize=PositionResize()),
        train=replace(EVERYTHING.train, drop=DropRates(mlp=0.25), steps=None),
    )

    lines = differences(EVERYTHING, changed)

    assert "model.layer_scale: 1e-05 in the run, None now" in lines
    assert "model.position_resize.mode: bilinear in the run, bicubic now" in lines
    assert "train.drop.mlp: 0.2 in the run, 0.25 now" in lines
    assert "train.steps: 7 in the run, None now" in lines
    assert len(lines) == 1 + 3 + 5 + 1


def test_the_default_recipe_fits_the_data(tmp_path: Path) -> None:
    digits, digits_note = default_recipe("digits")
    small, small_note = default_recipe(photos(tmp_path / "small", 40))
    large, large_note = default_recipe(photos(tmp_path / "large", 41))

    assert (digits, digits_note) == (read_recipe("digits"), "")
    assert (small, small_note) == (read_recipe("small-images"), "")
    assert large.model.image_size == (64, 64)
    assert replace(large, model=small.model) == small
    assert "64 x 64" in large_note and "\n" not in large_note


def test_the_default_recipe_reads_the_training_images_of_a_split(tmp_path: Path) -> None:
    data = photos(tmp_path / "data" / "train", 100)
    photos(tmp_path / "data" / "test", 8)

    recipe, _ = default_recipe(str(Path(data).parent))

    assert recipe.model.image_size == (64, 64)


def test_an_image_that_cannot_be_opened_does_not_choose_the_recipe(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", 32)
    (Path(data) / "cat" / "0.png").write_bytes(b"not an image")

    recipe, _ = default_recipe(data)

    assert recipe == read_recipe("small-images")
