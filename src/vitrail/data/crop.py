"""The random crop of the field: a share of the area, an aspect ratio, a place; and a mirror."""

import math
from typing import NamedTuple

import numpy as np

from vitrail.data.draws import uniform

_TRIES = 10
_FIRST = 1000  # the numbers before are the device's augmentation's


class Crop(NamedTuple):
    """A box of an image in its pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def draw_crops(seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
    """Give the numbers of `random_crop` for the samples of `index`: B 23, uniform in [0, 1)."""
    return uniform(seed, epoch, index, 2 * _TRIES + 3, first=_FIRST)


def random_crop(
    height: int, width: int, draws: np.ndarray, scale: float, ratio: float, flip: bool
) -> Crop:
    """Choose a crop of `scale` to 1 of the area, 1 / `ratio` to `ratio` as wide as it is tall.

    The rule is torchvision's, which timm shares: the first of ten draws that fits in, else the
    largest crop in the middle whose aspect is allowed.
    """
    *tries, down, right, mirror = draws.tolist()
    mirrored = flip and mirror < 0.5
    for share, slant in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * (scale + (1 - scale) * share)
        aspect = ratio ** (2 * slant - 1)
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            return Crop(top, left, tall, wide, mirrored)
    wide = min(width, max(round(height * ratio), 1))
    tall = min(height, max(round(width * ratio), 1))
    return Crop((height - tall) // 2, (width - wide) // 2, tall, wide, mirrored)
