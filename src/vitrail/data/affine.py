"""An image turned, scaled, slanted, moved, mirrored and pulled in one reading of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.config import Augment
from vitrail.data.elastic import Pull, pulled
from vitrail.data.kernels import sampled


def is_moved(how: Augment) -> bool:
    """Say whether anything but a mirror moves an image."""
    return bool(how.rotate or how.scale or how.shear or how.shift or how.elastic)


def is_mirrored(how: Augment) -> bool:
    """Say whether images are mirrored here: a crop is mirrored where it is decoded."""
    return how.flip and how.crop_scale is None


def moved(images: Tensor, numbers: Tensor, how: Augment, pull: Pull | None = None) -> Tensor:
    """Move float images, B C H W, by numbers in [0, 1), B 7, of which the last is not used."""
    turn, size, slant, right, down, flip, _ = (2 * numbers - 1).unbind(dim=1)
    angle = turn * (how.rotate * torch.pi / 180)
    zoom = (1 + how.scale) ** size
    mirror = torch.where(flip < 0, -1.0, 1.0) if is_mirrored(how) else torch.ones_like(flip)
    shear = slant * how.shear
    # Where each pixel of the result is read, in coordinates from -1 to 1: mirrored, slanted,
    # turned, scaled, moved. A shift of one side is a shift of 2.
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    aspect = images.shape[2] / images.shape[3]  # or an oblong image would be bent
    row_x = torch.stack([cos * mirror, (cos * shear - sin) * aspect, 2 * how.shift * right], dim=1)
    row_y = torch.stack([sin * mirror / aspect, sin * shear + cos, 2 * how.shift * down], dim=1)
    grid = F.affine_grid(
        torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False
    )
    if pull is not None:
        grid = pulled(grid, pull, how.elastic)
    return sampled(images, grid, how.interpolation, how.fill).clamp(0, 255)  # bicubic overshoots
