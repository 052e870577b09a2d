"""Colours changed at random: brightness, contrast, saturation, hue; grey, solarized, blurred.

An image is a list of its planes here, B H W each: compiled, all of them are then made in one
loop, and a pixel's grey is worked out once, not once for each plane.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.config import Augment
from vitrail.data.draws import uniform
from vitrail.data.kernels import extended

_FIRST, _FIRST_EFFECT, _FIRST_OF_THREE = 6, 20, 30  # in a sample's row of numbers
_ORDERS = np.array([*permutations(range(3))])
_REACH = 6  # pixels: three standard deviations of the strongest blur
_STRONGEST, _WEAKEST = 2.0, 0.1  # standard deviations of the blur, in pixels


class Jitter(NamedTuple):
    """A pixel x of grey g becomes a x + b g + c m, with m the image's mean grey; then hue turns."""

    weights: Tensor  # B 3: a, b, c
    hue: Tensor  # B, in turns of the circle


class Effects(NamedTuple):
    """Which images lose their colour, are solarized, are blurred."""

    grey: Tensor  # B, bool
    solarize: Tensor  # B, bool
    blur: Tensor  # B, standard deviation in pixels, 0: none


def draw_jitter(seed: int, epoch: int, keys: np.ndarray, how: Augment) -> Jitter:
    """Draw factors in 1 - most to 1 + most, and the order of brightness, contrast, saturation."""
    light, contrast, saturation, hue, order = uniform(seed, epoch, keys, 5, first=_FIRST).T
    most = np.array([how.brightness, how.contrast, how.saturation])
    by = 1 + (2 * np.stack([light, contrast, saturation], axis=1) - 1) * most  # B 3
    # What is not the pixel's own share is black, the mean grey, the pixel's grey.
    steps = np.zeros((len(keys), 3, 3))
    steps[:, :, 0] = by
    steps[:, 1, 2], steps[:, 2, 1] = 1 - by[:, 1], 1 - by[:, 2]
    orders = _ORDERS[(order * len(_ORDERS)).astype(int)]  # B 3
    steps = np.take_along_axis(steps, orders[:, :, None], axis=1)
    a, b, c = np.ones(len(keys)), np.zeros(len(keys)), np.zeros(len(keys))
    for next_a, next_b, next_c in steps.transpose(1, 2, 0):
        # Each step is linear: a pixel's grey has become (a + b) g + c m, the mean (a + b + c) m.
        c = next_a * c + next_b * c + next_c * (a + b + c)
        a, b = next_a * a, next_a * b + next_b * (a + b)
    return Jitter(_floats(np.stack([a, b, c], axis=1)), _floats((2 * hue - 1) * how.hue))


def draw_effects(seed: int, epoch: int, keys: np.ndarray, how: Augment) -> Effects:
    """Draw each effect for its own share of the images."""
    grey, solarize, blur, sigma = uniform(seed, epoch, keys, 4, first=_FIRST_EFFECT).T
    return _effects(grey < how.grey, solarize < how.solarize, blur < how.blur, sigma)


def draw_one_of_three(seed: int, epoch: int, keys: np.ndarray) -> Effects:
    """Draw one effect for each image (3-Augment; Touvron et al. 2022, DeiT III, section 3.3)."""
    which, sigma = uniform(seed, epoch, keys, 2, first=_FIRST_OF_THREE).T
    which = (3 * which).astype(int)
    return _effects(which == 0, which == 1, which == 2, sigma)


def _effects(
    grey: np.ndarray, solarize: np.ndarray, blur: np.ndarray, sigma: np.ndarray
) -> Effects:
    sigma = np.where(blur, _WEAKEST + (_STRONGEST - _WEAKEST) * sigma, 0)
    return Effects(torch.from_numpy(grey), torch.from_numpy(solarize), _floats(sigma))


def _floats(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers).float()


def luma(planes: list[Tensor]) -> Tensor:
    """Give the grey of a pixel (ITU-R 601)."""
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue


def jittered(planes: list[Tensor], draws: Jitter, how: Augment) -> list[Tensor]:
    """Change brightness, contrast and saturation in the sample's own order, and then hue.

    As torchvision's and timm's, but that values are cut off at 0 and 255 once, after the three,
    not after each of them: so they are one step, with one mean for contrast, and take a third of
    the time. And hue is always last; it would have to be worked out at each of four places.
    """
    a, b, c = draws.weights[:, :, None, None].unbind(dim=1)
    rest = luma(planes)
    if how.contrast:
        # Whole numbers add up to the same sum in any order, on any device, in any batch.
        mean = rest.round().sum(dim=2).long().sum(dim=1) / rest[0].numel()
        rest = rest * b + c * _wide(mean)
    else:
        rest = rest * b
    planes = [(plane * a + rest).clamp(0, 255) for plane in planes]
    return _turned(planes, draws.hue) if how.hue and len(planes) == 3 else planes


def _turned(planes: list[Tensor], turn: Tensor) -> list[Tensor]:
    """Turn the hue of red, green and blue: a hexagon of six sides in HSV (Smith 1978)."""
    red, green, blue = planes
    top = torch.maximum(torch.maximum(red, green), blue)
    chroma = top - torch.minimum(torch.minimum(red, green), blue)
    some = torch.where(chroma > 0, chroma, 1.0)
    side = torch.where(
        top == red,
        (green - blue) / some,
        torch.where(top == green, 2 + (blue - red) / some, 4 + (red - green) / some),
    )
    side = side + 6 * _wide(turn)
    turned = []
    for start in (5, 3, 1):
        k = (side + start) % 6
        turned.append(top - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return turned


def affected(planes: list[Tensor], draws: Effects, *, blur: bool) -> list[Tensor]:
    """Take the colour from some images, blur some, and invert some from 128 on."""
    grey = luma(planes)
    planes = [torch.where(_wide(draws.grey), grey, plane) for plane in planes]
    if blur:
        planes = [_blurred(plane, draws.blur) for plane in planes]
    least = _wide(torch.where(draws.solarize, 128.0, 256.0))
    return [torch.where(plane >= least, 255 - plane, plane) for plane in planes]


def _blurred(plane: Tensor, sigma: Tensor) -> Tensor:
    """Blur a plane, B H W, each image by its own Gaussian; 0 leaves it as it is.

    Sums of shifted copies: a convolution in groups picks its algorithm by the size of the batch.
    """
    steps = torch.arange(_REACH + 1, device=plane.device)
    weights = torch.where(
        (sigma > 0)[:, None],
        torch.exp(-((steps / sigma.clamp(min=_WEAKEST)[:, None]) ** 2) / 2),
        steps == 0,
    )
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - weights[:, :1])
    for axis in (2, 1):
        size = plane.shape[axis]
        padded = extended(plane, *((_REACH, 0) if axis == 2 else (0, _REACH)))
        plane = padded.narrow(axis, _REACH, size) * _wide(weights[:, 0])
        for far in range(1, _REACH + 1):
            both = padded.narrow(axis, _REACH - far, size) + padded.narrow(axis, _REACH + far, size)
            plane = plane + both * _wide(weights[:, far])
    return plane


def _wide(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1)
