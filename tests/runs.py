"""Tiny runs that the tests of training share: a recipe, ways to stop it, and what is equal."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.config import Augment
from vitrail.model.config import DropRates, ViTConfig
from vitrail.training import checkpoint
from vitrail.training.learner import Learner
from vitrail.training.loop import train
from vitrail.training.recipe import Data, Ema, Optimizer, Recipe, Train

MODEL = ViTConfig(image_size=(8, 8), patch_size=4, classes=2, width=16, depth=2, heads=2)
# All that draws numbers or keeps a state is on. 16 training images: an epoch is 5 steps.
RECIPE = Recipe(
    model=MODEL,
    data=Data(source="photos", held_out_share=0.2),
    augment=Augment(
        rotate=9.0,
        shift=0.1,
        flip=True,
        brightness=0.2,
        contrast=0.3,
        saturation=0.3,
        hue=0.1,
        grey=0.2,
        solarize=0.2,
        blur=0.2,
        policy="randaugment",
        magnitude_std=0.5,
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        mix_block=2,
    ),
    optimizer=Optimizer(name="muon", lr=0.02),
    train=Train(
        epochs=2,
        batch_size=3,
        log_every=2,
        evaluate_every=1,
        save_every=1,
        device="cpu",
        drop=DropRates(attention=0.1, mlp=0.1, residual=0.1, stochastic_depth=0.2),
    ),
    ema=Ema(decay=0.9),
)
STEPS = 10


def write_photos(root: Path, classes: tuple[str, ...] = ("dark", "light")) -> Path:
    """Write ten noisy 8 x 8 pictures for each class, each class lighter than the one before."""
    draws = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = draws.integers(0, 120, (8, 8, 3)) + 100 * place
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def with_train(recipe: Recipe = RECIPE, **changes: Any) -> Recipe:
    return replace(recipe, train=replace(recipe.train, **changes))


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, how: int = signal.SIGINT) -> None:
    """Send this process a signal while step number `steps` is taken."""
    step = Learner.step

    def stopping(self: Learner, batch: Any, number: int) -> None:
        step(self, batch, number)
        if number == steps - 1:
            os.kill(os.getpid(), how)

    monkeypatch.setattr(Learner, "step", stopping)


def stopped(steps: int, out: str, recipe: Recipe = RECIPE) -> Path:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(steps, patch)
        train(recipe, out)
    return Path(out)


def rows(run: str | Path) -> list[dict[str, Any]]:
    """The metrics without what a clock says."""
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    clock = ("seconds", "images_per_second", "peak_share")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def status(run: str | Path) -> str:
    return json.loads((Path(run) / "summary.json").read_text())["status"]


def assert_equal_runs(first: str | Path, second: str | Path) -> None:
    """Equal to the bit: both bundles, the whole newest checkpoint, and every row but the clock."""
    first, second = Path(first), Path(second)
    for which in ("last", "best"):
        weights = [(run / which / "model.safetensors").read_bytes() for run in (first, second)]
        assert weights[0] == weights[1], which
    one, other = (checkpoint.newest(run / "checkpoints")[0] for run in (first, second))
    assert one is not None and other is not None and one.step == other.step
    assert one.parts.keys() == other.parts.keys() == {"model", "ema", "optimizer", "loop"}
    for part, tensors in one.parts.items():
        assert tensors.keys() == other.parts[part].keys()
        for name in tensors.keys() - {"seconds", "cpu_seconds"}:
            assert torch.equal(tensors[name], other.parts[part][name]), (part, name)
    assert rows(first) == rows(second)
    keys = [(row["step"], row["split"]) for row in rows(first)]
    assert len(keys) == len(set(keys))


def never_stopped(folder: Path) -> Path:
    """Give the run of `RECIPE` that was never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_photos(Path("photos"))
        train(RECIPE, "run")
    return folder / "run"
