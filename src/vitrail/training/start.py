"""What a run begins with: random weights by its seed, or pretrained ones, and their pixels."""

from dataclasses import fields, replace
from typing import NamedTuple

import torch

from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ClassificationHead, ViT, seeded
from vitrail.training.optimizer import layer
from vitrail.training.recipe import Recipe
from vitrail.weights.bundle import default_preprocess
from vitrail.weights.loading import architecture, load
from vitrail.weights.origin import parse


class Start(NamedTuple):
    """A model before its first step, and what is done to an image before it sees it."""

    model: ViT
    preprocess: Preprocess


def start(recipe: Recipe, classes: tuple[str, ...]) -> Start:
    """Give the model of a recipe, for these classes, as its first step finds it, on the CPU.

    Pretrained weights are fitted to the recipe's model; their head is kept where it knows just
    these classes, else it is a new one. Raises `ConfigError` where the two cannot be one model.
    """
    model = seeded(recipe.model, seed=recipe.train.seed, drop=recipe.train.drop)
    stored = None
    if recipe.train.weights is not None:
        stored = _take_up(model, recipe.train.weights, classes)
    elif model.pos_embed is not None:
        model.pos_embed.data *= recipe.train.position_scale
    if recipe.train.head_bias:
        _set_head_bias(model, recipe.train.head_bias)
    freeze(model, recipe.train.freeze)
    return Start(model, preprocessing(recipe, stored))


def preprocessing(recipe: Recipe, stored: Preprocess | None = None) -> Preprocess:
    """Give what is done to an image: as its weights say, or by default, but for the recipe."""
    found = default_preprocess(recipe.model) if stored is None else stored
    if recipe.data.resize is not None:
        crop = 1.0 if recipe.data.resize == "pad" else found.crop
        found = replace(found, resize=recipe.data.resize, crop=crop)
    return found if recipe.data.crop is None else replace(found, crop=recipe.data.crop)


def freeze(model: ViT, layers: int) -> None:
    """Keep the first layers as they are: the embedding, then blocks; -1 is all but the head."""
    depth = model.config.depth
    if layers > depth + 1:
        raise ConfigError(
            f"train.freeze is {layers}, but the model has {depth + 1} layers that can be frozen: "
            "the embedding and its blocks; -1 freezes all but the head"
        )
    for name, parameter in model.named_parameters():
        is_head = name.startswith("head")
        frozen = not is_head if layers < 0 else layer(name, depth) < layers
        parameter.requires_grad_(not frozen)


def _take_up(model: ViT, origin: str, classes: tuple[str, ...]) -> Preprocess:
    """Put the weights of an origin into a model, and give their preprocessing."""
    stored, asked = architecture(parse(origin)), model.config
    changes = {f.name: getattr(asked, f.name) for f in fields(ViTConfig)}
    changes = {name: v for name, v in changes.items() if v != getattr(stored, name)}
    bundle = load(origin, **changes)
    if bundle.model.config != asked:
        raise ConfigError(_unlike(bundle.model.config, asked, origin))
    weights = dict(bundle.model.state_dict())
    if bundle.labels != classes:  # as many classes need not be the same ones
        weights = {name: w for name, w in weights.items() if not name.startswith("head")}
    model.load_state_dict(weights, strict=bundle.labels == classes)
    return bundle.preprocess


def _unlike(stored: ViTConfig, asked: ViTConfig, origin: str) -> str:
    names = [f.name for f in fields(ViTConfig)]
    lines = [
        f"  {name}: {getattr(stored, name)} there, {getattr(asked, name)} in the recipe"
        for name in names
        if getattr(stored, name) != getattr(asked, name)
    ]
    return f"{origin} cannot become the model of the recipe:\n" + "\n".join(lines)


@torch.no_grad()
def _set_head_bias(model: ViT, value: float) -> None:
    for head in (model.head, model.head_dist):
        if isinstance(head, ClassificationHead) and head.bias is not None:
            head.bias.fill_(value)
