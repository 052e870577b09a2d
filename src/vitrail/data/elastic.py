"""Elastic distortion: an image as if it were drawn on rubber, and the rubber pulled.

Simard, Steinkraus and Platt 2003, "Best Practices for Convolutional Neural Networks Applied to
Visual Document Analysis", section 2.3: what hands do to signs, which no affine map does.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vitrail.data.draws import uniform

# Points a side. The paper smooths a displacement of every pixel by a Gaussian of 4 of 29 pixels;
# so smooth a field is given by few of its points.
_POINTS = 5


class Pull(NamedTuple):
    """How far the points of a coarse lattice are pulled, -1 to 1: B 2 5 5, along x, then y."""

    points: Tensor


def draw_pull(seed: int, epoch: int, keys: np.ndarray) -> Pull:
    """Draw for the samples of `keys`."""
    numbers = uniform(seed, epoch, keys, 2 * _POINTS**2, first=3000)
    points = rearrange(2 * numbers - 1, "b (xy h w) -> b xy h w", xy=2, h=_POINTS)
    return Pull(torch.from_numpy(points).float())


def pulled(grid: Tensor, pull: Pull, most: float) -> Tensor:
    """Move the places where pixels are read, B H W 2 from -1 to 1, by `most` of a side or less."""
    field = F.interpolate(pull.points, grid.shape[1:3], mode="bilinear", align_corners=True)
    return grid + 2 * most * rearrange(field, "b xy h w -> b h w xy")
