"""Faithfulness: is what a map calls important what the model needs?

Petsiuk, Das & Saenko 2018 (RISE, arXiv:1806.07421, section 4.1): patches are taken away in the
order of the map, most important first, until the image is of one colour, and the area under the
target's probability is the deletion figure: a good map has a small one. They come back into a
blurred image in the same order, and the area is the insertion figure: a good map has a large one.
Beside both stand the same figures of a random order, since an easy image is easy in any order.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.explaining.hiding import answers, filling
from vitrail.model.vit import ViT

STEPS = 16  # of a curve, or as many as there are patches
ORDERS = 4  # random ones, whose mean is compared with


@dataclass(frozen=True, kw_only=True, slots=True)
class Faithfulness:
    """Areas under the target's probability, from 0 to 1, and what a random order gives."""

    deletion: float  # smaller is better
    insertion: float  # larger is better
    random_deletion: float
    random_insertion: float
    passes: int  # forward passes that it takes by itself

    @property
    def gain(self) -> float:
        """By how much both areas are better than a random order's, on average; below 0: worse."""
        gained = (self.random_deletion - self.deletion) + (self.insertion - self.random_insertion)
        return gained / 2

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {**asdict(self), "gain": self.gain}


def faithfulness(
    model: ViT,
    image: Tensor,
    relevance: Tensor,
    target: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> Faithfulness:
    """Measure a map, h w, of an image, C H W, normalised, for a class."""
    return compared(model, image, [relevance], target, seed=seed, batch_size=batch_size)[0]


def compared(
    model: ViT,
    image: Tensor,
    maps: Sequence[Tensor],
    target: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Faithfulness]:
    """Measure maps, each h w, of one image beside the same random orders, which run once."""
    count = maps[0].numel()
    draws = torch.Generator().manual_seed(seed)
    orders = [each.flatten().cpu().argsort(descending=True, stable=True) for each in maps]
    orders += [torch.randperm(count, generator=draws) for _ in range(ORDERS)]
    gone = torch.stack([prefixes(order) for order in orders])  # orders, steps, patches
    deletion, insertion = (
        areas(model, image, "grey", gone, target, batch_size),
        areas(model, image, "blur", ~gone, target, batch_size),
    )
    return [
        Faithfulness(
            deletion=deletion[i],
            insertion=insertion[i],
            random_deletion=sum(deletion[-ORDERS:]) / ORDERS,
            random_insertion=sum(insertion[-ORDERS:]) / ORDERS,
            passes=2 * (1 + ORDERS) * gone.shape[1],
        )
        for i in range(len(maps))
    ]


def prefixes(order: Tensor) -> Tensor:
    """Give the first patches of an order, ever more of them: steps + 1, N, True where taken."""
    count = len(order)
    taken = torch.linspace(0, count, min(STEPS, count) + 1).round()
    rank = torch.empty(count)
    rank[order] = torch.arange(count, dtype=rank.dtype)
    return rank < taken[:, None]


def areas(
    model: ViT, image: Tensor, fill: Any, hidden: Tensor, target: int, batch_size: int
) -> list[float]:
    """Give the area under the target's probability for each of the curves of `hidden`."""
    filler = filling(image, fill, model.config.patch_size)
    logs = answers(model, image, filler, hidden.flatten(0, 1), target, batch_size)
    curves = logs.exp().view(hidden.shape[:2])
    return (torch.trapezoid(curves, dim=1) / (hidden.shape[1] - 1)).tolist()
