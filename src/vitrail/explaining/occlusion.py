"""Occlusion: how much less sure a model is where a window of the image is hidden.

Zeiler & Fergus 2014 (arXiv:1311.2901, section 4.2), with windows of whole patches.
"""

from itertools import product

import torch
from torch import Tensor

from vitrail.explaining.hiding import Fill, answers, filling
from vitrail.model.vit import ViT

_ACROSS = 7  # windows side by side: about as many as a person can tell apart


def windows(grid: tuple[int, int]) -> Tensor:
    """Give the windows of a grid of h w patches, M N, True inside; each half over the next one."""
    side = max(1, round(min(grid) / _ACROSS))
    step = (side + 1) // 2
    starts = ([*range(0, length - side, step), length - side] for length in grid)
    hidden = []
    for top, left in product(*starts):
        window = torch.zeros(grid, dtype=torch.bool)
        window[top : top + side, left : left + side] = True
        hidden.append(window.flatten())
    return torch.stack(hidden)


def occlusion(model: ViT, image: Tensor, target: int, fill: Fill, batch_size: int) -> Tensor:
    """Give what hiding each patch of an image, C H W, costs the target, h w, in nats.

    By how much the logarithm of its probability falls, the mean of all windows over the patch;
    below 0 where the model is surer without. A forward pass for each window, and one more.
    """
    patch = model.config.patch_size
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    hidden = windows(grid)
    whole = torch.zeros_like(hidden[:1])
    filler = filling(image, fill, patch)
    found = answers(model, image, filler, torch.cat([whole, hidden]), target, batch_size)
    falls = found[0] - found[1:]
    over = hidden.float()
    return (falls @ over / over.sum(dim=0)).view(grid)
