"""Two images in one, and their labels: mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019)."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

from vitrail.data.boxes import inside
from vitrail.data.config import Augment
from vitrail.data.draws import uniform

_FIRST, _FIRST_OF_BLOCK = 70, 2000  # a block's number must not read what a key's does


class Mixing(NamedTuple):
    """The row that each image is mixed with, and how much of its own is kept."""

    partner: Tensor  # B
    weight: Tensor  # B, of its own outside the box
    box: Tensor  # B 4 (top left bottom right): all its partner's
    share: Tensor  # B, of its own label


def draw_mixing(
    seed: int,
    epoch: int,
    keys: np.ndarray,
    blocks: np.ndarray,
    how: Augment,
    size: tuple[int, int],
) -> Mixing:
    """Draw partners inside the blocks, and for each image mixup or cutmix and its strength."""
    height, width = size
    whether, which, share, down, right = uniform(seed, epoch, keys, 5, first=_FIRST).T
    chance = how.cutmix_share if how.mixup else 1.0
    cut = (which < chance) if how.cutmix else np.zeros(len(keys), bool)
    alpha = np.where(cut, how.cutmix, how.mixup)
    kept = np.where(whether < how.mix_share, betaincinv(alpha, alpha, share), 1)
    boxes = _boxes(np.where(cut, kept, 1), down, right, height, width)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    weight = np.where(cut, 1, kept)
    labels = np.where(cut, 1 - area / (height * width), kept)  # what is left after the clipping
    return Mixing(
        torch.from_numpy(_partners(seed, epoch, blocks)),
        torch.from_numpy(weight).float(),
        torch.from_numpy(boxes),
        torch.from_numpy(labels).float(),
    )


def _boxes(
    kept: np.ndarray, down: np.ndarray, right: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Give boxes of the share 1 - kept around a pixel anywhere, clipped (Yun et al., Eq. 2)."""
    side = np.sqrt(1 - kept)
    half = np.stack([height * side, width * side], axis=1).astype(np.int64) // 2
    size = np.array([height, width])
    middle = (np.stack([down, right], axis=1) * size).astype(np.int64)
    return np.concatenate([middle - half, middle + half], axis=1).clip(0, np.tile(size, 2))


def _partners(seed: int, epoch: int, blocks: np.ndarray) -> np.ndarray:
    """Give each row another of its block: all of them shifted in a ring by the same amount."""
    names, first, block, count = np.unique(
        blocks, return_index=True, return_inverse=True, return_counts=True
    )
    number = uniform(seed, epoch, names, 1, first=_FIRST_OF_BLOCK)[:, 0]
    shift = 1 + (number * (count - 1)).astype(np.int64)
    place = np.arange(len(blocks)) - first[block]
    return first[block] + (place + shift[block]) % count[block]


def mixed(images: Tensor, draws: Mixing) -> Tensor:
    """Mix float images, B C H W, with their partners."""
    box = inside(draws.box, images.shape[2], images.shape[3])
    weight = torch.where(box, 0.0, draws.weight[:, None, None])[:, None]  # B 1 H W
    return torch.lerp(images[draws.partner], images, weight)


def mixed_labels(labels: Tensor, draws: Mixing, classes: int) -> Tensor:
    """Give the share of every class, B classes, for labels, B."""
    own = F.one_hot(labels, classes).float()
    return torch.lerp(own[draws.partner], own, draws.share[:, None])
