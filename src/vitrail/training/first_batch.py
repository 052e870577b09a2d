"""What training makes of the images: the first of them, as the model would see them."""

from dataclasses import fields
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F

from vitrail.data.augment import augment, draw
from vitrail.data.config import Augment
from vitrail.data.loader import Loader
from vitrail.data.mixing import mixed, mixed_labels
from vitrail.data.sources import BadFile, Splits
from vitrail.errors import DataError
from vitrail.reporting import batch_picture
from vitrail.training.recipe import Recipe
from vitrail.training.start import preprocessing, start

SHOWN = 32  # images, the first of the first batch


class FirstBatch(NamedTuple):
    """Images uint8 B C H W, the share of each class in each, B classes, and what was not read."""

    images: np.ndarray
    targets: np.ndarray
    bad: tuple[BadFile, ...]


def training_batch(recipe: Recipe, data: Splits) -> FirstBatch:
    """Give the first images of epoch 0, by the loader and the augmentation that train."""
    block = recipe.augment.mix_block  # a sample's partner is in its block
    size = min(max(SHOWN // block, 1) * block, recipe.train.batch_size, len(data.train))
    preprocess = preprocessing(recipe)
    if recipe.train.weights is not None:
        preprocess = start(recipe, data.train.classes).preprocess
    loader = Loader(
        data.train,
        preprocess,
        size,
        threads=recipe.data.threads,
        timeout=recipe.data.timeout,
        shuffle=recipe.data.shuffle,
        max_bad_share=1.0,  # it is a picture: what cannot be read is told, and stops nothing
        decode=recipe.data.decode,
        augment=recipe.augment,
    )
    loader.check_steps()
    (batch,) = loader.batches(recipe.train.seed, 0, 1)
    bad = tuple(loader.bad.values())
    if not len(batch.labels):
        raise DataError(
            f"none of the first {size} training images can be read; the first reason: "
            f"{bad[0].path}: {bad[0].reason}"
        )
    how, (tall, wide) = recipe.augment, recipe.model.image_size
    draws = draw(recipe.train.seed, batch.epoch, batch.keys, batch.blocks, how, (tall, wide))
    images = augment(batch.images, draws, how)
    targets = F.one_hot(batch.labels, len(data.train.classes)).float()
    if draws.mixing is not None:
        images = mixed(images, draws.mixing)
        targets = mixed_labels(batch.labels, draws.mixing, len(data.train.classes))
    # Noise of erasing goes beyond what can be shown.
    return FirstBatch(images.round().clamp(0, 255).byte().numpy(), targets.numpy(), bad)


def picture(recipe: Recipe, data: Splits, name: str, suffix: str) -> tuple[bytes, FirstBatch]:
    """Draw the first training images as `recipe`, which is called `name`, augments them."""
    batch = training_batch(recipe, data)
    tall, wide = batch.images.shape[2:]
    words = (
        f"{len(batch.images)} of {len(data.train):,} images",
        f"epoch 0, seed {recipe.train.seed}",
        f"{wide} x {tall} pixels",
        ", ".join(_changes(recipe.augment)) or "not augmented",
    )
    lines = batch_picture.captions(batch.targets, data.train.classes)
    title = f"{recipe.data.source}, as {name} trains on it"
    return batch_picture.draw(batch.images, lines, title, "  ·  ".join(words), suffix), batch


def _changes(how: Augment) -> list[str]:
    """Say which settings are not the default: `rotate 10`, `flip`."""
    found = ((f.name.replace("_", " "), getattr(how, f.name), f.default) for f in fields(how))
    changed = [(name, value) for name, value, default in found if value != default]
    return [name if value is True else f"{name} {_plain(value)}" for name, value in changed]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
