"""The operations of RandAugment and TrivialAugment on uint8 batches: one kernel for all of them.

Every image passes through the same arithmetic, with amounts that change nothing for those that
drew another operation: a table of 256 values for each plane, a blend, a geometric reading, a box.
As in Pillow, values are whole after every operation, and blends are cut off, not rounded.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.boxes import inside
from vitrail.data.kernels import looked_up, sampled
from vitrail.data.policies import OPERATIONS, Operations

_GREY = (19595, 38470, 7471)  # ITU-R 601 in 65536ths, as Pillow has it


def operated(
    images: Tensor, draws: Operations, fill: int, interpolation: Literal["bilinear", "bicubic"]
) -> Tensor:
    """Do the drawn operations one after the other to a uint8 batch, B C H W."""
    for layer in range(draws.operation.shape[1]):
        drawn, amount = draws.operation[:, layer], draws.amount[:, layer]
        images = looked_up(images, _tables(images, drawn, amount))
        images = _blended(images, drawn, amount)
        images = _warped(images, _matrices(images, drawn, amount), fill, interpolation)
        half = torch.where(_is(drawn, "cutout"), amount, 0.0)
        box = _around(draws.place[:, layer], half, images)
        images = torch.where(inside(box, *images.shape[2:])[:, None], fill, images)
    return images


def _is(drawn: Tensor, name: str) -> Tensor:
    return drawn == OPERATIONS.index(name)


def _chosen(drawn: Tensor, amount: Tensor, name: str) -> Tensor:
    """Give the amount of the images that drew an operation, 0 for the others."""
    return torch.where(_is(drawn, name), amount, 0.0)


def _tables(images: Tensor, drawn: Tensor, amount: Tensor) -> Tensor:
    """Give what becomes of each of the 256 values of each plane: B C 256."""
    values = torch.arange(256, device=images.device)
    counts = _counts(images)
    number, drawn = amount[:, None, None], drawn[:, None, None]
    whole = number.long()
    lost = 8 - whole.clamp(0, 8)  # bits
    mean = _mean_grey(images)[:, None, None]
    made = {
        "autocontrast": _stretched(counts, values),
        "equalize": _equalized(counts, values),
        "invert": 255 - values,
        "posterize": (values >> lost) << lost,
        "solarize": torch.where(values >= number, 255 - values, values),
        "solarize_add": torch.where(values < 128, (values + whole).clamp(max=255), values),
        "brightness": (values * (1 + number)).clamp(0, 255).long(),
        "contrast": (mean + (1 + number) * (values - mean)).clamp(0, 255).long(),
    }
    tables = values.expand_as(counts)
    for name, table in made.items():
        tables = torch.where(_is(drawn, name), table, tables)
    return tables.to(torch.uint8)


def _counts(images: Tensor) -> Tensor:
    """Count the pixels of each value in each plane: B C 256."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*images.shape[:2], 256, dtype=torch.int64, device=images.device)
    return counts.scatter_add(2, flat, torch.ones_like(flat))


def _stretched(counts: Tensor, values: Tensor) -> Tensor:
    """Bring the darkest value to 0, the lightest to 255; whole numbers, so never one too low."""
    there = counts > 0
    low = torch.where(there, values, 255).amin(dim=2, keepdim=True)
    high = torch.where(there, values, 0).amax(dim=2, keepdim=True)
    stretched = ((values - low) * 255).clamp(min=0) // (high - low).clamp(min=1)
    return torch.where(high > low, stretched.clamp(max=255), values)


def _equalized(counts: Tensor, values: Tensor) -> Tensor:
    """Spread the values evenly, by Pillow's rule: the lightest one's pixels do not count."""
    high = torch.where(counts > 0, values, 0).amax(dim=2, keepdim=True)
    total = counts.sum(dim=2, keepdim=True)
    step = (total - counts.gather(2, high)) // 255
    darker = counts.cumsum(dim=2) - counts
    spread = ((darker + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, spread, values)


def _grey(images: Tensor) -> Tensor:
    """Give the whole grey of each pixel, B 1 H W, as float; all sums are exact."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, dim=1)
    parts = red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]
    return ((parts + 0x8000) / 65536).floor()


def _mean_grey(images: Tensor) -> Tensor:
    """Give the mean grey of each image, B, rounded."""
    pixels = images.shape[2] * images.shape[3]
    total = _grey(images).sum(dim=3).long().sum(dim=(1, 2))
    return (2 * total + pixels) // (2 * pixels)


def _blended(images: Tensor, drawn: Tensor, amount: Tensor) -> Tensor:
    """Move images towards their grey or their smoothed selves, or away: saturation, sharpness."""
    drawn, amount = drawn[:, None, None, None], amount[:, None, None, None]
    own = images.float()
    base = torch.where(_is(drawn, "saturation"), _grey(images), own)
    base = torch.where(_is(drawn, "sharpness"), _smooth(own), base)
    return (base + (1 + amount) * (own - base)).clamp(0, 255).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """Give Pillow's SMOOTH: 3 x 3, the middle five times; edges stay as they are."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    middle = images[:, :, 1:-1, 1:-1]
    total = 4 * middle
    for down in range(3):
        for right in range(3):
            total = total + images[:, :, down : height - 2 + down, right : width - 2 + right]
    smooth = F.pad((total / 13 + 0.5).floor(), (1, 1, 1, 1))
    edges = F.pad(torch.ones_like(middle[:1, :1]), (1, 1, 1, 1)) == 0
    return torch.where(edges, images, smooth)


def _matrices(images: Tensor, drawn: Tensor, amount: Tensor) -> Tensor:
    """Say where each pixel is read: B 2 3, on (x, y, 1) in pixels from the corner."""
    height, width = images.shape[2:]
    angle = _chosen(drawn, amount, "rotate") * (torch.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    slant_x, slant_y = (_chosen(drawn, amount, name) for name in ("shear_x", "shear_y"))
    right, down = (_chosen(drawn, amount, name) for name in ("shift_x", "shift_y"))
    row_x = torch.stack([cos, slant_x - sin, x - cos * x + sin * y + right], dim=1)
    row_y = torch.stack([slant_y + sin, cos, y - sin * x - cos * y + down], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _warped(
    images: Tensor, matrices: Tensor, fill: int, interpolation: Literal["bilinear", "bicubic"]
) -> Tensor:
    """Read images by their matrices; what lies outside is `fill`."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device)[:, None] + 0.5
    (a, b, c), (d, e, f) = (row.unbind(dim=1) for row in matrices[:, :, :, None, None].unbind(1))
    from_x, from_y = a * x + b * y + c, d * x + e * y + f  # B H W
    grid = torch.stack([from_x * (2 / width) - 1, from_y * (2 / height) - 1], dim=3)
    read = sampled(images.float(), grid, interpolation, "border")
    there = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return torch.where(there[:, None], read.round().clamp(0, 255), fill).to(torch.uint8)


def _around(place: Tensor, half: Tensor, images: Tensor) -> Tensor:
    """Give boxes, B 4, of which half a side is given, around any pixel; none where it is 0."""
    size = torch.tensor(images.shape[2:]).to(images.device, non_blocking=True)
    middle = (place * size).long()
    half = half.long()[:, None]
    return torch.cat([middle - half, middle + half], dim=1)
