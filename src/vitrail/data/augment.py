"""Batched augmentation on the model's device: pure functions of a batch and of drawn numbers."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.config import Augment
from vitrail.data.draws import uniform


def draw(seed: int, epoch: int, index: np.ndarray) -> Tensor:
    """Give the numbers of `augment` for the samples of `index`: B 7, uniform in [0, 1)."""
    return torch.from_numpy(uniform(seed, epoch, index, 7)).float()


def augment(images: Tensor, draws: Tensor, how: Augment) -> Tensor:
    """Move, turn, stretch and brighten a uint8 batch, B C H W; gives float32, still 0 .. 255."""
    moved = images.float()
    mirrors = how.flip and how.crop_scale is None  # a crop is mirrored where it is decoded
    turn, size, slant, right, down, flip, light = (2 * draws - 1).to(images.device).unbind(dim=1)
    if how.rotate or how.scale or how.shear or how.shift or mirrors:
        angle = turn * (how.rotate * torch.pi / 180)
        zoom = (1 + how.scale) ** size
        mirror = torch.where(flip < 0, -1.0, 1.0) if mirrors else torch.ones_like(flip)
        shear = slant * how.shear
        # Where each pixel of the result is read, in coordinates from -1 to 1: mirrored, slanted,
        # turned, scaled, moved. A shift of one side is a shift of 2.
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        aspect = images.shape[2] / images.shape[3]  # or an oblong image would be bent
        row_x = torch.stack(
            [cos * mirror, (cos * shear - sin) * aspect, 2 * how.shift * right], dim=1
        )
        row_y = torch.stack([sin * mirror / aspect, sin * shear + cos, 2 * how.shift * down], dim=1)
        grid = F.affine_grid(
            torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False
        )
        moved = F.grid_sample(
            moved, grid, mode=how.interpolation, padding_mode=how.fill, align_corners=False
        ).clamp(0, 255)  # bicubic overshoots at edges
    if how.gain:
        moved = (moved * (1 + how.gain * light).view(-1, 1, 1, 1)).clamp(0, 255)
    return moved
