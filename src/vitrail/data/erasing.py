"""Random erasing: a box of an image is filled with noise (Zhong et al. 2020, section 3.2)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.boxes import inside
from vitrail.data.draws import uniform

_FIRST, _TRIES = 40, 10
_AREA, _ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # timm's, which DeiT and MAE train with
# Noise as bright and as rough as photos are: ImageNet's own figures are 116 and 58. They are not
# the preprocessing's: with a mean and spread of a half its noise would be twice as rough.
_MEAN, _STD = 127.5, 63.75
_BITS = 0xFFFFFFFF


class Erasing(NamedTuple):
    """A box of each image, empty for most, and what its noise is made of."""

    box: Tensor  # B 4: top, left, bottom, right
    noise: Tensor  # B, 32 bits


def draw_erasing(
    seed: int, epoch: int, keys: np.ndarray, share: float, size: tuple[int, int]
) -> Erasing:
    """Draw an area and an aspect until the box fits, ten times at most, and then its place."""
    height, width = size
    numbers = uniform(seed, epoch, keys, 2 * _TRIES + 4, first=_FIRST)
    whether, down, right, noise = numbers[:, :4].T
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * numbers[:, 4::2])  # B tries
    aspect = np.exp(np.log(_ASPECT[0]) + np.log(_ASPECT[1] / _ASPECT[0]) * numbers[:, 5::2])
    tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (tall < height) & (wide < width)
    first = fits.argmax(axis=1)[:, None]
    tall, wide, fits = (np.take_along_axis(a, first, axis=1)[:, 0] for a in (tall, wide, fits))
    top, left = np.floor(down * (height - tall + 1)), np.floor(right * (width - wide + 1))
    boxes = np.stack([top, left, top + tall, left + wide], axis=1)
    boxes[(whether >= share) | ~fits] = 0
    bits = (noise * 2**32).astype(np.int64)
    return Erasing(torch.from_numpy(boxes.astype(np.int64)), torch.from_numpy(bits))


def erased(images: Tensor, draws: Erasing) -> Tensor:
    """Fill each image's box, of B C H W in 0 .. 255, with noise of every pixel's own."""
    where = inside(draws.box, images.shape[2], images.shape[3])
    return torch.where(where[:, None], _MEAN + _STD * noise(draws.noise, images.shape), images)


def noise(keys: Tensor, shape: torch.Size) -> Tensor:
    """Give noise, B C H W, of mean 0 and spread 1, a function of key and pixel alone.

    A counter is hashed in whole numbers and the sum of four bytes taken, so that every device
    gives the same bits, compiled or not. Its distribution function is the normal one to 0.008;
    it ends at 3.45 standard deviations.
    """
    count = shape[1:].numel()
    x = (keys[:, None] + 0x9E3779B9 * torch.arange(count, device=keys.device)) & _BITS
    # A multiplier under 2^31 keeps a product within 63 bits.
    for factor in (0x7FEB352D, 0x5BD1E995):
        x = (((x ^ (x >> 16)) & _BITS) * factor) & _BITS
    x = x ^ (x >> 15)
    total = (x & 0xFF) + ((x >> 8) & 0xFF) + ((x >> 16) & 0xFF) + (x >> 24)
    return ((total - 510).float() / ((256**2 - 1) / 3) ** 0.5).view(-1, *shape[1:])
