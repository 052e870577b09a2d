"""Where a patch stands: tables of positions, computed or resized, and rotations of q and k.

Axes: `N` = h w patches row by row, `D` width, `d` head width, `B` batch, `K` heads, `P` prefix.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from vitrail.model.config import PositionResize


def sincos(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Give fixed positions, 1 N D: sine and cosine of x, then of y, at width / 4 frequencies.

    Beyer et al. 2022 ("Better plain ViT baselines"), whose frequencies run from 1 to 1/10,000.
    """
    steps = torch.arange(width // 4, device=device) / max(width // 4 - 1, 1)
    frequency = 10_000.0**-steps
    y = rearrange(torch.arange(grid[0], device=device), "h -> h 1 1") * frequency
    x = rearrange(torch.arange(grid[1], device=device), "w -> 1 w 1") * frequency
    waves = [f(axis).expand(*grid, -1) for axis in (x, y) for f in (torch.sin, torch.cos)]
    return rearrange(torch.cat(waves, dim=-1), "h w d -> 1 (h w) d")


def rope(grid: tuple[int, int], head_width: int, base: float, device: torch.device) -> Tensor:
    """Give the rotations of `rotate`, 2 N d: cosine and sine for each patch and unit of a head.

    Unit i turns with unit i + d/2, and the sine is negative for the first of the two. DINOv3
    (Siméoni et al. 2025): the centre of each patch in -1 .. 1 on each axis by itself, a quarter of
    the head for the angles of y and one for x, both used twice. Computed in float32 whatever the
    model runs in, as the released code does.
    """
    steps = torch.arange(head_width // 4, device=device, dtype=torch.float32)
    period = base ** (2 * steps / (head_width // 2))
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n * 2 - 1 for n in grid)
    angle_y = repeat(2 * torch.pi * y[:, None] / period, "h f -> (h w) f", w=grid[1])
    angle_x = repeat(2 * torch.pi * x[:, None] / period, "w f -> (h w) f", h=grid[0])
    angle = torch.cat([angle_y, angle_x], dim=-1)  # N d/2
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the patches of q or k, B K P+N d, by `rotation`, 2 N d or 2 B 1 N d; prefix unturned."""
    patches = rotation.shape[-2]
    prefix, turned = x[..., :-patches, :], x[..., -patches:, :]
    # Low precision would round the angles of far patches together.
    precise = turned.to(torch.promote_types(x.dtype, torch.float32))
    cos, sin = rotation.to(precise.dtype)
    partner = precise.roll(x.shape[-1] // 2, dims=-1)
    turned = torch.addcmul(precise * cos, partner, sin).to(x.dtype)
    return torch.cat([prefix, turned], dim=-2) if prefix.shape[-2] else turned


def resize(
    table: Tensor, source: tuple[int, int], target: tuple[int, int], rule: PositionResize
) -> Tensor:
    """Read the positions of a `source` grid, 1 N D, at a `target` grid, by its origin's rule."""
    if source == target:
        return table
    image = rearrange(table, "1 (h w) d -> 1 d h w", h=source[0])
    # DINO gives the factor (grid + 0.1) / table rather than the size, and its weights expect it.
    factor = [(t + rule.offset) / s for s, t in zip(source, target, strict=True)]
    image = F.interpolate(
        image.to(torch.promote_types(image.dtype, torch.float32)),
        size=None if rule.offset else target,
        scale_factor=factor if rule.offset else None,
        mode=rule.mode,
        antialias=rule.antialias,
        align_corners=rule.align_corners,
    )
    return rearrange(image, "1 d h w -> 1 (h w) d").to(table.dtype)
