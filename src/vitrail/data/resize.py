"""Pixels of one size from pixels of another: H W C uint8, by torch, or by Pillow."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# torch's uint8 kernel is Pillow's algorithm in vectors, within 1/255 of it and about 3 times as
# fast; without AVX2 it falls back to a loop that is slower than Pillow.
_BY_TORCH = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def resized(
    pixels: np.ndarray,
    tall: int,
    wide: int,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    antialias: bool = True,
) -> np.ndarray:
    """Give H W C pixels as `tall` x `wide` ones; without `antialias` single points are read."""
    if pixels.shape[:2] == (tall, wide):
        return pixels
    if antialias and _BY_TORCH:
        # Its kernel wants the pixels without gaps, and numpy closes those faster; torch takes no
        # memory that may not be written.
        image = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
        smooth = F.interpolate(image, (tall, wide), mode=interpolation, antialias=True)
        return smooth[0].permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if antialias:
        image = image.resize((wide, tall), _FILTERS[interpolation])
    else:
        # Pillow has no other way to leave antialiasing out: an affine map reads single points.
        across, down = image.width / wide, image.height / tall
        image = image.transform(
            (wide, tall),
            Image.Transform.AFFINE,
            (across, 0, 0, 0, down, 0),
            _FILTERS[interpolation],
        )
    return np.asarray(image).reshape(tall, wide, -1)
