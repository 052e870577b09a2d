"""The images of a recipe, opened by every process that works on it, and the same for all."""

from dataclasses import replace

import torch

from vitrail import __version__
from vitrail.data.progress import tell
from vitrail.data.sources import Splits, open_data
from vitrail.errors import ConfigError
from vitrail.training.recipe import Recipe, to_toml
from vitrail.training.world import World


def opened(recipe: Recipe, world: World) -> tuple[Recipe, Splits]:
    """Open the images of a recipe, the same for all processes, and give it their classes."""
    data = world.together(lambda: _data(recipe))
    own = _must_be_alike(recipe, data)
    told = world.exchange(own)
    world.alone(lambda: check_alike(told))
    for note in data.notes if world.is_first else ():
        tell(note)
    model = recipe.model.replace(classes=len(data.train.classes))
    return replace(recipe, model=model), data


def _data(recipe: Recipe) -> Splits:
    where = recipe.data
    return open_data(
        where.source,
        where.held_out_share,
        where.split_seed,
        image_column=where.image_column,
        label_column=where.label_column,
    )


def _must_be_alike(recipe: Recipe, data: Splits) -> list[str]:
    """Give what must be the same for all processes, and may not be on several machines."""
    where = replace(recipe.data, source="", threads=1, timeout=1.0)  # each machine has its own
    recipe = replace(recipe, data=where, train=replace(recipe.train, cpu_threads=None))
    versions = [f"vitrail {__version__}", f"torch {torch.__version__}"]
    return [f"data of digest {data.digest}", *versions, *to_toml(recipe).splitlines()]


def check_alike(told: list[list[str]]) -> None:
    """Raise `ConfigError` where a process has other data, versions or recipe than the first."""
    first = told[0]
    for rank, other in enumerate(told):
        if other != first:
            here = ", ".join(line for line in first if line not in other)
            there = ", ".join(line for line in other if line not in first)
            raise ConfigError(
                f"the processes are not of one run: process 0 has {here or 'less'}, and process "
                f"{rank} {there or 'less'}; give every machine the same files, versions and flags"
            )
