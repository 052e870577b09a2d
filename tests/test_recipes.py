"""Every recipe that comes with vitrail takes its first steps, on a small model and small photos."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.model.presets import preset
from vitrail.model.vit import seeded
from vitrail.training.loop import train
from vitrail.training.recipe import SHIPPED, read_recipe, shipped
from vitrail.training.schedule import factor
from vitrail.weights.bundle import Bundle, save

SMALL = {"image_size": (16, 16), "patch_size": 4, "width": 24, "heads": 2, "depth": 2}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    for name in ("cat", "dog", "cow"):
        Path("photos", name).mkdir(parents=True)
        for i in range(20):
            pixels = draws.integers(0, 256, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(Path("photos", name, f"{i}.jpg"))
    return "photos"


def pretrained() -> str:
    config = ViTConfig(**SMALL, classes=5)  # type: ignore[arg-type]
    labels = tuple("abcde")
    bundle = Bundle(
        model=seeded(config, seed=1), preprocess=Preprocess(size=(16, 16)), labels=labels
    )
    save(bundle, "pretrained")
    return "pretrained"


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_takes_its_first_steps(name: str, photos: str) -> None:
    weights = pretrained() if name in ("fine-tune", "linear-probe") else None
    recipe = read_recipe(name, weights)
    if weights is None:
        recipe = replace(recipe, model=recipe.model.replace(**SMALL))
    if name == "digits":
        recipe = replace(recipe, model=recipe.model.replace(image_size=(8, 8), patch_size=2))
    else:
        recipe = replace(recipe, data=replace(recipe.data, source=photos))
    short = replace(recipe.train, steps=3, batch_size=16, device="cpu", cpu_threads=1)

    run = train(replace(recipe, train=short), "run")

    assert run.summary["status"] == "finished" and run.summary["step"] == 3
    stored = read_recipe("run/recipe.toml")
    assert replace(stored, model=recipe.model) == replace(recipe, train=short)


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_says_its_command_and_what_to_expect(name: str) -> None:
    head = (SHIPPED / f"{name}.toml").read_text().split("\n\n")[0]

    assert all(line.startswith("#") for line in head.splitlines())
    assert head.startswith("# vitrail train ")
    words = " ".join(head.replace("#", " ").split()).lower()
    assert "expect" in words or "promised" in words or "not run" in words


# Of the papers' own tables: 1,281,167 images.
IMAGENET = {"plain90": (90, 1024, 10_000), "augreg": (300, 4096, 10_000)}


@pytest.mark.parametrize("name", IMAGENET)
def test_the_warm_up_of_ten_thousand_steps_is_that_share_of_all(name: str) -> None:
    epochs, batch, warmup = IMAGENET[name]
    recipe = read_recipe(name)

    steps = epochs * (1_281_167 // batch)

    assert (recipe.train.epochs, recipe.train.batch_size) == (epochs, batch)
    assert round(recipe.schedule.warmup * steps) == pytest.approx(warmup, rel=0.01)
    assert factor(recipe.schedule, steps - 1, steps) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "model", "optimizer", "lr", "loss"),
    [
        ("plain90", "simple-s16", "adamw", 1e-3, "cross_entropy"),
        ("augreg", "vit-b16", "adamw", 1e-3, "bce_sum"),
        ("deit3", "deit3-s16", "lamb", 4e-3, "bce"),
        ("torchvision-b16", "vit-b16", "adamw", 3e-3, "cross_entropy"),
    ],
)
def test_a_recipe_of_the_literature_has_its_knobs(
    name: str, model: str, optimizer: str, lr: float, loss: str
) -> None:
    recipe = read_recipe(name)

    assert recipe.model == preset(model)
    assert (recipe.optimizer.name, recipe.optimizer.lr) == (optimizer, lr)
    assert recipe.objective.loss == loss and recipe.augment.flip
