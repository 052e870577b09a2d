"""A head alone in training: what the frozen layers say of each image is computed once and kept."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.config import Augment
from vitrail.data.loader import Batch, Loader
from vitrail.data.preprocess import Preprocess
from vitrail.engines.torch_engine import precision
from vitrail.model.vit import ViT
from vitrail.training.parallel import Parallel
from vitrail.training.recipe import Recipe


class Features(NamedTuple):
    """The pooled features of every image of a loader, N D, and which of them could be read."""

    values: Tensor
    read: np.ndarray

    def joined(self, parallel: Parallel) -> "Features":
        """Give those of all processes, each of which has computed some, and left 0 for the rest."""
        read = torch.from_numpy(self.read).to(self.values.device, torch.int32)
        return Features(parallel.total(self.values), parallel.total(read).bool().cpu().numpy())

    def batches(self, loader: Loader, seed: int, start: int, stop: int) -> Iterator[Batch]:
        """Give the loader's batches with features in place of images: the same, in its order."""
        for part in loader.parts(seed, start, stop):
            good = self.read[part.places]
            places = part.places[good]
            labels = torch.from_numpy(loader.labels[places])
            rows = self.values[torch.from_numpy(places).to(self.values.device)]
            yield Batch(rows, labels, places, part.keys[good], part.blocks[good], part.epoch)


def can_keep(recipe: Recipe, model: ViT) -> bool:
    """Say whether the features of an image stay the same, so that they can be kept."""
    train, drop = recipe.train, recipe.train.drop
    return (
        train.freeze < 0
        and recipe.augment == Augment()
        and recipe.objective.name == "classify"
        and model.head_dist is None
        and train.first_size is None
        and not (drop.attention or drop.mlp or drop.residual or drop.stochastic_depth)
        and not drop.patches
    )


@torch.inference_mode()
def features(model: ViT, preprocess: Preprocess, loader: Loader, dtype: str) -> Features:
    """Compute the features of every image, on the model's device."""
    device = next(model.parameters()).device
    values = torch.zeros(len(loader.source), model.head.in_features, device=device)  # type: ignore[arg-type]
    read = np.zeros(len(loader.source), bool)
    for batch in loader.once():
        if not len(batch.places):
            continue
        images = preprocess.normalize(batch.images.to(device, non_blocking=True))
        with precision(device, dtype):
            pooled = model.pool(model.tokens(images))
        values[torch.from_numpy(batch.places).to(device)] = pooled.float()
        read[batch.places] = True
    return Features(values.clone(), read)
